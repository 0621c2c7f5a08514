/* Launches GPU kernels through the driver API, which is opened when first used.

   No CUDA runtime, no allocation, no synchronisation: launches can be captured into graphs. */
#include "gpu.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>

#include "gpu_driver.h"

enum { MESSAGE = 512, SHARED_WITHOUT_ASKING = 48 << 10 };
enum { PROGRAMMATIC = 1, OVERLAPS_FROM = 9 };

/* The state of one call; a host function runs on one thread. */
static _Thread_local struct {
  WtGpuProgram *program;
  uint64_t passed[WT_GPU_PARAMETERS];
  int32_t count;
  int32_t device;
  int failed;
  int pushed;
  char message[MESSAGE];
} now;

static _Thread_local int32_t wanted_device = -1;
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

void wt_gpu_use_device(int32_t device) { wanted_device = device; }

/* Keeps the first error: those after it follow from it. */
static int fail(const char *format, ...) {
  if (now.failed) return -1;
  va_list values;
  va_start(values, format);
  vsnprintf(now.message, sizeof(now.message), format, values);
  va_end(values);
  now.failed = 1;
  return -1;
}

static int check(int status, const char *what) {
  return status ? fail("%s: %s", what, wt_driver_error(status)) : 0;
}

/* Whether a device runs code for "sm_80" (its own generation, from there on), or "sm_90a" (only
   that). `length` is where the name ends. */
static int runs(int device, const char *arch, size_t length) {
  int major = 0, minor = 0;
  int number = atoi(arch + strlen("sm_"));
  if (wt_driver.DeviceGetAttribute(&major, WT_COMPUTE_MAJOR, device) ||
      wt_driver.DeviceGetAttribute(&minor, WT_COMPUTE_MINOR, device))
    return 0;
  int only = arch[length - 1] == 'a';
  return major == number / 10 && (only ? minor == number % 10 : minor >= number % 10);
}

static int runs_any(int device, const char *archs) {
  while (*archs) {
    size_t length = strcspn(archs, " ");
    if (runs(device, archs, length)) return 1;
    archs += length + strspn(archs + length, " ");
  }
  return 0;
}

const char *wt_gpu_missing(const char *archs) {
  static _Thread_local char text[256];
  const char *missing = wt_driver_open();
  if (missing) return missing;
  int count = 0, major = 0, minor = 0;
  wt_driver.DeviceGetCount(&count);
  for (int i = 0; i < count; ++i)
    if (runs_any(i, archs)) return NULL;
  if (count == 0) return "a GPU: the driver has no device";
  wt_driver.DeviceGetAttribute(&major, WT_COMPUTE_MAJOR, 0);
  wt_driver.DeviceGetAttribute(&minor, WT_COMPUTE_MINOR, 0);
  snprintf(text, sizeof(text), "a GPU of %s; here is sm_%d%d", archs, major, minor);
  return text;
}

static int check_device(void) {
  if (now.device < WT_GPU_DEVICES) return 0;
  return fail("device %d; allowed: 0 to %d", now.device, WT_GPU_DEVICES - 1);
}

/* Makes the device's context current: the caller's own where it has one. */
static int enter(void) {
  const char *missing = wt_driver_open();
  if (missing) return fail("GPU kernels need %s", missing);
  WtContext current = NULL;
  if (check(wt_driver.CtxGetCurrent(&current), "cuCtxGetCurrent")) return -1;
  if (current) {
    if (check(wt_driver.CtxGetDevice(&now.device), "cuCtxGetDevice")) return -1;
    if (wanted_device < 0 || wanted_device == now.device) return check_device();
  }
  now.device = wanted_device < 0 ? 0 : wanted_device;
  if (check_device()) return -1;
  /* Kept for as long as the process lives; two threads at once retain it twice, which is well. */
  static WtContext contexts[WT_GPU_DEVICES];
  current = __atomic_load_n(&contexts[now.device], __ATOMIC_ACQUIRE);
  if (!current) {
    if (check(wt_driver.DevicePrimaryCtxRetain(&current, now.device), "cuDevicePrimaryCtxRetain"))
      return -1;
    __atomic_store_n(&contexts[now.device], current, __ATOMIC_RELEASE);
  }
  if (check(wt_driver.CtxPushCurrent(current), "cuCtxPushCurrent")) return -1;
  now.pushed = 1;
  return 0;
}

void wt_gpu_begin(WtGpuProgram *program) {
  now.program = program;
  now.count = now.failed = now.pushed = 0;
  enter();
}

int wt_gpu_end(int status) {
  WtContext popped;
  if (now.pushed) check(wt_driver.CtxPopCurrent(&popped), "cuCtxPopCurrent");
  if (!now.failed) return status;
  TVMFFIErrorSetRaisedFromCStr("DeviceError", now.message);
  return -1;
}

static int32_t pass(uint64_t bits) {
  if (now.count == WT_GPU_PARAMETERS) return fail("more than %d arguments", WT_GPU_PARAMETERS);
  now.passed[now.count++] = bits;
  return 0;
}

int32_t wt_gpu_pointer(void *pointer) { return pass((uint64_t)(uintptr_t)pointer); }

