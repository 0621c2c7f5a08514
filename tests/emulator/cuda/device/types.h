// CUDA's scalar and vector types on a CPU: half, bfloat16, float4 and the like.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define EMU_VECTORS(T, N, A2, A4)                                             \
  struct alignas(sizeof(T)) N##1 { T x; };                                    \
  struct alignas(A2) N##2 { T x, y; };                                        \
  struct N##3 { T x, y, z; };                                                 \
  struct alignas(A4) N##4 { T x, y, z, w; };                                  \
  inline N##1 make_##N##1(T x) { return {x}; }                                \
  inline N##2 make_##N##2(T x, T y) { return {x, y}; }                        \
  inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                \
  inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(signed char, char, 2, 4)
EMU_VECTORS(unsigned char, uchar, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(unsigned short, ushort, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned, uint, 8, 16)
EMU_VECTORS(long, long, 16, 16)
EMU_VECTORS(unsigned long, ulong, 16, 16)
EMU_VECTORS(long long, longlong, 16, 16)
EMU_VECTORS(unsigned long long, ulonglong, 16, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(double, double, 16, 16)
#undef EMU_VECTORS

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct alignas(64) CUtensorMap {
  uint64_t opaque[16];
};

namespace emu {

template <class To, class From>
inline To bits(const From &value) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps their number");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// Encodings of 16 bits; `from` rounds to nearest even and keeps NaN one.
struct Half {
  static float to(uint16_t h) {
    uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return bits<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    // Exact also for subnormals: a multiplication by 2^112 of the shifted pattern.
    float scaled = bits<float>(rest << 13) * bits<float>(0x77800000u);
    return bits<float>(sign | bits<uint32_t>(scaled));
  }
  static uint16_t from(float value) {
    uint32_t b = bits<uint32_t>(value), sign = b >> 16 & 0x8000u, rest = b & 0x7fffffffu;
    if (rest > 0x7f800000u) return sign | 0x7fffu;
    if (rest >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more
    if (rest < 0x38800000u)  // subnormal: the addition of 0.5 rounds at the unit 2^-24
      return sign | (uint16_t)(bits<uint32_t>(bits<float>(rest) + 0.5f) - 0x3f000000u);
    rest += 0xfffu + (rest >> 13 & 1);
    return sign | (uint16_t)((rest - 0x38000000u) >> 13);
  }
};

struct Bfloat {
  static float to(uint16_t h) { return bits<float>((uint32_t)h << 16); }
  static uint16_t from(float value) {
    uint32_t b = bits<uint32_t>(value);
    if ((b & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (uint16_t)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
  }
};

// Rounds to a float with more bits than a half has, so that rounding it again rounds once: what is
// lost leaves the last bit set.
inline float round_to_odd(double value) {
  float near = (float)value;
  if ((double)near == value || !std::isfinite(near)) return near;
  uint32_t code = bits<uint32_t>(near);
  if (std::fabs((double)near) > std::fabs(value)) --code;
  return bits<float>(code | 1);
}

// A float of 16 bits as CUDA has it: converts from and to all numbers, computes by rounding.
template <class Code>
struct Small {
  uint16_t code;
  Small() = default;
  Small(float v) : code(Code::from(v)) {}
  Small(double v) : code(Code::from((float)v)) {}
  Small(int v) : Small((float)v) {}
  Small(unsigned v) : Small((float)v) {}
  Small(long v) : Small((float)v) {}
  Small(unsigned long v) : Small((float)v) {}
  Small(long long v) : Small((float)v) {}
  Small(unsigned long long v) : Small((float)v) {}
  Small(short v) : Small((float)v) {}
  Small(unsigned short v) : Small((float)v) {}
  template <class Other>
  explicit Small(Small<Other> v) : Small((float)v) {}
  operator float() const { return Code::to(code); }
  friend Small operator+(Small a, Small b) { return (float)a + (float)b; }
  friend Small operator-(Small a, Small b) { return (float)a - (float)b; }
  friend Small operator*(Small a, Small b) { return (float)a * (float)b; }
  friend Small operator/(Small a, Small b) { return (float)a / (float)b; }
  friend Small operator-(Small a) { return a.negated(); }
  friend bool operator<(Small a, Small b) { return (float)a < (float)b; }
  friend bool operator>(Small a, Small b) { return (float)a > (float)b; }
  friend bool operator<=(Small a, Small b) { return (float)a <= (float)b; }
  friend bool operator>=(Small a, Small b) { return (float)a >= (float)b; }
  friend bool operator==(Small a, Small b) { return (float)a == (float)b; }
  friend bool operator!=(Small a, Small b) { return (float)a != (float)b; }
  Small &operator+=(Small b) { return *this = *this + b; }
  Small &operator-=(Small b) { return *this = *this - b; }
  Small &operator*=(Small b) { return *this = *this * b; }
  Small negated() const {
    Small r;
    r.code = code ^ 0x8000u;
    return r;
  }
};

template <class Code>
struct alignas(4) Small2 {
  Small<Code> x, y;
  Small2() = default;
  Small2(Small<Code> a, Small<Code> b) : x(a), y(b) {}
  friend Small2 operator+(Small2 a, Small2 b) { return {a.x + b.x, a.y + b.y}; }
  friend Small2 operator-(Small2 a, Small2 b) { return {a.x - b.x, a.y - b.y}; }
  friend Small2 operator*(Small2 a, Small2 b) { return {a.x * b.x, a.y * b.y}; }
};

}  // namespace emu

using __half = emu::Small<emu::Half>;
using half = __half;
using __half2 = emu::Small2<emu::Half>;
using half2 = __half2;
using __nv_bfloat16 = emu::Small<emu::Bfloat>;
using nv_bfloat16 = __nv_bfloat16;
using __nv_bfloat162 = emu::Small2<emu::Bfloat>;
using nv_bfloat162 = __nv_bfloat162;
