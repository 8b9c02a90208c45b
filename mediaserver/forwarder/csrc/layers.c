/* Scalable streams: which layer a packet is of, and what of the layers a route sends. The twin of layers.py, whose text
 * explains it. */
#include "internal.h"

enum { SWITCH = 2, MASK = CACHE_PACKETS - 1 };

/* Bits of a descriptor, most significant first; `short_` is set by reading past the end, which gives zeros. */
struct bits { const uint8_t *data; uint32_t at, end; bool short_; };

static uint32_t take(struct bits *bits, uint32_t count) {
  uint32_t value = 0;
  if (bits->at + count > bits->end) {
    bits->short_ = true;
    return 0;
  }
  for (; count; count--, bits->at++) value = value << 1 | (bits->data[bits->at / 8] >> (7 - bits->at % 8) & 1u);
  return value;
}

/* ns(limit): a value below `limit` in as few bits as possible. */
static uint32_t below(struct bits *bits, uint32_t limit) {
  uint32_t width = 0;
  while (limit >> width) width++;
  uint32_t spare = (1u << width) - limit, value = take(bits, width - 1);
  return value < spare ? value : (value << 1 | take(bits, 1)) - spare;
}

/* Each template has a layer: the next is of the same one, of the next temporal or of the next spatial one. */
static bool read_layers(struct bits *bits, struct structure *s) {
  uint8_t spatial = 0, temporal = 0;
  while (s->templates < MAX_TEMPLATES && !bits->short_) {
    s->spatial[s->templates] = spatial;
    s->temporal[s->templates++] = temporal;
    uint32_t step = take(bits, 2);
    if (step == 3) return true;
    if (step == 1) temporal++;
    if (step == 2) {
      spatial++;
      temporal = 0;
    }
    if (spatial > 3 || temporal > 7) return false;
  }
  return false;
}

static bool read_targets(struct bits *bits, struct structure *s) {
  uint8_t told[MAX_TEMPLATES][MAX_TARGETS];
  if (bits->at + 2u * s->templates * s->targets > bits->end) return false;
  for (int i = 0; i < s->templates; i++)
    for (int k = 0; k < s->targets; k++) {
      told[i][k] = (uint8_t)take(bits, 2);
      if (!told[i][k]) continue;
      if (s->spatial[i] > s->target_spatial[k]) s->target_spatial[k] = s->spatial[i];
      if (s->temporal[i] > s->target_temporal[k]) s->target_temporal[k] = s->temporal[i];
    }
  for (int i = 0; i < s->templates; i++) {
    bool any = false;
    for (int k = 0; k < s->targets; k++) {
      if (s->target_spatial[k] != s->spatial[i] || told[i][k] != SWITCH) continue;
      if (!any || s->target_temporal[k] > s->up[i]) s->up[i] = s->target_temporal[k];
      any = true;
    }
    if (!any) s->up[i] = s->temporal[i];
  }
  return true;
}

static bool read_structure(struct bits *bits, struct structure *s) {
  memset(s, 0, sizeof *s);
  s->offset = (uint8_t)take(bits, 6);
  s->targets = (uint8_t)(take(bits, 5) + 1);
  if (!read_layers(bits, s) || !read_targets(bits, s)) return false;
  for (int i = 0; i < s->templates; i++)
    while (take(bits, 1)) take(bits, 4);
  uint32_t chains = below(bits, s->targets + 1u);
  if (chains) {
    for (int k = 0; k < s->targets; k++) below(bits, chains);
    for (uint32_t i = 0; i < s->templates * chains && !bits->short_; i++) take(bits, 4);
  }
  if (take(bits, 1))
    for (int i = 0; i <= s->spatial[s->templates - 1]; i++) take(bits, 32);
  s->active = (uint32_t)((1ull << s->targets) - 1);
  return !bits->short_;
}

static bool read_extended(struct stream *stream, const uint8_t *data, uint32_t size) {
  struct bits bits = {.data = data, .at = 24, .end = 8 * size};
  uint32_t flags = take(&bits, 5);
  struct structure fresh, *s = stream->structure;
  if (flags & 0x10) {
    if (!read_structure(&bits, &fresh)) return false;
    fresh.generation = s ? (uint8_t)(s->generation + 1) : 0;
    s = &fresh;
  }
  if (flags & 0x08 && s) {
    uint32_t active = take(&bits, s->targets);
    if (bits.short_) return false;
    s->active = active;
  }
  if (s != &fresh) return true;
  if (!stream->structure && !(stream->structure = malloc(sizeof fresh))) return false;
  *stream->structure = fresh;
  return true;
}

