/* Counters for Python, and the doors for tests. */
#include "internal.h"

int fwd_stats(forwarder_t *f, fwd_stats_t *stats) {
  forwarder_enter(f);
  *stats = f->stats;
  for (int i = 0; i < f->socket_count; i++) stats->kernel_dropped += f->receivers[i].kernel_dropped;
  stats->peers = f->peers.used;
  stats->streams = f->streams.used;
  stats->routes = f->routes.used;
  forwarder_leave(f);
  return FWD_OK;
}

int fwd_peer_stats(forwarder_t *f, int64_t number, fwd_peer_stats_t *stats) {
  forwarder_enter(f);
  const struct peer *peer = map_get(&f->peers, (uint64_t)number);
  if (peer) {
    *stats = peer->stats;
    stats->transport_cc_sent = peer->number_sent;
  }
  forwarder_leave(f);
  return peer ? FWD_OK : FWD_NO_PEER;
}

int fwd_stream_stats(forwarder_t *f, int64_t number, fwd_stream_stats_t *stats) {
  forwarder_enter(f);
  const struct stream *stream = map_get(&f->streams, (uint64_t)number);
  if (stream) {
    *stats = stream->stats;
    stats->ssrc = stream->ssrc;
    if (stream->highest >= 0) {
      stats->expected = stream->highest - stream->base + 1;
      stats->base_sequence = stream->base > 0xffff ? stream->base - 0x10000 : 0;
      stats->max_sequence = stream->highest > 0xffff ? stream->highest - 0x10000 : 0;
    }
    stats->lost = stats->expected - stats->packets;
    stats->jitter = stream->jitter_x16 >> 4;
    stats->cached_packets = stream->fifo_count;
  }
  forwarder_leave(f);
  return stream ? FWD_OK : FWD_NO_STREAM;
}

int fwd_route_stats(forwarder_t *f, int64_t number, fwd_route_stats_t *stats) {
  forwarder_enter(f);
  const struct route *route = map_get(&f->routes, (uint64_t)number);
  if (route) {
    const struct epoch *epoch = route->epoch_count ? &route->epochs[(route->epoch_count - 1) % EPOCHS] : NULL;
    *stats = (fwd_route_stats_t){
        .stream = route->stream ? route->stream->number : 0,
        .peer = route->peer->number,
        .ssrc = route->ssrc,
        .packets = route->packets,
        .bytes = route->bytes,
        .retransmitted = route->retransmitted,
        .retransmit_missed = route->missed,
        .last_sequence = route->last,
        .last_timestamp = route->last_timestamp,
        .last_sent_ns = route->last_sent_ns,
        .sequence_offset = epoch ? (uint16_t)epoch->sequence_offset : 0,
        .timestamp_offset = epoch ? epoch->timestamp_offset : 0,
        .paused = route->paused,
        .waiting = route->waiting || route->pending,
        .pending_stream = route->pending ? route->pending->number : 0,
        .padding = route->padding,
        .fraction_lost = route->fraction_lost,
        .report_ns = route->report_ns,
        .spatial = route->filter ? route->filter->spatial : LAYERS_ALL,
        .temporal = route->filter ? route->filter->temporal : LAYERS_ALL,
    };
  }
  forwarder_leave(f);
  return route ? FWD_OK : FWD_NO_ROUTE;
}

int64_t fwd_received_bytes(forwarder_t *f, int64_t number) {
  forwarder_enter(f);
  struct stream *stream = number > 0 ? map_get(&f->streams, (uint64_t)number) : NULL;
  int64_t bytes = stream ? stream->stats.bytes : FWD_NO_STREAM;
  forwarder_leave(f);
  return bytes;
}

int fwd_layer_bytes(forwarder_t *f, int64_t number, int64_t *out) {
  forwarder_enter(f);
  const struct stream *stream = map_get(&f->streams, (uint64_t)number);
  if (stream) memcpy(out, stream->layer_bytes, sizeof stream->layer_bytes);
  forwarder_leave(f);
  return stream ? FWD_OK : FWD_NO_STREAM;
}

/* A payload and a descriptor as a scalable stream might have them. */
static uint32_t parse_layers(const uint8_t *data, uint32_t size) {
  struct layered layer = vp9_layer(data, 0, size);
  struct stream stream = {.codec = CODEC_AV1, .dependency_id = 1};
  uint32_t length = size < 250 ? size : 250, seen = layer.spatial;
  uint8_t out[256];
  struct rtp rtp = {.data = data, .size = size, .element_count = 1, .elements = {{1, (uint8_t)length, 0}}};
  layer_read(&stream, &rtp);
  if (stream.structure) seen += stream.structure->targets;
  for (uint32_t targets = 0; targets <= MAX_TARGETS; targets += 9)
    seen += dependency_rewrite(data, length, 1, 5, targets, out);
  free(stream.structure);
  return seen;
}

int fwd_parse_for_test(const uint8_t *data, size_t size) {
  if (size > MAX_PACKET_BYTES) size = MAX_PACKET_BYTES;
  struct rtp rtp;
  uint32_t seen = 0;
  if (rtp_parse(&rtp, data, (uint32_t)size, 0)) {
    for (int codec = CODEC_NONE; codec <= CODEC_AV1; codec++)
      seen += is_keyframe_start(codec, data, rtp.payload_start, rtp.payload_end);
    struct vp8_numbers found = vp8_find(data, rtp.payload_start, rtp.payload_end);
    if (found.bits) seen += vp8_picture(data, found);
    for (int i = 0; i < rtp.element_count; i++)
      for (int k = 0; k < rtp.elements[i].length; k++) seen += data[rtp.elements[i].at + k];
  }
  for (int codec = CODEC_NONE; codec <= CODEC_AV1; codec++) seen += is_keyframe_start(codec, data, 0, (uint32_t)size);
  seen += parse_layers(data, (uint32_t)size);
  seen += (uint32_t)(red_primary(data, 0, (uint32_t)size, 96) + red_primary(data, 0, (uint32_t)size, -1));
  int64_t reported = 0, lost = 0;
  if (rtcp_valid(data, (uint32_t)size))
    for (uint32_t at = 0; at < size; at += 4u * (get16(data + at + 2) + 1u))
      feedback_read(data + at, 4u * (get16(data + at + 2) + 1u), &reported, &lost);
  return (int)(seen & 0x7fff) + (int)(reported & 0xff) + (int)(lost & 0xff);
}

int fwd_rewrite_for_test(const uint8_t *data, int32_t size, uint16_t frame_offset, uint32_t mask, int32_t targets,
                         uint8_t *out) {
  return (int)dependency_rewrite(data, (uint32_t)size, frame_offset, mask, (uint32_t)targets, out);
}

int fwd_gcm_for_test(const fwd_crypto_t *crypto, int32_t derive, const uint8_t *key, const uint8_t *salt,
                     uint64_t index, int32_t decrypt, uint8_t *packet, int32_t *length) {
  struct gcm gcm = {0};
  if (!gcm_init(crypto, &gcm, derive != 0, decrypt != 0, key, salt)) return FWD_NO_MEMORY;
  int result = decrypt ? gcm_open(crypto, &gcm, index, packet, *length) : gcm_seal(crypto, &gcm, index, packet, *length);
  gcm_free(crypto, &gcm);
  if (result < 0) return FWD_INVALID;
  *length = result;
  return FWD_OK;
}
