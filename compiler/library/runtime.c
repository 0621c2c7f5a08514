/* Serves a call: match the variant, pick the bucket's kernel, cut what is beyond the last one. */
#include "runtime.h"

typedef struct {
  DLTensor tensors[WT_MAX_ARGUMENTS];
  int64_t shapes[WT_MAX_ARGUMENTS][WT_MAX_DIMS];
  TVMFFIAny values[WT_MAX_ARGUMENTS];
  int32_t count;
} Frame;

static void fill(TVMFFIAny *any, DLTensor *out, const WtSlot *slot, void *data, int64_t *shape) {
  *out = (DLTensor){.data = data,
                    .device = {kDLCPU, 0},
                    .ndim = slot->ndim,
                    .dtype = slot->dtype,
                    .shape = shape};
  *any = (TVMFFIAny){.type_index = kTVMFFIDLTensorPtr};
  any->v_ptr = out;
}

/* What kernels see of a tensor without elements: it may have no memory. */
static _Alignas(64) char nothing[64];

/* The first run-time size that a kernel may see beyond its upper end: calls are cut along size 0,
   unless kernels serve all of it at once. */
static int32_t first_uncut(const WtOperator *op) { return op->open_ended & 1 ? 0 : 1; }

/* Whether run-time size i must not exceed a kernel's upper end. */
static int is_closed(const WtOperator *op, int32_t i) { return i > 0 && !(op->open_ended >> i & 1); }

/* Whether a kernel serves all sizes but those beyond which it is only slower, and size 0. */
static int serves(const WtOperator *op, const WtKernel *kernel, const int64_t *sizes) {
  for (int32_t i = 1; i < op->num_runtime; ++i)
    if (is_closed(op, i) && sizes[i] > kernel->upper[i]) return 0;
  return 1;
}

/* Returns the largest size 0 of kernels that serve the others; 0 where there is none. */
static int64_t largest_piece(const WtOperator *op, const WtVariant *variant,
                             const int64_t *sizes) {
  int64_t most = 0;
  for (int32_t i = 0; i < variant->num_kernels; ++i)
    if (variant->kernels[i].upper[0] > most && serves(op, &variant->kernels[i], sizes))
      most = variant->kernels[i].upper[0];
  if (most) return most;
  wt_message_begin("ArgumentError");
  wt_message_add("%s: no kernel of this library serves", op->name);
  for (int32_t i = 1; i < op->num_runtime; ++i)
    if (is_closed(op, i)) wt_message_add(" %s %lld", op->symbol_names[i], (long long)sizes[i]);
  return 0;
}

/* Bytes of a row: of an element of the leading axis. */
static int64_t row_bytes(const WtSlot *slot, const int64_t *sizes) {
  int64_t bytes = slot->dtype.bits / 8;
  for (int32_t i = 1; i < slot->ndim; ++i)
    bytes *= slot->dims[i] < 0 ? sizes[~slot->dims[i]] : slot->dims[i];
  return bytes;
}

static int is_cut(const WtSlot *slot) {
  return slot->role != WT_WORKSPACE && slot->ndim > 0 && slot->dims[0] == ~0;
}

/* Returns the largest piece, at most `piece`, after which all tensors are as aligned as before; 0
   where there is none. Alignments are powers of two, so the greatest multiple is one of all. */
static int64_t aligned_piece(const WtOperator *op, const WtVariant *variant, const int64_t *sizes,
                             int64_t piece) {
  int64_t multiple = 1;
  for (int32_t i = 0; i < op->num_arguments; ++i) {
    const WtSlot *slot = &variant->slots[i];
    if (!is_cut(slot)) continue;
    int64_t bytes = row_bytes(slot, sizes);
    while (bytes * multiple % slot->alignment) multiple *= 2;
  }
  if (piece >= multiple) return piece / multiple * multiple;
  wt_message_begin("ArgumentError");
  wt_message_add("%s: calls are cut into pieces of %lld, which must be a multiple of %lld for tensors "
                 "of such sizes; expected at most %lld %s",
                 op->name, (long long)piece, (long long)multiple, (long long)piece,
                 op->symbol_names[0]);
  return 0;
}

static int is_larger(const WtOperator *op, const WtKernel *kernel, const WtKernel *other) {
  for (int32_t i = first_uncut(op); i < op->num_runtime; ++i)
    if (kernel->upper[i] != other->upper[i]) return kernel->upper[i] > other->upper[i];
  return 0;
}

