/* The timing loop: Python is not in it.
 *
 * Arguments that rotate are moved by writing the data pointers of their tensors, so that any
 * number of copies needs no memory besides the copies.
 */
#include <stdint.h>
#include <time.h>

/* TVMFFISafeCallType; an argument and a result are 16 bytes (TVMFFIAny). */
typedef int (*Function)(void *self, const void *arguments, int32_t count, void *result);

typedef struct {
  char **data;            /* the data pointer of a tensor */
  char *const *addresses; /* of every copy */
} Rotation;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Times `samples` samples of `batch` calls and writes the seconds of one call of each.
 *
 * Copy `first` is used first, of `sets`. Stops early after `limit` seconds. Returns the number of
 * samples, or -1 where the function answered with an error.
 */
int64_t wattune_time(Function function, const void *arguments, int32_t count,
                     const Rotation *rotations, int32_t rotating, int64_t sets, int64_t first,
                     int64_t samples, int64_t batch, double limit, double *seconds) {
  double end = now() + limit;
  int64_t set = first;
  for (int64_t sample = 0; sample < samples; ++sample) {
    double start = now();
    for (int64_t i = 0; i < batch; ++i) {
      int64_t result[2] = {0, 0};
      for (int32_t r = 0; r < rotating; ++r)
        *rotations[r].data = rotations[r].addresses[set];
      if (++set == sets) set = 0;
      if (function(0, arguments, count, result)) return -1;
    }
    double stop = now();
    seconds[sample] = (stop - start) / (double)batch;
    if (stop > end) return sample + 1;
  }
  return samples;
}
