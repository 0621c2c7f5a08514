// libcuda.so.1: the CUDA driver API over host memory; kernels are host code with fibres.
//
// One device, one context; work is done when it is asked for, on whatever stream. Images are what
// image.py makes: a mark, the size and a shared object.
#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <map>
#include <string>
#include <vector>

#include "memory.h"
#include "threads.h"

using emu::Launch;

namespace {

enum { kMaxThreads = 1024, kMaxGridYZ = 65535, kSharedWithoutAsking = 48 << 10 };

struct Attribute {
  int id;
  char padding[4];
  union {
    char bytes[64];
    int flag;
  } value;
};

struct Config {
  unsigned grid[3], block[3], shared;
  void *stream;
  Attribute *attributes;
  unsigned num_attributes;
};

struct Function {
  emu::Entry entry;
  const int *sizes;  // of the parameters in bytes; -1 ends them
  std::string name;
  unsigned max_shared = kSharedWithoutAsking;
  unsigned launches = 0;
};

// A parameter's value; tensor maps are the largest and the most aligned.
struct alignas(CUtensorMap) Value {
  char bytes[sizeof(CUtensorMap)];
};

struct Module {
  void *library;
  std::map<std::string, Function> functions;
};

int context_mark;
thread_local std::vector<void *> contexts;
thread_local char last_words[1024];
int launch(const Config &config, Function *function, const std::vector<Value> &values,
           bool programmatic) {
  std::vector<void *> arguments;
  for (const Value &value : values) arguments.push_back((void *)value.bytes);
  Launch l = {function->entry,
              arguments.data(),
              {config.grid[0], config.grid[1], config.grid[2]},
              {config.block[0], config.block[1], config.block[2]},
              config.shared,
              programmatic,
              (function->launches++ & 1) != 0};
  char text[768], words[1024];
  emu::Status status = emu::run(l, text, sizeof(text));
  if (!status) return 0;
  snprintf(words, sizeof(words), "%s: %s", function->name.c_str(), text);
  return emu::failed(status, words);
}

const char *name_of(int status) {
  switch (status) {
    case 0: return "CUDA_SUCCESS";
    case emu::kInvalidValue: return "CUDA_ERROR_INVALID_VALUE";
    case emu::kOutOfMemory: return "CUDA_ERROR_OUT_OF_MEMORY";
    case emu::kNoBinary: return "CUDA_ERROR_NO_BINARY_FOR_GPU";
    case emu::kNotFound: return "CUDA_ERROR_NOT_FOUND";
    case emu::kIllegalAddress: return "CUDA_ERROR_ILLEGAL_ADDRESS";
    case emu::kMisaligned: return "CUDA_ERROR_MISALIGNED_ADDRESS";
    case emu::kLaunchFailed: return "CUDA_ERROR_LAUNCH_FAILED";
    default: return "CUDA_ERROR_UNKNOWN";
  }
}

}  // namespace

int emu::failed(int status, const char *words) {
  snprintf(last_words, sizeof(last_words), "%s", words);
  return status;
}

using namespace emu;

extern "C" {

// Each launch of a kernel runs in the order opposite to its last; this turns all round.
void emu_reverse(int on) { emu::reversed = on; }

int cuInit(unsigned) {
  // Images find the emulator's functions here, whoever opened it.
  return dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL) ? 0 : 999;
}

int cuDriverGetVersion(int *version) { return *version = 13000, 0; }

int cuGetErrorName(int status, const char **name) { return *name = name_of(status), 0; }

int cuGetErrorString(int status, const char **words) {
  *words = status && last_words[0] ? last_words : "no error";
  return 0;
}

int cuDeviceGetCount(int *count) { return *count = 1, 0; }

int cuDeviceGet(int *found, int ordinal) {
  if (ordinal) return failed(101, "the emulator has one device");
  return *found = 0;
}

int cuDeviceGetName(char *name, int size, int) {
  snprintf(name, size, "emulated sm_90");
  return 0;
}

int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = (size_t)141 << 30, 0; }

