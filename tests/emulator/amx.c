/* AMX tile instructions as plain functions, with the faults of the real ones.
 *
 * Tiles are the state of a thread, as in hardware. A fault cannot unwind through compiled code, so
 * the first one is kept as text (emulator_fault) and the instruction does nothing. Stricter than
 * hardware: a tile must be written between its configuration and its first use.
 */
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

typedef struct {
  uint8_t data[ROWS][ROW_BYTES];
  int rows, bytes, written;
} tile_t;

static _Thread_local tile_t tiles[TILES];
static _Thread_local int configured;

static char fault_text[256];
static atomic_int faults;
static atomic_long dots, loads, stores, configurations, releases;

static void fault(const char* format, ...) {
  if (atomic_fetch_add(&faults, 1) == 0) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fault_text, sizeof fault_text, format, arguments);
    va_end(arguments);
  }
}

/* Returns the tile, or NULL and a fault. */
static tile_t* tile(const char* name, int number, int reads) {
  if (!configured) {
    fault("%s: tiles are not configured on this thread", name);
    return NULL;
  }
  if (number < 0 || number >= TILES) {
    fault("%s: no tile %d", name, number);
    return NULL;
  }
  tile_t* found = &tiles[number];
  if (!found->rows || !found->bytes) {
    fault("%s: tile %d is not in the configuration", name, number);
    return NULL;
  }
  if (reads && !found->written) {
    fault("%s: tile %d is read before it is written", name, number);
    return NULL;
  }
  return found;
}

int emulator_ldtilecfg(const uint8_t* memory) {
  atomic_fetch_add(&configurations, 1);
  memset(tiles, 0, sizeof tiles);
  configured = 0;
  if (memory[0] != 1) {
    fault("ldtilecfg: palette %d", memory[0]);
    return 0;
  }
  for (int i = 1; i < 64; i++) {
    int reserved = i < 16 || (i >= 16 + 2 * TILES && i < 48) || i >= 48 + TILES;
    if (reserved && memory[i]) fault("ldtilecfg: byte %d is reserved and holds %d", i, memory[i]);
  }
  for (int i = 0; i < TILES; i++) {
    int bytes = memory[16 + 2 * i] | memory[17 + 2 * i] << 8, rows = memory[48 + i];
    if (bytes > ROW_BYTES || rows > ROWS || !bytes != !rows)
      fault("ldtilecfg: tile %d has %d rows of %d bytes", i, rows, bytes);
    tiles[i].rows = rows;
    tiles[i].bytes = bytes;
  }
  configured = 1;
  return 0;
}

int emulator_tilerelease(void) {
  atomic_fetch_add(&releases, 1);
  memset(tiles, 0, sizeof tiles);
  configured = 0;
  return 0;
}

int emulator_tilezero(int8_t number) {
  tile_t* to = tile("tilezero", number, 0);
  if (to) {
    memset(to->data, 0, sizeof to->data);
    to->written = 1;
  }
  return 0;
}

int emulator_tileloadd64(int8_t number, const uint8_t* memory, int64_t stride) {
  tile_t* to = tile("tileloadd", number, 0);
  if (to) {
    atomic_fetch_add(&loads, 1);
    memset(to->data, 0, sizeof to->data);
    for (int i = 0; i < to->rows; i++) memcpy(to->data[i], memory + i * stride, to->bytes);
    to->written = 1;
  }
  return 0;
}

int emulator_tilestored64(int8_t number, uint8_t* memory, int64_t stride) {
  tile_t* from = tile("tilestored", number, 1);
  if (from) {
    atomic_fetch_add(&stores, 1);
    for (int i = 0; i < from->rows; i++) memcpy(memory + i * stride, from->data[i], from->bytes);
  }
  return 0;
}

static int byte_at(const tile_t* from, int row, int column, int is_signed) {
  uint8_t value = from->data[row][column];
  return is_signed ? (int8_t)value : value;
}

/* Returns the three tiles of a product, or 0 and a fault. */
static int operands(const char* name, int to, int left, int right, tile_t* found[3]) {
  tile_t *c = tile(name, to, 1), *a = tile(name, left, 1), *b = tile(name, right, 1);
  if (!a || !b || !c) return 0;
  if (to == left || to == right || left == right) {
    fault("%s: tiles %d, %d, %d are not distinct", name, to, left, right);
    return 0;
  }
  if (c->rows != a->rows || c->bytes != b->bytes || a->bytes != 4 * b->rows) {
    fault("%s: %d x %d += %d x %d times %d x %d (rows x bytes)", name, c->rows, c->bytes, a->rows,
          a->bytes, b->rows, b->bytes);
    return 0;
  }
  atomic_fetch_add(&dots, 1);
  found[0] = c, found[1] = a, found[2] = b;
  return 1;
}

static int dot(const char* name, int to, int left, int right, int left_signed, int right_signed) {
  tile_t* t[3];
  if (!operands(name, to, left, right, t)) return 0;
  for (int m = 0; m < t[0]->rows; m++)
    for (int n = 0; n < t[0]->bytes / 4; n++) {
      uint32_t sum;
      memcpy(&sum, &t[0]->data[m][4 * n], 4);
      for (int k = 0; k < t[1]->bytes; k++)
        sum += (uint32_t)(byte_at(t[1], m, k, left_signed) *
                          byte_at(t[2], k / 4, 4 * n + k % 4, right_signed));
      memcpy(&t[0]->data[m][4 * n], &sum, 4);
    }
  return 0;
}

static float bfloat16_at(const tile_t* from, int row, int element) {
  uint16_t half;
  memcpy(&half, &from->data[row][2 * element], 2);
  uint32_t bits = (uint32_t)half << 16;
  /* Subnormal operands count as zero. */
  if (!(bits & 0x7f800000)) bits &= 0x80000000;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

/* Pairs are summed apart, even and odd elements, and then added to the result. */
int emulator_tdpbf16ps(int8_t to, int8_t left, int8_t right) {
  tile_t* t[3];
  if (!operands("tdpbf16ps", to, left, right, t)) return 0;
  for (int m = 0; m < t[0]->rows; m++)
    for (int n = 0; n < t[0]->bytes / 4; n++) {
      float sums[2] = {0, 0}, total;
      for (int k = 0; k < t[1]->bytes / 2; k++)
        sums[k % 2] += bfloat16_at(t[1], m, k) * bfloat16_at(t[2], k / 2, 2 * n + k % 2);
      memcpy(&total, &t[0]->data[m][4 * n], 4);
      total += sums[0] + sums[1];
      memcpy(&t[0]->data[m][4 * n], &total, 4);
    }
  return 0;
}

int emulator_tdpbsud(int8_t c, int8_t a, int8_t b) { return dot("tdpbsud", c, a, b, 1, 0); }
int emulator_tdpbusd(int8_t c, int8_t a, int8_t b) { return dot("tdpbusd", c, a, b, 0, 1); }
int emulator_tdpbssd(int8_t c, int8_t a, int8_t b) { return dot("tdpbssd", c, a, b, 1, 1); }
int emulator_tdpbuud(int8_t c, int8_t a, int8_t b) { return dot("tdpbuud", c, a, b, 0, 0); }

/* Copies the first fault's text and what ran since the last call; returns the number of faults. */
int emulator_collect(char* text, int size, long counts[5]) {
  snprintf(text, size, "%s", fault_text);
  fault_text[0] = 0;
  atomic_long* counters[] = {&dots, &loads, &stores, &configurations, &releases};
  for (int i = 0; i < 5; i++) counts[i] = atomic_exchange(counters[i], 0);
  return atomic_exchange(&faults, 0);
}
