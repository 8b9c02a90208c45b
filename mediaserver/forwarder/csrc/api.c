/* What Python calls to change and to ask; see api.h. */
#include "internal.h"

static struct peer *find_peer(forwarder_t *f, int64_t n) { return n > 0 ? map_get(&f->peers, (uint64_t)n) : NULL; }
static struct stream *find_stream(forwarder_t *f, int64_t n) {
  return n > 0 ? map_get(&f->streams, (uint64_t)n) : NULL;
}
static struct route *find_route(forwarder_t *f, int64_t n) { return n > 0 ? map_get(&f->routes, (uint64_t)n) : NULL; }

static int leave(forwarder_t *f, int result) {
  forwarder_leave(f);
  return result;
}

static uint8_t id_of(const fwd_extension_t *extensions, int count, uint16_t uri) {
  for (int i = 0; i < count; i++)
    if (extensions[i].uri == uri) return extensions[i].id;
  return 0;
}

/* --- peers */

static void set_ids(struct peer *peer, const fwd_extension_t *extensions, int count) {
  peer->mid_id = id_of(extensions, count, FWD_URI_MID);
  peer->rid_id = id_of(extensions, count, FWD_URI_RID);
  peer->repaired_rid_id = id_of(extensions, count, FWD_URI_REPAIRED_RID);
  peer->transport_cc_id = id_of(extensions, count, FWD_URI_TRANSPORT_CC);
}

int64_t fwd_add_peer(forwarder_t *f) {
  forwarder_enter(f);
  int64_t result = FWD_FULL;
  if (f->peers.used < MAX_PEERS) {
    struct peer *peer = calloc(1, sizeof *peer);
    result = FWD_NO_MEMORY;
    if (peer && map_put(&f->peers, (uint64_t)f->next_number + 1, peer)) {
      result = peer->number = ++f->next_number;
      peer->first_queued = peer->last_queued = -1;
      peer->measured = true;
      peer->log.highest = peer->log.next = -1;
      peer->log.sender_ssrc = 1;
    } else {
      free(peer);
    }
  }
  forwarder_leave(f);
  return result;
}

int fwd_remove_peer(forwarder_t *f, int64_t number) {
  forwarder_enter(f);
  struct peer *peer = find_peer(f, number);
  if (peer) tables_remove_peer(f, peer);
  return leave(f, peer ? FWD_OK : FWD_NO_PEER);
}

int fwd_set_extensions(forwarder_t *f, int64_t number, const fwd_extension_t *extensions, int32_t count) {
  forwarder_enter(f);
  struct peer *peer = find_peer(f, number);
  if (peer) set_ids(peer, extensions, count);
  return leave(f, peer ? FWD_OK : FWD_NO_PEER);
}

static void replay_routes(forwarder_t *f, struct peer *peer) {
  for (uint32_t i = 0; i < peer->routes.count; i++) path_replay(f, peer->routes.items[i]);
}

static bool same_name(const struct name *a, const struct name *b) {
  return a->socket == b->socket && a->length == b->length && !memcmp(a->bytes, b->bytes, a->length);
}

int fwd_bind(forwarder_t *f, int64_t number, const uint8_t *bytes, int32_t length, int32_t socket) {
  forwarder_enter(f);
  struct peer *peer = find_peer(f, number);
  if (!peer) return leave(f, FWD_NO_PEER);
  if (socket < 0 || socket >= f->socket_count) return leave(f, FWD_NO_SOCKET);
  if (length != 16 && length != 28) return leave(f, FWD_INVALID);
  struct name name = {.length = (uint8_t)length, .socket = (uint8_t)socket};
  memcpy(name.bytes, bytes, (size_t)length);
  struct peer *before = path_peer(f, bytes, socket);
  if (before) {
    for (int i = 0; i < before->address_count; i++)
      if (same_name(&before->addresses[i], &name)) tables_unbind(f, before, i--);
    if (before != peer && same_name(&before->destination, &name)) before->addressed = false;
  }
  if (peer->address_count == MAX_ADDRESSES) tables_unbind(f, peer, 0);
  if (!map_put(&f->bound, name_key(&f->bound, bytes, socket), peer)) return leave(f, FWD_NO_MEMORY);
  peer->addresses[peer->address_count++] = name;
  peer->destination = name;
  peer->addressed = peer->gso = true;
  replay_routes(f, peer);
  return leave(f, FWD_OK);
}

