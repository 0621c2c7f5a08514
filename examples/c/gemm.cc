// Calls an exported library without Python: packs ternary weights, multiplies, compares.
//
//   gemm OUT IN TOKENS      sizes that the library was compiled for, float32
//
// README.md says how to build it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "kernels.h"

namespace {

int fail(const char *what) {
  std::fprintf(stderr, "%s: %s\n", what, wattune_last_error());
  return 1;
}

// Packed weights must start at a multiple of 64 bytes.
std::unique_ptr<void, decltype(&std::free)> aligned(int64_t bytes) {
  return {std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)), &std::free};
}

// y = (q @ W^T) * scale / s with q = clip(rint(x * s)), s = 127 / max|x|: one row.
std::vector<double> reference(const float *x, const std::vector<int8_t> &weights, int64_t out,
                              int64_t in, float scale) {
  float most = 1e-5f;
  for (int64_t k = 0; k < in; ++k) most = std::max(most, std::fabs(x[k]));
  const float s = 127.0f / most;
  std::vector<double> y(out);
  for (int64_t n = 0; n < out; ++n) {
    int64_t sum = 0;
    for (int64_t k = 0; k < in; ++k)
      sum += std::lrint(std::clamp(std::nearbyint(x[k] * s), -128.0f, 127.0f)) * weights[n * in + k];
    y[n] = static_cast<double>(sum) * scale / s;
  }
  return y;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: gemm OUT IN TOKENS\n"), 2;
  int64_t out = std::atoll(argv[1]), in = std::atoll(argv[2]), tokens = std::atoll(argv[3]);
  if (wattune_abi_version() != WATTUNE_ABI_VERSION) return std::puts("header and library differ"), 1;
  if (wattune_check_cpu()) return fail("this CPU");

  std::mt19937 random(0);
  std::vector<int8_t> weights(out * in);
  for (int8_t &w : weights) w = static_cast<int8_t>(random() % 3) - 1;
  std::vector<float> x(tokens * in), y(tokens * out);
  std::normal_distribution<float> normal;
  for (float &value : x) value = normal(random);
  float scale = 0.5f;

  int64_t bytes = wattune_ternary_gemm_weight_bytes(out, in);
  if (bytes < 0) return fail("weight_bytes");
  auto blob = aligned(bytes);
  int64_t source_shape[] = {out, in}, blob_shape[] = {bytes}, one[] = {1};
  int64_t x_shape[] = {tokens, in}, y_shape[] = {tokens, out};
  DLTensor source = wattune_tensor(weights.data(), 2, source_shape, kDLInt, 8);
  DLTensor weight = wattune_tensor(blob.get(), 1, blob_shape, kDLUInt, 8);
  if (wattune_ternary_gemm_pack_weight(&source, &weight)) return fail("pack");

  DLTensor weight_scale = wattune_tensor(&scale, 1, one, kDLFloat, 32);
  DLTensor input = wattune_tensor(x.data(), 2, x_shape, kDLFloat, 32);
  DLTensor output = wattune_tensor(y.data(), 2, y_shape, kDLFloat, 32);
  // x_scale belongs to int8 inputs; without a workspace the library uses this thread's own.
  if (wattune_ternary_gemm(&input, nullptr, &weight, &weight_scale, nullptr, &output))
    return fail("ternary_gemm");

  double worst = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<double> expected = reference(&x[t * in], weights, out, in, scale);
    for (int64_t n = 0; n < out; ++n)
      worst = std::max(worst, std::fabs(y[t * out + n] - expected[n]) /
                                  std::max(1e-6, std::fabs(expected[n])));
  }
  std::printf("%lld x %lld x %lld: largest relative error %.1e\n", static_cast<long long>(tokens),
              static_cast<long long>(out), static_cast<long long>(in), worst);

  // A wrong call is an error with a reason, never a crash.
  input.dtype.bits = 64;
  if (!wattune_ternary_gemm(&input, nullptr, &weight, &weight_scale, nullptr, &output)) return 1;
  std::printf("as it should be: %s\n", wattune_last_error());
  return worst < 1e-5 ? 0 : 1;
}
