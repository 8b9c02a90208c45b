/* Transport-wide congestion control; the twin of feedback.py. */
#include "internal.h"

enum { MAX_STATUSES = 1024, MAX_DELTAS = 256, TICK_NS = 250000, REFERENCE_TICKS = 256 };
enum { NOT_RECEIVED, SMALL, LARGE };

void log_add(struct log *log, uint16_t number, int64_t at_ns, uint32_t ssrc) {
  int64_t extended =
      log->highest < 0 ? number + 0x10000 : log->highest + (int16_t)(uint16_t)(number - (uint16_t)log->highest);
  if (extended > log->highest) log->highest = extended;
  log->media_ssrc = ssrc;
  if (log->count == MAX_LOG) {
    log->count -= MAX_LOG / 4;
    memmove(log->entries, log->entries + MAX_LOG / 4, log->count * sizeof *log->entries);
  }
  if (log->count == log->room) {
    uint32_t room = log->room ? 2 * log->room : 64;
    struct arrival *entries = realloc(log->entries, room * sizeof *entries);
    if (!entries) return;
    log->entries = entries;
    log->room = room;
  }
  log->entries[log->count++] = (struct arrival){extended, at_ns};
}

static int by_number(const void *left, const void *right) {
  const struct arrival *a = left, *b = right;
  if (a->extended != b->extended) return a->extended < b->extended ? -1 : 1;
  return (a->at_ns > b->at_ns) - (a->at_ns < b->at_ns);
}

/* Runs of 7 and more as run length chunks, else vectors of seven two-bit symbols. */
static uint8_t *put_chunks(uint8_t *out, const uint8_t *statuses, uint32_t count) {
  for (uint32_t at = 0; at < count;) {
    uint32_t run = 1;
    while (at + run < count && statuses[at + run] == statuses[at]) run++;
    if (run >= 7 || at + run == count) {
      put16(out, (uint32_t)statuses[at] << 13 | run);
      at += run;
    } else {
      uint32_t vector = 0xc000;
      for (uint32_t i = 0; i < 7 && at + i < count; i++) vector |= (uint32_t)statuses[at + i] << (12 - 2 * i);
      put16(out, vector);
      at += 7;
    }
    out += 2;
  }
  return out;
}

uint32_t log_build(struct log *log, uint8_t *out) {
  if (!log->count) return 0;
  qsort(log->entries, log->count, sizeof *log->entries, by_number);
  const struct arrival *entries = log->entries;
  /* What comes late is told by itself, run by run: the numbers around it were told already and hold. */
  bool late = log->next >= 0 && entries[0].extended < log->next;
  int64_t begin = late || log->next < 0 ? entries[0].extended : log->next;
  /* A jump of the numbers is not spelled out. */
  if (entries[0].extended - begin >= MAX_STATUSES) begin = entries[0].extended;
  int64_t reference = entries[0].at_ns / TICK_NS / REFERENCE_TICKS, last = reference * REFERENCE_TICKS;
  uint8_t statuses[MAX_STATUSES], deltas[2 * MAX_DELTAS];
  uint32_t status_count = 0, delta_bytes = 0, received = 0, at = 0;
  int64_t expected = begin;
  for (; at < log->count && received < MAX_DELTAS; at++) {
    if (entries[at].extended < expected) continue; /* a number twice: the first arrival counts */
    if (late && (entries[at].extended != expected || expected >= log->next)) break;
    int64_t ticks = entries[at].at_ns / TICK_NS, delta = ticks - last;
    if (delta < -0x8000 || delta >= 0x8000 || entries[at].extended - begin >= MAX_STATUSES) break;
    while (expected < entries[at].extended) {
      statuses[status_count++] = NOT_RECEIVED;
      expected++;
    }
    if (delta >= 0 && delta <= 0xff) {
      statuses[status_count++] = SMALL;
      deltas[delta_bytes++] = (uint8_t)delta;
    } else {
      statuses[status_count++] = LARGE;
      put16(deltas + delta_bytes, (uint32_t)delta & 0xffff);
      delta_bytes += 2;
    }
    last = ticks;
    received++;
    expected++;
  }
  log->count -= at;
  memmove(log->entries, log->entries + at, log->count * sizeof *log->entries);
  if (expected > log->next) log->next = expected;
  /* An empty receiver report first: RFC 3550 wants one in every compound. */
  put32(out, 0x80c90001u);
  put32(out + 4, log->sender_ssrc);
  uint8_t *head = out + 8, *body = head + 12;
  put32(head + 4, log->sender_ssrc);
  put32(head + 8, log->media_ssrc);
  put16(body, (uint32_t)begin & 0xffff);
  put16(body + 2, status_count);
  put32(body + 4, (uint32_t)(reference & 0xffffff) << 8 | (log->feedbacks++ & 0xff));
  uint8_t *end = put_chunks(body + 8, statuses, status_count);
  memcpy(end, deltas, delta_bytes);
  end += delta_bytes;
  uint32_t padding = (uint32_t)(body - end) & 3;
  for (uint32_t i = 0; i < padding; i++) *end++ = i + 1 == padding ? (uint8_t)padding : 0;
  head[0] = (uint8_t)(0x80 | (padding ? 0x20 : 0) | 15);
  head[1] = 205;
  put16(head + 2, (uint32_t)(end - head) / 4 - 1);
  return (uint32_t)(end - out);
}

void feedback_read(const uint8_t *data, uint32_t length, int64_t *reported, int64_t *lost) {
  if (length < 20) return;
  uint32_t count = get16(data + 14), told = 0, place = 20;
  while (told < count && place + 2 <= length) {
    uint32_t chunk = get16(data + place), left = count - told;
    place += 2;
    if (!(chunk & 0x8000)) {
      uint32_t run = chunk & 0x1fff;
      if (run > left) run = left;
      told += run;
      if (!(chunk & 0x6000)) *lost += run;
      if (!run) continue;
    } else {
      uint32_t symbols = chunk & 0x4000 ? 7 : 14;
      if (symbols > left) symbols = left;
      for (uint32_t i = 0; i < symbols; i++)
        *lost += chunk & 0x4000 ? !(chunk >> (12 - 2 * i) & 3) : !(chunk >> (13 - i) & 1);
      told += symbols;
    }
  }
  *reported += told;
}
