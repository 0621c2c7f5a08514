// Hopper's tensor copies.
#pragma once
#include <cstdint>

namespace emu {

// A tile of up to 5 dimensions, by a tensor map of cuTensorMapEncodeTiled: swizzled, zero outside.
void copy_tensor(int rank, uint32_t to, const void *map, const int *coordinates, uint32_t mbarrier);

}  // namespace emu
