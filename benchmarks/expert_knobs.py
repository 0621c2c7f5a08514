"""What knobs of the experts' templates are worth: default schedules with one or more changed.

The knobs are `next_block`, `columns` with `panel`, and `gate_up` with the groups and the rows at
once that fit it; what the space of a token count does not hold is left out. All schedules of a
token count are timed in turn, beside the peak of the unit of dot products; the layer is
MiMo-V2-Flash's with as many experts as `--experts`, and weights come from memory. Writes a JSON
file.

    python -m benchmarks.expert_knobs --format bf16 --tokens 128,512 --threads 1
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.expert_layouts import OPERATOR, Timed, measure
from benchmarks.moe_phases import Kernels

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.measure.limits import unit_gops
from wattune.ops import FusedMoe
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

RESULTS = Path(__file__).with_name("results")
CHANGES: tuple[dict[str, Value], ...] = (
    {},
    {"next_block": False},
    {"next_block": True},
    {"columns": 1024},
    {"columns": 1024, "panel": 16},
    {"columns": 512, "panel": 0},
    {"gate_up": "fused", "groups": 2, "row_block": 12},
)
UNITS = {"bf16": "bf16_gflops", "int8": "vnni_gops", "int4": "vnni_gops"}


def build(problem: FusedMoe, target: Target, packed: dict[str, Any]) -> list[Timed]:
    """Compile the default and what differs from it."""
    template = templates_for(problem, target)[0]
    space = template.space(problem, target)
    found: list[Timed] = []
    for change in CHANGES:
        values = {**space.default(), **change}
        if space.contains(values) and all(values != other.values for other in found):
            call = Kernels(problem, target, packed, values).whole()
            found.append(Timed(problem, values, call))
    return found


def rows_of(timed: list[Timed], threads: int, gbps: float, peak: float) -> list[dict[str, Any]]:
    """Return a row for each schedule; the first of a problem is its default."""
    rows = []
    for one in timed:
        first = next(t for t in timed if t.problem == one.problem)
        changed = {k: v for k, v in one.values.items() if first.values[k] != v}
        seconds, work = median(one.runs), OPERATOR.work(one.problem)
        rows.append(
            {
                "problem": one.problem.to_json(),
                "mode": "cold",
                "threads": threads,
                "rounds": len(one.runs),
                "implementation": " ".join(f"{k}={v}" for k, v in changed.items()) or "default",
                "schedule": one.values,
                "seconds": {"median": seconds, "min": min(one.runs)},
                "speed_of_default": median(first.runs) / seconds,
                "fraction_of_dot_peak": work.operations / seconds / 1e9 / peak,
                "fraction_of_read_limit": work.bytes / seconds / 1e9 / gbps,
            }
        )
    return rows


def main() -> None:
    """Build, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", default="bf16")
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--tokens", default="128,512")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    os.environ.update(TVM_NUM_THREADS=str(given.threads), TVM_BIND_THREADS="0")
    target, packed = Target.native(given.threads), dict[str, Any]()
    sizes = given.experts, 8, 4096, 2048
    problems = [FusedMoe(int(t), *sizes, format=given.format) for t in given.tokens.split(",")]
    timed = [one for problem in problems for one in build(problem, target, packed)]
    gbps = measure(timed, given.rounds, given.threads)
    peak = max(unit_gops(UNITS[given.format], given.threads) for _ in range(3))
    rows = rows_of(timed, given.threads, gbps, peak)
    for row in rows:
        print(
            f"{FusedMoe.from_json(row['problem'])} {row['implementation']}: "
            f"{1e3 * row['seconds']['median']:.2f} ms, {row['speed_of_default']:.2f}x, "
            f"{row['fraction_of_dot_peak']:.2f} of the dot unit's peak"
        )
    limits = {"read_gbps": gbps, UNITS[given.format]: peak}
    machine = {**describe_machine(target), "limits": limits}
    path = results_file(RESULTS, "expert-knobs", machine["device"])
    write_rows(path, {"machine": machine}, rows)
    print(f"{path} written")


if __name__ == "__main__":
    main()
