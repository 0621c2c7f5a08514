// Where threads wait for each other: instructions of warps, barriers of blocks.
#pragma once
#include "threads.h"

namespace emu {

// Runs `op` once for all lanes of `mask` that have not left, when the last of them is here: it
// finds each one's `in` and `out` by lane, NULL for lanes that are not here.
using Operation = void (*)(const void *const *in, void *const *out);
void meet(const char *name, uint32_t mask, const void *in, void *out, Operation op);

// As above for instructions of whole warps (.aligned).
void meet_all(const char *name, const void *in, void *out, Operation op);

// As above for four warps: `in` and `out` are of 128 threads.
void meet_warpgroup(const char *name, const void *in, void *out, Operation op);

uint32_t active_lanes();

// Barrier `id`; `count` 0 stands for all threads that have not left. `vote` is what the thread
// says; returns how many said so.
unsigned barrier(unsigned id, unsigned count, bool vote = false);
void barrier_arrive(unsigned id, unsigned count);

}  // namespace emu