static void read_dependency(struct stream *stream, const uint8_t *data, uint32_t size, struct layered *layer) {
  if (size < 3 || (size > 3 && !read_extended(stream, data, size)) || !stream->structure) return;
  const struct structure *s = stream->structure;
  uint32_t template = ((data[0] & 0x3fu) - s->offset) & (MAX_TEMPLATES - 1);
  if (template >= s->templates) return;
  *layer = (struct layered){.known = true,
                            .spatial = s->spatial[template],
                            .temporal = s->temporal[template],
                            .up = s->up[template],
                            .starts = data[0] >> 7,
                            .ends = data[0] >> 6 & 1};
}

struct layered vp9_layer(const uint8_t *data, uint32_t start, uint32_t end) {
  const struct layered none = {0};
  if (start >= end || !(data[start] & 0x20)) return none;
  uint8_t first = data[start];
  uint32_t at = start + 1;
  if (first & 0x80) at += at < end && data[at] & 0x80 ? 2 : 1;
  if (at >= end) return none;
  uint8_t told = data[at], temporal = told >> 5;
  return (struct layered){.known = true,
                          .spatial = told >> 1 & 7,
                          .temporal = temporal,
                          .up = told & 0x10 ? 7 : temporal,
                          .starts = first >> 3 & 1,
                          .ends = first >> 2 & 1};
}

void layer_read(struct stream *stream, struct rtp *rtp) {
  const struct element *told = stream->dependency_id ? rtp_element(rtp, stream->dependency_id) : NULL;
  rtp->layer = (struct layered){0};
  if (told) read_dependency(stream, rtp->data + told->at, told->length, &rtp->layer);
  if (stream->codec == CODEC_VP9) rtp->layer = vp9_layer(rtp->data, rtp->payload_start, rtp->payload_end);
  if (!rtp->layer.known) return;
  if (stream->structure) rtp->layer.generation = stream->structure->generation;
  int spatial = rtp->layer.spatial < COUNTED ? rtp->layer.spatial : COUNTED - 1;
  int temporal = rtp->layer.temporal < COUNTED ? rtp->layer.temporal : COUNTED - 1;
  stream->layer_bytes[spatial * COUNTED + temporal] += rtp->payload_end - rtp->payload_start;
}

/* --- writing a descriptor anew */

struct writer { uint8_t *data; uint32_t at; };

static void put_bits(struct writer *to, uint32_t value, uint32_t count) {
  while (count--) {
    if (to->at % 8 == 0) to->data[to->at / 8] = 0;
    if (value >> count & 1) to->data[to->at / 8] |= (uint8_t)(1 << (7 - to->at % 8));
    to->at++;
  }
}

static void copy_bits(struct writer *to, const uint8_t *data, uint32_t from, uint32_t end) {
  for (; from < end; from++) put_bits(to, data[from / 8] >> (7 - from % 8) & 1u, 1);
}

uint32_t dependency_rewrite(const uint8_t *data, uint32_t size, uint16_t frame_offset, uint32_t mask, uint32_t targets,
                            uint8_t *out) {
  memcpy(out, data, size);
  if (size < 3) return size;
  put16(out + 1, get16(data + 1) + (uint32_t)frame_offset);
  if (!targets) return size;
  struct writer to = {.data = out, .at = 24};
  if (size == 3) {
    put_bits(&to, 0x08, 5);
    put_bits(&to, mask, targets);
    return (to.at + 7) / 8;
  }
  struct bits bits = {.data = data, .at = 24, .end = 8 * size};
  struct structure told;
  uint32_t flags = take(&bits, 5);
  if (flags & 0x10 && (!read_structure(&bits, &told) || told.targets != targets)) return size;
  uint32_t middle = bits.at;
  if (flags & 0x08) take(&bits, targets);
  if (bits.short_) return size;
  put_bits(&to, flags | 0x08, 5);
  copy_bits(&to, data, 29, middle);
  put_bits(&to, mask, targets);
  copy_bits(&to, data, bits.at, bits.end);
  return (to.at + 7) / 8;
}

