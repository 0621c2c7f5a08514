#include "tensor.h"

#include "async.h"
#include "driver.h"
#include "memory.h"

namespace emu {
namespace {

constexpr int kRanks = 5;

struct TensorMap {
  char *base;
  uint64_t strides[kRanks];  // in bytes
  uint32_t sizes[kRanks], box[kRanks];
  uint8_t bytes, rank, swizzle;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap), "a tensor map has 128 bytes");

// 16 bytes change places within 8 rows of 128, 64 or 32 bytes, by the address alone.
uint32_t swizzled(uint32_t address, int mode) {
  uint32_t rows = mode ? (1u << mode) - 1 : 0;
  return address ^ (address >> 7 & rows) << 4;
}

}  // namespace

void copy_tensor(int rank, uint32_t to, const void *map, const int *at, uint32_t mbarrier) {
  TensorMap m;
  memcpy(&m, map, sizeof(m));
  if (m.rank != rank) fail("a tensor map of %d dimensions in a copy of %d", m.rank, rank);
  if (to % 128) fail_as(kMisaligned, "cp.async.bulk.tensor: %#x is not a multiple of 128", to);
  std::vector<Copy> copies;
  uint32_t count = 1, index[kRanks] = {};
  for (int i = 0; i < rank; ++i) count *= m.box[i];
  for (uint32_t e = 0; e < count; ++e) {
    char *from = m.base;
    bool inside = true;
    for (int i = 0; i < rank; ++i) {
      int64_t x = (int64_t)at[i] + index[i];
      inside &= x >= 0 && x < m.sizes[i];
      from += x * (int64_t)m.strides[i];
    }
    char *into = shared_pointer(swizzled(to + e * m.bytes, m.swizzle), m.bytes, m.bytes, "tensor copy");
    memset(into, 0xff, m.bytes);
    copies.push_back({into, from, m.bytes, inside ? m.bytes : 0});
    for (int i = 0; i < rank && ++index[i] == m.box[i]; ++i) index[i] = 0;
  }
  copy_late(std::move(copies), (long)count * m.bytes, mbarrier);
}

}  // namespace emu

// The encoding is ours; the checks are the driver's.
extern "C" int cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *base,
                                      const uint64_t *sizes, const uint64_t *strides,
                                      const uint32_t *box, const uint32_t *steps, int interleave,
                                      int swizzle, int, int) {
  static const uint8_t bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  if (rank < 1 || rank > emu::kRanks || type < 0 || type > 12 || (uintptr_t)base % 16)
    return emu::failed(emu::kInvalidValue, "tensor map: rank, type or base");
  if (interleave || swizzle < 0 || swizzle > 3)
    return emu::failed(emu::kInvalidValue, "tensor map: this layout is not emulated");
  emu::TensorMap m = {};
  m.base = (char *)base;
  m.rank = (uint8_t)rank;
  m.bytes = bytes[type];
  m.swizzle = (uint8_t)swizzle;
  for (uint32_t i = 0; i < rank; ++i) {
    m.sizes[i] = (uint32_t)sizes[i];
    m.box[i] = box[i];
    m.strides[i] = i ? strides[i - 1] : m.bytes;
    if (box[i] < 1 || box[i] > 256 || steps[i] != 1 || (i && m.strides[i] % 16))
      return emu::failed(emu::kInvalidValue, "tensor map: box, step or stride");
  }
  uint32_t inner = box[0] * m.bytes;
  if (inner % 16 || (swizzle && inner > (16u << swizzle)))
    return emu::failed(emu::kInvalidValue, "tensor map: the box's inner size");
  memset(map, 0, sizeof(CUtensorMap));
  memcpy(map, &m, sizeof(m));
  return 0;
}
