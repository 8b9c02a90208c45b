/* The forwarder's tables. One lock guards everything here: the thread holds it for a batch, a call for its work. */
#ifndef FORWARDER_INTERNAL_H
#define FORWARDER_INTERNAL_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "api.h"

enum {
  BATCH = 64,
  SLOT_BYTES = 2048,
  SEND_SLOTS = 512,
  TRAILER_BYTES = 24,
  MAX_PACKET_BYTES = 1600,
  MAX_SEGMENTS = 60,
  MAX_MESSAGE_BYTES = 60000,
  MAX_SOCKETS = 16,
  MAX_PEERS = 4096,
  MAX_STREAMS = 8192,
  MAX_ROUTES = 32768,
  MAX_SSRCS = 64,
  MAX_SENT_SSRCS = 1024,
  MAX_HELD = 64,
  MAX_ADDRESSES = 4,
  MAX_TOLD = 128,
  MAX_ELEMENTS = 32,
  MAX_MAPPED = 24,
  CACHE_PACKETS = 1024,
  SENT_RING = 1024,
  RESEND_BUDGET = 256,
  RESEND_INTERVAL_MS = 10,
  EPOCHS = 16,
  MAX_LOG = 4096,
  SENT_LOG = 2048,
  MAX_GROUPS = 256,
  MAX_PADDING = 64,
  MAX_PACED = 512,
  WINDOW_WORDS = 16,
  MAX_TEMPLATES = 64,
  MAX_TARGETS = 32,
  LAYERS_ALL = 255, /* no layer is left out */
  COUNTED = 4,      /* spatial and temporal layers that are counted */
};
#define CACHE_TOTAL_BYTES (256ll << 20)
#define REPLAY_NS 500000000ll
#define STRAY_NS 20000000ll
#define MAX_TAPPED_BYTES (16ll << 20)
#define MAX_PACED_BYTES (64ll << 20)
#define PACE_QUANTUM_NS 20000000ll
#define PACE_LONGEST_NS 250000000ll

enum { CODEC_NONE, CODEC_VP8, CODEC_VP9, CODEC_H264, CODEC_AV1 };
enum role { ROLE_MEDIA, ROLE_RTX, ROLE_HELD, ROLE_IGNORED };

static inline uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
static inline void put16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }
static inline void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16); put16(p + 2, v); }

struct element { uint8_t id, length; uint16_t at; };

/* What a packet says of its layer; layers.py explains it. */
struct layered { uint8_t spatial, temporal, up, generation; bool known, starts, ends; };

/* A well-formed RTP packet, taken apart; offsets are into data. */
struct rtp {
  const uint8_t *data;
  int64_t arrival_ns, extended;
  uint32_t size, timestamp, ssrc;
  uint16_t sequence, csrcs_end, payload_start, payload_end;
  uint8_t marker, payload_type, element_count;
  bool two_byte, keyframe;
  struct layered layer;
  struct element elements[MAX_ELEMENTS];
};

/* A packet that is kept: in a stream's cache, or held for an SSRC that Python has not decided on. */
struct kept { int64_t arrival_ns, extended; uint32_t size; struct layered layer; uint8_t data[]; };

/* 64-bit numbers to pointers, open addressing. Keys are never 0. */
struct map { uint64_t *keys; void **values; uint32_t size, used; uint64_t seed; };
void *map_get(const struct map *map, uint64_t key);
bool map_put(struct map *map, uint64_t key, void *value);
void map_remove(struct map *map, uint64_t key);
void map_free(struct map *map);

/* Growing arrays of pointers and bytes. */
struct pointers { void **items; uint32_t count, room; };
bool pointers_add(struct pointers *list, void *item);
void pointers_remove(struct pointers *list, const void *item);
struct bytes { uint8_t *data; size_t size, room; };
uint8_t *bytes_grow(struct bytes *bytes, size_t more);

/* An address as a key; also the name that sendmsg takes, so that it is made once. */
struct name { uint8_t bytes[28]; uint8_t length; uint8_t socket; };

/* One SSRC that a peer sends: what it is, and its SRTP index (RFC 3711 section 3.3) where EVP decrypts. */
struct source {
  uint32_t ssrc;
  enum role role;
  struct stream *stream;
  bool begun;
  uint64_t highest;
  uint64_t window[WINDOW_WORDS];
};

struct gcm { void *context; uint8_t salt[12]; };

