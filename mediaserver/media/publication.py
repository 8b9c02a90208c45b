"""A publication: one track that a participant sends, and what we ask of its sender."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from mediaserver.forwarder.interface import Gap, Keyframe, NewSsrc, StreamParameters
from mediaserver.media import answer
from mediaserver.media.feedback import (
    SERVER_SSRC,
    KeyframeRequester,
    Line,
    NackGenerator,
    ReceptionReporter,
)
from mediaserver.media.sdp import Codec, MediaOffer
from mediaserver.media.transport import Transport
from recorder import rtcp
from recorder.ids import uuid7
from recorder.records import TrackInfo

if TYPE_CHECKING:
    from mediaserver.media.subscription import Subscription

_log = structlog.get_logger(__name__)
MISSING_SPAN = 1_024
"""Packets looked back over for missing ones, as many as the forwarder knows of: 2 s of 5 Mbit/s."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who publishes, as tracks and events name him."""

    identity: str
    seat: str
    role: str
    name: str


@dataclass(eq=False)
class Publication:
    """One m-line of a publishing session. ``stream`` is None until its SSRC is known and its client
    connected."""

    session: str
    peer: int
    sender: Sender
    source: str
    media: MediaOffer
    codec: Codec
    extensions: dict[str, int]
    feedback: list[str]
    transport: Transport
    tap: int
    """Number under which the forwarder hands its packets to recordings, unique in the worker."""
    rid: str = ""
    id: str = field(default_factory=lambda: str(uuid7()))
    stream: int | None = None
    ssrc: int | None = None
    rtx_ssrc: int | None = None
    muted: bool = False
    tapped: bool = False
    subscribers: set[Subscription] = field(default_factory=set)
    reporter: ReceptionReporter | None = None
    line: Line = field(default_factory=Line)
    """The sender's, shared by his publications."""
    last_fraction_lost: int = 0

    def __post_init__(self) -> None:
        self._nack = NackGenerator(self.line)
        self._keyframes = KeyframeRequester()
        self._fir = 0
        if self.media.ssrcs and not self.media.rids:
            repairs = set(self.media.repairs.values())
            self.ssrc = next((ssrc for ssrc in self.media.ssrcs if ssrc not in repairs), None)
            self.rtx_ssrc = self.media.repairs.get(self.ssrc) if self.ssrc is not None else None

    @property
    def kind(self) -> str:
        """Return ``audio`` or ``video``."""
        return self.media.kind

    @property
    def mime(self) -> str:
        """Return the codec's media type, such as ``video/VP8``."""
        return answer.mime(self.codec, self.kind)

    def begin(self, *, tap: bool) -> bool:
        """Have the forwarder take the stream if its SSRC is known; true if it is there now."""
        if self.stream is None and self.ssrc is not None:
            self.stream = self.transport.forwarder.add_stream(
                self.peer,
                self.ssrc,
                StreamParameters(
                    kind=self.kind,
                    mime=self.mime,
                    clock_rate=self.codec.clock_rate,
                    payload_type=self.codec.payload_type,
                    rtx_ssrc=self.rtx_ssrc,
                    rtx_payload_type=self.codec.rtx,
                    extensions=self.extensions,
                    track=self.tap if tap else None,
                ),
            )
            self.tapped = tap
            self.reporter = ReceptionReporter(self.ssrc)
            self.transport.watch_stream(self.stream, self)
        return self.stream is not None

    def end(self) -> None:
        """Take the stream from the forwarder; routes to subscribers stay, silent."""
        if self.stream is not None:
            self.transport.forget_stream(self.stream)
            self.transport.forwarder.remove_stream(self.stream)
            self.stream = None

    def set_tap(self, tap: bool) -> None:
        """Begin or stop handing the packets to recordings."""
        if self.stream is not None and tap != self.tapped:
            self.transport.forwarder.tap(self.stream, self.tap if tap else None)
            self.tapped = tap

    def track_info(self, number: int) -> TrackInfo:
        """Describe the track for a journal."""
        return TrackInfo(
            track=number,
            identity=self.sender.identity,
            seat=self.sender.seat,
            role=self.sender.role,
            name=self.sender.name,
            kind=self.kind,
            source=self.source,
            mime=self.mime,
            clock_rate=self.codec.clock_rate,
            payload_type=self.codec.payload_type,
            ssrc=self.ssrc or 0,
            channels=self.codec.channels,
            fmtp=dict(self.codec.fmtp),
            extensions=dict(self.extensions),
            stream=f"{self.session}/{self.media.cname}",
        )

    def summary(self) -> dict[str, object]:
        """Return what events and lists say of the track."""
        return {
            "track": self.id,
            "id": self.id,
            "identity": self.sender.identity,
            "seat": self.sender.seat,
            "role": self.sender.role,
            "kind": self.kind,
            "source": self.source,
            "mime": self.mime,
            "muted": self.muted,
            "session": self.session,
        }

    def track_info_json(self, numbers: dict[str, int]) -> dict[str, object]:
        """Return its summary with the number it has in a journal."""
        return {**self.summary(), "number": numbers.get(self.id, 0)}

    # --- asking the sender

    def want_keyframe(self) -> None:
        """Have the sender asked for a keyframe, soon and until one comes."""
        if self.kind == "video" and self.stream is not None:
            now = time.monotonic_ns()
            self._keyframes.want(now)
            self._ask_keyframe(now)
            if self._keyframes.eager:
                self.transport.wake(self.stream)

    def handle_timer(self, now: int) -> int | None:
        """Ask for what is missing and due; returns when to come again, None if nothing is missing."""
        if self.stream is None:
            return None
        if self._nack.pending:
            still = self.transport.forwarder.missing(self.stream, MISSING_SPAN)
            resends = self.codec.rtx is not None
            recovered = self.transport.forwarder.stream_stats(self.stream).recovered if resends else None
            sequences = self._nack.to_ask(still, now, recovered=recovered, recorded=self.tapped)
            self._mend()
            if sequences and self.ssrc is not None:
                packet = rtcp.Nack(SERVER_SSRC, self.ssrc, tuple(sequences))
                self.transport.counters.nacks_sent += 1
                self._send(packet)
        self._ask_keyframe(now)
        if self._nack.pending:
            return now
        return self._keyframes.next_ns() if self._keyframes.eager else None

    def keyframe_came(self, event: Keyframe) -> None:
        """Note a keyframe: nobody waits any more."""
        self._keyframes.came(event.arrival_ns)

    def gap_seen(self, event: Gap) -> None:
        """Note skipped numbers, to be asked for again if the sender keeps packets."""
        if "nack" not in self.feedback:
            return
        self._nack.add(event.first, event.last, event.arrival_ns)
        self._mend()

    def found_ssrc(self, event: NewSsrc) -> bool:
        """Take an SSRC as ours, main or retransmission, if payload type and layer fit; false if it is not."""
        if event.payload_type == self.codec.rtx and self.codec.rtx is not None:
            if self.rid and event.repaired_rid and event.repaired_rid != self.rid:
                return False
            self.rtx_ssrc = event.ssrc
            if self.stream is not None:
                self.transport.forwarder.set_rtx_ssrc(self.stream, event.ssrc)
                return True
            return False
        if event.payload_type != self.codec.payload_type or self.stream is not None:
            return False
        if self.rid and event.rid and event.rid != self.rid:
            return False
        self.ssrc = event.ssrc
        return True

    def _mend(self) -> None:
        # Viewers ask by themselves; a recording that nobody watches would stand still for ever.
        if self._nack.broken:
            self._nack.broken = False
            self.want_keyframe()

    def _ask_keyframe(self, now: int) -> None:
        if self.ssrc is None or not self._keyframes.should_ask(now):
            return
        self.transport.counters.keyframe_requests += 1
        if "nack pli" in self.feedback or "ccm fir" not in self.feedback:
            self._send(rtcp.PictureLossIndication(SERVER_SSRC, self.ssrc))
        else:
            self._fir += 1
            self._send(rtcp.FullIntraRequest(SERVER_SSRC, ((self.ssrc, self._fir & 255),)))

    def _send(self, packet: rtcp.RtcpPacket) -> None:
        # A compound begins with a report (RFC 3550 section 6.1); reduced size (RFC 5506) is not agreed with
        # everybody.
        self.transport.forwarder.send_rtcp(self.peer, rtcp.build([rtcp.ReceiverReport(SERVER_SSRC), packet]))
