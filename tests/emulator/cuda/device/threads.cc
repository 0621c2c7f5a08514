// The scheduler of fibres.
#include "threads.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "faults.h"
#include "memory.h"
#include "warpgroup.h"

#ifndef __x86_64__
#error "fibres are switched in x86-64 assembly"
#endif

namespace emu {

Thread *self;
Grid grid;
bool reversed;
bool waited_for_grid;
unsigned alive;

namespace {

constexpr int kPatience = 10000;  // rounds in which threads only poll

Thread threads[kThreads];
Warp warps[kThreads / kWarp];
unsigned num_threads;
void *scheduler;
Launch running;
char *stacks;

extern "C" void emu_switch(void **save, void *load);
asm(R"(
.text
.local emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

void suspend() { emu_switch(&self->stack_pointer, scheduler); }

void leave() {
  self->done = true;
  --alive;
  self->warp->alive &= ~(1u << self->lane);
  leave_meetings();
}

void thread_main() {
  running.entry(running.arguments);
  for (auto &group : self->groups)
    if (!group.empty()) fail("a thread leaves while a cp.async of it is under way");
  if (!self->open.empty()) fail("a thread leaves while a cp.async of it is under way");
  if (const char *words = unfinished_products(*self)) fail("%s", words);
  leave();
  suspend();
  abort();
}

void prepare(Thread *t, unsigned number) {
  t->number = (int)number;
  t->lane = number % kWarp;
  t->warp = &warps[number / kWarp];
  t->warp->alive |= 1u << t->lane;
  t->cell = nullptr;
  t->done = t->polled = false;
  t->site = 0;
  t->open.clear();
  t->groups.clear();
  t->begun = 0;
  t->ordered = false;
  t->begun_products.clear();
  t->products.clear();
  t->copied.clear();
  const dim3 &n = grid.threads;
  t->index = {number % n.x, number / n.x % n.y, number / n.x / n.y};
  t->stack_end = stacks + (number + 1) * kStack;
  // At its start a function finds the stack 8 bytes beside a multiple of 16.
  void **top = (void **)(t->stack_end - 8);
  *--top = (void *)thread_main;
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  t->stack_pointer = top;
}

bool runnable(const Thread &t) { return !t.done && (!t.cell || *t.cell != t.seen); }

// Lets a thread run until it waits; says whether it did more than poll.
bool resume(Thread *t) {
  t->cell = nullptr;
  t->polled = false;
  self = t;
  emu_switch(&scheduler, t->stack_pointer);
  self = nullptr;
  return !t->polled;
}

void fail_deadlock(const char *what) {
  char text[512];
  int used = 0;
  const Thread *shown = nullptr;
  for (unsigned i = 0; i < num_threads && used < 400; ++i) {
    const Thread &t = threads[i];
    if (t.done || (shown && shown->where == t.where)) continue;
    shown = &t;
    used += snprintf(text + used, sizeof(text) - used, "%sthread %u at %s", used ? ", " : "", i,
                     t.where);
  }
  failure.status = kLaunchFailed;
  snprintf(failure.text, sizeof(failure.text), "%s: %s", what, text);
}

void run_block(bool backwards) {
  num_threads = alive = grid.threads.x * grid.threads.y * grid.threads.z;
  unsigned num_warps = (num_threads + kWarp - 1) / kWarp;
  for (unsigned w = 0; w < num_warps; ++w) warps[w] = {0, (int)w};
  forget_meetings();
  forget_async();
  forget_products();
  for (unsigned i = 0; i < num_threads; ++i) prepare(&threads[i], i);
  int patience = kPatience;
  while (alive) {
    bool moved = false, polled = false;
    for (unsigned k = 0; k < num_warps; ++k) {
      unsigned w = backwards ? num_warps - 1 - k : k;
      bool again = true;  // a warp runs as far as it can
      while (again) {
        again = false;
        for (int l = 0; l < kWarp; ++l) {
          unsigned i = w * kWarp + (backwards ? kWarp - 1 - l : l);
          if (i >= num_threads || !runnable(threads[i])) continue;
          if (resume(&threads[i]))
            again = moved = true;
          else
            polled = true;
          if (failure.status) return;
        }
      }
    }
    if (moved) {
      patience = kPatience;
    } else if (!land_one()) {
      if (!polled) return fail_deadlock("deadlock");
      if (--patience < 0) return fail_deadlock("polling without end");
    }
  }
}

void map_stacks() {
  if (stacks) return;
  void *made = mmap(nullptr, kThreads * kStack, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (made == MAP_FAILED) abort();
  stacks = (char *)made;
  for (unsigned i = 0; i < kThreads; ++i) mprotect(stacks + i * kStack, kPage, PROT_NONE);
}

}  // namespace

void abandon() {
  self->done = true;
  suspend();
  abort();
}

void wait_while(const uint32_t *cell, uint32_t seen, const char *where) {
  self->where = where;
  while (*cell == seen) {
    self->cell = cell;
    self->seen = seen;
    suspend();
  }
}

void poll(const char *where) {
  self->where = where;
  self->polled = true;
  suspend();
}

// What a block or a whole launch did wrong that no instruction shows.
void fail_after(Status status, const char *words) {
  failure.status = status;
  snprintf(failure.text, sizeof(failure.text), "%s (block %u,%u,%u)", words, grid.index.x,
           grid.index.y, grid.index.z);
}

Status run(const Launch &launch, char *text, size_t size) {
  map_stacks();
  running = launch;
  failure = {kSuccess, ""};
  waited_for_grid = false;
  grid.blocks = launch.blocks;
  grid.threads = launch.threads;
  const dim3 &n = launch.blocks;
  uint64_t total = (uint64_t)n.x * n.y * n.z;
  bool backwards = launch.backwards != reversed;
  Watch watch;
  for (uint64_t i = 0; i < total && !failure.status; ++i) {
    uint64_t b = backwards ? total - 1 - i : i;
    grid.index = {(unsigned)(b % n.x), (unsigned)(b / n.x % n.y), (unsigned)(b / n.x / n.y)};
    shared_begin(launch.shared);
    // Neighbours run in opposite orders, so that one launch tries both.
    run_block((b & 1) != (unsigned)backwards);
    if (failure.status) break;
    if (const char *damage = shared_damage()) fail_after(kIllegalAddress, damage);
    if (const char *words = unequal_products(threads, num_threads)) fail_after(kLaunchFailed, words);
  }
  if (!failure.status && launch.programmatic && !waited_for_grid)
    fail_after(kLaunchFailed, "launched to overlap, but no griddepcontrol.wait ran");
  snprintf(text, size, "%s", failure.text);
  return failure.status;
}

}  // namespace emu
