"""What the templates of block selection share."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.ops.gate_parts import SLOTS
from wattune.schedules.cuda.plain import PlainTemplate
from wattune.schedules.program import WIDE_ACCESS, Tensors
from wattune.schedules.target import Target

Expr = Any

# Static shared memory of a thread block.
STATIC_SHARED = 48 << 10


class RowTemplate(PlainTemplate):
    """A template whose threads read rows 16 bytes at a time; a subclass adds the rest."""

    def applies(self, problem: Any, target: Target) -> bool:
        """Say whether rows are whole accesses."""
        widths = (problem.head_dim, getattr(problem, "gate_dim", 0))
        return all(width * itemsize(problem.dtype) % WIDE_ACCESS == 0 for width in widths)


def slot_count(tensors: Tensors) -> Expr:
    """Return the slots of a request as an int32."""
    return T.bind(T.cast(tensors.sizes[SLOTS], "int32"))


def power_of_two(value: int) -> int:
    """Return the greatest power of two that divides a number."""
    return value & -value
