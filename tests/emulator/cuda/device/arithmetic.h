// Arithmetic of CUDA C++: fast functions, conversions, what names of C differ.
#pragma once
#include <cmath>

#include "types.h"

inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
template <class A, class B>
inline std::common_type_t<std::enable_if_t<std::is_integral_v<A>, A>,
                          std::enable_if_t<std::is_integral_v<B>, B>>
max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return (T)a > (T)b ? (T)a : (T)b;
}
template <class A, class B>
inline std::common_type_t<std::enable_if_t<std::is_integral_v<A>, A>,
                          std::enable_if_t<std::is_integral_v<B>, B>>
min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return (T)a < (T)b ? (T)a : (T)b;
}

#define CUDART_INF_F HUGE_VALF
#define __expf expf
#define __exp2f exp2f
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __saturatef(float v) { return v > 0 ? (v < 1 ? v : 1) : 0; }

inline float __uint_as_float(unsigned v) { return emu::bits<float>(v); }
inline float __int_as_float(int v) { return emu::bits<float>(v); }
inline unsigned __float_as_uint(float v) { return emu::bits<unsigned>(v); }
inline int __float_as_int(float v) { return emu::bits<int>(v); }
inline int __float2int_rn(float v) { return (int)nearbyintf(v); }
inline int __float2int_rd(float v) { return (int)floorf(v); }
inline int __float2int_rz(float v) { return (int)v; }
inline unsigned __float2uint_rn(float v) { return (unsigned)nearbyintf(v); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(unsigned v) { return v ? __builtin_clz(v) : 32; }
inline int __clzll(unsigned long long v) { return v ? __builtin_clzll(v) : 64; }
inline int __ffs(unsigned v) { return __builtin_ffs((int)v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
  return r;
}
inline int __mulhi(int a, int b) { return (int)((long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long)a * b >> 32); }
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
  return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += (uint8_t)(a >> 8 * i) * (uint8_t)(b >> 8 * i);
  return c;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) { return ptx::prmt(a, b, s); }
inline unsigned __funnelshift_l(unsigned a, unsigned b, unsigned n) {
  return ptx::shf_left(a, b, n);
}
inline unsigned __funnelshift_r(unsigned a, unsigned b, unsigned n) {
  return ptx::shf_right(a, b, n);
}

// Floats of 16 bits.
inline float __half2float(half v) { return v; }
inline half __float2half(float v) { return v; }
inline half __float2half_rn(float v) { return v; }
inline float __bfloat162float(nv_bfloat16 v) { return v; }
inline nv_bfloat16 __float2bfloat16(float v) { return v; }
inline nv_bfloat16 __float2bfloat16_rn(float v) { return v; }
inline float __low2float(half2 v) { return v.x; }
inline float __high2float(half2 v) { return v.y; }
inline float2 __half22float2(half2 v) { return {v.x, v.y}; }
inline half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline half2 __floats2half2_rn(float a, float b) { return {a, b}; }
inline half2 __halves2half2(half a, half b) { return {a, b}; }
inline half2 make_half2(half a, half b) { return {a, b}; }
inline half2 __half2half2(half a) { return {a, a}; }
inline float2 __bfloat1622float2(nv_bfloat162 v) { return {v.x, v.y}; }
inline nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }
inline nv_bfloat162 __halves2bfloat162(nv_bfloat16 a, nv_bfloat16 b) { return {a, b}; }
inline unsigned short __half_as_ushort(half v) { return v.code; }
inline unsigned short __bfloat16_as_ushort(nv_bfloat16 v) { return v.code; }
inline half __ushort_as_half(unsigned short v) { return emu::bits<half>(v); }
inline nv_bfloat16 __ushort_as_bfloat16(unsigned short v) { return emu::bits<nv_bfloat16>(v); }

template <class C>
inline bool __hgt(emu::Small<C> a, emu::Small<C> b) { return a > b; }
template <class C>
inline bool __hlt(emu::Small<C> a, emu::Small<C> b) { return a < b; }
template <class C>
inline bool __hisnan(emu::Small<C> a) { return std::isnan((float)a); }
template <class C>
inline emu::Small<C> __hadd(emu::Small<C> a, emu::Small<C> b) { return a + b; }
template <class C>
inline emu::Small<C> __hsub(emu::Small<C> a, emu::Small<C> b) { return a - b; }
template <class C>
inline emu::Small<C> __hmul(emu::Small<C> a, emu::Small<C> b) { return a * b; }
template <class C>
inline emu::Small<C> __hfma(emu::Small<C> a, emu::Small<C> b, emu::Small<C> c) {
  return emu::round_to_odd((double)(float)a * (float)b + (float)c);
}
template <class C>
inline emu::Small<C> __habs(emu::Small<C> a) { return fabsf((float)a); }
template <class C>
inline emu::Small<C> __hmax(emu::Small<C> a, emu::Small<C> b) { return fmaxf(a, b); }
template <class C>
inline emu::Small<C> __hmin(emu::Small<C> a, emu::Small<C> b) { return fminf(a, b); }
template <class C>
inline emu::Small<C> hexp(emu::Small<C> a) { return expf(a); }
template <class C>
inline emu::Small<C> hexp2(emu::Small<C> a) { return exp2f(a); }
template <class C>
inline emu::Small<C> hlog2(emu::Small<C> a) { return log2f(a); }
template <class C>
inline emu::Small<C> hsqrt(emu::Small<C> a) { return sqrtf(a); }
template <class C>
inline emu::Small<C> hrcp(emu::Small<C> a) { return 1.0f / (float)a; }
template <class C>
inline emu::Small2<C> __hadd2(emu::Small2<C> a, emu::Small2<C> b) { return a + b; }
template <class C>
inline emu::Small2<C> __hsub2(emu::Small2<C> a, emu::Small2<C> b) { return a - b; }
template <class C>
inline emu::Small2<C> __hmul2(emu::Small2<C> a, emu::Small2<C> b) { return a * b; }
template <class C>
inline emu::Small2<C> __hfma2(emu::Small2<C> a, emu::Small2<C> b, emu::Small2<C> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <class C>
inline emu::Small2<C> __hmax2(emu::Small2<C> a, emu::Small2<C> b) {
  return {__hmax(a.x, b.x), __hmax(a.y, b.y)};
}
template <class C>
inline emu::Small2<C> __hmin2(emu::Small2<C> a, emu::Small2<C> b) {
  return {__hmin(a.x, b.x), __hmin(a.y, b.y)};
}
