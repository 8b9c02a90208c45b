/* What Python may call. cffi reads this very file (lines that begin with # left out), so the two cannot differ.
 *
 * Every function takes the forwarder's lock, works, sends what it queued, and gives the lock back; none calls Python.
 * Numbers and times are as in mediaserver/forwarder/interface.py. Results below zero are FWD_… errors. */
#ifndef FORWARDER_API_H
#define FORWARDER_API_H
#include <stddef.h>
#include <stdint.h>

enum {
  FWD_OK = 0,
  FWD_NO_PEER = -1,
  FWD_NO_STREAM = -2,
  FWD_NO_ROUTE = -3,
  FWD_NO_SOCKET = -4,
  FWD_FULL = -5,
  FWD_TAKEN = -6,
  FWD_INVALID = -7,
  FWD_NO_MEMORY = -8,
  FWD_CLOSED = -9
};

/* Well-known header extensions; native.py numbers all other URIs upwards from FWD_URI_OTHER. */
enum {
  FWD_URI_MID = 1,
  FWD_URI_RID = 2,
  FWD_URI_REPAIRED_RID = 3,
  FWD_URI_TRANSPORT_CC = 4,
  FWD_URI_ABS_SEND_TIME = 5,
  FWD_URI_AUDIO_LEVEL = 6,
  FWD_URI_DEPENDENCY = 7,
  FWD_URI_OTHER = 8
};

enum { FWD_EVENT_RAW = 1, FWD_EVENT_RTCP, FWD_EVENT_NEW_SSRC, FWD_EVENT_KEYFRAME, FWD_EVENT_GAP,
       FWD_EVENT_SWITCHED, FWD_EVENT_TAP_DROPPED, FWD_EVENT_TAP_MOVED, FWD_EVENT_FEEDBACK };

typedef struct forwarder forwarder_t;

typedef struct { uint16_t uri; uint8_t id; } fwd_extension_t;

/* Functions of the crypto libraries, found by Python. The evp_… ones may all be NULL: then libsrtp does AES-GCM. */
typedef struct {
  int (*srtp_protect)(void *session, void *packet, int *length);
  int (*srtp_unprotect)(void *session, void *packet, int *length);
  int (*srtp_protect_rtcp)(void *session, void *packet, int *length);
  int (*srtp_unprotect_rtcp)(void *session, void *packet, int *length);
  void *(*evp_new)(void);
  void (*evp_free)(void *context);
  int (*evp_ctrl)(void *context, int type, int argument, void *pointer);
  int (*evp_encrypt_init)(void *context, const void *cipher, void *engine, const uint8_t *key, const uint8_t *iv);
  int (*evp_encrypt_update)(void *context, uint8_t *out, int *out_length, const uint8_t *in, int length);
  int (*evp_encrypt_final)(void *context, uint8_t *out, int *out_length);
  int (*evp_decrypt_init)(void *context, const void *cipher, void *engine, const uint8_t *key, const uint8_t *iv);
  int (*evp_decrypt_update)(void *context, uint8_t *out, int *out_length, const uint8_t *in, int length);
  int (*evp_decrypt_final)(void *context, uint8_t *out, int *out_length);
  const void *(*evp_aes_128_gcm)(void);
  const void *(*evp_aes_128_ctr)(void);
} fwd_crypto_t;

typedef struct {
  uint32_t ssrc, rtx_ssrc, clock_rate;
  int32_t video, codec, payload_type, rtx_payload_type, red_payload_type, has_rtx_ssrc, track, keep_ms;
  int64_t keep_bytes;
  const fwd_extension_t *extensions;
  int32_t extension_count;
} fwd_stream_parameters_t;

typedef struct {
  uint32_t ssrc, rtx_ssrc;
  int32_t payload_type, rtx_payload_type, red_payload_type, allow_mixed, mid_length, first_sequence, first_rtx_sequence;
  const uint8_t *mid;
  const fwd_extension_t *extensions;
  int32_t extension_count;
} fwd_route_parameters_t;

/* An event: this head, then `size` bytes, then up to the next multiple of 8. Fields that a kind does not use are 0. */
typedef struct {
  uint32_t kind, size;
  int64_t number;  /* peer, stream, route or track */
  int64_t other;   /* stream of FWD_EVENT_SWITCHED and FWD_EVENT_TAP_MOVED, packets of FWD_EVENT_TAP_DROPPED */
  int64_t at_ns, until_ns;
  uint32_t ssrc, a, b, socket;
  uint8_t name[32];
} fwd_event_t;

