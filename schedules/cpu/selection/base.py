"""What the templates of block selection share: plain vectors, tasks spread over threads."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu.plain import PlainTemplate
from wattune.schedules.program import Tensors
from wattune.schedules.target import Target

# Rows must be a multiple of this: two bfloat16 values in each of four lanes.
ROW = 8


class VectorTemplate(PlainTemplate):
    """A template in plain vector arithmetic, for any target that LLVM knows.

    A subclass adds ``space``, ``body`` and ``counts``.
    """

    def applies(self, problem: Any, target: Target) -> bool:
        """Say whether rows are whole vectors, and half precision needs no library."""
        widths = (problem.head_dim, getattr(problem, "gate_dim", ROW))
        halves = problem.dtype != "float16" or target.arch != "x86_64" or target.has("f16c")
        return halves and all(width % ROW == 0 for width in widths)


def length_of(tensors: Tensors, request: Any) -> Any:
    """Return a request's tokens."""
    return T.bind(tensors["seq_lens"][request])
