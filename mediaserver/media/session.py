"""Sessions: what one WHIP or WHEP request began, from offer to goodbye."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from mediaserver.forwarder.interface import NewSsrc, Rtcp
from mediaserver.ipc import IpcError
from mediaserver.media import answer, sharing
from mediaserver.media.answer import MediaAnswer
from mediaserver.media.bandwidth import Sending
from mediaserver.media.feedback import EARLY_REPORTS, SECOND_NS, SERVER_SSRC, Line, RateByLoss, heeded
from mediaserver.media.layer import Layer
from mediaserver.media.link import Link, LinkState
from mediaserver.media.publication import Publication, Sender
from mediaserver.media.sdp import Codec, IceFragment, MediaOffer, Offer
from mediaserver.media.subscription import SOURCE_ORDER, LayerWish, Subscription
from mediaserver.media.transport import FEEDBACK_MS, Transport
from recorder import rtcp
from recorder.ids import uuid7
from recorder.rtp import RtpError

SOURCES = ("camera", "screen", "document")
REPORT_NS = 2 * SECOND_NS
"""Between receiver reports after the first ``EARLY_REPORTS``, which come every second: what they say of loss
and round-trip time changes slowly, and transport-cc has told the sender long before."""
REPORTS_TOGETHER = 20
"""Sender reports of 28 bytes, each with a CNAME of as many, in one datagram: 1,120 bytes."""
QUIET_NS = 3 * SECOND_NS
"""A publisher that sends nothing is looked at again after this."""
ABSENCE_NS = 2 * SECOND_NS
"""A client of whom nothing came for so long was cut off: a receiver of pictures reports every 1.5 s at least
(libwebrtc). What it missed is resent only in part, and by itself it asks for a keyframe seconds later."""


class SessionOwner(Protocol):
    """Whom a session tells what happens to it: its room."""

    red: str
    """How offers of RED are answered; see ``answer.redundancy``."""

    def session_changed(self, session: Session, state: LinkState, reason: str) -> None:
        """Learn that a session connected, lost its client for a while, or ended."""

    def session_ready(self, session: Session) -> None:
        """Learn that a session's client can decrypt what is sent from now on."""

    def publication_found(self, publication: Publication) -> None:
        """Learn that a publication's SSRC is known now."""

    def recorded_layer_changed(self, publication: Publication, at_ns: int) -> None:
        """Learn that recordings get another layer of a publication since ``at_ns``."""

    def spatial_layers_changed(self, publication: Publication) -> None:
        """Learn that spatial layers of a publication's scalable stream came or went."""


