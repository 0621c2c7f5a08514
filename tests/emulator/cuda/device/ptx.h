// PTX instructions as functions: operands in the order of the instruction, results first.
// `instructions.py` says which instruction becomes which function.
#pragma once
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "async.h"
#include "bytes.h"
#include "matrix.h"
#include "memory.h"
#include "tensor.h"
#include "threads.h"
#include "warp.h"
#include "warpgroup.h"

namespace ptx {

using emu::Bfloat;
using emu::Half;
using emu::bits;

// Where an operand in brackets points: 32 bits are of the shared window.
struct Shared {
  uint32_t at;
  operator uint32_t() const { return at; }
  char *get(unsigned bytes, const char *name) const {
    return emu::shared_pointer(at, bytes, bytes, name);
  }
};
struct Global {
  char *at;
  operator const void *() const { return at; }
  char *get(unsigned bytes, const char *name) const {
    if ((uintptr_t)at % bytes)
      emu::fail_as(emu::kMisaligned, "%s: %p is not a multiple of %u", name, (void *)at, bytes);
    return at;
  }
};
inline Shared address(uint32_t at, int offset = 0) { return {at + offset}; }
inline Shared address(int at, int offset = 0) { return {(uint32_t)at + offset}; }
inline Global address(const void *at, int offset = 0) { return {(char *)at + offset}; }
inline Global address(uint64_t at, int offset = 0) { return {(char *)at + offset}; }
inline Global address(int64_t at, int offset = 0) { return {(char *)at + offset}; }
inline Global address(unsigned long long at, int offset = 0) { return {(char *)at + offset}; }
inline Global address(long long at, int offset = 0) { return {(char *)at + offset}; }

// Stores a result in whatever variable the code has: registers know no types.
template <class To, class From>
inline void put(To &to, From from) {
  if constexpr (sizeof(To) == sizeof(From))
    memcpy((void *)&to, &from, sizeof(To));
  else
    to = (To)from;
}
template <class To, class From>
inline To as(const From &from) {
  if constexpr (sizeof(To) == sizeof(From))
    return bits<To>(from);
  else
    return (To)from;
}
struct Sink {
  template <class T>
  void operator=(T) {}
};
static Sink sink;
template <class From>
inline void put(Sink &, From) {}

// ld, st: `T` is the instruction's type, one operand for each element.
template <class T, class Where>
inline void load(const char *name, Where where, T *values, int count) {
  memcpy(values, where.get(sizeof(T) * count, name), sizeof(T) * count);
}
template <class T, class A, class Where>
inline void ld1(A &a, Where where) {
  T v[1];
  load(("ld"), where, v, 1);
  put(a, v[0]);
}
template <class T, class A, class B, class Where>
inline void ld2(A &a, B &b, Where where) {
  T v[2];
  load("ld", where, v, 2);
  put(a, v[0]), put(b, v[1]);
}
template <class T, class A, class B, class C, class D, class Where>
inline void ld4(A &a, B &b, C &c, D &d, Where where) {
  T v[4];
  load("ld", where, v, 4);
  put(a, v[0]), put(b, v[1]), put(c, v[2]), put(d, v[3]);
}
template <class T, class Where, class... In>
inline void st(Where where, const In &...in) {
  const T v[] = {as<T>(in)...};
  memcpy(where.get(sizeof(v), "st"), v, sizeof(v));
}
// Loads that another block or thread may answer: the poller lets it run.
template <class T, class A, class Where>
inline void ld_poll(A &a, Where where) {
  ld1<T>(a, where);
  emu::poll("ld");
}

// atom, red.
enum AtomicOp { kAtomAdd, kAtomMin, kAtomMax, kAtomAnd, kAtomOr, kAtomXor, kAtomExch, kAtomInc };
template <class T>
inline T atomic_of(AtomicOp op, T old, T v) {
  if constexpr (std::is_integral<T>::value) {
    if (op == kAtomAnd) return old & v;
    if (op == kAtomOr) return old | v;
    if (op == kAtomXor) return old ^ v;
    if (op == kAtomInc) return old >= v ? 0 : old + 1;
  }
  if (op == kAtomMin) return old < v ? old : v;
  if (op == kAtomMax) return old > v ? old : v;
  return op == kAtomExch ? v : old + v;
}
template <class T, AtomicOp op, class A, class Where, class V>
inline void atom(A &a, Where where, const V &value) {
  char *at = where.get(sizeof(T), "atom");
  T old;
  memcpy(&old, at, sizeof(T));
  T next = atomic_of(op, old, as<T>(value));
  memcpy(at, &next, sizeof(T));
  put(a, old);
}
template <class T, AtomicOp op, class Where, class V>
inline void red(Where where, const V &value) {
  atom<T, op>(sink, where, value);
}
template <class T, class A, class Where, class V>
inline void cas(A &a, Where where, const V &expected, const V &value) {
  char *at = where.get(sizeof(T), "atom.cas");
  T old, next = as<T>(value);
  memcpy(&old, at, sizeof(T));
  if (old == as<T>(expected)) memcpy(at, &next, sizeof(T));
  put(a, old);
}

// Matrices.
template <bool transposed, class... Out>
inline void ldmatrix_to(Shared where, Out &...out) {
  uint32_t values[4];
  emu::load_matrices(sizeof...(Out), transposed, values, where);
  int i = 0;
  (put(out, values[i++]), ...);
}
template <bool T, class A>
inline void ldmatrix1(A &a, Shared where) { ldmatrix_to<T>(where, a); }
template <bool T, class A, class B>
inline void ldmatrix2(A &a, B &b, Shared where) { ldmatrix_to<T>(where, a, b); }
template <bool T, class A, class B, class C, class D>
inline void ldmatrix4(A &a, B &b, C &c, D &d, Shared where) { ldmatrix_to<T>(where, a, b, c, d); }
template <bool transposed, class... In>
inline void stmatrix(Shared where, const In &...in) {
  const uint32_t values[] = {as<uint32_t>(in)...};
  emu::store_matrices(sizeof...(In), transposed, values, where);
}
template <class A, class B>
inline void movmatrix(A &d, const B &a) { put(d, emu::transpose_matrix(as<uint32_t>(a))); }

// Operands: four of D, `A_REGS` of A, half as many of B, four of C.
template <int K, emu::Element A_KIND, emu::Element B_KIND, class D, class... In>
inline void mma(D &d0, D &d1, D &d2, D &d3, const In &...in) {
  const uint32_t v[] = {as<uint32_t>(in)...};
  constexpr int n = (sizeof...(In) - 4) / 3;
  uint32_t d[4];
  emu::mma(K, A_KIND, B_KIND, d, v, v + 2 * n, v + 3 * n);
  put(d0, d[0]), put(d1, d[1]), put(d2, d[2]), put(d3, d[3]);
}

// Asynchronous copies.
inline void cp_async(Shared to, Global from, int bytes, int valid) {
  emu::copy_async(to, from, bytes, valid);
}
inline void cp_async(Shared to, Global from, int bytes) { emu::copy_async(to, from, bytes, bytes); }
inline void mbarrier_init(Shared at, uint32_t count) { emu::mbarrier_init(at, count); }
inline void mbarrier_inval(Shared at) { emu::mbarrier_invalidate(at); }
template <class A>
inline void mbarrier_arrive(A &token, Shared at, uint32_t count = 1) {
  put(token, emu::mbarrier_arrive(at, count));
}
template <class A>
inline void mbarrier_arrive_expect(A &token, Shared at, uint32_t bytes) {
  put(token, emu::mbarrier_expect(at, bytes, true));
}
inline void mbarrier_expect(Shared at, uint32_t bytes) { emu::mbarrier_expect(at, bytes, false); }
template <class P, class S>
inline void mbarrier_try(P &done, Shared at, S phase, uint32_t = 0) {
  done = emu::mbarrier_try(at, (uint32_t)phase);
}
inline void bulk_load(Shared to, Global from, uint32_t bytes, Shared mbarrier) {
  emu::copy_bulk(to, from, bytes, mbarrier);
}

// Operands: destination, tensor map, coordinates, mbarrier.
template <int rank, class... Rest>
inline void tensor_load(Shared to, Global map, Rest... rest) {
  const int values[] = {(int)rest...};
  emu::copy_tensor(rank, to, map, values, (uint32_t)values[rank]);
}
// Operands: accumulators, four registers or a descriptor of A, a descriptor of B, whether to
// accumulate, two scales, transpositions of what is in shared memory.
template <emu::Element KIND, int N, class... All>
inline void wgmma(All &&...all) {
  constexpr bool registers = sizeof...(All) == N / 2 + 9;
  constexpr int a = N / 2, b = a + (registers ? 4 : 1);
  auto every = std::tie(all...);
  emu::Product p = {};
  p.kind = KIND, p.columns = N, p.a_in_registers = registers;
  [&]<size_t... i>(std::index_sequence<i...>) {
    static_assert(((sizeof(std::get<i>(every)) == 4) && ...), "accumulators are of 32 bits");
    ((p.d[i] = (float *)&std::get<i>(every)), ...);
  }(std::make_index_sequence<N / 2>());
  if constexpr (registers) {
    p.a[0] = as<uint32_t>(std::get<a>(every)), p.a[1] = as<uint32_t>(std::get<a + 1>(every));
    p.a[2] = as<uint32_t>(std::get<a + 2>(every)), p.a[3] = as<uint32_t>(std::get<a + 3>(every));
  } else {
    p.a_at = std::get<a>(every);
    p.a_turned = (bool)std::get<b + 4>(every);
  }
  p.b_at = std::get<b>(every);
  p.accumulates = (bool)std::get<b + 1>(every);
  p.b_turned = (bool)std::get<sizeof...(All) - 1>(every);
  if ((int)std::get<b + 2>(every) != 1 || (int)std::get<b + 3>(every) != 1)
    emu::fail("wgmma: scales other than 1 are not emulated");
  emu::wgmma(p);
}

// Barriers and warps.
inline void bar_sync(uint32_t id, uint32_t count = 0) { emu::barrier(id, count); }
template <class A, class P>
inline void elect(A &leader, P &elected, uint32_t mask) {
  int first = __builtin_ctz(emu::ballot("elect.sync", mask, true));
  put(leader, (uint32_t)first);
  elected = emu::self->lane == first;
}
// The clamp's upper bits are 32 minus the width of a group.
inline int width_of(uint32_t clamp) { return 32 - (int)(clamp >> 8 & 31); }
template <class D, class A>
inline void shfl_idx(D &d, const A &a, int from, uint32_t clamp, uint32_t mask) {
  int lane = emu::lane_at(from, width_of(clamp));
  put(d, emu::shuffle_of("shfl.idx", mask, as<uint32_t>(a), lane));
}
template <class D, class A>
inline void shfl_bfly(D &d, const A &a, int from, uint32_t clamp, uint32_t mask) {
  int lane = emu::lane_xor(from, width_of(clamp));
  put(d, emu::shuffle_of("shfl.bfly", mask, as<uint32_t>(a), lane));
}
template <class D, class A>
inline void shfl_down(D &d, const A &a, int from, uint32_t clamp, uint32_t mask) {
  int lane = emu::lane_down(from, width_of(clamp));
  put(d, emu::shuffle_of("shfl.down", mask, as<uint32_t>(a), lane));
}
template <class D, class A>
inline void shfl_up(D &d, const A &a, int from, uint32_t clamp, uint32_t mask) {
  int lane = emu::lane_up(from, width_of(clamp));
  put(d, emu::shuffle_of("shfl.up", mask, as<uint32_t>(a), lane));
}

// Registers.
static uint64_t clock;
template <class D, class A>
inline void mov(D &d, const A &a) {
  put(d, a);
}
// mov between a register and its parts, the lowest first.
template <class D, class... In>
inline void join(D &d, const In &...in) {
  constexpr size_t each = sizeof(D) / sizeof...(In);
  char *at = (char *)&d;
  ((memcpy(at, &in, each), at += each), ...);
}
template <class... All>
inline void part(All &...all) {
  constexpr int n = sizeof...(All) - 1;
  const void *from = nullptr;
  void *to[] = {(void *)&all...};
  size_t size = 0;
  ((from = &all, size = sizeof(all)), ...);
  char bytes[16];
  memcpy(bytes, from, size);
  for (int i = 0; i < n; ++i) memcpy(to[i], bytes + i * (size / n), size / n);
}

}  // namespace ptx

#include "words.h"
