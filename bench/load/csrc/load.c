/* The load generator's packet path: publishers that send clips in real time, subscribers that check what arrives.
 *
 * One thread ticks every millisecond: it sends what is due, then empties all sockets that have something. SRTP is the
 * forwarder's own (srtp.c), so is transport-cc feedback (feedback.c): linked in, not written twice. */
#include "internal.h"
#include "load.h"

#include <errno.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 8192, MAX_CLIPS = 8, MAX_BURST = 64, RAW_RING = 1024, RAW_BYTES = 1500, STAMP_BYTES = 24,
       REPORT_MS = 1000, FEEDBACK_MS = 100, KEYFRAME_EVERY_MS = 300, MAX_CATCH_UP = 20, STREAMS = 2 };
#define TICK_NS 1000000ll
static const uint8_t MAGIC[4] = "SLst";

struct clip { load_clip_t is; uint8_t *data; uint32_t *offsets, *frames; };

struct sending {
  const struct clip *clip;
  uint32_t ssrc, timestamp, frame, packets, bytes;
  uint64_t index;
  uint8_t payload_type, mid;
  uint32_t phase_ms;
};

struct receiving {
  uint32_t ssrc, timestamp;
  int64_t base, highest, packets;
  uint8_t payload_type;
  int32_t clip;
  bool keyframe; /* one has begun with `timestamp` */
};

struct connection {
  int64_t number;
  bool publishes;
  int fd;
  void *rx, *tx;
  struct gcm rx_gcm, tx_gcm;
  int32_t mid_id, abs_id, transport_cc_id;
  uint32_t source, report_ms, keyframe_ms;
  uint16_t transport_cc;
  bool wants_keyframe;
  struct sending sending[STREAMS];
  struct receiving receiving[STREAMS];
  struct log log;
  load_connection_stats_t stats;
};

struct raw { int64_t connection; int32_t size; uint8_t data[RAW_BYTES]; };

struct load {
  pthread_mutex_t lock;
  pthread_t thread;
  atomic_bool closing, paused;
  fwd_crypto_t crypto;
  int epoll;
  struct clip clips[MAX_CLIPS];
  int clip_count;
  struct connection *connections[MAX_CONNECTIONS];
  int64_t count;
  load_totals_t totals;
  uint32_t delays[LOAD_BUCKETS];
  struct raw raw[RAW_RING];
  uint32_t raw_head, raw_count;
  uint8_t out[MAX_BURST][SLOT_BYTES], in[BATCH][SLOT_BYTES];
};

static int64_t clock_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static uint32_t abs_send_time(int64_t ns) {
  uint64_t seconds = (uint64_t)ns / 1000000000, rest = (uint64_t)ns % 1000000000;
  return (uint32_t)(seconds << 18 | (rest << 18) / 1000000000) & 0xffffff;
}

/* --- sending */

static int rtp_header(struct connection *c, struct sending *s, bool marker, int64_t now_ns, uint8_t *out) {
  out[0] = 0x80;
  out[1] = (uint8_t)(s->payload_type | (marker ? 0x80 : 0));
  put16(out + 2, (uint32_t)s->index);
  put32(out + 4, s->timestamp);
  put32(out + 8, s->ssrc);
  int at = 16;
  if (c->mid_id) {
    out[at++] = (uint8_t)(c->mid_id << 4);
    out[at++] = s->mid;
  }
  if (c->abs_id) {
    uint32_t time = abs_send_time(now_ns);
    out[at++] = (uint8_t)(c->abs_id << 4 | 2);
    out[at++] = (uint8_t)(time >> 16);
    out[at++] = (uint8_t)(time >> 8);
    out[at++] = (uint8_t)time;
  }
  if (c->transport_cc_id) {
    out[at++] = (uint8_t)(c->transport_cc_id << 4 | 1);
    put16(out + at, c->transport_cc++);
    at += 2;
  }
  if (at == 16) return 12;
  while (at % 4) out[at++] = 0;
  out[0] |= 0x10;
  put16(out + 12, 0xbede);
  put16(out + 14, (uint32_t)(at - 16) / 4);
  return at;
}

static int seal(struct load *l, struct connection *c, uint64_t index, uint8_t *packet, int length) {
  if (c->tx_gcm.context) return gcm_seal(&l->crypto, &c->tx_gcm, index, packet, length);
  return l->crypto.srtp_protect(c->tx, packet, &length) == 0 ? length : -1;
}