struct arrival { int64_t extended, at_ns; };
struct log {
  struct arrival *entries;
  uint32_t count, room;
  int64_t highest, next, interval_ns, due_ns;
  uint32_t sender_ssrc, media_ssrc, feedbacks;
};

/* One number given to a peer; `state` is of sent.c, 0: the place is unused. */
struct logged { int64_t sent_ns; uint32_t extended; uint16_t size; uint8_t state; };
struct sent_log {
  struct logged *entries; /* SENT_LOG, made when the first number is given */
  fwd_group_t *groups, open;
  uint32_t group_count, group_room;
  int64_t reference; /* of the last feedback, in 64 ms, unrolled */
  bool referenced, watched;
  int64_t way_limit_ns, lost_limit; /* if watched: what is told at once */
  fwd_feedback_t totals;
};

/* `base`: the extended number (a multiple of 2^16) that has SRTP index 0 under the
 * present key; -1 until the first number is sent under it. */
struct sent_ssrc { uint32_t ssrc; int64_t next, base; };

/* A packet that waits for its peer's pace: it gets its number and its sending time, and is encrypted, when it leaves. */
struct paced {
  struct paced *next;
  struct route *route;
  int64_t since_ns;
  uint64_t index;
  uint32_t extended;
  uint16_t length, number_at, seconds_at; /* where these two stand; 0: nowhere */
  uint8_t data[];
};
/* `rate` is the pace, raised while more waits than it can carry in time; pace.py explains it. */
struct pacer {
  int64_t bps, rate, free_ns, bytes;
  struct paced *first, *last;
  uint32_t count;
};

struct peer {
  int64_t number;
  void *rx, *tx; /* libsrtp sessions */
  struct gcm rx_gcm, tx_gcm;
  bool keyed, keyed_before, addressed, gso;
  bool measured; /* what is sent carries numbers and sending times */
  struct name destination;
  struct name addresses[MAX_ADDRESSES];
  uint8_t address_count;
  uint8_t mid_id, rid_id, repaired_rid_id, transport_cc_id;
  struct source *sources; /* room for MAX_SSRCS, made on first use */
  uint8_t source_count, rtcp_count;
  uint32_t rtcp_ssrcs[MAX_SSRCS];
  struct kept *held[MAX_HELD];
  uint8_t held_count;
  struct pointers streams, routes;
  struct sent_ssrc *sent_ssrcs;
  uint32_t sent_count;
  struct log log;
  struct sent_log sent_log;
  struct pacer pacer;
  int16_t first_queued, last_queued; /* send slots of this batch, -1: none */
  int64_t number_sent, told_take;
  uint32_t told; /* datagrams and RTCP of this peer among the events that wait, if told_take is the present take */
  fwd_peer_stats_t stats;
};

/* Templates and decode targets of a stream's dependency descriptors. */
struct structure {
  uint8_t generation, offset, templates, targets;
  uint8_t spatial[MAX_TEMPLATES], temporal[MAX_TEMPLATES], up[MAX_TEMPLATES];
  uint8_t target_spatial[MAX_TARGETS], target_temporal[MAX_TARGETS];
  uint32_t active;
};

struct stream {
  int64_t number;
  struct peer *peer;
  uint32_t ssrc, clock_rate;
  int32_t track;
  int16_t payload_type, rtx_payload_type, red_payload_type;
  uint8_t codec, audio_level_id, dependency_id;
  int64_t keep_ns, keep_bytes, base, highest, keyframe_extended, jitter_x16;
  int64_t tap_from, tap_floor; /* whose tap moves here at the next keyframe after which number; 0: nobody's */
  uint32_t transit;
  struct structure *structure; /* NULL until one is told */
  int64_t layer_bytes[COUNTED * COUNTED];
  fwd_extension_t extensions[MAX_MAPPED];
  uint8_t extension_count;
  struct pointers routes;
  uint32_t seen[CACHE_PACKETS];
  struct kept *fifo[CACHE_PACKETS], *by_number[CACHE_PACKETS];
  uint32_t fifo_head, fifo_count;
  fwd_stream_stats_t stats;
};

/* One stretch of a route with constant offsets; route.py draws it. */
struct epoch {
  int64_t stream, floor, sequence_offset;
  uint32_t timestamp_offset;
  uint16_t picture_offset, frame_offset;
  uint8_t index_offset, payload_type, codec, mapped, dependency_id;
  int16_t rtx_payload_type;
  int16_t red_from, red_to; /* received RED, and as what it is sent; -1: none, and: its primary block alone */
  uint8_t from[MAX_MAPPED], to[MAX_MAPPED];
};

