#include "meetings.h"

#include <memory>

namespace emu {
namespace {

struct Meeting {
  uint32_t generation, arrived, mask;
  int site;
  const char *name;
  Operation op;
  const void *in[kWarp];
  void *out[kWarp];
};

struct GroupMeeting {
  uint32_t generation, arrived;
  const void *in[kWarpgroup];
  void *out[kWarpgroup];
};

constexpr unsigned kBarriers = 16;
constexpr const char *kBarrierNames[kBarriers] = {
    "barrier 0",  "barrier 1",  "barrier 2",  "barrier 3", "barrier 4",  "barrier 5",
    "barrier 6",  "barrier 7",  "barrier 8",  "barrier 9", "barrier 10", "barrier 11",
    "barrier 12", "barrier 13", "barrier 14", "barrier 15"};

struct Barrier {
  uint32_t generation;
  unsigned arrived, expected, votes, result[2];
  int sites[kThreads / kWarp];  // where each warp is
};

// Of each warp, by the lowest lane of the mask: parts of a warp meet apart.
std::unique_ptr<Meeting> meetings[kThreads / kWarp][kWarp];
Barrier barriers[kBarriers];
GroupMeeting groups[kThreads / kWarpgroup];

void complete(Meeting *m) {
  m->op(m->in, m->out);
  m->arrived = 0;
  ++m->generation;
}

bool is_complete(const Barrier &b) {
  return b.arrived && b.arrived >= (b.expected ? b.expected : alive);
}

void complete(Barrier *b) {
  b->result[b->generation & 1] = b->votes;
  b->arrived = b->votes = b->expected = 0;
  memset(b->sites, 0, sizeof(b->sites));
  ++b->generation;
}

}  // namespace

void forget_meetings() {
  for (auto &warp : meetings)
    for (auto &m : warp)
      if (m) m->arrived = 0;
  for (Barrier &b : barriers) b = Barrier();
  for (GroupMeeting &g : groups) g.arrived = 0;
}

// Those who wait for a thread that leaves need not wait any longer.
void leave_meetings() {
  for (auto &m : meetings[self->warp->number])
    if (m && m->arrived && (m->mask & self->warp->alive & ~m->arrived) == 0) complete(m.get());
  for (Barrier &b : barriers)
    if (alive && is_complete(b)) complete(&b);
}

// All lanes of a warp are at the same statement, as far as statements are known.
static void check_site(int *site, const char *name) {
  if (*site && self->site && *site != self->site)
    fail("lanes of a warp diverge: they are at %s in lines %d and %d", name, *site, self->site);
  *site = self->site;
  self->site = 0;
}

void meet(const char *name, uint32_t mask, const void *in, void *out, Operation op) {
  Warp *warp = self->warp;
  if (!(mask >> self->lane & 1)) fail("%s: the mask %08x is without lane %d", name, mask, self->lane);
  auto &slot = meetings[warp->number][__builtin_ctz(mask)];
  if (!slot) slot.reset(new Meeting());
  Meeting *m = slot.get();
  if (!m->arrived) {
    m->mask = mask;
    m->name = name;
    m->op = op;
    m->site = 0;
    for (int i = 0; i < kWarp; ++i) m->in[i] = nullptr, m->out[i] = nullptr;
  } else if (m->mask != mask || strcmp(m->name, name) != 0) {
    fail("lanes of a warp diverge: %s with mask %08x, others at %s with %08x", name, mask, m->name,
         m->mask);
  }
  check_site(&m->site, name);
  m->arrived |= 1u << self->lane;
  m->in[self->lane] = in;
  m->out[self->lane] = out;
  if ((mask & warp->alive & ~m->arrived) == 0) return complete(m);
  wait_while(&m->generation, m->generation, name);
}

void meet_all(const char *name, const void *in, void *out, Operation op) {
  if (self->warp->alive != 0xffffffffu)
    fail("%s: lanes of the warp are missing (%08x are there)", name, self->warp->alive);
  meet(name, 0xffffffffu, in, out, op);
}

void meet_warpgroup(const char *name, const void *in, void *out, Operation op) {
  GroupMeeting *m = &groups[self->number / kWarpgroup];
  m->in[self->number % kWarpgroup] = in;
  m->out[self->number % kWarpgroup] = out;
  if (++m->arrived < kWarpgroup) return wait_while(&m->generation, m->generation, name);
  op(m->in, m->out);
  m->arrived = 0;
  ++m->generation;
}

uint32_t active_lanes() { return self->warp->alive; }

static Barrier *arrive(unsigned id, unsigned count, bool vote) {
  if (id >= kBarriers) fail("barrier %u; allowed: 0 to %u", id, kBarriers - 1);
  if (count % kWarp) fail("barrier %u: %u threads are not whole warps", id, count);
  Barrier *b = &barriers[id];
  if (b->arrived && b->expected != count)
    fail("barrier %u is for %u threads and for %u", id, b->expected, count);
  b->expected = count;
  b->votes += vote;
  check_site(&b->sites[self->number / kWarp], kBarrierNames[id]);
  if (++b->arrived > (count ? count : alive)) fail("barrier %u: too many threads", id);
  return b;
}

unsigned barrier(unsigned id, unsigned count, bool vote) {
  Barrier *b = arrive(id, count, vote);
  uint32_t generation = b->generation;
  if (is_complete(*b))
    complete(b);
  else
    wait_while(&b->generation, generation, kBarrierNames[id]);
  return b->result[generation & 1];
}

void barrier_arrive(unsigned id, unsigned count) {
  Barrier *b = arrive(id, count, false);
  if (is_complete(*b)) complete(b);
}

}  // namespace emu