@dataclass(eq=False)
class Session:
    """What publishing and subscribing sessions share: a link, an ETag, a place in a room."""

    owner: SessionOwner
    transport: Transport
    identity: str
    token_id: str = ""
    id: str = field(default_factory=lambda: str(uuid7()))
    state: LinkState = LinkState.CONNECTING
    ever_connected: bool = False
    sdp: str = field(default="", repr=False)
    _link: Link | None = None
    kind = "session"
    heeds: ClassVar[frozenset[int]] = frozenset()
    """Types of the RTCP packets that say something to us."""

    @property
    def link(self) -> Link:
        """Return the transport; there is one from ``open`` on."""
        assert self._link is not None, "open() comes first"
        return self._link

    @property
    def etag(self) -> str:
        """Return the entity tag of the ICE session (RFC 9725 section 4.3.1)."""
        return f'"{self.link.credentials.ufrag}"'

    def close(self, reason: str) -> None:
        """End the session for a reason of ours."""
        self.transport.shut(self.link, reason)

    def patch(self, fragment: IceFragment, if_match: str | None) -> str | None:
        """Take a trickle or restart PATCH; returns the body to answer, None if there is nothing to say.

        Raises IpcError ``etag_mismatch`` (412) when the client speaks of an older ICE session.
        """
        link = self.link
        restart = bool(fragment.ufrag) and not self.transport.ice.knows_remote(self.id, fragment.ufrag)
        if if_match is not None and if_match.strip() != "*" and self.etag not in if_match:
            raise IpcError("etag_mismatch", "the ICE session has been restarted since", 412)
        if not restart:
            return None
        self.transport.restart(link, fragment)
        return answer.fragment(self.transport.local(link), self.mids())

    def mids(self) -> list[str]:
        """Return the mids of the accepted m-lines."""
        return []

    def link_changed(self, state: LinkState, reason: str) -> None:
        """Pass the link's news on to the room."""
        self.state = state
        self.ever_connected = self.ever_connected or state is LinkState.CONNECTED
        self.owner.session_changed(self, state, reason)

    def link_ready(self) -> None:
        """Pass the link's news on to the room."""
        self.owner.session_ready(self)

    def path_changed(self) -> None:
        """Do what lets media flow on at once."""

    def sends(self, ssrc: int) -> bool:
        """Tell whether a stream of the client has this SSRC."""
        return False

    def received_rtcp(self, event: Rtcp) -> None:
        """Take a compound of the client; what is malformed is counted."""
        try:
            packets = heeded(event.data, self.heeds)
        except RtpError:
            self.transport.counters.rtcp_malformed += 1
            return
        if packets:
            self.take_rtcp(packets, event.arrival_ns)

    def take_rtcp(self, packets: list[rtcp.RtcpPacket], arrival_ns: int) -> None:
        """Act on the client's reports."""

    def found_ssrc(self, event: NewSsrc) -> None:
        """Refuse SSRCs nobody announced."""
        self.transport.forwarder.ignore_ssrc(event.peer, event.ssrc)

    def report(self, now: int) -> None:
        """Send what is due every second."""


