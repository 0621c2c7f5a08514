// What generated kernels include instead of CUDA's headers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "ptx.h"

// The emulated device is a Hopper.
#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

#define threadIdx (emu::self->index)
#define blockIdx (emu::grid.index)
#define blockDim (emu::grid.threads)
#define gridDim (emu::grid.blocks)
constexpr int warpSize = 32;

// Barriers, fences, votes, shuffles.
inline void __syncthreads() { emu::barrier(0, 0); }
inline int __syncthreads_or(int p) { return emu::barrier(0, 0, p != 0) != 0; }
inline int __syncthreads_count(int p) { return (int)emu::barrier(0, 0, p != 0); }
inline int __syncthreads_and(int p) { return !emu::barrier(0, 0, p == 0); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { emu::ballot("syncwarp", mask, false); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { emu::poll("nanosleep"); }
inline uint32_t __activemask() { return emu::active_lanes(); }
inline uint32_t __ballot_sync(uint32_t m, int p) { return emu::ballot("vote", m, p != 0); }
inline int __any_sync(uint32_t m, int p) { return emu::ballot("vote", m, p != 0) != 0; }
inline int __all_sync(uint32_t m, int p) { return emu::ballot("vote", m, p == 0) == 0; }
template <class T>
inline uint32_t __match_any_sync(uint32_t m, T v) {
  uint64_t wide = 0;
  memcpy(&wide, &v, sizeof(T));
  return emu::match(m, wide);
}
template <class T>
inline T __shfl_sync(uint32_t m, T v, int from, int width = 32) {
  return emu::shuffle_of("shfl.idx", m, v, emu::lane_at(from, width));
}
template <class T>
inline T __shfl_xor_sync(uint32_t m, T v, int from, int width = 32) {
  return emu::shuffle_of("shfl.bfly", m, v, emu::lane_xor(from, width));
}
template <class T>
inline T __shfl_down_sync(uint32_t m, T v, unsigned delta, int width = 32) {
  return emu::shuffle_of("shfl.down", m, v, emu::lane_down((int)delta, width));
}
template <class T>
inline T __shfl_up_sync(uint32_t m, T v, unsigned delta, int width = 32) {
  return emu::shuffle_of("shfl.up", m, v, emu::lane_up((int)delta, width));
}
inline uint32_t __reduce_add_sync(uint32_t m, uint32_t v) { return emu::reduce(m, v, emu::kAdd); }
inline uint32_t __reduce_min_sync(uint32_t m, uint32_t v) { return emu::reduce(m, v, emu::kMin); }
inline uint32_t __reduce_max_sync(uint32_t m, uint32_t v) { return emu::reduce(m, v, emu::kMax); }

// Memory.
inline uint32_t __cvta_generic_to_shared(const void *p) { return emu::shared_address(p); }
template <class T>
inline T __ldg(const T *p) { return *p; }

// One fibre runs at a time: reading and writing without a switch is atomic.
template <class T, class V>
inline T atomicAdd(T *p, V v) {
  T old = *p;
  *p = old + (T)v;
  return old;
}
template <class T, class V>
inline T atomicMax(T *p, V v) {
  T old = *p;
  if ((T)v > old) *p = (T)v;
  return old;
}
template <class T, class V>
inline T atomicMin(T *p, V v) {
  T old = *p;
  if ((T)v < old) *p = (T)v;
  return old;
}
template <class T, class V>
inline T atomicOr(T *p, V v) {
  T old = *p;
  *p = old | (T)v;
  return old;
}
template <class T, class V>
inline T atomicAnd(T *p, V v) {
  T old = *p;
  *p = old & (T)v;
  return old;
}
inline unsigned atomicInc(unsigned *p, unsigned limit) {
  unsigned old = *p;
  *p = old >= limit ? 0 : old + 1;
  return old;
}
template <class T, class V>
inline T atomicExch(T *p, V v) {
  T old = *p;
  *p = (T)v;
  return old;
}
template <class T, class C, class V>
inline T atomicCAS(T *p, C expected, V v) {
  T old = *p;
  if (old == (T)expected) *p = (T)v;
  return old;
}

#include "arithmetic.h"
