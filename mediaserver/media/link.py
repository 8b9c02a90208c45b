"""One client's transport: a forwarder peer, its ICE credentials and its DTLS association."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from mediaserver.forwarder.interface import Gap, Keyframe, NewSsrc, Rtcp, Switched, TapMoved
from mediaserver.media.dtls import DtlsEndpoint
from mediaserver.media.ice import Credentials


class LinkState(Enum):
    """Where a link stands. All changes happen in ``Transport``."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    CLOSED = "closed"


class LinkOwner(Protocol):
    """Whom a link tells what happens to it: its session."""

    def link_changed(self, state: LinkState, reason: str) -> None:
        """Learn the new state; CLOSED is the last, ``reason`` a stable code or empty."""

    def link_ready(self) -> None:
        """Learn that the client can decrypt what is sent from now on: our last handshake flight has left."""

    def path_changed(self) -> None:
        """Learn that the client's packets come and go by another path: what was sent to the old is lost."""

    def sends(self, ssrc: int) -> bool:
        """Tell whether a stream of the client has this SSRC."""

    def received_rtcp(self, event: Rtcp) -> None:
        """Take a compound packet of the client."""

    def found_ssrc(self, event: NewSsrc) -> None:
        """Decide what an SSRC nobody announced is."""


class StreamOwner(Protocol):
    """Whom the forwarder's news of a stream concern: its layer of a publication."""

    def keyframe_came(self, event: Keyframe) -> None:
        """Note a keyframe."""

    def gap_seen(self, event: Gap) -> None:
        """Note skipped sequence numbers."""

    def tap_moved(self, event: TapMoved) -> None:
        """Note that the stream has another one's tap."""

    def handle_timer(self, now: int) -> int | None:
        """Ask for what is due; returns when more will be (monotonic ns), None if nothing is to come."""


class TimerOwner(Protocol):
    """Whom only the clock concerns: a subscriber's bandwidth."""

    def handle_timer(self, now: int) -> int | None:
        """Do what is due; returns when more will be (monotonic ns), None if nothing is to come."""

    def trouble(self) -> None:
        """Learn that the forwarder has seen what it watches for."""


class RouteOwner(Protocol):
    """Whom the forwarder's news of a route concern: its subscription."""

    def switched(self, event: Switched) -> None:
        """Note that the route began to send a stream."""


@dataclass(slots=True)
class Link:
    """One client's transport as the worker knows it."""

    session: str
    peer: int
    owner: LinkOwner
    dtls: DtlsEndpoint
    credentials: Credentials
    state: LinkState = LinkState.CONNECTING
    extensions: dict[str, int] = field(default_factory=dict)
