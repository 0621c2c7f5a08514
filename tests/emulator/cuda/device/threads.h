// Threads of a block as fibres: one runs until it waits for the others.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "types.h"

namespace emu {

constexpr int kWarp = 32, kWarpgroup = 128;
constexpr unsigned kThreads = 1024;

// Statuses of the driver that launches answer with.
enum Status { kSuccess = 0, kIllegalAddress = 700, kMisaligned = 716, kLaunchFailed = 719 };

struct Warp {
  uint32_t alive;  // lanes that have not left
  int number;
};

// One asynchronous copy; the rest of `bytes` after `valid` becomes zero.
struct Copy {
  char *to;
  const char *from;
  int bytes, valid;
};

struct Product;

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
  // wgmma: how many were begun, whether registers are in order before the next one, those of the
  // group that is not committed, groups; what cp.async copied since the last fence.proxy.async.
  int begun;
  bool ordered;
  std::vector<Product> begun_products;
  std::deque<std::vector<Product>> products;
  std::vector<uint32_t> copied;
};

struct Grid {
  uint3 index;
  dim3 blocks, threads;
};

extern Thread *self;
extern Grid grid;
extern unsigned alive;  // threads of the block that have not left

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

// Runs when nothing else can: asynchronous work that may land late. False where there is none.
bool land_one();

// What a new block starts without; what a thread that leaves stands in the way of no longer.
void forget_async();
void forget_products();
void forget_meetings();
void leave_meetings();

// What a thread that leaves has left undone, or NULL.
const char *unfinished_products(const Thread &thread);
// The same of a block that is over.
const char *unequal_products(const Thread *threads, unsigned count);

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