/* What is sent says who sent it, when, and which packet of the clip it is. */
static void stamp(uint8_t *out, uint32_t source, uint32_t packet, int64_t now_ns) {
  memcpy(out, MAGIC, 4);
  put32(out + 4, source);
  put32(out + 8, packet);
  put32(out + 12, (uint32_t)((uint64_t)now_ns >> 32));
  put32(out + 16, (uint32_t)now_ns);
  put32(out + 20, 0);
}

static void send_frame(struct load *l, struct connection *c, struct sending *s) {
  const struct clip *clip = s->clip;
  if (s == &c->sending[0] && c->wants_keyframe) {
    s->frame = 0;
    c->wants_keyframe = false;
  }
  uint32_t first = clip->frames[s->frame], end = clip->frames[s->frame + 1];
  while (first < end) {
    struct mmsghdr messages[MAX_BURST] = {0};
    struct iovec vectors[MAX_BURST];
    int count = 0;
    for (; first < end && count < MAX_BURST; first++) {
      int64_t now_ns = clock_ns(CLOCK_REALTIME);
      uint8_t *out = l->out[count];
      /* Opus never sets the marker in a stream without pauses (RFC 7587 section 4.1). */
      int length = rtp_header(c, s, first + 1 == end && s == &c->sending[0], now_ns, out);
      uint32_t size = clip->offsets[first + 1] - clip->offsets[first];
      memcpy(out + length, clip->data + clip->offsets[first], size);
      length += (int)size;
      if (clip->is.stamped) {
        stamp(out + length, c->source, first, now_ns);
        length += STAMP_BYTES;
      }
      length = seal(l, c, s->index++, out, length);
      if (length < 0) {
        l->totals.send_failed++;
        continue;
      }
      vectors[count] = (struct iovec){out, (size_t)length};
      messages[count].msg_hdr.msg_iov = &vectors[count];
      messages[count].msg_hdr.msg_iovlen = 1;
      count++;
      s->packets++;
      s->bytes += size;
      l->totals.sent_bytes += length;
    }
    for (int done = 0; done < count;) {
      int sent = sendmmsg(c->fd, messages + done, (unsigned)(count - done), MSG_DONTWAIT);
      if (sent <= 0) { /* a full buffer or an ICMP error: that packet is lost */
        l->totals.send_failed++;
        done++;
        continue;
      }
      l->totals.sent_packets += sent;
      done += sent;
    }
  }
  s->timestamp += clip->is.clock_step;
  s->frame = (s->frame + 1) % clip->is.frame_count;
}

static void send_rtcp(struct load *l, struct connection *c, uint8_t *compound, int length) {
  if (l->crypto.srtp_protect_rtcp(c->tx, compound, &length) != 0 ||
      send(c->fd, compound, (size_t)length, MSG_DONTWAIT) < 0)
    l->totals.send_failed++;
}

static int describe(uint8_t *out, uint32_t ssrc) { /* SDES with a CNAME (RFC 3550 section 6.5) */
  put32(out, 0x81ca0000 | 3);
  put32(out + 4, ssrc);
  memcpy(out + 8, "\1\5bench\0", 8);
  return 16;
}

static void send_reports(struct load *l, struct connection *c) {
  int64_t now_ns = clock_ns(CLOCK_REALTIME);
  for (int i = 0; i < STREAMS; i++) {
    uint8_t out[256];
    struct sending *s = &c->sending[i];
    struct receiving *r = &c->receiving[i];
    if (c->publishes && s->clip) { /* SR, RFC 3550 section 6.4.1 */
      uint64_t seconds = (uint64_t)now_ns / 1000000000 + 2208988800u;
      uint64_t fraction = (((uint64_t)now_ns % 1000000000) << 32) / 1000000000;
      put32(out, 0x80c80000 | 6);
      put32(out + 4, s->ssrc);
      put32(out + 8, (uint32_t)seconds);
      put32(out + 12, (uint32_t)fraction);
      put32(out + 16, s->timestamp);
      put32(out + 20, s->packets);
      put32(out + 24, s->bytes);
      send_rtcp(l, c, out, 28 + describe(out + 28, s->ssrc));
    } else if (!c->publishes && r->packets) { /* RR, section 6.4.2 */
      memset(out, 0, sizeof out);
      put32(out, 0x81c90000 | 7);
      put32(out + 4, c->source | 0x80000000u);
      put32(out + 8, r->ssrc);
      put32(out + 16, (uint32_t)r->highest);
      send_rtcp(l, c, out, 32 + describe(out + 32, c->source | 0x80000000u));
    }
  }
}

