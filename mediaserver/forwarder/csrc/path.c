/* The way of a packet: demultiplex, decrypt, account, tap, cache, rewrite for each route, encrypt, queue. */
#include "internal.h"

#include <time.h>

enum { SENDER_REPORT = 200, RECEIVER_REPORT = 201, DESCRIPTION = 202, BYE = 203, TRANSPORT_FEEDBACK = 205, NACK = 1, TRANSPORT_CC = 15 };

struct peer *path_peer(forwarder_t *f, const uint8_t *name, int socket) {
  struct peer *peer = map_get(&f->bound, name_key(&f->bound, name, socket));
  if (!peer) return NULL;
  for (int i = 0; i < peer->address_count; i++) {
    const struct name *known = &peer->addresses[i];
    if (known->socket == socket && !memcmp(known->bytes, name, known->length)) return peer;
  }
  return NULL;
}

struct source *peer_source(const struct peer *peer, uint32_t ssrc) {
  for (int i = 0; i < peer->source_count; i++)
    if (peer->sources[i].ssrc == ssrc) return &peer->sources[i];
  return NULL;
}

struct source *peer_add_source(struct peer *peer, uint32_t ssrc, enum role role) {
  if (peer->source_count == MAX_SSRCS) return NULL;
  if (!peer->sources && !(peer->sources = calloc(MAX_SSRCS, sizeof *peer->sources))) return NULL;
  struct source *source = &peer->sources[peer->source_count++];
  memset(source, 0, sizeof *source);
  source->ssrc = ssrc;
  source->role = role;
  return source;
}

struct route *peer_route(const struct peer *peer, uint32_t ssrc) {
  for (uint32_t i = 0; i < peer->routes.count; i++) {
    struct route *route = peer->routes.items[i];
    if (route->ssrc == ssrc) return route;
  }
  return NULL;
}

/* --- sending */

int path_emit(forwarder_t *f, struct peer *peer, uint64_t index, uint32_t length, int64_t number) {
  int sealed = length ? srtp_seal(f, peer, index, sender_slot(f), (int)length) : -1;
  if (sealed < 0) {
    peer->stats.send_failed++;
    return 0;
  }
  peer->stats.packets_sent++;
  peer->stats.bytes_sent += sealed;
  if (peer->number_sent != number) sent_note(f, peer, number, f->now_ns, sealed);
  sender_queue(f, peer, (uint32_t)sealed);
  return sealed;
}

static void send_first(forwarder_t *f, struct route *route, const struct stream *stream, const struct rtp *rtp) {
  struct verdict_on on = {.marker = rtp->marker};
  if (route->filter) {
    enum verdict verdict = filter_judge(route->filter, rtp, &on);
    if (verdict == LEAVE_OUT) return;
    on.fill = verdict == FILL;
    filter_mask(route->filter, stream, rtp, &on);
  }
  struct peer *peer = route->peer;
  bool waits = stream->codec && pace_waits(&peer->pacer, f->now_ns);
  uint64_t index = 0;
  int64_t number = peer->number_sent;
  struct stamps stamps = {0};
  uint32_t length = route_first(f, route, rtp, on, sender_slot(f), &index, waits ? &stamps : NULL);
  if (waits)
    pace_add(f, route, index, length, stamps);
  else
    pace_spend(&peer->pacer, path_emit(f, peer, index, length, number), f->now_ns);
}

/* Begin with `rtp`, then send what came before its time and what came since it. */
static void begin(forwarder_t *f, struct route *route, struct stream *stream, const struct rtp *rtp) {
  if (route->stream && route->stream != stream) pointers_remove(&route->stream->routes, route);
  route_begin(route, stream, rtp);
  fwd_event_t event = {.kind = FWD_EVENT_SWITCHED, .number = route->number, .other = stream->number, .at_ns = f->now_ns};
  outbox_event(f, &event);
  int64_t floor = rtp->extended;
  send_first(f, route, stream, rtp);
  struct kept *later[CACHE_PACKETS];
  size_t count = stream_later(stream, floor, later);
  for (size_t i = 0; i < count; i++) {
    struct rtp again;
    if (!rtp_parse(&again, later[i]->data, later[i]->size, later[i]->arrival_ns)) continue;
    again.extended = later[i]->extended;
    again.layer = later[i]->layer;
    again.keyframe = is_keyframe_start(stream->codec, again.data, again.payload_start, again.payload_end);
    send_first(f, route, stream, &again);
  }
}

