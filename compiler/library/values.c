/* Checks of integers at the boundary: range, duplicates; and sizes that are a greatest value. */
#include <stdatomic.h>

#include "runtime.h"

static atomic_uint skipped;

void wt_skip_checks(uint32_t mask) { atomic_store_explicit(&skipped, mask, memory_order_relaxed); }

uint32_t wt_skipped_checks(void) { return atomic_load_explicit(&skipped, memory_order_relaxed); }

/* An argument and what is checked of each line along its last axis. */
typedef struct {
  const WtOperator *op;
  int32_t index;
  const WtValues *values;
  const DLTensor *tensor;
  const int32_t *lengths; /* one for `lines_each` lines; NULL: whole lines count */
  int64_t lines, width, lines_each;
  int64_t low, high;
} Checked;

static int64_t limit_at(const WtLimit *limit, const int64_t *sizes) {
  if (limit->symbol < 0) return limit->offset;
  return (sizes[limit->symbol] * limit->times + limit->per - 1) / limit->per + limit->offset;
}

/* Returns which of the two limits holds, by the sizes of shapes. */
static const WtLimit *lesser(const WtValues *values, const int64_t *sizes) {
  return limit_at(&values->also, sizes) < limit_at(&values->high, sizes) ? &values->also
                                                                         : &values->high;
}

static int64_t value_at(const DLTensor *tensor, int64_t at) {
  const void *data = wt_data(tensor);
  return tensor->dtype.bits == 8 ? ((const int8_t *)data)[at] : ((const int32_t *)data)[at];
}

/* Returns how many values of a line count. */
static int64_t used(const Checked *checked, int64_t line) {
  if (!checked->lengths) return checked->width;
  int64_t length = checked->lengths[line / checked->lines_each];
  if (length <= 0) return 0;
  int64_t count = (length - 1) / checked->values->used_per + 1;
  return count < checked->width ? count : checked->width;
}

/* Loops without a branch, which become vectors. */
static int outside8(const int8_t *values, int64_t count, int32_t low, int32_t high) {
  int32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= (values[i] < low) | (values[i] > high);
  return found;
}

static int outside32(const int32_t *values, int64_t count, int32_t low, int32_t high) {
  int32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= (values[i] < low) | (values[i] > high);
  return found;
}

static int outside(const Checked *checked, int64_t begin, int64_t count) {
  const void *data = wt_data(checked->tensor);
  int32_t low = (int32_t)checked->low;
  int32_t high = checked->high < INT32_MAX ? (int32_t)checked->high : INT32_MAX;
  if (checked->tensor->dtype.bits == 8)
    return outside8((const int8_t *)data + begin, count, low, high);
  return outside32((const int32_t *)data + begin, count, low, high);
}

/* Adds "[1, 5]", the index of element `at`. */
static void add_index(const DLTensor *tensor, int64_t at) {
  int64_t rest = wt_elements(tensor);
  for (int32_t i = 0; i < tensor->ndim; ++i) {
    rest /= tensor->shape[i];
    wt_message_add("%s%lld", i ? ", " : "[", (long long)(at / rest));
    at %= rest;
  }
  if (tensor->ndim) wt_message_add("]");
}

static void begin_error(const Checked *checked, int64_t at) {
  wt_message_begin("ArgumentError");
  wt_message_add("%s: %s", checked->op->name, checked->op->argument_names[checked->index]);
  add_index(checked->tensor, at);
  wt_message_add(" is %lld", (long long)value_at(checked->tensor, at));
}

static int refuse_outside(const Checked *checked, int64_t at, const int64_t *sizes) {
  int64_t low = checked->low, high = checked->high, value = value_at(checked->tensor, at);
  while (value >= low && value <= high) value = value_at(checked->tensor, ++at);
  begin_error(checked, at);
  if (low > high)
    wt_message_add("; allowed: none");
  else
    wt_message_add("; allowed: %lld to %lld", (long long)low, (long long)high);
  int32_t symbol = lesser(checked->values, sizes)->symbol;
  if (symbol >= 0)
    wt_message_add(" (%s is %lld)", checked->op->symbol_names[symbol], (long long)sizes[symbol]);
  return WT_FAILED;
}

static int check_range(const Checked *checked, const int64_t *sizes) {
  int64_t lines = checked->lengths ? checked->lines : 1;
  for (int64_t line = 0; line < lines; ++line) {
    int64_t begin = line * checked->width;
    int64_t count = checked->lengths ? used(checked, line) : checked->lines * checked->width;
    if (outside(checked, begin, count)) return refuse_outside(checked, begin, sizes);
  }
  return WT_OK;
}

