/* Which streams are tapped for recordings, and a tap that moves from one to another. */
#include "internal.h"

static struct stream *enter(forwarder_t *f, int64_t number) {
  forwarder_enter(f);
  return number > 0 ? map_get(&f->streams, (uint64_t)number) : NULL;
}

static int leave(forwarder_t *f, int result) {
  forwarder_leave(f);
  return result;
}

int fwd_tap(forwarder_t *f, int64_t number, int32_t track) {
  struct stream *stream = enter(f, number);
  if (!stream) return leave(f, FWD_NO_STREAM);
  stream->track = track;
  stream->tap_from = 0;
  return leave(f, FWD_OK);
}

int fwd_move_tap(forwarder_t *f, int64_t from, int64_t to) {
  struct stream *stream = enter(f, to);
  if (!stream || from <= 0 || !map_get(&f->streams, (uint64_t)from)) return leave(f, FWD_NO_STREAM);
  stream->tap_from = from == to ? 0 : from;
  stream->tap_floor = stream->highest; /* what an older keyframe begins may have been tapped before */
  return leave(f, FWD_OK);
}

int fwd_stay(forwarder_t *f, int64_t number) {
  struct stream *stream = enter(f, number);
  if (!stream) return leave(f, FWD_NO_STREAM);
  stream->tap_from = 0;
  return leave(f, stream->track < 0);
}

/* Take over the tap that is to move to this stream, if it can with this packet; true if it did. */
bool tap_take(forwarder_t *f, struct stream *stream, const struct rtp *rtp) {
  if (rtp->extended <= stream->tap_floor || (stream->codec && !rtp->keyframe)) return false;
  struct stream *from = map_get(&f->streams, (uint64_t)stream->tap_from);
  fwd_event_t event = {.kind = FWD_EVENT_TAP_MOVED, .other = stream->number, .at_ns = rtp->arrival_ns};
  if (from && from->track >= 0) {
    event.number = from->track;
    if (!outbox_event(f, &event)) return false; /* nobody would know: with the next one */
    outbox_hold(f);
    stream->track = from->track;
    from->track = -1;
  }
  stream->tap_from = 0;
  return from && stream->track >= 0;
}

/* Tap what came before its turn: of a keyframe whose first packet had to be resent, all the others. */
void tap_later(forwarder_t *f, const struct stream *stream, int64_t floor) {
  struct kept *later[CACHE_PACKETS];
  size_t count = stream_later(stream, floor, later);
  for (size_t i = 0; i < count; i++)
    outbox_tap(f, stream->track, later[i]->arrival_ns, later[i]->data, later[i]->size, false);
}