static void forward(forwarder_t *f, struct route *route, struct stream *stream, const struct rtp *rtp) {
  if (route->paused || !peer_ready(route->peer)) return;
  if (route->pending == stream || (route->waiting && !route->pending)) {
    if (stream->codec && !rtp->keyframe) return;
    begin(f, route, stream, rtp);
    return;
  }
  if (route->waiting || !route->epoch_count) return;
  const struct epoch *epoch = &route->epochs[(route->epoch_count - 1) % EPOCHS];
  if (epoch->stream != stream->number || rtp->extended < epoch->floor) return;
  send_first(f, route, stream, rtp);
}

void path_replay(forwarder_t *f, struct route *route) {
  struct stream *stream = route->pending ? route->pending : route->stream;
  if (!stream || !route->waiting || route->paused || !peer_ready(route->peer)) return;
  struct kept *kept = stream_cached(stream, stream->keyframe_extended);
  struct rtp rtp;
  if (!kept || f->now_ns - kept->arrival_ns > REPLAY_NS ||
      !rtp_parse(&rtp, kept->data, kept->size, kept->arrival_ns))
    return;
  rtp.extended = kept->extended;
  rtp.layer = kept->layer;
  rtp.keyframe = true;
  begin(f, route, stream, &rtp);
}

int path_resend(forwarder_t *f, struct route *route, uint16_t sequence) {
  if (route->paused || !peer_ready(route->peer)) return 0;
  uint64_t index = 0;
  int64_t number = route->peer->number_sent;
  uint32_t length = route_again(f, route, sequence, sender_slot(f), &index);
  if (!length) return 0;
  pace_spend(&route->peer->pacer, path_emit(f, route->peer, index, length, number), f->now_ns);
  return 1;
}

int path_padding(forwarder_t *f, struct route *route, int32_t bytes) {
  if (route->paused || route->waiting || route->last < 0 || !peer_ready(route->peer)) return 0;
  int64_t at = route->last;
  int sent = 0;
  for (int packets = 0; sent < bytes && packets < MAX_PADDING; packets++) {
    uint64_t index = 0;
    int64_t number = route->peer->number_sent;
    uint32_t length = route_padding(f, route, &at, sender_slot(f), &index);
    int sealed = length ? path_emit(f, route->peer, index, length, number) : 0;
    if (!sealed) break;
    sent += sealed;
  }
  route->padding += sent;
  return sent;
}

bool path_send_rtcp(forwarder_t *f, struct peer *peer, const uint8_t *data, uint32_t size) {
  if (!peer_ready(peer)) return false;
  uint8_t *slot = sender_slot(f);
  memcpy(slot, data, size);
  int length = (int)size;
  if (f->crypto.srtp_protect_rtcp(peer->tx, slot, &length) != 0) {
    peer->stats.send_failed++;
    return false;
  }
  peer->stats.packets_sent++;
  peer->stats.bytes_sent += length;
  sender_queue(f, peer, (uint32_t)length);
  return true;
}

/* --- receiving */

static void media(forwarder_t *f, struct stream *stream, struct rtp *rtp, bool recovered) {
  if (rtp->payload_type != stream->payload_type) {
    int32_t primary = rtp->payload_type == stream->red_payload_type
                          ? red_primary(rtp->data, rtp->payload_start, rtp->payload_end, stream->payload_type)
                          : RED_FOREIGN;
    if (primary == RED_FOREIGN) stream->stats.other_payload++;
    if (primary == RED_MALFORMED) stream->stats.malformed++;
    if (primary <= 0) return;
  }
  uint16_t first = 0, last = 0;
  enum accounted accounted = stream_account(stream, rtp, recovered, &first, &last);
  if (accounted == DROPPED) return;
  if (accounted == NEW_WITH_GAP) {
    fwd_event_t event = {
        .kind = FWD_EVENT_GAP, .number = stream->number, .a = first, .b = last, .at_ns = rtp->arrival_ns};
    outbox_event(f, &event);
  }
  bool moved = stream->tap_from && tap_take(f, stream, rtp);
  if (stream->track >= 0) outbox_tap(f, stream->track, rtp->arrival_ns, rtp->data, rtp->size, false);
  if (moved) tap_later(f, stream, rtp->extended);
  stream_keep(f, stream, rtp);
  if (rtp->keyframe) {
    fwd_event_t event = {
        .kind = FWD_EVENT_KEYFRAME, .number = stream->number, .a = rtp->timestamp, .at_ns = rtp->arrival_ns};
    outbox_event(f, &event);
  }
  for (uint32_t i = 0; i < stream->routes.count; i++) forward(f, stream->routes.items[i], stream, rtp);
}

