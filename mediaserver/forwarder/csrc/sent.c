/* What was sent to a peer under transport-cc numbers, and what its feedback says of it; the twin of sent.py. */
#include "internal.h"

enum { TICK_NS = 250000, DROPPED_GROUPS = 64, UNUSED = 0, SENT, LOST, RECEIVED };
#define BURST_NS 5000000ll
#define MAX_BURST_NS 100000000ll
#define WATCH_SILENCE_NS 500000000ll
#define MAX_REFERENCE (1ll << 32)

/* What is watched for has come: say so, once. */
static void trouble(forwarder_t *f, struct peer *peer, int64_t at_ns) {
  peer->sent_log.watched = false;
  fwd_event_t event = {.kind = FWD_EVENT_FEEDBACK, .number = peer->number, .at_ns = at_ns};
  outbox_event(f, &event);
}

void sent_note(forwarder_t *f, struct peer *peer, int64_t number, int64_t at_ns, int size) {
  struct sent_log *log = &peer->sent_log;
  if (log->watched && at_ns - log->totals.told_ns > WATCH_SILENCE_NS) trouble(f, peer, at_ns);
  if (!log->entries && !(log->entries = calloc(SENT_LOG, sizeof *log->entries))) return;
  log->entries[number & (SENT_LOG - 1)] =
      (struct logged){.sent_ns = at_ns, .extended = (uint32_t)number, .size = (uint16_t)size, .state = SENT};
}

static struct logged *find(const struct sent_log *log, int64_t number) {
  if (number < 0) return NULL;
  struct logged *entry = &log->entries[number & (SENT_LOG - 1)];
  return entry->state != UNUSED && entry->extended == (uint32_t)number ? entry : NULL;
}

static void lost(struct sent_log *log, int64_t number) {
  struct logged *entry = find(log, number);
  if (!entry || entry->state != SENT) return;
  entry->state = LOST;
  log->totals.lost++;
  log->totals.lost_bytes += entry->size;
}

static void close_group(struct sent_log *log) {
  if (log->group_count == MAX_GROUPS) { /* the newest say most of the line */
    log->totals.dropped += DROPPED_GROUPS;
    log->group_count -= DROPPED_GROUPS;
    memmove(log->groups, log->groups + DROPPED_GROUPS, log->group_count * sizeof *log->groups);
  }
  if (log->group_count == log->group_room) {
    uint32_t room = log->group_room ? 2 * log->group_room : 16;
    fwd_group_t *groups = realloc(log->groups, room * sizeof *groups);
    if (!groups) {
      log->totals.dropped++;
      return;
    }
    log->groups = groups;
    log->group_room = room;
  }
  log->groups[log->group_count++] = log->open;
}

/* Note how long a packet was under way, of clocks apart. */
static void note_way(struct sent_log *log, int64_t way_ns, bool *far) {
  if (!log->totals.packets || way_ns < log->totals.shortest_ns) log->totals.shortest_ns = way_ns;
  if (way_ns > log->way_limit_ns) *far = true;
}

static void received(struct sent_log *log, int64_t number, int64_t arrival_ns, int64_t told_ns, bool *far) {
  struct logged *entry = find(log, number);
  if (!entry || entry->state == RECEIVED) return;
  if (entry->state == LOST) {
    log->totals.lost--;
    log->totals.lost_bytes -= entry->size;
  }
  entry->state = RECEIVED;
  note_way(log, arrival_ns - entry->sent_ns, far);
  log->totals.packets++;
  log->totals.bytes += entry->size;
  fwd_group_t *open = &log->open;
  int64_t sent_ns = entry->sent_ns;
  if (open->packets) {
    bool late = sent_ns < open->first_sent_ns;
    int64_t gap = arrival_ns - open->last_arrival_ns;
    bool burst = gap <= BURST_NS && gap < sent_ns - open->last_sent_ns &&
                 arrival_ns - open->first_arrival_ns < MAX_BURST_NS;
    if (open->packets < SENT_LOG && (late || burst || sent_ns - open->first_sent_ns <= BURST_NS)) {
      open->packets++;
      open->bytes += entry->size;
      open->told_ns = told_ns;
      if (late) return;
      if (sent_ns > open->last_sent_ns) open->last_sent_ns = sent_ns;
      if (arrival_ns > open->last_arrival_ns) open->last_arrival_ns = arrival_ns;
      return;
    }
    close_group(log);
  }
  *open = (fwd_group_t){.first_sent_ns = sent_ns,
                        .last_sent_ns = sent_ns,
                        .first_arrival_ns = arrival_ns,
                        .last_arrival_ns = arrival_ns,
                        .told_ns = told_ns,
                        .bytes = entry->size,
                        .packets = 1};
}

static uint32_t symbols_in(uint32_t chunk) { return chunk & 0x8000 ? (chunk & 0x4000 ? 7 : 14) : chunk & 0x1fff; }

static uint32_t symbol_at(uint32_t chunk, uint32_t at) {
  if (!(chunk & 0x8000)) return chunk >> 13 & 3;
  return chunk & 0x4000 ? chunk >> (12 - 2 * at) & 3 : chunk >> (13 - at) & 1;
}

