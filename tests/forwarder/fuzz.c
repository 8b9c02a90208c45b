/* A harness of everything native that reads bytes from the network. Its input is a conversation of three peers with a
 * forwarder: steps of one byte (what, and how long after the step before), a length of 16 bits, and so many bytes. Most
 * steps are datagrams, which come decrypted: the ciphers here change nothing and accept everything, so that hostile
 * bytes reach parsers, cache, rewriting, NACKs and feedback as if a peer with good keys had sent them. The others are
 * calls from Python at a bad moment. Time is the input's, no thread runs: the same input does the same.
 *
 * Beside what the sanitizers see it aborts if a packet is sent to a peer that has no route with its SSRC, if a sent
 * packet is not well-formed, if one nonce protects two different packets, and if anything is left once all peers went.
 *
 * With -DLIBFUZZER libFuzzer drives it; alone: fuzz SECONDS SEED FILE…, each file a conversation. */
#include <errno.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <time.h>

#include "internal.h"

static struct timespec clock_now;
static int fuzz_clock(struct timespec *now) {
  *now = clock_now;
  return 0;
}

#define clock_gettime(clock, now) fuzz_clock(now)
#define pthread_create(...) 0
#define pthread_join(...) 0
#include "loop.c" /* its clock and its thread are ours; all other sources are linked */
#undef clock_gettime

enum { PEERS = 3, STREAMS = 6, ROUTES = 12, NAMES = 6, STEPS = 256, INPUT_BYTES = 1 << 15, NONCES = 1 << 12 };
enum { STRANGER = 3, CALL = 4, SIX = 5 };

static forwarder_t *f;
static int64_t peers[PEERS], streams[STREAMS], routes[ROUTES];
static struct sockaddr_in6 names[NAMES];
static bool gso_fails;

/* Memory that was freed in one conversation is not used in a later one: a small quarantine is enough, and faster. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "quarantine_size_mb=8"; }

static void insist(bool good, const char *what) {
  if (good) return;
  fprintf(stderr, "the forwarder broke a promise: %s\n", what);
  abort();
}

/* --- ciphers that change nothing */

struct context { uint8_t iv[12], key[16]; uint64_t hash; uint32_t number; };
static struct nonce { uint8_t iv[12]; uint32_t context; uint64_t hash; } nonces[NONCES];
static uint32_t context_count, nonce_count;

static uint64_t hash_bytes(uint64_t hash, const uint8_t *data, int length) {
  for (int i = 0; i < length; i++) hash = (hash ^ data[i]) * 0x100000001b3ull;
  return hash;
}

static int null_cipher(void *session, void *packet, int *length) {
  (void)session;
  (void)packet;
  return *length < 8 ? 2 : 0; /* as libsrtp does with what is no packet */
}

static void *evp_new(void) {
  struct context *context = calloc(1, sizeof *context);
  if (context) context->number = ++context_count;
  return context;
}

static int evp_init(void *pointer, const void *cipher, void *engine, const uint8_t *key, const uint8_t *iv) {
  struct context *context = pointer;
  (void)engine;
  if (key) memcpy(context->key, key, 16);
  if (iv) memcpy(context->iv, iv, 12);
  context->hash = 0xcbf29ce484222325ull;
  return 1;
}

static int evp_update(void *pointer, uint8_t *out, int *out_length, const uint8_t *in, int length) {
  struct context *context = pointer;
  context->hash = hash_bytes(context->hash, in, length);
  if (out && out != in)
    for (int i = 0; i < length; i++) out[i] = in[i] ^ context->key[i % 16] ^ context->iv[7]; /* deriving keys */
  *out_length = length;
  return 1;
}

static int evp_seal(void *pointer, uint8_t *out, int *out_length) {
  struct context *context = pointer;
  (void)out;
  *out_length = 0;
  uint64_t at = hash_bytes(context->number, context->iv, 12);
  for (uint32_t tries = 0; nonce_count < NONCES / 2 && tries < NONCES; tries++, at++) {
    struct nonce *nonce = &nonces[at % NONCES];
    if (!nonce->context) {
      *nonce = (struct nonce){.context = context->number, .hash = context->hash};
      memcpy(nonce->iv, context->iv, 12);
      nonce_count++;
      break;
    }
    if (nonce->context != context->number || memcmp(nonce->iv, context->iv, 12)) continue;
    insist(nonce->hash == context->hash, "one nonce protects one packet");
    break;
  }
  return 1;
}

