"""Tensor copies and warpgroup products on the emulated GPU, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from tests.emulator.cuda.run import LaunchError, TensorMap, launch

LOADS = """
#include <cuda.h>
__device__ unsigned at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ void expect(void* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(at(barrier)), "r"(bytes));
}
__device__ void load(void* to, const CUtensorMap* map, int x, int y, void* barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
               :: "r"(at(to)), "l"(map), "r"(x), "r"(y), "r"(at(barrier)) : "memory");
}
__device__ void wait(void* barrier, int phase) {
  asm volatile("{ .reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra D; bra W; D: }"
               :: "r"(at(barrier)), "r"(phase) : "memory");
}
#define INIT(b) asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(at(b)))
"""  # noqa: E501

TILE = """
extern "C" __global__ void kernel(const __grid_constant__ CUtensorMap map, int x, int y,
                                  half* out) {
  extern __shared__ __align__(1024) half tile[];
  __shared__ unsigned long long barrier;
  if (threadIdx.x == 0) {
    INIT(&barrier);
    expect(&barrier, ROWS * COLUMNS * 2);
    load(tile, &map, x, y, &barrier);
  }
  __syncthreads();
  wait(&barrier, 0);
  for (int i = threadIdx.x; i < ROWS * COLUMNS; i += 32) out[i] = tile[i];
}"""


@pytest.mark.parametrize("x, y", [(0, 0), (8, 3), (24, 7), (-3, -2)])
@pytest.mark.parametrize("swizzle, columns", [(0, 16), (1, 16), (2, 32), (3, 64), (3, 32)])
def test_a_tile_comes_swizzled_and_zero_outside(x: int, y: int, swizzle: int, columns: int) -> None:
    rows = 16
    array = np.arange(1, 1 + 20 * 72, dtype=np.float16).reshape(20, 72)
    out = np.zeros((rows, columns), np.float16)
    source = LOADS + TILE.replace("ROWS", str(rows)).replace("COLUMNS", str(columns))
    arguments = [TensorMap(array, (rows, columns), swizzle), np.int32(x), np.int32(y), out]
    launch(source, "kernel", arguments, shared=rows * columns * 2)
    padded = np.zeros((64, 256), np.float16)
    padded[8:28, 8:80] = array
    expected = padded[8 + y : 8 + y + rows, 8 + x : 8 + x + columns]
    # 16 bytes c of every 128 lie at c ^ (their number modulo 8, 4, 2).
    lines = out.reshape(-1, 8, 8).copy()
    for n in range(len(lines)):
        lines[n] = lines[n][np.arange(8) ^ (n % (1 << swizzle))]
    np.testing.assert_array_equal(lines.reshape(rows, columns), expected)


PRODUCT = """
extern "C" __global__ void kernel(const __grid_constant__ CUtensorMap am,
                                  const __grid_constant__ CUtensorMap bm, float* out) {
  extern __shared__ __align__(1024) half s[];
  __shared__ unsigned long long full;
  half* a = s; half* b = s + 64 * 64;
  int t = threadIdx.x;
  float d[COLUMNS / 2];
  if (t == 0) INIT(&full);
  __syncthreads();
  for (int round = 0; round < 2; ++round) {
    if (t == 0) {
      expect(&full, (64 + COLUMNS) * 128);
      load(a, &am, round * 64, 0, &full);
      load(b, &bm, round * 64, 0, &full);
    }
    wait(&full, round);
    asm volatile("wgmma.fence.sync.aligned;");
    for (int k = 0; k < 4; ++k) {
      unsigned long long fixed = 1ull << 62 | 64ull << 32 | 1ull << 16;
      unsigned long long da = fixed | at(a + k * 16) / 16, db = fixed | at(b + k * 16) / 16;
      int keep = round + k;
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %BASE2, 0; wgmma.mma_async.sync.aligned.m64nCOLUMNSk16.f32.f16.f16 {REGISTERS}, %BASE0, %BASE1, p, 1, 1, 0, 0; }"
                   : OUTPUTS : "l"(da), "l"(db), "r"(keep));
    }
    asm volatile("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;");
    __syncthreads();
  }
  for (int i = 0; i < COLUMNS / 2; ++i)
    out[(t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * COLUMNS + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
}"""  # noqa: E501


@pytest.mark.parametrize("columns", [8, 64])
def test_a_warpgroup_multiplies_tiles(columns: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, (n, 128)).astype(np.float16) for n in (64, columns))
    out = np.zeros((64, columns), np.float32)
    count = columns // 2
    source = PRODUCT.replace("REGISTERS", ", ".join(f"%{i}" for i in range(count)))
    source = source.replace("OUTPUTS", ", ".join(f'"+f"(d[{i}])' for i in range(count)))
    for i in range(3):
        source = source.replace(f"BASE{i}", str(count + i))
    source = LOADS + source.replace("COLUMNS", str(columns))
    maps = [TensorMap(a, (64, 64), 3), TensorMap(b, (columns, 64), 3)]
    launch(source, "kernel", [*maps, out], threads=128, shared=(64 + columns) * 128)
    np.testing.assert_array_equal(out, a.astype(np.float32) @ b.astype(np.float32).T)


def test_maps_that_the_driver_refuses() -> None:
    array = np.zeros((8, 64), np.float16)
    for box, words in {(8, 512): "box", (8, 4): "inner size", (8, 128): "inner size"}.items():
        with pytest.raises(LaunchError, match=words):
            TensorMap(array, box, 3).encode(1 << 20)
