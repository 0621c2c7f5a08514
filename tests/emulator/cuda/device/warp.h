// Shuffles, votes and reductions of a warp.
#pragma once
#include "meetings.h"

namespace emu {

struct ShuffleIn {
  uint64_t value;
  int from;  // the lane whose value this one takes
};

uint64_t shuffle(const char *name, uint32_t mask, uint64_t value, int from);
uint32_t ballot(const char *name, uint32_t mask, bool vote);
uint32_t match(uint32_t mask, uint64_t value);

enum Reduction { kAdd, kMin, kMax, kMinSigned, kMaxSigned, kAnd, kOr, kXor };
uint32_t reduce(uint32_t mask, uint32_t value, Reduction kind);

// How shuffles choose the lane; `width` splits the warp into groups.
inline int lane_at(int from, int width) { return self->lane / width * width + from % width; }
inline int lane_xor(int bits, int width) {
  int from = self->lane ^ bits;
  return from / width > self->lane / width ? self->lane : from;
}
inline int lane_down(int delta, int width) {
  return self->lane % width + delta < width ? self->lane + delta : self->lane;
}
inline int lane_up(int delta, int width) {
  return self->lane % width - delta >= 0 ? self->lane - delta : self->lane;
}

template <class T>
inline T shuffle_of(const char *name, uint32_t mask, T value, int from) {
  uint64_t wide = 0;
  memcpy(&wide, &value, sizeof(T));
  wide = shuffle(name, mask, wide, from);
  memcpy(&value, &wide, sizeof(T));
  return value;
}

}  // namespace emu
