/* Checks at the boundary: which variant a call is for, and whether its memory can be used. */
#include <string.h>

#include "runtime.h"

enum { MAX_EXPECTED = 8 };

void *wt_data(const DLTensor *tensor) { return (char *)tensor->data + tensor->byte_offset; }

static int same_dtype(DLDataType expected, DLDataType given) {
  if (expected.bits != given.bits || given.lanes != 1) return 0;
  if (expected.code == given.code) return 1;
  /* numpy has no bfloat16 in DLPack: its bits come as uint16. */
  return expected.code == kDLBfloat && given.code == kDLUInt;
}

static int slot_matches(const WtSlot *slot, const DLTensor *tensor, int64_t *sizes) {
  if (!tensor) return slot->role == WT_ABSENT || slot->role == WT_WORKSPACE;
  if (slot->role == WT_ABSENT) return 0;
  if (!same_dtype(slot->dtype, tensor->dtype) || slot->ndim != tensor->ndim) return 0;
  if (slot->role == WT_WORKSPACE) return 1; /* its size depends on the bucket */
  for (int32_t i = 0; i < slot->ndim; ++i) {
    int64_t size = tensor->shape[i];
    if (slot->dims[i] >= 0) {
      if (size != slot->dims[i]) return 0;
      continue;
    }
    int64_t *bound = &sizes[~slot->dims[i]];
    if (*bound >= 0 && *bound != size) return 0;
    *bound = size;
  }
  return 1;
}

/* Returns the first argument that does not fit, or num_arguments. */
static int32_t first_mismatch(const WtOperator *op, const WtVariant *variant,
                              const DLTensor *const *args, int64_t *sizes) {
  for (int32_t i = 0; i < WT_MAX_SYMBOLS; ++i) sizes[i] = -1;
  int32_t at = 0;
  while (at < op->num_arguments && slot_matches(&variant->slots[at], args[at], sizes)) ++at;
  return at;
}

static int listed(const char *const *texts, int count, const char *text) {
  for (int i = 0; i < count; ++i)
    if (strcmp(texts[i], text) == 0) return 1;
  return 0;
}

/* Says what argument `at` should be: as the variants expect it that all arguments before fit. */
static void add_expected(const WtOperator *op, const DLTensor *const *args, int32_t at) {
  const char *texts[MAX_EXPECTED];
  int64_t sizes[WT_MAX_SYMBOLS], bound[WT_MAX_SYMBOLS];
  int count = 0;
  for (int32_t v = 0; v < op->num_variants; ++v) {
    if (first_mismatch(op, &op->variants[v], args, sizes) != at) continue;
    const WtSlot *slot = &op->variants[v].slots[at];
    if (slot->role == WT_ABSENT || listed(texts, count, slot->text)) continue;
    if (count == MAX_EXPECTED) {
      wt_message_add(", ...");
      break;
    }
    wt_message_add(count ? " or %s" : "%s", slot->text);
    texts[count++] = slot->text;
    memcpy(bound, sizes, sizeof(bound));
  }
  if (count == 0) wt_message_add("none");
  if (count != 1) return;
  for (int32_t i = 0; i < op->num_symbols; ++i)
    if (bound[i] >= 0 && strstr(texts[0], op->symbol_names[i]) && at > 0)
      wt_message_add(" with %s %lld", op->symbol_names[i], (long long)bound[i]);
}

const WtVariant *wt_match(const WtOperator *op, const DLTensor *const *args, int64_t *sizes) {
  int32_t furthest = -1;
  for (int32_t v = 0; v < op->num_variants; ++v) {
    int32_t at = first_mismatch(op, &op->variants[v], args, sizes);
    if (at == op->num_arguments) return &op->variants[v];
    if (at > furthest) furthest = at;
  }
  wt_message_begin("ArgumentError");
  wt_message_add("%s: %s ", op->name, op->argument_names[furthest]);
  wt_message_add_tensor(args[furthest]);
  wt_message_add("; expected ");
  add_expected(op, args, furthest);
  return NULL;
}

