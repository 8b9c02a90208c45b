/* Packets that wait for the pace of their peer; the twin of pace.py, which explains it. */
#include "internal.h"

#define SOON_NS 1000000ll

static int64_t in_time(int64_t bytes) { return bytes * 8000000000 / PACE_LONGEST_NS; }

/* Change the rate; what is owed stays as many bytes. */
static void change(struct pacer *pacer, int64_t rate, int64_t now_ns) {
  if (rate && pacer->free_ns > now_ns) {
    double owed_ns = (double)(pacer->free_ns - now_ns) * (double)pacer->rate / (double)rate;
    pacer->free_ns = now_ns + (owed_ns < PACE_LONGEST_NS ? (int64_t)owed_ns : PACE_LONGEST_NS);
  }
  pacer->rate = rate;
}

static int64_t due_ns(const struct pacer *pacer) {
  int64_t latest = pacer->first->since_ns + PACE_LONGEST_NS;
  return pacer->free_ns < latest ? pacer->free_ns : latest;
}

static struct paced *take(forwarder_t *f, struct pacer *pacer) {
  struct paced *packet = pacer->first;
  pacer->first = packet->next;
  pacer->bytes -= packet->length;
  pacer->count--;
  f->stats.paced_bytes -= packet->length;
  if (!pacer->first) {
    pacer->last = NULL;
    pacer->rate = pacer->bps;
  }
  return packet;
}

/* Send the first packet that waits. */
static void leave(forwarder_t *f, struct peer *peer) {
  struct paced *packet = take(f, &peer->pacer);
  int64_t number = peer->number_sent, waited_ns = f->now_ns - packet->since_ns;
  uint8_t *slot = sender_slot(f);
  memcpy(slot, packet->data, packet->length);
  if (packet->number_at) put16(slot + packet->number_at, (uint32_t)peer->number_sent++);
  if (packet->seconds_at) {
    slot[packet->seconds_at] = (uint8_t)(f->seconds >> 16);
    put16(slot + packet->seconds_at + 1, f->seconds);
  }
  struct sent *sent = route_sent(packet->route, packet->extended);
  if (sent) {
    sent->waiting = false;
    sent->number = (uint16_t)(packet->number_at ? number : 0);
    sent->seconds = f->seconds;
  }
  peer->stats.paced++;
  peer->stats.paced_ns += waited_ns;
  f->stats.paced++;
  f->stats.paced_ns += waited_ns;
  pace_spend(&peer->pacer, path_emit(f, peer, packet->index, packet->length, number), f->now_ns);
  free(packet);
}

static void drop(forwarder_t *f, struct paced *packet) {
  struct sent *sent = route_sent(packet->route, packet->extended);
  if (sent) sent->waiting = sent->measured = false; /* it may still be asked for, and has no number */
  f->stats.pace_dropped++;
  free(packet);
}

static void append(forwarder_t *f, struct pacer *pacer, struct paced *packet) {
  packet->next = NULL;
  if (pacer->last)
    pacer->last->next = packet;
  else
    pacer->first = packet;
  pacer->last = packet;
  pacer->count++;
  pacer->bytes += packet->length;
  f->stats.paced_bytes += packet->length;
  if (in_time(pacer->bytes) > pacer->rate) change(pacer, in_time(pacer->bytes), f->now_ns);
}

void pace_drop(forwarder_t *f, struct peer *peer, const struct route *route) {
  struct pacer *pacer = &peer->pacer;
  struct paced *packet = pacer->first, *next;
  if (!packet) return;
  f->stats.paced_bytes -= pacer->bytes;
  *pacer = (struct pacer){.bps = pacer->bps, .rate = pacer->bps, .free_ns = pacer->free_ns};
  for (; packet; packet = next) {
    next = packet->next;
    if (route && packet->route != route)
      append(f, pacer, packet);
    else
      drop(f, packet);
  }
  if (!pacer->first) pointers_remove(&f->paced, peer);
}

void pace_add(forwarder_t *f, struct route *route, uint64_t index, uint32_t length, struct stamps stamps) {
  struct peer *peer = route->peer;
  struct pacer *pacer = &peer->pacer;
  const uint8_t *slot = sender_slot(f);
  struct paced *packet = length ? malloc(sizeof *packet + length) : NULL;
  if (!packet || (!pacer->first && !pointers_add(&f->paced, peer))) {
    free(packet);
    peer->stats.send_failed++;
    return;
  }
  *packet = (struct paced){.route = route,
                           .since_ns = f->now_ns,
                           .index = index,
                           .extended = stamps.extended,
                           .length = (uint16_t)length,
                           .number_at = (uint16_t)(stamps.number ? stamps.number - slot : 0),
                           .seconds_at = (uint16_t)(stamps.seconds ? stamps.seconds - slot : 0)};
  memcpy(packet->data, slot, length);
  append(f, pacer, packet);
  while (pacer->first && (pacer->count > MAX_PACED || f->stats.paced_bytes > MAX_PACED_BYTES)) leave(f, peer);
  if (!pacer->first)
    pointers_remove(&f->paced, peer);
  else if (due_ns(pacer) < f->pace_due_ns)
    f->pace_due_ns = due_ns(pacer);
}

/* Send what may leave now; tell whether something still waits. */
static bool release(forwarder_t *f, struct peer *peer) {
  struct pacer *pacer = &peer->pacer;
  while (pacer->first && (!pacer->bps || pacer->free_ns <= f->now_ns + PACE_QUANTUM_NS ||
                          pacer->first->since_ns + PACE_LONGEST_NS <= f->now_ns))
    leave(f, peer);
  return pacer->first;
}

int64_t pace_release(forwarder_t *f) {
  if (f->now_ns < f->pace_due_ns) return f->pace_due_ns;
  f->pace_due_ns = INT64_MAX;
  for (uint32_t at = f->paced.count; at-- > 0;) {
    struct peer *peer = f->paced.items[at];
    if (!peer_ready(peer)) {
      pace_drop(f, peer, NULL);
    } else if (due_ns(&peer->pacer) <= f->now_ns + SOON_NS && !release(f, peer)) {
      pointers_remove(&f->paced, peer);
    } else if (due_ns(&peer->pacer) < f->pace_due_ns) {
      f->pace_due_ns = due_ns(&peer->pacer);
    }
  }
  return f->pace_due_ns;
}

int fwd_set_pace(forwarder_t *f, int64_t number, int64_t bps) {
  forwarder_enter(f);
  struct peer *peer = number > 0 ? map_get(&f->peers, (uint64_t)number) : NULL;
  int result = !peer ? FWD_NO_PEER : bps < 0 ? FWD_INVALID : FWD_OK;
  if (!result) {
    struct pacer *pacer = &peer->pacer;
    pacer->bps = bps;
    change(pacer, in_time(pacer->bytes) > bps ? in_time(pacer->bytes) : bps, f->now_ns);
    if (!bps && pacer->first && peer_ready(peer)) {
      release(f, peer);
      pointers_remove(&f->paced, peer);
    }
  }
  forwarder_leave(f);
  return result;
}
