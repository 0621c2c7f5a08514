/* Calls a library for GPUs as a C program does: device tensors, a stream, a bound, errors. */
#include <stdio.h>

#include "kernels.h"

enum { ROWS = 3, CAPACITY = 100 };

/* Only their addresses matter: nothing runs here. */
static _Alignas(64) float x[ROWS * CAPACITY], y[ROWS * CAPACITY];
static _Alignas(64) int32_t lengths[ROWS], served[ROWS * 2];
static _Alignas(64) unsigned char scratch[4096];

int main(void) {
  int64_t matrix[] = {ROWS, CAPACITY}, pairs[] = {ROWS, 2}, bytes[] = {sizeof(scratch)};
  DLTensor tx = wattune_tensor(x, 2, matrix, kDLFloat, 32, 1);
  DLTensor tl = wattune_tensor(lengths, 1, matrix, kDLInt, 32, 1);
  DLTensor ts = wattune_tensor(scratch, 1, bytes, kDLUInt, 8, 1);
  DLTensor ty = wattune_tensor(y, 2, matrix, kDLFloat, 32, 1);
  DLTensor tb = wattune_tensor(served, 2, pairs, kDLInt, 32, 1);
  if (wattune_abi_version() != WATTUNE_ABI_VERSION) return 1;
  printf("check %d\n", wattune_check_cpu());
  if (wattune_check_cpu()) return puts(wattune_last_error()), 0;
  wattune_set_stream(1, (void *)4660);
  printf("call %d\n", wattune_ragged_default(&tx, &tl, &ts, &ty, &tb, 0));
  printf("call %d\n", wattune_ragged_default(&tx, &tl, NULL, &ty, &tb, 64));
  puts(wattune_last_error());
  printf("call %d\n", wattune_ragged_default(&tx, &tl, &ts, &ty, &tb, -1));
  puts(wattune_last_error());
  return 0;
}