static int is_contiguous(const DLTensor *tensor) {
  if (!tensor->strides) return 1;
  int64_t stride = 1;
  for (int32_t i = tensor->ndim; i-- > 0;) {
    if (tensor->shape[i] != 1 && tensor->strides[i] != stride) return 0;
    stride *= tensor->shape[i];
  }
  return 1;
}

static int64_t elements(const DLTensor *tensor) {
  int64_t count = 1;
  for (int32_t i = 0; i < tensor->ndim; ++i) count *= tensor->shape[i];
  return count;
}

/* A caller may copy an input into better memory and call again: its own kind of error. */
static int refuse(const char *op, const char *name, const WtSlot *slot) {
  wt_message_begin(slot->role == WT_INPUT ? "LayoutError" : "ArgumentError");
  wt_message_add("%s: %s ", op, name);
  return WT_FAILED;
}

static int check_values(const char *op, const char *name, const WtSlot *slot,
                        const DLTensor *tensor) {
  if (slot->low > slot->high) return WT_OK;
  const int8_t *values = wt_data(tensor);
  int64_t count = elements(tensor);
  int low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = values[i] < low ? values[i] : low;
    high = values[i] > high ? values[i] : high;
  }
  if (low >= slot->low && high <= slot->high) return WT_OK;
  wt_message_begin("ArgumentError");
  wt_message_add("%s: %s has a value of %d; allowed: integers from %d to %d", op, name,
                 low < slot->low ? low : high, (int)slot->low, (int)slot->high);
  return WT_FAILED;
}

static int check_tensor(const char *op, const char *name, const WtSlot *slot,
                        const DLTensor *tensor) {
  DLDeviceType device = tensor->device.device_type;
  if (device != kDLCPU && device != kDLCUDAHost) {
    wt_message_begin("ArgumentError");
    wt_message_add("%s: %s is on DLPack device type %d; expected the CPU", op, name, (int)device);
    return WT_FAILED;
  }
  if (elements(tensor) == 0) return WT_OK;
  if (!tensor->data) {
    refuse(op, name, slot);
    wt_message_add("has no data");
    return WT_FAILED;
  }
  if (!is_contiguous(tensor)) {
    refuse(op, name, slot);
    wt_message_add("is not contiguous; expected row-major order without gaps");
    return WT_FAILED;
  }
  if ((uintptr_t)wt_data(tensor) % slot->alignment) {
    refuse(op, name, slot);
    wt_message_add("is at address %p; expected a multiple of %u", wt_data(tensor), slot->alignment);
    return WT_FAILED;
  }
  return check_values(op, name, slot, tensor);
}

static int overlap(const DLTensor *a, const DLTensor *b) {
  const char *first = wt_data(a), *second = wt_data(b);
  int64_t a_bytes = elements(a) * a->dtype.bits / 8, b_bytes = elements(b) * b->dtype.bits / 8;
  return a_bytes && b_bytes && first < second + b_bytes && second < first + a_bytes;
}

int wt_check_memory(const WtOperator *op, const WtVariant *variant, const DLTensor *const *args) {
  for (int32_t i = 0; i < op->num_arguments; ++i)
    if (args[i] && check_tensor(op->name, op->argument_names[i], &variant->slots[i], args[i]))
      return WT_FAILED;
  for (int32_t i = 0; i < op->num_arguments; ++i) {
    if (!args[i] || variant->slots[i].role < WT_STATE) continue; /* only read */
    for (int32_t j = 0; j < op->num_arguments; ++j) {
      if (j == i || !args[j] || !overlap(args[i], args[j])) continue;
      wt_message_begin("ArgumentError");
      wt_message_add("%s: %s overlaps %s; expected memory of its own", op->name,
                     op->argument_names[i], op->argument_names[j]);
      return WT_FAILED;
    }
  }
  return WT_OK;
}
