"""Every instruction of the CUDA vocabulary assembles for the targets that have it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from wattune.compiler.cuda.device_code import compile_image
from wattune.compiler.cuda.source import DeviceSource, device_source
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.schedules.cuda.kernel import Block, Shared, gpu_kernel
from wattune.schedules.cuda.program import GpuProgram
from wattune.schedules.target import Target

# What sm_80 has not: the copy engine and its barriers, products of warpgroups.
HOPPER = (
    *(f"arrivals_{what}" for what in ("begin", "begun", "end", "wait")),
    "arrive",
    "arrive_alone",
    "copy_row",
    "group_begins",
    "group_ends",
    "multiply_add_group",
    "slab_descriptor",
    "stores_end",
)


def source(body: Callable[[Block], None], arch: str) -> DeviceSource:
    """Return the source of one kernel that takes words and a number of them."""
    prepare_tvm()
    kernel = gpu_kernel("every", {"words": "uint32"}, ("count",), 64, body, blocks=2)
    program = GpuProgram(None, {"every": kernel}, {"every": ("words_ptr", "count")})
    return device_source(program, Target.parse(f"cuda:{arch}"))


def public_functions() -> set[str]:
    """Return the names of the vocabulary; `emit` is what they are made of."""
    from wattune.schedules.cuda import ptx, warpgroup

    return {
        name
        for module in (ptx, warpgroup)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    } - {"emit"}


def every(block: Block, hopper: bool) -> set[str]:
    """Emit every instruction once; returns the names that were used."""
    from tvm.script import tirx as T

    from wattune.schedules.cuda import ptx, warpgroup

    used = set()

    def do(name: str, *operands: Any) -> Any:
        used.add(name)
        return getattr(ptx if hasattr(ptx, name) else warpgroup, name)(*operands)

    words = block.view("words", "uint32")
    reals = block.view("words", "float32")
    integers = block.view("words", "int32")
    at = T.bind(T.cast(block.thread, "int64") * 4 + T.cast(block.x, "int64") * 256)
    shared = Shared.of(4096)
    area = shared.view(1024, 768, "uint32")
    bars = shared.view(0, 2, "uint64")
    place = area.ptr_to([block.thread * 4])
    here = words.ptr_to([at])
    r = do("registers", 8, "uint32")
    f = ptx.registers(8, "float32")
    quarter, half = [r[i] for i in range(4)], [r[4], r[5]]
    do("wait_for_previous")
    if hopper:
        with T.If(block.thread == 0), T.Then():
            do("arrivals_begin", bars.ptr_to([0]), 1)
            do("arrivals_begun")
            do("arrive", bars.ptr_to([0]), T.int32(64))
            do("copy_row", area.ptr_to([0]), words.ptr_to([T.int64(0)]), 64, bars.ptr_to([0]))
        do("arrive_alone", bars.ptr_to([0]))
        do("arrivals_wait", bars.ptr_to([0]), T.int32(0))
        do("stores_end")
        do("arrivals_end", bars.ptr_to([1]))
        slab = do("slab_descriptor", area.ptr_to([0]), 1024)
        do("group_begins")
        do("multiply_add_group", [f[i] for i in range(4)], quarter, slab, "float16", True, False)
        do("group_ends")
    do("copy", place, here)
    do("copy_or_zero", place, here, T.cast(block.integers["count"], "int32"))
    do("copies_end")
    do("copies_wait", 0)
    do("block_barrier")
    do("warp_barrier")
    do("team_barrier", 1 + block.thread // 32, 32)
    do("load_once", quarter, here)
    do("load_shared_by_all", [f[i] for i in range(4)], reals.ptr_to([at]))
    do("load_word_shared_by_all", f[4], reals.ptr_to([at]))
    do("load_matrices", quarter, place)
    do("load_transposed", quarter, place)
    do("transpose", r[4], r[0])
    for dtype in ("float16", "bfloat16"):
        do("multiply_add", [f[i] for i in range(4)], quarter, half, dtype)
        do("pack", r[5], f[0], f[1], dtype)
        do("unpack", [f[5], f[6]], r[5], dtype)
        do("multiply_add_pairs", r[6], r[5], r[4], r[3], dtype)
        do("lesser", r[6], r[6], r[4], dtype)
        do("greater", r[6], r[6], r[3], dtype)
    do("lesser", f[3], f[3], f[0], "float32")
    do("load_wide", r, 0, area, block.thread * 4, 4)
    do("multiply_pairs", r[6], r[5], r[4], "float16")
    do("divide", f[6], f[7], f[5])
    do("subtract_pairs", r[6], r[5], r[4], "float16")
    do("permute_bytes", r[6], r[5], r[4], T.uint32(0x5140))
    do("logic", r[7], r[6], r[5], r[4], 0xEA)
    do("put_in", f[7], do("exp2", f[0]) + do("log2", do("exp2_by_products", f[1])))
    do("put_in", f[6], do("from_lane", f[7], T.int32(3)) + do("across", f[7], 4))
    lane = do("first_lane", do("ballot", f[6] > T.float32(0)))
    lane = do("hold", lane + do("ones", do("lanes_below", lane)) + do("from_below", lane, 1))
    before = do("add_to", integers.ptr_to([at]), lane)
    other = do("swap_if", integers.ptr_to([at]), before, lane)
    do("lower", integers.ptr_to([at]), other, "global")
    do("lower", shared.view(1024, 768, "int32").ptr_to([block.thread]), other, "shared")
    do("fence")
    do("put", integers, at, before)
    do("store_wide", here, quarter)
    do("store_wide_real", reals.ptr_to([at]), [f[i] for i in range(4)])
    do("let_next_start")
    return used


@pytest.mark.nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a"])
def test_every_instruction_assembles(arch: str) -> None:
    """The assembler takes each; sm_80 all but those that came later."""
    used: set[str] = set()
    made = source(lambda block: used.update(every(block, arch == "sm_90a")), arch)
    missing = public_functions() - used
    assert missing == (set() if arch == "sm_90a" else set(HOPPER))
    usage = compile_image(made.text, [arch]).usage[("every", arch)]
    assert usage.spill_stores == usage.stack == 0
    assert "__launch_bounds__(64, 2)" in made.text


def test_flat_views_are_indexed_by_64_bits() -> None:
    """An element beyond 2^31 is one; the arithmetic of its index is that of int64."""
    from tvm.script import tirx as T

    def body(block: Block) -> None:
        from wattune.schedules.cuda import ptx

        row = T.cast(block.x, "int64") * block.integers["count"] + T.cast(block.thread, "int64")
        ptx.put(block.view("words", "uint16"), row * 128, T.uint16(1))

    text = source(body, "sm_80").text
    body_text = text[text.rindex("every_kernel") :]
    assert "(int64_t)128" in body_text
    assert "((int64_t)((int)blockIdx.x)) * count" in body_text
