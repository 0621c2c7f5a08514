"""What one packed copy of the experts for all token counts costs, and how good defaults are.

For every token count and every layout (how many groups of 16 rows interleave) the default schedule
and some others, drawn at random, are timed in turn. The layer is MiMo-V2-Flash's with as many
experts as `--experts`; weights come from memory. Writes a JSON file: for each layout and token
count the default's and the best time, and their ratios to the best of all layouts.

    python -m benchmarks.expert_layouts --format bf16 --tokens 1,8,128,512 --threads 1
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.moe_phases import Kernels

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_runs
from wattune.compiler.measure.limits import read_bandwidth_at
from wattune.compiler.measure.pool import LEAST_FOOTPRINT
from wattune.ops import FusedMoe, operator
from wattune.schedules.space import Values
from wattune.schedules.target import Target
from wattune.schedules.template import Template, templates_for

OPERATOR = operator("fused_moe")
RESULTS = Path(__file__).with_name("results")
SEED = 0


@dataclass
class Timed:
    """One schedule: what calls its kernel, and the seconds that calls took."""

    problem: FusedMoe
    values: Values
    call: Callable[[], None]
    runs: list[float] = field(default_factory=list)


def schedules(
    template: Template, problem: FusedMoe, target: Target, count: int
) -> Iterator[Values]:
    """Yield, for each layout, the default schedule within it and ``count`` others."""
    rng = np.random.default_rng(SEED)
    whole = template.space(problem, target)
    for _, fixed in template.layouts(problem, target):
        space = whole.restrict(fixed)
        yield space.default()
        for _ in range(count):
            if (values := space.sample(rng)) is not None:
                yield values


def build(problem: FusedMoe, target: Target, count: int, packed: dict[str, Any]) -> list[Timed]:
    """Compile a problem's schedules; ``packed`` keeps the memory of weights for all of them."""
    template = templates_for(problem, target)[0]
    return [
        Timed(problem, values, Kernels(problem, target, packed, values).whole())
        for values in schedules(template, problem, target, count)
    ]


def measure(timed: list[Timed], rounds: int, threads: int) -> float:
    """Time all schedules in turn; return the median GB/s of reading memory meanwhile."""
    gbps = []
    for number in range(rounds + 1):
        gbps.append(read_bandwidth_at(LEAST_FOOTPRINT, threads))
        for one in timed:
            start = time.perf_counter()
            one.call()
            if number:
                one.runs.append(time.perf_counter() - start)
    return median(gbps)


def rows_of(timed: list[Timed], threads: int, gbps: float) -> list[dict[str, Any]]:
    """Return a row for each problem and layout."""
    rows = []
    for problem in dict.fromkeys(t.problem for t in timed):
        mine = [t for t in timed if t.problem == problem]
        best = min(median(t.runs) for t in mine)
        for groups in dict.fromkeys(t.values["groups"] for t in mine):
            inside = [t for t in mine if t.values["groups"] == groups]
            fastest = min(inside, key=lambda t: median(t.runs))
            default, least = median(inside[0].runs), median(fastest.runs)
            work = OPERATOR.work(problem)
            rows.append(
                {
                    "problem": problem.to_json(),
                    "mode": "cold",
                    "threads": threads,
                    "implementation": f"groups={groups}",
                    "schedules": len(inside),
                    "default": inside[0].values,
                    "default_seconds": default,
                    "best": fastest.values,
                    "best_seconds": least,
                    "best_of_layout_to_best_of_all": least / best,
                    "best_of_all_to_default": best / default,
                    "default_gops": work.operations / default / 1e9,
                    "default_fraction_of_read_limit": work.bytes / default / 1e9 / gbps,
                }
            )
    return rows


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", default="bf16")
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--tokens", default="1,8,128,512")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", type=int, default=4, help="schedules beside each default")
    return parser.parse_args()


def build_all(given: argparse.Namespace) -> list[Timed]:
    """Compile everything that is measured."""
    os.environ.update(TVM_NUM_THREADS=str(given.threads), TVM_BIND_THREADS="0")
    target, packed = Target.native(given.threads), dict[str, Any]()
    return [
        timed
        for tokens in map(int, given.tokens.split(","))
        for timed in build(
            FusedMoe(tokens, given.experts, 8, 4096, 2048, format=given.format),
            target,
            given.others,
            packed,
        )
    ]


def measure_all(given: argparse.Namespace, timed: list[Timed]) -> None:
    """Measure, print and write the results."""
    gbps = measure(timed, given.rounds, given.threads)
    rows = rows_of(timed, given.threads, gbps)
    for row in rows:
        print(
            f"{FusedMoe.from_json(row['problem'])} {row['implementation']}: default "
            f"{1e3 * row['default_seconds']:.2f} ms, best {1e3 * row['best_seconds']:.2f} ms, "
            f"{row['best_of_layout_to_best_of_all']:.2f} of the best layout's"
        )
    machine = {**describe_machine(Target.native(given.threads)), "limits": {"read_gbps": gbps}}
    path = results_file(RESULTS, "expert-layouts", machine["device"])
    write_runs(path, [{"machine": machine, "rows": rows}])
    print(f"{path} written")


def main() -> None:
    """Build, measure, write."""
    given = options()
    measure_all(given, build_all(given))


if __name__ == "__main__":
    main()