static int evp_open(void *pointer, uint8_t *out, int *out_length) {
  (void)pointer;
  (void)out;
  *out_length = 0;
  return 1;
}

static int evp_ctrl(void *context, int type, int argument, void *pointer) {
  (void)context;
  if (type == 16) memset(pointer, 0, (size_t)argument); /* GET_TAG */
  return 1;
}

static const void *evp_gcm(void) { return "gcm"; }
static const void *evp_ctr(void) { return "ctr"; }

/* --- what is sent */

static void check_sent(const struct msghdr *message) {
  struct peer *peer = NULL;
  for (int i = 0; i < PEERS; i++) {
    struct peer *one = map_get(&f->peers, (uint64_t)peers[i]);
    if (one && one->addressed && !memcmp(one->destination.bytes, message->msg_name, message->msg_namelen)) peer = one;
  }
  insist(peer, "packets go to where a peer is");
  for (size_t i = 0; i < message->msg_iovlen; i++) {
    const uint8_t *data = message->msg_iov[i].iov_base;
    size_t size = message->msg_iov[i].iov_len;
    insist(size >= 8 && size <= SLOT_BYTES && data[0] >> 6 == 2, "what is sent is RTP or RTCP");
    hash_bytes(0, data, (int)size); /* all of it can be read */
    if (data[1] >= 192 && data[1] <= 223) continue;
    size -= peer->tx_gcm.context ? 16 : 0;
    struct rtp rtp;
    insist(size > MAX_PACKET_BYTES || rtp_parse(&rtp, data, (uint32_t)size, 0), "packets sent are well-formed");
    bool mine = false;
    for (uint32_t k = 0; k < peer->routes.count; k++) {
      const struct route *route = peer->routes.items[k];
      mine |= route->ssrc == get32(data + 8) || (route->has_rtx && route->rtx_ssrc == get32(data + 8));
    }
    insist(mine, "a peer gets what is routed to it");
    insist(size > MAX_PACKET_BYTES || rtp.payload_type != 113 ||
               red_primary(data, rtp.payload_start, rtp.payload_end, -1) > 0,
           "redundancy is passed on in good order");
  }
}

int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags);
int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags) {
  (void)fd;
  (void)flags;
  if (gso_fails && messages->msg_hdr.msg_iovlen > 1) {
    errno = EINVAL;
    return -1;
  }
  for (unsigned i = 0; i < count; i++) check_sent(&messages[i].msg_hdr);
  return (int)count;
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags) {
  (void)fd;
  (void)flags;
  check_sent(message);
  return 1;
}

/* --- the tables */

static const fwd_extension_t extensions[] = {{1, 1}, {2, 2}, {3, 3}, {4, 4}, {5, 5}, {6, 6}, {7, 7}};
static const fwd_extension_t other[] = {{1, 9}, {4, 8}, {5, 11}, {6, 6}, {7, 5}};
static const fwd_extension_t two_byte[] = {{1, 9}, {4, 8}, {5, 200}, {6, 6}, {7, 15}};

static void make_names(void) {
  for (int i = 0; i < NAMES; i++) {
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(7000 + i)), .sin_addr = {htonl(0x7f000001)}};
    memcpy(&names[i], &four, sizeof four);
  }
  names[SIX] = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(7), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
}

static void bind_name(int peer, int name) {
  fwd_bind(f, peers[peer], (const uint8_t *)&names[name], name == SIX ? 28 : 16, name == SIX);
}

static void set_keys(int peer, bool gcm) {
  uint8_t key[16] = {(uint8_t)(peer + 1)}, salt[12] = {(uint8_t)peer};
  fwd_set_keys(f, peers[peer], NULL, NULL, gcm, key, salt, key, salt);
}

