// Routes tokens to experts from an exported library without Python, compares, and says what a call
// costs: sigmoid scores and a bias, logits that are new at every call.
//
//   routing EXPERTS TOP_K TOKENS      sizes that the library was compiled for, float32
//
// README.md says how to build it.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "kernels.h"

namespace {

using Clock = std::chrono::steady_clock;

// Distinct batches: a branch predictor learns the few that a loop would repeat.
constexpr int64_t kTokens = 8192;
constexpr int kRuns = 101;

int fail(const char *what) {
  std::fprintf(stderr, "%s: %s\n", what, wattune_last_error());
  return 1;
}

// The experts of one row of logits: greatest sum of score and bias first, the lowest id of equals.
std::vector<int32_t> reference(const float *logits, const std::vector<float> &bias, int64_t top_k) {
  std::vector<float> choice(bias.size());
  for (size_t e = 0; e < bias.size(); ++e)
    choice[e] = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(logits[e])))) + bias[e];
  std::vector<int32_t> order(bias.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return choice[a] > choice[b]; });
  order.resize(top_k);
  return order;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: routing EXPERTS TOP_K TOKENS\n"), 2;
  int64_t experts = std::atoll(argv[1]), top_k = std::atoll(argv[2]), tokens = std::atoll(argv[3]);
  if (wattune_abi_version() != WATTUNE_ABI_VERSION) return std::puts("header and library differ"), 1;
  if (wattune_check_cpu()) return fail("this CPU");

  int64_t batches = std::max<int64_t>(1, kTokens / tokens), rows = batches * tokens;
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  std::vector<float> logits(rows * experts), bias(experts), weights(rows * top_k);
  std::vector<int32_t> ids(rows * top_k);
  for (float &value : logits) value = normal(random);
  for (float &value : bias) value = normal(random);

  int64_t in_shape[] = {tokens, experts}, out_shape[] = {tokens, top_k}, bias_shape[] = {experts};
  DLTensor bias_tensor = wattune_tensor(bias.data(), 1, bias_shape, kDLFloat, 32);
  std::vector<DLTensor> in, weight_out, id_out;
  for (int64_t b = 0; b < batches; ++b) {
    in.push_back(wattune_tensor(&logits[b * tokens * experts], 2, in_shape, kDLFloat, 32));
    weight_out.push_back(wattune_tensor(&weights[b * tokens * top_k], 2, out_shape, kDLFloat, 32));
    id_out.push_back(wattune_tensor(&ids[b * tokens * top_k], 2, out_shape, kDLInt, 32));
  }

  // Each run calls every batch once; without a workspace the library uses this thread's own.
  std::vector<double> nanoseconds;
  for (int run = 0; run < kRuns; ++run) {
    Clock::time_point start = Clock::now();
    for (int64_t b = 0; b < batches; ++b)
      if (wattune_moe_topk(&in[b], &bias_tensor, nullptr, &weight_out[b], &id_out[b]))
        return fail("moe_topk");
    std::chrono::duration<double, std::nano> time = Clock::now() - start;
    nanoseconds.push_back(time.count() / static_cast<double>(batches));
  }
  std::sort(nanoseconds.begin(), nanoseconds.end());

  int64_t wrong = 0;
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<int32_t> expected = reference(&logits[row * experts], bias, top_k);
    wrong += !std::equal(expected.begin(), expected.end(), &ids[row * top_k]);
  }
  std::printf("%lld x %lld x %lld: %.0f ns a call, least %.0f, %lld of %lld tokens wrong\n",
              static_cast<long long>(tokens), static_cast<long long>(experts),
              static_cast<long long>(top_k), nanoseconds[kRuns / 2], nanoseconds[0],
              static_cast<long long>(wrong), static_cast<long long>(rows));
  // Choices nearer than a last bit of float32 may change places.
  return wrong * 1000 <= rows ? 0 : 1;
}