static void send_feedback(struct load *l, struct connection *c) {
  uint8_t compound[MAX_PACKET_BYTES];
  uint32_t size;
  while ((size = log_build(&c->log, compound))) send_rtcp(l, c, compound, (int)size);
}

static void send_due(struct load *l, uint32_t now_ms) {
  for (int64_t at = 0; at < l->count; at++) {
    struct connection *c = l->connections[at];
    if (!c) continue;
    for (int i = 0; c->publishes && !l->paused && i < STREAMS; i++) {
      struct sending *s = &c->sending[i];
      if (s->clip && now_ms % s->clip->is.period_ms == s->phase_ms) send_frame(l, c, s);
    }
    if (now_ms % REPORT_MS == c->report_ms) send_reports(l, c);
    if (!c->publishes && c->transport_cc_id && now_ms % FEEDBACK_MS == c->report_ms % FEEDBACK_MS) send_feedback(l, c);
  }
}

/* --- receiving */

static void keep_raw(struct load *l, const struct connection *c, const uint8_t *data, int size) {
  if (l->raw_count == RAW_RING || size > RAW_BYTES) return; /* a check is sent again */
  struct raw *raw = &l->raw[(l->raw_head + l->raw_count++) % RAW_RING];
  raw->connection = c->number;
  raw->size = size;
  memcpy(raw->data, data, (size_t)size);
}

static void receive_rtcp(struct load *l, struct connection *c, uint8_t *data, int size, uint32_t now_ms) {
  if (l->crypto.srtp_unprotect_rtcp(c->rx, data, &size) != 0) {
    l->totals.auth_failed++;
    return;
  }
  for (int at = 0; at + 4 <= size; at += 4 * (get16(data + at + 2) + 1)) {
    int kind = data[at + 1], format = data[at] & 31;
    if (kind == 206 && (format == 1 || format == 4)) { /* PLI, FIR */
      l->totals.keyframe_requests++;
      c->stats.keyframe_requests++;
      if (now_ms - c->keyframe_ms >= KEYFRAME_EVERY_MS) {
        c->wants_keyframe = true;
        c->keyframe_ms = now_ms;
      }
    }
    l->totals.nacked += kind == 205 && format == 1;
    l->totals.feedback_received += kind == 205 && format == 15;
  }
}

static struct receiving *stream_of(struct connection *c, uint8_t payload_type, uint32_t ssrc) {
  for (int i = 0; i < STREAMS; i++) {
    struct receiving *r = &c->receiving[i];
    if (r->payload_type != payload_type || r->clip < 0) continue;
    if (!r->ssrc) r->ssrc = ssrc;
    if (r->ssrc == ssrc) return r;
  }
  return NULL;
}

/* Compare what arrived with what was sent, and note how long it took. */
static void verify(struct load *l, struct connection *c, const struct receiving *r, const struct rtp *rtp, int64_t arrival_ns) {
  const uint8_t *payload = rtp->data + rtp->payload_start;
  uint32_t size = (uint32_t)rtp->payload_end - rtp->payload_start;
  const uint8_t *end = payload + size - STAMP_BYTES;
  if (size < STAMP_BYTES || memcmp(end, MAGIC, 4)) return; /* re-encoded on the way */
  l->totals.stamped++;
  const struct clip *clip = &l->clips[r->clip];
  uint32_t packet = get32(end + 8), opaque = (uint32_t)clip->is.opaque_bytes;
  size -= STAMP_BYTES;
  bool good = get32(end + 4) == c->source && packet < clip->is.packet_count &&
              size == clip->offsets[packet + 1] - clip->offsets[packet] &&
              (size <= opaque || !memcmp(payload + opaque, clip->data + clip->offsets[packet] + opaque, size - opaque));
  if (!good) {
    l->totals.bad++;
    c->stats.bad++;
    return;
  }
  l->totals.verified++;
  int64_t delay = arrival_ns - (int64_t)((uint64_t)get32(end + 12) << 32 | get32(end + 16));
  int64_t bucket = delay < 0 ? 0 : delay / LOAD_BUCKET_NS;
  l->delays[bucket < LOAD_BUCKETS ? bucket : LOAD_BUCKETS - 1]++;
}

