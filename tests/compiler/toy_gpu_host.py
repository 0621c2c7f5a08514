"""The operator of `toy_gpu` on CPUs: one library for each kind of device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.compiler.toy import ToyTemplate
from tests.compiler.toy_gpu import RAGGED, Ragged

from wattune.schedules.program import CACHE_LINE, Tensors, tensor_program
from wattune.schedules.space import Value
from wattune.schedules.target import Target
from wattune.schedules.template import Template


class RaggedHost(ToyTemplate):
    name = "ragged_host"
    operator = "ragged"

    def sizes(self, problem: Any, target: Target, values: Mapping[str, Value]) -> dict[str, int]:
        return {"workspace_bytes": CACHE_LINE}

    def lower(self, problem: Ragged, target: Target, values: Mapping[str, Value]) -> Any:
        from tvm.script import tirx as T

        def body(tensors: Tensors) -> None:
            x, y, lengths, served = (tensors[n] for n in ("x", "y", "lengths", "served"))
            sizes = {name: T.cast(size, "int32") for name, size in tensors.sizes.items()}
            with T.serial(sizes["rows"]) as row:
                for i, end in enumerate(problem.sizes.values()):
                    T.buffer_store(served, T.int32(end), [row, i])
                with T.serial(sizes["capacity"]) as column:
                    scaled = T.float32(problem.factor) * T.cast(x[row, column], "float32")
                    kept = T.Select(column < lengths[row], scaled, T.float32(0))
                    T.buffer_store(y, T.cast(kept, problem.dtype), [row, column])

        return tensor_program(RAGGED.arguments(problem), self.sizes(problem, target, values), body)


TEMPLATES: tuple[Template, ...] = (RaggedHost(),)
