"""Programs for GPUs: kernels, and a host function that launches them.

The host function has the operator's arguments, like a kernel for CPUs; their data pointers are of
the device, so that it may only hand them on. It is compiled into the library as CPU code and calls
the launcher (`compiler/library/gpu.c`), which knows nothing of TVM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattune.errors import ScheduleError
from wattune.ops.operator import Argument
from wattune.schedules.program import Tensors, tensor_program

# Launch attributes, bits of `wt_gpu_launch`'s flags.
_PROGRAMMATIC = 1

Launch = Callable[..., None]


@dataclass(frozen=True)
class BlockSize:
    """Threads of a block, and its dynamic shared memory in bytes."""

    threads: int
    shared: int


@dataclass(frozen=True)
class GpuProgram:
    """A host function and the kernels it launches, by name.

    ``passed`` names, for each kernel, the arguments in the order in which the host gives them;
    ``registers`` caps the registers a thread may use, 0 for the compiler's choice. ``blocks`` says
    what a block of each kernel takes at the most.
    """

    host: Any
    kernels: Mapping[str, Any]
    passed: Mapping[str, tuple[str, ...]]
    registers: int = 0
    blocks: Mapping[str, BlockSize] = field(default_factory=dict)


def gpu_program(
    arguments: Sequence[Argument],
    sizes: Mapping[str, int],
    kernels: Mapping[str, Any],
    body: Callable[[Tensors, Launch], None],
    registers: int = 0,
) -> GpuProgram:
    """Return a program; ``body(tensors, launch)`` emits the host's statements.

    ``kernels`` are TIRx PrimFuncs with ``T.device_entry()``, by the names that `launch` takes;
    their parameters are handles called ``<name>_ptr`` and scalars.
    ``launch(kernel, grid, block, pass_, shared=0, programmatic=False)`` emits a launch of ``block``
    threads: ``grid`` is up to three sizes (of `tensors.sizes` or integers), ``pass_`` maps
    parameter names of the kernel to buffers, integers or expressions, ``shared`` is dynamic shared
    memory in bytes. What a kernel does not use may be passed all the same. Each kernel is passed
    the same names wherever it is launched. Launches follow each other on one stream; a kernel
    launched with ``programmatic`` may start before the one before it has ended and must wait for it
    (``griddepcontrol.wait``) before it reads what that one wrote.
    """
    names = tuple(kernels)
    passed: dict[str, tuple[str, ...]] = {}
    blocks: dict[str, BlockSize] = {}

    def launch(
        kernel: str,
        grid: Sequence[Any],
        block: int,
        pass_: Mapping[str, Any],
        shared: int = 0,
        programmatic: bool = False,
    ) -> None:
        if kernel not in kernels:
            raise ScheduleError(f"the program has no kernel {kernel!r}")
        if passed.setdefault(kernel, tuple(pass_)) != tuple(pass_):
            raise ScheduleError(f"{kernel} is launched with other arguments than before")
        before = blocks.get(kernel, BlockSize(0, 0))
        blocks[kernel] = BlockSize(max(block, before.threads), max(shared, before.shared))
        _emit(names.index(kernel), grid, block, pass_, shared, programmatic * _PROGRAMMATIC)

    host = tensor_program(arguments, sizes, lambda tensors: body(tensors, launch))
    if unused := sorted(set(kernels) - set(passed)):
        raise ScheduleError(f"kernel {unused[0]!r} is never launched")
    # Launches name kernels by their number, so all is in the order of ``kernels``.
    return GpuProgram(host, dict(kernels), {n: passed[n] for n in names}, registers, blocks)


def _emit(
    index: int, grid: Sequence[Any], block: int, passed: Mapping[str, Any], shared: int, flags: int
) -> None:
    """Emit the calls of the launcher: one for each argument, then the launch."""
    from tvm.script import tirx as T

    def call(name: str, *arguments: Any) -> None:
        T.evaluate(T.call_extern("int32", name, *arguments))

    for value in passed.values():
        if hasattr(value, "data"):
            call("wt_gpu_pointer", value.data)
        else:
            call("wt_gpu_integer", _long(value))
    sizes = (_long(v) for v in (*grid, 1, 1)[:3])
    call("wt_gpu_launch", T.int32(index), *sizes, T.int32(block), T.int32(shared), T.int32(flags))


def _long(value: Any) -> Any:
    from tvm.script import tirx as T

    return T.int64(value) if isinstance(value, int) else T.cast(value, "int64")
