/* Memory of a thread, so that calls are re-entrant: workspace for callers that bring none, and bits
   that are always zero between uses. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

enum { ALIGNMENT = 64 };

typedef struct {
  void *data;
  int64_t bytes;
} Block;

enum { WORKSPACE, BITS, BLOCKS };

static _Thread_local Block blocks[BLOCKS];
static pthread_key_t keys[BLOCKS];
static int have_keys;

__attribute__((constructor)) static void make_keys(void) {
  while (have_keys < BLOCKS && pthread_key_create(&keys[have_keys], free) == 0) ++have_keys;
}

/* Without this, a thread that ends after the library is closed would call into nothing. */
__attribute__((destructor)) static void delete_keys(void) {
  while (have_keys > 0) pthread_key_delete(keys[--have_keys]);
}

static void *grow(int which, int64_t bytes) {
  void *grown = NULL;
  size_t rounded = ((size_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (posix_memalign(&grown, ALIGNMENT, rounded)) {
    wt_message_begin("MemoryError");
    wt_message_add("no memory for a workspace of %lld bytes", (long long)bytes);
    return NULL;
  }
  free(blocks[which].data);
  blocks[which] = (Block){grown, (int64_t)rounded};
  if (which < have_keys) pthread_setspecific(keys[which], grown);
  return grown;
}

void *wt_scratch(int64_t bytes) {
  Block *block = &blocks[WORKSPACE];
  return bytes <= block->bytes ? block->data : grow(WORKSPACE, bytes);
}

uint64_t *wt_bitmap(int64_t bits) {
  Block *block = &blocks[BITS];
  int64_t bytes = (bits + 63) / 64 * 8;
  if (bytes <= block->bytes) return block->data;
  if (!grow(BITS, bytes)) return NULL;
  return memset(block->data, 0, (size_t)block->bytes);
}
