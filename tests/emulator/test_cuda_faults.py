"""What a GPU would fault on, or hide, fails a launch of the emulated one with a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from tests.emulator.cuda import driver
from tests.emulator.cuda.run import LaunchError, launch

ILLEGAL, MISALIGNED, FAILED = 700, 716, 719


STORE = 'asm volatile("st.shared.f32 [%0], %1;" :: "r"(AT), "f"(1.f));'
STORE4 = 'asm volatile("st.shared.v4.f32 [%0], {%1,%1,%1,%1};" :: "r"(at + 4), "f"(1.f));'


def _fails(
    status: int, words: str, body: str, shared: int = 0, threads: int = 64, size: int = 64
) -> None:
    source = f'extern "C" __global__ void kernel(float* x) {{ int i = threadIdx.x; {body} }}'
    with pytest.raises(LaunchError, match=words) as caught:
        launch(source, "kernel", [np.zeros(size, np.float32)], threads=threads, shared=shared)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "status, words, body",
    [
        # Behind a tensor that may be written come bytes of guard, then the page.
        (ILLEGAL, "illegal access: .*not a tensor's memory", "x[i] = x[i + 300];"),
        (ILLEGAL, "something wrote behind an array", "x[i + 1] = 0;"),
        (ILLEGAL, "a null pointer or nearly one", "if (i == 7) *(float*)16 = 1;"),
        (MISALIGNED, "not a multiple of 16", "x[i] = ((float4*)(x + 1))[0].x;"),
        (MISALIGNED, "not a multiple of 8", "if (i == 3) *(float2*)(x + i) = make_float2(1, 2);"),
        (FAILED, "divided by zero", "x[i] = 5 / (int)x[i];"),
        (FAILED, "overflow in mul", "x[i] = (i + 100000) * (i + 50000);"),
        (FAILED, "a shift by 32 bits", "x[i] = 1u << (i == 9 ? 32 : 1);"),
        (FAILED, "outside of its array", "float a[4] = {}; a[i] = 1; x[i] = a[i / 2];"),
        (FAILED, "the stack of a thread is full", "volatile char a[1 << 20]; a[0] = 1;"),
        (FAILED, r"thread 0 of block 0,0,0", 'asm volatile("trap;");'),
    ],
)
def test_bad_accesses(status: int, words: str, body: str) -> None:
    if words.startswith("something wrote"):
        status = 0  # found by the test's own memory, not by the driver
    _fails(status, words, body)


@pytest.mark.parametrize(
    "words, body",
    [
        ("in no shared array", STORE.replace("AT", "at + 256")),
        ("is not a multiple of 16", STORE4),
        ("wrote behind dynamic shared memory", "s[i + 1] = 1;"),
        ("wrote behind a shared array", "float* u = t; u[i + 1] = 1;"),
        ("shared memory, .* bytes from the end", "x[i] = s[i + 256];"),
        ("a pointer to shared memory points elsewhere", "x[i] = __cvta_generic_to_shared(x);"),
    ],
)  # fmt: skip
def test_bad_accesses_of_shared_memory(words: str, body: str) -> None:
    declared = "extern __shared__ float s[]; __shared__ float t[64]; s[i] = t[i] = 0;"
    at = "unsigned at = __cvta_generic_to_shared(s);"
    status = MISALIGNED if "multiple" in words else ILLEGAL
    _fails(FAILED if "elsewhere" in words else status, words, declared + at + body, shared=256)


def test_a_launch_without_its_shared_memory() -> None:
    _fails(FAILED, "no dynamic shared memory", "extern __shared__ float s[]; s[i] = 1;")


def test_shared_memory_starts_as_nan() -> None:
    out = np.zeros(64, np.float32)
    source = """extern "C" __global__ void kernel(float* x) {
      __shared__ float s[64]; extern __shared__ float d[];
      if (threadIdx.x < 32) s[threadIdx.x] = d[threadIdx.x] = 1;
      __syncthreads();
      x[threadIdx.x] = s[threadIdx.x] + d[threadIdx.x]; }"""
    launch(source, "kernel", [out], threads=64, blocks=3, shared=256)
    np.testing.assert_array_equal(out, [2] * 32 + [np.nan] * 32)


@pytest.mark.parametrize(
    "words, body",
    [
        ("deadlock: thread 0 at barrier 1, thread 32 at barrier 2",
         'if (i < 32) asm volatile("bar.sync 1, 64;"); else asm volatile("bar.sync 2, 64;");'),
        ("polling without end", "while (atomicAdd(x, 0.f) == 0) __nanosleep(20);"),
        ("barrier 1 is for 64 threads and for 32",
         'if (i < 32) asm volatile("bar.sync 1, 64;"); else asm volatile("bar.sync 1, 32;");'),
        ("PTX not emulated: frobnicate.b32 r, 7", 'asm volatile("frobnicate.b32 r, 7;" ::);'),
        ("cp.async of it is under way",
         'asm volatile("cp.async.ca.shared.global [%0], [%1], 4; cp.async.commit_group;"'
         ' :: "r"((unsigned)__cvta_generic_to_shared(&t[i])), "l"(x + i));'),
    ],
)  # fmt: skip
def test_launches_that_do_not_end_well(words: str, body: str) -> None:
    _fails(FAILED, words, "__shared__ float t[64]; t[i] = 0;" + body)


def test_a_launch_that_never_ends() -> None:
    limit = driver.install().emu_time_limit
    limit(1)
    try:
        _fails(FAILED, "the launch computes for 1 s", "while (((volatile float*)x)[0] == 0) {}")
    finally:
        limit(60)


def test_a_barrier_that_lanes_reach_in_two_places() -> None:
    source = """
    __forceinline__ __device__ void tvm_builtin_cuda_cta_sync() { __syncthreads(); }
    extern "C" __global__ void kernel(float* x) {
      if (threadIdx.x % 2) {
        tvm_builtin_cuda_cta_sync();
      } else {
        tvm_builtin_cuda_cta_sync();
      }
    }"""
    with pytest.raises(LaunchError, match="lanes of a warp diverge: they are at barrier 0 in"):
        launch(source, "kernel", [np.zeros(1, np.float32)])


def test_a_failure_leaves_the_device_usable() -> None:
    _fails(ILLEGAL, "null", "*(float*)8 = 1;")
    out = np.zeros(32, np.float32)
    launch('extern "C" __global__ void kernel(float* x) { x[threadIdx.x] = 3; }', "kernel", [out])
    assert (out == 3).all()


@pytest.mark.parametrize("threads", [32, 64, 96, 1024])
def test_a_missing_barrier_shows_in_one_of_two_orders(threads: int) -> None:
    """Each thread reads its neighbour's value; with two blocks both orders run."""
    out = np.zeros((2, threads), np.float32)
    template = """extern "C" __global__ void kernel(float* out) {{
      __shared__ float s[1024];
      int i = threadIdx.x, n = blockDim.x;
      s[i] = i;
      {barrier}
      out[blockIdx.x * n + i] = s[(i + 1) % n] + s[(i + n - 1) % n]; }}"""
    launch(template.format(barrier="__syncthreads();"), "kernel", [out], 2, threads)
    i = np.arange(threads)
    expected = (i + 1) % threads + (i + threads - 1) % threads
    np.testing.assert_array_equal(out, [expected, expected])
    launch(template.format(barrier=""), "kernel", [out], 2, threads)
    assert np.isnan(out).any(axis=1).all()


def test_the_reversed_order_shows_what_one_block_hides() -> None:
    source = """extern "C" __global__ void kernel(float* out) {
      __shared__ float s;
      if (threadIdx.x == 0) s = 5;
      out[threadIdx.x] = s; }"""
    out = np.zeros(64, np.float32)
    launch(source, "kernel", [out], threads=64)
    assert (out == 5).all()
    with driver.reversed_order():
        launch(source, "kernel", [out], threads=64)
    assert np.isnan(out[1:]).all()
