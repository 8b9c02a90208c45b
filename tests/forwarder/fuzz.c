/* A fuzzer of everything native that reads bytes from the network, behind a null cipher, so that hostile bytes reach the
 * parsers, the cache, the rewriting, the feedback and the events as if a peer with good keys had sent them.
 *
 * Alone: fuzz SECONDS SEED FILE…, each file a seed packet. With -DLIBFUZZER: clang's -fsanitize=fuzzer drives it. */
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

static int null_cipher(void *session, void *packet, int *length) {
  (void)session;
  (void)packet;
  (void)length;
  return 0;
}

static forwarder_t *f;
static int64_t peers[2], now_ns = 1;
static struct sockaddr_in6 names[3];

static void set_up(void) {
  int32_t sockets[1], families[1] = {AF_INET};
  int sink = socket(AF_INET, SOCK_DGRAM, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t length = sizeof address;
  sockets[0] = socket(AF_INET, SOCK_DGRAM, 0);
  if (bind(sockets[0], (struct sockaddr *)&address, sizeof address) || bind(sink, (struct sockaddr *)&address, length) ||
      getsockname(sink, (struct sockaddr *)&address, &length))
    abort();
  fwd_crypto_t crypto = {.srtp_protect = null_cipher,
                         .srtp_unprotect = null_cipher,
                         .srtp_protect_rtcp = null_cipher,
                         .srtp_unprotect_rtcp = null_cipher};
  f = fwd_open(sockets, families, 1, eventfd(0, EFD_NONBLOCK), &crypto, 42);
  if (!f) abort();
  static const fwd_extension_t extensions[] = {{1, 1}, {2, 2}, {3, 3}, {4, 4}, {5, 5}, {6, 6}, {7, 7}};
  static const fwd_extension_t other[] = {{1, 9}, {4, 8}, {5, 200}, {6, 6}, {7, 5}};
  for (int i = 0; i < 2; i++) {
    struct sockaddr_in name = address;
    if (i) name.sin_addr.s_addr = htonl(0x7f000002);
    memcpy(&names[i], &name, sizeof name);
    peers[i] = fwd_add_peer(f);
    fwd_bind(f, peers[i], (uint8_t *)&name, sizeof name, 0);
    fwd_set_keys(f, peers[i], NULL, NULL, 0, NULL, NULL, NULL, NULL);
    fwd_set_extensions(f, peers[i], extensions, 7);
    fwd_set_feedback(f, peers[i], 1, 5);
  }
  for (int codec = 0; codec <= 4; codec++) {
    fwd_stream_parameters_t s = {.ssrc = 0x1111u + (uint32_t)codec,
                                 .rtx_ssrc = 0x9990u + (uint32_t)codec,
                                 .has_rtx_ssrc = 1,
                                 .clock_rate = 90000,
                                 .video = 1,
                                 .codec = codec,
                                 .payload_type = 96,
                                 .rtx_payload_type = 97,
                                 .track = codec,
                                 .keep_ms = 1000,
                                 .keep_bytes = 1 << 18,
                                 .extensions = extensions,
                                 .extension_count = 7};
    int64_t stream = fwd_add_stream(f, peers[0], &s);
    for (int i = 0; i < 2; i++) {
      fwd_route_parameters_t r = {.ssrc = 0x2222u + 2u * (uint32_t)codec + (uint32_t)i,
                                  .rtx_ssrc = 0x3332u + 2u * (uint32_t)codec,
                                  .payload_type = 111,
                                  .rtx_payload_type = i ? 112 : -1,
                                  .allow_mixed = i,
                                  .mid = (const uint8_t *)"mid",
                                  .mid_length = 3,
                                  .extensions = i ? other : extensions,
                                  .extension_count = i ? 5 : 7};
      if (stream < 0 || fwd_add_route(f, stream, peers[1], &r) < 0) abort();
    }
  }
  names[2] = names[0];
  ((struct sockaddr_in *)&names[2])->sin_port = htons(9);
}

static void one(const uint8_t *data, size_t size) {
  static unsigned count;
  if (size < 1) return;
  uint8_t packet[SLOT_BYTES] = {0};
  uint8_t choice = data[0];
  size_t length = size - 1 < MAX_PACKET_BYTES ? size - 1 : MAX_PACKET_BYTES;
  memcpy(packet, data + 1, length);
  now_ns += 100000;
  forwarder_enter(f);
  path_datagram(f, 0, (const uint8_t *)&names[choice % 8 == 7 ? 2 : choice & 1], packet, (int)length, now_ns);
  forwarder_leave(f);
  fwd_parse_for_test(data + 1, length);
  if (++count % 256 == 0) {
    const uint8_t *taken;
    fwd_take_events(f, &taken);
    fwd_take_tapped(f, &taken);
  }
}

#ifdef LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!f) set_up();
  one(data, size);
  return 0;
}
#else
static uint64_t state;
static uint32_t draw(uint32_t below) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return (uint32_t)(state >> 33) % below;
}

int main(int count, char **arguments) {
  static uint8_t seeds[64][MAX_PACKET_BYTES + 1];
  static size_t sizes[64];
  if (count < 4) return 2;
  int seed_count = 0;
  for (int i = 3; i < count && seed_count < 64; i++) {
    FILE *file = fopen(arguments[i], "rb");
    if (!file) return 2;
    sizes[seed_count] = fread(seeds[seed_count], 1, sizeof seeds[0], file);
    fclose(file);
    seed_count += sizes[seed_count] > 0;
  }
  state = strtoull(arguments[2], NULL, 10);
  set_up();
  struct timespec begun, now;
  clock_gettime(CLOCK_MONOTONIC, &begun);
  unsigned long done = 0;
  do {
    for (int round = 0; round < 1000; round++, done++) {
      uint8_t packet[MAX_PACKET_BYTES + 1];
      int chosen = (int)draw((uint32_t)seed_count);
      size_t size = sizes[chosen];
      memcpy(packet, seeds[chosen], size);
      packet[0] = (uint8_t)draw(256);
      for (uint32_t flips = draw(6); flips; flips--) packet[draw((uint32_t)size)] = (uint8_t)draw(256);
      if (size > 5 && draw(2)) packet[3] = (uint8_t)done, packet[4] = (uint8_t)(done >> 8); /* a sequence number */
      if (draw(4) == 0) size = 1 + draw((uint32_t)size);
      one(packet, size);
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
  } while (now.tv_sec - begun.tv_sec < atol(arguments[1]));
  fwd_stats_t stats;
  fwd_stats(f, &stats);
  fwd_close(f);
  printf("%lu packets, %lld sent\n", done, (long long)stats.datagrams_sent);
  return 0;
}
#endif
