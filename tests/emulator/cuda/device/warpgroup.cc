#include "warpgroup.h"

#include "meetings.h"
#include "memory.h"

namespace emu {
namespace {

constexpr int kRows = 16, kDepth = 16;  // of a warp
constexpr uint32_t kInFlight = 0x7fadfeed;  // a NaN
constexpr uint32_t kPiece = 16;

// What warps of a warpgroup have begun, which must be the same.
struct Begun {
  Element kind;
  int columns;
  uint64_t b_at;
};
std::vector<Begun> begun[kThreads / kWarpgroup];

// Which thread, + 1, copied 16 bytes that products do not see yet.
uint16_t unseen[(kMaxShared + (64 << 10)) / kPiece];

uint16_t *unseen_at(uint32_t address) {
  uint32_t number = address / kPiece;
  return number < sizeof(unseen) / sizeof(*unseen) ? &unseen[number] : nullptr;
}

// Operands in shared memory, rows of 32, 64 or 128 bytes: 16 bytes at a time.
struct Operand {
  uint64_t descriptor;
  bool turned;

  int mode() const {
    static const int modes[] = {0, 3, 2, 1};
    return modes[descriptor >> 62];
  }
  uint32_t field(int bit) const { return (uint32_t)(descriptor >> bit & 0x3fff) * 16; }

  // Where value k of row n is, before the swizzle.
  uint32_t at(int n, int k) const {
    uint32_t width = kPiece << mode(), leading = field(16), stride = field(32);
    if (!turned) return field(0) + n / 8 * stride + n % 8 * width + k * 2;
    int each = (int)width / 2;
    return field(0) + n / each * leading + n % each * 2 + k / 8 * stride + k % 8 * width;
  }

  // Reads 8 neighbours in memory.
  void read(int n, int k, uint16_t *values) const {
    uint32_t address = at(n, k), rows = (1u << mode()) - 1;
    address ^= (address >> 7 & rows) << 4;
    if (uint16_t *writer = unseen_at(address); writer && *writer)
      fail("wgmma reads what thread %d has copied without fence.proxy.async", *writer - 1);
    memcpy(values, shared_pointer(address, kPiece, kPiece, "wgmma"), kPiece);
  }
};

float value_of(Element kind, uint16_t code) { return kind == kF16 ? Half::to(code) : Bfloat::to(code); }

// Fills `into`[row][k] with rows from `first` on.
void fetch(Element kind, const Operand &from, int first, int rows, float (*into)[kDepth]) {
  if (!from.mode()) fail("wgmma: operands without swizzle are not emulated");
  uint16_t values[8];
  if (from.turned) {
    for (int n = 0; n < rows; n += 8)
      for (int k = 0; k < kDepth; ++k) {
        from.read(first + n, k, values);
        for (int i = 0; i < 8; ++i) into[n + i][k] = value_of(kind, values[i]);
      }
    return;
  }
  for (int n = 0; n < rows; ++n)
    for (int k = 0; k < kDepth; k += 8) {
      from.read(first + n, k, values);
      for (int i = 0; i < 8; ++i) into[n][k + i] = value_of(kind, values[i]);
    }
}

void fetch_registers(const Product *const *lanes, float (*into)[kDepth]) {
  for (int l = 0; l < kWarp; ++l)
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < 2; ++i)
        into[l / 4 + r % 2 * 8][r / 2 * 8 + l % 4 * 2 + i] =
            value_of(lanes[l]->kind, (uint16_t)(lanes[l]->a[r] >> 16 * i));
}

// One product of a warp: its 16 of the 64 rows.
void compute(const Product *const *lanes, int warp) {
  static float a[kRows][kDepth], b[kMaxColumns][kDepth];
  const Product &p = *lanes[0];
  for (int l = 1; l < kWarp; ++l)
    if (lanes[l]->b_at != p.b_at || lanes[l]->a_at != p.a_at || lanes[l]->columns != p.columns)
      fail("wgmma: lanes of a warp have different operands");
  if (p.a_in_registers) fetch_registers(lanes, a);
  else fetch(p.kind, {p.a_at, p.a_turned}, warp % 4 * kRows, kRows, a);
  fetch(p.kind, {p.b_at, p.b_turned}, 0, p.columns, b);
  for (int l = 0; l < kWarp; ++l)
    for (int i = 0; i < p.columns / 2; ++i) {
      int row = l / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + l % 4 * 2 + i % 2;
      float *d = lanes[l]->d[i];
      if (!lanes[l]->chained && bits<uint32_t>(*d) != kInFlight)
        fail("wgmma: an accumulator was written before its wait_group");
      float sum = !p.accumulates ? 0 : lanes[l]->chained ? *d : lanes[l]->before[i];
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[column][k];
      *d = sum;
    }
}

// Computes the oldest group of all lanes of a warp.
void land(const void *const *ins, void *const *) {
  auto group = [&](int lane) -> std::vector<Product> & {
    return ((Thread *)ins[lane])->products.front();
  };
  for (size_t i = 0; i < group(0).size(); ++i) {
    const Product *lanes[kWarp];
    for (int l = 0; l < kWarp; ++l) {
      if (group(l).size() != group(0).size()) fail("wgmma: lanes of a warp began different products");
      lanes[l] = &group(l)[i];
    }
    compute(lanes, ((Thread *)ins[0])->warp->number);
  }
}

}  // namespace