/* --- what a route leaves out */

struct filter *filter_new(const struct stream *stream) {
  struct filter *filter = calloc(1, sizeof *filter);
  if (!filter) return NULL;
  filter->wanted_spatial = filter->wanted_temporal = LAYERS_ALL;
  filter_begin(filter, stream ? stream->highest : 0);
  filter->begun = stream != NULL;
  filter->picture = stream ? (uint32_t)stream->stats.last_timestamp : 0;
  for (int i = 0; i < CACHE_PACKETS; i++)
    filter->window[i] = (struct judged){.spatial = LAYERS_ALL, .temporal = LAYERS_ALL};
  return filter;
}

static void note_masked(struct filter *filter) {
  if (filter->spatial != LAYERS_ALL || filter->temporal != LAYERS_ALL) filter->masked = true;
}

void filter_begin(struct filter *filter, int64_t highest) {
  filter->highest = highest;
  filter->left_out = 0;
  filter->begun = false;
  filter->spatial = filter->wanted_spatial;
  filter->temporal = filter->wanted_temporal;
  note_masked(filter);
}

static uint8_t lower(uint8_t a, uint8_t b) { return a < b ? a : b; }

/* Go down at a new picture, up at a keyframe; temporally up where the stream says that one can. */
static void advance(struct filter *filter, const struct rtp *rtp) {
  if (filter->begun && rtp->timestamp == filter->picture && !rtp->keyframe) return;
  filter->begun = true;
  filter->picture = rtp->timestamp;
  if (rtp->keyframe) {
    filter->spatial = filter->wanted_spatial;
    filter->temporal = filter->wanted_temporal;
  } else {
    const struct layered *layer = &rtp->layer;
    filter->spatial = lower(filter->spatial, filter->wanted_spatial);
    filter->temporal = lower(filter->temporal, filter->wanted_temporal);
    bool begins = layer->starts && !layer->spatial && layer->temporal <= filter->temporal;
    if (begins && layer->up > filter->temporal)
      filter->temporal = layer->up >= 7 ? filter->wanted_temporal : lower(layer->up, filter->wanted_temporal);
  }
  note_masked(filter);
}

enum verdict filter_judge(struct filter *filter, const struct rtp *rtp, struct verdict_on *on) {
  const struct layered *layer = &rtp->layer;
  int64_t number = rtp->extended;
  bool late = number <= filter->highest;
  struct judged *place = &filter->window[number & MASK];
  if (late && number <= filter->highest - CACHE_PACKETS) return LEAVE_OUT;
  if (!late) {
    int64_t missing = filter->highest + 1;
    if (missing < number - CACHE_PACKETS + 1) missing = number - CACHE_PACKETS + 1;
    struct judged now = {filter->left_out, filter->spatial, filter->temporal};
    for (; missing < number; missing++) filter->window[missing & MASK] = now;
    filter->highest = number;
    if (layer->known) advance(filter, rtp);
    *place = (struct judged){filter->left_out, filter->spatial, filter->temporal};
  }
  *on = (struct verdict_on){.shift = place->shift, .marker = rtp->marker};
  if (!layer->known) return SEND;
  if (layer->spatial > place->spatial || layer->temporal > place->temporal) {
    if (late) return FILL;
    filter->left_out++;
    return LEAVE_OUT;
  }
  if (layer->ends && layer->spatial == place->spatial) on->marker = 0x80;
  return SEND;
}

void filter_mask(const struct filter *filter, const struct stream *stream, const struct rtp *rtp,
                 struct verdict_on *on) {
  const struct structure *s = stream->structure;
  const struct layered *layer = &rtp->layer;
  if (!filter->masked || !s || !layer->known || !layer->starts || layer->spatial || layer->generation != s->generation)
    return;
  const struct judged *place = &filter->window[rtp->extended & MASK];
  on->targets = s->targets;
  for (int k = 0; k < s->targets; k++)
    if (s->target_spatial[k] <= place->spatial && s->target_temporal[k] <= place->temporal) on->mask |= 1u << k;
  on->mask &= s->active;
}
