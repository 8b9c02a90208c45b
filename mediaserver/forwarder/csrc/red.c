/* Redundant audio (RFC 2198); the twin of red.py. Pure functions: any bytes in, no state. */
#include "internal.h"

enum { MAX_BLOCKS = 32 };

int32_t red_primary(const uint8_t *data, uint32_t start, uint32_t end, int payload_type) {
  uint32_t at = start, copies = 0;
  bool foreign = false;
  for (int blocks = 0; at < end && data[at] & 0x80; at += 4, blocks++) {
    if (blocks == MAX_BLOCKS || at + 4 > end) return RED_MALFORMED;
    foreign |= (data[at] & 0x7f) != payload_type;
    copies += get16(data + at + 2) & 0x3ffu;
  }
  if (at >= end || copies > end - at - 1) return RED_MALFORMED;
  foreign |= data[at] != payload_type;
  return foreign && payload_type >= 0 ? RED_FOREIGN : (int32_t)(at + 1 + copies);
}

void red_renumber(uint8_t *payload, uint32_t size, uint8_t payload_type) {
  uint32_t at = 0;
  for (; at < size && payload[at] & 0x80; at += 4) payload[at] = 0x80 | payload_type;
  if (at < size) payload[at] = payload_type;
}
