/* How a subscriber sees a stream; the twin of route.py, whose text explains epochs. */
#include "internal.h"

enum { MIN_FILLER_BYTES = 200 }; /* shorter packets fill the line badly */

static struct epoch *current(struct route *route) {
  return &route->epochs[(route->epoch_count - 1) % EPOCHS];
}

void route_begin(struct route *route, struct stream *stream, const struct rtp *rtp) {
  struct epoch last = {0};
  if (route->epoch_count) last = *current(route);
  route->epoch_count++;
  struct epoch *epoch = current(route);
  memset(epoch, 0, sizeof *epoch);
  epoch->stream = stream->number;
  epoch->floor = rtp->extended;
  epoch->payload_type = (uint8_t)route->payload_type;
  epoch->rtx_payload_type = route->has_rtx ? route->rtx_payload_type : -1;
  epoch->codec = stream->codec;
  epoch->red_from = stream->red_payload_type;
  epoch->red_to = route->has_rtx ? -1 : route->red_payload_type; /* RTX speaks of one payload type only */
  epoch->sequence_offset = (route->last >= 0 ? route->last + 1 : route->next) - rtp->extended;
  if (route->last >= 0) {
    if (last.stream == stream->number) {
      epoch->timestamp_offset = last.timestamp_offset;
    } else {
      int64_t elapsed = rtp->arrival_ns - route->last_sent_ns;
      if (elapsed < 0) elapsed = 0;
      uint64_t ticks = (uint64_t)(elapsed / 1000) * stream->clock_rate / 1000000;
      if (ticks < 1) ticks = 1;
      epoch->timestamp_offset = route->last_timestamp + (uint32_t)ticks - rtp->timestamp;
    }
  }
  if (stream->codec == CODEC_VP8) {
    struct vp8_numbers found = vp8_find(rtp->data, rtp->payload_start, rtp->payload_end);
    if (found.bits && route->picture >= 0)
      epoch->picture_offset = (uint16_t)((uint32_t)route->picture + 1 - vp8_picture(rtp->data, found)) & 0x7fff;
    if (found.index && route->index >= 0)
      epoch->index_offset = (uint8_t)(route->index + 1 - rtp->data[found.index]);
  }
  const struct element *told = stream->dependency_id ? rtp_element(rtp, stream->dependency_id) : NULL;
  epoch->dependency_id = stream->dependency_id;
  if (told && told->length >= 3 && route->frame >= 0)
    epoch->frame_offset = (uint16_t)(route->frame + 1 - get16(rtp->data + told->at + 1));
  if (route->filter) filter_begin(route->filter, rtp->extended - 1);
  for (int i = 0; i < stream->extension_count; i++) {
    uint16_t uri = stream->extensions[i].uri;
    if (uri >= FWD_URI_MID && uri <= FWD_URI_ABS_SEND_TIME) continue; /* never copied */
    for (int k = 0; k < route->extension_count; k++)
      if (route->extensions[k].uri == uri) {
        epoch->from[epoch->mapped] = stream->extensions[i].id;
        epoch->to[epoch->mapped++] = route->extensions[k].id;
      }
  }
  route->stream = stream;
  route->pending = NULL;
  route->waiting = false;
}

static int mapped_id(const struct epoch *epoch, uint8_t id) {
  for (int i = 0; i < epoch->mapped; i++)
    if (epoch->from[i] == id) return epoch->to[i];
  return 0;
}

static uint8_t *put_element(uint8_t *at, bool two_byte, int id, const uint8_t *value, uint32_t length) {
  if (two_byte) {
    *at++ = (uint8_t)id;
    *at++ = (uint8_t)length;
  } else {
    if (length < 1 || length > 16) return at;
    *at++ = (uint8_t)(id << 4 | (int)(length - 1));
  }
  memcpy(at, value, length);
  return at + length;
}

struct outgoing {
  uint32_t ssrc;
  uint8_t payload_type;
  uint16_t sequence, number;
  uint32_t seconds;
  int32_t original;
  bool measured;
  struct verdict_on on;
  struct stamps *stamps;
};

/* The frame number goes on where another stream's ended, as VP8's picture id does. */
static uint8_t *put_dependency(uint8_t *at, bool two_byte, int id, const struct epoch *epoch, const uint8_t *value,
                               uint32_t length, const struct verdict_on *on) {
  uint8_t written[256];
  uint32_t room = two_byte ? 250 : 11; /* it grows by up to 5 bytes */
  length = dependency_rewrite(value, length, epoch->frame_offset, on->mask, length > room ? 0 : on->targets, written);
  return put_element(at, two_byte, id, written, length);
}

