"""Exported libraries that the library tests share, compiled once a test run."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wattune.compiler.library.choose import choose
from wattune.compiler.library.loader import Kernels, load
from wattune.compiler.library.package import build, compile
from wattune.ops import Problem, TernaryGemm, operator
from wattune.ops.block_sparse_decode_attention import BlockSparseDecodeAttention
from wattune.ops.decode_attention import DecodeAttention
from wattune.ops.kv_cache_append import KVCacheAppend
from wattune.ops.merge_states import MergeStates
from wattune.ops.rectify_attention import RectifyAttention
from wattune.schedules.target import Target

# For any CPU of this architecture.
TARGET = Target.parse("cpu:generic", threads=2)
OUT, IN = 48, 200
# Two buckets of one variant; other dtypes; other sizes and a scale for each row.
PROBLEMS = (
    TernaryGemm(1, OUT, IN),
    TernaryGemm(8, OUT, IN),
    TernaryGemm(4, OUT, IN, dtype="bfloat16"),
    TernaryGemm(4, OUT, IN, dtype="int8"),
    TernaryGemm(4, OUT, IN, dtype="int8", out_dtype="float32"),
    TernaryGemm(4, 37, 129, scale="row"),
)

# Two buckets; another window and other heads for tensors of the same dtypes; all else at once.
DENSE = DecodeAttention(3, 64, 8, 2, 64, value_dim=32)
ATTENTION: tuple[Problem, ...] = (
    DecodeAttention(1, 64, 8, 2, 64, value_dim=32),
    DENSE,
    DecodeAttention(3, 64, 8, 2, 64, value_dim=32, window=16),
    DecodeAttention(3, 64, 8, 4, 64, value_dim=32),
    DecodeAttention(
        3,
        64,
        8,
        2,
        64,
        query_tokens=4,
        dtype="float32",
        layout="NHD",
        page_size=8,
        window=16,
        sinks=True,
        return_lse=True,
    ),
    BlockSparseDecodeAttention(
        3, 64, 8, 2, 64, value_dim=32, max_blocks=3, block_size=16, query_tokens=2
    ),
    RectifyAttention(3, 64, 8, 2, 64, value_dim=32, query_tokens=4),
    # Into the caches of DENSE, and of the paged one.
    KVCacheAppend(3, 64, 2, 64, value_dim=32, query_tokens=2),
    KVCacheAppend(3, 64, 2, 64, query_tokens=4, dtype="float32", layout="NHD", page_size=8),
)
MERGE = MergeStates(3, 4, 8, 32)

_folder = tempfile.TemporaryDirectory(prefix="wattune-tests-")


@cache
def exported() -> Path:
    """Return the path of the library; it is compiled once a test run."""
    library = build(choose(PROBLEMS, TARGET, None, "latency", None), TARGET)
    return library.export(Path(_folder.name) / "kernels.so")


@cache
def exported_attention() -> Path:
    """Return the path of a library of attention operators for this CPU; every kernel is verified.

    In a folder of its own, as ``kernels.h`` is what programs include.
    """
    folder = Path(_folder.name) / "attention"
    folder.mkdir()
    return compile((*ATTENTION, MERGE), Target.native(threads=1)).export(folder / "kernels.so")


def attend(kernels: Kernels, problem: Problem, inputs: dict[str, Any], **more: Any) -> Any:
    """Call a problem's operator with all its fields."""
    names = operator(problem.operator).signature
    fields = {name: value for name, value in problem.to_json().items() if name != "operator"}
    fields = {name: fields[name] for name in fields if name not in (*problem.runtime, *names)}
    tensors = {name: inputs[name] for name in names if name in inputs}
    return getattr(kernels, problem.operator)(**{**tensors, **fields, **more})


@pytest.fixture
def kernels() -> Kernels:
    return load(exported())


def case(problem: TernaryGemm, seed: int = 0) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Return inputs and the expected y."""
    op = operator("ternary_gemm")
    inputs = op.make_inputs(problem, np.random.default_rng(seed))
    return inputs, op.reference(problem, inputs)["y"]


def sources(inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what `Entry.pack` takes of inputs."""
    return {name: inputs[name] for name in ("weights", "scale") if name in inputs}


def assert_close(problem: TernaryGemm, actual: Any, expected: NDArray[Any]) -> None:
    """Compare within the operator's tolerance."""
    tolerance = operator("ternary_gemm").tolerance(problem, "y")
    assert actual.shape == expected.shape
    assert str(actual.dtype).removeprefix("torch.") == expected.dtype.name
    if hasattr(actual, "float"):
        actual = actual.float().numpy()
    np.testing.assert_allclose(
        actual.astype(np.float64),
        expected.astype(np.float64),
        rtol=tolerance.rtol,
        atol=tolerance.atol,
    )
