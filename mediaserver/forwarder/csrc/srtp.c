/* SRTP. AES-128-GCM media (RFC 7714) by EVP where Python found it; all else, and all of SRTCP, by libsrtp. */
#include "internal.h"

enum { EVP_CTRL_IV_LENGTH = 9, EVP_CTRL_GET_TAG = 16, EVP_CTRL_SET_TAG = 17, TAG_BYTES = 16 };
enum { SRTP_OK = 0, SRTP_REPLAY_FAIL = 9, SRTP_REPLAY_OLD = 10 };

static bool derive_key(const fwd_crypto_t *c, const uint8_t *key, const uint8_t *salt, uint8_t label, uint8_t *out,
                       int length) {
  /* RFC 3711 section 4.3 with a key derivation rate of 0; the 96-bit salt of GCM stands at the left (RFC 7714, 11). */
  uint8_t iv[16] = {0}, zeros[16] = {0};
  memcpy(iv, salt, 12);
  iv[7] ^= label;
  void *context = c->evp_new();
  if (!context) return false;
  int done = 0;
  bool good = c->evp_encrypt_init(context, c->evp_aes_128_ctr(), NULL, key, iv) == 1 &&
              c->evp_encrypt_update(context, out, &done, zeros, length) == 1 && done == length;
  c->evp_free(context);
  return good;
}

bool gcm_init(const fwd_crypto_t *c, struct gcm *gcm, bool derive, bool decrypt, const uint8_t *key,
              const uint8_t *salt) {
  uint8_t session_key[16], session_salt[12];
  bool good = true;
  if (derive) {
    good = derive_key(c, key, salt, 0, session_key, 16) && derive_key(c, key, salt, 2, session_salt, 12);
  } else {
    memcpy(session_key, key, 16);
    memcpy(session_salt, salt, 12);
  }
  void *context = good ? c->evp_new() : NULL;
  if (context) {
    if (decrypt)
      good = c->evp_decrypt_init(context, c->evp_aes_128_gcm(), NULL, session_key, NULL) == 1;
    else
      good = c->evp_encrypt_init(context, c->evp_aes_128_gcm(), NULL, session_key, NULL) == 1;
    if (!good) {
      c->evp_free(context);
      context = NULL;
    }
  }
  gcm->context = context;
  memcpy(gcm->salt, session_salt, 12);
  explicit_bzero(session_key, sizeof session_key);
  explicit_bzero(session_salt, sizeof session_salt);
  return context != NULL;
}

void gcm_free(const fwd_crypto_t *c, struct gcm *gcm) {
  if (gcm->context) c->evp_free(gcm->context);
  explicit_bzero(gcm, sizeof *gcm);
}

/* RFC 7714 section 8.1: zeros, SSRC, roll-over counter, sequence number, all exclusive-or the salt. */
static void make_iv(const struct gcm *gcm, const uint8_t *packet, uint64_t index, uint8_t iv[12]) {
  iv[0] = iv[1] = 0;
  memcpy(iv + 2, packet + 8, 4);
  put32(iv + 6, (uint32_t)(index >> 16));
  put16(iv + 10, (uint32_t)index & 0xffff);
  for (int i = 0; i < 12; i++) iv[i] ^= gcm->salt[i];
}

/* Length of the header, which is authenticated and not encrypted; -1 if it runs over the packet's end. */
static int header_length(const uint8_t *packet, int length) {
  if (length < 12 || packet[0] >> 6 != 2) return -1;
  int at = 12 + 4 * (packet[0] & 15);
  if (packet[0] & 0x10) {
    if (at + 4 > length) return -1;
    at += 4 + 4 * get16(packet + at + 2);
  }
  return at <= length ? at : -1;
}

int gcm_seal(const fwd_crypto_t *c, const struct gcm *gcm, uint64_t index, uint8_t *packet, int length) {
  int head = header_length(packet, length), done = 0;
  if (head < 0) return -1;
  uint8_t iv[12];
  make_iv(gcm, packet, index, iv);
  if (c->evp_encrypt_init(gcm->context, NULL, NULL, NULL, iv) != 1 ||
      c->evp_encrypt_update(gcm->context, NULL, &done, packet, head) != 1)
    return -1;
  if (length > head && c->evp_encrypt_update(gcm->context, packet + head, &done, packet + head, length - head) != 1)
    return -1;
  if (c->evp_encrypt_final(gcm->context, packet + length, &done) != 1 ||
      c->evp_ctrl(gcm->context, EVP_CTRL_GET_TAG, TAG_BYTES, packet + length) != 1)
    return -1;
  return length + TAG_BYTES;
}

