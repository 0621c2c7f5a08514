"""Run one asm statement in every thread, operands and results from and to numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.emulator.cuda.run import launch

Values = NDArray[Any]

WARP = 32
_TYPES = {"int32": "int", "uint32": "unsigned", "float32": "float", "uint64": "unsigned long long"}
_CONSTRAINTS = {"int32": "r", "uint32": "r", "float32": "f", "uint64": "l"}


def lanes(text: str, results: tuple[str, ...], *operands: Values, blocks: int = 1) -> list[Values]:
    """Return what the statement leaves in each result, one value a thread.

    ``%0`` and so on are the results, then the operands, as in an asm statement; ``results`` names
    their dtypes.
    """
    count = blocks * WARP
    outs = [np.zeros(count, dtype=dtype) for dtype in results]
    names = [f"r{i}" for i in range(len(outs))] + [f"x{i}" for i in range(len(operands))]
    arrays = [*outs, *(np.ascontiguousarray(o) for o in operands)]
    assert all(len(array) == count for array in arrays)
    parameters = [f"{_TYPES[str(a.dtype)]}* {n}" for a, n in zip(arrays, names, strict=True)]
    bound = [f'"{_CONSTRAINTS[str(a.dtype)]}"({n}[i])' for a, n in zip(arrays, names, strict=True)]
    written = ", ".join(b.replace('"', '"=', 1) for b in bound[: len(outs)])
    read = ", ".join(bound[len(outs) :])
    launch(
        f"""
        extern "C" __global__ void kernel({", ".join(parameters)}) {{
          int i = blockIdx.x * {WARP} + threadIdx.x;
          asm volatile("{text}" : {written} : {read} : "memory");
        }}""",
        "kernel",
        arrays,
        blocks=blocks,
    )
    return outs


def words(seed: int, count: int = WARP) -> Values:
    """Draw random words of 32 bits."""
    return np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint64).astype("uint32")