/* Work is bounded by the bytes and the log, not by the 65,535 packets that a feedback may claim to speak of. */
static bool tell(struct peer *peer, const uint8_t *data, uint32_t length, int64_t told_ns) {
  struct sent_log *log = &peer->sent_log;
  bool far = false;
  if (length < 20 || !log->entries) return false;
  uint32_t count = get16(data + 14), deltas = 20;
  for (uint32_t told = 0; told < count && deltas + 2 <= length; deltas += 2) told += symbols_in(get16(data + deltas));
  log->totals.told_ns = told_ns;
  int64_t newest = peer->number_sent - 1, oldest = newest - SENT_LOG + 1;
  int64_t number = newest - (uint16_t)((uint16_t)newest - get16(data + 12));
  uint32_t raw = get32(data + 16) >> 8;
  int64_t step = (raw - (uint32_t)log->reference) & 0xffffff;
  log->reference = log->referenced ? log->reference + (step & 0x800000 ? step - 0x1000000 : step) : raw;
  if (log->reference > MAX_REFERENCE || log->reference < -MAX_REFERENCE) log->reference = raw;
  log->referenced = true;
  int64_t ticks = log->reference * 256;
  for (uint32_t place = 20, told = 0; told < count && place + 2 <= length; place += 2) {
    uint32_t chunk = get16(data + place), symbols = symbols_in(chunk);
    if (symbols > count - told) symbols = count - told;
    told += symbols;
    if (!(chunk & 0xe000)) {
      int64_t end = number + symbols;
      for (int64_t n = number > oldest ? number : oldest; n < end && n <= newest; n++) lost(log, n);
      number = end;
      continue;
    }
    for (uint32_t i = 0; i < symbols; i++, number++) {
      uint32_t symbol = symbol_at(chunk, i);
      if (!symbol) {
        lost(log, number);
        continue;
      }
      if (symbol == 3 || deltas + symbol > length) return far; /* what follows has no times */
      ticks += symbol == 1 ? data[deltas] : (int16_t)get16(data + deltas);
      deltas += symbol;
      received(log, number, ticks * TICK_NS, told_ns, &far);
    }
  }
  return far;
}

void sent_told(forwarder_t *f, struct peer *peer, const uint8_t *data, uint32_t length, int64_t told_ns) {
  struct sent_log *log = &peer->sent_log;
  bool far = tell(peer, data, length, told_ns);
  if (log->watched && (far || log->totals.lost >= log->lost_limit)) trouble(f, peer, told_ns);
}

void sent_free(struct sent_log *log) {
  free(log->entries);
  free(log->groups);
}

static void take_totals(struct peer *peer, fwd_feedback_t *feedback) {
  struct sent_log *log = &peer->sent_log;
  *feedback = log->totals;
  feedback->sent = peer->number_sent;
  feedback->bytes_sent = peer->stats.bytes_sent;
  feedback->open = log->open;
  log->totals = (fwd_feedback_t){.told_ns = log->totals.told_ns};
}

int fwd_watch_feedback(forwarder_t *f, int64_t number, int64_t way_ns, int64_t lost, fwd_feedback_t *feedback) {
  forwarder_enter(f);
  struct peer *peer = number > 0 ? map_get(&f->peers, (uint64_t)number) : NULL;
  if (peer) {
    peer->sent_log.watched = true;
    peer->sent_log.way_limit_ns = way_ns;
    peer->sent_log.lost_limit = lost;
    take_totals(peer, feedback);
  }
  forwarder_leave(f);
  return peer ? FWD_OK : FWD_NO_PEER;
}

int fwd_set_measured(forwarder_t *f, int64_t number, int32_t measured) {
  forwarder_enter(f);
  struct peer *peer = number > 0 ? map_get(&f->peers, (uint64_t)number) : NULL;
  if (peer) peer->measured = measured != 0;
  forwarder_leave(f);
  return peer ? FWD_OK : FWD_NO_PEER;
}

int fwd_take_feedback(forwarder_t *f, int64_t number, fwd_feedback_t *feedback, fwd_group_t *groups, int32_t room) {
  forwarder_enter(f);
  struct peer *peer = number > 0 ? map_get(&f->peers, (uint64_t)number) : NULL;
  int count = FWD_NO_PEER;
  if (peer) {
    struct sent_log *log = &peer->sent_log;
    count = (int)log->group_count < room ? (int)log->group_count : room;
    if (count) memcpy(groups, log->groups, (size_t)count * sizeof *groups);
    log->group_count = 0;
    log->watched = false;
    take_totals(peer, feedback);
  }
  forwarder_leave(f);
  return count;
}

int fwd_send_padding(forwarder_t *f, int64_t number, int32_t bytes) {
  forwarder_enter(f);
  struct route *route = number > 0 ? map_get(&f->routes, (uint64_t)number) : NULL;
  int sent = route ? path_padding(f, route, bytes) : FWD_NO_ROUTE;
  forwarder_leave(f);
  return sent;
}