/* Under a new key the other end takes the first number it sees for one without roll-over (RFC 3711 section 3.3.1). */
static void restart_indices(struct peer *peer) {
  if (!peer->keyed_before) {
    peer->keyed_before = true; /* the first numbers are below 2^15: their indices begin at 0 */
    return;
  }
  for (uint32_t i = 0; i < peer->routes.count; i++) {
    struct route *route = peer->routes.items[i];
    route->base = route->rtx_base = -1;
  }
  for (uint32_t i = 0; i < peer->sent_count; i++) peer->sent_ssrcs[i].base = -1;
  for (int i = 0; i < peer->source_count; i++) peer->sources[i].begun = false;
}

int fwd_set_keys(forwarder_t *f, int64_t number, void *rx_session, void *tx_session, int32_t gcm, const uint8_t *rx_key,
                 const uint8_t *rx_salt, const uint8_t *tx_key, const uint8_t *tx_salt) {
  forwarder_enter(f);
  struct peer *peer = find_peer(f, number);
  if (!peer) return leave(f, FWD_NO_PEER);
  pace_drop(f, peer, NULL);
  gcm_free(&f->crypto, &peer->rx_gcm);
  gcm_free(&f->crypto, &peer->tx_gcm);
  peer->keyed = false;
  if (gcm && f->evp && (!gcm_init(&f->crypto, &peer->rx_gcm, true, true, rx_key, rx_salt) ||
                        !gcm_init(&f->crypto, &peer->tx_gcm, true, false, tx_key, tx_salt)))
    return leave(f, FWD_NO_MEMORY);
  peer->rx = rx_session;
  peer->tx = tx_session;
  peer->keyed = true;
  restart_indices(peer);
  replay_routes(f, peer);
  return leave(f, FWD_OK);
}

/* --- streams */

static void release_held(forwarder_t *f, struct peer *peer, uint32_t ssrc, bool deliver) {
  struct kept *mine[MAX_HELD];
  int count = 0, rest = 0;
  for (int i = 0; i < peer->held_count; i++) {
    if (get32(peer->held[i]->data + 8) == ssrc)
      mine[count++] = peer->held[i];
    else
      peer->held[rest++] = peer->held[i];
  }
  peer->held_count = (uint8_t)rest;
  struct source *source = peer_source(peer, ssrc);
  for (int i = 0; i < count; i++) {
    struct rtp rtp;
    if (deliver && source && rtp_parse(&rtp, mine[i]->data, mine[i]->size, mine[i]->arrival_ns))
      path_dispatch(f, peer, source, &rtp);
    free(mine[i]);
  }
}

/* Give an SSRC to a stream; the stream itself may be NULL to ask only whether that can be. */
static int claim(struct peer *peer, uint32_t ssrc, enum role role, struct stream *stream) {
  struct source *source = peer_source(peer, ssrc);
  if (source && source->stream) return FWD_TAKEN;
  if (!source && peer->source_count == MAX_SSRCS) return FWD_FULL;
  if (!stream) return FWD_OK;
  if (!source && !(source = peer_add_source(peer, ssrc, role))) return FWD_NO_MEMORY;
  source->role = role;
  source->stream = stream;
  return FWD_OK;
}