static void add_stream(int at) {
  int codec = at < 5 ? at : CODEC_VP8;
  fwd_stream_parameters_t s = {.ssrc = at < 5 ? 0x1111u + (uint32_t)codec : 0x5111,
                               .rtx_ssrc = 0x9990u + (uint32_t)at,
                               .has_rtx_ssrc = 1,
                               .clock_rate = codec ? 90000 : 48000,
                               .video = codec > 0,
                               .codec = codec,
                               .payload_type = 96,
                               .rtx_payload_type = 97,
                               .red_payload_type = at ? -1 : 98,
                               .track = at,
                               .keep_ms = 1000,
                               .keep_bytes = 1 << 18,
                               .extensions = extensions,
                               .extension_count = 7};
  streams[at] = fwd_add_stream(f, peers[at < 5 ? 0 : 2], &s);
}

/* 0 to 4: the publisher's streams to the subscriber, with RTX. 5 to 9: to the third peer, without. 10, 11: the third
 * peer's stream to both. */
static void add_route(int at) {
  int stream = at < 10 ? at % 5 : 5, rtx = at < 5 || at == 10;
  fwd_route_parameters_t r = {.ssrc = 0x2222u + 2u * (uint32_t)stream + (at >= 5 && at < 10),
                              .rtx_ssrc = 0x3332u + 2u * (uint32_t)stream,
                              .payload_type = 111,
                              .rtx_payload_type = rtx ? 112 : -1,
                              .red_payload_type = at == 5 ? 113 : -1,
                              .allow_mixed = at % 2,
                              .first_sequence = at == 3 ? 32767 : 100,
                              .mid = (const uint8_t *)"mid",
                              .mid_length = 3,
                              .extensions = at == 11 ? two_byte : at < 5 ? extensions : other,
                              .extension_count = at < 5 ? 7 : 5};
  routes[at] = fwd_add_route(f, streams[stream], peers[at < 5 || at == 11 ? 1 : at == 10 ? 0 : 2], &r);
}

static void set_up(void) {
  memset(nonces, 0, sizeof nonces);
  context_count = nonce_count = 0;
  gso_fails = false;
  for (int i = 0; i < PEERS; i++) {
    peers[i] = fwd_add_peer(f);
    bind_name(i, i);
    set_keys(i, true);
    fwd_set_extensions(f, peers[i], extensions, 7);
    fwd_set_feedback(f, peers[i], 20, 5);
  }
  bind_name(0, SIX);
  bind_name(0, 0);
  for (int i = 0; i < STREAMS; i++) add_stream(i);
  for (int i = 0; i < ROUTES; i++) add_route(i);
}

/* As two recordings keep it, in memory of exactly the size that was asked for. */
static void encode(const uint8_t *tapped, int64_t size) {
  fwd_target_t targets[STREAMS];
  for (int i = 0; i < STREAMS; i++) targets[i] = (fwd_target_t){.tap = i, .group = i % 2, .track = i + 1};
  int64_t room = fwd_encoded_room(tapped, size);
  uint8_t *out = malloc((size_t)room);
  if (!out) abort();
  int64_t made = fwd_encode_tapped(tapped, size, targets, STREAMS - 1, 2, out, room);
  insist(made >= 0 && made <= room, "tapped packets have room in batches");
  hash_bytes(0, out, (int)made);
  free(out);
}

static void take_all(void) {
  const uint8_t *taken;
  for (int i = 0; i < 2; i++) {
    int64_t size = fwd_take_events(f, &taken);
    hash_bytes(0, taken, (int)size); /* all of it can be read */
    size = fwd_take_tapped(f, &taken);
    encode(taken, size);
  }
}

static void tear_down(void) {
  for (int i = 0; i < PEERS; i++) fwd_remove_peer(f, peers[i]);
  take_all();
  fwd_stats_t stats;
  fwd_stats(f, &stats);
  insist(!stats.peers && !stats.streams && !stats.routes && !stats.cache_bytes && !stats.paced_bytes && !f->paced.count && !f->bound.used,
         "nothing is left");
}

static void open_forwarder(void) {
  static const int32_t families[2] = {AF_INET, AF_INET6};
  const int32_t sockets[2] = {eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK)}; /* never used, only waited for */
  const fwd_crypto_t crypto = {.srtp_protect = null_cipher,
                               .srtp_unprotect = null_cipher,
                               .srtp_protect_rtcp = null_cipher,
                               .srtp_unprotect_rtcp = null_cipher,
                               .evp_new = evp_new,
                               .evp_free = free,
                               .evp_ctrl = evp_ctrl,
                               .evp_encrypt_init = evp_init,
                               .evp_encrypt_update = evp_update,
                               .evp_encrypt_final = evp_seal,
                               .evp_decrypt_init = evp_init,
                               .evp_decrypt_update = evp_update,
                               .evp_decrypt_final = evp_open,
                               .evp_aes_128_gcm = evp_gcm,
                               .evp_aes_128_ctr = evp_ctr};
  make_names();
  f = fwd_open(sockets, families, 2, eventfd(0, EFD_NONBLOCK), &crypto, 42);
  if (!f) abort();
}

