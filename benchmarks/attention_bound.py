"""What bounds attention to keys in a cache: ``python benchmarks/attention_bound.py``.

Dense decode attention of one KV head whose keys and values fit the first cache, and the second, is
its arithmetic alone; that of eight heads at 4K reads the third cache beside. By several schedules,
since the default one is made for keys that come from memory. One row a problem and schedule: GB/s
beside the bandwidth of reading the same footprint, and the share of the bfloat16 dot products that
the unit could do. In one thread, called from C as the tuner measures it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.measure.limits import read_bandwidth_at, unit_gops
from wattune.compiler.measure.runner import LocalRunner
from wattune.ops import DecodeAttention, operator
from wattune.schedules.candidate import Candidate, Schedule
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate

RESULTS = Path(__file__).parent / "results"
PROBLEMS = (
    DecodeAttention(1, 64, 4, 1, 128),
    DecodeAttention(1, 512, 4, 1, 128),
    DecodeAttention(1, 4096, 32, 8, 128),
)
# Knobs beside the default ones.
SCHEDULES: tuple[dict[str, int], ...] = (
    {},
    *({"block": block, "prefetch": 0} for block in (16, 64, 128)),
)


def candidates(problem: DecodeAttention, target: Target) -> list[Candidate]:
    """Return the schedules of a problem."""
    default = default_candidate(problem, target)
    name, values = default.schedule.template, default.schedule.values
    return [
        replace(default, schedule=Schedule.make(name, {**values, **knobs})) for knobs in SCHEDULES
    ]


def rows(target: Target, problem: DecodeAttention) -> list[dict[str, object]]:
    """Measure a problem between two measurements of its limit."""
    work = operator(problem.operator).work(problem)
    with LocalRunner(target, "hot") as runner:
        before = read_bandwidth_at(work.bytes, 1)
        records = runner.interleaved(candidates(problem, target))
        limit = max(before, read_bandwidth_at(work.bytes, 1))
    dots = unit_gops("bf16_gflops", 1)
    found: list[dict[str, object]] = []
    for knobs, record in zip(SCHEDULES, records, strict=True):
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
        if dots:
            row["of_dots"] = round(work.operations / seconds / 1e9 / dots, 3)
        found.append(row)
    return found


def main() -> None:
    """Measure, print and write problem by problem."""
    target = Target.native(threads=1)
    machine = describe_machine(target)
    path = results_file(RESULTS, "attention_bound", machine["device"])
    for problem in PROBLEMS:
        found = rows(target, problem)
        for row in found:
            print(json.dumps(row), flush=True)
        write_rows(path, {"machine": machine}, found)
    print(f"{path} written")


if __name__ == "__main__":
    main()