int64_t fwd_add_stream(forwarder_t *f, int64_t number, const fwd_stream_parameters_t *p) {
  forwarder_enter(f);
  struct peer *peer = find_peer(f, number);
  int result = FWD_OK;
  if (!peer)
    result = FWD_NO_PEER;
  else if (f->streams.used >= MAX_STREAMS)
    result = FWD_FULL;
  else if (p->clock_rate < 1 || p->extension_count > MAX_MAPPED)
    result = FWD_INVALID;
  else if (p->has_rtx_ssrc && p->rtx_ssrc == p->ssrc)
    result = FWD_TAKEN;
  else if ((result = claim(peer, p->ssrc, ROLE_MEDIA, NULL)) == FWD_OK && p->has_rtx_ssrc)
    result = claim(peer, p->rtx_ssrc, ROLE_RTX, NULL);
  struct stream *stream = result ? NULL : calloc(1, sizeof *stream);
  if (!result && (!stream || !map_put(&f->streams, (uint64_t)f->next_number + 1, stream))) result = FWD_NO_MEMORY;
  if (!result && !pointers_add(&peer->streams, stream)) {
    map_remove(&f->streams, (uint64_t)f->next_number + 1);
    result = FWD_NO_MEMORY;
  }
  if (result) {
    free(stream);
    return leave(f, result);
  }
  stream->number = ++f->next_number;
  stream->peer = peer;
  stream->ssrc = p->ssrc;
  stream->clock_rate = p->clock_rate;
  stream->track = p->track;
  stream->payload_type = (int16_t)p->payload_type;
  stream->rtx_payload_type = (int16_t)p->rtx_payload_type;
  stream->red_payload_type = (int16_t)p->red_payload_type;
  stream->codec = p->video ? (uint8_t)p->codec : CODEC_NONE;
  stream->keep_ns = (int64_t)p->keep_ms * 1000000;
  stream->keep_bytes = p->keep_bytes;
  stream->base = stream->highest = stream->keyframe_extended = -1;
  stream->stats.audio_level = 127;
  memset(stream->seen, 0xff, sizeof stream->seen);
  stream->extension_count = (uint8_t)p->extension_count;
  if (p->extension_count)
    memcpy(stream->extensions, p->extensions, (size_t)p->extension_count * sizeof *p->extensions);
  stream->audio_level_id = id_of(p->extensions, p->extension_count, FWD_URI_AUDIO_LEVEL);
  stream->dependency_id = id_of(p->extensions, p->extension_count, FWD_URI_DEPENDENCY);
  result = claim(peer, p->ssrc, ROLE_MEDIA, stream);
  if (!result && p->has_rtx_ssrc) result = claim(peer, p->rtx_ssrc, ROLE_RTX, stream);
  if (result) {
    tables_remove_stream(f, stream);
    return leave(f, result);
  }
  release_held(f, peer, p->ssrc, true);
  if (p->has_rtx_ssrc) release_held(f, peer, p->rtx_ssrc, true);
  int64_t given = stream->number;
  forwarder_leave(f);
  return given;
}

int fwd_remove_stream(forwarder_t *f, int64_t number) {
  forwarder_enter(f);
  struct stream *stream = find_stream(f, number);
  if (stream) tables_remove_stream(f, stream);
  return leave(f, stream ? FWD_OK : FWD_NO_STREAM);
}

int fwd_set_rtx_ssrc(forwarder_t *f, int64_t number, uint32_t ssrc) {
  forwarder_enter(f);
  struct stream *stream = find_stream(f, number);
  int result = stream ? claim(stream->peer, ssrc, ROLE_RTX, stream) : FWD_NO_STREAM;
  if (!result) release_held(f, stream->peer, ssrc, true);
  return leave(f, result);
}

int fwd_ignore_ssrc(forwarder_t *f, int64_t number, uint32_t ssrc) {
  forwarder_enter(f);
  struct peer *peer = find_peer(f, number);
  if (!peer) return leave(f, FWD_NO_PEER);
  struct source *source = peer_source(peer, ssrc);
  if (source && source->stream) return leave(f, FWD_TAKEN);
  if (!source) source = peer_add_source(peer, ssrc, ROLE_IGNORED); /* NULL when full: then it is refused anyway */
  if (source) source->role = ROLE_IGNORED;
  release_held(f, peer, ssrc, false);
  return leave(f, FWD_OK);
}

