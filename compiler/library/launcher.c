/* What code compiled by TVM asks of its runtime: a thread launcher, memory for large local arrays.
 *
 * Such code calls through pointers named __TVMBackend..., which TVM's runtime would fill. Here the
 * pointers are defined, filled and hidden: a library carries its own OpenMP launcher, and a TVM
 * runtime in the same process cannot put its own pool in its place.
 * Compiled with -DWATTUNE_THREADS=n; without -fopenmp for one thread, so that nothing is linked.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef WATTUNE_THREADS
#define WATTUNE_THREADS 1
#endif

typedef struct {
  void *sync_handle;
  int32_t num_task;
} ParallelGroupEnv;

typedef int (*Task)(int task_id, ParallelGroupEnv *env, void *closure);

/* 0 until the first launch: the cores of the process may be restricted after the library loads. */
static atomic_int chosen_threads;

static int usable_cores(void) {
#ifdef _OPENMP
  /* Not the affinity of the calling thread: OpenMP may already have bound it to one core. */
  return omp_get_num_procs();
#else
  return 1;
#endif
}

/* Sets how many threads a kernel uses, from 1 to the cores of this process; returns the number. */
__attribute__((visibility("default"))) int wattune_set_num_threads(int wanted) {
  int cores = usable_cores();
  int threads = wanted < cores ? wanted : cores;
  if (threads < 1) threads = 1;
  atomic_store_explicit(&chosen_threads, threads, memory_order_relaxed);
  return threads;
}

static int launch(Task task, void *closure, int tasks) {
  int threads = atomic_load_explicit(&chosen_threads, memory_order_relaxed);
  if (threads == 0) threads = wattune_set_num_threads(WATTUNE_THREADS);
  int count = tasks > 0 ? tasks : threads;
  ParallelGroupEnv env = {0, count};
  int failed = 0;
#ifdef _OPENMP
  if (threads > 1 && count > 1) {
    /* A loop, not one task a thread: OpenMP may give fewer threads than asked (nested regions). */
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
    for (int i = 0; i < count; ++i) failed |= task(i, &env, closure);
    return failed;
  }
#endif
  for (int i = 0; i < count; ++i) failed |= task(i, &env, closure);
  return failed;
}

/* Local arrays above 1 KiB, which TVM does not put on the stack. */
static void *allocate(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  (void)device_type, (void)device_id, (void)code, (void)bits;
  return aligned_alloc(64, (bytes + 63) & ~(uint64_t)63);
}

static int release(int device_type, int device_id, void *memory) {
  (void)device_type, (void)device_id;
  free(memory);
  return 0;
}

#pragma GCC visibility push(hidden)
int (*__TVMBackendParallelLaunch)(Task, void *, int) = launch;
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;
#pragma GCC visibility pop