/* Write the header extension at `out`; return its length, 0 if there is none. */
static uint32_t put_extension(const struct route *route, const struct epoch *epoch, const struct rtp *rtp, uint8_t *out,
                              const struct outgoing *to) {
  bool two_byte = route->two_byte;
  if (route->allow_mixed && rtp->two_byte)
    for (int i = 0; i < rtp->element_count; i++)
      if ((rtp->elements[i].length > 16 || !rtp->elements[i].length) && mapped_id(epoch, rtp->elements[i].id))
        two_byte = true;
  uint8_t *at = out + 4, value[3];
  if (route->mid_id) at = put_element(at, two_byte, route->mid_id, route->mid, route->mid_length);
  if (route->abs_id && to->measured) {
    value[0] = (uint8_t)(to->seconds >> 16);
    put16(value + 1, to->seconds);
    at = put_element(at, two_byte, route->abs_id, value, 3);
    if (to->stamps) to->stamps->seconds = at - 3;
  }
  if (route->transport_cc_id && to->measured) {
    put16(value, to->number);
    at = put_element(at, two_byte, route->transport_cc_id, value, 2);
    if (to->stamps) to->stamps->number = at - 2;
  }
  for (int i = 0; i < rtp->element_count; i++) {
    const struct element *element = &rtp->elements[i];
    int id = mapped_id(epoch, element->id);
    if (!id) continue;
    if (element->id == epoch->dependency_id)
      at = put_dependency(at, two_byte, id, epoch, rtp->data + element->at, element->length, &to->on);
    else
      at = put_element(at, two_byte, id, rtp->data + element->at, element->length);
  }
  uint32_t length = (uint32_t)(at - out - 4);
  if (!length) return 0;
  for (; length & 3; length++) *at++ = 0;
  put16(out, two_byte ? 0x1000 : 0xbede);
  put16(out + 2, length / 4);
  return 4 + length;
}

/* A packet of nothing but padding takes a number that must not stay free; see layers.py. */
static uint32_t build_fill(const struct route *route, const struct epoch *epoch, const struct rtp *rtp, uint8_t *out,
                           const struct outgoing *to) {
  const struct rtp nothing = {0};
  uint32_t extension = put_extension(route, epoch, &nothing, out + 12, to), at = 12 + extension;
  out[0] = (uint8_t)(0xa0 | (extension ? 0x10 : 0));
  out[1] = to->payload_type;
  put16(out + 2, to->sequence);
  put32(out + 4, rtp->timestamp + epoch->timestamp_offset);
  put32(out + 8, to->ssrc);
  if (to->original >= 0) {
    put16(out + at, (uint32_t)to->original);
    at += 2;
  }
  out[at] = 1;
  return at + 1;
}

static bool is_red(const struct epoch *epoch, const struct rtp *rtp) {
  return epoch->red_from >= 0 && rtp->payload_type == epoch->red_from;
}

/* Where what is sent of a payload begins: of RED the primary block, for a subscriber without. */
static uint32_t sent_from(const struct epoch *epoch, const struct rtp *rtp) {
  if (!is_red(epoch, rtp) || epoch->red_to >= 0) return rtp->payload_start;
  int32_t primary = red_primary(rtp->data, rtp->payload_start, rtp->payload_end, -1);
  return primary > 0 ? (uint32_t)primary : rtp->payload_start;
}

/* Rewrite a packet, plain or as RTX of the number `original` (-1: plain). A packet grows by at most 45 bytes of
 * extensions, 2 for each of MAX_ELEMENTS that gets a two-byte header, and 2 of RTX: it fits SLOT_BYTES with its tag. */
