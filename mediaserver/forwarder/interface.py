"""What a forwarder is: the packets' side of a media worker, decided by Python, moved by somebody else.

A forwarder owns the worker's UDP sockets and one thread. It decrypts what bound peers send, keeps receive
statistics and a cache per stream, and sends each packet on to the routes of its stream: rewritten so that
every subscriber sees one continuous stream, encrypted, coalesced. Everything that needs a decision (STUN,
DTLS, RTCP, a first packet of an unknown SSRC) comes up as an event; one eventfd says that there are some.

Two implementations hold this interface and pass the same tests: ``native`` (C) and ``python`` (batches of
system calls through cffi). Choose with ``mediaserver.forwarder.open_forwarder``.

Rules for the caller, the same for every method:

* Methods may be called from any thread; they take effect between two batches of packets, in calling order.
* Numbers of peers, streams and routes are positive, handed out by the forwarder and never used twice.
* An unknown number, a wrong key length or a full table raises ``ForwarderError``. Bytes of the network never
  raise: what is malformed, forged, replayed or too late is dropped and counted.
* Times are nanoseconds of CLOCK_MONOTONIC, arrivals the kernel's receive time stamps where it gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

from mediaserver.forwarder.counters import ForwarderStats as ForwarderStats
from mediaserver.forwarder.counters import PeerStats as PeerStats
from mediaserver.forwarder.counters import RouteStats as RouteStats
from mediaserver.forwarder.counters import SendFeedback as SendFeedback
from mediaserver.forwarder.counters import SendGroup as SendGroup
from mediaserver.forwarder.counters import StreamStats as StreamStats
from recorder.records import PacketBatch

Address = tuple[str, int]
"""Numeric host (``127.0.0.1``, ``::1``, ``fe80::1%2``) and port."""

MID: Final = "urn:ietf:params:rtp-hdrext:sdes:mid"
RID: Final = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
REPAIRED_RID: Final = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id"
TRANSPORT_CC: Final = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
ABS_SEND_TIME: Final = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
AUDIO_LEVEL: Final = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
VIDEO_ORIENTATION: Final = "urn:3gpp:video-orientation"
DEPENDENCY: Final = "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"

MAX_PEERS: Final = 4096
MAX_STREAMS: Final = 8192
MAX_ROUTES: Final = 32768
MAX_SSRCS_PER_PEER: Final = 64
"""Authenticated SSRCs a peer may use in its life, RTP and RTCP counted apart; more are dropped and
counted."""
MAX_HELD_PACKETS: Final = 64
"""Packets kept per peer for SSRCs that Python has not decided on yet."""
MAX_ADDRESSES_PER_PEER: Final = 4
MAX_PACKET_BYTES: Final = 1600
"""Longest datagram that is taken; UDP payloads of an Ethernet path are at most 1,472."""
CACHE_PACKETS: Final = 1024
"""Packets of one stream that can be resent at most (the byte cap and the age may be reached first)."""
STRAY_NS: Final = 20_000_000
"""Of the RTP from unknown addresses one packet is told of in so long: whoever goes on sending after the end
of a session, or floods us, costs no more."""
REPLAY_NS: Final = 500_000_000
"""A new video route begins with the stream's last keyframe if the cache holds it and it is not older than
this."""


class ForwarderError(Exception):
    """The caller asked for what cannot be: unknown number, wrong key, full table, closed forwarder."""


class Profile(IntEnum):
    """SRTP protection profiles by their DTLS-SRTP numbers (RFC 5764 section 4.1.2, RFC 7714 section 14.2)."""

    AES_CM_128_HMAC_SHA1_80 = 0x0001
    AEAD_AES_128_GCM = 0x0007

    @property
    def key_bytes(self) -> int:
        """Length of a master key."""
        return 16

    @property
    def salt_bytes(self) -> int:
        """Length of a master salt: 14, with AES-GCM 12."""
        return 14 if self is Profile.AES_CM_128_HMAC_SHA1_80 else 12


@dataclass(frozen=True, slots=True)
class StreamParameters:
    """One RTP stream that a peer publishes, in the publisher's own numbers."""

    kind: str
    """``audio`` or ``video``."""
    mime: str
    """``video/VP8``, ``video/H264``, ``video/VP9``, ``video/AV1`` have keyframe detection; compared without
    case."""
    clock_rate: int
    payload_type: int
    """Packets of the stream with another payload type are dropped and counted."""
    rtx_ssrc: int | None = None
    """SSRC of its RTX stream (RFC 4588), if known yet; see also ``Forwarder.set_rtx_ssrc``."""
    rtx_payload_type: int | None = None
    extensions: Mapping[str, int] = field(default_factory=dict)
    """Header extension URI to the id that the publisher uses (RFC 8285)."""
    red_payload_type: int | None = None
    """Of sound: packets of it carry their own frame and copies of ones before it (RFC 2198), all of
    ``payload_type``, or they are dropped and counted. Not for a publisher with RTX, which would not say which
    of both a resent packet is."""
    keep_ms: int = 1000
    """How long packets can be resent."""
    keep_bytes: int = 2 << 20
    """Hard cap of the stream's cache in bytes; the oldest packets go first."""
    track: int | None = None
    """Tap the stream under this number from its first held packet on; see ``Forwarder.tap``."""


