/* What this machine can do at most: read bandwidth and throughput of the units kernels live on.
 *
 * Compiled for the features of the host. A function for a unit that the build lacks returns 0.
 * Vectors are GCC's generic ones where an instruction need not be named: they compile everywhere.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#else
#define PAUSE() ((void)0)
#endif

/* The widest vector that has instructions: wider ones are compiled to scalar code. */
#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

enum { LINE = 64, BLOCK = 512, AHEAD = 4096, MOST_SAMPLES = 4096, UNITS_PER_CALL = 20000 };

typedef int64_t Words __attribute__((vector_size(WIDTH)));
typedef float Floats __attribute__((vector_size(WIDTH)));

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Keeps the compiler from dropping a loop whose result nobody uses. */
static volatile int64_t sink;

/* ---- Units: each runs `count` rounds and returns the operations of one round. ---- */

/* As many chains hide the latency of 4 to 5 cycles of two units. With VEX there are 16 registers. */
#define TWELVE(X, ...)                                                    \
  X(0, __VA_ARGS__) X(1, __VA_ARGS__) X(2, __VA_ARGS__) X(3, __VA_ARGS__) \
  X(4, __VA_ARGS__) X(5, __VA_ARGS__) X(6, __VA_ARGS__) X(7, __VA_ARGS__) \
  X(8, __VA_ARGS__) X(9, __VA_ARGS__) X(10, __VA_ARGS__) X(11, __VA_ARGS__)
#define SIXTEEN(X, ...)  \
  TWELVE(X, __VA_ARGS__) \
  X(12, __VA_ARGS__) X(13, __VA_ARGS__) X(14, __VA_ARGS__) X(15, __VA_ARGS__)

