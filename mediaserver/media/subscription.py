"""A subscription: one m-line of a subscribing session, and what is sent on it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mediaserver.forwarder.interface import DEPENDENCY, ForwarderError, RouteParameters, Switched
from mediaserver.media import answer
from mediaserver.media.feedback import EARLY_REPORTS, SECOND_NS, forwarded_report
from mediaserver.media.layer import Layer
from mediaserver.media.layer_choice import LayerPolicy
from mediaserver.media.publication import Publication
from mediaserver.media.sdp import Codec, MediaOffer
from mediaserver.media.sharing import COPIES_BPS, PAYLOAD, SOUND_BPS, Picture
from mediaserver.media.transport import Transport
from recorder import rtcp

SOURCE_ORDER = {"camera": 0, "microphone": 0, "screen": 1, "document": 2}
"""Which m-line of its kind a source likes: cameras come on the first, screens on the second."""
REPORT_NS = 5 * SECOND_NS
"""As often as libwebrtc reports on sound (RFC 3550 section 6.2): one that was lost is made good."""
REST_NS = 2 * SECOND_NS + SECOND_NS // 4
"""News of the publisher waits so long after the last report, but for the first ``EARLY_REPORTS``."""
BEARABLE = 0.7
"""A layer that is more than the line bears by this share of it is not sent on while the keyframe of a smaller
one is awaited."""
PLEAS = 10
"""Keyframes that a client may ask for at once, and one more every ``PLEA_NS``: each costs the sender 3 to 10
pictures, at the expense of what the others see and of the recording."""
PLEA_NS = SECOND_NS
STREAM_NAMES = ("main", "screen", "document")


@dataclass(frozen=True, slots=True)
class LayerWish:
    """What a client wishes of the pictures of a source, layers from 0, the smallest; None: the highest."""

    preferred: int | None = None
    maximum: int | None = None
    source: str = ""
    """Empty: of all sources."""
    temporal: int | None = None
    """Highest temporal layer, of a scalable stream only."""


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
    layer: Layer | None = None
    """What of the publication is sent, or will be from its next keyframe on."""
    spatial: int | None = None
    """Highest spatial layer that is sent of a scalable stream, or will be from its next keyframe on."""
    policy: LayerPolicy = field(default_factory=LayerPolicy)
    began: Callable[[], None] = lambda: None
    """Called when the route begins to send."""
    changed: Callable[[], None] = lambda: None
    """Called when it carries something else, or other layers of it are wished."""

    def __post_init__(self) -> None:
        self._heard_ns = self._reported_ns = self._reports = 0
        self._metered = (0, 0, 0)
        """Octets and time (ns) of the last look at what a picture without a choice takes, and its bit/s."""
        self._pleas_ns = 0
        """Until when all pleas so far are paid for."""
        self.temporal: int | None = None
        """The wish for temporal layers."""
        self._asked: tuple[int | None, int | None] = (None, None)
        self._filtered = False
        if all(codec.rtx is None for codec in self.codecs):
            self.rtx_ssrc = None

    @property
    def kind(self) -> str:
        """Return ``audio`` or ``video``."""
        return self.media.kind

    @property
    def red(self) -> int | None:
        """Return the payload type under which the client takes RED (RFC 2198); None: it does not."""
        return next((codec.red for codec in self.codecs if codec.red is not None), None)

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
        self._leave()
        self.publication, self.source = publication, publication.source
        publication.subscribers.add(self)
        self.changed()  # the first packet is measured too
        layer = self._wanted(publication, time.monotonic_ns())
        if layer.stream is None:
            layer = publication.recorded
        assert layer.stream is not None, "a publication's recorded layer has its stream"
        forwarder = self.transport.forwarder
        if self.route is None:
            self.route = forwarder.add_route(
                layer.stream,
                self.peer,
                RouteParameters(
                    ssrc=self.ssrc,
                    payload_type=codec.payload_type,
                    rtx_ssrc=self.rtx_ssrc if codec.rtx is not None else None,
                    rtx_payload_type=codec.rtx,
                    red_payload_type=self.red,
                    extensions=self.extensions,
                    mid=self.media.mid,
                    allow_mixed=self.allow_mixed,
                ),
            )
            self.transport.watch_route(self.route, self)
        else:
            forwarder.switch(
                self.route, layer.stream, payload_type=codec.payload_type, rtx_payload_type=codec.rtx
            )
        forwarder.pause(self.route, publication.muted)
        self.layer, self.spatial = layer, None
        self._ask_layers(None, None)
        self._heard_ns = self._reported_ns = self._reports = 0
        self._look_scalable(publication, time.monotonic_ns())
        self.waiting = self.kind == "video"
        layer.want_keyframe()
        return True

    def detach(self) -> None:
        """Carry nothing any more; the m-line stays."""
        if self.publication is not None:
            self._leave()
            self.changed()

    def _leave(self) -> None:
        if self.publication is not None:
            self.publication.subscribers.discard(self)
            self.publication = self.layer = None
        self.waiting = False

    def pause(self, paused: bool) -> None:
        """Stop or go on sending (mute)."""
        if self.route is not None:
            self.transport.forwarder.pause(self.route, paused)
            if not paused and self.layer is not None:
                self.waiting = self.kind == "video"
                self.layer.want_keyframe()

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

    def want_keyframe(self, now: int) -> None:
        """Have the sender asked for a keyframe of the layer that is sent or waited for, as its client wishes;
        not if that asks too often.
        """
        if self.layer is not None and self._pleas_ns - now <= (PLEAS - 1) * PLEA_NS:
            self._pleas_ns = max(self._pleas_ns, now) + PLEA_NS
            self.layer.want_keyframe()

    # --- layers

    def set_layers(self, wish: LayerWish) -> None:
        """Take the client's wishes; what is None in one counts as the highest."""
        self.policy.preferred, self.policy.maximum = wish.preferred, wish.maximum
        self.temporal = wish.temporal
        self.look(time.monotonic_ns())
        self.changed()

    def set_target(self, bps: int | None) -> None:
        """Say what the line bears for this picture, bit/s; None: anything."""
        self.policy.target_bps = bps
        self.look(time.monotonic_ns())

    def look(self, now: int) -> None:
        """Choose a layer anew; the route goes over to it at its next keyframe."""
        publication = self.publication
        if self.route is None or publication is None or publication.muted:
            return
        if self.layer is None:
            return  # about to be attached
        self._look_scalable(publication, now)
        if not publication.simulcast:
            return
        wanted = self._wanted(publication, now)
        forwarder = self.transport.forwarder
        if wanted is not self.layer and wanted.stream is not None:
            forwarder.switch(self.route, wanted.stream)
            if self._too_heavy():
                # What comes until the keyframe would only lengthen the queue before it.
                forwarder.pause(self.route, True)
                forwarder.pause(self.route, False)
            self.layer = wanted
            self.waiting = forwarder.route_stats(self.route).waiting
            self.transport.counters.layer_switches += 1
        if self.waiting and self.layer is not None:
            self.layer.want_keyframe()  # asked again until one comes

    def _too_heavy(self) -> bool:
        target = self.policy.target_bps
        return target is not None and self.layer is not None and self.layer.meter.bps * BEARABLE > target

    def picture(self, now: int) -> Picture | None:
        """Return what is known of the layers to choose from; None if there is no choice."""
        publication = self.publication
        if publication is None or not publication.layered:
            return None
        if publication.scalable is not None:
            limit = 0 if self._undescribed(publication) else self.policy.limit
            return Picture(publication.scalable.states, self.spatial, limit)
        layers = publication.layers
        current = layers.index(self.layer) if self.layer in layers else None
        return Picture(publication.layer_states(now), current, self.policy.limit)

    def taken_bps(self, now: int) -> int:
        """Return what a track without a choice takes of the line, bit/s; a picture of late."""
        publication = self.publication
        if publication is None or publication.muted or self.route is None:
            return 0
        if self.kind == "audio":
            repeated = publication.codec.red is not None and self.red is not None
            return SOUND_BPS + (COPIES_BPS if repeated else 0)
        before, since_ns, bps = self._metered
        if now - since_ns >= SECOND_NS // 2:
            octets = self.transport.forwarder.route_stats(self.route).bytes
            bps = int((octets - before) * 8 * SECOND_NS / (now - since_ns) / PAYLOAD) if since_ns else 0
            self._metered = (octets, now, bps)
        return bps

    def _look_scalable(self, publication: Publication, now: int) -> None:
        """Choose among the layers of one stream: down at its next picture, up at its next keyframe."""
        scalable, route = publication.scalable, self.route
        if scalable is None or route is None or not scalable.found:
            return
        number = self.policy.choose(scalable.states, self.spatial, now)
        if number is None:
            return
        if self._undescribed(publication):
            number = 0
        if number != self.spatial:
            self.transport.counters.layer_switches += self.spatial is not None
            self.spatial = number
        temporal = (
            scalable.temporal_for(self.policy.target_bps, self.temporal) if number == 0 else self.temporal
        )
        self._ask_layers(None if number == len(scalable.states) - 1 else number, temporal)
        if self.layer is not None and self._filtered:
            stats = self.transport.forwarder.route_stats(route)
            self.waiting = stats.waiting or stats.spatial < number
            if self.waiting:
                self.layer.want_keyframe()  # asked again until one comes

    def _undescribed(self, publication: Publication) -> bool:
        # Chromium cannot put AV1's spatial layers together without descriptors: it would show nothing.
        return publication.mime == "video/AV1" and DEPENDENCY not in self.extensions

    def _ask_layers(self, spatial: int | None, temporal: int | None) -> None:
        if self.route is not None and self._asked != (spatial, temporal):
            self.transport.forwarder.set_layers(self.route, spatial, temporal)
            self._asked = spatial, temporal
            self._filtered = True

    def _wanted(self, publication: Publication, now: int) -> Layer:
        layers = publication.layers
        current = layers.index(self.layer) if self.layer in layers else None
        number = self.policy.choose(publication.layer_states(now), current, now)
        return publication.recorded if number is None else layers[number]

    def describe_layers(self) -> dict[str, object]:
        """Return what the API says of the layers of what is sent."""
        publication, layer = self.publication, self.layer
        assert publication is not None, "only of what is sent"
        assert layer is not None, "a publication is sent in a layer"
        scalable = publication.scalable
        return {
            "mid": self.media.mid,
            "source": publication.source,
            "track": publication.id,
            "layer": publication.layers.index(layer) if scalable is None else self.spatial or 0,
            "switching": self.waiting,
            "preferred": self.policy.preferred,
            "maximum": self.policy.maximum,
            "temporal": self.temporal,
            "temporal_layers": scalable.temporal if scalable is not None else 0,
            "target_bps": self.policy.target_bps,
            "layers": publication.layers_json(),
        }

    # --- reports

    def report(self, now: int) -> list[rtcp.RtcpPacket]:
        """Return sender report and CNAME of the route, empty if there is nothing to say.

        They are due soon after the route began, then when the publisher has reported anew, at least every
        ``REPORT_NS``; not while nothing was sent or the publisher has not reported.
        """
        publication, layer = self.publication, self.layer
        if self.route is None or publication is None or layer is None or layer.reporter is None:
            return []
        sender = layer.reporter.sender
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
            layer.want_keyframe()
        if not news or sender is None or stats.packets == 0 or stats.stream != layer.stream:
            return []
        self._heard_ns, self._reported_ns = sender[1], now
        self._reports += 1
        report = forwarded_report(sender[0], sender[1], stats, publication.codec.clock_rate, now)
        return [report, rtcp.SourceDescription.of_cname(self.ssrc, self.cname)]