/* What a plain resending must repeat bit by bit: one nonce must never protect two different packets. */
struct sent {
  uint32_t extended, received, epoch, seconds, resent_ms, mask;
  uint16_t number;
  uint8_t targets, marker;
  bool used, fill, measured, waiting;
};

/* What one route leaves out of its stream. */
struct judged { uint32_t shift; uint8_t spatial, temporal; };
struct filter {
  int64_t highest;
  uint32_t left_out, picture;
  uint8_t wanted_spatial, wanted_temporal, spatial, temporal;
  bool begun, masked;
  struct judged window[CACHE_PACKETS];
};
enum verdict { SEND, LEAVE_OUT, FILL };
/* How a packet is sent: its number is smaller by `shift`; `targets` > 0: `mask` says which of them are left. */
struct verdict_on { uint32_t shift, mask; uint8_t marker, targets; bool fill; };

struct route {
  int64_t number;
  struct peer *peer;
  struct stream *stream, *pending;
  uint32_t ssrc, rtx_ssrc;
  int16_t payload_type, rtx_payload_type, red_payload_type;
  bool has_rtx, allow_mixed, two_byte, paused, waiting;
  uint8_t mid_id, abs_id, transport_cc_id, mid_length;
  uint8_t mid[16];
  fwd_extension_t extensions[MAX_MAPPED];
  uint8_t extension_count;
  uint32_t epoch_count;
  struct epoch epochs[EPOCHS];
  int64_t next, next_rtx, base, rtx_base, last, last_sent_ns;
  uint32_t last_timestamp;
  int32_t picture, index, frame, budget;
  struct filter *filter; /* NULL: nothing was ever left out */
  int64_t packets, bytes, retransmitted, missed, padding, fraction_lost, report_ns;
  struct sent sent[SENT_RING];
};

struct receiver {
  int fd, family;
  uint8_t *slots;
  struct mmsghdr messages[BATCH];
  struct iovec vectors[BATCH];
  struct sockaddr_in6 names[BATCH];
  uint8_t controls[BATCH][64];
  uint32_t kernel_dropped;
};

struct sender {
  uint8_t *slots;
  uint16_t lengths[SEND_SLOTS];
  int16_t following[SEND_SLOTS];
  struct mmsghdr messages[SEND_SLOTS];
  struct iovec vectors[SEND_SLOTS];
  struct peer *owners[SEND_SLOTS]; /* of each message */
  uint8_t controls[SEND_SLOTS][24];
  struct peer *queued[SEND_SLOTS];
  int next, queued_count;
};

struct tap_loss { int32_t track; int64_t packets, from_ns, to_ns; };
struct outbox {
  int fd;
  struct bytes events[2], tapped[2];
  int event_side, tap_side;
  uint32_t event_count, unknown_count, raw_count, loss_count;
  int64_t take;
  int64_t tapped_bytes, tap_signalled_ns, oldest_ns; /* oldest_ns: of the events that wait; 0: none */
  size_t tap_mark; /* where a tap has moved that nobody was told of yet */
  struct tap_loss losses[256];
  bool signalled, urgent, tap_held;
};

struct forwarder {
  pthread_mutex_t lock;
  pthread_t thread;
  atomic_bool closing;
  int wake, epoll, socket_count;
  struct receiver receivers[MAX_SOCKETS];
  struct sender sender;
  struct outbox outbox;
  struct map peers, streams, routes, bound;
  fwd_crypto_t crypto;
  bool evp;
  int64_t next_number, now_ns, feedback_due_ns, stray_ns; /* stray_ns: when a packet of nobody's was last told of */
  struct pointers paced; /* peers for which packets wait */
  int64_t pace_due_ns, asleep_until_ns; /* until when the thread sleeps if nothing comes; 0: it is awake */
  uint32_t seconds;
  fwd_stats_t stats;
};

/* wire.c */
bool rtp_parse(struct rtp *rtp, const uint8_t *data, uint32_t size, int64_t arrival_ns);
const struct element *rtp_element(const struct rtp *rtp, uint8_t id);
bool is_keyframe_start(int codec, const uint8_t *data, uint32_t start, uint32_t end);
struct vp8_numbers { uint32_t picture, bits, index; };
struct vp8_numbers vp8_find(const uint8_t *data, uint32_t start, uint32_t end);
uint32_t vp8_picture(const uint8_t *data, struct vp8_numbers found);
bool rtcp_valid(const uint8_t *data, uint32_t size);

