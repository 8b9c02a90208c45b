"""Taking streams and routes out of the Python forwarder's tables."""

from __future__ import annotations

from mediaserver.forwarder.path import PacketPath
from mediaserver.forwarder.peer import Role
from mediaserver.forwarder.receive import Stream
from mediaserver.forwarder.route import Route


def drop_stream(path: PacketPath, stream: Stream) -> None:
    """Forget a stream; its routes stay."""
    for source in stream.peer.sources.values():
        if source.stream is stream:
            # Its SRTP state stays, so that old packets cannot be replayed into a new stream.
            source.role, source.stream = Role.IGNORED, None
    for route in stream.routes:
        if route.stream is stream:
            route.stream = None
            route.waiting = True
        if route.pending is stream:
            route.pending = None
    stream.routes, stream.track = [], None
    stream.clear()
    stream.peer.streams.discard(stream)
    del path.streams[stream.number]


def drop_route(path: PacketPath, route: Route) -> None:
    """Forget a route, but for the numbers it has used."""
    peer = route.peer
    path.paced.drop(peer, route)
    peer.sent_ssrcs[route.ssrc] = max(route.last + 1, route.next)
    del peer.routes[route.ssrc]
    if route.parameters.rtx_ssrc is not None:
        peer.sent_ssrcs[route.parameters.rtx_ssrc] = route.next_rtx
        del peer.routes[route.parameters.rtx_ssrc]
    for stream in (route.stream, route.pending):
        if stream is not None and route in stream.routes:
            stream.routes.remove(route)
    del path.routes[route.number]
