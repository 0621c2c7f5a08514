/* Workspace for callers that bring none: one block a thread, so that calls are re-entrant. */
#include <pthread.h>
#include <stdlib.h>

#include "runtime.h"

enum { ALIGNMENT = 64 };

static _Thread_local struct {
  void *data;
  int64_t bytes;
} block;
static pthread_key_t key;
static int have_key;

__attribute__((constructor)) static void make_key(void) {
  have_key = pthread_key_create(&key, free) == 0;
}

/* Without this, a thread that ends after the library is closed would call into nothing. */
__attribute__((destructor)) static void delete_key(void) {
  if (have_key) pthread_key_delete(key);
}

void *wt_scratch(int64_t bytes) {
  if (bytes <= block.bytes) return block.data;
  void *grown = NULL;
  size_t rounded = ((size_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (posix_memalign(&grown, ALIGNMENT, rounded)) {
    wt_message_begin("MemoryError");
    wt_message_add("no memory for a workspace of %lld bytes", (long long)bytes);
    return NULL;
  }
  free(block.data);
  block.data = grown;
  block.bytes = (int64_t)rounded;
  if (have_key) pthread_setspecific(key, grown);
  return grown;
}