/* red.c */
enum { RED_MALFORMED = 0, RED_FOREIGN = -1 };
/* Offset of the primary block, or one of these; all blocks must have this payload type (-1: any). */
int32_t red_primary(const uint8_t *data, uint32_t start, uint32_t end, int payload_type);
void red_renumber(uint8_t *payload, uint32_t size, uint8_t payload_type);

/* srtp.c: in place; return the new length or -1, failures counted at the peer */
bool gcm_init(const fwd_crypto_t *crypto, struct gcm *gcm, bool derive, bool decrypt, const uint8_t *key,
              const uint8_t *salt);
void gcm_free(const fwd_crypto_t *crypto, struct gcm *gcm);
int gcm_seal(const fwd_crypto_t *crypto, const struct gcm *gcm, uint64_t index, uint8_t *packet, int length);
int gcm_open(const fwd_crypto_t *crypto, const struct gcm *gcm, uint64_t index, uint8_t *packet, int length);
int srtp_open(forwarder_t *f, struct peer *peer, struct source *source, uint64_t *index, uint8_t *packet, int length);
int srtp_seal(forwarder_t *f, struct peer *peer, uint64_t index, uint8_t *packet, int length);
void source_advance(struct source *source, uint64_t index);

/* receive.c */
enum accounted { DROPPED, NEW, NEW_WITH_GAP };
enum accounted stream_account(struct stream *stream, struct rtp *rtp, bool recovered, uint16_t *first, uint16_t *last);
void stream_keep(forwarder_t *f, struct stream *stream, const struct rtp *rtp);
/* Collect what is cached of numbers after `floor`, in their order. */
size_t stream_later(const struct stream *stream, int64_t floor, struct kept *later[CACHE_PACKETS]);
struct kept *stream_cached(const struct stream *stream, int64_t extended);
void stream_clear(forwarder_t *f, struct stream *stream);

/* layers.c */
/* Set the layer of a packet from what it says and from what the stream's last structure said. */
void layer_read(struct stream *stream, struct rtp *rtp);
struct layered vp9_layer(const uint8_t *data, uint32_t start, uint32_t end);
/* Write a dependency descriptor of at most 250 bytes anew, at most 5 bytes longer; return its length. */
uint32_t dependency_rewrite(const uint8_t *data, uint32_t size, uint16_t frame_offset, uint32_t mask, uint32_t targets,
                            uint8_t *out);
/* Leaves nothing out yet of what is sent of a stream (NULL: of nothing). */
struct filter *filter_new(const struct stream *stream);
void filter_begin(struct filter *filter, int64_t highest);
enum verdict filter_judge(struct filter *filter, const struct rtp *rtp, struct verdict_on *on);
void filter_mask(const struct filter *filter, const struct stream *stream, const struct rtp *rtp,
                 struct verdict_on *on);

/* route.c */
void route_begin(struct route *route, struct stream *stream, const struct rtp *rtp);
/* Write the packet to send and its SRTP index; return its length, 0 if there is none to send. */
struct stamps { uint8_t *number, *seconds; uint32_t extended; };
/* With `stamps` the packet has no number and no sending time yet, only the places for them, which are told. */
uint32_t route_first(forwarder_t *f, struct route *route, const struct rtp *rtp, struct verdict_on on, uint8_t *out,
                     uint64_t *index, struct stamps *stamps);
/* The entry of what was sent as this number, NULL if it is gone. */
struct sent *route_sent(struct route *route, uint32_t extended);
uint32_t route_again(forwarder_t *f, struct route *route, uint16_t sequence, uint8_t *out, uint64_t *index);
/* Likewise a packet that only fills the line: a cached one from `*at` downwards as RTX, else one of nothing but padding. */
uint32_t route_padding(forwarder_t *f, struct route *route, int64_t *at, uint8_t *out, uint64_t *index);

/* feedback.c */
void log_add(struct log *log, uint16_t number, int64_t at_ns, uint32_t ssrc);
/* Write one compound, at most 1,200 bytes, of what is logged; 0 when all is told. */
uint32_t log_build(struct log *log, uint8_t *out);
void feedback_read(const uint8_t *data, uint32_t length, int64_t *reported, int64_t *lost);

