/* Which variant of an operator a call is for: dtypes, shapes, and sizes that must agree. */
#include <string.h>

#include "runtime.h"

enum { MAX_EXPECTED = 8 };

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

/* Returns the first argument before `end` that does not fit, or `end`. */
static int32_t first_mismatch(const WtVariant *variant, const DLTensor *const *args, int32_t end,
                              int64_t *sizes) {
  for (int32_t i = 0; i < WT_MAX_SYMBOLS; ++i) sizes[i] = -1;
  int32_t at = 0;
  while (at < end && slot_matches(&variant->slots[at], args[at], sizes)) ++at;
  return at;
}

static int listed(const char *const *texts, int count, const char *text) {
  for (int i = 0; i < count; ++i)
    if (strcmp(texts[i], text) == 0) return 1;
  return 0;
}

/* Adds the sizes of a slot that arguments before it have fixed. */
static void add_sizes(const WtOperator *op, const WtSlot *slot, const int64_t *sizes) {
  for (int32_t i = 0; i < slot->ndim; ++i)
    if (slot->dims[i] < 0 && sizes[~slot->dims[i]] >= 0)
      wt_message_add(" with %s %lld", op->symbol_names[~slot->dims[i]],
                     (long long)sizes[~slot->dims[i]]);
}

/* Says what argument `at` should be: as those variants expect it that all arguments before fit. */
static void add_expected(const WtOperator *op, int32_t begin, int32_t end,
                         const DLTensor *const *args, int32_t at) {
  const char *texts[MAX_EXPECTED];
  const WtSlot *only = NULL;
  int64_t sizes[WT_MAX_SYMBOLS], bound[WT_MAX_SYMBOLS];
  int count = 0;
  for (int32_t v = begin; v < end; ++v) {
    if (first_mismatch(&op->variants[v], args, at, sizes) != at) continue;
    const WtSlot *slot = &op->variants[v].slots[at];
    if (slot->role == WT_ABSENT || listed(texts, count, slot->text)) continue;
    if (count == MAX_EXPECTED) {
      wt_message_add(", ...");
      break;
    }
    wt_message_add(count ? " or %s" : "%s", slot->text);
    texts[count++] = slot->text;
    only = slot;
    memcpy(bound, sizes, sizeof(bound));
  }
  if (count == 0) wt_message_add("none");
  if (count == 1) add_sizes(op, only, bound);
}

/* Whether a call that fits variant `at` fits a later one too; says which entries there are. */
static int is_ambiguous(const WtOperator *op, int32_t at, const DLTensor *const *args) {
  if (!op->variants[at].fields) return 0;
  int64_t sizes[WT_MAX_SYMBOLS];
  int found = 0;
  for (int32_t v = at + 1; v < op->num_variants; ++v) {
    const WtVariant *other = &op->variants[v];
    if (first_mismatch(other, args, op->num_arguments, sizes) < op->num_arguments) continue;
    if (!found++) {
      wt_message_begin("ArgumentError");
      wt_message_add("%s: several variants serve such tensors; call wattune_%s (%s)", op->name,
                     op->variants[at].entry, op->variants[at].fields);
    }
    wt_message_add(" or wattune_%s (%s)", other->entry, other->fields);
  }
  return found;
}

const WtVariant *wt_match(const WtOperator *op, int32_t only, const DLTensor *const *args,
                          int64_t *sizes) {
  int32_t begin = only == WT_ANY_VARIANT ? 0 : only;
  int32_t end = only == WT_ANY_VARIANT ? op->num_variants : only + 1;
  int32_t furthest = -1;
  for (int32_t v = begin; v < end; ++v) {
    int32_t at = first_mismatch(&op->variants[v], args, op->num_arguments, sizes);
    if (at == op->num_arguments)
      return only == WT_ANY_VARIANT && is_ambiguous(op, v, args) ? NULL : &op->variants[v];
    if (at > furthest) furthest = at;
  }
  wt_message_begin("ArgumentError");
  wt_message_add("%s: %s ", op->name, op->argument_names[furthest]);
  wt_message_add_tensor(args[furthest]);
  wt_message_add("; expected ");
  add_expected(op, begin, end, args, furthest);
  return NULL;
}

static int64_t extent(const WtExtent *extent, const int64_t *sizes) {
  return (sizes[extent->of] * extent->times + extent->plus) / extent->per * extent->each;
}

int wt_check_extents(const WtOperator *op, const WtVariant *variant, const int64_t *sizes) {
  for (int32_t i = 0; i < variant->num_extents; ++i) {
    const WtExtent *first = &variant->extents[i];
    int64_t least = extent(first, sizes);
    for (int32_t j = 0; j < variant->num_extents; ++j)
      if (variant->extents[j].symbol == first->symbol && extent(&variant->extents[j], sizes) < least)
        least = extent(&variant->extents[j], sizes);
    if (sizes[first->symbol] == least) continue;
    wt_message_begin("ArgumentError");
    wt_message_add("%s: %s is %lld; expected %lld with %s %lld", op->name,
                   op->symbol_names[first->symbol], (long long)sizes[first->symbol],
                   (long long)least, op->symbol_names[first->of], (long long)sizes[first->of]);
    return WT_FAILED;
  }
  return WT_OK;
}
