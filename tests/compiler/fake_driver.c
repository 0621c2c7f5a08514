/* A libcuda.so.1 that answers as the environment says, and tells of launches on standard output.

   FAKE_INIT, FAKE_LOAD, FAKE_LAUNCH, FAKE_SHARED: statuses; FAKE_DEVICES, FAKE_MAJOR, FAKE_MINOR,
   FAKE_VERSION: what the machine has. Kernels are not run. */
#include <stdio.h>
#include <stdlib.h>

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

static _Thread_local int current = -1;

int cuInit(unsigned flags) { return (void)flags, number("FAKE_INIT", 0); }
int cuDriverGetVersion(int *version) { return *version = number("FAKE_VERSION", 13000), 0; }
int cuGetErrorName(int status, const char **name) {
  *name = status == 2     ? "CUDA_ERROR_OUT_OF_MEMORY"
          : status == 100 ? "CUDA_ERROR_NO_DEVICE"
          : status == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
          : status == 222 ? "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
                          : NULL;
  return 0;
}
int cuGetErrorString(int status, const char **words) {
  *words = status == 999 ? NULL : "words of the driver";
  return 0;
}
int cuDeviceGetCount(int *count) { return *count = number("FAKE_DEVICES", 1), 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  *value = attribute == 75 ? number("FAKE_MAJOR", 9) : number("FAKE_MINOR", 0);
  return 0;
}
int cuCtxGetCurrent(void **context) {
  *context = current < 0 ? NULL : (void *)(long)(current + 1);
  return 0;
}
int cuCtxGetDevice(int *device) { return *device = current, 0; }
int cuCtxPushCurrent_v2(void *context) { return current = (int)(long)context - 1, 0; }
int cuCtxPopCurrent_v2(void **context) {
  *context = (void *)(long)(current + 1);
  return current = -1, 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = (void *)(long)(device + 1);
  return 0;
}
int cuModuleLoadData(void **module, const void *image) {
  (void)image;
  *module = (void *)8;
  printf("load on %d\n", current);
  return number("FAKE_LOAD", 0);
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  (void)module;
  *function = (void *)name;
  return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
  (void)function, (void)attribute, (void)value;
  return number("FAKE_SHARED", 0);
}
int cuThreadExchangeStreamCaptureMode(int *mode) { return (void)mode, 0; }

/* CUlaunchConfig. */
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream;
  void *attributes;
  unsigned num_attributes;
} Launch;

int cuLaunchKernelEx(const Launch *launch, void *function, void **parameters, void **extra) {
  (void)parameters, (void)extra;
  printf("%s of %u on %d stream %lu%s\n", (const char *)function, launch->grid[0], current,
         (unsigned long)launch->stream, launch->num_attributes ? " early" : "");
  fflush(stdout);
  return number("FAKE_LAUNCH", 0);
}
