/* Taking peers, streams and routes out of the tables. */
#include "internal.h"

void tables_unbind(forwarder_t *f, struct peer *peer, int at) {
  struct name *name = &peer->addresses[at];
  uint64_t key = name_key(&f->bound, name->bytes, name->socket);
  if (map_get(&f->bound, key) == peer) map_remove(&f->bound, key);
  peer->address_count--;
  memmove(name, name + 1, (size_t)(peer->address_count - at) * sizeof *name);
}

void tables_remove_stream(forwarder_t *f, struct stream *stream) {
  struct peer *peer = stream->peer;
  for (int i = 0; i < peer->source_count; i++)
    if (peer->sources[i].stream == stream) {
      /* Its SRTP state stays, so that old packets cannot be replayed into a new stream. */
      peer->sources[i].role = ROLE_IGNORED;
      peer->sources[i].stream = NULL;
    }
  for (uint32_t i = 0; i < stream->routes.count; i++) {
    struct route *route = stream->routes.items[i];
    if (route->stream == stream) {
      route->stream = NULL;
      route->waiting = true;
    }
    if (route->pending == stream) route->pending = NULL;
  }
  stream_clear(f, stream);
  pointers_remove(&peer->streams, stream);
  map_remove(&f->streams, (uint64_t)stream->number);
  free(stream->routes.items);
  free(stream->structure);
  free(stream);
}

static void remember_sent(struct peer *peer, uint32_t ssrc, int64_t next, int64_t base) {
  for (uint32_t i = 0; i < peer->sent_count; i++)
    if (peer->sent_ssrcs[i].ssrc == ssrc) {
      peer->sent_ssrcs[i] = (struct sent_ssrc){ssrc, next, base};
      return;
    }
  /* add_route made the room: without it the same numbers could protect two packets under one key. */
  peer->sent_ssrcs[peer->sent_count++] = (struct sent_ssrc){ssrc, next, base};
}

void tables_remove_route(forwarder_t *f, struct route *route) {
  struct peer *peer = route->peer;
  pace_drop(f, peer, route);
  remember_sent(peer, route->ssrc, route->last + 1 > route->next ? route->last + 1 : route->next, route->base);
  if (route->has_rtx) remember_sent(peer, route->rtx_ssrc, route->next_rtx, route->rtx_base);
  pointers_remove(&peer->routes, route);
  if (route->stream) pointers_remove(&route->stream->routes, route);
  if (route->pending) pointers_remove(&route->pending->routes, route);
  map_remove(&f->routes, (uint64_t)route->number);
  free(route->filter);
  free(route);
}

void tables_remove_peer(forwarder_t *f, struct peer *peer) {
  while (peer->streams.count) tables_remove_stream(f, peer->streams.items[0]);
  while (peer->routes.count) tables_remove_route(f, peer->routes.items[0]);
  while (peer->address_count) tables_unbind(f, peer, peer->address_count - 1);
  for (int i = 0; i < peer->held_count; i++) free(peer->held[i]);
  map_remove(&f->peers, (uint64_t)peer->number);
  gcm_free(&f->crypto, &peer->rx_gcm);
  gcm_free(&f->crypto, &peer->tx_gcm);
  free(peer->sources);
  free(peer->streams.items);
  free(peer->routes.items);
  free(peer->sent_ssrcs);
  free(peer->log.entries);
  sent_free(&peer->sent_log);
  free(peer);
}