int32_t wt_gpu_integer(int64_t value) { return pass((uint64_t)value); }

/* Says why the driver does not take the image: statuses alone say that it does not. */
static int refused(int status) {
  const WtGpuProgram *program = now.program;
  int driver = 0;
  wt_driver.DriverGetVersion(&driver);
  if (status == WT_OUT_OF_MEMORY)
    return fail("device %d has no memory left for the GPU code of this library", now.device);
  if (!runs_any(now.device, program->archs))
    return fail("device %d cannot run this library, which holds GPU code for %s: %s", now.device,
                program->archs, wt_driver_error(status));
  if (driver < program->toolkit)
    return fail("the driver is too old: it supports CUDA %d.%d, this library's GPU code was made by "
                "CUDA %d.%d: %s",
                driver / 1000, driver % 1000 / 10, program->toolkit / 1000,
                program->toolkit % 1000 / 10, wt_driver_error(status));
  return check(status, "loading GPU code");
}

/* Loads the program's image for the current device. */
static int load_module(void) {
  void **module = &now.program->modules[now.device];
  if (*module) return 0;
  int status = wt_driver.ModuleLoadData(module, now.program->image);
  return status ? refused(status) : 0;
}

static int load(int32_t kernel, int32_t shared, WtGpuLoaded *loaded) {
  const char *name = now.program->kernels[kernel].name;
  void *function = loaded->function;
  if (!function) {
    if (load_module()) return -1;
    void *module = now.program->modules[now.device];
    if (check(wt_driver.ModuleGetFunction(&function, module, name), name)) return -1;
  }
  if (shared > SHARED_WITHOUT_ASKING && shared > loaded->shared) {
    if (wt_driver.FuncSetAttribute(function, WT_MAX_DYNAMIC_SHARED, shared))
      return fail("%s: the device does not give a block %d bytes of shared memory", name, shared);
    loaded->shared = shared;
  }
  __atomic_store_n(&loaded->function, function, __ATOMIC_RELEASE);
  return 0;
}

/* Loading is no part of a captured graph: it is allowed there where we say that we know. */
static int load_once(int32_t kernel, int32_t shared, WtGpuLoaded *loaded) {
  int mode = WT_CAPTURE_RELAXED;
  pthread_mutex_lock(&loading);
  wt_driver.ThreadExchangeStreamCaptureMode(&mode);
  int status = load(kernel, shared, loaded);
  wt_driver.ThreadExchangeStreamCaptureMode(&mode);
  pthread_mutex_unlock(&loading);
  return status;
}

/* Whether kernels of the current device may start before the one before them has ended. */
static int overlaps(void) {
  static int8_t majors[WT_GPU_DEVICES]; /* two threads may ask the driver at once, for the same */
  int major = __atomic_load_n(&majors[now.device], __ATOMIC_RELAXED);
  if (!major && !wt_driver.DeviceGetAttribute(&major, WT_COMPUTE_MAJOR, now.device))
    __atomic_store_n(&majors[now.device], (int8_t)major, __ATOMIC_RELAXED);
  return major >= OVERLAPS_FROM;
}

int32_t wt_gpu_launch(int32_t kernel, int64_t x, int64_t y, int64_t z, int32_t block,
                      int32_t shared, int32_t flags) {
  const WtGpuKernel *info = &now.program->kernels[kernel];
  int32_t count = now.count;
  now.count = 0;
  if (now.failed || x <= 0 || y <= 0 || z <= 0) return 0; /* nothing to do is no launch */
  if (count != info->num_passed) return fail("%s: %d arguments", info->name, count);
  if (x > INT32_MAX || y > 65535 || z > 65535)
    return fail("%s: a grid of %lld x %lld x %lld blocks is too large", info->name, (long long)x,
                (long long)y, (long long)z);
  WtGpuLoaded *loaded = &now.program->loaded[now.device * now.program->num_kernels + kernel];
  if ((!__atomic_load_n(&loaded->function, __ATOMIC_ACQUIRE) || shared > loaded->shared) &&
      load_once(kernel, shared, loaded))
    return -1;
  void *parameters[WT_GPU_PARAMETERS];
  for (int32_t i = 0; i < info->num_parameters; ++i)
    parameters[i] = &now.passed[info->parameters[i]];
  WtLaunchAttribute serial = {.id = WT_PROGRAMMATIC_SERIALIZATION, .value = {.flag = 1}};
  WtLaunch launch = {
      .grid = {(uint32_t)x, (uint32_t)y, (uint32_t)z},
      .block = {(uint32_t)block, 1, 1},
      .shared = (uint32_t)shared,
      .stream = TVMFFIEnvGetStream(kDLCUDA, now.device),
      .attributes = &serial,
      .num_attributes = flags & PROGRAMMATIC && overlaps() ? 1 : 0,
  };
  return check(wt_driver.LaunchKernelEx(&launch, loaded->function, parameters, NULL), info->name);
}

__attribute__((visibility("default"))) int wattune_set_stream(int device, void *stream) {
  return TVMFFIEnvSetStream(kDLCUDA, device, stream, NULL);
}
