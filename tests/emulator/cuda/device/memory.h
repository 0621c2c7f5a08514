// Shared memory of a block: an arena whose ends are watched, full of NaN at first.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

constexpr unsigned kMaxShared = 227 << 10;

// Start and end of a block; `left` returns a sentence where something wrote beside its memory.
void shared_begin(unsigned dynamic_bytes);
const char *shared_damage();

void *shared_array(int id, size_t bytes, size_t align);
void *shared_dynamic(size_t align);

// Addresses of the shared window, 32 bits, and back; a bad or misaligned one fails.
uint32_t shared_address(const void *pointer);
char *shared_pointer(uint32_t address, unsigned bytes, unsigned align, const char *name);

// Device memory: full of NaN, an inaccessible page behind it. Freeing returns a complaint or NULL.
void *device_allocate(size_t bytes);
const char *device_free(void *pointer);

// Says what lies at an address that faulted, for messages.
const char *describe_address(const void *address);


}  // namespace emu
