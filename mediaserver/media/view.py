"""A view: everybody's tracks on one connection, whose m-lines come and go as the tracks do.

The client offers first, one receiving m-line of each kind it wants: that tells its codecs, header extensions
and transport. These first m-lines stay silent; they hold the bundle together. From then on the server offers
(RFC 8829): an m-line for each new track, port zero for one that ended, and the place of such an m-line is
recycled for the next track of its kind under a new mid and new SSRCs. Who asks for offers and carries them
is control, one at a time; nothing is sent on an m-line before its offer is answered.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mediaserver.ipc import IpcError
from mediaserver.media import answer
from mediaserver.media.answer import MediaAnswer
from mediaserver.media.publication import Publication
from mediaserver.media.sdp import MAX_MEDIA, Offer
from mediaserver.media.session import SubscribeSession
from mediaserver.media.subscription import LayerWish, Subscription

JsonObject = dict[str, Any]


@dataclass(eq=False)
class Slot:
    """One place among the m-lines: an m-line of the client's own, without publication, or one of ours."""

    section: MediaAnswer
    publication: Publication | None = None
    subscription: Subscription | None = None
    ours: bool = True
    settled: bool = False
    """The client has answered to what ``section`` says."""
    refused: bool = False
    """The client would not have the track."""

    @property
    def free(self) -> bool:
        """Tell whether the place may be recycled: both sides have agreed that its m-line is closed."""
        return self.ours and self.settled and not self.section.codecs


