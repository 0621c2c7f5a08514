// Hopper's tensor copies and warpgroup products.
#pragma once
#include "matrix.h"

namespace emu {

// A tile of up to 5 dimensions, by a tensor map of cuTensorMapEncodeTiled: swizzled, zero outside.
void copy_tensor(int rank, uint32_t to, const void *map, const int *coordinates, uint32_t mbarrier);

// wgmma m64 n k16 with both operands in shared memory, K-major and swizzled; done at once, so that
// a missing wait_group does not show. `d` are the n / 2 accumulators of this thread.
void wgmma(Element kind, int n, float *d, uint64_t a, uint64_t b, bool accumulates);

}  // namespace emu
