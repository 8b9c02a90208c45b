"""What a signalling client asks for and is told, carried out by the same rules as the HTTP routes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from mediaserver import turn
from mediaserver.api import models, views, whip
from mediaserver.api.auth import require, room_of
from mediaserver.api.problems import Problem
from mediaserver.api.recordings import event_is_visible, shown_to
from mediaserver.api.routing import Access, Call, Route
from mediaserver.api.routing import answer as json_answer
from mediaserver.events import Envelope
from mediaserver.ipc import IpcError
from mediaserver.rooms import Room
from mediaserver.signal.line import QUALITY_S, Line, Lines
from mediaserver.signal.messages import (
    Answered,
    AnswerMessage,
    Done,
    EventMessage,
    Failed,
    HangUp,
    Layers,
    Mute,
    OfferMessage,
    Publish,
    Quality,
    Request,
    Subscribe,
)
from mediaserver.supervisor import NoWorker
from recorder.clock import rfc3339

MAX_FREEZE_S = 60.0
"""What one report may add to the metric: clients are not believed more."""
RENEGOTIATES = ("track.started", "track.ended", "participant.left", "session.connected")


def participants(call: Call, room: Room) -> list[dict[str, Any]]:
    """List who is or was in a room, as ``GET …/participants`` does."""
    return [
        views.participant(one).model_dump(mode="json") for one in room.participants.values() if not one.hidden
    ]


async def answer(call: Call, line: Line, lines: Lines, request: Request) -> None:
    """Carry out a request and queue its answer; a refusal is the answer too."""
    from mediaserver.api.app import problem_of

    try:
        await _carry_out(call, line, lines, request)
    except Exception as error:  # what it is, is for problem_of; our own failures are logged there
        line.put(Failed, re=request.id, problem=problem_of(error).to_json())


async def _carry_out(call: Call, line: Line, lines: Lines, request: Request) -> None:
    room = room_of(call, call.asker.room)
    match request:
        case Publish():
            result = await whip.begin_publishing(call, room, request.source, request.sdp)
            line.media.add(str(result["session"]))
            line.put(Answered, re=request.id, **_answered(call, result))
            return
        case Subscribe():
            await _subscribe(call, line, room, request)
            return
        case AnswerMessage():
            _own(call, line, request.session, view=True)
            params = {"session": request.session, "version": request.version, "sdp": request.sdp}
            await call.control.call_worker(room, "view.answer", params, with_room=False)
            line.unanswered = 0
        case HangUp():
            _own(call, line, request.session)
            await _end_session(call, line, room, request.session)
        case Mute():
            await _mute(call, room, request)
        case Layers():
            _own(call, line, request.session, view=True)
            wishes = [one.model_dump(exclude_none=True) for one in request.wishes]
            params = {"session": request.session, "wishes": wishes}
            await call.control.call_worker(room, "view.layers", params, with_room=False)
        case Quality():
            _take_quality(call, line, lines, request)
        case _:
            raise Problem("bad_request", f"{request.type} is for the first message only")
    line.put(Done, re=request.id)
    if isinstance(request, AnswerMessage):
        await negotiate(call, line)


def _answered(call: Call, result: dict[str, Any]) -> dict[str, Any]:
    ice_servers = turn.servers(call.control.settings.turn, call.asker.identity, time.time())
    return {name: str(result[name]) for name in ("session", "sdp", "etag")} | {"ice_servers": ice_servers}


def _own(call: Call, line: Line, session: str, *, view: bool = False) -> None:
    """Demand that a media session is the participant's (and his line's subscribing one)."""
    rooms = call.control.rooms
    room = rooms.by_session(session)
    own = room is not None and room.key == line.place and rooms.owner(session) == call.asker.identity
    if not own or (view and session != line.view):
        raise Problem("session_not_found", "no session has this id")


async def _subscribe(call: Call, line: Line, room: Room, request: Subscribe) -> None:
    require(call, "subscribe")
    if (request.sdp is None) == (request.session is None):
        raise Problem("body_invalid", "give either sdp or session")
    if request.session is not None:
        _own(call, line, request.session)
        params = {"session": request.session, "wishes": []}  # refuses what is no view
        await call.control.call_worker(room, "view.layers", params, with_room=False)
        line.view = request.session
        line.media.add(request.session)
        line.put(Done, re=request.id)
    else:
        assert request.sdp is not None
        result = await whip.begin(call, room, "view", request.sdp, {})
        former, line.view = line.view, str(result["session"])
        line.media.add(line.view)
        line.put(Answered, re=request.id, **_answered(call, result))
        if former:
            await _end_session(call, line, room, former)
    line.unanswered, line.told = 0, []
    await negotiate(call, line)


async def _end_session(call: Call, line: Line, room: Room, session: str) -> None:
    line.media.discard(session)
    if line.view == session:
        line.view = ""
    try:
        await call.control.call_worker(room, "session.delete", {"session": session}, with_room=False)
    except IpcError as error:
        if error.code != "session_not_found":  # it has ended already
            raise
    call.control.rooms.drop_session(session)


async def _mute(call: Call, room: Room, request: Mute) -> None:
    identity = request.identity or call.asker.identity
    if identity != call.asker.identity:
        require(call, "admin")
    if identity not in room.participants:
        raise Problem("participant_not_found", "nobody in this room has this identity")
    params = {"kind": request.kind, "source": request.source, "muted": request.muted}
    await call.control.call_worker(room, "participant.mute", {"identity": identity, **params})


def _take_quality(call: Call, line: Line, lines: Lines, request: Quality) -> None:
    now = time.monotonic()
    if now - line.quality_at < QUALITY_S:
        raise Problem("bad_request", f"quality: at most once every {QUALITY_S:g} s")
    line.quality_at = now
    metrics = call.control.metrics
    if request.rtt_ms is not None:
        metrics.client_rtt.observe(request.rtt_ms / 1000)
    for stream in request.streams:
        if stream.direction == "in" and stream.packets + stream.lost:
            metrics.client_lost.labels(stream.kind).observe(stream.lost / (stream.packets + stream.lost))
            metrics.client_freeze.inc(min(MAX_FREEZE_S, stream.freeze_ms / 1000))
    for place in [one for one in lines.quality if call.control.rooms.get(*one) is None]:
        del lines.quality[place]
    report = request.model_dump(exclude={"type", "id"})
    room = lines.quality.setdefault(line.place, {})
    room[call.asker.identity] = {"at": rfc3339(time.time_ns()), **report}


async def leave(call: Call, line: Line) -> None:
    """End every media session begun over the line; one that is gone already is fine."""
    room = call.control.rooms.get(*line.place)
    for session in list(line.media) if room is not None else ():
        assert room is not None
        try:
            await _end_session(call, line, room, session)
        except (IpcError, NoWorker, ConnectionError, TimeoutError):
            continue  # its worker is gone, and the session with it


async def negotiate(call: Call, line: Line) -> None:
    """Offer the client what its subscribing connection lacks; one offer at a time."""
    async with line.negotiating:
        room = call.control.rooms.get(*line.place)
        if not line.view or line.unanswered or room is None:
            return
        session = line.view
        try:
            made = await call.control.call_worker(room, "view.offer", {"session": session}, with_room=False)
        except (IpcError, NoWorker, ConnectionError, TimeoutError):
            return  # the session or its worker has ended; events say so, and the client begins anew
        told = [made["tracks"], made["skipped"]]
        if session != line.view or (not made["sdp"] and told == line.told):
            return
        line.told = told
        line.unanswered = int(made["version"]) if made["sdp"] else 0
        tracks = [{**one, "name": _name(room, str(one["identity"]))} for one in made["tracks"]]
        line.put(
            OfferMessage,
            session=session,
            version=int(made["version"]),
            sdp=str(made["sdp"]),
            tracks=tracks,
            skipped=made["skipped"],
        )


def _name(room: Room, identity: str) -> str:
    one = room.participants.get(identity)
    return one.name if one is not None else ""


async def follow(call: Call, line: Line, lines: Lines) -> None:
    """Tell a line the events of its room until it ends."""
    line.follower = asyncio.current_task()
    log = call.control.events
    follower = log.follow(lambda event: _is_for(call, line, event))
    stop = call.control.closing
    call.control.metrics.signal_lines.inc()
    try:
        while not line.ending and not stop.is_set():
            event = await follower.next()
            if line.ending:
                break
            if event is None:
                line.end("too_slow")
                break
            line.put(EventMessage, event=shown_to(call, event))
            if event["type"] in ("session.ended", "session.failed"):
                line.media.discard(str(event["data"].get("session")))
            if event["type"] in RENEGOTIATES:
                await negotiate(call, line)
            if event["type"] == "room.closed":
                lines.drop(line, "room_closed")
            elif event["type"] == "participant.removed" and event["data"].get("identity") == (
                line.principal.identity
            ):
                lines.drop(line, "token_revoked")
    finally:
        log.leave(follower)
        lines.drop(line, "draining" if stop.is_set() else "internal")
        call.control.metrics.signal_lines.dec()


def _is_for(call: Call, line: Line, event: Envelope) -> bool:
    """Say whether an event is for this client: nothing of others' connections."""
    if not event_is_visible(call, event):
        return False
    own = event["data"].get("identity") == line.principal.identity
    return own or not event["type"].startswith(("session.", "subscription."))


async def room_quality(call: Call) -> web.Response:
    """Show what each participant's client last reported of its call."""
    from mediaserver.api.signal import LINES

    room = room_of(call, call.path("room"))
    reports = call.request.app[LINES].quality.get(room.key, {})
    shown = [{"identity": identity, **report} for identity, report in reports.items()]
    return json_answer(models.RoomQuality(reports=shown))


ROUTES = (
    Route(
        "GET",
        "/v1/rooms/{room}/quality",
        room_quality,
        Access.SERVER,
        "Show the clients' quality reports",
        answer=models.RoomQuality,
        codes=("room_not_found",),
    ),
)
