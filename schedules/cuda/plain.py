"""What small templates share: kernels, one after the other, that take all of the arguments.

A kernel gets every argument and run-time size by name and a grid of one axis; it uses what it
needs, and the compiler drops the rest. In a kernel every tensor is one row of elements with 64-bit
indices: caches may have more than 2^31.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from wattune.ops import operator
from wattune.ops.operator import Argument
from wattune.schedules.cuda.base import CudaTemplate
from wattune.schedules.cuda.kernel import Block, gpu_kernel, passed
from wattune.schedules.cuda.program import GpuProgram, Launch, gpu_program
from wattune.schedules.program import Tensors
from wattune.schedules.space import Knob, Value
from wattune.schedules.target import Target
from wattune.schedules.template import BlockUse, Counts

Expr = Any
Buffer = Any

# What kernels call their number of thread blocks.
_GRID = "grid_blocks"
_REGISTERS = 64 << 10


@dataclass(frozen=True)
class Place:
    """Where a thread is: its block in the grid, its number in the block."""

    block: Expr
    thread: Expr


@dataclass(frozen=True)
class Kernel:
    """One kernel: ``emit(tensors, place)`` emits its statements.

    ``blocks(sizes)`` returns the thread blocks of a launch from the run-time sizes by name, which
    are expressions or numbers; ``threads`` are those of a block, ``shared`` its static shared
    memory in bytes, at the most. So many blocks as ``resident`` must fit on an SM: the
    assembler, not told, may give up loads in flight, or spill, for more of them. A kernel that
    ``overlaps`` is launched while the one before it still runs, and waits for it (sm_90).
    """

    threads: int
    blocks: Callable[[Mapping[str, Expr]], Expr]
    emit: Callable[[Tensors, Place], None]
    resident: int = 1
    overlaps: bool = False
    shared: int = 0


class PlainTemplate(CudaTemplate):
    """A template of such kernels; a subclass adds ``space``, ``kernels``, ``kernel_counts``."""

    def lower(self, problem: Any, target: Target, values: Mapping[str, Value]) -> GpuProgram:
        """Return the kernels and the host function that launches them."""
        decided = self.sizes(problem, target, values)
        arguments = operator(self.operator).arguments(problem)
        kernels = self.kernels(problem, target, values)
        names = {d for a in arguments for d in a.shape if isinstance(d, str)}
        sizes = sorted(names - set(decided))
        followers = dict(zip(kernels, [*list(kernels.values())[1:], None], strict=True))
        functions = {
            name: gpu_kernel(
                name,
                {a.name: a.dtype for a in arguments},
                (*sizes, _GRID),
                kernel.threads,
                partial(_emit, kernel, followers[name], arguments),
                kernel.resident,
                (_GRID,),
            )
            for name, kernel in kernels.items()
        }

        def body(tensors: Tensors, launch: Launch) -> None:
            for name, kernel in kernels.items():
                blocks = kernel.blocks(tensors.sizes)
                integers = {**tensors.sizes, _GRID: blocks}
                given = passed(tensors, [a.name for a in arguments], **integers)
                launch(name, (blocks,), kernel.threads, given, 0, kernel.overlaps)

        return gpu_program(arguments, decided, functions, body)

    @abstractmethod
    def kernels(
        self, problem: Any, target: Target, values: Mapping[str, Value]
    ) -> dict[str, Kernel]:
        """Return the kernels by name, in the order of their launches."""

    @abstractmethod
    def kernel_counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernels do; `counts` adds the use of blocks."""

    def counts(self, problem: Any, target: Target, values: Mapping[str, Value]) -> Counts:
        """Count what the kernels do, and what a block of the largest one takes."""
        found = self.kernel_counts(problem, target, values)
        kernels = self.kernels(problem, target, values).values()
        uses = [_use(kernel, problem.extents, int(found.registers)) for kernel in kernels]
        return replace(found, block=max(uses, key=lambda use: use.blocks * use.threads))


def _use(kernel: Kernel, sizes: Mapping[str, int], registers: int) -> BlockUse:
    """Return what blocks take; the assembler keeps to the registers of resident ones."""
    most = _REGISTERS // (kernel.threads * kernel.resident)
    blocks = float(kernel.blocks(sizes))
    return BlockUse(blocks, kernel.threads, min(registers, most), kernel.shared)


def _emit(
    kernel: Kernel, follower: Kernel | None, arguments: tuple[Argument, ...], block: Block
) -> None:
    from wattune.schedules.cuda import ptx

    if follower is not None and follower.overlaps:
        ptx.let_next_start()
    if kernel.overlaps:
        ptx.wait_for_previous()
    buffers = {a.name: block.view(a.name, a.dtype) for a in arguments}
    kernel.emit(Tensors(buffers, block.integers), Place(block.x, block.thread))


def overlap_knob(target: Target) -> Knob:
    """Return the knob of whether a second kernel overlaps the first, where the GPU can do so.

    By default it does not: no measurement says yet that it pays.
    """
    can = target.arch.startswith("sm_9")
    return Knob("overlap", (False, True) if can else (False,), False)


def view(buffer: Buffer, dtype: str) -> Buffer:
    """View a tensor's memory as a row of another dtype."""
    from tvm.script import tirx as T

    return T.decl_buffer(buffer.shape, dtype, data=buffer.data)


def ceildiv(value: Expr, divisor: Expr) -> Expr:
    """Return the quotient of integers >= 0, rounded up: a number of numbers."""
    if isinstance(value, int) and isinstance(divisor, int):
        return -(-value // divisor)
    from tvm.script import tirx as T

    return T.truncdiv(value + divisor - 1, divisor)


def for_each(thread: Expr, threads: int, count: Expr, emit: Callable[[Expr], None]) -> None:
    """Emit ``emit(i)`` for i below ``count`` (>= 0), dealt to the threads of a block."""
    from tvm.script import tirx as T

    if not isinstance(count, int):
        with T.serial(T.truncdiv(count - thread + threads - 1, threads)) as turn:
            emit(T.bind(turn * threads + thread))
        return
    with T.serial(-(-count // threads)) as turn:
        at = T.bind(turn * threads + thread)
        if count % threads:
            with T.If(at < count), T.Then():
                emit(at)
        else:
            emit(at)
