"""Products of warpgroups on the emulated GPU: operands in registers, and what mistakes do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.emulator.cuda.run import launch
from tests.emulator.mutants import Mutants, assert_caught, usage_of

KEYS, WIDTH, COLUMNS, THREADS = 32, 64, 128, 128


def accumulators(name: str, count: int) -> tuple[str, str]:
    """Return what an instruction calls accumulators, its first operands, and their bindings."""
    called = ", ".join(f"%{i}" for i in range(count))
    return called, ", ".join(f'"+f"({name}[{i}])' for i in range(count))


SCORES, BOUND_SCORES = accumulators("s", KEYS // 2)
SUMS, BOUND_SUMS = accumulators("o", COLUMNS // 2)

# out[64, 128] = (a[64, 64] b[32, 64]^T) v[32, 128]: the first product's result is an operand of the
# second, from registers; b is read along its rows, v across them.
SOURCE = f"""
#include <cuda_fp16.h>
__device__ unsigned at(const void* p) {{ return (unsigned)__cvta_generic_to_shared(p); }}
__device__ int place(int row, int chunk) {{  // slabs of 64 columns, swizzled
  return (chunk / 8 * {KEYS} + row) * 64 + (chunk % 8 ^ row % 8) * 8;
}}
__device__ void copy(half* to, const half* from, int chunks) {{
  for (int i = threadIdx.x; i < {KEYS} * chunks; i += {THREADS}) {{
    int row = i / chunks, chunk = i % chunks;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :: "r"(at(to + place(row, chunk))), "l"(from + i * 8) : "memory");
  }}
}}
__device__ unsigned pair(float low, float high) {{
  unsigned r;
  asm volatile("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}}
extern "C" __global__ void products_kernel(const half* a, const half* b, const half* v, float* out) {{
  extern __shared__ __align__(1024) half shared[];
  half *bs = shared, *vs = shared + {KEYS} * {WIDTH};
  int t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
  copy(bs, b, {WIDTH} / 8);
  copy(vs, v, {COLUMNS} / 8);
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  unsigned rows[4][4], weights[2][4];
  for (int k = 0; k < 4; ++k)
    for (int i = 0; i < 4; ++i)
      rows[k][i] = *(const unsigned*)&a[(row + i % 2 * 8) * {WIDTH} + k * 16 + column + i / 2 * 8];
  float s[{KEYS // 2}] = {{}}, o[{COLUMNS // 2}] = {{}};
  unsigned long long fixed = 1ull << 62 | 64ull << 32;
  unsigned long long between = (unsigned long long)({KEYS} * 128 / 16) << 16;
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");  // scores
  for (int k = 0; k < 4; ++k) {{
    unsigned long long desc = fixed | at(bs) / 16 + k * 2;
    asm volatile("{{ .reg .pred p; setp.ne.b32 p, %21, 0; wgmma.mma_async.sync.aligned.m64n{KEYS}k16.f32.f16.f16 {{{SCORES}}}, {{%16, %17, %18, %19}}, %20, p, 1, 1, 0; }}"
                 : {BOUND_SCORES} : "r"(rows[k][0]), "r"(rows[k][1]), "r"(rows[k][2]), "r"(rows[k][3]), "l"(desc), "r"(k));
  }}
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");  // scores
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");  // scores
  for (int k = 0; k < 2; ++k)
    for (int i = 0; i < 4; ++i) weights[k][i] = pair(s[k * 8 + 2 * i], s[k * 8 + 2 * i + 1]);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");  // sums
  for (int k = 0; k < 2; ++k) {{
    unsigned long long desc = (fixed | between | at(vs) / 16) + k * (16 * 128 / 16);
    asm volatile("{{ .reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n{COLUMNS}k16.f32.f16.f16 {{{SUMS}}}, {{%64, %65, %66, %67}}, %68, p, 1, 1, 1; }}"
                 : {BOUND_SUMS} : "r"(weights[k][0]), "r"(weights[k][1]), "r"(weights[k][2]), "r"(weights[k][3]), "l"(desc), "r"(1));
  }}
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");  // sums
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");  // sums
  for (int i = 0; i < {COLUMNS // 2}; ++i)
    out[(row + i / 2 % 2 * 8) * {COLUMNS} + i / 4 * 8 + column + i % 2] = o[i];
}}"""  # noqa: E501

MUTANTS: Mutants = {
    "no fence before the first product": (
        'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");  // scores',
        "",
        "without wgmma.fence",
    ),
    "no fence behind new operands": (
        'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");  // sums',
        "",
        "without wgmma.fence",
    ),
    "no wait for scores": (
        'wait_group.sync.aligned 0;" ::: "memory");  // scores',
        'wait_group.sync.aligned 1;" ::: "memory");  // scores',
        "",
    ),
    "no wait for sums": (
        'wait_group.sync.aligned 0;" ::: "memory");  // sums',
        'wait_group.sync.aligned 1;" ::: "memory");  // sums',
        "while a wgmma of it is under way",
    ),
    "scores not committed": (
        'asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");  // scores',
        "",
        "",
    ),
    "no fence behind copies": (
        'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");',
        "",
        "without fence.proxy.async",
    ),
    "no barrier behind copies": ("__syncthreads();", "", ""),
    "copies not swizzled": ("(chunk % 8 ^ row % 8)", "(chunk % 8)", ""),
    "copies swizzled by other rows": ("(chunk % 8 ^ row % 8)", "(chunk % 8 ^ row % 4)", ""),
    "another swizzle described": ("1ull << 62", "2ull << 62", "in no shared array"),
    "8 rows too near the next": ("64ull << 32", "32ull << 32", ""),
    "slabs too near": (
        "({KEYS} * 128 / 16) << 16".replace("{KEYS}", str(KEYS)),
        "({KEYS} * 64 / 16) << 16".replace("{KEYS}", str(KEYS)),
        "",
    ),
    "channels of the next slab": ("at(bs) / 16 + k * 2", "at(bs) / 16 + k * 4", ""),
    "values not turned": ("%68, p, 1, 1, 1;", "%68, p, 1, 1, 0;", "in no shared array"),
    "keys turned": ("%20, p, 1, 1, 0;", "%20, p, 1, 1, 1;", ""),
    "16 values too near the next": ("k * (16 * 128 / 16)", "k * (8 * 128 / 16)", ""),
    "operands swapped": (
        '"r"(rows[k][1]), "r"(rows[k][2])',
        '"r"(rows[k][2]), "r"(rows[k][1])',
        "",
    ),
    "scores added to what was there": ('"l"(desc), "r"(k)', '"l"(desc), "r"(0)', ""),
    "a sum touched on its way": (
        'asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");  // sums',
        'o[0] = 1; asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");',
        "an accumulator was written",
    ),
    "warps with other operands": (
        "at(bs) / 16 + k * 2",
        "at(bs) / 16 + (k ^ t / 32) * 2",
        "warps of a warpgroup began different products",
    ),
    "lanes with other operands": (
        "at(bs) / 16 + k * 2",
        "at(bs) / 16 + (k ^ t % 2) * 2",
        "lanes of a warp have different operands",
    ),
    "a warp without its products": (
        "for (int k = 0; k < 2; ++k) {",
        "if (t < 96) for (int k = 0; k < 2; ++k) {",
        "different numbers of wgmma",
    ),
}


def _wrong(source: str) -> bool:
    """Run the products of small integers, which are exact; say whether they are wrong."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> NDArray[np.float16]:
        return rng.integers(-2, 3, shape).astype(np.float16)

    a, b, v = draw(64, WIDTH), draw(KEYS, WIDTH), draw(KEYS, COLUMNS)
    out = np.zeros((64, COLUMNS), np.float32)
    launch(source, "products_kernel", [a, b, v, out], 1, THREADS, (b.size + v.size) * 2)
    left, right, values = (x.astype(np.float32) for x in (a, b, v))
    return not np.array_equal(out, left @ right.T @ values)


def test_products_are_right() -> None:
    assert not _wrong(SOURCE)


def test_it_is_a_kernel_for_gpus() -> None:
    used = usage_of(SOURCE, "products")
    assert used.spill_stores == used.serialized == 0


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_caught(name: str) -> None:
    assert_caught(SOURCE, MUTANTS[name], _wrong)