static void receive_rtp(struct load *l, struct connection *c, uint8_t *data, int size, int64_t arrival_ns) {
  uint8_t payload_type = data[1] & 127;
  bool marker = data[1] >> 7;
  struct receiving *r = stream_of(c, payload_type, get32(data + 8));
  if (!r) {
    l->totals.other_ssrc++;
    return;
  }
  int64_t extended = get16(data + 2);
  if (r->packets) extended = r->highest + (int16_t)(extended - (r->highest & 0xffff));
  if (!r->packets) r->base = r->highest = extended;
  l->totals.out_of_order += r->packets && extended <= r->highest;
  l->totals.expected_packets += extended > r->highest ? extended - r->highest : !r->packets;
  if (extended > r->highest) r->highest = extended;
  r->packets++;
  c->stats.packets++;
  l->totals.received_packets++;
  l->totals.received_bytes += size;
  if (!c->stats.first_packet_ns) c->stats.first_packet_ns = arrival_ns;

  bool video = r == &c->receiving[0];
  struct rtp rtp;
  if (c->log.interval_ns && rtp_parse(&rtp, data, (uint32_t)size, arrival_ns)) {
    const struct element *found = rtp_element(&rtp, (uint8_t)c->transport_cc_id);
    if (found && found->length == 2) log_add(&c->log, get16(data + found->at), arrival_ns, get32(data + 8));
  }
  /* All sound, the last packet of every picture, and everything up to the first whole picture is decrypted. */
  if (video && !marker && c->stats.first_frame_ns) return;
  int plain = size;
  if (c->rx_gcm.context)
    plain = extended < 0 ? -1 : gcm_open(&l->crypto, &c->rx_gcm, (uint64_t)extended, data, size);
  else if (l->crypto.srtp_unprotect(c->rx, data, &plain) != 0)
    plain = -1;
  if (plain < 0 || !rtp_parse(&rtp, data, (uint32_t)plain, arrival_ns)) {
    l->totals.auth_failed++;
    return;
  }
  verify(l, c, r, &rtp, arrival_ns);
  if (!video || c->stats.first_frame_ns) return;
  if (is_keyframe_start(l->clips[r->clip].is.codec, data, rtp.payload_start, rtp.payload_end)) {
    r->keyframe = true;
    r->timestamp = rtp.timestamp;
  }
  if (marker && r->keyframe && r->timestamp == rtp.timestamp) c->stats.first_frame_ns = arrival_ns;
}

static int64_t arrival_of(struct msghdr *message, int64_t otherwise) {
  for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPNS) {
      struct timespec at;
      memcpy(&at, CMSG_DATA(c), sizeof at);
      return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
    }
  return otherwise;
}

static void receive_all(struct load *l, struct connection *c, uint32_t now_ms) {
  for (int count = BATCH; count == BATCH;) {
    struct mmsghdr messages[BATCH] = {0};
    struct iovec vectors[BATCH];
    uint8_t controls[BATCH][64];
    for (int i = 0; i < BATCH; i++) {
      vectors[i] = (struct iovec){l->in[i], SLOT_BYTES};
      messages[i].msg_hdr =
          (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1, .msg_control = controls[i], .msg_controllen = 64};
    }
    count = recvmmsg(c->fd, messages, BATCH, MSG_DONTWAIT, NULL);
    int64_t now_ns = clock_ns(CLOCK_REALTIME);
    for (int i = 0; i < count; i++) {
      uint8_t *data = l->in[i];
      int size = (int)messages[i].msg_len;
      if (size < 12 || data[0] < 128 || data[0] > 191)
        keep_raw(l, c, data, size);
      else if (data[1] >= 192 && data[1] <= 223) /* RFC 5761 section 4 */
        receive_rtcp(l, c, data, size, now_ms);
      else
        receive_rtp(l, c, data, size, arrival_of(&messages[i].msg_hdr, now_ns));
    }
  }
}

