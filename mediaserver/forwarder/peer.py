"""A peer: one transport of one participant, with its keys, addresses, SSRCs and counters."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Final

from mediaserver.forwarder.counters import PeerStats
from mediaserver.forwarder.feedback import ArrivalLog
from mediaserver.forwarder.interface import (
    MAX_SSRCS_PER_PEER,
    MID,
    REPAIRED_RID,
    RID,
    TRANSPORT_CC,
    ForwarderError,
)
from mediaserver.forwarder.pace import Pacer
from mediaserver.forwarder.sent import SendLog
from mediaserver.forwarder.wire import RtpPacket, element

if TYPE_CHECKING:
    from mediaserver.forwarder.receive import Stream
    from mediaserver.forwarder.route import Route, Sent
    from mediaserver.forwarder.sockets import Destination
    from mediaserver.forwarder.srtp import SrtpDirection

MAX_SENT_SSRCS: Final = 1024


class Role(Enum):
    """What an SSRC of a peer is."""

    MEDIA = 1
    RTX = 2
    HELD = 3
    IGNORED = 4


class Source:
    """An SSRC that a peer sends."""

    __slots__ = ("role", "stream")

    def __init__(self, role: Role, stream: Stream | None = None) -> None:
        self.role = role
        self.stream = stream


class Peer:
    """See the module's text."""

    def __init__(self, number: int, extensions: Mapping[str, int]) -> None:
        self.number = number
        self.rx: SrtpDirection | None = None
        self.tx: SrtpDirection | None = None
        self.destination: Destination | None = None
        self.addresses: list[tuple[int, bytes]] = []
        self.sources: dict[int, Source] = {}
        self.rtcp_ssrcs: set[int] = set()
        self.held: list[RtpPacket] = []
        self.streams: set[Stream] = set()
        self.routes: dict[int, Route] = {}
        """Routes to this peer by the SSRC they send, and by the SSRC of their RTX."""
        self.sent_ssrcs: dict[int, int] = {}
        """Next extended number of each SSRC ever sent to the peer. A later route of the same SSRC goes on
        there: under the same key a number must not be used for a second packet (RFC 3711 section 9.1, RFC
        7714 section 5.2)."""
        self.log = ArrivalLog()
        self.sent_log = SendLog()
        self.pacer: Pacer[tuple[Route, RtpPacket, Sent]] = Pacer()
        self.paced = self.paced_ns = 0
        self.number_sent = 0
        self.measured = True
        """What is sent carries numbers and sending times."""
        self.packets_received = self.bytes_received = self.packets_sent = self.bytes_sent = 0
        self.last_received_ns = 0
        self.auth_failed = self.replayed = self.malformed = self.refused = 0
        self.feedback_sent = self.reported = self.reported_lost = self.send_failed = 0
        self.set_extensions(extensions)

    def set_extensions(self, extensions: Mapping[str, int]) -> None:
        """Set the ids of the header extensions that the peer sends."""
        self.mid_id = extensions.get(MID, 0)
        self.rid_id = extensions.get(RID, 0)
        self.repaired_rid_id = extensions.get(REPAIRED_RID, 0)
        self.transport_cc_id = extensions.get(TRANSPORT_CC, 0)

    @property
    def ready(self) -> bool:
        """Whether packets can be sent to the peer."""
        return self.tx is not None and self.destination is not None

    def next_number(self) -> int:
        """Draw the peer's next transport-cc number."""
        number = self.number_sent & 0xFFFF
        self.number_sent += 1
        return number

    def admits(self, ssrc: int) -> bool:
        """Tell whether packets of an SSRC may be looked at: known, or there is room for one more."""
        return ssrc in self.sources or len(self.sources) < MAX_SSRCS_PER_PEER

    def admits_rtcp(self, ssrc: int) -> bool:
        """Likewise for a sender of RTCP."""
        return ssrc in self.rtcp_ssrcs or len(self.rtcp_ssrcs) < MAX_SSRCS_PER_PEER

    def claim(self, ssrc: int, role: Role, stream: Stream) -> None:
        """Give an SSRC to a stream, as media or RTX. Raises if it has a stream or the peer has too many."""
        source = self.sources.get(ssrc)
        if source is None:
            if len(self.sources) >= MAX_SSRCS_PER_PEER:
                raise ForwarderError(f"peer {self.number} has {MAX_SSRCS_PER_PEER} SSRCs already")
            self.sources[ssrc] = Source(role, stream)
            return
        if source.stream is not None:
            raise ForwarderError(f"SSRC {ssrc} of peer {self.number} has a stream already")
        source.role = role
        source.stream = stream

    def described(self, packet: RtpPacket, number: int) -> str:
        """Return the text of an extension element of a packet, empty if there is none."""
        if not number:
            return ""
        value = element(packet, number)
        return value.decode("ascii", "replace").rstrip("\0") if value else ""

    def stats(self) -> PeerStats:
        """Return the counters."""
        return PeerStats(
            packets_received=self.packets_received,
            bytes_received=self.bytes_received,
            packets_sent=self.packets_sent,
            bytes_sent=self.bytes_sent,
            last_received_ns=self.last_received_ns,
            auth_failed=self.auth_failed,
            replayed=self.replayed,
            malformed=self.malformed,
            ssrc_refused=self.refused,
            feedback_sent=self.feedback_sent,
            transport_cc_sent=self.number_sent,
            transport_cc_reported=self.reported,
            transport_cc_lost=self.reported_lost,
            send_failed=self.send_failed,
            paced=self.paced,
            paced_ns=self.paced_ns,
        )
