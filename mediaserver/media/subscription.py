"""A subscription: one m-line of a subscribing session, and what is sent on it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from mediaserver.forwarder.interface import ForwarderError, RouteParameters, Switched
from mediaserver.media import answer
from mediaserver.media.feedback import EARLY_REPORTS, SECOND_NS, forwarded_report
from mediaserver.media.publication import Publication
from mediaserver.media.sdp import Codec, MediaOffer
from mediaserver.media.transport import Transport
from recorder import rtcp

SOURCE_ORDER = {"camera": 0, "microphone": 0, "screen": 1, "document": 2}
"""Which m-line of its kind a source likes: cameras come on the first, screens on the second."""
REPORT_NS = 5 * SECOND_NS
"""As often as libwebrtc reports on sound (RFC 3550 section 6.2): one that was lost is made good."""
REST_NS = 2 * SECOND_NS + SECOND_NS // 4
"""News of the publisher waits so long after the last report, but for the first ``EARLY_REPORTS``."""
STREAM_NAMES = ("main", "screen", "document")


def draw_ssrc() -> int:
    """Draw an SSRC for what we send."""
    return secrets.randbelow(2**32 - 2) + 2


@dataclass(eq=False)
class Subscription:
    """One m-line we send on. Its SSRCs were told in the answer and never change, whoever publishes."""

    session: str
    peer: int
    media: MediaOffer
    codecs: list[Codec]
    extensions: dict[str, int]
    cname: str
    ordinal: int
    """Place among the m-lines of its kind."""
    allow_mixed: bool
    transport: Transport
    ssrc: int = field(default_factory=draw_ssrc)
    rtx_ssrc: int | None = field(default_factory=draw_ssrc)
    route: int | None = None
    publication: Publication | None = None
    source: str = ""
    """Source it last carried: its m-line is kept for it."""
    waiting: bool = False
    began: Callable[[], None] = lambda: None
    """Called when the route begins to send."""

    def __post_init__(self) -> None:
        self._heard_ns = self._reported_ns = self._reports = 0
        if all(codec.rtx is None for codec in self.codecs):
            self.rtx_ssrc = None

    @property
    def kind(self) -> str:
        """Return ``audio`` or ``video``."""
        return self.media.kind

    @property
    def stream_name(self) -> str:
        """Return the MediaStream id a browser sees: picture and sound of one stream are kept in step."""
        return STREAM_NAMES[self.ordinal] if self.ordinal < len(STREAM_NAMES) else f"spare{self.ordinal}"

    def codec_for(self, publication: Publication) -> Codec | None:
        """Return the payload type to send a publication with, None if the subscriber cannot take it."""
        for codec in self.codecs:
            if answer.mime(codec, self.kind).lower() != publication.mime.lower():
                continue
            ours, theirs = (c.fmtp.get("packetization-mode", "0") for c in (codec, publication.codec))
            if codec.name.upper() != "H264" or ours == "1" or theirs != "1":
                return codec
        return None

    def attach(self, publication: Publication) -> bool:
        """Send a publication from its next keyframe on; false if no codec fits. Its stream must be there."""
        codec = self.codec_for(publication)
        if codec is None or publication.stream is None:
            return False
        self.detach()
        forwarder = self.transport.forwarder
        if self.route is None:
            self.route = forwarder.add_route(
                publication.stream,
                self.peer,
                RouteParameters(
                    ssrc=self.ssrc,
                    payload_type=codec.payload_type,
                    rtx_ssrc=self.rtx_ssrc if codec.rtx is not None else None,
                    rtx_payload_type=codec.rtx,
                    extensions=self.extensions,
                    mid=self.media.mid,
                    allow_mixed=self.allow_mixed,
                ),
            )
            self.transport.watch_route(self.route, self)
        else:
            forwarder.switch(
                self.route, publication.stream, payload_type=codec.payload_type, rtx_payload_type=codec.rtx
            )
        forwarder.pause(self.route, publication.muted)
        self.publication, self.source = publication, publication.source
        self._heard_ns = self._reported_ns = self._reports = 0
        publication.subscribers.add(self)
        self.waiting = self.kind == "video"
        publication.want_keyframe()
        return True

    def detach(self) -> None:
        """Carry nothing any more; the m-line stays."""
        if self.publication is not None:
            self.publication.subscribers.discard(self)
            self.publication = None
        self.waiting = False

    def pause(self, paused: bool) -> None:
        """Stop or go on sending (mute)."""
        if self.route is not None:
            self.transport.forwarder.pause(self.route, paused)
            if not paused and self.publication is not None:
                self.waiting = self.kind == "video"
                self.publication.want_keyframe()

    def close(self) -> None:
        """End the route."""
        self.detach()
        if self.route is not None:
            self.transport.forget_route(self.route)
            resent = self.transport.forwarder.route_stats(self.route).retransmitted
            self.transport.counters.packets_resent += resent
            self.transport.forwarder.remove_route(self.route)
            self.route = None

    def switched(self, event: Switched) -> None:
        """Note that the route sends now."""
        self.waiting = False
        self.began()

    def report(self, now: int) -> list[rtcp.RtcpPacket]:
        """Return sender report and CNAME of the route, empty if there is nothing to say.

        They are due soon after the route began, then when the publisher has reported anew, at least every
        ``REPORT_NS``; not while nothing was sent or the publisher has not reported.
        """
        publication = self.publication
        if self.route is None or publication is None or publication.reporter is None:
            return []
        sender = publication.reporter.sender
        silent_ns = now - self._reported_ns
        rested = silent_ns >= REST_NS or self._reports < EARLY_REPORTS
        news = sender is not None and ((sender[1] != self._heard_ns and rested) or silent_ns >= REPORT_NS)
        if not news and not self.waiting:
            return []
        try:
            stats = self.transport.forwarder.route_stats(self.route)
        except ForwarderError:
            return []
        if stats.waiting and self.kind == "video" and not stats.paused:
            publication.want_keyframe()
        if not news or sender is None or stats.packets == 0 or stats.stream != publication.stream:
            return []
        self._heard_ns, self._reported_ns = sender[1], now
        self._reports += 1
        report = forwarded_report(sender[0], sender[1], stats, publication.codec.clock_rate, now)
        return [report, rtcp.SourceDescription.of_cname(self.ssrc, self.cname)]
