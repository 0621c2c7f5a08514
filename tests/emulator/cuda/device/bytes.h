// Floats of 8 bits: e4m3, without infinities, and e5m2.
#pragma once
#include "types.h"

namespace emu {

inline float from_byte(uint32_t code, int exponent_bits) {
  int mantissa_bits = 7 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  int exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1);
  int mantissa = code & ((1 << mantissa_bits) - 1);
  float sign = code & 0x80 ? -1.f : 1.f;
  if (exponent_bits == 4 && (code & 0x7f) == 0x7f) return NAN;
  if (exponent_bits == 5 && exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (!exponent) return sign * ldexpf((float)mantissa, 1 - bias - mantissa_bits);
  return sign * ldexpf((float)(mantissa + (1 << mantissa_bits)), exponent - bias - mantissa_bits);
}

// Rounds to nearest even; what is too large becomes the largest number (.satfinite).
inline uint32_t to_byte(float value, int exponent_bits) {
  uint32_t sign = std::signbit(value) ? 0x80 : 0, largest = exponent_bits == 4 ? 0x7e : 0x7b;
  if (std::isnan(value)) return 0x7f;
  // Codes of one sign are in order, so that the nearest one is beside the first not below.
  float size = fabsf(value);
  uint32_t low = 0, high = largest;
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    if (from_byte(middle, exponent_bits) < size) low = middle + 1; else high = middle;
  }
  float above = from_byte(low, exponent_bits);
  if (low == 0 || above <= size) return sign | low;
  float below = from_byte(low - 1, exponent_bits), half = (above - below) / 2;
  bool down = size - below < half || (size - below == half && (low - 1) % 2 == 0);
  return sign | (low - down);
}

}  // namespace emu
