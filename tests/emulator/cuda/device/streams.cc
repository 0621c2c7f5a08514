// Memory, streams, graphs and events of the driver.
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <mutex>
#include <vector>

#include "driver.h"
#include "memory.h"

namespace {

using Steps = std::vector<std::function<int()>>;

struct Stream {
  Steps *recorded = nullptr;
};

std::recursive_mutex device;
Stream default_stream;

Stream *stream_of(void *handle) {
  // 1 and 2 are names of the default streams.
  return (uintptr_t)handle <= 2 ? &default_stream : (Stream *)handle;
}

}  // namespace

int emu::submit(void *handle, std::function<int()> work) {
  Stream *stream = stream_of(handle);
  if (stream->recorded) {
    stream->recorded->push_back(std::move(work));
    return 0;
  }
  std::lock_guard<std::recursive_mutex> lock(device);
  return work();
}

using namespace emu;

extern "C" {

int cuMemAlloc_v2(void **pointer, size_t bytes) {
  *pointer = emu::device_allocate(bytes);
  return *pointer ? 0 : failed(kOutOfMemory, "out of memory");
}
int cuMemFree_v2(void *pointer) {
  const char *words = emu::device_free(pointer);
  return words ? failed(kInvalidValue, words) : 0;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  *free = *total = (size_t)141 << 30;
  return 0;
}
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
  return submit(stream, [=] { return memcpy(to, from, bytes), 0; });
}
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
  return cuMemcpyHtoDAsync_v2(to, from, bytes, stream);
}
int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
  return cuMemcpyHtoDAsync_v2(to, from, bytes, stream);
}
int cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes) {
  return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}
int cuMemcpyDtoH_v2(void *to, const void *from, size_t bytes) {
  return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}
int cuMemcpyDtoD_v2(void *to, const void *from, size_t bytes) {
  return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}
int cuMemsetD8Async(void *to, unsigned char value, size_t count, void *stream) {
  return submit(stream, [=] { return memset(to, value, count), 0; });
}
int cuMemsetD8_v2(void *to, unsigned char value, size_t count) {
  return cuMemsetD8Async(to, value, count, nullptr);
}
int cuMemsetD32Async(unsigned *to, unsigned value, size_t count, void *stream) {
  return submit(stream, [=] {
    for (size_t i = 0; i < count; ++i) to[i] = value;
    return 0;
  });
}

int cuStreamCreate(void **stream, unsigned) { return *stream = new Stream(), 0; }
int cuStreamDestroy_v2(void *stream) { return delete (Stream *)stream, 0; }
int cuStreamSynchronize(void *stream) {
  return stream_of(stream)->recorded ? failed(900, "the stream is recording a graph") : 0;
}
int cuStreamWaitEvent(void *, void *, unsigned) { return 0; }

int cuStreamBeginCapture_v2(void *stream, int) {
  if (stream_of(stream) == &default_stream) return failed(900, "the default stream records nothing");
  stream_of(stream)->recorded = new Steps();
  return 0;
}
int cuStreamEndCapture(void *handle, void **graph) {
  Stream *stream = stream_of(handle);
  if (!stream->recorded) return failed(901, "the stream records nothing");
  *graph = new Steps(std::move(*stream->recorded));
  delete stream->recorded;
  stream->recorded = nullptr;
  return 0;
}
int cuStreamIsCapturing(void *stream, int *answer) {
  *answer = stream_of(stream)->recorded != nullptr;
  return 0;
}
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long) {
  *made = new Steps(*(Steps *)graph);
  return 0;
}
int cuGraphLaunch(void *graph, void *stream) {
  for (const auto &step : *(Steps *)graph)
    if (int status = submit(stream, step)) return status;
  return 0;
}
int cuGraphDestroy(void *graph) { return delete (Steps *)graph, 0; }
int cuGraphExecDestroy(void *graph) { return delete (Steps *)graph, 0; }
int cuGraphUpload(void *, void *) { return 0; }

// Events hold the host's time: work is over when it is recorded.
int cuEventCreate(void **event, unsigned) { return *event = calloc(1, sizeof(timespec)), 0; }
int cuEventDestroy_v2(void *event) { return free(event), 0; }
int cuEventRecord(void *event, void *stream) {
  return submit(stream, [=] { return clock_gettime(CLOCK_MONOTONIC, (timespec *)event); });
}
int cuEventSynchronize(void *) { return 0; }
int cuEventQuery(void *) { return 0; }
int cuEventElapsedTime(float *milliseconds, void *from, void *to) {
  const timespec &a = *(timespec *)from, &b = *(timespec *)to;
  *milliseconds = (float)((b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) * 1e-6);
  return 0;
}
int cuEventElapsedTime_v2(float *milliseconds, void *from, void *to) {
  return cuEventElapsedTime(milliseconds, from, to);
}

}  // extern "C"
