// Copies that land late: cp.async, bulk copies and the mbarriers they complete.
#pragma once
#include "threads.h"

namespace emu {

// cp.async: lands at the thread's own wait; until then its destination is NaN.
void copy_async(uint32_t to, const void *from, int bytes, int valid);
void copy_commit();
void copy_wait(unsigned groups_left);
void copy_wait_all();

// mbarriers in shared memory.
void mbarrier_init(uint32_t at, uint32_t count);
void mbarrier_invalidate(uint32_t at);
uint64_t mbarrier_arrive(uint32_t at, uint32_t count);
uint64_t mbarrier_expect(uint32_t at, uint32_t bytes, bool arrives);
// True once the phase of this parity is over. Never waits for it, as hardware need not: one try is
// not enough.
bool mbarrier_try(uint32_t at, uint32_t parity);
void mbarrier_after_copies(uint32_t at, bool counted);

// cp.async.bulk: lands when every thread waits, and then completes bytes of the mbarrier.
void copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t mbarrier);

// The same for any copies; `bytes` is what they complete.
void copy_late(std::vector<Copy> copies, long bytes, uint32_t mbarrier);

}  // namespace emu
