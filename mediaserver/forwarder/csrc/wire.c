/* RTP packets as bytes; the twin of wire.py. Pure functions: any bytes in, no state, no allocation. */
#include "internal.h"

static void read_elements(struct rtp *rtp, uint32_t at, uint32_t end, bool two_byte) {
  const uint8_t *data = rtp->data;
  while (at < end && rtp->element_count < MAX_ELEMENTS) {
    uint32_t id, length;
    uint8_t byte = data[at++];
    if (byte == 0) continue;
    if (two_byte) {
      if (at >= end) return;
      id = byte;
      length = data[at++];
    } else {
      id = byte >> 4;
      if (id == 15) return;
      length = (byte & 15u) + 1;
    }
    if (at + length > end) return;
    if (id)
      rtp->elements[rtp->element_count++] =
          (struct element){.id = (uint8_t)id, .length = (uint8_t)length, .at = (uint16_t)at};
    at += length;
  }
}

bool rtp_parse(struct rtp *rtp, const uint8_t *data, uint32_t size, int64_t arrival_ns) {
  if (size < 12 || size > MAX_PACKET_BYTES || data[0] >> 6 != 2) return false;
  rtp->data = data;
  rtp->size = size;
  rtp->arrival_ns = arrival_ns;
  rtp->extended = 0;
  rtp->marker = data[1] & 0x80;
  rtp->payload_type = data[1] & 0x7f;
  rtp->sequence = get16(data + 2);
  rtp->timestamp = get32(data + 4);
  rtp->ssrc = get32(data + 8);
  rtp->element_count = 0;
  rtp->two_byte = rtp->keyframe = false;
  rtp->layer = (struct layered){0};
  uint32_t start = 12 + 4u * (data[0] & 15), end = size;
  rtp->csrcs_end = (uint16_t)start;
  if (data[0] & 0x10) {
    if (start + 4 > size) return false;
    uint32_t profile = get16(data + start), stop = start + 4 + 4u * get16(data + start + 2);
    if (stop > size) return false;
    if (profile == 0xbede) {
      read_elements(rtp, start + 4, stop, false);
    } else if ((profile & 0xfff0) == 0x1000) {
      rtp->two_byte = true;
      read_elements(rtp, start + 4, stop, true);
    }
    start = stop;
  }
  if (start > size) return false;
  if (data[0] & 0x20) {
    uint32_t padding = data[size - 1];
    if (padding == 0 || padding > size - start) return false;
    end = size - padding;
  }
  rtp->payload_start = (uint16_t)start;
  rtp->payload_end = (uint16_t)end;
  return true;
}

const struct element *rtp_element(const struct rtp *rtp, uint8_t id) {
  for (int i = 0; i < rtp->element_count; i++)
    if (rtp->elements[i].id == id) return &rtp->elements[i];
  return NULL;
}

static bool vp8_keyframe(const uint8_t *data, uint32_t start, uint32_t end) {
  /* RFC 7741: S=1, partition 0, then the P bit of the frame header (0: keyframe). */
  if ((data[start] & 0x17) != 0x10) return false;
  uint32_t at = start + 1;
  if (data[start] & 0x80) {
    if (at >= end) return false;
    uint8_t flags = data[at++];
    if (flags & 0x80) at += at < end && data[at] & 0x80 ? 2 : 1;
    if (flags & 0x40) at++;
    if (flags & 0x30) at++;
  }
  return at < end && !(data[at] & 1);
}

static bool is_h264_key(uint8_t type) { return type == 5 || type == 7; }

static bool h264_keyframe(const uint8_t *data, uint32_t start, uint32_t end) {
  /* RFC 6184: an SPS, or where none is sent in band the first slice of an IDR picture. */
  uint8_t type = data[start] & 0x1f;
  if (is_h264_key(type)) return true;
  if (type == 24) { /* STAP-A */
    for (uint32_t at = start + 1; at + 2 < end; at += 2 + get16(data + at))
      if (is_h264_key(data[at + 2] & 0x1f)) return true;
    return false;
  }
  if (type == 28 && start + 1 < end) /* FU-A */
    return data[start + 1] & 0x80 && is_h264_key(data[start + 1] & 0x1f);
  return false;
}

static bool vp9_keyframe(const uint8_t *data, uint32_t start, uint32_t end) {
  /* RFC 9628 section 4.2: not inter-picture predicted, begins a frame, lowest spatial layer. */
  uint8_t first = data[start];
  if (first & 0x40 || !(first & 0x08)) return false;
  if (!(first & 0x20)) return true;
  uint32_t at = start + 1;
  if (first & 0x80) at += at < end && data[at] & 0x80 ? 2 : 1;
  return at < end && !(data[at] & 0x0e);
}

bool is_keyframe_start(int codec, const uint8_t *data, uint32_t start, uint32_t end) {
  if (start >= end) return false;
  switch (codec) {
    case CODEC_VP8: return vp8_keyframe(data, start, end);
    case CODEC_VP9: return vp9_keyframe(data, start, end);
    case CODEC_H264: return h264_keyframe(data, start, end);
    case CODEC_AV1: return (data[start] & 0x88) == 0x08; /* N set, Z not */
    default: return false;
  }
}

struct vp8_numbers vp8_find(const uint8_t *data, uint32_t start, uint32_t end) {
  struct vp8_numbers none = {0, 0, 0}, found = none;
  if (start + 1 >= end || !(data[start] & 0x80)) return none;
  uint8_t flags = data[start + 1];
  uint32_t at = start + 2;
  if (flags & 0x80) {
    if (at >= end) return none;
    found.picture = at;
    if (data[at] & 0x80) {
      if (at + 1 >= end) return none;
      found.bits = 15;
      at += 2;
    } else {
      found.bits = 7;
      at += 1;
    }
  }
  if (flags & 0x40 && at < end) found.index = at;
  return found;
}

uint32_t vp8_picture(const uint8_t *data, struct vp8_numbers found) {
  return found.bits == 15 ? get16(data + found.picture) & 0x7fffu : data[found.picture] & 0x7fu;
}

bool rtcp_valid(const uint8_t *data, uint32_t size) {
  uint32_t at = 0;
  while (at < size) {
    if (at + 8 > size || data[at] >> 6 != 2) return false;
    uint32_t length = 4u * (get16(data + at + 2) + 1u);
    if (length < 8 || at + length > size) return false;
    at += length;
  }
  return size > 0;
}