int fwd_missing(forwarder_t *f, int64_t number, int32_t span, uint16_t *out, int32_t room) {
  forwarder_enter(f);
  struct stream *stream = find_stream(f, number);
  if (!stream) return leave(f, FWD_NO_STREAM);
  int count = 0;
  if (span > CACHE_PACKETS - 1) span = CACHE_PACKETS - 1;
  int64_t at = stream->highest - span + 1;
  if (at < stream->base) at = stream->base;
  for (; stream->highest >= 0 && at < stream->highest && count < room; at++)
    if (stream->seen[at & (CACHE_PACKETS - 1)] != (uint32_t)at) out[count++] = (uint16_t)at;
  return leave(f, count);
}

/* --- routes */

static bool is_sent(const struct peer *peer, uint32_t ssrc) {
  for (uint32_t i = 0; i < peer->routes.count; i++) {
    const struct route *route = peer->routes.items[i];
    if (route->ssrc == ssrc || (route->has_rtx && route->rtx_ssrc == ssrc)) return true;
  }
  return false;
}

/* Where an SSRC goes on that was sent to the peer before, else where it shall begin. */
static struct sent_ssrc sent_before(const struct peer *peer, uint32_t ssrc, int64_t otherwise) {
  for (uint32_t i = 0; i < peer->sent_count; i++)
    if (peer->sent_ssrcs[i].ssrc == ssrc) return peer->sent_ssrcs[i];
  return (struct sent_ssrc){ssrc, otherwise, 0};
}

/* Make room for what tables_remove_route will remember of a further route. */
static int reserve_sent(struct peer *peer) {
  uint32_t room = peer->sent_count + 2 * (peer->routes.count + 1);
  if (room > MAX_SENT_SSRCS) return FWD_FULL;
  struct sent_ssrc *grown = realloc(peer->sent_ssrcs, room * sizeof *grown);
  if (!grown) return FWD_NO_MEMORY;
  peer->sent_ssrcs = grown;
  return FWD_OK;
}

int64_t fwd_add_route(forwarder_t *f, int64_t stream_number, int64_t peer_number, const fwd_route_parameters_t *p) {
  forwarder_enter(f);
  struct stream *stream = find_stream(f, stream_number);
  struct peer *peer = find_peer(f, peer_number);
  bool has_rtx = p->rtx_payload_type >= 0;
  int result = FWD_OK;
  if (!stream)
    result = FWD_NO_STREAM;
  else if (!peer)
    result = FWD_NO_PEER;
  else if (f->routes.used >= MAX_ROUTES)
    result = FWD_FULL;
  else if (p->extension_count > MAX_MAPPED || p->mid_length > 16)
    result = FWD_INVALID;
  else if (is_sent(peer, p->ssrc) || (has_rtx && (is_sent(peer, p->rtx_ssrc) || p->rtx_ssrc == p->ssrc)))
    result = FWD_TAKEN;
  else
    result = reserve_sent(peer);
  struct route *route = result ? NULL : calloc(1, sizeof *route);
  if (!result && (!route || !map_put(&f->routes, (uint64_t)f->next_number + 1, route))) result = FWD_NO_MEMORY;
  if (!result && (!pointers_add(&stream->routes, route) || !pointers_add(&peer->routes, route))) {
    pointers_remove(&stream->routes, route);
    map_remove(&f->routes, (uint64_t)f->next_number + 1);
    result = FWD_NO_MEMORY;
  }
  if (result) {
    free(route);
    return leave(f, result);
  }
  route->number = ++f->next_number;
  route->peer = peer;
  route->stream = stream;
  route->ssrc = p->ssrc;
  route->rtx_ssrc = p->rtx_ssrc;
  route->has_rtx = has_rtx;
  route->payload_type = (int16_t)p->payload_type;
  route->rtx_payload_type = (int16_t)p->rtx_payload_type;
  route->red_payload_type = (int16_t)p->red_payload_type;
  route->allow_mixed = p->allow_mixed != 0;
  route->waiting = true;
  struct sent_ssrc before = sent_before(peer, p->ssrc, p->first_sequence);
  route->next = before.next;
  route->base = before.base;
  before = sent_before(peer, p->rtx_ssrc, p->first_rtx_sequence);
  route->next_rtx = before.next;
  route->rtx_base = before.base;
  route->last = -1;
  route->picture = route->index = route->frame = -1;
  route->budget = RESEND_BUDGET;
  route->extension_count = (uint8_t)p->extension_count;
  for (int i = 0; i < p->extension_count; i++) {
    route->extensions[i] = p->extensions[i];
    if (p->extensions[i].id > 14) route->two_byte = true;
  }
  route->mid_length = (uint8_t)p->mid_length;
  if (p->mid_length) memcpy(route->mid, p->mid, (size_t)p->mid_length);
  if (p->mid_length) route->mid_id = id_of(p->extensions, p->extension_count, FWD_URI_MID);
  route->abs_id = id_of(p->extensions, p->extension_count, FWD_URI_ABS_SEND_TIME);
  route->transport_cc_id = id_of(p->extensions, p->extension_count, FWD_URI_TRANSPORT_CC);
  int64_t given = route->number;
  path_replay(f, route);
  forwarder_leave(f);
  return given;
}