#define START(i, Vector) Vector sum##i = {0};
#define STEP(i, registers, instruction)                                         \
  __asm__ volatile(instruction                                                  \
                   : [sum] "+" registers(sum##i), [spare] "=&" registers(spare) \
                   : [factor] registers(factor));
#define END(i, ...) sink += (int64_t)sum##i[0];

/* A unit that adds products of `value` to the sums of chains.
 *
 * Its instruction is spelt, as chains that the compiler knows to be equal become a single one; its
 * operands are `sum`, `factor` (the value) and `spare`, in `registers` (a constraint). */
#define UNIT(name, CHAINS, Vector, value, registers, instruction, operations)    \
  static double name(int64_t count) {                                            \
    Vector factor = value, spare;                                                \
    CHAINS(START, Vector)                                                        \
    for (int64_t i = 0; i < count; ++i) { CHAINS(STEP, registers, instruction) } \
    CHAINS(END, )                                                                \
    return operations;                                                           \
  }
#define LACKING(name)                 \
  static double name(int64_t count) { \
    (void)count;                      \
    return 0;                         \
  }

#define BYTES_DOT "vpdpbusd %[factor], %[factor], %[sum]"

#ifdef __AVX512VNNI__
UNIT(dot512, SIXTEEN, __m512i, _mm512_set1_epi8(1), "v", BYTES_DOT, 16 * 64 * 2)
#else
LACKING(dot512)
#endif

/* Pairs of bfloat16. */
#ifdef __AVX512BF16__
UNIT(dot_bf16, SIXTEEN, __m512, {0}, "v", "vdpbf16ps %[factor], %[factor], %[sum]", 16 * 32 * 2)
#else
LACKING(dot_bf16)
#endif

#if defined(__AVXVNNI__)
UNIT(dot256, TWELVE, __m256i, _mm256_set1_epi8(1), "x", "%{vex%} " BYTES_DOT, 12 * 32 * 2)
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
UNIT(dot256, TWELVE, __m256i, _mm256_set1_epi8(1), "x", BYTES_DOT, 12 * 32 * 2)
#else
LACKING(dot256)
#endif

/* Pairs of 16-bit integers: products that are added by an instruction of their own. */
#ifdef __AVX2__
#define WORDS_DOT "vpmaddwd %[factor], %[factor], %[spare]; vpaddd %[spare], %[sum], %[sum]"
UNIT(words, TWELVE, __m256i, {0}, "x", WORDS_DOT, 12 * 16 * 2)
#else
LACKING(words)
#endif

#if defined(__FMA__) || defined(__AVX512F__)
#define MULTIPLY_ADD "vfmadd231ps %[factor], %[factor], %[sum]"
#elif defined(__AVX__)
#define MULTIPLY_ADD "vmulps %[factor], %[sum], %[sum]; vaddps %[factor], %[sum], %[sum]"
#elif defined(__x86_64__)
#define MULTIPLY_ADD "mulps %[factor], %[sum]; addps %[factor], %[sum]"
#else
#define MULTIPLY_ADD "fmla %[sum].4s, %[factor].4s, %[factor].4s"
#endif
#if defined(__AVX512F__)
#define FLOATS "v"
#elif defined(__x86_64__)
#define FLOATS "x"
#else
#define FLOATS "w"
#endif
UNIT(multiply_add, TWELVE, Floats, {0}, FLOATS, MULTIPLY_ADD, 12 * (WIDTH / 4) * 2)

static double tile(int64_t count) {
#if defined(__AMX_TILE__) && defined(__AMX_INT8__)
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shape = {.palette = 1};
  static const uint8_t zeros[1024] __attribute__((aligned(LINE)));
  for (int i = 0; i < 8; ++i) shape.row_bytes[i] = 64, shape.rows[i] = 16;
  /* Not _tile_loadconfig: gcc 12 tells the optimiser that it reads 8 bytes, and the rest is lost. */
  __asm__ volatile("ldtilecfg %0" : : "m"(shape));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  for (int64_t i = 0; i < count; ++i) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
  return 4.0 * 16 * 16 * 64 * 2;
#else
  (void)count;
  return 0;
#endif
}

/* ---- Reading ---- */

/* Four chains: one would wait for itself. */
typedef struct {
  Words chain[4];
} Reading;

static inline __attribute__((always_inline)) void read_part(Reading *reading, const char *data,
                                                            int bytes, int ahead) {
  const Words *words = (const Words *)data;
  if (ahead) {
    for (int i = 0; i < bytes; i += LINE) __builtin_prefetch(data + ahead + i, 0, 3);
  }
#pragma GCC unroll 32
  for (int i = 0; i < bytes / WIDTH; ++i) reading->chain[i % 4] |= words[i];
}

static void finish(const Reading *reading) {
  Words all = reading->chain[0] | reading->chain[1] | reading->chain[2] | reading->chain[3];
  sink = all[0] ^ all[1];
}

static __attribute__((noinline)) void read_plain(const char *data, int64_t bytes) {
  Reading reading = {0};
  for (int64_t i = 0; i + BLOCK <= bytes; i += BLOCK) read_part(&reading, data + i, BLOCK, 0);
  finish(&reading);
}

static __attribute__((noinline)) void read_prefetching(const char *data, int64_t bytes) {
  Reading reading = {0};
  for (int64_t i = 0; i + BLOCK <= bytes; i += BLOCK) read_part(&reading, data + i, BLOCK, AHEAD);
  finish(&reading);
}

/* Two streams: more pages, and so more of the hardware's prefetchers, at work at once. */
static __attribute__((noinline)) void read_two_streams(const char *data, int64_t bytes) {
  Reading reading = {0};
  int64_t half = bytes / 2 / LINE * LINE;
  for (int64_t i = 0; i + BLOCK / 2 <= half; i += BLOCK / 2) {
    read_part(&reading, data + i, BLOCK / 2, AHEAD / 2);
    read_part(&reading, data + half + i, BLOCK / 2, AHEAD / 2);
  }
  finish(&reading);
}

/* ---- Threads: all start a sample together, and it ends with the last one. ---- */

typedef struct {
  atomic_int arrived, round;
  int threads;
} Barrier;

static void meet(Barrier *barrier) {
  int round = atomic_load(&barrier->round);
  if (atomic_fetch_add(&barrier->arrived, 1) + 1 == barrier->threads) {
    atomic_store(&barrier->arrived, 0);
    atomic_fetch_add(&barrier->round, 1);
  } else {
    while (atomic_load(&barrier->round) == round) PAUSE();
  }
}

typedef struct {
  Barrier barrier;
  double (*unit)(int64_t); /* or 0: read */
  void (*read)(const char *, int64_t);
  const char *data;
  int64_t bytes, passes, samples;
  double budget, work;
  double *seconds;
} Job;

typedef struct {
  Job *job;
  int index, cpu;
} Member;

static void *run(void *argument) {
  Member *member = argument;
  Job *job = member->job;
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(member->cpu, &cpus);
  pthread_setaffinity_np(pthread_self(), sizeof cpus, &cpus);
  int64_t part = job->bytes / job->barrier.threads / BLOCK * BLOCK;
  const char *data = job->data + part * member->index;
  double end = now() + job->budget;
  for (;;) {
    meet(&job->barrier);
    double start = now(), work = 0;
    for (int64_t i = 0; i < job->passes; ++i) {
      if (job->unit) {
        work += job->unit(UNITS_PER_CALL) * UNITS_PER_CALL;
      } else {
        job->read(data, part);
        work += (double)part;
      }
    }
    meet(&job->barrier);
    if (member->index == 0) {
      double stop = now();
      job->seconds[job->samples++] = stop - start;
      job->work = work * job->barrier.threads;
      if (stop > end || job->samples == MOST_SAMPLES) job->passes = 0;
    }
    meet(&job->barrier);
    if (job->passes == 0) return 0;
  }
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Runs a job on these processors; returns work per second of the median sample. */
static double rate(Job *job, int threads, const int32_t *cpus) {
  pthread_t handles[threads];
  Member members[threads];
  double seconds[MOST_SAMPLES];
  job->barrier.threads = threads;
  job->seconds = seconds;
  for (int i = 0; i < threads; ++i) {
    members[i] = (Member){job, i, cpus[i]};
    if (pthread_create(&handles[i], 0, run, &members[i])) abort();
  }
  for (int i = 0; i < threads; ++i) pthread_join(handles[i], 0);
  /* The first samples find caches cold and the clock low. */
  int64_t dropped = job->samples / 4;
  qsort(seconds + dropped, job->samples - dropped, sizeof *seconds, ascending);
  return job->work / seconds[dropped + (job->samples - dropped) / 2];
}

/* Returns bytes per second of reading `bytes` again and again, each thread its own part.
 *
 * `way`: 0 plain, 1 prefetching, 2 two streams. */
double wattune_read(const char *data, int64_t bytes, int way, int threads, const int32_t *cpus,
                    double budget) {
  void (*const ways[])(const char *, int64_t) = {read_plain, read_prefetching, read_two_streams};
  Job job = {.data = data, .bytes = bytes, .budget = budget, .read = ways[way]};
  /* Samples long enough that the barrier does not count. */
  job.passes = 1 + (4 << 20) * (int64_t)threads / bytes;
  return rate(&job, threads, cpus);
}

/* Returns operations per second of a unit: 0 dot512, 1 dot256, 2 multiply_add, 3 tile, 4 dot_bf16,
 * 5 words. */
double wattune_unit(int unit, int threads, const int32_t *cpus, double budget) {
  double (*const units[])(int64_t) = {dot512, dot256, multiply_add, tile, dot_bf16, words};
  Job job = {.unit = units[unit], .budget = budget, .passes = 1};
  return rate(&job, threads, cpus);
}
