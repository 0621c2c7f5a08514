// What the parts of the driver share: errors, and work on streams.
#pragma once
#include <functional>

namespace emu {

enum { kInvalidValue = 1, kOutOfMemory = 2, kNoBinary = 209, kNotFound = 500 };

// Keeps the words that cuGetErrorString answers with; returns the status.
int failed(int status, const char *words);

// Does something now, or keeps it for the graph that the stream records.
int submit(void *stream, std::function<int()> work);

}  // namespace emu
