/* What Python may call. cffi reads this very file (lines that begin with # left out), so the two cannot differ.
 * One thread sends and receives for all connections; every function takes its lock. Results below zero are errors. */
#ifndef LOAD_H
#define LOAD_H
#include "api.h"

typedef struct load load_t;

/* A clip that is sent in a loop: packets one after the other in `data`, packet i from offsets[i] to offsets[i + 1],
 * frame j from packet frames[j] to frames[j + 1]. Frame 0 begins with a keyframe. */
typedef struct {
  const uint8_t *data;
  const uint32_t *offsets, *frames;
  uint32_t packet_count, frame_count, period_ms, clock_step;
  int32_t codec, opaque_bytes; /* opaque: that a server may rewrite at a payload's begin */
  int32_t stamped;             /* 0: payloads go out as they are, for a server that decodes them */
} load_clip_t;

typedef struct {
  int32_t fd;
  void *rx_session, *tx_session;
  int32_t gcm;
  const uint8_t *rx_key, *rx_salt, *tx_key, *tx_salt;
  int32_t video_pt, audio_pt, video_clip, audio_clip; /* clip -1: none */
  uint32_t video_ssrc, audio_ssrc;
  int32_t mid_id, abs_id, transport_cc_id;
  uint8_t video_mid, audio_mid; /* one character each */
  uint32_t source; /* of what is sent; of a subscriber: of what it expects */
} load_connection_t;

typedef struct {
  int64_t sent_packets, sent_bytes, send_failed, received_packets, received_bytes, expected_packets, out_of_order,
      stamped, verified, bad, other_ssrc, auth_failed, keyframe_requests, nacked, feedback_received, late_ticks, skipped_ticks,
      connections;
} load_totals_t;

typedef struct {
  int64_t packets, expected, bad, first_packet_ns, first_frame_ns, keyframe_requests; /* CLOCK_REALTIME */
} load_connection_stats_t;

enum { LOAD_BUCKETS = 20000, LOAD_BUCKET_NS = 50000 };

load_t *load_open(const fwd_crypto_t *crypto);
void load_close(load_t *load);
int load_add_clip(load_t *load, const load_clip_t *clip);
/* A publisher sends its clips; a subscriber receives and checks. Both own nothing of what they are given but copy it;
 * sessions must outlive the connection. */
int64_t load_add_publisher(load_t *load, const load_connection_t *connection);
int64_t load_add_subscriber(load_t *load, const load_connection_t *connection);
int load_remove(load_t *load, int64_t connection);
/* While paused nothing is sent but reports and feedback: everybody is muted. */
void load_pause(load_t *load, int paused);
int load_totals(load_t *load, load_totals_t *totals);
int load_connection_stats(load_t *load, int64_t connection, load_connection_stats_t *stats);
/* Copy the histogram of one-way delays (LOAD_BUCKET_NS each, the last one is "or more") and begin a new one. */
int load_take_delays(load_t *load, uint32_t *buckets);
/* Copy the next datagram that is neither RTP nor RTCP: its size, 0 if there is none. */
int load_take_raw(load_t *load, int64_t *connection, uint8_t *out, int32_t room);
/* An SRTP function that changes nothing, for measuring what everything else costs. */
int load_null_cipher(void *session, void *packet, int *length);
#endif