/* Returns the first, smallest kernel whose upper ends are not exceeded. A size beyond those of all
   kernels counts as the largest of them, so that it chooses nothing; where no kernel is large in
   every respect, the one with the largest upper ends serves the call. */
static const WtKernel *pick(const WtOperator *op, const WtVariant *variant, const int64_t *sizes) {
  const WtKernel *largest = NULL;
  int32_t first = first_uncut(op);
  int64_t most[WT_MAX_SYMBOLS] = {0};
  for (int32_t k = 0; k < variant->num_kernels; ++k) {
    const WtKernel *kernel = &variant->kernels[k];
    if (op->num_runtime && first && sizes[0] > kernel->upper[0]) continue;
    if (!serves(op, kernel, sizes)) continue;
    int32_t fits = first;
    while (fits < op->num_runtime && sizes[fits] <= kernel->upper[fits]) ++fits;
    if (fits >= op->num_runtime) return kernel;
    for (int32_t i = first_uncut(op); i < op->num_runtime; ++i)
      if (kernel->upper[i] > most[i]) most[i] = kernel->upper[i];
    if (!largest || is_larger(op, kernel, largest)) largest = kernel;
  }
  int64_t wanted[WT_MAX_SYMBOLS];
  int32_t cut = 0;
  for (int32_t i = 0; i < op->num_runtime; ++i) {
    wanted[i] = i >= first && sizes[i] > most[i] ? most[i] : sizes[i];
    cut |= wanted[i] != sizes[i];
  }
  return cut ? pick(op, variant, wanted) : largest;
}

/* Returns where the kernel's workspace is: the caller's, or this thread's. On other devices there
   is only the caller's: nothing is allocated, so that calls can be captured into graphs. */
static void *workspace(const WtOperator *op, const WtKernel *kernel, const DLTensor *given) {
  if (kernel->workspace_bytes == 0) return nothing;
  if (!given && wt_place.device == kDLCPU) return wt_scratch(kernel->workspace_bytes);
  if (!given) {
    wt_message_begin("ArgumentError");
    wt_message_add("%s: workspace is missing; expected %lld bytes on the device", op->name,
                   (long long)kernel->workspace_bytes);
    return NULL;
  }
  if (given->shape[0] >= kernel->workspace_bytes) return wt_data(given);
  wt_message_begin("ArgumentError");
  wt_message_add("%s: workspace has %lld bytes; expected at least %lld", op->name,
                 (long long)given->shape[0], (long long)kernel->workspace_bytes);
  return NULL;
}

/* Adds an argument, restricted to `sizes` from row `begin` of run-time size 0. */
static int add_argument(Frame *frame, const WtOperator *op, const WtKernel *kernel,
                        const WtSlot *slot, const DLTensor *tensor, const int64_t *sizes,
                        int64_t begin) {
  int32_t at = frame->count++;
  int64_t *shape = frame->shapes[at];
  void *data;
  if (slot->role == WT_WORKSPACE) {
    shape[0] = kernel->workspace_bytes;
    data = workspace(op, kernel, tensor);
    if (!data) return WT_FAILED;
  } else {
    int64_t row = row_bytes(slot, sizes);
    for (int32_t i = 0; i < slot->ndim; ++i)
      shape[i] = slot->dims[i] < 0 ? sizes[~slot->dims[i]] : slot->dims[i];
    int64_t bytes = slot->ndim > 0 ? row * shape[0] : row;
    data = bytes ? (char *)wt_data(tensor) + (is_cut(slot) ? begin * row : 0) : nothing;
  }
  fill(&frame->values[at], &frame->tensors[at], slot, data, shape);
  return WT_OK;
}

static int run(const WtOperator *op, const WtVariant *variant, const DLTensor *const *args,
               const int64_t *sizes, int64_t begin) {
  const WtKernel *kernel = pick(op, variant, sizes);
  Frame frame;
  frame.count = 0;
  for (int32_t i = 0; i < op->num_arguments; ++i) {
    const WtSlot *slot = &variant->slots[i];
    if (slot->role == WT_ABSENT) continue;
    if (add_argument(&frame, op, kernel, slot, args[i], sizes, begin)) return WT_FAILED;
  }
  TVMFFIAny result = {.type_index = kTVMFFINone};
  return kernel->call(NULL, frame.values, frame.count, &result) ? WT_RAISED : WT_OK;
}

