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

/* Returns what this machine lacks, features of its CPU or a device; empty where kernels can run. */
static const char *missing(void) {
  const char *features = wt_missing_features();
  const char *device = features[0] || !wt_place.missing ? NULL : wt_place.missing();
  return device ? device : features;
}

EXPORT int __tvm_ffi_missing_features(void *self, const TVMFFIAny *args, int32_t count,
                                      TVMFFIAny *result) {
  (void)self, (void)args, (void)count;
  const char *text = missing();
  return give_string(text, strlen(text), result);
}

static int one_integer(const char *name, const TVMFFIAny *args, int32_t count, int64_t *value) {
  if (count == 1 && args[0].type_index == kTVMFFIInt) {
    *value = args[0].v_int64;
    return WT_OK;
  }
  wt_message_begin("TypeError");
  wt_message_add("%s takes one integer", name);
  return WT_FAILED;
}

EXPORT int __tvm_ffi_set_num_threads(void *self, const TVMFFIAny *args, int32_t count,
                                     TVMFFIAny *result) {
  (void)self;
  int64_t wanted;
  if (one_integer("set_num_threads", args, count, &wanted)) return wt_raise(WT_FAILED);
  if (wanted < 1) wanted = 1;
  if (wanted > INT32_MAX) wanted = INT32_MAX;
  result->type_index = kTVMFFIInt;
  result->v_int64 = wattune_set_num_threads((int)wanted);
  return 0;
}

/* Takes which checks are switched off, bit i for the name i of wt_check_names. */
EXPORT int __tvm_ffi_skip_checks(void *self, const TVMFFIAny *args, int32_t count,
                                 TVMFFIAny *result) {
  (void)self, (void)result;
  int64_t mask;
  if (one_integer("skip_checks", args, count, &mask)) return wt_raise(WT_FAILED);
  wt_skip_checks((uint32_t)mask);
  return 0;
}

EXPORT int wattune_skip_check(const char *name) {
  for (int32_t i = 0; i < wt_num_checks; ++i) {
    if (strcmp(name, wt_check_names[i])) continue;
    wt_skip_checks(wt_skipped_checks() | 1u << i);
    return 0;
  }
  wt_message_begin("ArgumentError");
  wt_message_add("unknown check '%s'; allowed: ", name);
  for (int32_t i = 0; i < wt_num_checks; ++i)
    wt_message_add(i ? ", %s" : "%s", wt_check_names[i]);
  return -1;
}

EXPORT int wattune_abi_version(void) { return wt_abi_version; }

EXPORT const char *wattune_manifest(void) { return wt_metadata; }

EXPORT int wattune_check_cpu(void) {
  const char *text = missing();
  if (!text[0]) return 0;
  wt_message_begin("TargetError");
  wt_message_add("this library needs %s", text);
  return -1;
}
