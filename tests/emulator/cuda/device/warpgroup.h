// Hopper's products of warpgroups (wgmma), which go on beside the program.
#pragma once
#include "matrix.h"
#include "threads.h"

namespace emu {

constexpr int kMaxColumns = 256;

// One thread's part of wgmma m64 n k16: `d` are its n / 2 accumulators where the kernel has them.
// A is in registers, or in shared memory as B is: swizzled, along k or, turned, along the other
// dimension.
struct Product {
  Element kind;
  int columns;
  bool a_in_registers, accumulates, a_turned, b_turned;
  uint32_t a[4];
  uint64_t a_at, b_at;
  float *d[kMaxColumns / 2];
  float before[kMaxColumns / 2];
  bool chained;  // to an earlier product that is not done
};

// Computed by each warp at its own wait, the last moment there is: until then accumulators are NaN,
// and what becomes of operands in shared memory shows. Registers of A are read at once.
void wgmma(const Product &product);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned groups_left);

// fence.proxy.async, without which products may not see what cp.async of this thread has copied.
void fence_async();
void copied_by_thread(const char *to, int bytes);

}  // namespace emu
