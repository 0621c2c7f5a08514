"""Typed windows on a kernel's tensors: flat views of caches, named areas of the workspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cpu import vector
from wattune.schedules.cpu.attention.plan import Scratch
from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any

_BYTES = {"float32": 4, "int32": 4, "int64": 8}
# One view for each area: LLVM takes accesses of different types for different memory.
_KINDS = {
    "query": "float32",
    "sums": "float32",
    "state": "float32",
    "totals": "float32",
    "scores": "float32",
    "factors": "float32",
    "limits": "int32",
    "weights": "int32",
    "positions": "int32",
    "counts": "int32",
    "engine": "int32",
    "table": "int64",
}


@dataclass(frozen=True)
class Region:
    """A part of a flat buffer, addressed in elements from ``base``."""

    buffer: Buffer
    base: Expr
    dtype: str

    def load(self, at: Expr, lanes: int = 1) -> Expr:
        """Load a scalar or a vector."""
        if lanes == 1:
            return self.buffer[self.base + at]
        return self.buffer.vload([self.base + at], f"{self.dtype}x{lanes}")

    def store(self, at: Expr, value: Expr) -> None:
        """Store a scalar or a vector."""
        vector.store(self.buffer, [self.base + at], value)

    def part(self, at: Expr) -> Region:
        """Return the region from an element on."""
        return Region(self.buffer, T.bind(self.base + at), self.dtype)


def flat(buffer: Buffer) -> Region:
    """Return a tensor as one row; bfloat16 as its bits, which TVM does not rewrite."""
    dtype = str(buffer.dtype)
    count = T.int64(1)
    for extent in buffer.shape:
        count = count * extent
    kind = "uint16" if dtype == "bfloat16" else dtype
    return Region(T.decl_buffer((count,), kind, data=buffer.data), T.int64(0), kind)


class Memory:
    """The workspace of a kernel, as areas of typed elements."""

    def __init__(self, tensors: Tensors, scratch: Scratch) -> None:
        """Declare a view of each type."""
        self.scratch = scratch
        data = tensors["workspace"].data
        self.views = {
            kind: T.decl_buffer((scratch.bytes // size,), kind, data=data)
            for kind, size in _BYTES.items()
        }

    def shared(self, name: str) -> Region:
        """Return an area that all threads share."""
        kind = _KINDS[name]
        start = T.int64(self.scratch.shared.starts[name] // _BYTES[kind])
        return Region(self.views[kind], start, kind)

    def own(self, name: str, thread: Expr) -> Region:
        """Return a thread's own area."""
        kind = _KINDS[name]
        size = _BYTES[kind]
        start = (self.scratch.shared.bytes + self.scratch.own.starts[name]) // size
        stride = self.scratch.stride // size
        return Region(self.views[kind], T.bind(T.cast(thread, "int64") * stride + start), kind)
