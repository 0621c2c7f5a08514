"""How near one-token kernels come to the read bandwidth: ``python benchmarks/bandwidth.py``.

The kernel alone, called from C as the tuner measures it, by the default schedule; the machine's
bandwidth is measured at the same footprint, threads and pages just before and just after, and the
better of the two counts. One JSON row a shape, mode and number of threads, and all of them with the
machine to one dated file in ``benchmarks/results/``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.measure.limits import read_bandwidth_at
from wattune.compiler.measure.pool import cold_footprint
from wattune.compiler.measure.runner import LocalRunner
from wattune.ops import TernaryGemm
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate, template_of

RESULTS = Path(__file__).parent / "results"
SHAPES = ((4096, 4096), (14336, 4096))
FORMATS = {"hot": "i2", "cold": "t5"}


def row(target: Target, mode: str, out_features: int, in_features: int) -> dict[str, object]:
    """Measure one kernel between two measurements of the limit."""
    problem = TernaryGemm(1, out_features, in_features, dtype="bfloat16", format=FORMATS[mode])
    candidate = default_candidate(problem, target)
    sizes = template_of(candidate).sizes(problem, target, candidate.schedule.values)
    moved = sizes["weight_bytes"]
    footprint = moved if mode == "hot" else cold_footprint(target.l3, target.memory)
    with LocalRunner(target, mode) as runner:
        before = read_bandwidth_at(footprint, target.threads)
        (record,) = runner.interleaved([candidate])
        limit = max(before, read_bandwidth_at(footprint, target.threads))
    gbps = moved / record.latency / 1e9
    return {
        "shape": f"1x{out_features}x{in_features}",
        "mode": mode,
        "format": problem.format,
        "threads": target.threads,
        "microseconds": round(record.latency * 1e6, 1),
        "gbps": round(gbps, 1),
        "limit_gbps": round(limit, 1),
        "of_limit": round(gbps / limit, 3),
    }


def main() -> None:
    """Measure and print all rows, then write them."""
    rows = []
    for threads in sorted({1, Target.native().cores}):
        target = Target.native(threads)
        for mode in FORMATS:
            for shape in SHAPES:
                rows.append(row(target, mode, *shape))
                print(json.dumps(rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    result = {"machine": describe_machine(Target.native()), "rows": rows}
    path = RESULTS / f"{time.strftime('%Y-%m-%d')}-bandwidth.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{path} written")


if __name__ == "__main__":
    main()