static void *run(void *argument) {
  struct load *l = argument;
  int64_t began = clock_ns(CLOCK_MONOTONIC), done = 0;
  struct epoll_event ready[256];
  while (!atomic_load(&l->closing)) {
    int64_t due = (clock_ns(CLOCK_MONOTONIC) - began) / TICK_NS;
    pthread_mutex_lock(&l->lock);
    l->totals.late_ticks += due - done > 2;
    if (due - done > MAX_CATCH_UP) { /* this thread was not run: what was due then is not sent now in one lump */
      l->totals.skipped_ticks += due - done - MAX_CATCH_UP;
      done = due - MAX_CATCH_UP;
    }
    while (done < due) send_due(l, (uint32_t)++done);
    for (int count = 256; count == 256;) {
      count = epoll_wait(l->epoll, ready, 256, 0);
      for (int i = 0; i < count; i++) {
        struct connection *c = l->connections[ready[i].data.u64];
        if (c) receive_all(l, c, (uint32_t)done);
      }
    }
    pthread_mutex_unlock(&l->lock);
    int64_t until = began + (done + 1) * TICK_NS;
    struct timespec at = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
  }
  return NULL;
}

/* --- what Python calls */

load_t *load_open(const fwd_crypto_t *crypto) {
  load_t *l = calloc(1, sizeof *l);
  if (!l) return NULL;
  pthread_mutex_init(&l->lock, NULL);
  l->crypto = *crypto;
  l->epoll = epoll_create1(EPOLL_CLOEXEC);
  if (l->epoll < 0 || pthread_create(&l->thread, NULL, run, l)) {
    if (l->epoll >= 0) close(l->epoll);
    free(l);
    return NULL;
  }
  return l;
}

static void forget(load_t *l, struct connection *c) {
  epoll_ctl(l->epoll, EPOLL_CTL_DEL, c->fd, NULL);
  gcm_free(&l->crypto, &c->rx_gcm);
  gcm_free(&l->crypto, &c->tx_gcm);
  free(c->log.entries);
  free(c);
}

void load_close(load_t *l) {
  atomic_store(&l->closing, true);
  pthread_join(l->thread, NULL);
  for (int64_t at = 0; at < l->count; at++)
    if (l->connections[at]) forget(l, l->connections[at]);
  for (int at = 0; at < l->clip_count; at++) {
    free(l->clips[at].data);
    free(l->clips[at].offsets);
    free(l->clips[at].frames);
  }
  close(l->epoll);
  pthread_mutex_destroy(&l->lock);
  free(l);
}

static void *copy_of(const void *data, size_t size) {
  void *made = malloc(size);
  if (made) memcpy(made, data, size);
  return made;
}

int load_add_clip(load_t *l, const load_clip_t *clip) {
  if (l->clip_count == MAX_CLIPS || !clip->frame_count || !clip->period_ms) return FWD_INVALID;
  for (uint32_t i = 0; i < clip->packet_count; i++)
    if (clip->offsets[i + 1] - clip->offsets[i] > MAX_PACKET_BYTES - 128) return FWD_INVALID;
  struct clip *made = &l->clips[l->clip_count];
  made->is = *clip;
  made->data = copy_of(clip->data, clip->offsets[clip->packet_count]);
  made->offsets = copy_of(clip->offsets, (clip->packet_count + 1) * sizeof *clip->offsets);
  made->frames = copy_of(clip->frames, (clip->frame_count + 1) * sizeof *clip->frames);
  return made->data && made->offsets && made->frames ? l->clip_count++ : FWD_NO_MEMORY;
}

