"""Make a tensor program from an operator's arguments and a function that emits its body."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattune.ops.dtypes import itemsize
from wattune.ops.operator import Argument

# What Python-allocated and caller-made tensors can promise, in bytes. Packed data and workspaces
# come from our own allocators; inputs and outputs are only sure to be aligned to an element.
CACHE_LINE = 64
# What a thread of a GPU reads at once.
WIDE_ACCESS = 16


@dataclass(frozen=True)
class Tensors:
    """What a program's body works on: buffers by argument name and run-time sizes by name."""

    buffers: Mapping[str, Any]
    sizes: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        """Return the buffer of an argument."""
        return self.buffers[name]

    def get(self, name: str) -> Any | None:
        """Return the buffer of an argument, None where the problem has none."""
        return self.buffers.get(name)


def alignment(argument: Argument, kind: str = "cpu") -> int:
    """Return the bytes to which an argument must be aligned for kernels of a kind of target.

    GPUs read rows 16 bytes at a time, which faults anywhere else.
    """
    if kind == "cuda" and len(argument.shape) > 1:
        return max(WIDE_ACCESS, itemsize(argument.dtype))
    if argument.role in ("packed", "workspace") and argument.dtype == "uint8":
        return CACHE_LINE
    return itemsize(argument.dtype)


def tensor_program(
    arguments: Sequence[Argument], sizes: Mapping[str, int], body: Callable[[Tensors], None]
) -> Any:
    """Return a PrimFunc with one parameter an argument; ``body`` emits TVMScript statements.

    Names in shapes that ``sizes`` does not hold become run-time sizes (int64).
    """
    from tvm.script import tirx as T
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as builder

    with IRBuilder() as ir:
        with builder.prim_func(s_tir=True):
            builder.func_name("kernel")
            builder.func_attr({"tirx.noalias": True})
            handles = [builder.arg(a.name, builder.handle()) for a in arguments]
            names = {d for a in arguments for d in a.shape if isinstance(d, str)}
            unknown = {name: T.int64() for name in sorted(names - set(sizes))}
            for name, var in unknown.items():
                IRBuilder.name(name, var)
            buffers = {
                a.name: builder.match_buffer(
                    handle,
                    tuple({**sizes, **unknown}[d] if isinstance(d, str) else d for d in a.shape),
                    a.dtype,
                    align=alignment(a),
                )
                for a, handle in zip(arguments, handles, strict=True)
            }
            body(Tensors(buffers, unknown))
        return ir.get()
