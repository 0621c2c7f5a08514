/* An exact selection of the best scores of rows, written by hand: what a schedule could reach.
 *
 * Scores become 16-bit keys that order like them. The greatest key that `most` scores reach is
 * found by false position, a step of every row in turn; one pass lists what reaches it, and of the
 * scores that share the least key the worst are dropped.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#if defined(__AVX2__)
#include <immintrin.h>

#if defined(__AVX512BW__)
enum { ROWS = 8, SCORES = 8192, LANES = 16, KEYS = 32, SLOW = 4 };
#else
enum { ROWS = 8, SCORES = 8192, LANES = 8, KEYS = 16, SLOW = 4 };
#endif

typedef struct {
  int low, high, reach_low, moved; /* the wanted key is low <= key < high */
  float lead, lag;
} Bracket;

static int16_t keys[ROWS][SCORES] __attribute__((aligned(64)));

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The upper halves of floats, as integers that order like them. */
static inline int ordered(int half) { return (int16_t)(half ^ ((half >> 15) & 0x7fff)); }

/* The least float of a key. */
static float least_of(int key) {
  uint32_t bits = (uint32_t)(uint16_t)ordered(key) << 16 | (key < 0 ? 0xffff : 0);
  float score;
  memcpy(&score, &bits, sizeof score);
  return score;
}

static int key_of(float score) {
  uint32_t bits;
  memcpy(&bits, &score, sizeof bits);
  return ordered((int16_t)(bits >> 16));
}

static Bracket bracket(int low, int high, int64_t count, int most) {
  return (Bracket){low, high + 1, (int)count, 0, (float)(count - most), (float)most};
}

#if defined(__AVX512BW__)
static Bracket convert(const float *scores, int64_t count, int16_t *into, int most) {
  int16_t places[KEYS];
  for (int i = 0; i < KEYS; ++i) places[i] = (int16_t)(2 * i + 1);
  __m512i upper = _mm512_loadu_si512(places);
  __m512i low = _mm512_set1_epi16(INT16_MAX), high = _mm512_set1_epi16(INT16_MIN);
  for (int64_t i = 0; i < count; i += KEYS) {
    __m512i half = _mm512_permutex2var_epi16(_mm512_loadu_si512(scores + i), upper,
                                             _mm512_loadu_si512(scores + i + LANES));
    __m512i sign = _mm512_srai_epi16(half, 15);
    __m512i key = _mm512_xor_si512(half, _mm512_srli_epi16(sign, 1));
    _mm512_store_si512(into + i, key);
    low = _mm512_min_epi16(low, key);
    high = _mm512_max_epi16(high, key);
  }
  __m512i lows = _mm512_min_epi32(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(low)),
                                  _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(low, 1)));
  __m512i highs = _mm512_max_epi32(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(high)),
                                   _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(high, 1)));
  return bracket(_mm512_reduce_min_epi32(lows), _mm512_reduce_max_epi32(highs), count, most);
}

static int reaching(const int16_t *row, int64_t count, int key) {
  __m512i below = _mm512_set1_epi16((int16_t)(key - 1)), one = _mm512_set1_epi16(1);
  __m512i total[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t i = 0; i < count; i += 2 * KEYS)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      __mmask32 reached = _mm512_cmpgt_epi16_mask(_mm512_load_si512(row + i + j * KEYS), below);
      total[j] = _mm512_mask_add_epi16(total[j], reached, total[j], one);
    }
  return _mm512_reduce_add_epi32(_mm512_madd_epi16(_mm512_add_epi16(total[0], total[1]), one));
}

static unsigned reached(const float *scores, float least) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(scores), _mm512_set1_ps(least), _CMP_GE_OQ);
}

static void put(int32_t *into, unsigned chosen, int first) {
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  index = _mm512_add_epi32(index, _mm512_set1_epi32(first));
  _mm512_storeu_si512(into, _mm512_maskz_compress_epi32((__mmask16)chosen, index));
}
#else
static inline __m256i upper_halves(const float *scores) {
  return _mm256_srai_epi32(_mm256_loadu_si256((const __m256i *)scores), 16);
}

static Bracket convert(const float *scores, int64_t count, int16_t *into, int most) {
  __m256i low = _mm256_set1_epi16(INT16_MAX), high = _mm256_set1_epi16(INT16_MIN);
  for (int64_t i = 0; i < count; i += KEYS) {
    __m256i mixed = _mm256_packs_epi32(upper_halves(scores + i), upper_halves(scores + i + LANES));
    __m256i half = _mm256_permute4x64_epi64(mixed, 0xd8);
    __m256i key = _mm256_xor_si256(half, _mm256_srli_epi16(_mm256_srai_epi16(half, 15), 1));
    _mm256_store_si256((__m256i *)(into + i), key);
    low = _mm256_min_epi16(low, key);
    high = _mm256_max_epi16(high, key);
  }
  int16_t lows[KEYS], highs[KEYS];
  _mm256_storeu_si256((__m256i *)lows, low);
  _mm256_storeu_si256((__m256i *)highs, high);
  for (int i = 1; i < KEYS; ++i) {
    lows[0] = lows[i] < lows[0] ? lows[i] : lows[0];
    highs[0] = highs[i] > highs[0] ? highs[i] : highs[0];
  }
  return bracket(lows[0], highs[0], count, most);
}

