/* Functions that every library has, whatever its operators. */
#include <string.h>

#include "runtime.h"

#define EXPORT __attribute__((visibility("default")))

int wattune_set_num_threads(int wanted); /* launcher.c */

static int give_string(const char *text, size_t bytes, TVMFFIAny *result) {
  TVMFFIByteArray array = {text, bytes};
  return TVMFFIStringFromByteArray(&array, result);
}

/* The manifest: the text of kernels.json. */
EXPORT int __tvm_ffi_metadata_json(void *self, const TVMFFIAny *args, int32_t count,
                                   TVMFFIAny *result) {
  (void)self, (void)args, (void)count;
  return give_string(wt_metadata, wt_metadata_bytes, result);
}

/* Names the features that this CPU lacks; empty where kernels can run. */
EXPORT int __tvm_ffi_missing_features(void *self, const TVMFFIAny *args, int32_t count,
                                      TVMFFIAny *result) {
  (void)self, (void)args, (void)count;
  const char *names = wt_missing_features();
  return give_string(names, strlen(names), result);
}

EXPORT int __tvm_ffi_set_num_threads(void *self, const TVMFFIAny *args, int32_t count,
                                     TVMFFIAny *result) {
  (void)self;
  if (count != 1 || args[0].type_index != kTVMFFIInt) {
    wt_message_begin("TypeError");
    wt_message_add("set_num_threads takes one integer");
    return wt_raise(WT_FAILED);
  }
  int64_t wanted = args[0].v_int64;
  if (wanted < 1) wanted = 1;
  if (wanted > INT32_MAX) wanted = INT32_MAX;
  result->type_index = kTVMFFIInt;
  result->v_int64 = wattune_set_num_threads((int)wanted);
  return 0;
}

EXPORT int wattune_abi_version(void) { return wt_abi_version; }

EXPORT const char *wattune_manifest(void) { return wt_metadata; }

EXPORT int wattune_check_cpu(void) { return wt_check_cpu() == WT_OK ? 0 : -1; }
