"""Errors of the vector functions over their whole range, on this CPU and on plain vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.schedules.kernels import compile_function

from wattune.ops.operator import Argument
from wattune.schedules.cpu import math, vector
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.target import Target

Real = NDArray[np.float32]
TINY = 2.0**-126


def evaluate(name: str, x: Real, target: Target, lanes: int) -> Real:
    """Apply a function of `math` to an array of whole vectors."""
    from tvm.script import tirx as T
    from tvm_ffi import from_dlpack

    function: Callable[[Any, int], Any] = getattr(math, name)

    def body(tensors: Tensors) -> None:
        with T.serial(T.cast(tensors.sizes["count"], "int32") // lanes) as i:
            kind = math.kind("float32", lanes)
            value = tensors["x"].vload([i * lanes], kind) if lanes > 1 else tensors["x"][i]
            vector.store(tensors["y"], [i * lanes], function(T.bind(value), lanes))

    arguments = (
        Argument("x", ("count",), "float32", "input"),
        Argument("y", ("count",), "float32", "output"),
    )
    found = np.full_like(x, np.nan)
    kernel = compile_function(tensor_program(arguments, {}, body), target)
    kernel(from_dlpack(x), from_dlpack(found))
    return found


def whole(*parts: Any) -> Real:
    """Join arrays and numbers, up to whole vectors."""
    joined = np.concatenate([np.atleast_1d(part) for part in parts])
    return np.resize(joined, -(-len(joined) // 16) * 16).astype(np.float32)


WHERE = [("native", 16), ("native", 1), ("cpu:generic", 4)]


@pytest.mark.parametrize(("target", "lanes"), WHERE)
def test_exp2(target: str, lanes: int) -> None:
    x = whole(-np.geomspace(1e-30, 126, 200001), -np.arange(0, 127), np.linspace(-127, 0, 99999))
    got = evaluate("exp2", x, Target.parse(target, 1), lanes)
    want = np.exp2(x.astype(np.float64))
    normal = x >= -126
    assert np.abs(got / want - 1)[normal].max() < 2.0**-22
    assert not got[~normal].any()
    rest = whole(-np.geomspace(126.001, 3e38, 1000), math.NOTHING, -np.inf)
    assert not evaluate("exp2", rest, Target.parse(target, 1), lanes).any()
    assert np.isnan(evaluate("exp2", whole(np.nan), Target.parse(target, 1), lanes)).all()
    assert evaluate("exp2", whole(0.0, -0.0), Target.parse(target, 1), lanes).min() == 1.0


@pytest.mark.parametrize(("target", "lanes"), WHERE)
def test_exp2_between(target: str, lanes: int) -> None:
    x = whole(np.linspace(-126, 126, 200001), np.geomspace(1e-30, 126, 99999), np.arange(-126, 127))
    got = evaluate("exp2_between", x, Target.parse(target, 1), lanes)
    assert np.abs(got / np.exp2(x.astype(np.float64)) - 1).max() < 2.0**-22


@pytest.mark.parametrize(("target", "lanes"), WHERE)
def test_log2(target: str, lanes: int) -> None:
    x = whole(np.geomspace(TINY, 3.4e38, 200001), np.linspace(0.5, 2, 100001))
    got = evaluate("log2", x, Target.parse(target, 1), lanes)
    want = np.log2(x.astype(np.float64))
    assert (np.abs(got - want) / (1 + np.abs(want))).max() < 2.0**-21
    assert evaluate("log2", whole(1.0), Target.parse(target, 1), lanes)[0] == 0.0


@pytest.mark.parametrize(("target", "lanes"), WHERE)
def test_tanh(target: str, lanes: int) -> None:
    size = np.concatenate([np.geomspace(1e-30, 1e30, 100001), np.linspace(0, 10, 100001)[1:]])
    x = whole(size, -size, np.inf, -np.inf)
    got = evaluate("tanh", x, Target.parse(target, 1), lanes)
    want = np.tanh(x.astype(np.float64))
    assert np.abs(got / want - 1).max() < 2.0**-21
    assert not evaluate("tanh", whole(0.0, -0.0), Target.parse(target, 1), lanes).any()
    assert np.isnan(evaluate("tanh", whole(np.nan), Target.parse(target, 1), lanes)).all()
