"""Instructions of warps on the emulated GPU, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from tests.emulator.cuda.run import LaunchError, launch
from tests.emulator.lanes import lanes, words

FULL = "0xffffffff"
LANE = np.arange(32)


@pytest.mark.parametrize(
    "form, by, width, source",
    [
        ("idx", 5, 32, np.full(32, 5)),
        ("idx", 5, 8, LANE // 8 * 8 + 5),
        ("bfly", 3, 32, LANE ^ 3),
        ("bfly", 16, 32, LANE ^ 16),
        ("down", 4, 32, np.where(LANE + 4 < 32, LANE + 4, LANE)),
        ("down", 4, 16, np.where(LANE % 16 + 4 < 16, LANE + 4, LANE)),
        ("up", 4, 32, np.where(LANE >= 4, LANE - 4, LANE)),
        ("up", 4, 8, np.where(LANE % 8 >= 4, LANE - 4, LANE)),
    ],
)
def test_shuffles(form: str, by: int, width: int, source: np.ndarray) -> None:
    value = words(1)
    clamp = (32 - width) << 8 | (0 if form == "up" else 31)
    (got,) = lanes(f"shfl.sync.{form}.b32 %0, %1, {by}, {clamp}, {FULL};", ("uint32",), value)
    np.testing.assert_array_equal(got, value[source])
    # The same from CUDA C++.
    name = {"idx": "", "bfly": "_xor", "down": "_down", "up": "_up"}[form]
    out = np.zeros(32, dtype=np.uint32)
    source_text = f"""extern "C" __global__ void kernel(unsigned* out, unsigned* x) {{
      out[threadIdx.x] = __shfl{name}_sync({FULL}, x[threadIdx.x], {by}, {width}); }}"""
    launch(source_text, "kernel", [out, value])
    np.testing.assert_array_equal(out, got)


def test_votes() -> None:
    odd = (words(2) & 1).astype(np.uint32)
    text = "{.reg .pred p; setp.ne.u32 p, %1, 0; vote.sync.ballot.b32 %0, p, 0xffffffff;}"
    (got,) = lanes(text, ("uint32",), odd)
    np.testing.assert_array_equal(got, np.full(32, (odd << LANE).sum(), dtype=np.uint32))


@pytest.mark.parametrize(
    "form, expected",
    [
        ("add.u32", lambda v: v.sum(dtype=np.uint32)),
        ("min.u32", np.min),
        ("max.s32", lambda v: v.view(np.int32).max().view(np.uint32)),
        ("min.s32", lambda v: v.view(np.int32).min().view(np.uint32)),
        ("and.b32", np.bitwise_and.reduce),
        ("or.b32", np.bitwise_or.reduce),
        ("xor.b32", np.bitwise_xor.reduce),
    ],
)
def test_reductions(form: str, expected: object) -> None:
    value = words(3)
    (got,) = lanes(f"redux.sync.{form} %0, %1, {FULL};", ("uint32",), value)
    assert callable(expected)
    np.testing.assert_array_equal(got, np.full(32, expected(value)))


def test_one_lane_is_elected() -> None:
    text = (
        "{.reg .pred p; .reg .b32 l; mov.u32 %0, 0; elect.sync l|p, 0xffffffff; @p mov.u32 %0, 1;}"
    )
    (got,) = lanes(text, ("uint32",))
    np.testing.assert_array_equal(got, LANE == 0)


def test_lanes_outside_of_the_mask_give_nothing() -> None:
    out = np.zeros(32, dtype=np.float32)
    source = """extern "C" __global__ void kernel(float* out) {
      if (threadIdx.x < 8) out[threadIdx.x] = __shfl_xor_sync(0xff, 1.0f, threadIdx.x < 4 ? 1 : 8);
    }"""
    launch(source, "kernel", [out])
    np.testing.assert_array_equal(out[:8], [1, 1, 1, 1, *[np.nan] * 4])


def test_masks_of_parts_of_a_warp() -> None:
    out = np.zeros(32, dtype=np.int32)
    source = """extern "C" __global__ void kernel(int* out) {
      int x = threadIdx.x;
      if (x < 16) for (int m = 8; m; m >>= 1) x += __shfl_xor_sync(0xffff, x, m);
      else for (int m = 4; m; m >>= 1) x += __shfl_xor_sync(0xffff0000u, x, m);
      out[threadIdx.x] = x;
    }"""
    launch(source, "kernel", [out])
    halves = [sum(range(16))] * 16 + [sum(range(16, 24))] * 8 + [sum(range(24, 32))] * 8
    np.testing.assert_array_equal(out, halves)


def test_a_mask_without_the_lane_itself_fails() -> None:
    source = 'extern "C" __global__ void kernel() { __shfl_xor_sync(0xffff, 1, 1); }'
    with pytest.raises(LaunchError, match="the mask 0000ffff is without lane 16"):
        launch(source, "kernel", [])


def test_lanes_in_different_instructions_fail() -> None:
    source = """extern "C" __global__ void kernel() {
      if (threadIdx.x < 16) __shfl_xor_sync(0xffffffff, 1, 1); else __syncwarp();
    }"""
    with pytest.raises(LaunchError, match="lanes of a warp diverge"):
        launch(source, "kernel", [])
