/* Checks of memory at the boundary: devices, order, alignment, overlap. */
#include "runtime.h"

void *wt_data(const DLTensor *tensor) { return (char *)tensor->data + tensor->byte_offset; }

static int is_contiguous(const DLTensor *tensor) {
  if (!tensor->strides) return 1;
  int64_t stride = 1;
  for (int32_t i = tensor->ndim; i-- > 0;) {
    if (tensor->shape[i] != 1 && tensor->strides[i] != stride) return 0;
    stride *= tensor->shape[i];
  }
  return 1;
}

int64_t wt_elements(const DLTensor *tensor) {
  int64_t count = 1;
  for (int32_t i = 0; i < tensor->ndim; ++i) count *= tensor->shape[i];
  return count;
}

/* A caller may copy an input into better memory and call again: its own kind of error. */
static void refuse(const char *op, const char *name, const WtSlot *slot) {
  wt_message_begin(slot->role == WT_INPUT ? "LayoutError" : "ArgumentError");
  wt_message_add("%s: %s ", op, name);
}

static int not_copied(const WtSlot *slot) {
  if (slot->role == WT_STATE) wt_message_add(" (a state is never copied)");
  return WT_FAILED;
}

static int check_tensor(const char *op, const char *name, const WtSlot *slot,
                        const DLTensor *tensor) {
  if (wt_elements(tensor) == 0) return WT_OK;
  if (!tensor->data) {
    refuse(op, name, slot);
    wt_message_add("has no data");
    return WT_FAILED;
  }
  if (!is_contiguous(tensor)) {
    refuse(op, name, slot);
    wt_message_add("is not contiguous; expected row-major order without gaps");
    return not_copied(slot);
  }
  if ((uintptr_t)wt_data(tensor) % slot->alignment) {
    refuse(op, name, slot);
    wt_message_add("is at address %p; expected a multiple of %u", wt_data(tensor), slot->alignment);
    return not_copied(slot);
  }
  return WT_OK;
}

static int is_readable(DLDeviceType wanted, DLDeviceType given) {
  if (wanted == kDLCPU) return given == kDLCPU || given == kDLCUDAHost;
  return given == wanted || (wanted == kDLCUDA && given == kDLCUDAManaged);
}

static void add_device(DLDevice device) {
  if (device.device_type == kDLCPU)
    wt_message_add("the CPU");
  else if (device.device_type == kDLCUDA || device.device_type == kDLCUDAManaged)
    wt_message_add("CUDA device %d", device.device_id);
  else
    wt_message_add("DLPack device type %d", (int)device.device_type);
}

/* All tensors are on one device of the kind that the kernels are for. */
static int check_devices(const WtOperator *op, const DLTensor *const *args, int32_t *device) {
  DLDeviceType wanted = op->is_pack ? kDLCPU : wt_place.device;
  int32_t first = -1;
  for (int32_t i = 0; i < op->num_arguments; ++i) {
    if (!args[i]) continue;
    if (first < 0) first = i;
    int right = is_readable(wanted, args[i]->device.device_type);
    if (right && (wanted == kDLCPU || args[i]->device.device_id == args[first]->device.device_id))
      continue;
    wt_message_begin("ArgumentError");
    wt_message_add("%s: %s is on ", op->name, op->argument_names[i]);
    add_device(args[i]->device);
    if (right) {
      wt_message_add(", %s on ", op->argument_names[first]);
      add_device(args[first]->device);
      wt_message_add("; expected one device");
    } else {
      wt_message_add("; expected %s", wanted == kDLCPU ? "the CPU" : "a CUDA device");
    }
    return WT_FAILED;
  }
  *device = first < 0 ? 0 : args[first]->device.device_id;
  return WT_OK;
}

static int overlap(const DLTensor *a, const DLTensor *b) {
  const char *first = wt_data(a), *second = wt_data(b);
  int64_t a_bytes = wt_elements(a) * a->dtype.bits / 8, b_bytes = wt_elements(b) * b->dtype.bits / 8;
  return a_bytes && b_bytes && first < second + b_bytes && second < first + a_bytes;
}

int wt_check_memory(const WtOperator *op, const WtVariant *variant, const DLTensor *const *args,
                    int32_t *device) {
  if (check_devices(op, args, device)) return WT_FAILED;
  for (int32_t i = 0; i < op->num_arguments; ++i)
    if (args[i] && check_tensor(op->name, op->argument_names[i], &variant->slots[i], args[i]))
      return WT_FAILED;
  for (int32_t i = 0; i < op->num_arguments; ++i) {
    if (!args[i] || !variant->slots[i].written) continue;
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
