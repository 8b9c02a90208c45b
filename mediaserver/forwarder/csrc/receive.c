/* A received stream: sequence, loss, jitter, and the packets that can be resent; the twin of receive.py. */
#include "internal.h"

enum { CYCLE = 1 << 16, MASK = CACHE_PACKETS - 1 };

static void measure_jitter(struct stream *stream, const struct rtp *rtp) {
  /* RFC 3550 appendix A.8, in sixteenths. */
  uint32_t arrival = (uint32_t)((uint64_t)(rtp->arrival_ns / 1000) * stream->clock_rate / 1000000);
  uint32_t transit = arrival - rtp->timestamp;
  if (stream->stats.packets > 1) {
    uint32_t difference = transit - stream->transit;
    if (difference >= 0x80000000u) difference = 0u - difference;
    stream->jitter_x16 += (int64_t)difference - ((stream->jitter_x16 + 8) >> 4);
  }
  stream->transit = transit;
}

enum accounted stream_account(struct stream *stream, struct rtp *rtp, bool recovered, uint16_t *first, uint16_t *last) {
  enum accounted result = NEW;
  bool newest = true;
  int64_t extended;
  if (stream->highest < 0) {
    /* Numbers begin in cycle 1, so that a packet from before the first one fits. */
    extended = rtp->sequence + CYCLE;
    stream->base = stream->highest = extended;
    stream->stats.first_arrival_ns = rtp->arrival_ns;
  } else {
    int16_t delta = (int16_t)(uint16_t)(rtp->sequence - (uint16_t)stream->highest);
    extended = stream->highest + delta;
    if (delta <= -CACHE_PACKETS || extended < 0) {
      stream->stats.late++;
      return DROPPED;
    }
    if (stream->seen[extended & MASK] == (uint32_t)extended) {
      stream->stats.duplicates++;
      return DROPPED;
    }
    newest = delta > 0;
    if (delta > 1) {
      *first = (uint16_t)(stream->highest + 1);
      *last = (uint16_t)(extended - 1);
      result = NEW_WITH_GAP;
    }
    if (newest)
      stream->highest = extended;
    else if (extended < stream->base)
      stream->base = extended;
  }
  stream->seen[extended & MASK] = (uint32_t)extended;
  rtp->extended = extended;
  stream->stats.packets++;
  stream->stats.bytes += rtp->payload_end - rtp->payload_start;
  if (recovered)
    stream->stats.recovered++;
  else
    measure_jitter(stream, rtp);
  if (newest) {
    stream->stats.last_timestamp = rtp->timestamp;
    stream->stats.last_arrival_ns = rtp->arrival_ns;
  }
  if (stream->codec && is_keyframe_start(stream->codec, rtp->data, rtp->payload_start, rtp->payload_end)) {
    rtp->keyframe = true;
    stream->stats.keyframes++;
    stream->stats.last_keyframe_ns = rtp->arrival_ns;
    /* H.264 in Chromium: parameter sets, then the IDR picture in packets of their own; a replay begins with the former. */
    const struct kept *first = stream_cached(stream, stream->keyframe_extended);
    bool same = first && get32(first->data + 4) == rtp->timestamp;
    if (extended > stream->keyframe_extended && !same) stream->keyframe_extended = extended;
  }
  if (stream->codec) layer_read(stream, rtp);
  if (stream->audio_level_id) {
    const struct element *level = rtp_element(rtp, stream->audio_level_id);
    if (level && level->length) {
      stream->stats.audio_level = rtp->data[level->at] & 0x7f;
      stream->stats.voice = rtp->data[level->at] >> 7;
    }
  }
  return result;
}

static void drop_oldest(forwarder_t *f, struct stream *stream) {
  struct kept *kept = stream->fifo[stream->fifo_head & MASK];
  stream->fifo_head++;
  stream->fifo_count--;
  stream->stats.cached_bytes -= kept->size;
  f->stats.cache_bytes -= kept->size;
  if (stream->by_number[kept->extended & MASK] == kept) stream->by_number[kept->extended & MASK] = NULL;
  free(kept);
}

void stream_keep(forwarder_t *f, struct stream *stream, const struct rtp *rtp) {
  int64_t before = rtp->arrival_ns - stream->keep_ns;
  while (stream->fifo_count && stream->fifo[stream->fifo_head & MASK]->arrival_ns < before) drop_oldest(f, stream);
  while (stream->fifo_count &&
         (stream->stats.cached_bytes + rtp->size > stream->keep_bytes || stream->fifo_count == CACHE_PACKETS ||
          f->stats.cache_bytes + rtp->size > CACHE_TOTAL_BYTES))
    drop_oldest(f, stream);
  if (rtp->size > stream->keep_bytes || f->stats.cache_bytes + rtp->size > CACHE_TOTAL_BYTES) return;
  struct kept *kept = malloc(sizeof *kept + rtp->size);
  if (!kept) return;
  kept->arrival_ns = rtp->arrival_ns;
  kept->extended = rtp->extended;
  kept->size = rtp->size;
  kept->layer = rtp->layer;
  memcpy(kept->data, rtp->data, rtp->size);
  stream->fifo[(stream->fifo_head + stream->fifo_count++) & MASK] = kept;
  stream->by_number[rtp->extended & MASK] = kept;
  stream->stats.cached_bytes += rtp->size;
  f->stats.cache_bytes += rtp->size;
}

struct kept *stream_cached(const struct stream *stream, int64_t extended) {
  if (extended < 0) return NULL;
  struct kept *kept = stream->by_number[extended & MASK];
  return kept && kept->extended == extended ? kept : NULL;
}

static int by_extended(const void *left, const void *right) {
  const struct kept *a = *(struct kept *const *)left, *b = *(struct kept *const *)right;
  return (a->extended > b->extended) - (a->extended < b->extended);
}

size_t stream_later(const struct stream *stream, int64_t floor, struct kept *later[CACHE_PACKETS]) {
  size_t count = 0;
  for (uint32_t i = 0; i < stream->fifo_count; i++) {
    struct kept *kept = stream->fifo[(stream->fifo_head + i) & MASK];
    if (kept->extended > floor) later[count++] = kept;
  }
  qsort(later, count, sizeof *later, by_extended);
  return count;
}

void stream_clear(forwarder_t *f, struct stream *stream) {
  while (stream->fifo_count) drop_oldest(f, stream);
}
