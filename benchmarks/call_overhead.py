"""What a call from Python costs beyond the kernel: ``python benchmarks/call_overhead.py``.

A call with zero tokens does everything but the kernel, so its time is the cost of the Python call
and of the checks at the boundary; "entry" is the same call with tensors that are converted
already, which is next to the C entry alone. The least of many short runs, in microseconds.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm_ffi

from wattune.compiler.library import Kernels, load
from wattune.compiler.library.choose import choose
from wattune.compiler.library.package import build
from wattune.ops import TernaryGemm
from wattune.schedules.target import Target

CALLS, RUNS = 500, 400
OUT, IN = 64, 256


def microseconds(function: Callable[[], object]) -> float:
    """Return the time of one call in the fastest of many runs."""
    best = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(CALLS):
            function()
        best = min(best, time.perf_counter() - start)
    return round(best / CALLS * 1e6, 3)


def export(folder: Path) -> Kernels:
    """Export and load one small kernel."""
    target = Target.parse("cpu:generic")
    choices = choose([TernaryGemm(1, OUT, IN)], target, None, "latency", None)
    return load(build(choices, target).export(folder / "kernels.so"))


def row(kernels: Kernels, framework: str) -> dict[str, Any]:
    """Measure calls with tensors of one framework, with and without ``out``."""
    entry = kernels.ternary_gemm
    packed = entry.pack(np.zeros((OUT, IN), np.int8), 1.0)
    empty: tuple[Any, Any] = np.zeros((0, IN), np.float32), np.zeros((0, OUT), np.float32)
    x, y = map(torch.from_numpy, empty) if framework == "torch" else empty
    weight, scale = packed.tensors["weight"], packed.tensors["weight_scale"]
    ready = [tvm_ffi.from_dlpack(x), None, weight, scale, None, tvm_ffi.from_dlpack(y)]
    call = entry.parts[0].call
    return {
        "framework": framework,
        "entry": microseconds(lambda: call(*ready)),
        "with_out": microseconds(lambda: entry(x, packed, out=y)),
        "without_out": microseconds(lambda: entry(x, packed)),
    }


def main() -> None:
    """Print one JSON row a framework."""
    with tempfile.TemporaryDirectory() as folder:
        kernels = export(Path(folder))
        for framework in ("numpy", "torch"):
            print(json.dumps(row(kernels, framework)))


if __name__ == "__main__":
    main()