void wgmma(const Product &product) {
  if (!self->ordered) fail("wgmma without wgmma.fence behind what may have changed its registers");
  auto &all = begun[self->number / kWarpgroup];
  if (self->lane == 0) {
    if (self->begun == (int)all.size()) all.push_back({product.kind, product.columns, product.b_at});
    const Begun &first = all[self->begun++];
    if (first.kind != product.kind || first.columns != product.columns || first.b_at != product.b_at)
      fail("wgmma: warps of a warpgroup began different products");
  }
  self->begun_products.push_back(product);
  Product &p = self->begun_products.back();
  p.chained = bits<uint32_t>(*p.d[0]) == kInFlight;
  for (int i = 0; i < p.columns / 2; ++i) {
    p.before[i] = *p.d[i];
    *p.d[i] = bits<float>(kInFlight);
  }
}

void wgmma_fence() { self->ordered = true; }

void wgmma_commit() {
  self->products.push_back(std::move(self->begun_products));
  self->begun_products.clear();
}

void wgmma_wait(unsigned groups_left) {
  while (self->products.size() > groups_left) {
    meet_all("wgmma.wait_group", self, nullptr, land);
    self->products.pop_front();
    self->ordered = false;
  }
}

void fence_async() {
  for (uint32_t address : self->copied)
    if (uint16_t *writer = unseen_at(address); writer && *writer == self->number + 1) *writer = 0;
  self->copied.clear();
}

void copied_by_thread(const char *to, int bytes) {
  uint32_t first = shared_address(to) / kPiece * kPiece;
  for (uint32_t at = first; at < shared_address(to) + bytes; at += kPiece) {
    if (uint16_t *writer = unseen_at(at)) *writer = (uint16_t)(self->number + 1);
    self->copied.push_back(at);
  }
}

void forget_products() {
  for (auto &all : begun) all.clear();
  memset(unseen, 0, sizeof(unseen));
}

const char *unfinished_products(const Thread &thread) {
  if (!thread.begun_products.empty() || !thread.products.empty())
    return "a thread leaves while a wgmma of it is under way";
  return nullptr;
}

const char *unequal_products(const Thread *threads, unsigned count) {
  for (unsigned i = 0; i < count; i += kWarp)
    if (threads[i].begun != (int)begun[i / kWarpgroup].size())
      return "warps of a warpgroup began different numbers of wgmma";
  return nullptr;
}

}  // namespace emu