int cuDeviceGetUuid_v2(char *uuid, int) {
  memset(uuid, 0, 16);
  return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
  static const std::map<int, int> known = {
      {1, kMaxThreads},     // MAX_THREADS_PER_BLOCK
      {2, 1024},            // MAX_BLOCK_DIM_X, Y, Z
      {3, 1024},
      {4, 64},
      {5, 2147483647},      // MAX_GRID_DIM_X, Y, Z
      {6, kMaxGridYZ},
      {7, kMaxGridYZ},
      {8, 49152},           // MAX_SHARED_MEMORY_PER_BLOCK
      {10, 32},             // WARP_SIZE
      {12, 65536},          // MAX_REGISTERS_PER_BLOCK
      {13, 1980000},        // CLOCK_RATE, kHz
      {16, 132},            // MULTIPROCESSOR_COUNT
      {36, 2619000},        // MEMORY_CLOCK_RATE, kHz
      {37, 5120},           // GLOBAL_MEMORY_BUS_WIDTH, bits
      {38, 60 << 20},       // L2_CACHE_SIZE
      {39, 2048},           // MAX_THREADS_PER_MULTIPROCESSOR
      {75, 9},              // COMPUTE_CAPABILITY_MAJOR, MINOR
      {76, 0},
      {81, 233472},         // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
      {97, (int)emu::kMaxShared},  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
      {106, 32},            // MAX_BLOCKS_PER_MULTIPROCESSOR
      {111, 1024},          // RESERVED_SHARED_MEMORY_PER_BLOCK
  };
  auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;
  return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int) { return *context = &context_mark, 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxGetCurrent(void **context) {
  *context = contexts.empty() ? nullptr : contexts.back();
  return 0;
}
int cuCtxSetCurrent(void *context) {
  if (!contexts.empty()) contexts.pop_back();
  if (context) contexts.push_back(context);
  return 0;
}
int cuCtxGetDevice(int *found) { return *found = 0; }
int cuCtxPushCurrent_v2(void *context) { return contexts.push_back(context), 0; }
int cuCtxPopCurrent_v2(void **context) {
  if (contexts.empty()) return failed(201, "no context is current");
  *context = contexts.back();
  contexts.pop_back();
  return 0;
}
int cuCtxSynchronize() { return 0; }
int cuThreadExchangeStreamCaptureMode(int *) { return 0; }

int cuModuleLoadData(void **module, const void *image) {
  static const char mark[8] = {'W', 'T', 'E', 'M', 'U', 0, 0, 1};
  uint64_t size;
  if (memcmp(image, mark, sizeof(mark))) return failed(kNoBinary, "not an emulator's image");
  memcpy(&size, (const char *)image + sizeof(mark), sizeof(size));
  // A file of its own: the loader takes two of one name for the same library.
  std::string path = (getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp") + std::string("/kernelXXXXXX");
  int file = mkstemp(path.data());
  const char *data = (const char *)image + sizeof(mark) + sizeof(size);
  for (uint64_t done = 0; file >= 0 && done < size;) {
    ssize_t wrote = write(file, data + done, size - done);
    if (wrote <= 0) break;
    done += (uint64_t)wrote;
  }
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const char *words = library ? "" : dlerror();
  close(file);
  unlink(path.c_str());
  if (!library) return failed(kNoBinary, words);
  *module = new Module{library, {}};
  return 0;
}

int cuModuleUnload(void *handle) {
  auto *module = (Module *)handle;
  dlclose(module->library);
  delete module;
  return 0;
}

int cuModuleGetFunction(void **function, void *handle, const char *name) {
  auto *module = (Module *)handle;
  void *entry = dlsym(module->library, (std::string("emu_entry_") + name).c_str());
  void *sizes = dlsym(module->library, (std::string("emu_sizes_") + name).c_str());
  if (!entry || !sizes) return failed(kNotFound, name);
  auto &found = module->functions[name];
  found.entry = (emu::Entry)entry;
  found.sizes = (const int *)sizes;
  found.name = name;
  *function = &found;
  return 0;
}

int cuFuncSetAttribute(void *handle, int attribute, int value) {
  if (attribute != 8) return 0;  // MAX_DYNAMIC_SHARED_SIZE_BYTES
  if (value < 0 || (unsigned)value > emu::kMaxShared)
    return failed(kInvalidValue, "a block may have 232448 bytes of shared memory");
  ((Function *)handle)->max_shared = (unsigned)value;
  return 0;
}

int cuFuncGetAttribute(int *value, int attribute, void *handle) {
  *value = attribute == 8 ? (int)((Function *)handle)->max_shared : 0;
  return 0;
}

int cuLaunchKernelEx(const Config *config, void *handle, void **parameters, void **) {
  auto *function = (Function *)handle;
  const unsigned *b = config->block, *g = config->grid;
  if (!g[0] || !g[1] || !g[2] || g[1] > kMaxGridYZ || g[2] > kMaxGridYZ || !b[0] || !b[1] ||
      !b[2] || (uint64_t)b[0] * b[1] * b[2] > kMaxThreads)
    return failed(kInvalidValue, "grid or block out of range");
  if (config->shared > function->max_shared)
    return failed(kInvalidValue, "more dynamic shared memory than was asked for the function");
  bool programmatic = false;
  for (unsigned i = 0; i < config->num_attributes; ++i)
    programmatic |= config->attributes[i].id == 6 && config->attributes[i].value.flag;
  std::vector<Value> values;  // a recorded launch outlives the caller's parameters
  for (const int *size = function->sizes; *size >= 0; ++size) {
    if ((size_t)*size > sizeof(Value)) return failed(kInvalidValue, "a parameter of this size");
    const void *from = parameters[values.size()];
    memcpy(values.emplace_back().bytes, from, *size);
  }
  Config copy = *config;
  return submit(config->stream, [=] { return launch(copy, function, values, programmatic); });
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **parameters, void **extra) {
  Config config = {{gx, gy, gz}, {bx, by, bz}, shared, stream, nullptr, 0};
  return cuLaunchKernelEx(&config, function, parameters, extra);
}

}  // extern "C"