/* RFC 4588 section 4: the payload begins with the original sequence number. */
static void retransmission(forwarder_t *f, struct stream *stream, const struct rtp *rtp) {
  if (stream->rtx_payload_type >= 0 && rtp->payload_type != stream->rtx_payload_type) {
    stream->stats.other_payload++;
    return;
  }
  uint32_t start = rtp->payload_start;
  if (rtp->payload_end - start < 2) return; /* a padding probe */
  uint8_t original[MAX_PACKET_BYTES];
  memcpy(original, rtp->data, start);
  original[1] = (uint8_t)(rtp->marker | stream->payload_type);
  memcpy(original + 2, rtp->data + start, 2);
  put32(original + 8, stream->ssrc);
  memcpy(original + start, rtp->data + start + 2, rtp->size - start - 2);
  struct rtp unwrapped;
  if (rtp_parse(&unwrapped, original, rtp->size - 2, rtp->arrival_ns))
    media(f, stream, &unwrapped, true);
  else
    stream->stats.malformed++;
}

void path_dispatch(forwarder_t *f, struct peer *peer, struct source *source, struct rtp *rtp) {
  if (source->role == ROLE_HELD) {
    struct kept *kept = peer->held_count < MAX_HELD ? malloc(sizeof *kept + rtp->size) : NULL;
    if (!kept) {
      peer->stats.ssrc_refused++;
      return;
    }
    kept->arrival_ns = rtp->arrival_ns;
    kept->extended = 0;
    kept->size = rtp->size;
    memcpy(kept->data, rtp->data, rtp->size);
    peer->held[peer->held_count++] = kept;
  } else if (!source->stream) {
    peer->stats.ssrc_refused++;
  } else if (source->role == ROLE_MEDIA) {
    media(f, source->stream, rtp, false);
  } else {
    retransmission(f, source->stream, rtp);
  }
}

static uint8_t *put_text(uint8_t *at, const struct rtp *rtp, uint8_t id) {
  const struct element *element = id ? rtp_element(rtp, id) : NULL;
  *at++ = element ? element->length : 0;
  if (element) memcpy(at, rtp->data + element->at, element->length);
  return at + (element ? element->length : 0);
}

static void announce(forwarder_t *f, const struct peer *peer, const struct rtp *rtp) {
  uint8_t texts[3 * 256], *end = texts;
  end = put_text(end, rtp, peer->mid_id);
  end = put_text(end, rtp, peer->rid_id);
  end = put_text(end, rtp, peer->repaired_rid_id);
  fwd_event_t event = {.kind = FWD_EVENT_NEW_SSRC,
                       .size = (uint32_t)(end - texts),
                       .number = peer->number,
                       .at_ns = rtp->arrival_ns,
                       .ssrc = rtp->ssrc,
                       .a = rtp->payload_type};
  uint8_t *room = outbox_event(f, &event);
  if (room) memcpy(room, texts, event.size);
}

static void note_received(struct peer *peer, int length, int64_t arrival_ns) {
  peer->stats.packets_received++;
  peer->stats.bytes_received += length;
  peer->stats.last_received_ns = arrival_ns;
}