static uint32_t build(struct route *route, const struct epoch *epoch, const struct rtp *rtp, uint8_t *out,
                      struct outgoing to, bool newest) {
  const uint8_t *data = rtp->data;
  if (to.on.fill) return build_fill(route, epoch, rtp, out, &to);
  put16(out + 2, to.sequence);
  put32(out + 4, rtp->timestamp + epoch->timestamp_offset);
  put32(out + 8, to.ssrc);
  uint32_t at = rtp->csrcs_end;
  memcpy(out + 12, data + 12, at - 12);
  uint32_t extension = put_extension(route, epoch, rtp, out + at, &to);
  out[0] = (uint8_t)(0x80 | (data[0] & 0x2f) | (extension ? 0x10 : 0));
  bool red = is_red(epoch, rtp) && epoch->red_to >= 0;
  out[1] = to.on.marker | (red ? (uint8_t)epoch->red_to : to.payload_type);
  at += extension;
  if (to.original >= 0) {
    put16(out + at, (uint32_t)to.original);
    at += 2;
  }
  uint8_t *payload = out + at;
  uint32_t from = sent_from(epoch, rtp);
  memcpy(payload, data + from, rtp->size - from);
  if (red) red_renumber(payload, rtp->payload_end - from, epoch->payload_type);
  if (epoch->codec == CODEC_VP8) {
    struct vp8_numbers found = vp8_find(data, rtp->payload_start, rtp->payload_end);
    if (found.bits) {
      uint32_t value = (vp8_picture(data, found) + epoch->picture_offset) & ((1u << found.bits) - 1);
      uint8_t *place = payload + (found.picture - rtp->payload_start);
      if (found.bits == 15)
        put16(place, value | 0x8000);
      else
        *place = (uint8_t)value;
      if (newest) route->picture = (int32_t)value;
    }
    if (found.index) {
      uint8_t value = (uint8_t)(data[found.index] + epoch->index_offset);
      payload[found.index - rtp->payload_start] = value;
      if (newest) route->index = value;
    }
  }
  return at + rtp->size - from;
}

static uint16_t next_number(const struct route *route) {
  return route->transport_cc_id && route->peer->measured ? (uint16_t)route->peer->number_sent++ : 0;
}

uint32_t route_first(forwarder_t *f, struct route *route, const struct rtp *rtp, struct verdict_on on, uint8_t *out,
                     uint64_t *index, struct stamps *stamps) {
  struct epoch *epoch = current(route);
  int64_t extended = rtp->extended + epoch->sequence_offset - on.shift;
  if (route->base < 0) route->base = extended & ~0xffffll;
  if (extended < route->base) return 0; /* from before a change of keys */
  *index = (uint64_t)(extended - route->base);
  struct outgoing to = {.ssrc = route->ssrc,
                        .payload_type = epoch->payload_type,
                        .sequence = (uint16_t)extended,
                        .number = stamps ? 0 : next_number(route),
                        .seconds = f->seconds,
                        .original = -1,
                        .measured = route->peer->measured,
                        .on = on,
                        .stamps = stamps};
  if (stamps) stamps->extended = (uint32_t)extended;
  route->sent[extended & (SENT_RING - 1)] = (struct sent){.extended = (uint32_t)extended,
                                                           .received = (uint32_t)rtp->extended,
                                                           .epoch = route->epoch_count - 1,
                                                           .seconds = f->seconds,
                                                           .number = to.number,
                                                           .measured = to.measured,
                                                           .mask = on.mask,
                                                           .targets = on.targets,
                                                           .marker = on.marker,
                                                           .fill = on.fill,
                                                           .waiting = stamps != NULL,
                                                           .used = true};
  bool newest = extended > route->last;
  if (newest) {
    route->last = extended;
    route->last_timestamp = rtp->timestamp + epoch->timestamp_offset;
    route->last_sent_ns = rtp->arrival_ns;
    const struct element *told = epoch->dependency_id ? rtp_element(rtp, epoch->dependency_id) : NULL;
    if (told && told->length >= 3) route->frame = (uint16_t)(get16(rtp->data + told->at + 1) + epoch->frame_offset);
  }
  route->packets++;
  if (!on.fill) route->bytes += rtp->payload_end - sent_from(epoch, rtp);
  if (route->budget < RESEND_BUDGET) route->budget++;
  return build(route, epoch, rtp, out, to, newest);
}

struct sent *route_sent(struct route *route, uint32_t extended) {
  struct sent *sent = &route->sent[extended & (SENT_RING - 1)];
  return sent->used && sent->extended == extended ? sent : NULL;
}

/* The cached packet that was sent as this, NULL if it is gone. Sets its epoch and parses it. */
static struct kept *find_kept(forwarder_t *f, struct route *route, const struct sent *sent, struct epoch **epoch,
                              struct rtp *rtp) {
  *epoch = &route->epochs[sent->epoch % EPOCHS];
  struct stream *stream = map_get(&f->streams, (uint64_t)(*epoch)->stream);
  /* The ring keeps 32 bits of the received number; the epoch's first gives the rest. */
  int64_t received = (*epoch)->floor + (int64_t)(uint32_t)(sent->received - (uint32_t)(*epoch)->floor);
  struct kept *kept = stream ? stream_cached(stream, received) : NULL;
  if (!kept || !rtp_parse(rtp, kept->data, kept->size, kept->arrival_ns)) return NULL;
  rtp->extended = received;
  return kept;
}

