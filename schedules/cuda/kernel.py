"""Kernels of GPU programs: TIRx functions whose body Python emits, like that of CPU programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from wattune.schedules.program import Tensors

Expr = Any
Buffer = Any

# Bounds that no grid and no buffer reaches, for those that are known at run time only. TVM would
# find common parts of the real ones and of the body, and pass those as parameters of its own.
_GRID = (1 << 30, 65535, 65535)
_ELEMENTS = 1 << 48


@dataclass(frozen=True)
class Block:
    """What a kernel's body works on: where it is in the grid, its tensors and its integers.

    ``x``, ``y``, ``z`` number the block, ``thread`` the thread in it, of ``threads``; all are
    int32, the integers are int64.
    """

    x: Expr
    y: Expr
    z: Expr
    thread: Expr
    threads: int
    pointers: Mapping[str, Expr]
    integers: Mapping[str, Expr]

    def view(self, name: str, dtype: str) -> Buffer:
        """Return a tensor as a flat buffer of a dtype, to be indexed by int64."""
        from tvm.script import tirx as T

        return T.decl_buffer((T.int64(_ELEMENTS),), dtype, data=self.pointers[name])


@dataclass(frozen=True)
class Shared:
    """The shared memory of a block: one area, and typed views of its parts."""

    data: Expr
    count: int

    @classmethod
    def of(cls, count: int, alignment: int = 128) -> Shared:
        """Declare ``count`` bytes; the launch gives as many."""
        from tvm.script import tirx as T

        area = T.alloc_buffer((count,), "uint8", scope="shared.dyn", align=alignment)
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
    grid: Sequence[int | str] = (0, 0, 0),
) -> Any:
    """Return a kernel of ``threads`` a block for `gpu_program`; ``body`` emits its statements.

    ``tensors`` maps names to dtypes (those of `Block.view` may differ), ``integers`` names what
    is passed by value. ``blocks``: how many of a block an SM must hold at once, which caps the
    registers of a thread; 0 leaves them to the compiler. ``grid``: the blocks in each direction,
    as far as known: a number, the name of an integer that the body does not use otherwise, or 0
    for any, up to 2^30 in x and 65535 in y and z. With 0, TVM refuses products of the block's
    number in 32 bits that so large a grid would overflow.
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
            x, y, z = T.cta_id([_extent(size, values) for size in _whole(grid)])
            thread = T.thread_id([threads])
            held = {"tirx.launch_bounds_min_blocks_per_sm": blocks}
            with T.attr(held) if blocks else nullcontext():
                body(Block(x, y, z, thread, threads, pointers, values))
        return ir.get()


def _whole(grid: Sequence[int | str]) -> list[int | str]:
    """Return the extents of all three directions, those that are not known at their most."""
    sizes = [*grid, 1, 1][:3]
    return [size or most for size, most in zip(sizes, _GRID, strict=True)]


def _extent(size: int | str, integers: Mapping[str, Expr]) -> Expr:
    from tvm.script import tirx as T

    return T.cast(integers[size], "int32") if isinstance(size, str) else size


def passed(tensors: Tensors, names: Sequence[str], **integers: Any) -> dict[str, Any]:
    """Return what `gpu_program`'s launch passes: these tensors and integers."""
    return {**{f"{name}_ptr": tensors[name] for name in names}, **integers}
