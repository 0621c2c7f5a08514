"""What bounds attention to keys in a cache: ``python benchmarks/attention_bound.py``.

Dense decode attention of one KV head whose keys and values fit the first cache, and the second, is
its arithmetic alone; that of eight heads at 4K reads the third cache beside. By several schedules,
since the default one is made for keys that come from memory. The same for quantised caches in the
second cache, by the default schedule: what those that come from memory are bound by. One row a
problem and schedule: GB/s beside the bandwidth of reading the same footprint, and the share of the
dot products, of bfloat16 or of 16-bit integers, that the unit could do. In one thread, called from
C as the tuner measures it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.bench.units import SHARES, unit_of
from wattune.compiler.measure.limits import read_bandwidth_at, unit_gops
from wattune.compiler.measure.runner import LocalRunner
from wattune.ops import DecodeAttention, Problem, QuantizedDecodeAttention, operator
from wattune.schedules.candidate import Candidate, Schedule
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, template_of

RESULTS = Path(__file__).parent / "results"
# Knobs beside the default ones.
DEFAULT: tuple[dict[str, int], ...] = ({},)
SCHEDULES = (*DEFAULT, *({"block": block, "prefetch": 0} for block in (16, 64, 128)))
PROBLEMS: tuple[tuple[Problem, tuple[dict[str, int], ...]], ...] = (
    (DecodeAttention(1, 64, 4, 1, 128), SCHEDULES),
    (DecodeAttention(1, 512, 4, 1, 128), SCHEDULES),
    (DecodeAttention(1, 4096, 32, 8, 128), SCHEDULES),
    *(
        (QuantizedDecodeAttention(1, 1024, 4, 1, 128, format=name), DEFAULT)
        for name in ("int8", "int4", "int2")
    ),
)


def candidate(problem: Problem, target: Target, knobs: dict[str, int]) -> Candidate:
    """Return the default schedule of a problem, some knobs changed."""
    default = default_candidate(problem, target)
    name, values = default.schedule.template, default.schedule.values
    return replace(default, schedule=Schedule.make(name, {**values, **knobs}))


def in_space(found: Candidate) -> bool:
    """Say whether a template has such a schedule: tiles have no blocks of 16 keys."""
    space = template_of(found).space(found.problem, found.target)
    return space.contains(found.schedule.values)


def rows(
    target: Target, problem: Problem, schedules: tuple[dict[str, int], ...]
) -> list[dict[str, object]]:
    """Measure a problem between two measurements of its limit."""
    work = operator(problem.operator).work(problem)
    schedules = tuple(k for k in schedules if in_space(candidate(problem, target, k)))
    with LocalRunner(target, "hot") as runner:
        before = read_bandwidth_at(work.bytes, 1)
        records = runner.interleaved([candidate(problem, target, knobs) for knobs in schedules])
        limit = max(before, read_bandwidth_at(work.bytes, 1))
    peaks = {unit: unit_gops(unit, 1) for unit in SHARES}
    found: list[dict[str, object]] = []
    for knobs, record in zip(schedules, records, strict=True):
        seconds = record.latency
        words = " ".join(f"{name}={value}" for name, value in knobs.items())
        row = {
            "problem": f"{problem} {words or 'default'}",
            "mode": "hot",
            "threads": 1,
            "microseconds": round(seconds * 1e6, 2),
            "gbps": round(work.bytes / seconds / 1e9, 1),
            "limit_gbps": round(limit, 1),
            "of_limit": round(work.bytes / seconds / 1e9 / limit, 3),
        }
        unit = unit_of(candidate(problem, target, knobs))
        if unit:
            row[SHARES[unit]] = round(work.operations / seconds / 1e9 / peaks[unit], 3)
        found.append(row)
    return found


def main() -> None:
    """Measure, print and write problem by problem."""
    target = Target.native(threads=1)
    machine = describe_machine(target)
    path = results_file(RESULTS, "attention_bound", machine["device"])
    for problem, schedules in PROBLEMS:
        found = rows(target, problem, schedules)
        for row in found:
            print(json.dumps(row), flush=True)
        write_rows(path, {"machine": machine}, found)
    print(f"{path} written")


if __name__ == "__main__":
    main()