static int refuse_duplicate(const Checked *checked, int64_t begin, int64_t at) {
  int64_t value = value_at(checked->tensor, at), first = begin;
  while (value_at(checked->tensor, first) != value) ++first;
  begin_error(checked, at);
  wt_message_add(", and so is ");
  add_index(checked->tensor, first);
  wt_message_add("; allowed: each value once, negative ones aside");
  return WT_FAILED;
}

/* Values out of range, which the check of ranges is for, are passed over. */
static int check_duplicates(const Checked *checked) {
  const int32_t *values = wt_data(checked->tensor);
  uint32_t end = checked->high < INT32_MAX ? (uint32_t)(checked->high + 1) : INT32_MAX;
  if (checked->high < 0) return WT_OK;
  uint64_t *seen = wt_bitmap(end);
  if (!seen) return WT_FAILED;
  for (int64_t line = 0; line < checked->lines; ++line) {
    int64_t begin = line * checked->width, last = begin + used(checked, line), at = begin;
    for (; at < last; ++at) {
      uint32_t value = (uint32_t)values[at];
      if (value >= end) continue;
      uint64_t bit = (uint64_t)1 << (value & 63), word = seen[value >> 6];
      if (word & bit) break;
      seen[value >> 6] = word | bit;
    }
    for (int64_t i = begin; i < at; ++i)
      if ((uint32_t)values[i] < end) seen[(uint32_t)values[i] >> 6] = 0;
    if (at < last) return refuse_duplicate(checked, begin, at);
  }
  return WT_OK;
}

static void measure(const Checked *checked, int64_t *sizes) {
  int64_t *size = &sizes[checked->values->maximum];
  const int32_t *values = wt_data(checked->tensor);
  int64_t count = checked->lines * checked->width, most = *size > 0 ? *size : 0;
  for (int64_t i = 0; i < count; ++i) most = values[i] > most ? values[i] : most;
  *size = most;
}

static Checked checked_argument(const WtOperator *op, const WtVariant *variant,
                                const DLTensor *const *args, int32_t i, const int64_t *sizes) {
  const WtValues *values = variant->slots[i].values;
  const DLTensor *tensor = args[i];
  Checked checked = {.op = op, .index = i, .values = values, .tensor = tensor};
  int64_t count = wt_elements(tensor);
  checked.width = tensor->ndim ? tensor->shape[tensor->ndim - 1] : 1;
  checked.lines = count ? count / checked.width : 0;
  if (values->lengths >= 0 && count) {
    checked.lengths = wt_data(args[values->lengths]);
    checked.lines_each = checked.lines / tensor->shape[0];
  }
  checked.low = values->low;
  checked.high = limit_at(lesser(values, sizes), sizes);
  return checked;
}

int wt_check_values(const WtOperator *op, const WtVariant *variant, const DLTensor *const *args,
                    int64_t *sizes) {
  uint32_t skip = op->is_pack ? 0 : wt_skipped_checks();
  for (int32_t i = 0; i < op->num_arguments; ++i) {
    const WtValues *values = variant->slots[i].values;
    if (!values || !args[i]) continue;
    Checked checked = checked_argument(op, variant, args, i, sizes);
    /* What chooses the kernel is always checked. */
    if ((values->maximum >= 0 || !(skip & WT_RANGES)) && check_range(&checked, sizes))
      return WT_FAILED;
    if (values->unique && !(skip & WT_DUPLICATES) && check_duplicates(&checked)) return WT_FAILED;
    if (values->maximum >= 0) measure(&checked, sizes);
  }
  return WT_OK;
}

/* Lowers a size to what the caller says that it is at the most. */
static int lower(const WtOperator *op, int32_t symbol, int64_t most, int64_t *sizes) {
  if (most < 0) {
    wt_message_begin("ArgumentError");
    wt_message_add("%s: %s is at most %lld; allowed: 1 or more, 0 where it is not known", op->name,
                   op->symbol_names[symbol], (long long)most);
    return WT_FAILED;
  }
  if (most > 0 && most < sizes[symbol]) sizes[symbol] = most;
  return WT_OK;
}

int wt_bound_values(const WtOperator *op, const WtVariant *variant, const int64_t *most,
                    int64_t *sizes) {
  for (int32_t i = 0; i < op->num_arguments; ++i) {
    const WtValues *values = variant->slots[i].values;
    if (!values || values->maximum < 0) continue;
    int64_t high = limit_at(lesser(values, sizes), sizes), *size = &sizes[values->maximum];
    if (high > *size) *size = high;
  }
  for (int32_t i = 0; i < op->num_bounded; ++i)
    if (lower(op, op->bounded[i], most[i], sizes)) return WT_FAILED;
  return WT_OK;
}
