/* Batches of datagrams: recvmmsg with kernel time stamps, sendmmsg with UDP segmentation offload (GSO). */
#include "internal.h"

#include <errno.h>

enum { UDP_SEGMENT_OPTION = 103, TIMESTAMPNS_OPTION = 35, RXQ_OVFL_OPTION = 40 };

bool receiver_init(struct receiver *receiver, int fd, int family) {
  receiver->fd = fd;
  receiver->family = family;
  receiver->slots = malloc((size_t)BATCH * SLOT_BYTES);
  if (!receiver->slots) return false;
  for (int i = 0; i < BATCH; i++) {
    receiver->vectors[i] = (struct iovec){receiver->slots + (size_t)i * SLOT_BYTES, SLOT_BYTES};
    struct msghdr *header = &receiver->messages[i].msg_hdr;
    header->msg_name = &receiver->names[i];
    header->msg_iov = &receiver->vectors[i];
    header->msg_iovlen = 1;
    header->msg_control = receiver->controls[i];
  }
  return true;
}

int receiver_take(struct receiver *receiver) {
  for (int i = 0; i < BATCH; i++) {
    receiver->messages[i].msg_hdr.msg_namelen = sizeof receiver->names[i];
    receiver->messages[i].msg_hdr.msg_controllen = sizeof receiver->controls[i];
  }
  /* Nothing there, or an ICMP error of an earlier send: either way nothing was received. */
  int count = recvmmsg(receiver->fd, receiver->messages, BATCH, MSG_DONTWAIT, NULL);
  return count > 0 ? count : 0;
}

int64_t receiver_arrival(struct receiver *receiver, int slot, int64_t now_ns, int64_t offset) {
  struct msghdr *header = &receiver->messages[slot].msg_hdr;
  int64_t arrival = now_ns;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
    if (c->cmsg_level != SOL_SOCKET) continue;
    if (c->cmsg_type == TIMESTAMPNS_OPTION) {
      int64_t stamp[2]; /* seconds, nanoseconds */
      memcpy(stamp, CMSG_DATA(c), sizeof stamp);
      int64_t stamped = stamp[0] * 1000000000 + stamp[1] - offset;
      /* A step of the wallclock between receiving and now would show here: then the batch's time is better. */
      if (stamped > now_ns - 1000000000 && stamped <= now_ns) arrival = stamped;
    } else if (c->cmsg_type == RXQ_OVFL_OPTION) {
      memcpy(&receiver->kernel_dropped, CMSG_DATA(c), 4);
    }
  }
  return arrival;
}

uint8_t *sender_slot(forwarder_t *f) { return f->sender.slots + (size_t)f->sender.next * SLOT_BYTES; }

void sender_queue(forwarder_t *f, struct peer *peer, uint32_t length) {
  struct sender *s = &f->sender;
  int slot = s->next++;
  s->lengths[slot] = (uint16_t)length;
  s->following[slot] = -1;
  if (peer->last_queued < 0) {
    s->queued[s->queued_count++] = peer;
    peer->first_queued = (int16_t)slot;
  } else {
    s->following[peer->last_queued] = (int16_t)slot;
  }
  peer->last_queued = (int16_t)slot;
  if (s->next == SEND_SLOTS) sender_flush(f);
}

static void set_message(struct sender *s, int at, struct peer *peer, struct iovec *first, int count, uint32_t segment) {
  struct msghdr *header = &s->messages[at].msg_hdr;
  memset(header, 0, sizeof *header);
  header->msg_name = peer->destination.bytes;
  header->msg_namelen = peer->destination.length;
  header->msg_iov = first;
  header->msg_iovlen = (size_t)count;
  s->owners[at] = peer;
  if (count > 1) {
    header->msg_control = s->controls[at];
    header->msg_controllen = CMSG_SPACE(sizeof(uint16_t));
    struct cmsghdr *c = CMSG_FIRSTHDR(header);
    c->cmsg_level = IPPROTO_UDP;
    c->cmsg_type = UDP_SEGMENT_OPTION;
    c->cmsg_len = CMSG_LEN(sizeof(uint16_t));
    uint16_t size = (uint16_t)segment;
    memcpy(CMSG_DATA(c), &size, sizeof size);
  }
}