static int reaching(const int16_t *row, int64_t count, int key) {
  __m256i below = _mm256_set1_epi16((int16_t)(key - 1)), one = _mm256_set1_epi16(1);
  __m256i total[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int64_t i = 0; i < count; i += 2 * KEYS)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      __m256i keys = _mm256_load_si256((const __m256i *)(row + i + j * KEYS));
      total[j] = _mm256_sub_epi16(total[j], _mm256_cmpgt_epi16(keys, below));
    }
  __m256i pairs = _mm256_madd_epi16(_mm256_add_epi16(total[0], total[1]), one);
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

/* Of every mask of lanes: the numbers of those that it has. */
static uint8_t orders[1 << LANES][LANES] __attribute__((aligned(64)));

__attribute__((constructor)) static void fill_orders(void) {
  for (int mask = 0; mask < 1 << LANES; ++mask)
    for (int lane = 0, at = 0; lane < LANES; ++lane)
      if (mask >> lane & 1) orders[mask][at++] = (uint8_t)lane;
}

static unsigned reached(const float *scores, float least) {
  __m256 score = _mm256_loadu_ps(scores);
  return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(score, _mm256_set1_ps(least), _CMP_GE_OQ));
}

static void put(int32_t *into, unsigned chosen, int first) {
  __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)orders[chosen]));
  _mm256_storeu_si256((__m256i *)into, _mm256_add_epi32(_mm256_set1_epi32(first), order));
}
#endif

/* Narrows the bracket by false position, by its middle every `SLOW` steps. */
static void narrow(Bracket *at, const int16_t *row, int64_t count, int most, int step) {
  float low = least_of(at->low), high = least_of(at->high);
  int middle = key_of(low + (high - low) * (at->lead / (at->lead + at->lag)));
  if (step % SLOW == SLOW - 1) middle = (at->low + at->high) >> 1;
  middle = middle <= at->low ? at->low + 1 : middle >= at->high ? at->high - 1 : middle;
  int reached = reaching(row, count, middle);
  if (reached >= most) {
    at->low = middle, at->reach_low = reached, at->lead = (float)(reached - most);
    at->lag *= at->moved == 1 ? 0.5f : 1.0f, at->moved = 1;
    if (reached == most) at->high = middle + 1;
  } else {
    at->high = middle, at->lag = (float)(most - reached);
    at->lead *= at->moved == 2 ? 0.5f : 1.0f, at->moved = 2;
  }
}

/* Lists what reaches the bracket's low key; returns how many, `most` or more. */
static int list(const float *scores, int64_t count, const Bracket *at, int most, int32_t *into,
                int *ties, int *tied) {
  float least = least_of(at->low), above = least_of(at->low + 1);
  int listed = 0;
  for (int64_t i = 0; i < count; i += LANES) {
    unsigned chosen = reached(scores + i, least);
    put(into + listed, chosen, (int)i);
    if (at->reach_low > most) {
      unsigned same = chosen & ~reached(scores + i, above);
      for (; same; same &= same - 1)
        ties[(*tied)++] = listed + __builtin_popcount(chosen & ((same & -same) - 1));
    }
    listed += __builtin_popcount(chosen);
  }
  return listed;
}

/* Drops the worst of what shares the least key, the last of equal ones. */
static void drop(const float *scores, int32_t *from, int listed, int most, int *ties, int tied) {
  for (; listed > most; --listed, --tied) {
    int worst = 0;
    for (int i = 1; i < tied; ++i)
      if (scores[from[ties[i]]] <= scores[from[ties[worst]]]) worst = i;
    int gone = ties[worst];
    memmove(from + gone, from + gone + 1, (size_t)(listed - gone - 1) * sizeof *from);
    for (int i = worst + 1; i < tied; ++i) ties[i - 1] = ties[i] - 1;
  }
}

/* Return the seconds of selecting `most` of each of up to 8 rows of up to 8192 scores, the least of
 * `repeats` times. `indices` has `count` + `spare` places a row; `count` is a multiple of 64. */
double select_keys(const float *scores, int64_t rows, int64_t count, int most, int32_t *indices,
                   int64_t spare, int repeats) {
  double least = INFINITY;
  Bracket at[ROWS];
  int ties[SCORES];
  for (int repeat = 0; repeat < repeats; ++repeat) {
    double start = now();
    for (int row = 0; row < rows; ++row)
      at[row] = convert(scores + row * count, count, keys[row], most);
    int open = 1;
    for (int step = 0; open; ++step) {
      open = 0;
      for (int row = 0; row < rows; ++row)
        if (at[row].high - at[row].low > 1) {
          narrow(&at[row], keys[row], count, most, step);
          open = 1;
        }
    }
    for (int row = 0; row < rows; ++row) {
      int32_t *into = indices + row * (count + spare);
      int tied = 0;
      int listed = list(scores + row * count, count, &at[row], most, into, ties, &tied);
      drop(scores + row * count, into, listed, most, ties, tied);
    }
    double seconds = now() - start;
    if (seconds < least) least = seconds;
  }
  return least;
}
#else
double select_keys(const float *scores, int64_t rows, int64_t count, int most, int32_t *indices,
                   int64_t spare, int repeats) {
  (void)spare, (void)scores, (void)rows, (void)count, (void)most, (void)indices, (void)repeats;
  return INFINITY;
}
#endif
