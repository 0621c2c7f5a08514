"""The program of an attention operator: its kernels, and the host function that launches them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.script import tirx as T

from wattune.ops import operator
from wattune.schedules.cuda.attention.overwrite import overwrite
from wattune.schedules.cuda.attention.plan import Shares
from wattune.schedules.cuda.attention.splits import combine, reset
from wattune.schedules.cuda.base import WARP
from wattune.schedules.cuda.kernel import Block, gpu_kernel, passed
from wattune.schedules.cuda.program import GpuProgram, Launch, gpu_program
from wattune.schedules.program import Tensors

# Threads of the small kernels.
SMALL = 128
# Run-time sizes that kernels may ask for, by the names they have there.
_SIZES = {
    "batch": "batch",
    "capacity": "capacity",
    "max_pages": "max_pages",
    "packed_blocks": "packed_blocks",
    "max_blocks": "list_length",
    "max_tokens": "list_length",
}


def program(plan: Shares, attend: Callable[[Block], None], sizes: Mapping[str, int]) -> GpuProgram:
    """Return the program of a plan; ``attend`` emits the main kernel."""
    problem: Any = plan.problem
    arguments = operator(problem.operator).arguments(problem)
    dtypes = {a.name: a.dtype.replace("bfloat16", "uint16") for a in arguments}
    integers = [*dict.fromkeys(_SIZES.values()), "counters"]

    def kernel(name: str, threads: int, blocks: Sequence[int], body: Any, room: int = 0) -> Any:
        return gpu_kernel(name, dtypes, integers, threads, body, room, blocks)

    grids = _grids(plan)
    kernels = {"attend": kernel("attend", plan.threads, grids["attend"], attend, plan.blocks)}
    if "k" in dtypes:
        kernels["overwrite"] = kernel(
            "overwrite", SMALL, grids["overwrite"], lambda b: overwrite(plan, b)
        )
    if plan.splits > 1:
        name, emit = ("reset", reset) if plan.combine == "last" else ("combine", combine)
        kernels[name] = kernel(name, SMALL, grids[name], lambda b: emit(plan, b))

    def body(tensors: Tensors, launch: Launch) -> None:
        _launch(plan, tensors, launch, kernels)

    return gpu_program(arguments, sizes, kernels, body)


def _grids(plan: Shares) -> dict[str, tuple[int, int, int]]:
    """Return each kernel's blocks; 0 is known at run time."""
    warps = SMALL // WARP
    rows = plan.problem.query_tokens * plan.problem.kv_heads
    items = plan.problem.kv_heads * plan.items
    return {
        "attend": plan.main_grid,
        "overwrite": (-(-rows // warps), 0, 1),
        "reset": (0, 1, 1),
        "combine": (-(-plan.item_rows // warps), items, 0),
    }


def _launch(plan: Shares, tensors: Tensors, launch: Launch, kernels: Mapping[str, Any]) -> None:
    """Emit the launches; counters are reset first, so that a call finds any workspace."""
    batch = T.cast(tensors.sizes["batch"], "int64")
    counters = batch * (plan.problem.kv_heads * plan.items * plan.row_tiles)
    sizes = {n: tensors.sizes[size] for size, n in _SIZES.items() if size in tensors.sizes}
    given = passed(tensors, tuple(tensors.buffers), **sizes, counters=counters)
    grids = _grids(plan)
    runtime = {"reset": (counters + (SMALL - 1)) // SMALL}
    most = batch * (plan.problem.kv_heads * plan.items * plan.row_tiles * plan.splits)

    def start(name: str, dependent: bool, threads: int = SMALL, shared: int = 0) -> None:
        if name in kernels:
            grid = [size or runtime.get(name, batch) for size in grids[name]]
            if name == "attend" and all(grids[name]):
                grid[0] = T.min(most, T.int64(grid[0]))
            launch(name, grid, threads, given, shared, dependent)

    start("overwrite", False)
    start("reset", False)
    start("attend", plan.dependent and "reset" in kernels, plan.threads, plan.shared.bytes)
    start("combine", plan.dependent)