/* sent.c */
void sent_note(forwarder_t *f, struct peer *peer, int64_t number, int64_t at_ns, int size);
/* Read one transport-cc feedback of the peer, whose length is checked. */
void sent_told(forwarder_t *f, struct peer *peer, const uint8_t *data, uint32_t length, int64_t told_ns);
void sent_free(struct sent_log *log);

/* pace.c */
/* Let what stands in the next slot wait. */
void pace_add(forwarder_t *f, struct route *route, uint64_t index, uint32_t length, struct stamps stamps);
/* Send what is due; return when the next is, INT64_MAX if nothing waits. */
int64_t pace_release(forwarder_t *f);
/* Drop what waits of a route, NULL: of all of the peer's. */
void pace_drop(forwarder_t *f, struct peer *peer, const struct route *route);

/* outbox.c */
uint8_t *outbox_event(forwarder_t *f, const fwd_event_t *head);
void outbox_hold(forwarder_t *f);
bool tap_take(forwarder_t *f, struct stream *stream, const struct rtp *rtp);
void tap_later(forwarder_t *f, const struct stream *stream, int64_t floor);
void outbox_tap(forwarder_t *f, int32_t track, int64_t arrival_ns, const uint8_t *data, uint32_t size, bool is_rtcp);
/* When the eventfd is to be written next; INT64_MAX: nothing waits. */
int64_t outbox_due(const forwarder_t *f);
void outbox_signal(forwarder_t *f);
void outbox_free(struct outbox *outbox);

/* sockets.c */
bool receiver_init(struct receiver *receiver, int fd, int family);
int receiver_take(struct receiver *receiver);
int64_t receiver_arrival(struct receiver *receiver, int slot, int64_t now_ns, int64_t offset);
uint8_t *sender_slot(forwarder_t *f);
void sender_queue(forwarder_t *f, struct peer *peer, uint32_t length);
void sender_flush(forwarder_t *f);
uint64_t name_key(const struct map *map, const uint8_t *name, int socket);

/* path.c */
int path_receive(forwarder_t *f, int socket);
/* Take one datagram; `name` is a sockaddr of 28 bytes. Changes data: it is decrypted in place. */
void path_datagram(forwarder_t *f, int socket, const uint8_t *name, uint8_t *data, int length, int64_t arrival_ns);
void path_dispatch(forwarder_t *f, struct peer *peer, struct source *source, struct rtp *rtp);
void path_replay(forwarder_t *f, struct route *route);
/* Encrypt and queue what stands in the next slot; return its length. `number` is the transport-cc number that the peer
 * would have been given next before the packet was made: if it was used, what becomes of the packet will be told. */
int path_emit(forwarder_t *f, struct peer *peer, uint64_t index, uint32_t length, int64_t number);
int path_padding(forwarder_t *f, struct route *route, int32_t bytes);
int path_resend(forwarder_t *f, struct route *route, uint16_t sequence);
bool path_send_rtcp(forwarder_t *f, struct peer *peer, const uint8_t *data, uint32_t size);
struct peer *path_peer(forwarder_t *f, const uint8_t *name, int socket);
struct source *peer_source(const struct peer *peer, uint32_t ssrc);
struct source *peer_add_source(struct peer *peer, uint32_t ssrc, enum role role);
struct route *peer_route(const struct peer *peer, uint32_t ssrc);

/* tables.c */
void tables_remove_stream(forwarder_t *f, struct stream *stream);
void tables_remove_route(forwarder_t *f, struct route *route);
void tables_remove_peer(forwarder_t *f, struct peer *peer);
void tables_unbind(forwarder_t *f, struct peer *peer, int at);

/* loop.c */
int64_t monotonic_ns(void);
void forwarder_enter(forwarder_t *f);
void forwarder_leave(forwarder_t *f);
void forwarder_wake(forwarder_t *f);

static inline bool peer_ready(const struct peer *peer) { return peer->keyed && peer->addressed; }

/* Whether the next packet that can wait must. */
static inline bool pace_waits(const struct pacer *pacer, int64_t now_ns) {
  return pacer->first || (pacer->bps && pacer->free_ns > now_ns + PACE_QUANTUM_NS);
}
static inline void pace_spend(struct pacer *pacer, int64_t size, int64_t now_ns) {
  if (!pacer->bps) return;
  int64_t free_ns = (pacer->free_ns > now_ns ? pacer->free_ns : now_ns) + size * 8000000000 / pacer->rate;
  pacer->free_ns = free_ns < now_ns + PACE_LONGEST_NS ? free_ns : now_ns + PACE_LONGEST_NS;
}
#endif