class ViewSession(SubscribeSession):
    """A client that receives the tracks of all others on one connection."""

    kind = "view"

    def open_view(self, offer: Offer, room_codecs: list[str]) -> None:
        """Answer the client's first offer; raises IpcError as ``open`` does."""
        if not offer.bundle or any(not media.mid for media in offer.media):
            raise IpcError("sdp_invalid", "the offer needs a=group:BUNDLE and a mid on every m-line", 400)
        self.open(offer, room_codecs, "")
        self.wishes: dict[str, JsonObject] = {}
        """By track id, as ``wish`` took them; for who chooses layers."""
        self._mixed = offer.mixed_extensions
        self._slots = [Slot(section, ours=False, settled=True) for section in self.answers]
        self._models = {one.kind: one for one in reversed(self.subscriptions)}
        self._origin = next(line[2:] for line in self.sdp.splitlines() if line.startswith("o=")).split()
        self._version = 0
        self._pending: str = ""
        self._mids = 0
        self._ready = False

    def next_offer(self, wanted: list[Publication]) -> JsonObject:
        """Return ``{version, sdp, tracks, skipped}`` to bring the client from what it has to ``wanted``.

        The same offer until it is answered; ``sdp`` is empty when nothing is to be negotiated. ``skipped``
        lists the tracks this client cannot take, with a problem code.
        """
        skipped = self._skipped(wanted)
        if not self._pending:
            unfit = {one["track"] for one in skipped}
            changed = self._close_ended(wanted)
            for publication in wanted:
                if publication.id not in unfit and not self._placed(publication):
                    changed = self._place(publication) or changed
            if changed:
                self._version += 1
                name, number, _, *rest = self._origin
                origin = " ".join([name, number, str(2 + self._version), *rest])
                sections = [slot.section for slot in self._slots]
                local = self.transport.local(self.link)
                self._pending = answer.write_offer(sections, local, origin, mixed=self._mixed)
        return {
            "version": self._version,
            "sdp": self._pending,
            "tracks": self.tracks(),
            "skipped": skipped,
        }

    def answered(self, version: int, reply: Offer) -> None:
        """Take the client's answer to offer ``version``; raises IpcError ``sdp_invalid`` (400) if it is none.

        What the client refuses stays closed; what it takes is sent from its next keyframe on.
        """
        if not self._pending or version != self._version:
            raise IpcError("sdp_invalid", "there is no unanswered offer of this version", 400)
        if len(reply.media) != len(self._slots):
            raise IpcError("sdp_invalid", "the answer has another number of m-lines than the offer", 400)
        for slot, media in zip(self._slots, reply.media, strict=True):
            section = slot.section
            if media.kind != section.offer.kind or (section.codecs and media.mid != section.offer.mid):
                raise IpcError(
                    "sdp_invalid", f"m-line {media.index + 1} does not answer that of the offer", 400
                )
        self._pending = ""
        for slot, media in zip(self._slots, reply.media, strict=True):
            if slot.ours and not slot.settled:
                taken = media.port != 0 and media.direction in ("recvonly", "sendrecv")
                if slot.section.codecs and not taken:
                    slot.refused = True
                    self._shut(slot)
                slot.settled = True
        self._begin()

    def wish(self, wishes: list[JsonObject]) -> None:
        """Take which layers the client wishes of which ``track``; unknown tracks are left out."""
        known = {slot.publication.id: slot for slot in self._slots if slot.publication is not None}
        for one in wishes:
            slot = known.get(str(one.get("track")))
            if slot is not None:
                self.wishes[str(one["track"])] = one
                self._heed(slot)

    def _heed(self, slot: Slot) -> None:
        """Let a wish count for the picture it is about."""
        subscription, publication = slot.subscription, slot.publication
        if subscription is None or publication is None or publication.kind != "video":
            return
        if (one := self.wishes.get(publication.id)) is not None:
            subscription.set_layers(
                LayerWish(one.get("preferred"), one.get("maximum"), temporal=one.get("temporal"))
            )

    def tracks(self) -> list[JsonObject]:
        """Return what each open m-line carries, by mid."""
        return [
            {"mid": slot.section.offer.mid, **slot.publication.summary()}
            for slot in self._slots
            if slot.publication is not None and slot.section.codecs
        ]

    def link_ready(self) -> None:
        """Begin to send what was agreed on before the client could decrypt."""
        self._ready = True
        super().link_ready()
        self._begin()

    def _begin(self) -> None:
        if not self._ready:
            return
        for slot in self._slots:
            subscription, publication = slot.subscription, slot.publication
            if not slot.settled or subscription is None or publication is None:
                continue
            if subscription.publication is None and publication.stream is not None:
                subscription.attach(publication)

    def _skipped(self, wanted: list[Publication]) -> list[JsonObject]:
        skipped = []
        refused = {slot.publication.id for slot in self._slots if slot.refused and slot.publication}
        for publication in wanted:
            model = self._models.get(publication.kind)
            if model is None:
                continue
            if model.codec_for(publication) is None or publication.id in refused:
                names = ", ".join(codec.name for codec in model.codecs)
                detail = f"{publication.sender.identity} sends {publication.mime}; this client takes {names}"
                skipped.append({"track": publication.id, "code": "codec_mismatch", "detail": detail})
        return skipped

    def _placed(self, publication: Publication) -> bool:
        return any(slot.publication is publication for slot in self._slots)

    def _close_ended(self, wanted: list[Publication]) -> bool:
        changed = False
        for slot in self._slots:
            if slot.publication is None or slot.publication in wanted:
                continue
            self.wishes.pop(slot.publication.id, None)
            slot.publication, slot.refused = None, False
            if slot.section.codecs:
                self._shut(slot)
                slot.settled = False
                changed = True
        return changed

    def _shut(self, slot: Slot) -> None:
        slot.section = MediaAnswer(slot.section.offer)
        if slot.subscription is not None:
            slot.subscription.close()
            self.subscriptions.remove(slot.subscription)
            slot.subscription = None

    def _place(self, publication: Publication) -> bool:
        """Give a track an m-line, a recycled one if there is one; false if there can be none."""
        model = self._models.get(publication.kind)
        if model is None:
            return False
        free = (
            slot
            for slot in self._slots
            if slot.free and slot.publication is None and slot.section.offer.kind == publication.kind
        )
        slot = next(free, None)
        if slot is None and len(self._slots) >= MAX_MEDIA:
            return False
        index = self._slots.index(slot) if slot is not None else len(self._slots)
        self._mids += 1
        while any(one.section.offer.mid == f"s{self._mids}" for one in self._slots):
            self._mids += 1  # the client's own may be called so
        media = dataclasses.replace(model.media, index=index, mid=f"s{self._mids}")
        subscription = Subscription(
            session=self.id,
            peer=self.link.peer,
            media=media,
            codecs=model.codecs,
            extensions=model.extensions,
            cname=self.cname,
            ordinal=index,
            allow_mixed=self._mixed,
            transport=self.transport,
            began=self.sending.begin,
            changed=self.tracks_changed,
        )
        self.subscriptions.append(subscription)
        section = MediaAnswer(
            media,
            codecs=model.codecs,
            direction="sendonly",
            extensions=model.extensions,
            ssrc=subscription.ssrc,
            rtx_ssrc=subscription.rtx_ssrc,
            cname=self.cname,
            stream_id=publication.session,  # picture and sound of one sender are kept in step
            track_id=publication.id,
        )
        if slot is None:
            self._slots.append(Slot(section, publication, subscription))
        else:
            slot.section, slot.publication, slot.subscription = section, publication, subscription
            slot.settled = slot.refused = False
        if self.hidden and publication.kind == "video":
            subscription.policy.preferred = 0  # a supervisor's thumbnail
        return True
