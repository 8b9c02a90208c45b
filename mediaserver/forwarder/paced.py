"""Packets that wait for the paces of their peers, in the Python forwarder.

They are encrypted when they leave: only then they have their transport-cc numbers and sending times.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from mediaserver.forwarder.peer import Peer
from mediaserver.forwarder.route import Route, Sent
from mediaserver.forwarder.wire import RtpPacket

MAX_PACED: Final = 512
MAX_PACED_BYTES: Final = 64 << 20
_SOON_NS: Final = 1_000_000
"""Who is due so soon is served with the others."""


class PacedPackets:
    """The queues of all peers, and their counters."""

    def __init__(self, leave: Callable[[Route, RtpPacket, Sent], int]) -> None:
        """``leave`` sends a packet and returns its bytes."""
        self.packets = self.waited_ns = self.bytes = self.dropped = 0
        """As in ``ForwarderStats``."""
        self.due_ns = inf
        """When something is to be released."""
        self._leave = leave
        self._peers: set[Peer] = set()

    def add(self, route: Route, packet: RtpPacket, size: int, now: int) -> None:
        """Let the packet wait that the route has made last."""
        peer, sent = route.peer, route.made
        assert sent is not None
        self._peers.add(peer)
        self.bytes += size
        peer.pacer.add((route, packet, sent), size, now)
        while peer.pacer and (len(peer.pacer) > MAX_PACED or self.bytes > MAX_PACED_BYTES):
            self._send(peer, now)
        self.due_ns = min(self.due_ns, peer.pacer.due_ns())

    def _send(self, peer: Peer, now: int) -> None:
        since_ns, size, item = peer.pacer.take()
        self.bytes -= size
        self.packets += 1
        self.waited_ns += now - since_ns
        peer.paced += 1
        peer.paced_ns += now - since_ns
        peer.pacer.spend(self._leave(*item), now)

    def release(self, now: int) -> float:
        """Send what is due; return when the next is (ns), infinity if nothing waits."""
        if now < self.due_ns:
            return self.due_ns
        for peer in list(self._peers):
            if not peer.ready:
                self.drop(peer)
            elif peer.pacer.due_ns() <= now + _SOON_NS:
                while peer.pacer.may_leave(now):
                    self._send(peer, now)
            if not peer.pacer:
                self._peers.discard(peer)
        self.due_ns = min((peer.pacer.due_ns() for peer in self._peers), default=inf)
        return self.due_ns

    def drop(self, peer: Peer, route: Route | None = None) -> None:
        """Drop what waits of a route, or all of a peer's."""
        for size, (_, _, sent) in peer.pacer.drop(lambda item: route is None or item[0] is route):
            sent.waiting, sent.number = False, None  # it may still be asked for, and has no number
            self.bytes -= size
            self.dropped += 1
        if not peer.pacer:
            self._peers.discard(peer)

    def set(self, peer: Peer, bps: int, now: int) -> None:
        """Set the pace of a peer; 0: what waits leaves."""
        peer.pacer.set(bps, now)
        while not bps and peer.pacer and peer.ready:
            self._send(peer, now)