class PublishSession(Session):
    """A client that sends: one source, at most one audio and one video track."""

    kind = "publish"
    heeds: ClassVar[frozenset[int]] = frozenset({rtcp.SR})

    def open(
        self, offer: Offer, room_codecs: list[str], source: str, sender: Sender, taps: list[int]
    ) -> None:
        """Answer an offer; ``taps`` are two unused tap numbers. Raises IpcError ``codec_mismatch`` (409)
        and others."""
        self.source = source
        self.publications: list[Publication] = []
        self._rate: RateByLoss | None = None
        self._received = 0
        self._report_ns = 0
        self._reports = 0
        answers: list[MediaAnswer] = []
        chosen: list[tuple[MediaOffer, Codec, dict[str, int]]] = []
        for media in offer.media:
            reply = MediaAnswer(media)
            answers.append(reply)
            taken = any(other.kind == media.kind for other, _, _ in chosen)
            if not media.is_media or taken or media.direction not in ("sendonly", "sendrecv"):
                continue
            codecs = fitting_codecs(media, room_codecs, self.owner.red, publishing=True)
            reply.codecs, reply.direction = codecs[:1], "recvonly"
            wanted = [uri for uri in answer.PUBLISH_EXTENSIONS if media.rids or uri not in _RIDS]
            reply.extensions = answer.publish_extensions(media, codecs[0], wanted)
            reply.receive_rids = media.simulcast_rids
            chosen.append((media, codecs[0], reply.extensions))
        if not chosen:
            raise IpcError("sdp_invalid", "the offer sends neither audio nor video", 400)
        extensions: dict[str, int] = {}
        for _, _, own in chosen:
            extensions.update(own)
        link = self._link = self.transport.open(self.id, offer.transport, extensions, self)
        if answer.TRANSPORT_CC in extensions:
            self.transport.forwarder.set_feedback(link.peer, FEEDBACK_MS, SERVER_SSRC)
        line = Line()
        for reply, tap in zip([a for a in answers if a.codecs], taps, strict=False):
            codec = reply.codecs[0]
            feedback = answer.feedback(codec)
            kind_source = "microphone" if reply.offer.kind == "audio" and source == "camera" else source
            self.publications.append(
                Publication(
                    session=self.id,
                    peer=link.peer,
                    sender=sender,
                    source=kind_source,
                    media=reply.offer,
                    codec=codec,
                    extensions=reply.extensions,
                    feedback=feedback,
                    transport=self.transport,
                    tap=tap,
                    line=line,
                    rids=reply.receive_rids,
                    recorded_layer_changed=self.owner.recorded_layer_changed,
                    spatial_layers_changed=self.owner.spatial_layers_changed,
                )
            )
            if "goog-remb" in feedback and reply.offer.kind == "video":
                self._rate = RateByLoss()
        self.sdp = answer.write(offer, answers, self.transport.local(link))

    def mids(self) -> list[str]:
        """Return the mids of the accepted m-lines."""
        return [publication.media.mid for publication in self.publications]

    def layers(self) -> list[Layer]:
        """Return the layers of all publications."""
        return [layer for publication in self.publications for layer in publication.layers]

    def sends(self, ssrc: int) -> bool:
        """Tell whether a stream of the client has this SSRC."""
        return any(layer.ssrc == ssrc for layer in self.layers())

    def take_rtcp(self, packets: list[rtcp.RtcpPacket], arrival_ns: int) -> None:
        """Note the client's sender reports."""
        for packet in packets:
            if isinstance(packet, rtcp.SenderReport):
                for layer in self.layers():
                    if layer.ssrc == packet.ssrc and layer.reporter is not None:
                        layer.reporter.heard(packet, arrival_ns)

    def found_ssrc(self, event: NewSsrc) -> None:
        """Give an SSRC to the publication it belongs to: by mid, else by payload type."""
        for publication in self.publications:
            if event.mid and publication.media.mid and event.mid != publication.media.mid:
                continue
            fresh = publication.stream is None
            layer = publication.found_ssrc(event)
            if layer is not None:
                if fresh and layer.ssrc == event.ssrc:
                    self.owner.publication_found(publication)
                return
        self.transport.forwarder.ignore_ssrc(event.peer, event.ssrc)

    def report(self, now: int) -> None:
        """Send a receiver report for all tracks, and the rate allowed to those that only know REMB.

        While nothing comes nothing is said (RFC 3550 section 6.4), and it is looked seldomer whether it does.
        """
        if self.state is LinkState.CONNECTING:
            return
        forwarder = self.transport.forwarder
        blocks = []
        received = 0
        for layer in self.layers():
            layer.ask(now)
            if now < self._report_ns:
                continue
            if layer.stream is not None and layer.reporter is not None:
                stats = forwarder.stream_stats(layer.stream)
                received += stats.packets
                if stats.packets:
                    block = layer.reporter.block(stats, now)
                    layer.publication.last_fraction_lost = block.fraction_lost
                    blocks.append(block)
        if now < self._report_ns:
            return
        if received == self._received:
            self._report_ns = now + QUIET_NS
            return
        self._received = received
        self._reports += 1
        self._report_ns = now + (0 if self._reports < EARLY_REPORTS else REPORT_NS)
        packets: list[rtcp.RtcpPacket] = [rtcp.ReceiverReport(SERVER_SSRC, tuple(blocks))]
        if self._rate is not None and blocks:
            rate = self._rate.update(max(block.fraction_lost for block in blocks))
            video = [layer.ssrc for layer in self.layers() if layer.publication.kind == "video"]
            ssrcs = tuple(ssrc for ssrc in video if ssrc is not None)
            packets.append(rtcp.Remb(SERVER_SSRC, rate, ssrcs))
        forwarder.send_rtcp(self.link.peer, rtcp.build(packets))


