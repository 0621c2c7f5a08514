"""A made-up operator with what attention has: caches, lengths, lists, pages, optional tensors.

y[r] = factor * sum of store[r, p] over p in picks[r], 0 <= p < lengths[r]  (+ bias)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.compiler.toy import ToyOperator, ToyTemplate

from wattune import ops
from wattune.compiler.library.choose import choose
from wattune.compiler.library.package import build
from wattune.ops import Argument, Problem
from wattune.ops.operator import Limit, Used, Values
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Template, register_module

PER_PAGE = 4


@dataclass(frozen=True)
class Gather(Problem):
    """``served`` is the bucket of the kernel that served each row; log[0] counts kernels."""

    operator: ClassVar[str] = "gather"
    runtime: ClassVar[tuple[str, ...]] = ("rows", "length", "picks")
    open_ended: ClassVar[tuple[str, ...]] = ("length", "picks")
    free: ClassVar[tuple[str, ...]] = ("capacity", "pages", "slots")

    rows: int
    length: int
    picks: int
    width: int = 2
    factor: float = 1.0
    biased: bool = False
    served: bool = True
    pages: bool = True


class GatherOperator(ToyOperator[Gather]):
    name = "gather"
    summary = "sums of picked rows"
    problem = Gather

    @property
    def signature(self) -> tuple[str, ...]:
        return ("store", "log", "lengths", "picks", "pages", "bias", "y", "served")

    def arguments(self, problem: Gather) -> tuple[Argument, ...]:
        store = ("rows", "capacity", problem.width)
        lengths = Values(0, Limit("capacity"), maximum="length")
        picks = Values(-1, Limit("capacity", offset=-1), unique=True)
        pages = Values(0, Limit("slots", times=2, per=3, offset=-1), used=Used("lengths", PER_PAGE))
        found = [
            Argument("store", store, "float32", "state"),
            Argument("log", ("slots",), "int32", "state", updated=True),
            Argument("lengths", ("rows",), "int32", "input", values=lengths),
            Argument("picks", ("rows", "picks"), "int32", "input", values=picks),
        ]
        if problem.pages:
            found.append(Argument("pages", ("rows", "pages"), "int32", "input", values=pages))
        if problem.biased:
            found.append(Argument("bias", (problem.width,), "float32", "input"))
        found.append(Argument("y", ("rows", problem.width), "float32", "output"))
        if problem.served:
            found.append(Argument("served", ("rows", 3), "int32", "output"))
        return tuple(found)


class GatherTemplate(ToyTemplate):
    name = "gather_plain"
    operator = "gather"

    def lower(self, problem: Gather, target: Target, values: Mapping[str, Value]) -> Any:
        from tvm.script import tirx as T

        def body(tensors: Tensors) -> None:
            store, picks, y = tensors["store"], tensors["picks"], tensors["y"]
            bias, served = tensors.get("bias"), tensors.get("served")
            T.buffer_store(tensors["log"], tensors["log"][0] + 1, [0])
            with T.serial(T.cast(tensors.sizes["rows"], "int32")) as row:
                for i, end in enumerate(problem.sizes.values()):
                    if served is not None:
                        T.buffer_store(served, T.int32(end), [row, i])
                with T.serial(problem.width) as column:
                    first = T.float32(0) if bias is None else bias[column]
                    T.buffer_store(y, first, [row, column])
                    with T.serial(T.cast(tensors.sizes["picks"], "int32")) as i:
                        pick = picks[row, i]
                        kept = T.And(pick >= 0, pick < tensors["lengths"][row])
                        with T.If(kept), T.Then():
                            value = T.float32(problem.factor) * store[row, pick, column]
                            T.buffer_store(y, y[row, column] + value, [row, column])

        return tensor_program(GATHER.arguments(problem), {}, body)


GATHER = GatherOperator()
TEMPLATES: tuple[Template, ...] = (GatherTemplate(),)

# A grid that is not complete; then variants of the same tensors, of other widths, of other tensors.
PROBLEMS = (
    Gather(1, 8, 4),
    Gather(4, 8, 4),
    Gather(4, 64, 4),
    Gather(4, 64, 16),
    Gather(4, 64, 16, factor=0.125),
    Gather(4, 64, 16, width=3),
    Gather(4, 64, 16, biased=True),
    Gather(4, 64, 16, pages=False, served=False),
)

_folder = tempfile.TemporaryDirectory(prefix="wattune-tests-")


@cache
def exported_gather() -> Path:
    """Return the path of a library; it is compiled once a test run."""
    register_module("cpu", "tests.compiler.toy_gather")
    target = Target.parse("cpu:generic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ops._OPERATORS, "gather", GATHER)
        library = build(choose(PROBLEMS, target, None, "latency", None), target)
        return library.export(Path(_folder.name) / "kernels.so")


def inputs(
    rows: int = 2, capacity: int = 6, picks: int = 3, width: int = 2, length: int | None = None
) -> dict[str, NDArray[Any]]:
    """Draw full requests, by default; every picked row is another one."""
    rng = np.random.default_rng(rows + capacity + picks)
    lists = [rng.permutation(max(capacity, picks))[:picks] for _ in range(rows)]
    return {
        "store": rng.standard_normal((rows, capacity, width), dtype=np.float32),
        "log": np.zeros(9, np.int32),
        "lengths": np.full(rows, capacity if length is None else length, np.int32),
        "picks": np.array(lists, np.int32).reshape(rows, picks).clip(-1, capacity - 1),
        "pages": np.zeros((rows, -(-capacity // PER_PAGE)), np.int32),
    }


def expected(given: Mapping[str, NDArray[Any]], factor: float = 1.0) -> NDArray[Any]:
    """Compute y without bias."""
    y = np.zeros((len(given["picks"]), given["store"].shape[2]), np.float32)
    for row, picks in enumerate(given["picks"]):
        kept = picks[(picks >= 0) & (picks < given["lengths"][row])]
        y[row] = factor * given["store"][row, kept].sum(0)
    return y
