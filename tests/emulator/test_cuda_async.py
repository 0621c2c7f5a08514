"""Copies that land late on the emulated GPU: cp.async, mbarriers, bulk copies."""

from __future__ import annotations

import numpy as np
import pytest
from tests.emulator.cuda.run import LaunchError, launch

COPY = """
__device__ void copy(float* to, const float* from, int valid) {
  unsigned at = __cvta_generic_to_shared(to);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" :: "r"(at), "l"(from), "r"(valid));
}
#define COMMIT asm volatile("cp.async.commit_group;")
#define WAIT0 asm volatile("cp.async.wait_group 0;")
#define WAIT1 asm volatile("cp.async.wait_group 1;")
"""


def _copies(body: str, count: int = 32) -> np.ndarray:
    x, out = np.arange(1, 1 + count, dtype=np.float32), np.zeros(count, np.float32)
    source = f"""{COPY}
    extern "C" __global__ void kernel(float* x, float* out) {{
      __shared__ float s[{count}];
      int i = threadIdx.x;
      s[i] = -1;
      {body}
      WAIT0;
    }}"""
    launch(source, "kernel", [x, out], threads=32)
    return out


def test_a_copy_lands_at_its_wait_and_not_before() -> None:
    out = _copies("copy(&s[i], &x[i], 4); COMMIT; out[i] = s[i]; WAIT0; if (i % 2) out[i] = s[i];")
    np.testing.assert_array_equal(out[1::2], np.arange(2, 34, 2))
    assert np.isnan(out[::2]).all()


def test_a_wait_leaves_the_newest_groups() -> None:
    out = _copies(
        "copy(&s[i], &x[i], 4); COMMIT; __syncwarp();"
        "copy(&s[i], &x[31 - i], 4); COMMIT; WAIT1; out[i] = s[i];"
    )
    np.testing.assert_array_equal(out, np.arange(1, 33))


def test_what_is_not_valid_becomes_zero() -> None:
    out = _copies("copy(&s[i], &x[i], i < 7 ? 4 : 0); COMMIT; WAIT0; out[i] = s[i];")
    np.testing.assert_array_equal(out, [*range(1, 8), *[0] * 25])


def test_wait_all_takes_what_is_not_committed() -> None:
    out = _copies('copy(&s[i], &x[i], 4); asm volatile("cp.async.wait_all;"); out[i] = s[i];')
    np.testing.assert_array_equal(out, np.arange(1, 33))


BULK = """
extern "C" __global__ void kernel(float* x, float* out, int rounds, int waits) {
  __shared__ alignas(128) float s[256];
  __shared__ unsigned long long barrier;
  unsigned at = __cvta_generic_to_shared(&barrier), to = __cvta_generic_to_shared(s);
  int i = threadIdx.x;
  if (i == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(at));
    asm volatile("fence.mbarrier_init.release.cluster;");
  }
  __syncthreads();
  for (int round = 0; round < rounds; ++round) {
    if (i == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(at), "r"(1024));
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" :: "r"(to), "l"(x + round * 256), "r"(1024), "r"(at) : "memory");
    }
    if (waits) {
      int done = 0;
      while (!done)
        asm volatile("{ .reg .pred p; mbarrier.FORM.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }" : "=r"(done) : "r"(at), "r"(round & 1));
    }
    for (int j = i; j < 256; j += 64) out[round * 256 + j] = s[j];
    __syncthreads();
  }
}"""  # noqa: E501


@pytest.mark.parametrize("form", ["try_wait", "test_wait"])
def test_a_bulk_copy_completes_its_mbarrier(form: str) -> None:
    x, out = np.arange(768, dtype=np.float32), np.zeros(768, np.float32)
    launch(BULK.replace("FORM", form), "kernel", [x, out, np.int32(3), np.int32(1)], threads=64)
    np.testing.assert_array_equal(out, x)


def test_without_its_wait_a_bulk_copy_is_not_there() -> None:
    x, out = np.arange(768, dtype=np.float32), np.zeros(768, np.float32)
    launch(
        BULK.replace("FORM", "try_wait"), "kernel", [x, out, np.int32(1), np.int32(0)], threads=64
    )
    assert np.isnan(out[:256]).all()


def test_arrivals_of_copies() -> None:
    """Producers' cp.async arrive at the mbarrier that a consumer waits for."""
    x, out = np.arange(64, dtype=np.float32), np.zeros(32, np.float32)
    source = f"""{COPY}
    extern "C" __global__ void kernel(float* x, float* out) {{
      __shared__ float s[32];
      __shared__ unsigned long long barrier;
      unsigned at = __cvta_generic_to_shared(&barrier);
      int i = threadIdx.x;
      if (i == 0) asm volatile("mbarrier.init.shared.b64 [%0], 32;" :: "r"(at));
      __syncthreads();
      if (i < 32) {{
        copy(&s[i], &x[i], 4);
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" :: "r"(at));
      }} else {{
        asm volatile("{{ .reg .pred P1; W: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 P1, [%0], 0; @P1 bra.uni D; bra.uni W; D: }}" :: "r"(at));
        out[i - 32] = s[i - 32];
      }}
    }}"""  # noqa: E501
    launch(source, "kernel", [x, out], threads=64)
    np.testing.assert_array_equal(out, np.arange(32))


def test_an_mbarrier_that_is_not_initialised_fails() -> None:
    source = """extern "C" __global__ void kernel() {
      __shared__ unsigned long long b;
      unsigned at = __cvta_generic_to_shared(&b);
      asm volatile("mbarrier.arrive.shared.b64 _, [%0];" :: "r"(at)); }"""
    with pytest.raises(LaunchError, match=r"the mbarrier at .* is not initialised"):
        launch(source, "kernel", [])


def test_named_barriers_between_producers_and_consumers() -> None:
    out = np.zeros(32, np.int32)
    source = """extern "C" __global__ void kernel(int* out) {
      __shared__ int s[32];
      int i = threadIdx.x;
      if (i >= 32) {
        for (int r = 0; r < 4; ++r) {
          asm volatile("bar.sync 2, 64;" ::: "memory");
          s[i - 32] = i + r;
          asm volatile("bar.arrive 1, 64;" ::: "memory");
        }
      } else {
        int sum = 0;
        for (int r = 0; r < 4; ++r) {
          asm volatile("bar.arrive 2, 64;" ::: "memory");
          asm volatile("bar.sync 1, 64;" ::: "memory");
          sum += s[31 - i];
        }
        out[i] = sum;
      }
    }"""
    launch(source, "kernel", [out], threads=64)
    np.testing.assert_array_equal(out, [sum(63 - i + r for r in range(4)) for i in range(32)])
