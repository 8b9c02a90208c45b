/* The forwarder's thread, its beginning and its end. */
#include "internal.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { IDLE_MS = 200, ROUNDS = 8, BUSY_DATAGRAMS = 8 };
#define NAP_NS 1000000
#define FORWARDER_NICE (-10)
#define FEEDBACK_SOON_NS 5000000

int64_t monotonic_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void forwarder_enter(forwarder_t *f) {
  pthread_mutex_lock(&f->lock);
  f->now_ns = monotonic_ns();
  /* abs-send-time: 24 bits of seconds in 6.18 fixed point; in two steps, so that nothing overflows. */
  uint64_t seconds = (uint64_t)f->now_ns / 1000000000, rest = (uint64_t)f->now_ns % 1000000000;
  f->seconds = (uint32_t)(seconds << 18 | (rest << 18) / 1000000000) & 0xffffff;
}

void forwarder_leave(forwarder_t *f) {
  sender_flush(f);
  outbox_signal(f);
  if (f->pace_due_ns < f->asleep_until_ns) { /* a call of Python's has let packets wait */
    f->asleep_until_ns = 0;
    forwarder_wake(f);
  }
  pthread_mutex_unlock(&f->lock);
}

/* Send the transport-cc feedback that is due, or will be within a moment; return when the next is, INT64_MAX if
 * never. */
static int64_t send_feedback(forwarder_t *f) {
  if (f->now_ns < f->feedback_due_ns) return f->feedback_due_ns;
  f->feedback_due_ns = INT64_MAX;
  for (uint32_t at = 0; at < f->peers.size; at++) {
    struct peer *peer = f->peers.keys[at] ? f->peers.values[at] : NULL;
    if (!peer || !peer->log.interval_ns || !peer->log.count) continue;
    if (f->now_ns + FEEDBACK_SOON_NS >= peer->log.due_ns) {
      peer->log.due_ns = f->now_ns + peer->log.interval_ns;
      uint8_t compound[MAX_PACKET_BYTES];
      uint32_t size;
      while (peer_ready(peer) && (size = log_build(&peer->log, compound)))
        peer->stats.feedback_sent += path_send_rtcp(f, peer, compound, size);
    }
    if (peer->log.count && peer->log.due_ns < f->feedback_due_ns) f->feedback_due_ns = peer->log.due_ns;
  }
  return f->feedback_due_ns;
}

static void *run(void *argument) {
  forwarder_t *f = argument;
  /* Media goes before everything else of this program; only root (or CAP_SYS_NICE) may say so, else it stays as it is. */
  setpriority(PRIO_PROCESS, 0, FORWARDER_NICE); /* of this thread alone, on Linux */
  struct epoll_event ready[MAX_SOCKETS + 1];
  int timeout = IDLE_MS;
  bool busy = false;
  while (!atomic_load(&f->closing)) {
    /* Under load a short nap makes the next batch larger: fewer wake-ups, longer runs for GSO, at most 1 ms later. */
    if (busy) nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    int ready_count = epoll_wait(f->epoll, ready, MAX_SOCKETS + 1, busy ? 0 : timeout), datagrams = 0;
    for (int at = 0; at < ready_count; at++) {
      int socket = (int)ready[at].data.u32;
      if (socket == MAX_SOCKETS) {
        uint64_t count;
        ssize_t got = read(f->wake, &count, sizeof count); /* only to reset it */
        (void)got;
        continue;
      }
      for (int round = 0; round < ROUNDS; round++) {
        forwarder_enter(f);
        f->asleep_until_ns = 0;
        int count = path_receive(f, socket);
        forwarder_leave(f);
        datagrams += count;
        if (count < BATCH) break;
      }
    }
    busy = datagrams >= BUSY_DATAGRAMS;
    forwarder_enter(f);
    f->asleep_until_ns = 0;
    int64_t due = send_feedback(f), paced = pace_release(f), signal = outbox_due(f);
    if (paced < due) due = paced;
    if (signal < due) due = signal;
    timeout = IDLE_MS;
    if (due != INT64_MAX && (due - f->now_ns) / 1000000 < timeout)
      timeout = due > f->now_ns ? (int)((due - f->now_ns) / 1000000) + 1 : 0;
    f->asleep_until_ns = due;
    forwarder_leave(f);
  }
  return NULL;
}

void forwarder_wake(forwarder_t *f) {
  uint64_t one = 1;
  ssize_t put = write(f->wake, &one, sizeof one); /* a full counter wakes as well */
  (void)put;
}

static void destroy(forwarder_t *f) {
  for (uint32_t at = 0; at < f->peers.size;) {
    if (f->peers.keys[at])
      tables_remove_peer(f, f->peers.values[at]); /* moves another one here, or leaves the place empty */
    else
      at++;
  }
  map_free(&f->peers);
  map_free(&f->streams);
  map_free(&f->routes);
  map_free(&f->bound);
  for (int i = 0; i < f->socket_count; i++) free(f->receivers[i].slots);
  free(f->sender.slots);
  free(f->paced.items);
  outbox_free(&f->outbox);
  if (f->wake >= 0) close(f->wake);
  if (f->epoll >= 0) close(f->epoll);
  pthread_mutex_destroy(&f->lock);
  free(f);
}

static bool watch(forwarder_t *f, int fd, int number) {
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)number};
  return epoll_ctl(f->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

forwarder_t *fwd_open(const int32_t *sockets, const int32_t *families, int32_t count, int32_t evented,
                      const fwd_crypto_t *crypto, uint64_t seed) {
  if (count < 1 || count > MAX_SOCKETS) return NULL;
  forwarder_t *f = calloc(1, sizeof *f);
  if (!f) return NULL;
  pthread_mutex_init(&f->lock, NULL);
  f->crypto = *crypto;
  f->evp = crypto->evp_new != NULL;
  f->outbox.fd = evented;
  f->peers.seed = f->streams.seed = f->routes.seed = f->bound.seed = seed;
  f->feedback_due_ns = f->pace_due_ns = INT64_MAX;
  f->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  f->epoll = epoll_create1(EPOLL_CLOEXEC);
  f->sender.slots = malloc((size_t)SEND_SLOTS * SLOT_BYTES);
  bool good = f->wake >= 0 && f->epoll >= 0 && f->sender.slots && watch(f, f->wake, MAX_SOCKETS);
  for (int i = 0; good && i < count; i++) {
    good = receiver_init(&f->receivers[i], sockets[i], families[i]) && watch(f, sockets[i], i);
    f->socket_count = i + 1;
  }
  /* Signals are for Python's threads. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  good = good && !pthread_create(&f->thread, NULL, run, f);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!good) {
    destroy(f);
    return NULL;
  }
  return f;
}

void fwd_close(forwarder_t *f) {
  atomic_store(&f->closing, true);
  forwarder_wake(f);
  pthread_join(f->thread, NULL);
  destroy(f);
}