/* Send a message's packets one by one: there is no segmentation on this path. */
static void send_singly(forwarder_t *f, int fd, const struct msghdr *message) {
  for (size_t i = 0; i < message->msg_iovlen; i++) {
    struct msghdr single = {.msg_name = message->msg_name,
                            .msg_namelen = message->msg_namelen,
                            .msg_iov = message->msg_iov + i,
                            .msg_iovlen = 1};
    if (sendmsg(fd, &single, MSG_DONTWAIT) < 0) {
      f->stats.send_failed++;
    } else {
      f->stats.send_messages++;
      f->stats.datagrams_sent++;
    }
  }
}

static void send_messages(forwarder_t *f, int fd, int count) {
  struct sender *s = &f->sender;
  for (int done = 0; done < count;) {
    int sent = sendmmsg(fd, s->messages + done, (unsigned)(count - done), MSG_DONTWAIT);
    if (sent > 0) {
      f->stats.send_messages += sent;
      for (int i = done; i < done + sent; i++) f->stats.datagrams_sent += (int64_t)s->messages[i].msg_hdr.msg_iovlen;
      done += sent;
      continue;
    }
    struct msghdr *message = &s->messages[done].msg_hdr;
    if (message->msg_iovlen > 1 &&
        (errno == EINVAL || errno == EIO || errno == EMSGSIZE || errno == EOPNOTSUPP)) {
      s->owners[done]->gso = false;
      send_singly(f, fd, message);
    } else {
      f->stats.send_failed += (int64_t)message->msg_iovlen;
    }
    done++;
  }
}

void sender_flush(forwarder_t *f) {
  struct sender *s = &f->sender;
  if (!s->next) return;
  for (int socket = 0; socket < f->socket_count; socket++) {
    int count = 0, vector = 0;
    for (int i = 0; i < s->queued_count; i++) {
      struct peer *peer = s->queued[i];
      if (peer->destination.socket != socket) continue;
      /* Runs of equal lengths, the last one of a run possibly shorter. */
      struct iovec *first = NULL;
      int run = 0;
      uint32_t segment = 0, total = 0, last = 0;
      for (int slot = peer->first_queued; slot >= 0; slot = s->following[slot]) {
        uint32_t length = s->lengths[slot];
        if (run && (!peer->gso || last < segment || length > segment || run == MAX_SEGMENTS ||
                    total + length > MAX_MESSAGE_BYTES)) {
          set_message(s, count++, peer, first, run, segment);
          run = 0;
        }
        if (!run) {
          first = &s->vectors[vector];
          segment = length;
          total = 0;
        }
        s->vectors[vector++] = (struct iovec){s->slots + (size_t)slot * SLOT_BYTES, length};
        run++;
        total += length;
        last = length;
      }
      if (run) set_message(s, count++, peer, first, run, segment);
    }
    if (count) send_messages(f, f->receivers[socket].fd, count);
  }
  for (int i = 0; i < s->queued_count; i++) s->queued[i]->first_queued = s->queued[i]->last_queued = -1;
  s->queued_count = s->next = 0;
}

/* A key of an address for the table of bound addresses: exact for IPv4, a keyed hash for IPv6 (whose entries are
 * compared with the peer's list, so that a collision cannot move media). Never 0. */
uint64_t name_key(const struct map *map, const uint8_t *name, int socket) {
  sa_family_t family;
  memcpy(&family, name, sizeof family);
  if (family == AF_INET)
    return 1ull << 63 | (uint64_t)socket << 48 | (uint64_t)get16(name + 2) << 32 | get32(name + 4);
  uint64_t hash = map->seed ^ (uint64_t)(uint32_t)socket << 32 ^ get16(name + 2);
  for (int i = 8; i < 28; i += 4) {
    uint32_t word;
    memcpy(&word, name + i, 4);
    hash = (hash ^ word) * 0xff51afd7ed558ccdull;
    hash ^= hash >> 32;
  }
  return (hash & ~(1ull << 63)) | 1;
}