/* A tapped packet: this head, then `size` bytes, then up to the next multiple of 8. */
typedef struct { int64_t arrival_ns; int32_t track; uint32_t size; uint32_t is_rtcp; uint32_t unused; } fwd_tapped_t;

typedef struct {
  int64_t packets_received, bytes_received, packets_sent, bytes_sent, last_received_ns, auth_failed, replayed,
      malformed, ssrc_refused, feedback_sent, transport_cc_sent, transport_cc_reported, transport_cc_lost, send_failed,
      paced, paced_ns;
} fwd_peer_stats_t;

typedef struct {
  int64_t ssrc, packets, bytes, lost, expected, base_sequence, max_sequence, jitter, last_timestamp, last_arrival_ns,
      first_arrival_ns, last_keyframe_ns, keyframes, recovered, duplicates, late, other_payload, malformed, audio_level,
      voice, cached_packets, cached_bytes;
} fwd_stream_stats_t;

typedef struct {
  int64_t stream, peer, ssrc, packets, bytes, retransmitted, retransmit_missed, last_sequence, last_timestamp,
      last_sent_ns, sequence_offset, timestamp_offset, paused, waiting, pending_stream, padding, fraction_lost,
      report_ns, spatial, temporal;
} fwd_route_stats_t;

/* Packets sent in one burst, with the times of their arrivals in the subscriber's clock. */
typedef struct {
  int64_t first_sent_ns, last_sent_ns, first_arrival_ns, last_arrival_ns, told_ns;
  int32_t bytes, packets;
} fwd_group_t;
/* What a subscriber's transport-cc feedback told since the last take, totals of what was sent to it, and the burst that
 * may still grow (no packets: none). */
typedef struct {
  int64_t sent, bytes_sent, told_ns, packets, bytes, lost, lost_bytes, dropped, shortest_ns;
  fwd_group_t open;
} fwd_feedback_t;

typedef struct {
  int64_t datagrams_received, datagrams_sent, send_messages, receive_batches, unknown_address, malformed, kernel_dropped,
      send_failed, events_dropped, tap_dropped, cache_bytes, peers, streams, routes,
      paced, paced_ns, paced_bytes, pace_dropped;
} fwd_stats_t;

/* Make a forwarder on `count` bound UDP sockets and start its thread; NULL if memory or a thread is lacking.
 * `evented` is an eventfd that is written when there is something to take. `seed` keys the hash tables. */
forwarder_t *fwd_open(const int32_t *sockets, const int32_t *families, int32_t count, int32_t evented,
                      const fwd_crypto_t *crypto, uint64_t seed);
void fwd_close(forwarder_t *f);

int64_t fwd_add_peer(forwarder_t *f);
int fwd_remove_peer(forwarder_t *f, int64_t peer);
int fwd_set_extensions(forwarder_t *f, int64_t peer, const fwd_extension_t *extensions, int32_t count);
int fwd_bind(forwarder_t *f, int64_t peer, const uint8_t *name, int32_t name_length, int32_t socket);
/* Sessions are libsrtp's and belong to the caller, who must keep them until the next set_keys or remove_peer returned.
 * With gcm != 0 and EVP functions RTP is protected by those, with these master keys (16 bytes) and salts (12). */
int fwd_set_keys(forwarder_t *f, int64_t peer, void *rx_session, void *tx_session, int32_t gcm, const uint8_t *rx_key,
                 const uint8_t *rx_salt, const uint8_t *tx_key, const uint8_t *tx_salt);

int64_t fwd_add_stream(forwarder_t *f, int64_t peer, const fwd_stream_parameters_t *parameters);
int fwd_remove_stream(forwarder_t *f, int64_t stream);
int fwd_set_rtx_ssrc(forwarder_t *f, int64_t stream, uint32_t ssrc);
int fwd_ignore_ssrc(forwarder_t *f, int64_t peer, uint32_t ssrc);
int fwd_missing(forwarder_t *f, int64_t stream, int32_t span, uint16_t *out, int32_t room);
/* Write 16 numbers: payload octets by spatial layer * 4 + temporal layer. */
int fwd_layer_bytes(forwarder_t *f, int64_t stream, int64_t *out);
int fwd_tap(forwarder_t *f, int64_t stream, int32_t track);
int fwd_move_tap(forwarder_t *f, int64_t from, int64_t to);
int fwd_stay(forwarder_t *f, int64_t stream);