static void receive_rtp(forwarder_t *f, struct peer *peer, uint8_t *data, int length, int64_t arrival_ns) {
  if (length < 12) {
    peer->stats.malformed++;
    return;
  }
  uint32_t ssrc = get32(data + 8);
  struct source *source = peer_source(peer, ssrc);
  if (!source && peer->source_count == MAX_SSRCS) {
    peer->stats.ssrc_refused++;
    return;
  }
  uint64_t index = 0;
  int size = srtp_open(f, peer, source, &index, data, length);
  if (size < 0) return;
  note_received(peer, length, arrival_ns);
  struct rtp rtp;
  bool good = rtp_parse(&rtp, data, (uint32_t)size, arrival_ns);
  bool fresh = !source;
  /* Only now, authenticated, may an SSRC take a place. Rubbish takes one too: the crypto has state for it. */
  if (fresh && !(source = peer_add_source(peer, ssrc, good ? ROLE_HELD : ROLE_IGNORED))) {
    peer->stats.ssrc_refused++;
    return;
  }
  source_advance(source, index);
  if (!good) {
    peer->stats.malformed++;
    if (source->stream) source->stream->stats.malformed++;
    return;
  }
  if (peer->transport_cc_id) {
    const struct element *number = rtp_element(&rtp, peer->transport_cc_id);
    if (number && number->length >= 2) {
      log_add(&peer->log, get16(data + number->at), arrival_ns, ssrc);
      if (peer->log.interval_ns && peer->log.due_ns < f->feedback_due_ns) f->feedback_due_ns = peer->log.due_ns;
    }
  }
  if (fresh) announce(f, peer, &rtp);
  path_dispatch(f, peer, source, &rtp);
}

static bool admits_rtcp(struct peer *peer, uint32_t ssrc, bool remember) {
  for (int i = 0; i < peer->rtcp_count; i++)
    if (peer->rtcp_ssrcs[i] == ssrc) return true;
  if (peer->rtcp_count == MAX_SSRCS) return false;
  if (remember) peer->rtcp_ssrcs[peer->rtcp_count++] = ssrc;
  return true;
}

static void answer_nack(forwarder_t *f, struct route *route, const uint8_t *data, uint32_t length) {
  for (uint32_t at = 12; at + 4 <= length; at += 4) {
    uint16_t first = get16(data + at), mask = get16(data + at + 2);
    path_resend(f, route, first);
    for (int bit = 0; bit < 16; bit++)
      if (mask >> bit & 1) path_resend(f, route, (uint16_t)(first + bit + 1));
  }
}

/* What a subscriber says that it lost of each route since its last report (RFC 3550 section 6.4.2). */
static void note_reports(struct peer *peer, const uint8_t *data, uint32_t length, int64_t arrival_ns) {
  for (uint32_t at = 8, left = data[0] & 31; left && at + 24 <= length; at += 24, left--) {
    struct route *route = peer_route(peer, get32(data + at));
    if (!route) continue;
    route->fraction_lost = data[at + 4];
    route->report_ns = arrival_ns;
  }
}

/* A peer that floods fills its own share of what waits for Python, nobody else's. */
static bool may_tell(forwarder_t *f, struct peer *peer) {
  if (peer->told_take != f->outbox.take) {
    peer->told_take = f->outbox.take;
    peer->told = 0;
  }
  if (peer->told < MAX_TOLD) {
    peer->told++;
    return true;
  }
  f->stats.events_dropped++;
  return false;
}

static void receive_rtcp(forwarder_t *f, struct peer *peer, uint8_t *data, int length, int64_t arrival_ns) {
  if (length < 8) {
    peer->stats.malformed++;
    return;
  }
  uint32_t ssrc = get32(data + 4);
  if (!admits_rtcp(peer, ssrc, false)) {
    peer->stats.ssrc_refused++;
    return;
  }
  int plain = length, status = peer->keyed ? f->crypto.srtp_unprotect_rtcp(peer->rx, data, &plain) : -1;
  if (status != 0) {
    if (status == 9 || status == 10)
      peer->stats.replayed++;
    else
      peer->stats.auth_failed++;
    return;
  }
  admits_rtcp(peer, ssrc, true);
  note_received(peer, length, arrival_ns);
  uint32_t size = (uint32_t)plain, track_count = 0;
  if (!rtcp_valid(data, size)) {
    peer->stats.malformed++;
    return;
  }
  int32_t tracks[MAX_SSRCS];
  bool deliver = false, urgent = false;
  for (uint32_t at = 0, step; at < size; at += step) {
    const uint8_t *packet = data + at;
    step = 4u * (get16(packet + 2) + 1u);
    int type = packet[1], format = packet[0] & 31;
    if (type == TRANSPORT_FEEDBACK && format == NACK && step >= 16) {
      struct route *route = peer_route(peer, get32(packet + 8));
      if (route)
        answer_nack(f, route, packet, step);
      else
        deliver = urgent = true;
    } else if (type == TRANSPORT_FEEDBACK && format == TRANSPORT_CC) {
      feedback_read(packet, step, &peer->stats.transport_cc_reported, &peer->stats.transport_cc_lost);
      sent_told(f, peer, packet, step, arrival_ns);
    } else {
      if (type == RECEIVER_REPORT) note_reports(peer, packet, step, arrival_ns);
      deliver |= type != RECEIVER_REPORT && type != DESCRIPTION;
      urgent |= type < SENDER_REPORT || type > DESCRIPTION;
      if (type != SENDER_REPORT && type != BYE) continue;
      struct source *source = peer_source(peer, get32(packet + 4));
      struct stream *stream = source && source->role == ROLE_MEDIA ? source->stream : NULL;
      if (!stream || stream->track < 0) continue;
      uint32_t i = 0;
      while (i < track_count && tracks[i] != stream->track) i++;
      if (i == track_count && track_count < MAX_SSRCS) tracks[track_count++] = stream->track;
    }
  }
  for (uint32_t i = 0; i < track_count; i++) outbox_tap(f, tracks[i], arrival_ns, data, size, true);
  if (deliver && may_tell(f, peer)) {
    fwd_event_t event = {.kind = FWD_EVENT_RTCP, .size = size, .number = peer->number, .a = urgent, .at_ns = arrival_ns};
    uint8_t *room = outbox_event(f, &event);
    if (room) memcpy(room, data, size);
  }
}

