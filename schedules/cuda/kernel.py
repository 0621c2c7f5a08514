"""Kernels of GPU programs: TIRx functions whose body Python emits, like that of CPU programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any

# Bounds that no grid and no buffer reaches. The real ones are run-time sizes; in them TVM would
# find common parts with the body and pass those as parameters of its own.
_GRID = (1 << 30, 65535, 65535)
_ELEMENTS = 1 << 48


@dataclass(frozen=True)
class Block:
    """What a kernel's body works on: where it is in the grid, its tensors and its integers.

    ``x``, ``y``, ``z`` number the block, ``thread`` the thread in it; all are int32, the integers
    are int64.
    """

    x: Expr
    y: Expr
    z: Expr
    thread: Expr
    pointers: Mapping[str, Expr]
    integers: Mapping[str, Expr]

    def view(self, name: str, dtype: str) -> Buffer:
        """Return a tensor as a flat buffer of a dtype, to be indexed by int64."""
        from tvm.script import tirx as T

        return T.decl_buffer((T.int64(_ELEMENTS),), dtype, data=self.pointers[name])

    def has(self, name: str) -> bool:
        """Say whether the kernel has such a tensor."""
        return name in self.pointers


@dataclass(frozen=True)
class Shared:
    """The shared memory of a block: one area, and typed views of its parts."""

    data: Expr
    count: int

    @classmethod
    def of(cls, count: int) -> Shared:
        """Declare ``count`` bytes; the launch gives as many."""
        from tvm.script import tirx as T

        area = T.alloc_buffer((count,), "uint8", scope="shared.dyn", align=128)
        return cls(area.data, count)

    def view(self, start: int, count: int, dtype: str) -> Buffer:
        """Return a flat buffer of ``count`` elements from byte ``start`` on."""
        from tvm.script import tirx as T

        from wattune.ops.dtypes import itemsize

        size = itemsize(dtype)
        return T.decl_buffer(
            (count,), dtype, data=self.data, elem_offset=start // size, scope="shared.dyn"
        )


def gpu_kernel(
    name: str,
    tensors: Mapping[str, str],
    integers: Sequence[str],
    threads: int,
    body: Callable[[Block], None],
    blocks: int = 0,
    grid: str = "",
) -> Any:
    """Return a kernel of ``threads`` a block for `gpu_program`; ``body`` emits its statements.

    ``tensors`` maps names to dtypes (those of `Block.view` may differ), ``integers`` names what
    is passed by value. ``blocks``: how many of a block an SM must have room for, which caps the
    registers of a thread; 0 leaves them to the compiler. ``grid`` names the integer that is the
    size of a grid of one axis, for bodies that multiply the block's number: with a bound instead,
    TVM refuses products in 32 bits that the bound would overflow.
    """
    from tvm.script import tirx as T
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as builder

    with IRBuilder() as ir:
        with builder.prim_func():
            builder.func_name(name)
            pointers = {t: builder.arg(f"{t}_ptr", T.handle(kind)) for t, kind in tensors.items()}
            values = {n: builder.arg(n, T.int64()) for n in integers}
            T.device_entry()
            if grid:
                x, y, z = T.cta_id([T.cast(values[grid], "int32")]), T.int32(0), T.int32(0)
            else:
                x, y, z = T.cta_id(list(_GRID))
            thread = T.thread_id([threads])
            room = (
                T.attr({"tirx.launch_bounds_min_blocks_per_sm": blocks})
                if blocks
                else nullcontext()
            )
            with room:
                body(Block(x, y, z, thread, pointers, values))
        return ir.get()


def passed(tensors: Tensors, names: Sequence[str], **integers: Any) -> dict[str, Any]:
    """Return what `gpu_program`'s launch passes: these tensors and integers."""
    return {**{f"{name}_ptr": tensors[name] for name in names}, **integers}
