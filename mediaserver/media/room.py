"""A room: who is in it, who sends, who receives what, and which recordings listen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from mediaserver.ipc import IpcError
from mediaserver.media.link import LinkState
from mediaserver.media.publication import Publication, Sender
from mediaserver.media.sdp import Offer
from mediaserver.media.session import PublishSession, Session, SubscribeSession
from mediaserver.media.transport import Transport
from mediaserver.media.view import ViewSession

JsonObject = dict[str, Any]
MAX_SESSIONS_PER_ROOM = 256
MAX_SESSIONS_PER_PARTICIPANT = 64
"""So that one token, with offers it never takes up, does not shut the others out."""
_KEPT_REASONS = ("replaced", "room_closed", "removed", "deleted", "client_closed")
"""Ends that are nobody's fault; any other reason of a session that never connected is a failure."""


class Tap(Protocol):
    """A recording, as a room sees it: just another subscriber."""

    def wants(self, publication: Publication) -> bool:
        """Tell whether the packets of a publication are to be tapped now."""

    def track_began(self, publication: Publication) -> None:
        """Write the track down, before its first packet."""

    def layer_changed(self, publication: Publication, at_ns: int) -> None:
        """Write down that its packets are another layer's from ``at_ns`` on."""

    def track_ended(self, publication: Publication) -> None:
        """Note that no packet of it comes any more."""

    def note(self, event: JsonObject, publication: Publication | None) -> None:
        """Write an event of the room down."""


@dataclass(eq=False)
class Participant:
    """Somebody in a room, over all his sessions."""

    identity: str
    role: str
    seat: str
    name: str
    hidden: bool = False
    joined: bool = False
    sessions: dict[str, Session] = field(default_factory=dict)

    @property
    def sender(self) -> Sender:
        """Return who he is, as his tracks name him."""
        return Sender(self.identity, self.seat, self.role, self.name)

    @property
    def publications(self) -> Iterator[Publication]:
        """Yield the tracks he sends (or is about to)."""
        for session in self.sessions.values():
            if isinstance(session, PublishSession):
                yield from session.publications

    def describe(self) -> JsonObject:
        """Return his place in lists and in ``hello``."""
        return {
            "identity": self.identity,
            "role": self.role,
            "seat": self.seat,
            "name": self.name,
            "hidden": self.hidden,
            "connected": any(s.state is LinkState.CONNECTED for s in self.sessions.values()),
            "sessions": [
                {"session": s.id, "kind": s.kind, "state": s.state.value, "token_id": s.token_id}
                | ({"available_bps": s.sending.available_bps} if isinstance(s, SubscribeSession) else {})
                for s in self.sessions.values()
            ],
            "tracks": [p.summary() for p in self.publications if p.stream is not None],
        }


