/* The few functions of the CUDA driver that launches need, declared here: building a library asks
   for no CUDA headers. */
#ifndef WATTUNE_GPU_DRIVER_H_
#define WATTUNE_GPU_DRIVER_H_

#include <stdint.h>

typedef void *WtContext;

/* Numbers of cuda.h. */
enum {
  WT_OUT_OF_MEMORY = 2,
  WT_COMPUTE_MAJOR = 75,
  WT_COMPUTE_MINOR = 76,
  WT_MAX_DYNAMIC_SHARED = 8,
  WT_PROGRAMMATIC_SERIALIZATION = 6,
  WT_CAPTURE_RELAXED = 2,
};

/* CUlaunchAttribute and CUlaunchConfig. */
typedef struct {
  int id;
  char padding[4];
  union {
    char bytes[64];
    int flag;
  } value;
} WtLaunchAttribute;

typedef struct {
  uint32_t grid[3], block[3];
  uint32_t shared;
  void *stream;
  WtLaunchAttribute *attributes;
  uint32_t num_attributes;
} WtLaunch;

typedef struct {
  int (*Init)(unsigned);
  int (*DriverGetVersion)(int *);
  int (*DeviceGetCount)(int *);
  int (*DeviceGetAttribute)(int *, int, int);
  int (*GetErrorName)(int, const char **);
  int (*GetErrorString)(int, const char **);
  int (*CtxGetCurrent)(WtContext *);
  int (*CtxGetDevice)(int *);
  int (*CtxPushCurrent)(WtContext);
  int (*CtxPopCurrent)(WtContext *);
  int (*DevicePrimaryCtxRetain)(WtContext *, int);
  int (*ModuleLoadData)(void **, const void *);
  int (*ModuleGetFunction)(void **, void *, const char *);
  int (*FuncSetAttribute)(void *, int, int);
  int (*ThreadExchangeStreamCaptureMode)(int *);
  int (*LaunchKernelEx)(const WtLaunch *, void *, void **, void **);
} WtDriver;

extern WtDriver wt_driver;

/* Opens the driver at the first call; returns what is missing ("an NVIDIA driver: ..."), or NULL. */
const char *wt_driver_open(void);

/* Names a status, with the driver's own words. */
const char *wt_driver_error(int status);

#endif