static int call(const WtOperator *op, int32_t only, const DLTensor *const *args,
                const int64_t *most) {
  int64_t sizes[WT_MAX_SYMBOLS];
  int32_t device;
  if (!op->is_pack && wt_check_cpu()) return WT_FAILED;
  const WtVariant *variant = wt_match(op, only, args, sizes);
  if (!variant || wt_check_memory(op, variant, args, &device)) return WT_FAILED;
  if (op->is_pack || wt_place.device == kDLCPU) {
    if (wt_check_values(op, variant, args, sizes)) return WT_FAILED;
  } else {
    if (wt_bound_values(op, variant, most, sizes)) return WT_FAILED;
    wt_place.use(device);
  }
  if (wt_check_extents(op, variant, sizes)) return WT_FAILED;
  if (op->num_runtime == 0 || !first_uncut(op)) return run(op, variant, args, sizes, 0);
  int64_t total = sizes[0];
  if (total == 0) return WT_OK;
  int64_t piece = largest_piece(op, variant, sizes);
  if (piece && total > piece) piece = aligned_piece(op, variant, sizes, piece);
  if (piece == 0) return WT_FAILED;
  for (int64_t begin = 0; begin < total; begin += sizes[0]) {
    sizes[0] = total - begin < piece ? total - begin : piece;
    int status = run(op, variant, args, sizes, begin);
    if (status) return status;
  }
  return WT_OK;
}

/* Reads the bounds that follow the tensors; any number of them may be left out. */
static int unpack_bounds(const WtOperator *op, const TVMFFIAny *args, int32_t count,
                         int64_t *most) {
  for (int32_t i = 0; i < op->num_bounded; ++i) {
    most[i] = 0;
    if (i >= count || args[i].type_index == kTVMFFINone) continue;
    if (args[i].type_index != kTVMFFIInt) {
      wt_message_begin("TypeError");
      wt_message_add("%s: %s is not an integer", op->name, op->symbol_names[op->bounded[i]]);
      return WT_FAILED;
    }
    most[i] = args[i].v_int64;
  }
  return WT_OK;
}

static int unpack(const WtOperator *op, const TVMFFIAny *args, int32_t count,
                  const DLTensor **tensors) {
  if (count < op->num_arguments || count > op->num_arguments + op->num_bounded) {
    wt_message_begin("TypeError");
    wt_message_add("%s: %d arguments; expected %d", op->name, count, op->num_arguments);
    return WT_FAILED;
  }
  for (int32_t i = 0; i < op->num_arguments; ++i) {
    if (args[i].type_index == kTVMFFINone) {
      tensors[i] = NULL;
    } else if (args[i].type_index == kTVMFFIDLTensorPtr) {
      tensors[i] = args[i].v_ptr;
    } else if (args[i].type_index == kTVMFFITensor) {
      /* The tensor follows the object's header. */
      tensors[i] = (const DLTensor *)(args[i].v_obj + 1);
    } else {
      wt_message_begin("TypeError");
      wt_message_add("%s: %s is not a tensor", op->name, op->argument_names[i]);
      return WT_FAILED;
    }
  }
  return WT_OK;
}

int wt_call_ffi(const WtOperator *op, int32_t only, const TVMFFIAny *args, int32_t count) {
  const DLTensor *tensors[WT_MAX_ARGUMENTS];
  int64_t most[WT_MAX_SYMBOLS];
  int status = unpack(op, args, count, tensors);
  if (!status)
    status = unpack_bounds(op, args + op->num_arguments, count - op->num_arguments, most);
  return wt_raise(status ? status : call(op, only, tensors, most));
}

int wt_call_c(const WtOperator *op, int32_t only, const DLTensor *const *args,
              const int64_t *most) {
  int status = call(op, only, args, most);
  wt_keep_raised(status);
  return status == WT_OK ? 0 : -1;
}

int64_t wt_workspace_bytes(const WtOperator *op) {
  int64_t most = 0;
  for (int32_t v = 0; v < op->num_variants; ++v)
    for (int32_t k = 0; k < op->variants[v].num_kernels; ++k)
      if (op->variants[v].kernels[k].workspace_bytes > most)
        most = op->variants[v].kernels[k].workspace_bytes;
  return most;
}

int64_t wt_packed_bytes(const WtOperator *pack, const int64_t *source_shape) {
  for (int32_t v = 0; v < pack->num_variants; ++v) {
    const WtSlot *source = &pack->variants[v].slots[0];
    int32_t same = 0;
    while (same < source->ndim && source->dims[same] == source_shape[same]) ++same;
    if (same == source->ndim) return pack->variants[v].slots[1].dims[0];
  }
  wt_message_begin("ArgumentError");
  wt_message_add("%s: this library packs no source of this shape", pack->name);
  return -1;
}