class SubscribeSession(Session):
    """A client that receives the tracks of one participant."""

    kind = "subscribe"
    heeds: ClassVar[frozenset[int]] = frozenset({rtcp.PSFB})
    target: str = ""
    hidden: bool = False
    _heard_ns: int = 0
    sending: Sending
    """What may be sent to the client: the seam to layer choice (docs/bandwidth.md)."""

    def open(self, offer: Offer, room_codecs: list[str], target: str) -> None:
        """Answer an offer; every receiving m-line gets its SSRCs now and stays silent until there is a
        track."""
        self.target = target
        self.subscriptions: list[Subscription] = []
        self._taken_bps = 0
        cname = self.cname = secrets.token_hex(8)
        answers: list[MediaAnswer] = []
        extensions: dict[str, int] = {}
        for media in offer.media:
            reply = MediaAnswer(media)
            answers.append(reply)
            if not media.is_media or media.direction not in ("recvonly", "sendrecv"):
                continue
            reply.codecs = fitting_codecs(media, room_codecs, self.owner.red, publishing=False)
            reply.direction = "sendonly"
            reply.extensions = answer.subscribe_extensions(media, reply.codecs)
            extensions.update(reply.extensions)
        if not any(reply.codecs for reply in answers):
            raise IpcError("sdp_invalid", "the offer receives neither audio nor video", 400)
        link = self._link = self.transport.open(self.id, offer.transport, extensions, self)
        for reply in answers:
            if not reply.codecs:
                continue
            subscription = Subscription(
                session=self.id,
                peer=link.peer,
                media=reply.offer,
                codecs=reply.codecs,
                extensions=reply.extensions,
                cname=cname,
                ordinal=sum(1 for other in self.subscriptions if other.kind == reply.offer.kind),
                allow_mixed=offer.mixed_extensions,
                transport=self.transport,
            )
            if self.hidden:
                subscription.policy.preferred = 0
            reply.ssrc, reply.rtx_ssrc, reply.cname = subscription.ssrc, subscription.rtx_ssrc, cname
            reply.stream_id, reply.track_id = (
                subscription.stream_name,
                f"{subscription.kind}-{reply.offer.mid}",
            )
            self.subscriptions.append(subscription)
        self.sending = Sending(
            self.transport.forwarder,
            link.peer,
            numbered=answer.TRANSPORT_CC in extensions,
            padded=self._padded_route,
            routes=self._live_routes,
            wake=lambda: self.transport.wake(link.peer),
        )
        self.transport.watch_timer(link.peer, self.sending)
        self.sending.on_change = lambda _: self.share(time.monotonic_ns())
        for subscription in self.subscriptions:
            subscription.began, subscription.changed = self.sending.begin, self.tracks_changed
        self.answers = answers
        self.sdp = answer.write(offer, answers, self.transport.local(link))

    def _padded_route(self) -> int | None:
        """Return the route that a probe's padding goes on: one of pictures, with RTX."""
        for subscription in self.subscriptions:
            publication = subscription.publication
            if subscription.kind != "video" or publication is None or publication.muted:
                continue
            if subscription.rtx_ssrc is not None and not subscription.waiting:
                return subscription.route
        return None

    def _live_routes(self) -> list[int]:
        return [s.route for s in self.subscriptions if s.publication is not None and s.route is not None]

    def mids(self) -> list[str]:
        """Return the mids of the accepted m-lines."""
        return [subscription.media.mid for subscription in self.subscriptions]

    def place_for(self, publication: Publication) -> Subscription | None:
        """Return the m-line a publication is to be sent on: the one kept for its source, its favourite, any
        free one."""
        fitting = [s for s in self.subscriptions if s.kind == publication.kind]
        for subscription in fitting:
            if subscription.source == publication.source:
                return subscription
        free = [s for s in fitting if s.publication is None and not s.source]
        favourite = SOURCE_ORDER.get(publication.source, 0)
        for subscription in free:
            if subscription.ordinal == favourite:
                return subscription
        if free:
            return free[0]
        return next((s for s in fitting if s.publication is None), None)

    def set_layers(self, wish: LayerWish) -> None:
        """Wish for layers, of all pictures or of those of one source; counts from the next keyframe on."""
        for subscription in self.pictures():
            if wish.source in ("", subscription.source):
                subscription.set_layers(wish)

    def tracks_changed(self) -> None:
        """Measure the line while there is anything to choose, and share it anew."""
        if any(one.publication is not None and one.publication.layered for one in self.subscriptions):
            self.sending.start()
            self._weigh(time.monotonic_ns())
        elif self.sending.measuring:
            self.sending.stop()
            for subscription in self.pictures():
                subscription.set_target(None)

    def _weigh(self, now: int) -> None:
        """Find out what the tracks without a choice take, and what would be sent if it fitted."""
        unchosen = [one for one in self.subscriptions if one.picture(now) is None]
        self._taken_bps = sum(one.taken_bps(now) for one in unchosen)
        self.share(now)

    def share(self, now: int) -> None:
        """Share what the line bears among the pictures that come in layers: screens first."""
        found = [(one, picture) for one in self.pictures() if (picture := one.picture(now)) is not None]
        found.sort(key=lambda each: each[0].source not in ("screen", "document"))
        pictures = [picture for _, picture in found]
        self.sending.wanted_bps = sharing.wanted(self._taken_bps, pictures)
        shares = sharing.share(self.sending.target_bps, self._taken_bps, pictures)
        for (subscription, _), bps in zip(found, shares, strict=True):
            subscription.set_target(bps if self.sending.known else None)

    def pictures(self) -> list[Subscription]:
        """Return the m-lines for pictures."""
        return [subscription for subscription in self.subscriptions if subscription.kind == "video"]

    def describe_layers(self) -> list[dict[str, object]]:
        """Return, for each picture that is sent, its layers, the wishes and what is sent."""
        return [one.describe_layers() for one in self.pictures() if one.publication is not None]

    def path_changed(self) -> None:
        """Have keyframes sent: resending could not fill what was lost with the old path."""
        for subscription in self.pictures():
            subscription.want_keyframe(time.monotonic_ns())

    def take_rtcp(self, packets: list[rtcp.RtcpPacket], arrival_ns: int) -> None:
        """Pass keyframe requests on to the publishers, and a REMB to the estimator."""
        self.sending.take_rtcp(packets, arrival_ns)
        for packet in packets:
            wanted: list[int] = []
            if isinstance(packet, rtcp.PictureLossIndication):
                wanted = [packet.media_ssrc]
            elif isinstance(packet, rtcp.FullIntraRequest):
                wanted = [ssrc for ssrc, _ in packet.entries]
            for subscription in self.subscriptions if wanted else ():
                if subscription.ssrc in wanted:
                    subscription.want_keyframe(arrival_ns)

    def report(self, now: int) -> None:
        """Send the sender reports of all m-lines, few compounds; see whether something is being sent, and
        whether the client is back from an absence: it needs keyframes as one that moved does.
        """
        heard_ns = self.transport.forwarder.peer_stats(self.link.peer).last_received_ns
        if 0 < self._heard_ns < heard_ns - ABSENCE_NS:
            self.path_changed()
        self._heard_ns = heard_ns
        if self.sending.measuring and self._live_routes():
            self.sending.look(now)
            self._weigh(now)
        packets = [packet for subscription in self.subscriptions for packet in subscription.report(now)]
        for at in range(0, len(packets), 2 * REPORTS_TOGETHER):
            compound = rtcp.build(packets[at : at + 2 * REPORTS_TOGETHER])
            self.transport.forwarder.send_rtcp(self.link.peer, compound)


_RIDS = (answer.RID, answer.REPAIRED_RID)


def fitting_codecs(media: MediaOffer, room_codecs: list[str], red: str, *, publishing: bool) -> list[Codec]:
    """Return the room's codecs an m-line offers, with the RED that is agreed; raises IpcError
    ``codec_mismatch`` naming both sides."""
    codecs = answer.choose(media, room_codecs)
    if not codecs:
        ours = [name for name in room_codecs if answer.KINDS.get(name.lower()) == media.kind]
        raise IpcError(
            "codec_mismatch",
            f"{media.kind}: the room takes {', '.join(ours) or 'none'}; "
            f"the offer has {', '.join(answer.names(media)) or 'none'}",
            409,
        )
    return [
        replace(codec, red=answer.redundancy(media, codec, red, publishing=publishing)) for codec in codecs
    ]
