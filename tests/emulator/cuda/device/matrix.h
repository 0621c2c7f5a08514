// Matrix instructions of a warp: ldmatrix, stmatrix, movmatrix, mma.
#pragma once
#include "meetings.h"

namespace emu {

// `count` 8x8 matrices of 16-bit values; lane 8 * i + r holds the address of row r of matrix i.
void load_matrices(int count, bool transposed, uint32_t *out, uint32_t address);
void store_matrices(int count, bool transposed, const uint32_t *in, uint32_t address);
uint32_t transpose_matrix(uint32_t in);

// Kinds of operands of mma.
enum Element { kF16, kBf16, kTf32, kS8, kU8, kE4m3, kE5m2 };

// D = A B + C of 16 x 8 with k values in between, fragments as the PTX ISA lays them out: `a` and
// `b` are registers of 32 bits, c and d four floats or integers.
void mma(int k, Element a_kind, Element b_kind, uint32_t *d, const uint32_t *a, const uint32_t *b,
         const uint32_t *c);

}  // namespace emu