static void raise_raw(forwarder_t *f, struct peer *peer, const uint8_t *name, int socket, const uint8_t *data,
                      int length, int64_t arrival_ns) {
  if (peer && !may_tell(f, peer)) return;
  fwd_event_t event = {.kind = FWD_EVENT_RAW,
                       .size = (uint32_t)length,
                       .number = peer ? peer->number : 0,
                       .at_ns = arrival_ns,
                       .socket = (uint32_t)socket};
  memcpy(event.name, name, sizeof(struct sockaddr_in6));
  uint8_t *room = outbox_event(f, &event);
  if (room) memcpy(room, data, (size_t)length);
}

void path_datagram(forwarder_t *f, int socket, const uint8_t *name, uint8_t *data, int length, int64_t arrival_ns) {
  if (length > MAX_PACKET_BYTES || length < 2) {
    f->stats.malformed++;
    return;
  }
  uint8_t first = data[0];
  struct peer *peer = path_peer(f, name, socket);
  if (first >= 128 && first <= 191) {
    bool rtcp = data[1] >= 192 && data[1] <= 223; /* RFC 5761 section 4 */
    if (!peer) {
      f->stats.unknown_address++;
      if (!rtcp && arrival_ns - f->stray_ns >= STRAY_NS) { /* perhaps a client whose address has changed */
        f->stray_ns = arrival_ns;
        raise_raw(f, NULL, name, socket, data, length, arrival_ns);
      }
    } else if (rtcp)
      receive_rtcp(f, peer, data, length, arrival_ns);
    else
      receive_rtp(f, peer, data, length, arrival_ns);
  } else if (first <= 3 || (first >= 20 && first <= 63 && peer)) { /* RFC 7983 */
    raise_raw(f, peer, name, socket, data, length, arrival_ns);
  } else if (first >= 20 && first <= 63) {
    f->stats.unknown_address++;
  } else {
    f->stats.malformed++;
  }
}

int path_receive(forwarder_t *f, int socket) {
  struct receiver *receiver = &f->receivers[socket];
  int count = receiver_take(receiver);
  if (!count) return 0;
  f->stats.receive_batches++;
  f->stats.datagrams_received += count;
  struct timespec wall;
  int64_t now_ns = monotonic_ns();
  clock_gettime(CLOCK_REALTIME, &wall); /* right after the other clock: what lies between is the stamps' error */
  int64_t offset = (int64_t)wall.tv_sec * 1000000000 + wall.tv_nsec - now_ns;
  for (int slot = 0; slot < count; slot++) {
    const struct mmsghdr *message = &receiver->messages[slot];
    int64_t arrival_ns = receiver_arrival(receiver, slot, now_ns, offset);
    bool whole = message->msg_len <= MAX_PACKET_BYTES && !(message->msg_hdr.msg_flags & MSG_TRUNC);
    path_datagram(f, socket, (const uint8_t *)&receiver->names[slot], receiver->vectors[slot].iov_base,
                  whole ? (int)message->msg_len : 0, arrival_ns);
  }
  return count;
}