/* Draw the next number of the RTX SSRC. */
static struct outgoing next_rtx(forwarder_t *f, struct route *route, uint8_t payload_type, uint64_t *index) {
  int64_t extended = route->next_rtx++;
  if (route->rtx_base < 0) route->rtx_base = extended & ~0xffffll;
  *index = (uint64_t)(extended - route->rtx_base);
  return (struct outgoing){.ssrc = route->rtx_ssrc,
                           .payload_type = payload_type,
                           .sequence = (uint16_t)extended,
                           .number = next_number(route),
                           .seconds = f->seconds,
                           .measured = route->peer->measured};
}

static struct verdict_on sent_as(const struct sent *sent) {
  return (struct verdict_on){.mask = sent->mask, .marker = sent->marker, .targets = sent->targets, .fill = sent->fill};
}

uint32_t route_again(forwarder_t *f, struct route *route, uint16_t sequence, uint8_t *out, uint64_t *index) {
  struct sent *sent = &route->sent[sequence & (SENT_RING - 1)];
  uint32_t now_ms = (uint32_t)(f->now_ns / 1000000) | 1; /* never 0, which says "not yet" */
  route->missed++;
  if (!sent->used || (uint16_t)sent->extended != sequence || sent->waiting || route->budget <= 0 ||
      route->epoch_count - 1 - sent->epoch >= EPOCHS ||
      (sent->resent_ms && now_ms - sent->resent_ms < RESEND_INTERVAL_MS))
    return 0;
  struct epoch *epoch;
  struct rtp rtp;
  if (!find_kept(f, route, sent, &epoch, &rtp)) return 0;
  int64_t extended = route->last - (int32_t)((uint32_t)route->last - sent->extended);
  bool plain = epoch->rtx_payload_type < 0;
  if (plain && (route->base < 0 || extended < route->base)) return 0;
  route->missed--;
  route->retransmitted++;
  route->budget--;
  sent->resent_ms = now_ms;
  if (plain) {
    *index = (uint64_t)(extended - route->base);
    struct outgoing to = {.ssrc = route->ssrc,
                          .payload_type = epoch->payload_type,
                          .sequence = sequence,
                          .number = sent->number,
                          .seconds = sent->seconds,
                          .original = -1,
                          .measured = sent->measured,
                          .on = sent_as(sent)};
    return build(route, epoch, &rtp, out, to, false);
  }
  struct outgoing to = next_rtx(f, route, (uint8_t)epoch->rtx_payload_type, index);
  to.original = sequence;
  to.on = sent_as(sent);
  return build(route, epoch, &rtp, out, to, false);
}

uint32_t route_padding(forwarder_t *f, struct route *route, int64_t *at, uint8_t *out, uint64_t *index) {
  if (!route->has_rtx || !route->epoch_count || current(route)->rtx_payload_type < 0) return 0;
  for (; *at > route->last - SENT_RING && *at >= 0; --*at) {
    const struct sent *sent = &route->sent[*at & (SENT_RING - 1)];
    struct epoch *epoch;
    struct rtp rtp;
    if (!sent->used || sent->fill || sent->waiting || sent->extended != (uint32_t)*at || route->epoch_count - 1 - sent->epoch >= EPOCHS ||
        !find_kept(f, route, sent, &epoch, &rtp) || epoch->rtx_payload_type < 0 ||
        rtp.payload_end - rtp.payload_start < MIN_FILLER_BYTES)
      continue;
    struct outgoing to = next_rtx(f, route, (uint8_t)epoch->rtx_payload_type, index);
    to.original = (uint16_t)(*at)--;
    to.on = sent_as(sent);
    return build(route, epoch, &rtp, out, to, false);
  }
  const struct epoch *epoch = current(route);
  struct outgoing to = next_rtx(f, route, (uint8_t)epoch->rtx_payload_type, index);
  const struct rtp nothing = {0};
  uint32_t extension = put_extension(route, epoch, &nothing, out + 12, &to);
  uint32_t end = 12 + extension + 255;
  out[0] = (uint8_t)(0xa0 | (extension ? 0x10 : 0));
  out[1] = to.payload_type;
  put16(out + 2, to.sequence);
  put32(out + 4, route->last_timestamp);
  put32(out + 8, to.ssrc);
  memset(out + 12 + extension, 0, 254);
  out[end - 1] = 255;
  return end;
}