static int64_t add(load_t *l, const load_connection_t *is, bool publishes) {
  struct connection *c = calloc(1, sizeof *c);
  if (!c) return FWD_NO_MEMORY;
  int yes = 1;
  setsockopt(is->fd, SOL_SOCKET, SO_TIMESTAMPNS, &yes, sizeof yes);
  *c = (struct connection){.publishes = publishes, .fd = is->fd, .rx = is->rx_session, .tx = is->tx_session,
                           .mid_id = is->mid_id, .abs_id = is->abs_id, .transport_cc_id = is->transport_cc_id,
                           .source = is->source};
  bool good = !is->gcm || !l->crypto.evp_new ||
              (gcm_init(&l->crypto, &c->rx_gcm, true, true, is->rx_key, is->rx_salt) &&
               gcm_init(&l->crypto, &c->tx_gcm, true, false, is->tx_key, is->tx_salt));
  pthread_mutex_lock(&l->lock);
  if (!good || l->count == MAX_CONNECTIONS) {
    pthread_mutex_unlock(&l->lock);
    gcm_free(&l->crypto, &c->rx_gcm);
    gcm_free(&l->crypto, &c->tx_gcm);
    free(c);
    return good ? FWD_FULL : FWD_INVALID;
  }
  c->number = l->count;
  /* Spread over the second, so that not all send at the same moment. */
  uint32_t spread = (uint32_t)(c->number * 2654435761u % 1000);
  c->report_ms = spread;
  for (int i = 0; i < STREAMS; i++) {
    int32_t clip = i ? is->audio_clip : is->video_clip;
    uint8_t payload_type = (uint8_t)(i ? is->audio_pt : is->video_pt);
    c->receiving[i] = (struct receiving){.payload_type = payload_type, .clip = clip};
    if (!publishes || clip < 0) continue;
    struct clip *sends = &l->clips[clip];
    c->sending[i] = (struct sending){.clip = sends, .ssrc = i ? is->audio_ssrc : is->video_ssrc,
                                     .payload_type = payload_type, .mid = i ? is->audio_mid : is->video_mid,
                                     .phase_ms = (spread + (i ? 7 : 0)) % sends->is.period_ms};
  }
  if (!publishes && is->transport_cc_id) {
    c->log = (struct log){.highest = -1, .next = -1, .interval_ns = FEEDBACK_MS * TICK_NS};
    c->log.sender_ssrc = is->source | 0x80000000u;
  }
  l->connections[l->count++] = c;
  l->totals.connections++;
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)c->number};
  epoll_ctl(l->epoll, EPOLL_CTL_ADD, c->fd, &event);
  pthread_mutex_unlock(&l->lock);
  return c->number;
}

int64_t load_add_publisher(load_t *l, const load_connection_t *is) { return add(l, is, true); }

int64_t load_add_subscriber(load_t *l, const load_connection_t *is) { return add(l, is, false); }

static struct connection *find(load_t *l, int64_t number) {
  return number >= 0 && number < l->count ? l->connections[number] : NULL;
}

int load_remove(load_t *l, int64_t number) {
  pthread_mutex_lock(&l->lock);
  struct connection *c = find(l, number);
  if (c) {
    l->connections[number] = NULL;
    l->totals.connections--;
    forget(l, c);
  }
  pthread_mutex_unlock(&l->lock);
  return c ? FWD_OK : FWD_NO_PEER;
}

void load_pause(load_t *l, int paused) { atomic_store(&l->paused, paused != 0); }

int load_totals(load_t *l, load_totals_t *totals) {
  pthread_mutex_lock(&l->lock);
  *totals = l->totals;
  pthread_mutex_unlock(&l->lock);
  return FWD_OK;
}

int load_connection_stats(load_t *l, int64_t number, load_connection_stats_t *stats) {
  pthread_mutex_lock(&l->lock);
  struct connection *c = find(l, number);
  if (c) {
    *stats = c->stats;
    for (int i = 0; i < STREAMS; i++)
      if (c->receiving[i].packets) stats->expected += c->receiving[i].highest - c->receiving[i].base + 1;
  }
  pthread_mutex_unlock(&l->lock);
  return c ? FWD_OK : FWD_NO_PEER;
}

int load_take_delays(load_t *l, uint32_t *buckets) {
  pthread_mutex_lock(&l->lock);
  memcpy(buckets, l->delays, sizeof l->delays);
  memset(l->delays, 0, sizeof l->delays);
  pthread_mutex_unlock(&l->lock);
  return FWD_OK;
}

int load_take_raw(load_t *l, int64_t *connection, uint8_t *out, int32_t room) {
  pthread_mutex_lock(&l->lock);
  int size = 0;
  if (l->raw_count) {
    struct raw *raw = &l->raw[l->raw_head];
    size = raw->size < room ? raw->size : room;
    memcpy(out, raw->data, (size_t)size);
    *connection = raw->connection;
    l->raw_head = (l->raw_head + 1) % RAW_RING;
    l->raw_count--;
  }
  pthread_mutex_unlock(&l->lock);
  return size;
}

int load_null_cipher(void *session, void *packet, int *length) {
  (void)session, (void)packet, (void)length;
  return 0;
}
