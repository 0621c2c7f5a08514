/* What generated code gives the launcher of GPU kernels (gpu.c). */
#ifndef WATTUNE_GPU_H_
#define WATTUNE_GPU_H_

#include <stdint.h>

enum { WT_GPU_DEVICES = 16, WT_GPU_PARAMETERS = 32 };

/* parameters[i] is the number of the host's argument that is the kernel's parameter i. */
typedef struct {
  const char *name;
  const uint8_t *parameters;
  int32_t num_parameters;
  int32_t num_passed;
} WtGpuKernel;

/* The loaded kernel of one device, NULL before its first launch, and what was asked for it. */
typedef struct {
  void *function;
  int32_t shared;
} WtGpuLoaded;

typedef struct {
  const void *image; /* a cubin or a fat binary */
  const char *archs; /* what it holds code for: "sm_90a sm_80" */
  int32_t toolkit;   /* what made it, as the driver writes versions: 13000; 0: unknown */
  const WtGpuKernel *kernels;
  int32_t num_kernels;
  void **modules;      /* one for each device */
  WtGpuLoaded *loaded; /* [WT_GPU_DEVICES][num_kernels] */
} WtGpuProgram;

/* Around a host function: launches between the two are of this program's kernels, on the device
   and stream that are current. `end` returns the host's status, or -1 with an error raised. */
void wt_gpu_begin(WtGpuProgram *program);
int wt_gpu_end(int status);

/* What host functions call: arguments of the next launch, in the order of WtGpuKernel; a launch. */
int32_t wt_gpu_pointer(void *pointer);
int32_t wt_gpu_integer(int64_t value);
int32_t wt_gpu_launch(int32_t kernel, int64_t x, int64_t y, int64_t z, int32_t block,
                      int32_t shared, int32_t flags);

/* The device that calls of this thread launch on; -1 (at first): that of the current context. */
void wt_gpu_use_device(int32_t device);

/* Says what this machine lacks to run code for these architectures, or returns NULL. */
const char *wt_gpu_missing(const char *archs);

#endif
