"""One exported library that the library tests share, for any CPU of this architecture."""

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
from wattune.compiler.library.package import build
from wattune.ops import TernaryGemm, operator
from wattune.schedules.target import Target

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

_folder = tempfile.TemporaryDirectory(prefix="wattune-tests-")


@cache
def exported() -> Path:
    """Return the path of the library; it is compiled once a test run."""
    library = build(choose(PROBLEMS, TARGET, None, "latency", None), TARGET)
    return library.export(Path(_folder.name) / "kernels.so")


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
