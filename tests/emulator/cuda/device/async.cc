#include "async.h"

#include <map>

#include "memory.h"
#include "warpgroup.h"

namespace emu {
namespace {

struct Mbarrier {
  uint32_t phase;
  int count, pending;
  long bytes;
};

struct Bulk {
  std::vector<Copy> copies;
  Mbarrier *mbarrier;
  long bytes;
  int arrivals;
};

// std::map: waiting threads watch `phase` where it lies.
std::map<uint32_t, Mbarrier> mbarriers;
std::deque<Bulk> bulks;

void land(std::vector<Copy> *copies) {
  for (const Copy &c : *copies) {
    memcpy(c.to, c.from, c.valid);
    memset(c.to + c.valid, 0, c.bytes - c.valid);
  }
  copies->clear();
}

// Copies of this thread, which products see behind a fence only.
void land_own(std::vector<Copy> *copies) {
  for (const Copy &c : *copies) copied_by_thread(c.to, c.bytes);
  land(copies);
}

Mbarrier &mbarrier(uint32_t at) {
  shared_pointer(at, 8, 8, "mbarrier");
  auto found = mbarriers.find(at);
  if (found == mbarriers.end()) fail("the mbarrier at %#x is not initialised", at);
  return found->second;
}

void flip(Mbarrier *m) {
  if (m->pending < 0) fail("mbarrier: more arrivals than %d", m->count);
  if (m->pending || m->bytes) return;
  m->pending = m->count;
  m->phase ^= 1;
}

}  // namespace

void forget_async() {
  mbarriers.clear();
  bulks.clear();
}

bool land_one() {
  if (bulks.empty()) return false;
  Bulk b = std::move(bulks.front());
  bulks.pop_front();
  land(&b.copies);
  b.mbarrier->bytes -= b.bytes;
  b.mbarrier->pending -= b.arrivals;
  flip(b.mbarrier);
  return true;
}

void copy_async(uint32_t to, const void *from, int bytes, int valid) {
  if (valid < 0 || valid > bytes) fail("cp.async of %d bytes, of which %d are valid", bytes, valid);
  if ((uintptr_t)from % bytes)
    fail_as(kMisaligned, "cp.async: %p is not a multiple of %d", from, bytes);
  char *destination = shared_pointer(to, bytes, bytes, "cp.async");
  memset(destination, 0xff, bytes);
  self->open.push_back({destination, (const char *)from, bytes, valid});
}

void copy_commit() {
  self->groups.push_back(std::move(self->open));
  self->open.clear();
}

void copy_wait(unsigned groups_left) {
  while (self->groups.size() > groups_left) {
    land_own(&self->groups.front());
    self->groups.pop_front();
  }
}

void copy_wait_all() {
  copy_wait(0);
  land_own(&self->open);
}

void mbarrier_init(uint32_t at, uint32_t count) {
  shared_pointer(at, 8, 8, "mbarrier.init");
  mbarriers[at] = {0, (int)count, (int)count, 0};
}

void mbarrier_invalidate(uint32_t at) {
  mbarrier(at);
  mbarriers.erase(at);
}

uint64_t mbarrier_arrive(uint32_t at, uint32_t count) {
  Mbarrier &m = mbarrier(at);
  uint64_t token = m.phase;
  m.pending -= (int)count;
  flip(&m);
  return token;
}

uint64_t mbarrier_expect(uint32_t at, uint32_t bytes, bool arrives) {
  Mbarrier &m = mbarrier(at);
  uint64_t token = m.phase;
  m.bytes += bytes;
  m.pending -= arrives;
  flip(&m);
  return token;
}

bool mbarrier_try(uint32_t at, uint32_t parity) {
  Mbarrier &m = mbarrier(at);
  if (m.phase != (parity & 1)) return true;
  poll("an mbarrier");
  return m.phase != (parity & 1);
}

void mbarrier_after_copies(uint32_t at, bool counted) {
  Mbarrier &m = mbarrier(at);
  if (!counted) ++m.pending;
  Bulk b = {{}, &m, 0, 1};
  for (auto &group : self->groups) {
    b.copies.insert(b.copies.end(), group.begin(), group.end());
    group.clear();
  }
  b.copies.insert(b.copies.end(), self->open.begin(), self->open.end());
  self->open.clear();
  bulks.push_back(std::move(b));
}

void copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t at) {
  if (bytes % 16) fail("cp.async.bulk of %u bytes; allowed: multiples of 16", bytes);
  if ((uintptr_t)from % 16) fail_as(kMisaligned, "cp.async.bulk: %p is not a multiple of 16", from);
  char *destination = shared_pointer(to, bytes, 16, "cp.async.bulk");
  memset(destination, 0xff, bytes);
  copy_late({{destination, (const char *)from, (int)bytes, (int)bytes}}, (long)bytes, at);
}

void copy_late(std::vector<Copy> copies, long bytes, uint32_t at) {
  Mbarrier &m = mbarrier(at);
  bulks.push_back({std::move(copies), &m, bytes, 0});
}

}  // namespace emu
