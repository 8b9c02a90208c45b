/* Tapped packets as a journal keeps them: RTP and RTCP items of recorder/journal/encoding.py, made without a Python
 * object per packet. Pure: it reads one buffer and writes another. */
#include "internal.h"

enum { RTP_ITEM = 0x83, RTCP_ITEM = 0x84, ITEM_HEAD = 5, BATCH_HEAD = 12, ENTRY = 8, MAX_BATCH_BYTES = 128 << 10,
       MAX_COUNTS = 64 };
#define MAX_SPAN_NS 4000000000ll /* an item's times are 32 bits of ns after its base */

struct tapped { const fwd_tapped_t *head; int32_t track, next; };

static const uint8_t *bytes_of(const struct tapped *one) { return (const uint8_t *)(one->head + 1); }

static void put64(uint8_t *p, uint64_t v) {
  put32(p, (uint32_t)(v >> 32));
  put32(p + 4, (uint32_t)v);
}

static const fwd_target_t *find(const fwd_target_t *targets, int32_t count, int32_t tap) {
  int32_t low = 0, high = count - 1;
  while (low <= high) {
    int32_t middle = (low + high) / 2;
    if (targets[middle].tap == tap) return &targets[middle];
    if (targets[middle].tap < tap)
      low = middle + 1;
    else
      high = middle - 1;
  }
  return NULL;
}

/* Count one packet; false if the batch is full of tracks. */
static bool count_packet(fwd_batch_count_t *counts, uint32_t *used, const struct tapped *one) {
  uint32_t at = 0;
  while (at < *used && counts[at].track != one->track) at++;
  if (at == *used) {
    if (*used == MAX_COUNTS) return false;
    counts[(*used)++] = (fwd_batch_count_t){.track = one->track};
  }
  fwd_batch_count_t *count = &counts[at];
  if (one->head->is_rtcp) {
    count->rtcp_packets++;
    return true;
  }
  int64_t arrival_ns = one->head->arrival_ns;
  if (!count->packets++) count->first_ns = count->last_ns = arrival_ns;
  if (arrival_ns > count->last_ns) count->last_ns = arrival_ns;
  count->bytes += one->head->size;
  return true;
}

/* Write the run of one kind that begins at `at` (up to `end`) as an item; return where it ends. */
static uint8_t *put_item(uint8_t *out, const struct tapped *all, int32_t *at, int32_t end) {
  uint32_t kind = all[*at].head->is_rtcp, count = 0, size = 0;
  int64_t base_ns = INT64_MAX;
  int32_t stop = *at;
  for (; stop != end && all[stop].head->is_rtcp == kind; stop = all[stop].next) {
    if (all[stop].head->arrival_ns < base_ns) base_ns = all[stop].head->arrival_ns;
    size += all[stop].head->size;
    count++;
  }
  out[0] = kind ? RTCP_ITEM : RTP_ITEM;
  put32(out + 1, BATCH_HEAD + count * ENTRY + size);
  put64(out + ITEM_HEAD, (uint64_t)base_ns);
  put32(out + ITEM_HEAD + 8, count);
  uint8_t *entry = out + ITEM_HEAD + BATCH_HEAD, *packet = entry + (size_t)count * ENTRY;
  for (; *at != stop; *at = all[*at].next, entry += ENTRY) {
    const fwd_tapped_t *head = all[*at].head;
    put16(entry, (uint32_t)all[*at].track);
    put32(entry + 2, (uint32_t)(head->arrival_ns - base_ns));
    put16(entry + 6, head->size);
    memcpy(packet, bytes_of(&all[*at]), head->size);
    packet += head->size;
  }
  return packet;
}

/* Write the next batch of a group's list; return where it ends and let `at` go on after it. */
static uint8_t *put_batch(uint8_t *out, const struct tapped *all, int32_t *at, int32_t group) {
  fwd_batch_t head = {.group = group, .latest_ns = INT64_MIN};
  fwd_batch_count_t counts[MAX_COUNTS];
  int64_t low_ns = all[*at].head->arrival_ns, high_ns = low_ns;
  uint32_t size = 0;
  int32_t end = *at;
  for (; end >= 0 && size < MAX_BATCH_BYTES; end = all[end].next) {
    int64_t arrival_ns = all[end].head->arrival_ns;
    if (arrival_ns < low_ns) low_ns = arrival_ns;
    if (arrival_ns > high_ns) high_ns = arrival_ns;
    if (high_ns - low_ns > MAX_SPAN_NS || !count_packet(counts, &head.count_count, &all[end])) break;
    if (arrival_ns > head.latest_ns) head.latest_ns = arrival_ns;
    size += all[end].head->size;
    head.packets++;
  }
  uint8_t *items = out + sizeof head + head.count_count * sizeof *counts, *stop = items;
  while (*at != end) stop = put_item(stop, all, at, end);
  head.size = (uint32_t)(stop - items);
  memcpy(out, &head, sizeof head);
  memcpy(out + sizeof head, counts, head.count_count * sizeof *counts);
  return items + ((head.size + 7) & ~7u);
}

int64_t fwd_encoded_room(const uint8_t *data, int64_t size) {
  int64_t packets = 0;
  for (int64_t at = 0; at < size; packets++)
    at += (int64_t)sizeof(fwd_tapped_t) + ((((const fwd_tapped_t *)(data + at))->size + 7) & ~7u);
  /* At worst each packet is a batch, with a count and an item of its own. */
  return size + packets * (int64_t)(sizeof(fwd_batch_t) + sizeof(fwd_batch_count_t) + ITEM_HEAD + BATCH_HEAD + ENTRY + 8);
}

int64_t fwd_encode_tapped(const uint8_t *data, int64_t size, const fwd_target_t *targets, int32_t target_count,
                          int32_t group_count, uint8_t *out, int64_t room) {
  if (group_count < 1 || room < fwd_encoded_room(data, size)) return group_count < 1 ? 0 : FWD_INVALID;
  struct tapped *all = malloc((size_t)(size / (int64_t)sizeof(fwd_tapped_t) + 1) * sizeof *all);
  int32_t *first = malloc(2 * (size_t)group_count * sizeof *first), *last = first + group_count, count = 0;
  if (!all || !first) {
    free(all);
    free(first);
    return FWD_NO_MEMORY;
  }
  for (int32_t group = 0; group < group_count; group++) first[group] = last[group] = -1;
  for (int64_t at = 0; at < size;) {
    const fwd_tapped_t *head = (const fwd_tapped_t *)(data + at);
    at += (int64_t)sizeof *head + ((head->size + 7) & ~7u);
    const fwd_target_t *target = find(targets, target_count, head->track);
    if (!target) continue; /* its recording has ended */
    all[count] = (struct tapped){head, target->track, -1};
    if (last[target->group] >= 0)
      all[last[target->group]].next = count;
    else
      first[target->group] = count;
    last[target->group] = count++;
  }
  uint8_t *end = out;
  for (int32_t group = 0; group < group_count; group++)
    for (int32_t at = first[group]; at >= 0;) end = put_batch(end, all, &at, group);
  free(all);
  free(first);
  return end - out;
}
