/* Reads blocks of memory in a given order, the next block asked for while this one is read. */
#include <stdint.h>
#include <time.h>

enum { LINE = 64, STEP = 4 * LINE, PAGE = 4096, FIRST = 2 * LINE };
/* What is asked for of the next block: nothing, every line, or the first two lines of each page,
   which wake the prefetcher of the second cache. */
enum { NOTHING, EVERYTHING, PAGES };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Returns the seconds of reading `count` blocks of `bytes` each; `sum` keeps the reads alive. */
double read_blocks(const char *memory, const int64_t *order, int64_t count, int64_t bytes,
                   int prefetch, uint64_t *sum) {
  typedef uint64_t Line __attribute__((vector_size(LINE), aligned(LINE)));
  Line a = {0}, b = {0}, c = {0}, d = {0};
  double start = now();
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
      a += *(const Line *)(block + at);
      b += *(const Line *)(block + at + LINE);
      c += *(const Line *)(block + at + 2 * LINE);
      d += *(const Line *)(block + at + 3 * LINE);
    }
  }
  double seconds = now() - start;
  Line total = a + b + c + d;
  for (int i = 0; i < LINE / 8; ++i) *sum += total[i];
  return seconds;
}