int64_t fwd_add_route(forwarder_t *f, int64_t stream, int64_t peer, const fwd_route_parameters_t *parameters);
int fwd_remove_route(forwarder_t *f, int64_t route);
int fwd_switch(forwarder_t *f, int64_t route, int64_t stream, int32_t payload_type, int32_t rtx_payload_type);
int fwd_pause(forwarder_t *f, int64_t route, int32_t paused);
/* 255: no layer is left out. */
int fwd_set_layers(forwarder_t *f, int64_t route, int32_t spatial, int32_t temporal);
int fwd_resend(forwarder_t *f, int64_t route, const uint16_t *sequences, int32_t count);

int fwd_send_rtcp(forwarder_t *f, int64_t peer, const uint8_t *data, int32_t size);
int fwd_send_raw(forwarder_t *f, const uint8_t *name, int32_t name_length, int32_t socket, const uint8_t *data,
                 int32_t size);
int fwd_authentic(forwarder_t *f, int64_t peer, const uint8_t *data, int32_t length);
int fwd_set_feedback(forwarder_t *f, int64_t peer, int32_t interval_ms, uint32_t sender_ssrc);
int fwd_set_measured(forwarder_t *f, int64_t peer, int32_t measured);
/* 0: nothing waits. */
int fwd_set_pace(forwarder_t *f, int64_t peer, int64_t bps);
/* Take the totals, leave the groups, and raise FWD_EVENT_FEEDBACK once there is trouble. */
int fwd_watch_feedback(forwarder_t *f, int64_t peer, int64_t way_ns, int64_t lost, fwd_feedback_t *feedback);
/* End the watch. Write up to `room` groups, oldest first; what is left over is thrown away. */
int fwd_take_feedback(forwarder_t *f, int64_t peer, fwd_feedback_t *feedback, fwd_group_t *groups, int32_t room);
/* Return the bytes sent; at most 64 packets at once. */
int fwd_send_padding(forwarder_t *f, int64_t route, int32_t bytes);
/* Write up to `room` numbers and times; the log is emptied. */
int fwd_take_arrivals(forwarder_t *f, int64_t peer, uint16_t *numbers, int64_t *times, int32_t room);

/* Hand out all events (tapped packets): `*data` stays valid until the next call. Only one thread at a time. */
int64_t fwd_take_events(forwarder_t *f, const uint8_t **data);
int64_t fwd_take_tapped(forwarder_t *f, const uint8_t **data);

/* Where tapped packets go: a recording (`group`, from 0) and the track's number in it. Sorted by tap. */
typedef struct { int32_t tap, group, track; } fwd_target_t;
typedef struct {
  int32_t track;
  uint32_t packets, rtcp_packets, unused;
  int64_t bytes, first_ns, last_ns; /* of RTP */
} fwd_batch_count_t;
/* Packets of a group: this head, then `count_count` counts, then `size` bytes of journal items, then up to the next
 * multiple of 8. */
typedef struct { int32_t group; uint32_t packets, count_count, size; int64_t latest_ns; } fwd_batch_t;
/* Encode what fwd_take_tapped gave as batches; return their bytes. `room` must be fwd_encoded_room. */
int64_t fwd_encoded_room(const uint8_t *data, int64_t size);
int64_t fwd_encode_tapped(const uint8_t *data, int64_t size, const fwd_target_t *targets, int32_t target_count,
                          int32_t group_count, uint8_t *out, int64_t room);

int fwd_stats(forwarder_t *f, fwd_stats_t *stats);
int fwd_peer_stats(forwarder_t *f, int64_t peer, fwd_peer_stats_t *stats);
int fwd_stream_stats(forwarder_t *f, int64_t stream, fwd_stream_stats_t *stats);
/* Payload octets of a stream so far: what its statistics say, at a fifth of their cost. */
int64_t fwd_received_bytes(forwarder_t *f, int64_t stream);
int fwd_route_stats(forwarder_t *f, int64_t route, fwd_route_stats_t *stats);

/* Let a fuzzer into everything that parses bytes; never fails. */
int fwd_parse_for_test(const uint8_t *data, size_t size);
/* Write a dependency descriptor of at most 250 bytes anew to `out` (255 bytes); return its length. */
int fwd_rewrite_for_test(const uint8_t *data, int32_t size, uint16_t frame_offset, uint32_t mask, int32_t targets,
                         uint8_t *out);
/* AES-GCM media with session keys derived from these: 0 if the packet was (un)protected, in place. For vectors. */
int fwd_gcm_for_test(const fwd_crypto_t *crypto, int32_t derive, const uint8_t *key, const uint8_t *salt,
                     uint64_t index, int32_t decrypt, uint8_t *packet, int32_t *length);
#endif
