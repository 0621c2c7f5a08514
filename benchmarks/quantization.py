"""What quantising the activations costs: ``python benchmarks/quantization.py``.

A kernel of few rows is almost only quantisation: with 16 and with 32 rows, 2 t(16) - t(32) is what
does not depend on the rows, the fixed cost of a call included. Its share of the whole kernel at one
token, hot (cold kernels take longer, so the share is smaller), one JSON row a shape and number of
threads.
"""

from __future__ import annotations

import json
from dataclasses import replace

from wattune.compiler.measure.runner import LocalRunner
from wattune.ops import TernaryGemm
from wattune.schedules.candidate import Candidate
from wattune.schedules.target import Target
from wattune.schedules.template import Layout, default_candidate

SHAPES = ((2560, 2560), (2560, 6912), (4096, 4096), (14336, 4096))
NARROW = Layout.make("i2", groups=1)


def candidates(target: Target, out_features: int, in_features: int) -> list[Candidate]:
    """Return the default kernel, and kernels of 16 and 32 rows."""
    problem = TernaryGemm(1, out_features, in_features, dtype="bfloat16")
    few = [replace(problem, out_features=rows) for rows in (16, 32)]
    return [
        default_candidate(problem, target),
        *(default_candidate(narrow, target, NARROW) for narrow in few),
    ]


def main() -> None:
    """Measure every shape at one thread and at all."""
    cores = Target.native().cores
    for threads in sorted({1, cores}):
        target = Target.native(threads)
        with LocalRunner(target, "hot") as runner:
            for shape in SHAPES:
                wanted = candidates(target, *shape)
                # Of each problem its own interleaved medians: noise hits the three alike.
                records = {r.candidate: r.latency for r in runner.interleaved(wanted)}
                whole, sixteen, thirty_two = (records[candidate] for candidate in wanted)
                fixed = 2 * sixteen - thirty_two
                row = {
                    "shape": f"1x{shape[0]}x{shape[1]}",
                    "threads": threads,
                    "microseconds": round(fixed * 1e6, 3),
                    "of_kernel": round(fixed / whole, 4),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