int fwd_remove_route(forwarder_t *f, int64_t number) {
  forwarder_enter(f);
  struct route *route = find_route(f, number);
  if (route) tables_remove_route(f, route);
  return leave(f, route ? FWD_OK : FWD_NO_ROUTE);
}

int fwd_switch(forwarder_t *f, int64_t number, int64_t stream_number, int32_t payload_type, int32_t rtx_payload_type) {
  forwarder_enter(f);
  struct route *route = find_route(f, number);
  struct stream *stream = find_stream(f, stream_number);
  if (!route) return leave(f, FWD_NO_ROUTE);
  if (!stream) return leave(f, FWD_NO_STREAM);
  if (payload_type >= 0) route->payload_type = (int16_t)payload_type;
  if (rtx_payload_type >= 0) route->rtx_payload_type = (int16_t)rtx_payload_type;
  if (route->pending && route->pending != route->stream) pointers_remove(&route->pending->routes, route);
  route->pending = NULL;
  if (route->stream == stream) return leave(f, FWD_OK);
  if (!pointers_add(&stream->routes, route)) return leave(f, FWD_NO_MEMORY);
  if (route->stream) {
    route->pending = stream;
  } else {
    route->stream = stream;
    route->waiting = true;
  }
  if (route->waiting) path_replay(f, route);
  return leave(f, FWD_OK);
}

int fwd_pause(forwarder_t *f, int64_t number, int32_t paused) {
  forwarder_enter(f);
  struct route *route = find_route(f, number);
  if (route) {
    if (paused && !route->paused) route->waiting = true;
    route->paused = paused != 0;
  }
  return leave(f, route ? FWD_OK : FWD_NO_ROUTE);
}

int fwd_set_layers(forwarder_t *f, int64_t number, int32_t spatial, int32_t temporal) {
  forwarder_enter(f);
  struct route *route = find_route(f, number);
  if (!route) return leave(f, FWD_NO_ROUTE);
  if (spatial < 0 || spatial > LAYERS_ALL || temporal < 0 || temporal > LAYERS_ALL) return leave(f, FWD_INVALID);
  if (!route->filter && !(route->filter = filter_new(route->stream)))
    return leave(f, FWD_NO_MEMORY);
  route->filter->wanted_spatial = (uint8_t)spatial;
  route->filter->wanted_temporal = (uint8_t)temporal;
  return leave(f, FWD_OK);
}

