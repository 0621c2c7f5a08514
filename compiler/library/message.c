/* Errors: one text a thread, raised through libtvm_ffi or kept for wattune_last_error(). */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime.h"

enum { CAPACITY = 2048 };

static _Thread_local char text[CAPACITY];
static _Thread_local const char *kind = "RuntimeError";
static _Thread_local size_t used;

void wt_message_begin(const char *error_kind) {
  kind = error_kind;
  used = 0;
  text[0] = 0;
}

void wt_message_add(const char *format, ...) {
  va_list values;
  va_start(values, format);
  int written = vsnprintf(text + used, CAPACITY - used, format, values);
  va_end(values);
  if (written < 0) return;
  used += (size_t)written;
  if (used >= CAPACITY) used = CAPACITY - 1;
}

static void add_dtype(DLDataType dtype) {
  static const char *const names[] = {"int",    "uint",    "float", "opaque",
                                      "bfloat", "complex", "bool"};
  if (dtype.code < sizeof(names) / sizeof(names[0]))
    wt_message_add("%s%d", names[dtype.code], dtype.bits);
  else
    wt_message_add("dtype code %d of %d bits", dtype.code, dtype.bits);
  if (dtype.lanes != 1) wt_message_add("x%d", dtype.lanes);
}

void wt_message_add_tensor(const DLTensor *tensor) {
  if (!tensor) {
    wt_message_add("is missing");
    return;
  }
  wt_message_add("has shape [");
  for (int32_t i = 0; i < tensor->ndim; ++i)
    wt_message_add("%s%lld", i ? ", " : "", (long long)tensor->shape[i]);
  wt_message_add("] and dtype ");
  add_dtype(tensor->dtype);
}

int wt_raise(int status) {
  if (status == WT_FAILED) {
    const char *parts[] = {text};
    TVMFFIErrorSetRaisedFromCStrParts(kind, parts, 1);
  }
  return status == WT_OK ? 0 : -1;
}

void wt_keep_raised(int status) {
  if (status != WT_RAISED) return;
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  wt_message_begin("RuntimeError");
  if (!error) {
    wt_message_add("a kernel failed without a message");
    return;
  }
  /* The cell follows the object's header; tvm-ffi has its accessors in C++ only. */
  TVMFFIByteArray message = ((const TVMFFIErrorCell *)((TVMFFIObject *)error + 1))->message;
  wt_message_add("%.*s", (int)message.size, message.data);
  TVMFFIObjectDecRef(error);
}

__attribute__((visibility("default"))) const char *wattune_last_error(void) { return text; }
