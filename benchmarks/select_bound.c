/* Two plain passes over rows of scores: the least that choosing the best of them can be.
 *
 * The first pass takes the maximum, as a stand-in for whatever finds a bound; the second lists the
 * indices of scores that reach a bound, which is given here.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <time.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, CHAINS = 4 };
#else
enum { LANES = 8, CHAINS = 4 };
#endif

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float greatest(const float *scores, int64_t count) {
#if defined(__AVX512F__)
  __m512 chain[CHAINS];
  for (int j = 0; j < CHAINS; ++j) chain[j] = _mm512_set1_ps(-INFINITY);
  for (int64_t i = 0; i < count; i += CHAINS * LANES) {
#pragma GCC unroll 4
    for (int j = 0; j < CHAINS; ++j)
      chain[j] = _mm512_max_ps(chain[j], _mm512_loadu_ps(scores + i + j * LANES));
  }
  return _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(chain[0], chain[1]), _mm512_max_ps(chain[2], chain[3])));
#elif defined(__AVX2__)
  __m256 chain[CHAINS];
  for (int j = 0; j < CHAINS; ++j) chain[j] = _mm256_set1_ps(-INFINITY);
  for (int64_t i = 0; i < count; i += CHAINS * LANES) {
#pragma GCC unroll 4
    for (int j = 0; j < CHAINS; ++j)
      chain[j] = _mm256_max_ps(chain[j], _mm256_loadu_ps(scores + i + j * LANES));
  }
  float lanes[LANES], most = -INFINITY;
  _mm256_storeu_ps(lanes, _mm256_max_ps(_mm256_max_ps(chain[0], chain[1]),
                                        _mm256_max_ps(chain[2], chain[3])));
  for (int j = 0; j < LANES; ++j) most = lanes[j] > most ? lanes[j] : most;
  return most;
#else
  float most = -INFINITY;
  for (int64_t i = 0; i < count; ++i) most = scores[i] > most ? scores[i] : most;
  return most;
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
/* Of every mask of lanes: the numbers of those that it has. */
static uint8_t orders[1 << LANES][LANES] __attribute__((aligned(64)));

__attribute__((constructor)) static void fill_orders(void) {
  for (int mask = 0; mask < 1 << LANES; ++mask)
    for (int lane = 0, at = 0; lane < LANES; ++lane)
      if (mask >> lane & 1) orders[mask][at++] = (uint8_t)lane;
}
#endif

/* `indices` has room for a vector beyond the listed ones. */
static int64_t list(const float *scores, int64_t count, float bound, int32_t *indices) {
  int64_t listed = 0;
#if defined(__AVX512F__)
  __m512 least = _mm512_set1_ps(bound);
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t i = 0; i < count; i += LANES) {
    __mmask16 chosen = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i), least, _CMP_GE_OQ);
    _mm512_storeu_si512(indices + listed, _mm512_maskz_compress_epi32(chosen, index));
    listed += __builtin_popcount(chosen);
    index = _mm512_add_epi32(index, _mm512_set1_epi32(LANES));
  }
#elif defined(__AVX2__)
  __m256 least = _mm256_set1_ps(bound);
  __m256i first = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int64_t i = 0; i < count; i += LANES) {
    __m256 reached = _mm256_cmp_ps(_mm256_loadu_ps(scores + i), least, _CMP_GE_OQ);
    unsigned chosen = (unsigned)_mm256_movemask_ps(reached);
    __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)orders[chosen]));
    _mm256_storeu_si256((__m256i *)(indices + listed), _mm256_add_epi32(first, order));
    listed += __builtin_popcount(chosen);
    first = _mm256_add_epi32(first, _mm256_set1_epi32(LANES));
  }
#else
  for (int64_t i = 0; i < count; ++i) {
    indices[listed] = (int32_t)i;
    listed += scores[i] >= bound;
  }
#endif
  return listed;
}

/* Return the seconds of both passes over all rows, the least of `repeats` times. `count` is a
 * multiple of 64; what was listed and the maxima are added to `sink`. */
double two_passes(const float *scores, const float *bounds, int64_t rows, int64_t count,
                  int32_t *indices, int repeats, double *sink) {
  double least = INFINITY;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    double start = now();
    for (int64_t row = 0; row < rows; ++row) {
      *sink += greatest(scores + row * count, count);
      *sink += (double)list(scores + row * count, count, bounds[row], indices);
    }
    double seconds = now() - start;
    if (seconds < least) least = seconds;
  }
  return least;
}
