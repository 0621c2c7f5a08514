// PTX of single words: bits, pairs of 16-bit floats, conversions. Included by ptx.h.
#pragma once

namespace ptx {

inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, int table) {
  uint32_t r = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t both = (uint64_t)b << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    int pick = selector >> 4 * i & 15;
    uint32_t byte = both >> 8 * (pick & 7) & 255;
    if (pick & 8) byte = byte & 0x80 ? 255 : 0;
    r |= byte << 8 * i;
  }
  return r;
}
inline uint32_t shf_left(uint32_t a, uint32_t b, uint32_t n) {  // wrap
  n &= 31;
  return n ? b << n | a >> (32 - n) : b;
}
inline uint32_t shf_right(uint32_t a, uint32_t b, uint32_t n) {
  n &= 31;
  return n ? b << (32 - n) | a >> n : a;
}

// Shifts by the width and more leave nothing but the sign.
template <class T>
inline T shift_left(T a, uint32_t n) {
  return n < sizeof(T) * 8 ? (T)(a << n) : 0;
}
template <class T>
inline T shift_right(T a, uint32_t n) {
  return n < sizeof(T) * 8 ? (T)(a >> n) : (T)(a < 0 ? -1 : 0);
}

// Pairs of 16-bit floats; each result is rounded once.
template <class Code, class F>
inline uint32_t pairwise(F f, uint32_t a, uint32_t b = 0, uint32_t c = 0) {
  auto at = [](uint32_t v, int i) { return (double)Code::to(v >> 16 * i & 0xffff); };
  uint32_t r = 0;
  for (int i = 0; i < 2; ++i)
    r |= (uint32_t)Code::from(emu::round_to_odd(f(at(a, i), at(b, i), at(c, i)))) << 16 * i;
  return r;
}
inline double add(double a, double b, double) { return a + b; }
inline double sub(double a, double b, double) { return a - b; }
inline double mul(double a, double b, double) { return a * b; }
inline double fma(double a, double b, double c) { return a * b + c; }
inline double max(double a, double b, double) { return fmax(a, b); }
inline double min(double a, double b, double) { return fmin(a, b); }

inline double ex2(double a, double, double) { return exp2(a); }
template <class Code, class F, class D, class... In>
inline void pairs(F f, D &d, const In &...in) {
  put(d, pairwise<Code>(f, as<uint32_t>(in)...));
}

// The first operand becomes the high half.
template <class Code>
inline uint32_t pack(float high, float low) {
  return (uint32_t)Code::from(high) << 16 | Code::from(low);
}
template <class To>
inline To saturate(float v) {  // cvt.rni.sat
  float low = (float)std::numeric_limits<To>::min(), high = (float)std::numeric_limits<To>::max();
  if (v != v) return 0;
  float r = nearbyintf(v);
  return r <= low ? std::numeric_limits<To>::min()
                  : r >= high ? std::numeric_limits<To>::max() : (To)r;
}


// Pairs of 8-bit floats; the first operand becomes the high byte.
template <int EXPONENT_BITS>
inline uint16_t pack_bytes(float high, float low) {
  return (uint16_t)(emu::to_byte(high, EXPONENT_BITS) << 8 | emu::to_byte(low, EXPONENT_BITS));
}
template <int EXPONENT_BITS>
inline uint32_t unpack_bytes(uint16_t v) {
  return pack<Half>(emu::from_byte(v >> 8, EXPONENT_BITS), emu::from_byte(v & 255, EXPONENT_BITS));
}

}  // namespace ptx
