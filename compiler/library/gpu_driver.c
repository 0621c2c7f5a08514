/* Finds the CUDA driver of the machine. */
#define _GNU_SOURCE
#include "gpu_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>

WtDriver wt_driver;

static char problem[256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Newer forms of functions have a suffix. */
static const struct {
  const char *name;
  size_t offset;
} functions[] = {
    {"cuInit", offsetof(WtDriver, Init)},
    {"cuDriverGetVersion", offsetof(WtDriver, DriverGetVersion)},
    {"cuDeviceGetCount", offsetof(WtDriver, DeviceGetCount)},
    {"cuDeviceGetAttribute", offsetof(WtDriver, DeviceGetAttribute)},
    {"cuGetErrorName", offsetof(WtDriver, GetErrorName)},
    {"cuGetErrorString", offsetof(WtDriver, GetErrorString)},
    {"cuCtxGetCurrent", offsetof(WtDriver, CtxGetCurrent)},
    {"cuCtxGetDevice", offsetof(WtDriver, CtxGetDevice)},
    {"cuCtxPushCurrent_v2", offsetof(WtDriver, CtxPushCurrent)},
    {"cuCtxPopCurrent_v2", offsetof(WtDriver, CtxPopCurrent)},
    {"cuDevicePrimaryCtxRetain", offsetof(WtDriver, DevicePrimaryCtxRetain)},
    {"cuModuleLoadData", offsetof(WtDriver, ModuleLoadData)},
    {"cuModuleGetFunction", offsetof(WtDriver, ModuleGetFunction)},
    {"cuFuncSetAttribute", offsetof(WtDriver, FuncSetAttribute)},
    {"cuThreadExchangeStreamCaptureMode", offsetof(WtDriver, ThreadExchangeStreamCaptureMode)},
    {"cuLaunchKernelEx", offsetof(WtDriver, LaunchKernelEx)},
};

static void open_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(problem, sizeof(problem), "an NVIDIA driver: libcuda.so.1 cannot be opened");
    return;
  }
  for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); ++i) {
    void *found = dlsym(library, functions[i].name);
    if (!found) {
      snprintf(problem, sizeof(problem), "a newer NVIDIA driver: this one has no %s",
               functions[i].name);
      return;
    }
    *(void **)((char *)&wt_driver + functions[i].offset) = found;
  }
  int status = wt_driver.Init(0);
  if (status) snprintf(problem, sizeof(problem), "a GPU: cuInit: %s", wt_driver_error(status));
}

const char *wt_driver_open(void) {
  pthread_once(&once, open_driver);
  return problem[0] ? problem : NULL;
}

const char *wt_driver_error(int status) {
  static _Thread_local char text[256];
  const char *name = NULL, *words = NULL;
  wt_driver.GetErrorName(status, &name);
  wt_driver.GetErrorString(status, &words);
  snprintf(text, sizeof(text), "%s (%d): %s", name ? name : "unknown CUDA error", status,
           words ? words : "the driver does not know it");
  return text;
}