int fwd_resend(forwarder_t *f, int64_t number, const uint16_t *sequences, int32_t count) {
  forwarder_enter(f);
  struct route *route = find_route(f, number);
  int sent = 0;
  for (int32_t i = 0; route && i < count; i++) sent += path_resend(f, route, sequences[i]);
  return leave(f, route ? sent : FWD_NO_ROUTE);
}

/* --- datagrams */

int fwd_send_rtcp(forwarder_t *f, int64_t number, const uint8_t *data, int32_t size) {
  forwarder_enter(f);
  struct peer *peer = find_peer(f, number);
  if (!peer) return leave(f, FWD_NO_PEER);
  if (size < 8 || size > MAX_PACKET_BYTES) return leave(f, FWD_INVALID);
  return leave(f, path_send_rtcp(f, peer, data, (uint32_t)size));
}

int fwd_send_raw(forwarder_t *f, const uint8_t *name, int32_t name_length, int32_t socket, const uint8_t *data,
                 int32_t size) {
  forwarder_enter(f);
  if (socket < 0 || socket >= f->socket_count) return leave(f, FWD_NO_SOCKET);
  if (size < 0 || size > MAX_PACKET_BYTES) return leave(f, FWD_INVALID);
  ssize_t sent = sendto(f->receivers[socket].fd, data, (size_t)size, MSG_DONTWAIT, (const struct sockaddr *)name,
                        (socklen_t)name_length);
  if (sent < 0) {
    f->stats.send_failed++;
  } else {
    f->stats.datagrams_sent++;
    f->stats.send_messages++;
  }
  return leave(f, FWD_OK);
}

int fwd_authentic(forwarder_t *f, int64_t number, const uint8_t *data, int32_t length) {
  forwarder_enter(f);
  struct peer *peer = find_peer(f, number);
  int result = peer ? 0 : FWD_NO_PEER;
  if (peer && length >= 12 && length <= MAX_PACKET_BYTES) {
    struct source *source = peer_source(peer, get32(data + 8));
    struct stream *stream = source && source->role == ROLE_MEDIA ? source->stream : NULL;
    if (stream && stream->highest >= 0 && (int16_t)(uint16_t)(get16(data + 2) - (uint16_t)stream->highest) > 0) {
      uint8_t copy[MAX_PACKET_BYTES];
      uint64_t index = 0;
      memcpy(copy, data, (size_t)length);
      result = srtp_open(f, peer, source, &index, copy, length) >= 0;
      if (result && peer->rx_gcm.context) source_advance(source, index); /* it proves something once; libsrtp sees to it */
    }
  }
  forwarder_leave(f);
  return result;
}

int fwd_set_feedback(forwarder_t *f, int64_t number, int32_t interval_ms, uint32_t sender_ssrc) {
  forwarder_enter(f);
  struct peer *peer = find_peer(f, number);
  if (peer) {
    peer->log.interval_ns = (int64_t)interval_ms * 1000000;
    peer->log.due_ns = f->now_ns + peer->log.interval_ns;
    peer->log.sender_ssrc = sender_ssrc;
    f->feedback_due_ns = f->now_ns; /* look anew: something may have been logged already */
  }
  forwarder_leave(f);
  forwarder_wake(f);
  return peer ? FWD_OK : FWD_NO_PEER;
}

int fwd_take_arrivals(forwarder_t *f, int64_t number, uint16_t *numbers, int64_t *times, int32_t room) {
  forwarder_enter(f);
  struct peer *peer = find_peer(f, number);
  if (!peer) return leave(f, FWD_NO_PEER);
  int count = 0;
  for (uint32_t i = 0; i < peer->log.count && count < room; i++, count++) {
    numbers[count] = (uint16_t)peer->log.entries[i].extended;
    times[count] = peer->log.entries[i].at_ns;
  }
  peer->log.count = 0;
  return leave(f, count);
}