@dataclass(frozen=True, slots=True)
class RouteParameters:
    """How a subscriber sees a stream, in the numbers negotiated with the subscriber."""

    ssrc: int
    payload_type: int
    rtx_ssrc: int | None = None
    """With both rtx fields NACKs are answered by RTX (RFC 4588), else by the same packet again."""
    rtx_payload_type: int | None = None
    extensions: Mapping[str, int] = field(default_factory=dict)
    """Header extension URI to the subscriber's id. Not listed here: not sent. ``MID`` carries ``mid``,
    ``TRANSPORT_CC`` the subscriber's own numbers, ``ABS_SEND_TIME`` our sending time, ``DEPENDENCY`` frame
    numbers without a jump and what of the layers is sent; the rest is copied."""
    mid: str = ""
    """Value of the MID extension, at most 16 bytes; empty: not sent."""
    red_payload_type: int | None = None
    """The subscriber takes RED (RFC 2198) under this payload type and gets such packets with all their
    blocks. Else, and always with RTX, it gets the primary block of each under ``payload_type``."""
    allow_mixed: bool = False
    """``a=extmap-allow-mixed`` was agreed: an element longer than 16 bytes may travel with two-byte
    headers."""
    first_sequence: int | None = None
    """First sequence number sent, below 2**15 so that a late joiner cannot miss the first roll-over
    (RFC 3711 section 3.3.1); ``None`` draws one."""


# --- events -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RawDatagram:
    """A datagram that is not SRTP or SRTCP: STUN from anybody, DTLS from bound addresses only; and RTP from
    unknown addresses, at most one in ``STRAY_NS``."""

    peer: int | None
    """Whom the address is bound to; ``None`` for STUN and some RTP of an unknown address. Nothing here is
    authenticated."""
    address: Address
    socket: int
    """Index of the receiving socket, as given to ``open_forwarder``."""
    data: bytes
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class Rtcp:
    """A compound RTCP packet of a peer, decrypted and authenticated, its packets' lengths checked.

    NACKs for routes have been answered already and transport-cc feedback has been counted; a compound that
    holds only these, receiver reports and SDES does not come up. Sender reports may come up to 500 ms late,
    many at once.
    """

    peer: int
    data: bytes
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class NewSsrc:
    """A peer sends an SSRC that no stream has. Said once for an SSRC.

    Its first packets (``MAX_HELD_PACKETS`` per peer) are held: ``add_stream`` or ``set_rtx_ssrc`` takes them
    as if they arrived then, with their true arrival times; ``ignore_ssrc`` throws them away.
    """

    peer: int
    ssrc: int
    payload_type: int
    mid: str
    """Value of the MID extension or an empty string; likewise the two below."""
    rid: str
    repaired_rid: str
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class Keyframe:
    """The first packet of a keyframe arrived."""

    stream: int
    timestamp: int
    """RTP time stamp as received."""
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Sequence numbers ``first`` … ``last`` (16 bit, inclusive, wrapping) were skipped. They may still come
    late."""

    stream: int
    first: int
    last: int
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class Switched:
    """A route began to send ``stream``: first packet of a new, switched or resumed route."""

    route: int
    stream: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class TapDropped:
    """Tapped packets could not be kept because nobody took them: journal it as a gap."""

    track: int
    packets: int
    from_ns: int
    to_ns: int


@dataclass(frozen=True, slots=True)
class TapMoved:
    """``stream`` has the tap of ``track`` now: what was tapped before this keyframe is of the former one."""

    track: int
    stream: int
    at_ns: int
    """Arrival of the keyframe's first packet."""


@dataclass(frozen=True, slots=True)
class FeedbackTrouble:
    """What ``watch_feedback`` watches for has come. Said once for a watch."""

    peer: int
    at_ns: int


Event = RawDatagram | Rtcp | NewSsrc | Keyframe | Gap | Switched | TapDropped | TapMoved | FeedbackTrouble

