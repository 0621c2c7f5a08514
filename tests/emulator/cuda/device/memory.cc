// The arena of shared memory: [guard | dynamic | guard | static arrays | guard].
#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>

#include "threads.h"

namespace emu {
namespace {

constexpr size_t kPage = 4096, kBase = 1024, kRedZone = 64;
constexpr size_t kDynamic = 232 << 10, kStatic = 64 << 10, kMaxStatic = 48 << 10;
constexpr size_t kDynamicEnd = kPage + kDynamic;
constexpr size_t kStaticStart = kDynamicEnd + kPage, kStaticEnd = kStaticStart + kStatic;
constexpr size_t kAllocation = 256;  // what cuMemAlloc aligns to
constexpr int kArrays = 256;

struct Array {
  size_t start, bytes;
};

struct Allocation {
  char *mapped;
  size_t bytes, whole;
};

std::map<char *, Allocation> allocations;
char *arena;
size_t dynamic_start, dynamic_bytes;
size_t static_used;
Array arrays[kArrays];
int ids[kArrays], num_arrays;

void protect(size_t start, size_t end, int access) {
  if (end > start && mprotect(arena + start, end - start, access)) abort();
}

void map_arena() {
  if (arena) return;
  void *made = mmap(nullptr, kStaticEnd + kPage, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (made == MAP_FAILED) abort();
  arena = (char *)made;
  protect(0, kDynamicEnd + kPage, PROT_NONE);
  protect(kStaticEnd, kStaticEnd + kPage, PROT_NONE);
  memset(arena + kStaticStart, 0xff, kStatic);
}

bool untouched(size_t start, size_t end) {
  for (size_t i = start; i < end; ++i)
    if (arena[i] != (char)0xff) return false;
  return true;
}

// Rounded down, so that addresses have the alignment that swizzles need.
size_t page_of(size_t offset) { return offset / kPage * kPage; }

}  // namespace

void shared_begin(unsigned bytes) {
  map_arena();
  size_t start = kDynamicEnd - ((size_t)bytes + 1023) / 1024 * 1024;
  if (bytes != dynamic_bytes) {
    protect(kPage, page_of(start), PROT_NONE);
    protect(page_of(start), kDynamicEnd, PROT_READ | PROT_WRITE);
  }
  dynamic_start = start;
  dynamic_bytes = bytes;
  if (bytes) memset(arena + page_of(start), 0xff, kDynamicEnd - page_of(start));
  memset(arena + kStaticStart, 0xff, static_used);
  static_used = 0;
  num_arrays = 0;
}

const char *shared_damage() {
  if (dynamic_bytes && !untouched(page_of(dynamic_start), dynamic_start))
    return "something wrote in front of dynamic shared memory";
  if (dynamic_bytes && !untouched(dynamic_start + dynamic_bytes, kDynamicEnd))
    return "something wrote behind dynamic shared memory";
  size_t last = kStaticStart;
  for (int i = 0; i < num_arrays; ++i) {
    if (!untouched(last, arrays[i].start)) return "something wrote beside a shared array";
    last = arrays[i].start + arrays[i].bytes;
  }
  if (!untouched(last, kStaticStart + static_used)) return "something wrote behind a shared array";
  return nullptr;
}

void *shared_array(int id, size_t bytes, size_t align) {
  for (int i = 0; i < num_arrays; ++i)
    if (ids[i] == id) return arena + arrays[i].start;
  size_t start = (static_used + kRedZone + align - 1) / align * align;
  if (start + bytes > kMaxStatic || num_arrays == kArrays)
    fail("more than %zu bytes of static shared memory", kMaxStatic);
  static_used = start + bytes + kRedZone;
  ids[num_arrays] = id;
  arrays[num_arrays++] = {kStaticStart + start, bytes};
  return arena + kStaticStart + start;
}

void *shared_dynamic(size_t align) {
  if (align > 1024) fail("dynamic shared memory aligned to %zu; allowed: 1024", align);
  if (!dynamic_bytes) fail("the launch gives no dynamic shared memory");
  return arena + dynamic_start;
}

uint32_t shared_address(const void *pointer) {
  size_t offset = (size_t)((const char *)pointer - arena);
  if (offset >= kStaticEnd + kPage) fail("a pointer to shared memory points elsewhere");
  return (uint32_t)(kBase + offset);
}

char *shared_pointer(uint32_t address, unsigned bytes, unsigned align, const char *name) {
  size_t offset = address - kBase;
  if (address % align)
    fail_as(kMisaligned, "%s: shared address %#x is not a multiple of %u", name, address, align);
  if (offset >= dynamic_start && offset + bytes <= dynamic_start + dynamic_bytes)
    return arena + offset;
  for (int i = 0; i < num_arrays; ++i)
    if (offset >= arrays[i].start && offset + bytes <= arrays[i].start + arrays[i].bytes)
      return arena + offset;
  fail_as(kIllegalAddress, "%s: %u bytes at shared address %#x are in no shared array", name, bytes,
          address);
}

void *device_allocate(size_t bytes) {
  size_t used = (bytes + kAllocation - 1) / kAllocation * kAllocation;
  size_t whole = (used + kPage - 1) / kPage * kPage;
  void *made = mmap(nullptr, whole + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                    0);
  if (made == MAP_FAILED) return nullptr;
  char *end = (char *)made + whole;
  if (mprotect(end, kPage, PROT_NONE)) abort();
  memset(made, 0xff, whole);
  allocations[end - used] = {(char *)made, bytes, whole};
  return end - used;
}

const char *device_free(void *pointer) {
  if (!pointer) return nullptr;
  auto found = allocations.find((char *)pointer);
  if (found == allocations.end()) return "the memory to free was not allocated";
  Allocation a = found->second;
  const char *words = nullptr;
  for (char *p = (char *)pointer + a.bytes; p < a.mapped + a.whole; ++p)
    if (*p != (char)0xff) words = "something wrote behind the memory that is freed";
  munmap(a.mapped, a.whole + kPage);
  allocations.erase(found);
  return words;
}

const char *describe_address(const void *address) {
  static char text[160];
  size_t offset = (size_t)((const char *)address - arena);
  if (arena && offset < kStaticEnd + kPage) {
    long beside = (long)offset - (long)(dynamic_start + dynamic_bytes);
    snprintf(text, sizeof(text), "shared memory, %ld bytes from the end of the dynamic part",
             beside);
  } else if ((size_t)address < 65536) {
    snprintf(text, sizeof(text), "%p, a null pointer or nearly one", address);
  } else {
    snprintf(text, sizeof(text), "%p, not a tensor's memory", address);
  }
  return text;
}

}  // namespace emu
