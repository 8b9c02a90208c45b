/* A hash map from 64-bit numbers to pointers, a growing list, a growing buffer. */
#include "internal.h"

static uint64_t mix(uint64_t x) { /* the finaliser of splitmix64 */
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

static uint32_t home(const struct map *map, uint64_t key) {
  return (uint32_t)mix(key ^ map->seed) & (map->size - 1);
}

void *map_get(const struct map *map, uint64_t key) {
  if (!map->size) return NULL;
  for (uint32_t at = home(map, key);; at = (at + 1) & (map->size - 1)) {
    if (map->keys[at] == key) return map->values[at];
    if (!map->keys[at]) return NULL;
  }
}

static void place(struct map *map, uint64_t key, void *value) {
  uint32_t at = home(map, key);
  while (map->keys[at] && map->keys[at] != key) at = (at + 1) & (map->size - 1);
  if (!map->keys[at]) map->used++;
  map->keys[at] = key;
  map->values[at] = value;
}

bool map_put(struct map *map, uint64_t key, void *value) {
  if (2 * (map->used + 1) > map->size) {
    struct map bigger = {.size = map->size ? 2 * map->size : 64, .seed = map->seed};
    bigger.keys = calloc(bigger.size, sizeof *bigger.keys);
    bigger.values = calloc(bigger.size, sizeof *bigger.values);
    if (!bigger.keys || !bigger.values) {
      map_free(&bigger);
      return false;
    }
    for (uint32_t at = 0; at < map->size; at++)
      if (map->keys[at]) place(&bigger, map->keys[at], map->values[at]);
    map_free(map);
    *map = bigger;
  }
  place(map, key, value);
  return true;
}

void map_remove(struct map *map, uint64_t key) {
  if (!map->size) return;
  uint32_t mask = map->size - 1, at = home(map, key);
  while (map->keys[at] != key) {
    if (!map->keys[at]) return;
    at = (at + 1) & mask;
  }
  /* Move later entries of the run back, so that no search stops early at the hole. */
  for (uint32_t next = (at + 1) & mask; map->keys[next]; next = (next + 1) & mask) {
    uint32_t wanted = home(map, map->keys[next]);
    if (((next - wanted) & mask) >= ((next - at) & mask)) {
      map->keys[at] = map->keys[next];
      map->values[at] = map->values[next];
      at = next;
    }
  }
  map->keys[at] = 0;
  map->values[at] = NULL;
  map->used--;
}

void map_free(struct map *map) {
  free(map->keys);
  free(map->values);
  map->keys = NULL;
  map->values = NULL;
  map->size = map->used = 0;
}

bool pointers_add(struct pointers *list, void *item) {
  if (list->count == list->room) {
    uint32_t room = list->room ? 2 * list->room : 4;
    void **items = realloc(list->items, room * sizeof *items);
    if (!items) return false;
    list->items = items;
    list->room = room;
  }
  list->items[list->count++] = item;
  return true;
}

void pointers_remove(struct pointers *list, const void *item) {
  for (uint32_t i = 0; i < list->count; i++)
    if (list->items[i] == item) {
      memmove(list->items + i, list->items + i + 1, (list->count - i - 1) * sizeof *list->items);
      list->count--;
      return;
    }
}

uint8_t *bytes_grow(struct bytes *bytes, size_t more) {
  if (bytes->size + more > bytes->room) {
    size_t room = bytes->room ? bytes->room : 65536;
    while (room < bytes->size + more) room *= 2;
    uint8_t *data = realloc(bytes->data, room);
    if (!data) return NULL;
    bytes->data = data;
    bytes->room = room;
  }
  bytes->size += more;
  return bytes->data + bytes->size - more;
}
