// Threads of a block as fibres: one runs until it waits for the others.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "types.h"

namespace emu {

constexpr int kWarp = 32, kWarpgroup = 128;

// Statuses of the driver that launches answer with.
enum Status { kSuccess = 0, kIllegalAddress = 700, kMisaligned = 716, kLaunchFailed = 719 };

struct Warp;

// One asynchronous copy; the rest of `bytes` after `valid` becomes zero.
struct Copy {
  char *to;
  const char *from;
  int bytes, valid;
};

struct Thread {
  void *stack_pointer;
  char *stack_end;
  const uint32_t *cell;  // runs when this no longer holds `seen`
  uint32_t seen;
  const char *where;
  bool done, polled;
  int lane, number;
  int site;  // the line of an instruction of whole warps, 0 where it is not known
  Warp *warp;
  uint3 index;
  std::vector<Copy> open;  // copies of the group that is not committed
  std::deque<std::vector<Copy>> groups;
};

struct Grid {
  uint3 index;
  dim3 blocks, threads;
};

extern Thread *self;
extern Grid grid;

// Ends the launch with a status and a sentence; never returns.
[[noreturn]] void fail_as(Status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Gives the current thread up, after a failure.
[[noreturn]] void abandon();

// Lets other threads run until *cell differs from `seen`; `where` is what a deadlock shows.
void wait_while(const uint32_t *cell, uint32_t seen, const char *where);

// Lets other threads run once; for loops that poll memory.
void poll(const char *where);

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

// Runs when nothing else can: asynchronous work that may land late. False where there is none.
bool land_one();
void forget_async();

using Entry = void (*)(void **arguments);
struct Launch {
  Entry entry;
  void **arguments;
  dim3 blocks, threads;
  unsigned shared;
  bool programmatic;
  bool backwards;  // blocks, and in each block warps and lanes
};

// Runs all blocks one after the other. `text` gets the sentence of a failure.
Status run(const Launch &launch, char *text, size_t size);

// Turns the order of every launch round.
extern bool reversed;

// The kernel waited for the one before it (griddepcontrol.wait).
extern bool waited_for_grid;

}  // namespace emu
