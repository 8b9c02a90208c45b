"""What control may ask of a worker, and what the worker tells: the methods and events of the IPC."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from mediaserver.forwarder import ForwarderError
from mediaserver.forwarder.interface import Forwarder
from mediaserver.ipc import Handler, IpcError
from mediaserver.media import answer, sdp
from mediaserver.media.answer import Candidate
from mediaserver.media.layer_choice import MAX_LAYERS
from mediaserver.media.recording import Order, Recording
from mediaserver.media.recordings import Recordings
from mediaserver.media.room import Participant, Room
from mediaserver.media.session import SOURCES, Session, SubscribeSession
from mediaserver.media.stats import Statistics
from mediaserver.media.subscription import LayerWish
from mediaserver.media.tcp import TcpDoor
from mediaserver.media.transport import Transport
from mediaserver.media.view import ViewSession
from recorder.clock import Clock, rfc3339
from recorder.ids import uuid7
from recorder.journal import GroupCommit, JournalTrouble

JsonObject = dict[str, Any]
MAX_ROOMS = 10_000

_log = structlog.get_logger(__name__)


class Service:
    """The rooms of a worker behind the methods of the contract with control."""

    def __init__(
        self,
        *,
        index: int,
        forwarder: Forwarder,
        candidates: Sequence[Candidate],
        udp: Sequence[str],
        consent_ns: int,
        codecs: Sequence[str],
        red: str,
        commit: Callable[[Callable[[JournalTrouble], None]], GroupCommit],
        clock: Clock,
        publish_event: Callable[[JsonObject], object],
        heads_ns: int = 10_000_000_000,
        door: TcpDoor | None = None,
    ) -> None:
        self._index = index
        self._udp = list(udp)
        self._codecs, self._red = [_codec_name(name) for name in codecs], red
        self._clock = clock
        self._publish_event = publish_event
        self.started_ns = clock.now_ns()
        self.draining = False
        self.quit = asyncio.Event()
        self.heard_ns = clock.now_ns()
        """When control last asked for something."""
        self.rooms: dict[tuple[str, str], Room] = {}
        self.sessions: dict[str, tuple[Session, Room]] = {}
        self.transport = Transport(
            forwarder,
            candidates=candidates,
            consent_ns=consent_ns,
            worker=index,
            tapped=lambda take_batches: self.recordings.take(take_batches),
            tap_dropped=lambda event: self.recordings.lost(event),
        )
        self.recordings = Recordings(
            commit,
            clock,
            drain=self.transport.take_tapped,
            told=self._told,
            heads=lambda data: self._publish(self._make_event("", "", "recording.heads", data)),
            heads_ns=heads_ns,
        )
        self._door = door
        self._statistics = Statistics(self.transport, self.recordings, door)

    def start(self) -> None:
        """Begin to move media in the running loop."""
        each_second = [self._reports]
        if self._door is not None:
            transport = self.transport
            self._door.start(
                transport.check,
                transport.begin_dtls,
                transport.ice.lose,
                transport.links.__contains__,
                time.monotonic_ns,
            )
            each_second.append(self._door.sweep)
        self.transport.start(each_second)

    async def close(self, reason: str) -> None:
        """Close recordings, say goodbye to every client, free the sockets' thread."""
        await self.recordings.stop_all(reason)
        for room in list(self.rooms.values()):
            room.close(reason)
        await asyncio.sleep(0.02)  # the goodbyes leave
        if self._door is not None:
            self._door.close()
        self.transport.close()
        await asyncio.to_thread(self.recordings.close)

    def handlers(self) -> dict[str, Handler]:
        """Return the IPC methods by name."""
        methods: dict[str, Handler] = {
            "hello": self.hello,
            "room.open": self.room_open,
            "room.close": self.room_close,
            "whip": self.whip,
            "whep": self.whep,
            "view": self.view,
            "view.offer": self.view_offer,
            "view.answer": self.view_answer,
            "view.layers": self.view_layers,
            "session.patch": self.session_patch,
            "session.delete": self.session_delete,
            "session.layers": self.session_layers,
            "participant.mute": self.participant_mute,
            "participant.remove": self.participant_remove,
            "recording.start": self.recording_start,
            "recording.event": self.recording_event,
            "recording.stop": self.recording_stop,
            "recording.key": self.recording_key,
            "stats": self.stats,
            "drain": self.drain,
            "quit": self.end,
        }
        return {name: self._checked(method) for name, method in methods.items()}

    # --- the worker

    async def hello(self, params: JsonObject) -> JsonObject:
        """Return the whole state: who control is dealing with, and every room with its sessions."""
        return {
            "pid": os.getpid(),
            "index": self._index,
            "started_ns": self.started_ns,
            "udp": self._udp,
            "forwarder": self.transport.forwarder.kind,
            "draining": self.draining,
            "rooms": [room.describe() for room in self.rooms.values()],
            "recordings": self.recordings.describe(),
        }

    async def stats(self, params: JsonObject) -> JsonObject:
        """Return the counters for metrics; heartbeats leave out (``brief``) what is asked of each client."""
        brief = params.get("brief") is True
        return self._statistics.read(list(self.rooms.values()), self._clock.now_ns(), each=not brief)

    async def drain(self, params: JsonObject) -> JsonObject:
        """Take no new rooms; calls go on."""
        self.draining = True
        return {"rooms": len(self.rooms), "recordings": len(self.recordings)}

    async def end(self, params: JsonObject) -> JsonObject:
        """Close everything cleanly and exit."""
        self.quit.set()
        return {}

    # --- rooms

    async def room_open(self, params: JsonObject) -> JsonObject:
        """Make a room, or return the one that is there."""
        key = (_text(params, "tenant"), _text(params, "room"))
        room = self.rooms.get(key)
        if room is None:
            if self.draining or len(self.rooms) >= MAX_ROOMS:
                raise IpcError("worker_draining" if self.draining else "worker_full", key[1], 503)
            codecs = [_codec_name(str(name)) for name in params.get("codecs") or self._codecs]
            unknown = [name for name in codecs if name.lower() not in answer.KINDS]
            if unknown:
                raise IpcError("codec_unknown", ", ".join(unknown)[:200], 422)
            room = self.rooms[key] = Room(
                *key,
                codecs,
                self.transport,
                publish_event=self._publish,
                make_event=self._make_event,
                draw_tap=self.recordings.draw_tap,
                forget=self._forget,
                red=self._red,
            )
        return room.describe()

    async def room_close(self, params: JsonObject) -> JsonObject:
        """End a room: its recordings' parts, then its sessions."""
        room = self._room(params)
        for recording in list(room.recordings):
            await self.recordings.stop(recording, final=False, reason="room_closed")
        room.close()
        self.rooms.pop((room.tenant, room.name), None)
        return {}

    # --- sessions

    async def whip(self, params: JsonObject) -> JsonObject:
        """Begin to publish: answers the offer."""
        room = self._room(params)
        source = str(params.get("source") or "camera")
        if source not in SOURCES:
            raise IpcError("source_unknown", source[:64], 400)
        offer = _offer(params)
        session = room.publish(offer, self._person(room, params), source, str(params.get("token_id") or ""))
        return self._entered(session, room)

    async def whep(self, params: JsonObject) -> JsonObject:
        """Begin to receive a participant's tracks: answers the offer."""
        room = self._room(params)
        target = _text(params, "target")
        offer = _offer(params)
        person = self._person(room, params)
        session = room.subscribe(offer, person, target, str(params.get("token_id") or ""))
        return self._entered(session, room)

    async def view(self, params: JsonObject) -> JsonObject:
        """Begin to receive everybody's tracks on one connection: answers the offer."""
        room = self._room(params)
        offer = _offer(params)
        session = room.view(offer, self._person(room, params), str(params.get("token_id") or ""))
        return self._entered(session, room)

    async def view_offer(self, params: JsonObject) -> JsonObject:
        """Return the offer a view's client has to answer next, ``sdp`` empty if nothing has changed."""
        session, room = self._view(params)
        return session.next_offer(room.visible_to(session.identity))

    async def view_answer(self, params: JsonObject) -> JsonObject:
        """Take a client's answer to the last ``view.offer`` and begin to send what it agreed to."""
        session, _ = self._view(params)
        version = params.get("version")
        if not isinstance(version, int):
            raise IpcError("bad_request", "version must be a whole number", 400)
        try:
            reply = sdp.parse_answer(_text(params, "sdp", limit=sdp.MAX_BYTES))
        except sdp.SdpError as error:
            raise IpcError("sdp_invalid", f"the answer {error}", 400) from None
        session.answered(version, reply)
        return {}

    async def view_layers(self, params: JsonObject) -> JsonObject:
        """Note which layers a view's client wishes."""
        session, _ = self._view(params)
        wishes = params.get("wishes")
        if not isinstance(wishes, list) or not all(isinstance(one, dict) for one in wishes):
            raise IpcError("bad_request", "wishes must be a list of objects", 400)
        session.wish(wishes)
        return {}

    async def session_patch(self, params: JsonObject) -> JsonObject:
        """Take a trickle candidate or restart ICE."""
        session, _ = self._session(params)
        try:
            fragment = sdp.parse_fragment(_text(params, "sdpfrag", limit=sdp.MAX_BYTES))
        except sdp.SdpError as error:
            raise IpcError("sdp_invalid", str(error), 400) from None
        if_match = params.get("if_match")
        body = session.patch(fragment, str(if_match) if if_match is not None else None)
        return {"etag": session.etag} if body is None else {"etag": session.etag, "sdpfrag": body}

    async def session_delete(self, params: JsonObject) -> JsonObject:
        """End a session as its client asked."""
        session, _ = self._session(params)
        session.close("deleted")
        return {}

    async def session_layers(self, params: JsonObject) -> JsonObject:
        """Take a wish for layers, if there is one, and return what is sent of which layers."""
        session, _ = self._session(params)
        if not isinstance(session, SubscribeSession):
            raise IpcError("bad_request", "only what is received has layers to choose", 400)
        if (wish := params.get("wish")) is not None:
            session.set_layers(_wish(wish))
        return {"pictures": session.describe_layers()}

    # --- participants

    async def participant_mute(self, params: JsonObject) -> JsonObject:
        """Mute or unmute tracks of a participant."""
        kind, source = params.get("kind"), params.get("source")
        muted = params.get("muted")
        if not isinstance(muted, bool):
            raise IpcError("bad_request", "muted must be true or false", 400)
        tracks = self._room(params).mute(_text(params, "identity"), kind, source, muted)
        return {"tracks": tracks}

    async def participant_remove(self, params: JsonObject) -> JsonObject:
        """Throw a participant out."""
        self._room(params).remove(_text(params, "identity"))
        return {}

    # --- recordings

    async def recording_start(self, params: JsonObject) -> JsonObject:
        """Begin a part; answers when its first record is on disk."""
        order = Order.read(params)
        room = self.rooms.get((order.tenant, order.room))
        if room is None:
            raise IpcError("room_not_found", order.room, 404)
        return await self.recordings.start(order, room)

    async def recording_event(self, params: JsonObject) -> JsonObject:
        """Write an event into a running part."""
        event = params.get("event")
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise IpcError("bad_request", "event must be an object with a type", 400)
        self.recordings.note(_text(params, "recording"), event)
        return {}

    async def recording_stop(self, params: JsonObject) -> JsonObject:
        """End a part and return its summary."""
        final = params.get("final", True)
        reason = str(params.get("reason") or "stopped")
        return await self.recordings.stop(_text(params, "recording"), final=bool(final), reason=reason)

    async def recording_key(self, params: JsonObject) -> JsonObject:
        """Give the data key of a running recording back to who may command it: it came by this socket."""
        return self.recordings.key(_text(params, "recording"))

    # --- inside

    def _checked(self, method: Handler) -> Handler:
        async def call(params: JsonObject) -> JsonObject:
            self.heard_ns = self._clock.now_ns()
            try:
                return await method(params)
            except ForwarderError as error:
                raise IpcError("worker_full", str(error), 503) from None

        return call

    def _entered(self, session: Session, room: Room) -> JsonObject:
        self.sessions[session.id] = (session, room)
        _log.debug(  # the event log has it once the client is connected
            "session_opened", session=session.id, kind=session.kind, room=room.name, identity=session.identity
        )
        return {"session": session.id, "sdp": session.sdp, "etag": session.etag}

    def _forget(self, session: Session) -> None:
        self.sessions.pop(session.id, None)

    def _room(self, params: JsonObject) -> Room:
        name = _text(params, "room")
        room = self.rooms.get((_text(params, "tenant"), name))
        if room is None:
            raise IpcError("room_not_found", name, 404)
        return room

    def _session(self, params: JsonObject) -> tuple[Session, Room]:
        name = _text(params, "session")
        found = self.sessions.get(name)
        if found is None:
            raise IpcError("session_not_found", name, 404)
        return found

    def _view(self, params: JsonObject) -> tuple[ViewSession, Room]:
        session, room = self._session(params)
        if not isinstance(session, ViewSession):
            raise IpcError("session_not_found", "the session is not one for everybody's tracks", 404)
        return session, room

    def _person(self, room: Room, params: JsonObject) -> Participant:
        return room.participant(
            _text(params, "identity"),
            role=str(params.get("role") or ""),
            seat=str(params.get("seat") or ""),
            name=str(params.get("name") or ""),
            hidden=bool(params.get("hidden")),
        )

    def _make_event(self, tenant: str, room: str, kind: str, data: JsonObject) -> JsonObject:
        at_ns = self._clock.now_ns()
        return {
            "id": str(uuid7()),
            "type": kind,
            "time": rfc3339(self._clock.utc_ns()),
            "at_ns": at_ns,
            "tenant": tenant,
            "room": room,
            "recording": None,
            "actor": f"worker-{self._index}",
            "data": data,
        }

    def _publish(self, event: JsonObject) -> None:
        self._publish_event(event)

    def _told(self, recording: Recording, kind: str, data: JsonObject) -> None:
        event = self._make_event(recording.room.tenant, recording.room.name, kind, data)
        self._publish({**event, "recording": recording.id})

    def _reports(self, now: int) -> None:
        for session, _ in list(self.sessions.values()):
            with self.transport.contained("report_failed"):
                session.report(now)

    def is_orphan(self, now: int, orphan_ns: int) -> bool:
        """Tell whether nobody needs this worker: no control for so long, no session, no recording."""
        return not self.sessions and not len(self.recordings) and now - self.heard_ns > orphan_ns


def _text(params: JsonObject, name: str, limit: int = 1024) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value or len(value) > limit:
        raise IpcError("bad_request", f"{name} must be a text of 1 to {limit} characters", 400)
    return value


def _wish(value: object) -> LayerWish:
    if not isinstance(value, dict):
        raise IpcError("bad_request", "wish must be an object", 400)
    numbers = []
    for name in ("preferred", "maximum", "temporal"):
        number = value.get(name)
        whole = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < MAX_LAYERS
        if number is not None and not whole:
            raise IpcError("bad_request", f"{name} must be a layer from 0 to {MAX_LAYERS - 1} or null", 400)
        numbers.append(number)
    source = value.get("source") or ""
    if source not in ("", *SOURCES):
        raise IpcError("source_unknown", str(source)[:64], 400)
    return LayerWish(numbers[0], numbers[1], source, numbers[2])


def _codec_name(name: str) -> str:
    return name.rpartition("/")[2]


def _offer(params: JsonObject) -> sdp.Offer:
    try:
        return sdp.parse_offer(_text(params, "sdp", limit=sdp.MAX_BYTES))
    except sdp.SdpError as error:
        raise IpcError("sdp_invalid", f"the offer {error}", 400) from None