/* --- steps */

static void call(const uint8_t *data, size_t size) {
  uint8_t a[64] = {0};
  memcpy(a, data, size < sizeof a ? size : sizeof a);
  int peer = a[1] % PEERS, stream = a[2] % STREAMS, route = a[1] % ROUTES;
  uint32_t ssrc = get32(a + 2);
  switch (a[0] % 24) {
    case 0: fwd_pause(f, routes[route], a[2] & 1); break;
    case 1: fwd_switch(f, routes[route], streams[stream], a[3] & 1 ? 110 : -1, -1); break;
    case 2: {
      uint16_t sequences[16];
      for (int i = 0; i < 16; i++) sequences[i] = (uint16_t)(get16(a + 2) + a[4 + i]);
      fwd_resend(f, routes[route], sequences, 16);
      break;
    }
    case 3: fwd_remove_route(f, routes[route]); break;
    case 4: add_route(route); break;
    case 5: fwd_remove_stream(f, streams[stream]); break;
    case 6: add_stream(stream); break;
    case 7:
      tear_down();
      set_up();
      break;
    case 8: bind_name(peer, a[2] % NAMES); break;
    case 9: set_keys(peer, a[2] & 1); break;
    case 10: fwd_set_feedback(f, peers[peer], a[2], ssrc); break;
    case 11:
      a[2] = (uint8_t)(0x80 | (a[2] & 0x3f));
      a[3] = (uint8_t)(200 + a[3] % 8);
      fwd_send_rtcp(f, peers[peer], a + 2, 60);
      break;
    case 12: take_all(); break;
    case 13: {
      uint16_t missing[64];
      fwd_missing(f, streams[stream], get16(a + 3), missing, 64);
      fwd_stream_stats_t of_stream;
      fwd_stream_stats(f, streams[stream], &of_stream);
      fwd_route_stats_t of_route;
      fwd_route_stats(f, routes[route], &of_route);
      fwd_peer_stats_t of_peer;
      fwd_peer_stats(f, peers[peer], &of_peer);
      break;
    }
    case 14: fwd_ignore_ssrc(f, peers[peer], ssrc); break;
    case 15: fwd_set_rtx_ssrc(f, streams[stream], ssrc); break;
    case 16:
      fwd_tap(f, streams[stream], (int8_t)a[3]);
      if (a[4] & 1) fwd_move_tap(f, streams[stream], streams[a[5] % STREAMS]);
      if (a[4] & 2) fwd_stay(f, streams[stream]);
      break;
    case 17: {
      uint16_t numbers[64];
      int64_t times[64];
      fwd_take_arrivals(f, peers[peer], numbers, times, 64);
      break;
    }
    case 18:
      gso_fails = a[1] & 1;
      fwd_set_measured(f, peers[a[2] % PEERS], !(a[3] & 1));
      break;
    case 19: fwd_send_padding(f, routes[route], get16(a + 2) % 5000); break;
    case 20: {
      fwd_feedback_t feedback;
      fwd_group_t groups[MAX_GROUPS];
      if (a[4] & 1) fwd_watch_feedback(f, peers[peer], get16(a + 5), a[7], &feedback);
      int taken = fwd_take_feedback(f, peers[peer], &feedback, groups, a[2] & 1 ? MAX_GROUPS : a[3]);
      insist(taken >= 0 && taken <= MAX_GROUPS && feedback.packets >= 0 && feedback.bytes >= 0, "feedback is counted");
      for (int i = 0; i < taken; i++)
        insist(groups[i].packets > 0 && groups[i].first_sent_ns <= groups[i].last_sent_ns &&
                   groups[i].first_arrival_ns <= groups[i].last_arrival_ns,
               "a group of packets begins before it ends");
      break;
    }
    case 21: {
      int64_t counts[16];
      fwd_set_layers(f, routes[route], a[2] & 4 ? 255 : a[2] & 3, a[3] & 4 ? 255 : a[3] & 3);
      fwd_layer_bytes(f, streams[stream], counts);
      break;
    }
    case 22: fwd_set_pace(f, peers[peer], get16(a + 2) * (int64_t)(a[4] & 15)); break;
    default: fwd_set_extensions(f, peers[peer], a[2] & 1 ? extensions : other, 5);
  }
}

