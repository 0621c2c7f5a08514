// Calls decode attention of an exported library without Python, on a ragged batch.
//
//   attention QUERY_HEADS KV_HEADS HEAD_DIM BATCH CAPACITY     sizes of the library, bfloat16, HND
//
// README.md says how to build it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"

namespace {

using Bits = uint16_t;  // bfloat16: the upper half of a float

float value(Bits bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float result;
  std::memcpy(&result, &wide, sizeof(result));
  return result;
}

Bits rounded(float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, sizeof(wide));
  return static_cast<Bits>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

struct Sizes {
  int64_t query_heads, kv_heads, head_dim, batch, capacity;
};

// out = softmax(q k / sqrt(head_dim)) v over the first `length` tokens: one query head.
std::vector<double> reference(const Sizes &s, const Bits *q, const Bits *k, const Bits *v,
                              int64_t length) {
  std::vector<double> out(s.head_dim), scores(length);
  double most = -INFINITY, total = 0;
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t d = 0; d < s.head_dim; ++d) scores[t] += double(value(q[d])) * value(k[t * s.head_dim + d]);
    scores[t] /= std::sqrt(double(s.head_dim));
    most = std::max(most, scores[t]);
  }
  for (double &score : scores) total += score = std::exp(score - most);
  for (int64_t t = 0; t < length; ++t)
    for (int64_t d = 0; d < s.head_dim; ++d)
      out[d] += scores[t] / total * value(v[t * s.head_dim + d]);
  return out;
}

std::vector<Bits> random_rows(int64_t count, std::mt19937 &random) {
  std::normal_distribution<float> normal;
  std::vector<Bits> rows(count);
  for (Bits &bits : rows) bits = rounded(normal(random));
  return rows;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 6)
    return std::fprintf(stderr, "usage: attention QUERY_HEADS KV_HEADS HEAD_DIM BATCH CAPACITY\n"), 2;
  if (wattune_abi_version() != WATTUNE_ABI_VERSION) return std::puts("header and library differ"), 1;
  Sizes s = {std::atoll(argv[1]), std::atoll(argv[2]), std::atoll(argv[3]), std::atoll(argv[4]),
             std::atoll(argv[5])};
  const int64_t rows = s.capacity * s.head_dim;  // of one head of one request

  std::mt19937 random(0);
  std::vector<Bits> q = random_rows(s.batch * s.query_heads * s.head_dim, random);
  std::vector<Bits> k = random_rows(s.batch * s.kv_heads * rows, random);
  std::vector<Bits> v = random_rows(s.batch * s.kv_heads * rows, random);
  std::vector<Bits> out(q.size());
  std::vector<int32_t> lengths(s.batch);
  for (int64_t b = 0; b < s.batch; ++b) {
    lengths[b] = static_cast<int32_t>(b ? random() % (s.capacity + 1) : s.capacity);
    // Whatever lies beyond a request's length is never looked at.
    for (int64_t h = 0; h < s.kv_heads; ++h)
      for (int64_t i = lengths[b] * s.head_dim; i < rows; ++i)
        k[(b * s.kv_heads + h) * rows + i] = v[(b * s.kv_heads + h) * rows + i] = 0x7fc0;  // NaN
  }

  int64_t q_shape[] = {s.batch, 1, s.query_heads, s.head_dim}, batch[] = {s.batch};
  int64_t cache_shape[] = {s.batch, s.kv_heads, s.capacity, s.head_dim};
  DLTensor queries = wattune_tensor(q.data(), 4, q_shape, kDLBfloat, 16);
  DLTensor keys = wattune_tensor(k.data(), 4, cache_shape, kDLBfloat, 16);
  DLTensor values = wattune_tensor(v.data(), 4, cache_shape, kDLBfloat, 16);
  DLTensor seq_lens = wattune_tensor(lengths.data(), 1, batch, kDLInt, 32);
  DLTensor output = wattune_tensor(out.data(), 4, q_shape, kDLBfloat, 16);
  // What this variant does not have (page_table, sinks, lse) is null; so may be the workspace. Where
  // a library has several variants of these tensors (other windows), each has its own function.
  if (wattune_decode_attention(&queries, &keys, &values, &seq_lens, nullptr, nullptr, nullptr,
                               &output, nullptr)) {
    std::fprintf(stderr, "decode_attention: %s\n", wattune_last_error());
    return 1;
  }

  double worst = 0;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.query_heads; ++h) {
      const int64_t head = (b * s.kv_heads + h / (s.query_heads / s.kv_heads)) * rows;
      const int64_t row = (b * s.query_heads + h) * s.head_dim;
      std::vector<double> expected = reference(s, &q[row], &k[head], &v[head], lengths[b]);
      for (int64_t d = 0; d < s.head_dim; ++d) {
        const double error = std::fabs(value(out[row + d]) - expected[d]);
        worst = std::isnan(error) ? INFINITY : std::max(worst, error);
      }
    }
  std::printf("%lld requests, up to %lld tokens: largest error %.1e\n",
              static_cast<long long>(s.batch), static_cast<long long>(s.capacity), worst);

  // A wrong call is an error with a reason, never a crash.
  lengths[0] = static_cast<int32_t>(s.capacity + 1);
  if (!wattune_decode_attention(&queries, &keys, &values, &seq_lens, nullptr, nullptr, nullptr,
                                &output, nullptr))
    return 1;
  std::printf("as it should be: %s\n", wattune_last_error());
  return worst < 0.02 ? 0 : 1;
}
