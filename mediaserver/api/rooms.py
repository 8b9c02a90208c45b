"""Handlers of rooms, tokens and participants."""

from __future__ import annotations

import time

from aiohttp import web

from mediaserver.api import models, views
from mediaserver.api.auth import require, room_of
from mediaserver.api.problems import Problem
from mediaserver.api.routing import Access, Call, Route, answer
from mediaserver.tokens import Grants
from recorder.clock import rfc3339


async def create_room(call: Call) -> web.Response:
    """Open a room, or find it open with the same settings."""
    control = call.control
    body: models.RoomCreate = call.body
    control.refuse_when_draining()
    codecs = list(body.codecs or control.settings.media.codecs)
    auto = (
        body.recording.model_dump(mode="json")
        if body.recording is not None
        else control.default_auto(body.name)
    )
    room, new = await control.rooms.open(call.tenant, body.name, codecs, auto)
    if not new and (room.codecs, room.auto) != (codecs, auto):
        raise Problem("room_exists", "the room is open with other settings")
    if new:
        await control.events.append(
            "room.opened", tenant=room.tenant, room=room.name, actor=call.actor, data={"codecs": codecs}
        )
    return answer(
        views.room(room, control.recordings.in_room(*room.key)),
        status=201 if new else 200,
        headers={"Location": f"/v1/rooms/{room.name}"},
    )


async def list_rooms(call: Call) -> web.Response:
    """List the tenant's open rooms."""
    control = call.control
    found = [room for room in control.rooms if room.tenant == call.tenant]
    shown = [
        views.room(room, control.recordings.in_room(*room.key)).model_dump(mode="json") for room in found
    ]
    return answer({"rooms": shown})


async def get_room(call: Call) -> web.Response:
    """Show a room."""
    room = room_of(call, call.path("room"))
    return answer(views.room(room, call.control.recordings.in_room(*room.key)))


async def delete_room(call: Call) -> web.Response:
    """Close a room: its recordings are ended, then its sessions."""
    room = room_of(call, call.path("room"))
    await call.control.close_room(room, "room_closed", call.actor)
    return web.Response(status=204)


def grants_of(role: str, given: models.Grants | None) -> Grants:
    """Give the grants of a role, changed by what a request gives."""
    granted = Grants.for_role(role).to_json()
    if given is not None:
        granted.update(given.model_dump(exclude_none=True))
    return Grants.from_json(granted)


async def create_token(call: Call) -> web.Response:
    """Mint a client token and give its participant a seat."""
    control = call.control
    body: models.TokenCreate = call.body
    room = room_of(call, call.path("room"))
    ttl_s = body.ttl_s or control.settings.tokens.client_ttl_s
    if ttl_s > control.settings.tokens.client_max_s:
        raise Problem("body_invalid", f"ttl_s: at most {control.settings.tokens.client_max_s}")
    grants = grants_of(body.role, body.grants)
    try:
        token, principal = control.tokens.mint_client(
            call.tenant,
            identity=body.identity,
            room=room.name,
            role=body.role,
            name=body.name,
            grants=grants,
            ttl_s=ttl_s,
        )
    except ValueError as error:
        raise Problem("body_invalid", str(error)) from error
    await control.note_token(principal)
    one = await control.rooms.admit(room, body.identity, body.role, body.name, hidden=grants.hidden)
    expires_at = rfc3339((int(time.time()) + ttl_s) * 1_000_000_000)
    return answer(
        models.Token(token=token, identity=body.identity, seat=one.seat, expires_at=expires_at), status=201
    )


async def list_participants(call: Call) -> web.Response:
    """List who is or was in a room, with the tracks of those who are. Servers see hidden ones too."""
    room = room_of(call, call.path("room"))
    shown = [
        views.participant(one)
        for one in room.participants.values()
        if not one.hidden or call.asker.kind == "server"
    ]
    return answer(models.Participants(participants=shown))


async def change_participant(call: Call) -> web.Response:
    """Mute or unmute a participant's tracks for everyone, the recording included."""
    room = room_of(call, call.path("room"))
    identity = call.path("identity")
    if call.asker.identity != identity:
        require(call, "admin")
    body: models.ParticipantPatch = call.body
    one = room.participants.get(identity)
    if one is None:
        raise Problem("participant_not_found", "nobody in this room has this identity")
    await call.control.call_worker(
        room,
        "participant.mute",
        {"identity": identity, "kind": body.kind, "source": body.source, "muted": body.muted},
    )
    return answer(views.participant(one))


async def remove_participant(call: Call) -> web.Response:
    """Remove a participant and revoke its tokens."""
    room = room_of(call, call.path("room"))
    require(call, "admin")
    identity = call.path("identity")
    if identity not in room.participants:
        raise Problem("participant_not_found", "nobody in this room has this identity")
    await call.control.remove_participant(room, identity, call.actor)
    return web.Response(status=204)


ROUTES = (
    Route(
        "POST",
        "/v1/rooms",
        create_room,
        Access.SERVER,
        "Open a room",
        body=models.RoomCreate,
        answer=models.Room,
        status=201,
        codes=("room_exists", "draining", "worker_unavailable"),
    ),
    Route("GET", "/v1/rooms", list_rooms, Access.SERVER, "List open rooms"),
    Route("GET", "/v1/rooms/{room}", get_room, Access.CLIENT, "Show a room", answer=models.Room),
    Route("DELETE", "/v1/rooms/{room}", delete_room, Access.SERVER, "Close a room", status=204),
    Route(
        "POST",
        "/v1/rooms/{room}/tokens",
        create_token,
        Access.SERVER,
        "Mint a client token",
        body=models.TokenCreate,
        answer=models.Token,
        status=201,
    ),
    Route(
        "GET",
        "/v1/rooms/{room}/participants",
        list_participants,
        Access.CLIENT,
        "List participants",
        answer=models.Participants,
    ),
    Route(
        "PATCH",
        "/v1/rooms/{room}/participants/{identity}",
        change_participant,
        Access.CLIENT,
        "Mute a participant",
        body=models.ParticipantPatch,
        answer=models.Participant,
        codes=("participant_not_found",),
    ),
    Route(
        "DELETE",
        "/v1/rooms/{room}/participants/{identity}",
        remove_participant,
        Access.CLIENT,
        "Remove a participant and revoke its tokens",
        status=204,
        codes=("participant_not_found",),
    ),
)