Tapped = tuple[int, int, bytes, bool]
"""``(track, arrival_ns, packet, is_rtcp)``: one decrypted RTP packet, or one compound RTCP packet of the
track's sender."""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Where tapped packets go: tap → (group from 0, track 1 … 65535 in it); a group is one journal."""

    by_tap: Mapping[int, tuple[int, int]]

    @property
    def groups(self) -> int:
        """Number of groups."""
        return 1 + max((group for group, _ in self.by_tap.values()), default=-1)


TakeBatches = Callable[[Targets], list[tuple[int, PacketBatch]]]
"""``Forwarder.take_batches``."""


class Forwarder(Protocol):
    """See the module's text for the rules of all methods."""

    @property
    def kind(self) -> str:
        """``native`` or ``python``."""
        ...

    @property
    def event_fd(self) -> int:
        """Become readable when there is something for ``take_events`` or ``take_tapped``; reset by
        ``take_events``.

        Events signal after their batch; tapped packets at most every 100 ms, so drain both on each wake.
        """
        ...

    def close(self) -> None:
        """Stop the thread and free everything. The sockets stay open: they are the caller's. Idempotent."""
        ...

    # peers
    def add_peer(self, extensions: Mapping[str, int] | None = None) -> int:
        """Make a peer: one transport of one participant. ``extensions`` as in ``set_extensions``."""
        ...

    def remove_peer(self, peer: int) -> None:
        """Forget a peer, its keys, addresses, streams, and the routes to it."""
        ...

    def set_extensions(self, peer: int, extensions: Mapping[str, int]) -> None:
        """Say which header extension ids the peer uses (URI to id): for ``NewSsrc`` and the transport-cc
        arrival log."""
        ...

    def bind(self, peer: int, address: Address, socket: int = 0) -> None:
        """Accept media from ``address`` as the peer's, and send to it from now on.

        Only after a STUN check with valid integrity. An address bound to another peer moves. The last
        ``MAX_ADDRESSES_PER_PEER`` addresses stay good for receiving.
        """
        ...

    def set_keys(
        self, peer: int, profile: Profile, rx_key: bytes, rx_salt: bytes, tx_key: bytes, tx_salt: bytes
    ) -> None:
        """Set the SRTP master keys and salts of both directions. Again: begins anew with fresh replay
        state."""
        ...

    # streams
    def add_stream(self, peer: int, ssrc: int, parameters: StreamParameters) -> int:
        """Make a stream of a peer's SSRC and take its held packets. An SSRC the peer uses already raises."""
        ...

    def remove_stream(self, stream: int) -> None:
        """Forget a stream and its cache. Its routes stay, silent, until ``switch`` gives them another
        stream."""
        ...

    def set_rtx_ssrc(self, stream: int, ssrc: int) -> None:
        """Say that ``ssrc`` of the same peer is the stream's RTX (learned from ``NewSsrc.repaired_rid`` or
        the payload type)."""
        ...

    def ignore_ssrc(self, peer: int, ssrc: int) -> None:
        """Drop an SSRC of a peer for good."""
        ...

    def layer_bytes(self, stream: int) -> list[list[int]]:
        """Return the payload octets received of each spatial layer (4) and in it of each temporal one (4).

        Higher ones count as the highest of these; a stream without layers has zeros, or all in the first.
        """
        ...

    def missing(self, stream: int, span: int = 512) -> list[int]:
        """Return the sequence numbers (16 bit, in order) among the last ``span`` that did not come, at most
        256."""
        ...

    def tap(self, stream: int, track: int | None) -> None:
        """Copy the stream's packets as received (RTX unwrapped) and its sender's RTCP to ``take_tapped``;
        ``None`` ends it."""
        ...

    def move_tap(self, stream: int, to: int) -> None:
        """Let the stream ``to`` take over the tap of ``stream`` at its next keyframe: see ``TapMoved``.

        No packet is tapped twice or not at all, also when the keyframe's first packet had to be resent.
        Without a keyframe that we can tell it is the next packet. Asked again, the last wish counts;
        ``stay``, and ``tap`` of ``to``, or of ``stream`` with ``None``, take it back.
        """
        ...

    def stay(self, stream: int) -> bool:
        """Call a move of a tap to ``stream`` off; false if it has taken place and ``TapMoved`` is told."""
        ...

    # routes
    def add_route(self, stream: int, peer: int, parameters: RouteParameters) -> int:
        """Send ``stream`` to ``peer``. Video begins at a keyframe: one not older than ``REPLAY_NS`` in the
        cache, else the next."""
        ...

    def remove_route(self, route: int) -> None:
        """End a route."""
        ...

    def switch(
        self, route: int, stream: int, *, payload_type: int | None = None, rtx_payload_type: int | None = None
    ) -> None:
        """Send another stream on the route, continuous in sequence, time stamp and picture ids.

        Video whose keyframes we can tell switches at the next keyframe of the new stream, the old one being
        sent until then; everything else at the next packet. A payload type is for another codec.
        """
        ...

    def pause(self, route: int, paused: bool) -> None:
        """Stop or go on sending. No sequence numbers are skipped; video goes on at the next keyframe."""
        ...

    def set_layers(self, route: int, spatial: int | None, temporal: int | None) -> None:
        """Send only up to a spatial and a temporal layer, each from 0, of a stream that has some; ``None``:
        all.

        Down at the next picture, spatially up at the next keyframe, temporally up where the stream says that
        one can. Sent numbers have no holes by it; the last packet that is sent of a picture has the marker.
        """
        ...

    def resend(self, route: int, sequences: Sequence[int]) -> int:
        """Send packets (numbers as the subscriber knows them) again; return how many were. NACKs do this by
        themselves."""
        ...

    def send_padding(self, route: int, size: int) -> int:
        """Fill the line to a subscriber with ``size`` bytes or a little more; return the bytes sent.

        They are the last packets again as RTX, or RTX packets of nothing but padding; at most 64 at once,
        none where there is no RTX or the route waits.
        """
        ...

    # datagrams
    def send_rtcp(self, peer: int, data: bytes) -> bool:
        """Encrypt and send a compound RTCP packet; ``False`` if the peer has no keys or no address yet."""
        ...

    def send_raw(self, address: Address, data: bytes, socket: int = 0) -> None:
        """Send a datagram as it is (STUN, DTLS)."""
        ...

    def authentic(self, peer: int, data: bytes) -> bool:
        """Tell whether an RTP packet from an unknown address is a peer's: of a stream of it, under its keys,
        and newer than all that came (RFC 3711 section 3.3.2). The packet is not received by that."""
        ...

    def set_feedback(self, peer: int, interval_ms: int, sender_ssrc: int = 1) -> None:
        """Send transport-cc feedback to a publisher every ``interval_ms`` (0: never), if it sends numbers."""
        ...

    def take_arrivals(self, peer: int) -> list[tuple[int, int]]:
        """Take the log of ``(transport-cc number, arrival_ns)``, oldest first, at most the last 4,096.

        For callers that build feedback themselves: the log is kept for them only while ``set_feedback`` is
        off.
        """
        ...

    def set_measured(self, peer: int, measured: bool) -> None:
        """Say whether what is sent to a peer carries transport-cc numbers and sending times, where its routes
        have such extensions; true at first. Without them a client sends no feedback. What is sent again by
        the same number stays as it was."""

    def set_pace(self, peer: int, bps: int) -> None:
        """Send video to a peer no faster than ``bps``; 0, as at first: as it comes. Sound, what is sent again
        and padding do not wait, but all except padding counts. No packet waits longer than 250 ms; a peer's
        oldest leave sooner when more than 512 wait, or more than 64 MiB for all peers. See ``pace.py``."""

    def watch_feedback(self, peer: int, way_ns: int, lost: int) -> SendFeedback:
        """Take what a subscriber's feedback has told, but for the bursts, which stay for ``take_feedback``;
        and raise ``FeedbackTrouble`` once a packet is told to have been longer under way than ``way_ns``
        (arrival in its clock less sending in ours), ``lost`` packets or more are told as lost, or packets
        leave and no feedback has come for 500 ms. ``take_feedback`` ends the watch."""

    def take_feedback(self, peer: int) -> SendFeedback:
        """Take what the transport-cc feedback of a subscriber has told of the packets sent to it.

        The last 2,048 numbers are known; times of sending are those of the batch.
        """
        ...

    # results
    def take_events(self) -> list[Event]:
        """Take all events, oldest first. The queues are bounded; what does not fit is dropped and counted."""
        ...

    def take_tapped(self) -> list[Tapped]:
        """Take all tapped packets, in the order in which they were taken off the sockets; what came after a
        ``TapMoved`` that was not taken yet waits for it."""
        ...

    def take_batches(self, targets: Targets) -> list[tuple[int, PacketBatch]]:
        """Take all tapped packets as ``(group, batch)``, in order within a group; those without a target are
        left out. Give the same object while the targets stay the same.
        """
        ...

    def stats(self) -> ForwarderStats:
        """Return the counters of the whole forwarder."""
        ...

    def peer_stats(self, peer: int) -> PeerStats:
        """Return a peer's counters."""
        ...

    def stream_stats(self, stream: int) -> StreamStats:
        """Return a stream's receive statistics."""
        ...

    def received_bytes(self, stream: int) -> int:
        """Return ``StreamStats.bytes`` alone, for who asks often."""
        ...

    def route_stats(self, route: int) -> RouteStats:
        """Return a route's send statistics."""
        ...
