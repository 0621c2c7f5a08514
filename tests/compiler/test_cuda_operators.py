"""Operators with templates for GPUs, called from one library as a model would call them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compiler.gpus import aligned, on_gpu
from tests.emulator.cuda import driver
from tests.schedules.cuda import HOPPER, emulated_image

from wattune.compiler.cuda import device_code
from wattune.compiler.library.choose import choose
from wattune.compiler.library.loader import load
from wattune.compiler.library.package import build
from wattune.compiler.measure.verify import difference
from wattune.ops import (
    BlockMinmax,
    BlockScore,
    BlockSparseDecodeAttention,
    DecodeAttention,
    KVCacheAppend,
    Problem,
    SelectBlocks,
    operator,
)
from wattune.ops.dtypes import numpy_dtype

HEADS: dict[str, Any] = {"kv_heads": 2, "head_dim": 64, "dtype": "float16"}
QUERIES = {"query_heads": 8, **HEADS}
PROBLEMS: tuple[Problem, ...] = (
    # Two buckets, and a variant of the same tensors.
    DecodeAttention(2, 96, **QUERIES),
    DecodeAttention(2, 8192, **QUERIES),
    BlockSparseDecodeAttention(2, 96, **QUERIES, max_blocks=3, block_size=16),
    BlockSparseDecodeAttention(2, 96, **QUERIES, max_blocks=3, block_size=32),
    KVCacheAppend(2, 96, **HEADS),
    KVCacheAppend(2, 96, **HEADS, page_size=16),
    BlockMinmax(2, 96, **HEADS),
    BlockScore(2, 96, **QUERIES),
    SelectBlocks(2, 96, 2, max_blocks=3, block_size=16),
)

_folder = tempfile.TemporaryDirectory(prefix="wattune-tests-")


@cache
def exported() -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_code, "compile_image", emulated_image)
        library = build(choose(PROBLEMS, HOPPER, None, "latency", None), HOPPER)
        return library.export(Path(_folder.name) / "kernels.so")


def placed(array: Any) -> Any:
    """Copy an array to where kernels may read it; bytes of bfloat16 too."""
    copy = aligned(array.shape, array.dtype.name)
    copy[...] = array
    return copy


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.sizes["context"] < 100], ids=str)
@pytest.mark.parametrize("bound", [0, 1])
def test_an_operator_of_a_library(problem: Problem, bound: int) -> None:
    """Hard inputs; a bound of the lengths that is far too low changes no result."""
    driver.install()
    entry = getattr(load(exported()), problem.operator)
    op, rng = operator(problem.operator), np.random.default_rng(0)
    values = op.verification_inputs(problem, rng)
    right = op.reference(problem, values)
    given, arguments = {name: placed(v) for name, v in values.items()}, op.arguments(problem)
    sizes = dict(problem.extents)
    outputs = [
        aligned(a.concrete(sizes), numpy_dtype(a.dtype).name)
        for a in arguments
        if a.role == "output"
    ]
    tensors = {a.name: on_gpu(given[a.name]) for a in arguments if a.name in given}
    scratch = on_gpu(aligned((max(entry.workspace_bytes, 1),), "uint8"))
    out: Any = tuple(map(on_gpu, outputs))
    more: dict[str, Any] = {name: bound for name in entry.parts[0].bounded if bound}
    if isinstance(problem, BlockSparseDecodeAttention):
        more["block_size"] = problem.block_size
    entry(**tensors, out=out[0] if len(out) == 1 else out or None, workspace=scratch, **more)
    made = dict(zip((a.name for a in arguments if a.role == "output"), outputs, strict=True))
    for name, wanted in right.items():
        got = {**given, **made}[name]
        assert not difference(got, wanted, op.tolerance(problem, name)), name