/* Memory of exactly a packet's size: what is read behind its end would be another peer's packet. */
static void datagram(int from, const uint8_t *data, size_t size) {
  size_t plain = size < MAX_PACKET_BYTES ? size : MAX_PACKET_BYTES, length = plain;
  bool rtp = plain > 1 && data[0] >> 6 == 2 && (data[1] < 192 || data[1] > 223);
  const struct peer *peer = path_peer(f, (const uint8_t *)&names[from], from == SIX);
  if (rtp && peer && peer->rx_gcm.context && plain + 16 <= MAX_PACKET_BYTES) length += 16; /* a tag */
  uint8_t *packet = calloc(1, length ? length : 1);
  if (!packet) abort();
  if (plain) memcpy(packet, data, plain);
  forwarder_enter(f);
  path_datagram(f, from == SIX, (const uint8_t *)&names[from], packet, (int)length, f->now_ns);
  forwarder_leave(f);
  free(packet);
  packet = malloc(plain ? plain : 1);
  if (!packet) abort();
  if (plain) memcpy(packet, data, plain);
  fwd_parse_for_test(packet, plain);
  free(packet);
}

static void step(uint8_t what, const uint8_t *data, size_t size) {
  int64_t pause = what >> 3;
  int64_t at = (int64_t)clock_now.tv_sec * 1000000000 + clock_now.tv_nsec + pause * pause * 1000000 + 100000;
  clock_now = (struct timespec){at / 1000000000, at % 1000000000};
  if ((what & 7) == CALL)
    call(data, size);
  else
    datagram(what & 7 & (what & 4 ? SIX : 7), data, size);
  forwarder_enter(f);
  send_feedback(f);
  pace_release(f);
  forwarder_leave(f);
}

struct step { uint8_t what; size_t size; const uint8_t *data; };

static int split(const uint8_t *data, size_t size, struct step *steps) {
  int count = 0;
  for (size_t at = 0; at + 3 <= size && count < STEPS; count++) {
    size_t length = get16(data + at + 1), left = size - at - 3;
    steps[count] = (struct step){data[at], length < left ? length : left, data + at + 3};
    at += 3 + steps[count].size;
  }
  return count;
}

static size_t join(const struct step *steps, int count, uint8_t *out, size_t room) {
  size_t at = 0;
  for (int i = 0; i < count && at + 3 + steps[i].size <= room; i++) {
    out[at] = steps[i].what;
    put16(out + at + 1, (uint32_t)steps[i].size);
    memcpy(out + at + 3, steps[i].data, steps[i].size);
    at += 3 + steps[i].size;
  }
  return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct step steps[STEPS];
  clock_now = (struct timespec){.tv_sec = 1000};
  if (!f) open_forwarder();
  set_up();
  int count = split(data, size, steps);
  for (int i = 0; i < count; i++) step(steps[i].what, steps[i].data, steps[i].size);
  tear_down();
  return 0;
}

/* --- mutation: steps come, go and change places; the bytes of one step change */

static uint64_t state;
static uint32_t draw(uint32_t below) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return (uint32_t)(state >> 33) % below;
}

#ifdef LIBFUZZER
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);
#define change_bytes LLVMFuzzerMutate
#else
static size_t change_bytes(uint8_t *data, size_t size, size_t room) {
  for (uint32_t flips = 1 + draw(5); size && flips; flips--) data[draw((uint32_t)size)] = (uint8_t)draw(256);
  if (draw(4) == 0) return draw((uint32_t)size + 1);
  if (draw(8) == 0 && size + 8 < room) {
    memset(data + size, (int)draw(256), 8);
    return size + 8;
  }
  return size;
}
#endif