class Room:
    """One room; all of it lives in this worker."""

    def __init__(
        self,
        tenant: str,
        name: str,
        codecs: list[str],
        transport: Transport,
        *,
        publish_event: Callable[[JsonObject], None],
        make_event: Callable[[str, str, str, JsonObject], JsonObject],
        draw_tap: Callable[[], int],
        forget: Callable[[Session], None],
        red: str,
    ) -> None:
        self.tenant, self.name, self.codecs, self.red = tenant, name, codecs, red
        self.transport = transport
        self.participants: dict[str, Participant] = {}
        self.recordings: dict[str, Tap] = {}
        self.closing = False
        self._publish_event = publish_event
        self._make_event = make_event
        self._draw_tap = draw_tap
        self._forget = forget

    # --- coming and going

    def publish(self, offer: Offer, person: Participant, source: str, token_id: str) -> PublishSession:
        """Begin a publishing session; raises IpcError. A former session of identity and source ends once it
        connects."""
        self._admit(person)
        session = PublishSession(self, self.transport, person.identity, token_id)
        taps = [self._draw_tap(), self._draw_tap()]
        session.open(offer, self.codecs, source, person.sender, taps)
        self._enter(person, session)
        return session

    def subscribe(self, offer: Offer, person: Participant, target: str, token_id: str) -> SubscribeSession:
        """Begin a subscribing session; its target need not be there yet. Raises IpcError."""
        self._admit(person)
        session = SubscribeSession(self, self.transport, person.identity, token_id)
        session.hidden = person.hidden
        session.open(offer, self.codecs, target)
        try:
            wanted = self.participants.get(target)
            for publication in wanted.publications if wanted else ():  # those still connecting too
                place = session.place_for(publication)
                if place is not None and place.codec_for(publication) is None:
                    raise self._mismatch(publication, session)
        except IpcError:
            session.state = LinkState.CLOSED
            self.transport.shut(session.link, "codec_mismatch")
            raise
        self._enter(person, session)
        return session

    def view(self, offer: Offer, person: Participant, token_id: str) -> ViewSession:
        """Begin a session that receives everybody's tracks on one connection; raises IpcError."""
        self._admit(person)
        session = ViewSession(self, self.transport, person.identity, token_id)
        session.hidden = person.hidden
        session.open_view(offer, self.codecs)
        self._enter(person, session)
        return session

    def visible_to(self, identity: str) -> list[Publication]:
        """Return the tracks that a participant may see on his one connection: none of who is hidden."""
        return [
            publication
            for person in self.participants.values()
            if person.identity != identity and not person.hidden
            for publication in self.live(person.identity)
        ]

    def participant(
        self, identity: str, *, role: str = "", seat: str = "", name: str = "", hidden: bool = False
    ) -> Participant:
        """Return a participant, made or brought up to date."""
        person = self.participants.get(identity)
        if person is None:
            person = Participant(identity, role, seat, name, hidden)
        else:
            person.role, person.seat = role or person.role, seat or person.seat
            person.name, person.hidden = name or person.name, hidden and person.hidden
        return person

    def find(self, identity: str) -> Participant:
        """Return a participant; raises IpcError ``participant_not_found`` (404)."""
        person = self.participants.get(identity)
        if person is None:
            raise IpcError("participant_not_found", identity, 404)
        return person

    def close(self, reason: str = "room_closed") -> None:
        """End every session."""
        self.closing = True
        for person in list(self.participants.values()):
            for session in list(person.sessions.values()):
                session.close(reason)

    def live(self, identity: str | None = None) -> list[Publication]:
        """Return the publications whose client is connected and whose stream is known."""
        people = self.participants.values() if identity is None else [self.participants.get(identity)]
        return [p for person in people if person for p in person.publications if p.stream is not None]

    def describe(self) -> JsonObject:
        """Return the whole state for ``hello``."""
        return {
            "tenant": self.tenant,
            "room": self.name,
            "codecs": self.codecs,
            "participants": [person.describe() for person in self.participants.values()],
            "recordings": list(self.recordings),
        }

    # --- what sessions tell

    def session_changed(self, session: Session, state: LinkState, reason: str) -> None:
        """Take a session's new state."""
        person = self.participants.get(session.identity)
        if person is None or session.id not in person.sessions:
            return
        if state is LinkState.CONNECTED:
            self._connected(person, session)
        elif state is LinkState.DISCONNECTED:
            self._tell("session.disconnected", person, session)
        elif state is LinkState.CLOSED:
            self._left(person, session, reason)

    def session_ready(self, session: Session) -> None:
        """Begin to send: a keyframe replayed any earlier would reach a client without keys, and be lost."""
        if isinstance(session, SubscribeSession):
            for publication in self.live(session.target):
                if publication not in {s.publication for s in session.subscriptions}:
                    self._connect(session, publication)

    def publication_found(self, publication: Publication) -> None:
        """Begin a publication whose SSRC has just been seen."""
        person = self.participants.get(publication.sender.identity)
        if person is not None and publication.session in person.sessions:
            self._begin(publication)

    def recorded_layer_changed(self, publication: Publication, at_ns: int) -> None:
        """Have recordings mark that they get another layer of a track."""
        for recording in self.recordings.values():
            recording.layer_changed(publication, at_ns)
        self.emit("track.layer", publication.summary(), publication)

    def spatial_layers_changed(self, publication: Publication) -> None:
        """Have recordings mark which spatial layers of a track there are: they keep what comes."""
        self.emit("track.layer", publication.summary(), publication)

    # --- commands

    def mute(self, identity: str, kind: str | None, source: str | None, muted: bool) -> list[str]:
        """Stop (or let go on) tracks of a participant: nobody gets them, no recording keeps them. Returns
        track ids."""
        changed = []
        for publication in self.find(identity).publications:
            if (kind and publication.kind != kind) or (source and publication.source != source):
                continue
            if publication.muted != muted:
                publication.muted = muted
                for subscription in list(publication.subscribers):
                    subscription.pause(muted)
                self.retap(publication)
                self.emit("track.muted" if muted else "track.unmuted", publication.summary(), publication)
            changed.append(publication.id)
        return changed

    def remove(self, identity: str) -> None:
        """Throw a participant out."""
        for session in list(self.find(identity).sessions.values()):
            session.close("removed")

    def retap(self, publication: Publication) -> None:
        """Let recordings have a track's packets if any of them wants it; a keyframe is asked for then."""
        tap = any(recording.wants(publication) for recording in self.recordings.values())
        before = publication.tapped
        publication.set_tap(tap)
        if tap and not before:
            publication.want_keyframe()

    def emit(self, kind: str, data: JsonObject, publication: Publication | None = None) -> None:
        """Publish an event of this room and write it into its recordings."""
        event = self.envelope(kind, data)
        if self.recordings:
            event["recording"] = next(iter(self.recordings))
        for recording in self.recordings.values():
            recording.note(event, publication)
        self._publish_event(event)

    def envelope(self, kind: str, data: JsonObject) -> JsonObject:
        """Return an event of this room without telling anybody."""
        return self._make_event(self.tenant, self.name, kind, data)

    def note_joined(self, person: Participant, recording: Tap) -> None:
        """Tell a recording that begins who is there already."""
        recording.note(self.envelope("participant.joined", _who(person)), None)

    # --- inside

    def _admit(self, person: Participant) -> None:
        if self.closing:
            raise IpcError("room_closed", self.name, 410)
        if sum(len(person.sessions) for person in self.participants.values()) >= MAX_SESSIONS_PER_ROOM:
            raise IpcError("room_full", f"{MAX_SESSIONS_PER_ROOM} sessions", 503)
        if len(person.sessions) >= MAX_SESSIONS_PER_PARTICIPANT:
            raise IpcError("room_full", f"{MAX_SESSIONS_PER_PARTICIPANT} sessions of one participant", 503)

    def _enter(self, person: Participant, session: Session) -> None:
        self.participants[person.identity] = person
        person.sessions[session.id] = session

    def _tell(self, kind: str, person: Participant, session: Session, **more: object) -> None:
        data = {"session": session.id, "kind": session.kind, "identity": person.identity, **more}
        self._tell_unless(person.hidden, kind, data)

    def _tell_of(self, session: SubscribeSession, kind: str, data: JsonObject) -> None:
        self._tell_unless(session.hidden, kind, {"session": session.id, "identity": session.identity, **data})

    def _tell_unless(self, hidden: bool, kind: str, data: JsonObject) -> None:
        if hidden:  # control may know; the record does not (a supervisor who only listens)
            self._publish_event(self.envelope(kind, {**data, "hidden": True}))
        else:
            self.emit(kind, data)

    def _connected(self, person: Participant, session: Session) -> None:
        self._tell("session.connected", person, session)
        if not person.joined and not person.hidden:
            person.joined = True
            self.emit("participant.joined", _who(person))
        if isinstance(session, PublishSession):
            for publication in session.publications:
                if publication.ssrc is not None and publication.stream is None:
                    self._begin(publication)
            for other in list(person.sessions.values()):
                if (
                    isinstance(other, PublishSession)
                    and other is not session
                    and other.source == session.source
                ):
                    other.close("replaced")

    def _begin(self, publication: Publication) -> None:
        wanted = False
        for recording in self.recordings.values():
            recording.track_began(publication)
            wanted = wanted or recording.wants(publication)
        publication.begin(tap=wanted)
        if wanted:
            publication.want_keyframe()
        self.emit("track.started", publication.summary(), publication)
        for session in self._audience(publication.sender.identity):
            self._connect(session, publication)

    def _audience(self, identity: str) -> list[SubscribeSession]:
        return [
            session
            for person in self.participants.values()
            for session in person.sessions.values()
            if isinstance(session, SubscribeSession)
            and session.target == identity
            and session.state is not LinkState.CONNECTING
        ]

    def _connect(self, session: SubscribeSession, publication: Publication) -> None:
        place = session.place_for(publication)
        if place is None:
            self._tell_of(session, "subscription.unplaced", {"track": publication.id})
        elif not place.attach(publication):
            problem = self._mismatch(publication, session)
            failure = {"code": problem.code, "detail": problem.detail, "track": publication.id}
            self._tell_of(session, "session.failed", failure)

    def _mismatch(self, publication: Publication, session: SubscribeSession) -> IpcError:
        offered = [c.name for s in session.subscriptions if s.kind == publication.kind for c in s.codecs]
        return IpcError(
            "codec_mismatch",
            f"{publication.sender.identity} sends {publication.mime}; "
            f"{session.identity or 'the subscriber'} takes {', '.join(dict.fromkeys(offered)) or 'none'}",
            409,
        )

    def _left(self, person: Participant, session: Session, reason: str) -> None:
        del person.sessions[session.id]
        if isinstance(session, PublishSession):
            for publication in session.publications:
                self._end(publication)
        elif isinstance(session, SubscribeSession):
            for subscription in session.subscriptions:
                subscription.close()
        self._forget(session)
        failed = not session.ever_connected and reason not in _KEPT_REASONS
        self._tell("session.failed" if failed else "session.ended", person, session, code=reason)
        if person.joined and not any(other.ever_connected for other in person.sessions.values()):
            person.joined = False
            self.emit("participant.left", {**_who(person), "reason": reason})
        if not person.sessions:
            self.participants.pop(person.identity, None)
        if not self.participants:
            self.emit("room.empty", {})

    def _end(self, publication: Publication) -> None:
        if publication.stream is None:
            return
        for subscription in list(publication.subscribers):
            subscription.detach()
        if publication.tapped:
            self.transport.take_tapped()
        publication.end()
        self.emit("track.ended", publication.summary(), publication)
        for recording in self.recordings.values():
            recording.track_ended(publication)


def _who(person: Participant) -> JsonObject:
    return {
        "identity": person.identity,
        "seat": person.seat,
        "role": person.role,
        "name": person.name,
    }
