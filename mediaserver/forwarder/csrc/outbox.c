/* What comes up to Python: events and tapped packets in bounded buffers, two of each: one fills while one is read. */
#include "internal.h"

#include <unistd.h>

enum { MAX_UNKNOWN = 256, MAX_RAW = 1024, MAX_EVENTS = 16384 };
#define TAP_SIGNAL_NS 100000000ll
#define REPORT_SIGNAL_NS 500000000ll

static size_t padded(size_t size) { return (size + 7) & ~(size_t)7; }

uint8_t *outbox_event(forwarder_t *f, const fwd_event_t *head) {
  struct outbox *box = &f->outbox;
  bool full;
  if (head->kind == FWD_EVENT_RAW)
    full = head->number ? ++box->raw_count > MAX_RAW : ++box->unknown_count > MAX_UNKNOWN;
  else
    full = box->event_count >= MAX_EVENTS + MAX_RAW + MAX_UNKNOWN;
  uint8_t *room = full ? NULL : bytes_grow(&box->events[box->event_side], sizeof *head + padded(head->size));
  if (!room) {
    f->stats.events_dropped++;
    return NULL;
  }
  box->event_count++;
  if (!box->oldest_ns) box->oldest_ns = f->now_ns;
  /* Only sender and receiver reports can wait, so that many of them cost one wake-up; they carry their own time. */
  box->urgent |= head->kind != FWD_EVENT_RTCP || head->a;
  memcpy(room, head, sizeof *head);
  return room + sizeof *head;
}

static void count_loss(struct outbox *box, int32_t track, int64_t arrival_ns) {
  for (uint32_t i = 0; i < box->loss_count; i++)
    if (box->losses[i].track == track) {
      box->losses[i].packets++;
      box->losses[i].to_ns = arrival_ns;
      return;
    }
  if (box->loss_count < sizeof box->losses / sizeof *box->losses)
    box->losses[box->loss_count++] = (struct tap_loss){track, 1, arrival_ns, arrival_ns};
}

void outbox_tap(forwarder_t *f, int32_t track, int64_t arrival_ns, const uint8_t *data, uint32_t size, bool is_rtcp) {
  struct outbox *box = &f->outbox;
  fwd_tapped_t head = {.arrival_ns = arrival_ns, .track = track, .size = size, .is_rtcp = is_rtcp};
  uint8_t *room = box->tapped_bytes + size > MAX_TAPPED_BYTES
                      ? NULL
                      : bytes_grow(&box->tapped[box->tap_side], sizeof head + padded(size));
  if (!room) {
    f->stats.tap_dropped++;
    count_loss(box, track, arrival_ns);
    return;
  }
  box->tapped_bytes += size;
  memcpy(room, &head, sizeof head);
  memcpy(room + sizeof head, data, size);
}

/* A tap has moved: what is tapped from here on waits until its event is taken, which must be written down before. */
void outbox_hold(forwarder_t *f) {
  struct outbox *box = &f->outbox;
  if (box->tap_held) return;
  box->tap_held = true;
  box->tap_mark = box->tapped[box->tap_side].size;
}

int64_t outbox_due(const forwarder_t *f) {
  const struct outbox *box = &f->outbox;
  if (box->signalled) return INT64_MAX;
  int64_t due = box->oldest_ns ? box->oldest_ns + (box->urgent ? 0 : REPORT_SIGNAL_NS) : INT64_MAX;
  if (box->loss_count) due = 0;
  if (box->tapped[box->tap_side].size && box->tap_signalled_ns + TAP_SIGNAL_NS < due)
    due = box->tap_signalled_ns + TAP_SIGNAL_NS;
  return due;
}

void outbox_signal(forwarder_t *f) {
  struct outbox *box = &f->outbox;
  if (f->now_ns < outbox_due(f)) return;
  box->tap_signalled_ns = f->now_ns;
  box->signalled = true;
  uint64_t one = 1;
  /* The eventfd counts to 2^64: this write cannot block, and its only failure would be a closed descriptor. */
  if (write(box->fd, &one, sizeof one) < 0) box->signalled = false;
}

int64_t fwd_take_events(forwarder_t *f, const uint8_t **data) {
  pthread_mutex_lock(&f->lock);
  struct outbox *box = &f->outbox;
  for (uint32_t i = 0; i < box->loss_count; i++) {
    fwd_event_t head = {.kind = FWD_EVENT_TAP_DROPPED,
                        .number = box->losses[i].track,
                        .other = box->losses[i].packets,
                        .at_ns = box->losses[i].from_ns,
                        .until_ns = box->losses[i].to_ns};
    outbox_event(f, &head);
  }
  uint64_t count;
  ssize_t got = read(box->fd, &count, sizeof count); /* EAGAIN: it was not signalled */
  (void)got;
  box->signalled = box->urgent = box->tap_held = false;
  box->oldest_ns = 0;
  struct bytes *full = &box->events[box->event_side];
  box->event_side ^= 1;
  box->take++;
  box->events[box->event_side].size = 0;
  box->event_count = box->unknown_count = box->raw_count = box->loss_count = 0;
  *data = full->data;
  int64_t size = (int64_t)full->size;
  pthread_mutex_unlock(&f->lock);
  return size;
}

int64_t fwd_take_tapped(forwarder_t *f, const uint8_t **data) {
  pthread_mutex_lock(&f->lock);
  struct outbox *box = &f->outbox;
  struct bytes *full = &box->tapped[box->tap_side];
  box->tap_side ^= 1;
  struct bytes *rest = &box->tapped[box->tap_side];
  rest->size = 0;
  box->tapped_bytes = 0;
  int64_t size = (int64_t)full->size;
  if (box->tap_held) {
    size_t kept = full->size - box->tap_mark;
    uint8_t *room = kept ? bytes_grow(rest, kept) : NULL;
    if (room) {
      memcpy(room, full->data + box->tap_mark, kept);
      box->tapped_bytes = (int64_t)kept;
      size = (int64_t)box->tap_mark;
    }
    box->tap_mark = 0;
  }
  *data = full->data;
  pthread_mutex_unlock(&f->lock);
  return size;
}

void outbox_free(struct outbox *box) {
  for (int i = 0; i < 2; i++) {
    free(box->events[i].data);
    free(box->tapped[i].data);
  }
}
