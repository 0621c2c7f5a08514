#include "matrix.h"

#include "bytes.h"
#include "memory.h"

namespace emu {
namespace {

struct Rows {
  uint32_t address, count, transposed;
  uint32_t values[4];
};

struct Operands {
  int k;
  Element a_kind, b_kind;
  uint32_t a[4], b[2], c[4];
};

int width_of(Element kind) { return kind == kTf32 ? 32 : kind <= kBf16 ? 16 : 8; }

float element(Element kind, uint32_t reg, int i) {
  switch (kind) {
    case kF16: return Half::to(reg >> 16 * i & 0xffff);
    case kBf16: return Bfloat::to(reg >> 16 * i & 0xffff);
    case kTf32: return bits<float>(reg & 0xffffe000u);
    case kS8: return (float)(int8_t)(reg >> 8 * i);
    case kU8: return (float)(uint8_t)(reg >> 8 * i);
    case kE4m3: return from_byte(reg >> 8 * i & 0xff, 4);
    default: return from_byte(reg >> 8 * i & 0xff, 5);
  }
}

// A register holds `per` neighbours along k of one row of A or one column of B. Four lanes share a
// row; registers of A go down 8 rows first, then along k by 4 * per.
template <class T>
void multiply(const void *const *ins, void *const *outs) {
  const auto &first = *(const Operands *)ins[0];
  int k = first.k, per = 32 / width_of(first.a_kind);
  T a[16][32], b[32][8];
  for (int l = 0; l < kWarp; ++l) {
    const auto &in = *(const Operands *)ins[l];
    int row = l / 4, column = l % 4 * per;
    for (int r = 0; r < k / (4 * per); ++r)
      for (int i = 0; i < per; ++i) {
        a[row][r * 4 * per + column + i] = (T)element(in.a_kind, in.a[2 * r], i);
        a[row + 8][r * 4 * per + column + i] = (T)element(in.a_kind, in.a[2 * r + 1], i);
        b[r * 4 * per + column + i][row] = (T)element(in.b_kind, in.b[r], i);
      }
  }
  T sums[16][8] = {};
  for (int r = 0; r < 16; ++r)
    for (int i = 0; i < k; ++i)
      for (int c = 0; c < 8; ++c) sums[r][c] += a[r][i] * b[i][c];
  for (int l = 0; l < kWarp; ++l)
    for (int i = 0; i < 4; ++i) {
      T c = bits<T>(((const Operands *)ins[l])->c[i]);
      T d = c + sums[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
      ((uint32_t *)outs[l])[i] = bits<uint32_t>(d);
    }
}

void load(const void *const *ins, void *const *outs) {
  const auto &first = *(const Rows *)ins[0];
  for (uint32_t m = 0; m < first.count; ++m) {
    uint16_t rows[8][8];
    for (int r = 0; r < 8; ++r)
      memcpy(rows[r], shared_pointer(((const Rows *)ins[8 * m + r])->address, 16, 16, "ldmatrix"),
             16);
    for (int l = 0; l < kWarp; ++l) {
      int r = l / 4, c = l % 4 * 2;
      uint32_t low = first.transposed ? rows[c][r] : rows[r][c];
      uint32_t high = first.transposed ? rows[c + 1][r] : rows[r][c + 1];
      ((uint32_t *)outs[l])[m] = low | high << 16;
    }
  }
}

void store(const void *const *ins, void *const *) {
  const auto &first = *(const Rows *)ins[0];
  for (uint32_t m = 0; m < first.count; ++m) {
    uint16_t rows[8][8];
    for (int l = 0; l < kWarp; ++l)
      for (int h = 0; h < 2; ++h) {
        int r = l / 4, c = l % 4 * 2 + h;
        uint16_t value = (uint16_t)(((const Rows *)ins[l])->values[m] >> 16 * h);
        (first.transposed ? rows[c][r] : rows[r][c]) = value;
      }
    for (int r = 0; r < 8; ++r)
      memcpy(shared_pointer(((const Rows *)ins[8 * m + r])->address, 16, 16, "stmatrix"), rows[r],
             16);
  }
}

void transpose(const void *const *ins, void *const *outs) {
  auto at = [&](int r, int c) -> uint32_t {
    return *(const uint32_t *)ins[4 * r + c / 2] >> 16 * (c % 2) & 0xffff;
  };
  for (int l = 0; l < kWarp; ++l) {
    int r = l / 4, c = l % 4 * 2;
    *(uint32_t *)outs[l] = at(c, r) | at(c + 1, r) << 16;
  }
}

}  // namespace

void load_matrices(int count, bool transposed, uint32_t *out, uint32_t address) {
  Rows in = {address, (uint32_t)count, transposed, {}};
  meet_all("ldmatrix", &in, out, load);
}

void store_matrices(int count, bool transposed, const uint32_t *values, uint32_t address) {
  Rows in = {address, (uint32_t)count, transposed, {}};
  for (int i = 0; i < count; ++i) in.values[i] = values[i];
  meet_all("stmatrix", &in, nullptr, store);
}

uint32_t transpose_matrix(uint32_t in) {
  uint32_t out;
  meet_all("movmatrix", &in, &out, transpose);
  return out;
}

void mma(int k, Element a_kind, Element b_kind, uint32_t *d, const uint32_t *a, const uint32_t *b,
         const uint32_t *c) {
  Operands in = {k, a_kind, b_kind, {}, {}, {}};
  int registers = k * width_of(a_kind) / 128;  // of B; A has twice as many
  for (int i = 0; i < 2 * registers; ++i) in.a[i] = a[i];
  for (int i = 0; i < registers; ++i) in.b[i] = b[i];
  for (int i = 0; i < 4; ++i) in.c[i] = c[i];
  bool integers = a_kind == kS8 || a_kind == kU8;
  meet_all("mma", &in, d, integers ? multiply<int32_t> : multiply<float>);
}

}  // namespace emu
