#include "warp.h"

namespace emu {
namespace {

struct Reduced {
  uint32_t value;
  Reduction kind;
};

uint32_t combine(Reduction kind, uint32_t a, uint32_t b) {
  switch (kind) {
    case kAdd: return a + b;
    case kMin: return a < b ? a : b;
    case kMax: return a > b ? a : b;
    case kMinSigned: return (int)a < (int)b ? a : b;
    case kMaxSigned: return (int)a > (int)b ? a : b;
    case kAnd: return a & b;
    case kOr: return a | b;
    default: return a ^ b;
  }
}

}  // namespace

uint64_t shuffle(const char *name, uint32_t mask, uint64_t value, int from) {
  ShuffleIn in = {value, from};
  uint64_t out;
  meet(name, mask, &in, &out, [](const void *const *ins, void *const *outs) {
    for (int i = 0; i < kWarp; ++i) {
      if (!ins[i]) continue;
      const auto *source = (const ShuffleIn *)ins[((const ShuffleIn *)ins[i])->from];
      // What a lane that is not here would give is undefined: NaN of every width.
      *(uint64_t *)outs[i] = source ? source->value : ~0ull;
    }
  });
  return out;
}

uint32_t ballot(const char *name, uint32_t mask, bool vote) {
  uint32_t out;
  meet(name, mask, &vote, &out, [](const void *const *ins, void *const *outs) {
    uint32_t all = 0;
    for (int i = 0; i < kWarp; ++i)
      if (ins[i] && *(const bool *)ins[i]) all |= 1u << i;
    for (int i = 0; i < kWarp; ++i)
      if (outs[i]) *(uint32_t *)outs[i] = all;
  });
  return out;
}

uint32_t match(uint32_t mask, uint64_t value) {
  uint32_t out;
  meet("match.any.sync", mask, &value, &out, [](const void *const *ins, void *const *outs) {
    for (int i = 0; i < kWarp; ++i) {
      if (!ins[i]) continue;
      uint32_t same = 0;
      for (int j = 0; j < kWarp; ++j)
        if (ins[j] && *(const uint64_t *)ins[j] == *(const uint64_t *)ins[i]) same |= 1u << j;
      *(uint32_t *)outs[i] = same;
    }
  });
  return out;
}

uint32_t reduce(uint32_t mask, uint32_t value, Reduction kind) {
  Reduced in = {value, kind};
  uint32_t out;
  meet("redux.sync", mask, &in, &out, [](const void *const *ins, void *const *outs) {
    bool first = true;
    uint32_t all = 0;
    for (int i = 0; i < kWarp; ++i) {
      if (!ins[i]) continue;
      const auto *in = (const Reduced *)ins[i];
      all = first ? in->value : combine(in->kind, all, in->value);
      first = false;
    }
    for (int i = 0; i < kWarp; ++i)
      if (outs[i]) *(uint32_t *)outs[i] = all;
  });
  return out;
}

}  // namespace emu