int gcm_open(const fwd_crypto_t *c, const struct gcm *gcm, uint64_t index, uint8_t *packet, int length) {
  int plain = length - TAG_BYTES, head = header_length(packet, plain), done = 0;
  if (head < 0) return -1;
  uint8_t iv[12];
  make_iv(gcm, packet, index, iv);
  if (c->evp_decrypt_init(gcm->context, NULL, NULL, NULL, iv) != 1 ||
      c->evp_ctrl(gcm->context, EVP_CTRL_SET_TAG, TAG_BYTES, packet + plain) != 1 ||
      c->evp_decrypt_update(gcm->context, NULL, &done, packet, head) != 1)
    return -1;
  if (plain > head && c->evp_decrypt_update(gcm->context, packet + head, &done, packet + head, plain - head) != 1)
    return -1;
  return c->evp_decrypt_final(gcm->context, packet + plain, &done) == 1 ? plain : -1;
}

/* RFC 3711 section 3.3.1: the index nearest to the highest one so far. */
static uint64_t guess_index(const struct source *source, uint16_t sequence) {
  if (!source || !source->begun) return sequence;
  uint64_t highest = source->highest;
  int32_t delta = (int32_t)sequence - (int32_t)(highest & 0xffff);
  if (delta > 0x8000) delta -= 0x10000;
  if (delta < -0x8000) delta += 0x10000;
  if (delta < 0 && highest < (uint64_t)-delta) delta += 0x10000; /* there is no cycle before the first */
  return highest + (uint64_t)(int64_t)delta;
}

static bool is_replay(const struct source *source, uint64_t index) {
  if (!source || !source->begun || index > source->highest) return false;
  uint64_t age = source->highest - index;
  if (age >= 64 * WINDOW_WORDS) return true;
  /* The window is a ring of bits at index modulo its size. */
  return source->window[index / 64 % WINDOW_WORDS] >> (index % 64) & 1;
}

void source_advance(struct source *source, uint64_t index) {
  if (!source->begun) {
    source->begun = true;
    source->highest = index;
    memset(source->window, 0, sizeof source->window);
  } else if (index > source->highest) {
    if (index - source->highest >= 64 * WINDOW_WORDS) {
      memset(source->window, 0, sizeof source->window);
    } else {
      for (uint64_t i = source->highest + 1; i < index; i++)
        source->window[i / 64 % WINDOW_WORDS] &= ~(1ull << (i % 64));
    }
    source->highest = index;
  }
  source->window[index / 64 % WINDOW_WORDS] |= 1ull << (index % 64);
}

int srtp_open(forwarder_t *f, struct peer *peer, struct source *source, uint64_t *index, uint8_t *packet, int length) {
  if (!peer->keyed) {
    peer->stats.auth_failed++;
    return -1;
  }
  if (peer->rx_gcm.context) {
    *index = guess_index(source, get16(packet + 2));
    if (is_replay(source, *index)) {
      peer->stats.replayed++;
      return -1;
    }
    int plain = gcm_open(&f->crypto, &peer->rx_gcm, *index, packet, length);
    if (plain < 0) peer->stats.auth_failed++;
    return plain;
  }
  int status = f->crypto.srtp_unprotect(peer->rx, packet, &length);
  if (status == SRTP_OK) return length;
  if (status == SRTP_REPLAY_FAIL || status == SRTP_REPLAY_OLD)
    peer->stats.replayed++;
  else
    peer->stats.auth_failed++;
  return -1;
}

int srtp_seal(forwarder_t *f, struct peer *peer, uint64_t index, uint8_t *packet, int length) {
  if (peer->tx_gcm.context) return gcm_seal(&f->crypto, &peer->tx_gcm, index, packet, length);
  return f->crypto.srtp_protect(peer->tx, packet, &length) == SRTP_OK ? length : -1;
}
