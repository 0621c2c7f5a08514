/* Reads blocks of memory in a given order, the next block asked for while this one is read, or
   several blocks side by side. */
#include <stdint.h>
#include <time.h>

enum { LINE = 64, STEP = 4 * LINE, PAGE = 4096, FIRST = 2 * LINE, ABREAST = 4 };
/* What is asked for of the next block: nothing, every line, or the first two lines of each page,
   which wake the prefetcher of the second cache; or four blocks are read a step of each in turn,
   with nothing or a kilobyte ahead asked for. */
enum { NOTHING, EVERYTHING, PAGES, FOUR, FOUR_AHEAD };
enum { AHEAD = 1024 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef uint64_t Line __attribute__((vector_size(LINE), aligned(LINE)));
typedef struct {
  Line chain[4];
} Sums;

static inline void read_step(Sums *sums, const char *data) {
  for (int i = 0; i < 4; ++i) sums->chain[i] += *(const Line *)(data + i * LINE);
}

/* `count` blocks, a step of each of four in turn. */
static void read_abreast(Sums *sums, const char *memory, const int64_t *order, int64_t count,
                         int64_t bytes, int64_t ahead) {
  for (int64_t i = 0; i < count; i += ABREAST)
    for (int64_t at = 0; at < bytes; at += STEP)
      for (int64_t j = i; j < i + ABREAST; ++j) {
        if (ahead) {
          int64_t next = at + ahead < bytes ? j : j + ABREAST < count ? j + ABREAST : 0;
          const char *asked = memory + order[next] * bytes + (at + ahead) % bytes;
          for (int64_t line = 0; line < STEP; line += LINE)
            __builtin_prefetch(asked + line, 0, 3);
        }
        read_step(sums, memory + order[j] * bytes + at);
      }
}

static void read_in_turn(Sums *sums, const char *memory, const int64_t *order, int64_t count,
                         int64_t bytes, int prefetch) {
  for (int64_t i = 0; i < count; ++i) {
    const char *block = memory + order[i] * bytes;
    const char *next = memory + order[i + 1 < count ? i + 1 : 0] * bytes;
    for (int64_t at = 0; at < bytes; at += STEP) {
      if (prefetch == EVERYTHING)
        for (int64_t line = 0; line < STEP; line += LINE)
          __builtin_prefetch(next + at + line, 0, 3);
      if (prefetch == PAGES && at % PAGE == 0)
        for (int64_t line = 0; line < FIRST; line += LINE)
          __builtin_prefetch(next + at + line, 0, 2);
      read_step(sums, block + at);
    }
  }
}

/* Returns the seconds of reading `count` blocks, a multiple of four, of `bytes` each; `sum` keeps
   the reads alive. */
double read_blocks(const char *memory, const int64_t *order, int64_t count, int64_t bytes,
                   int prefetch, uint64_t *sum) {
  Sums sums = {0};
  double start = now();
  if (prefetch >= FOUR)
    read_abreast(&sums, memory, order, count, bytes, prefetch == FOUR_AHEAD ? AHEAD : 0);
  else
    read_in_turn(&sums, memory, order, count, bytes, prefetch);
  double seconds = now() - start;
  Line total = sums.chain[0] + sums.chain[1] + sums.chain[2] + sums.chain[3];
  for (int i = 0; i < LINE / 8; ++i) *sum += total[i];
  return seconds;
}