static void change_step(struct step *chosen, const struct step *another, uint8_t *scratch) {
  if (chosen->size) memcpy(scratch, chosen->data, chosen->size);
  chosen->data = scratch;
  switch (draw(6)) {
    case 0: chosen->what = (uint8_t)draw(256); break;
    case 1: chosen->what = (uint8_t)((chosen->what & 0xf8) | draw(6)); break;
    case 2: /* a number near another packet's */
      if (chosen->size > 3 && another->size > 3)
        put16(scratch + 2, (uint32_t)get16(another->data + 2) + draw(5) - 2 + (draw(8) ? 0 : 0x8000));
      break;
    case 3: /* the SSRC of another step */
      if (chosen->size > 11 && another->size > 11) memcpy(scratch + 8, another->data + 8, 4);
      break;
    default: chosen->size = change_bytes(scratch, chosen->size, MAX_PACKET_BYTES + 100);
  }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) {
  static struct step steps[STEPS + 1];
  static uint8_t scratch[8][1 << 16], made[INPUT_BYTES];
  state = seed;
  int count = split(data, size, steps);
  for (int rounds = 1 + (int)draw(4), used = 0; rounds && used < 8; rounds--) {
    int at = (int)draw((uint32_t)count + 1), from = (int)draw((uint32_t)count + 1);
    switch (count ? draw(8) : 0) {
      case 0: /* a call, or a short datagram */
        if (count == STEPS) break;
        for (int i = 0; i < 8; i++) scratch[used][i] = (uint8_t)draw(256);
        memmove(steps + at + 1, steps + at, (size_t)(count++ - at) * sizeof *steps);
        steps[at] = (struct step){draw(4) ? (uint8_t)(draw(8) << 3 | CALL) : (uint8_t)draw(256), 8, scratch[used++]};
        break;
      case 1: /* again, elsewhere */
        if (count == STEPS || from == count) break;
        struct step again = steps[from];
        memmove(steps + at + 1, steps + at, (size_t)(count++ - at) * sizeof *steps);
        steps[at] = again;
        break;
      case 2: /* away */
        if (at == count || count == 1) break;
        memmove(steps + at, steps + at + 1, (size_t)(--count - at) * sizeof *steps);
        break;
      case 3: /* in another's place */
        if (at == count || from == count) break;
        struct step moved = steps[at];
        steps[at] = steps[from];
        steps[from] = moved;
        break;
      default:
        if (at == count || from == count) break;
        change_step(&steps[at], &steps[from], scratch[used++]);
    }
  }
  size = join(steps, count, made, room < sizeof made ? room : sizeof made);
  memcpy(data, made, size);
  return size;
}

#ifndef LIBFUZZER
enum { SEEDS = 4096 };

int main(int count, char **arguments) {
  static uint8_t *seeds[SEEDS];
  static size_t sizes[SEEDS];
  static uint8_t input[INPUT_BYTES];
  uint32_t seed_count = 0;
  if (count < 4) return 2;
  for (int i = 3; i < count && seed_count < SEEDS; i++) {
    FILE *file = fopen(arguments[i], "rb");
    if (!file || !(seeds[seed_count] = malloc(sizeof input))) return 2;
    sizes[seed_count] = fread(seeds[seed_count], 1, sizeof input, file);
    fclose(file);
    LLVMFuzzerTestOneInput(seeds[seed_count], sizes[seed_count]); /* as it is, first */
    seed_count++;
  }
  uint64_t drawn = strtoull(arguments[2], NULL, 10);
  struct timespec begun, now;
  clock_gettime(CLOCK_MONOTONIC, &begun);
  unsigned long done = seed_count;
  for (;; done++) {
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec - begun.tv_sec >= atol(arguments[1])) break;
    state = drawn + done;
    uint32_t chosen = (draw(2), draw(seed_count));
    memcpy(input, seeds[chosen], sizes[chosen]);
    size_t size = LLVMFuzzerCustomMutator(input, sizes[chosen], sizeof input, (unsigned)(drawn + done));
    LLVMFuzzerTestOneInput(input, size);
  }
  fwd_stats_t stats;
  fwd_stats(f, &stats);
  fwd_close(f);
  for (uint32_t i = 0; i < seed_count; i++) free(seeds[i]);
  printf("%lu conversations, %lld packets sent\n", done, (long long)stats.datagrams_sent);
  return 0;
}
#endif
