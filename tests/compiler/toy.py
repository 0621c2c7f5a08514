"""Made-up operators: their base, and one with a state, two outputs and two run-time sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from wattune.ops import Argument, Operator, Problem, Tolerance, Work
from wattune.ops.operator import Array
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.space import Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import Counts, Layout, Template

REFUSING = 13

P = TypeVar("P", bound=Problem)


class ToyOperator(Operator[P]):
    """What a library does not ask of an operator."""

    def make_inputs(self, problem: P, rng: np.random.Generator) -> dict[str, Array]:
        raise NotImplementedError

    def reference(self, problem: P, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise NotImplementedError

    def work(self, problem: P) -> Work:
        raise NotImplementedError

    def tolerance(self, problem: P, output: str) -> Tolerance:
        raise NotImplementedError

    def parse_shape(self, text: str, **fields: Any) -> P:
        raise NotImplementedError


class ToyTemplate(Template):
    """A template without knobs, layouts or workspace."""

    def applies(self, problem: Any, target: Target) -> bool:
        return True

    def space(self, problem: Any, target: Target) -> Space:
        return Space(self.name, ())

    def layout(self, problem: Any, values: Mapping[str, Value]) -> Layout:
        return Layout("none")

    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        return {}

    def pack(self, problem: Any, values: Mapping[str, Value]) -> dict[str, Any]:
        return {}

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        return Counts({}, {})


@dataclass(frozen=True)
class Blend(Problem):
    """y = x + sum(table); ``bucket`` is the kernel that served each row; ``calls`` counts."""

    operator: ClassVar[str] = "blend"
    runtime: ClassVar[tuple[str, ...]] = ("rows", "context")

    rows: int
    context: int
    columns: int = 3
    transposed: bool = False


class BlendOperator(ToyOperator[Blend]):
    name = "blend"
    summary = "y = x + sum(table)"
    problem = Blend

    @property
    def signature(self) -> tuple[str, ...]:
        return ("x", "table", "calls", "y", "bucket")

    def arguments(self, problem: Blend) -> tuple[Argument, ...]:
        shape: tuple[int | str, ...] = ("rows", problem.columns)
        return (
            Argument("x", shape[::-1] if problem.transposed else shape, "float32", "input"),
            Argument("table", ("context",), "float32", "input"),
            Argument("calls", (1,), "int32", "state", updated=True),
            Argument("y", shape, "float32", "output"),
            Argument("bucket", ("rows",), "int32", "output"),
        )


class BlendTemplate(ToyTemplate):
    name = "blend_plain"
    operator = "blend"

    def lower(self, problem: Blend, target: Target, values: Mapping[str, Value]) -> Any:
        from tvm.script import tirx as T

        def body(tensors: Tensors) -> None:
            x, table, y = tensors["x"], tensors["table"], tensors["y"]
            T.buffer_store(tensors["calls"], tensors["calls"][0] + 1, [0])
            with T.serial(T.cast(tensors.sizes["rows"], "int32")) as row:
                T.buffer_store(tensors["bucket"], T.int32(problem.rows), [row])
                with T.serial(problem.columns) as column:
                    T.buffer_store(y, x[row, column], [row, column])
                    with T.serial(T.cast(tensors.sizes["context"], "int32")) as i:
                        T.buffer_store(y, y[row, column] + table[i], [row, column])

        # A kernel that refuses what the dispatch lets through, which no real one does.
        columns = problem.columns + 1 if problem.columns == REFUSING else problem.columns
        return tensor_program(BLEND.arguments(replace(problem, columns=columns)), {}, body)


BLEND = BlendOperator()
TEMPLATES: tuple[Template, ...] = (BlendTemplate(),)
