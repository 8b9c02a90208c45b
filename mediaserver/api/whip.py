"""WHIP (RFC 9725) and WHEP: SDP over HTTP, carried to the room's media worker."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from mediaserver import turn
from mediaserver.api.auth import require, room_of
from mediaserver.api.problems import Problem
from mediaserver.api.routing import Access, Call, Query, Route
from mediaserver.rooms import Room

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"
SOURCES = ("camera", "screen", "document")


def _accepts_sdp(call: Call) -> None:
    accepted = [part.split(";")[0].strip() for part in call.request.headers.get("Accept", "*/*").split(",")]
    if not {SDP, "application/*", "*/*"} & set(accepted):
        raise Problem("not_acceptable", f"answers are {SDP}")


def _session_answer(call: Call, result: dict[str, Any]) -> web.Response:
    headers = {
        "Location": f"/v1/sessions/{result['session']}",
        "ETag": _quoted(str(result["etag"])),
        "Accept-Patch": FRAGMENT,
    }
    if servers := turn.links(call.control.settings.turn, call.asker.identity, time.time()):
        headers["Link"] = servers
        headers["Cache-Control"] = "no-store"
    return web.Response(status=201, headers=headers, body=str(result["sdp"]).encode(), content_type=SDP)


def _quoted(etag: str) -> str:
    return etag if etag.startswith('"') else f'"{etag}"'


async def publish(call: Call) -> web.Response:
    """Take a publisher's offer (WHIP)."""
    _accepts_sdp(call)
    room = room_of(call, call.path("room"))
    source = call.request.query.get("source", "camera")
    if source not in SOURCES:
        raise Problem("bad_request", f"source must be one of {', '.join(SOURCES)}")
    return _session_answer(call, await begin_publishing(call, room, source, call.body))


async def begin_publishing(call: Call, room: Room, source: str, sdp: str) -> dict[str, Any]:
    """Begin a publishing session of who asks; returns ``{session, sdp, etag}``, raises Problem."""
    if call.asker.kind != "client":
        raise Problem("forbidden", "publishing needs a client token, because it names the participant")
    require(call, "publish")
    if call.asker.grants.hidden:
        raise Problem("forbidden", "who is hidden sends nothing: it would be shown and recorded")
    return await begin(call, room, "whip", sdp, {"source": source})


async def begin(call: Call, room: Room, method: str, sdp: str, given: dict[str, str]) -> dict[str, Any]:
    """Have the room's worker begin a session of who asks, and note it (audit included)."""
    asker = call.asker
    await call.control.note_token(asker)
    one = await call.control.rooms.admit(
        room, asker.identity, asker.role, asker.name, hidden=asker.grants.hidden
    )
    result = await call.control.call_worker(
        room,
        method,
        {
            **given,
            "identity": asker.identity,
            "role": asker.role,
            "seat": one.seat,
            "name": asker.name,
            "hidden": asker.grants.hidden,
            "sdp": sdp,
            "token_id": asker.token_id,
        },
    )
    _note(call, room, result, {"kind": method, **given})
    return result


def _note(call: Call, room: Room, result: dict[str, Any], data: dict[str, Any]) -> None:
    """Remember whose session it is, and log from where it was asked for."""
    session = str(result["session"])
    call.control.rooms.add_session(room, session, call.asker.identity)
    call.control.events.put(
        "audit.session_opened",
        tenant=room.tenant,
        room=room.name,
        actor=call.actor,
        data={"session": session, **data},
    )


async def subscribe(call: Call) -> web.Response:
    """Take a subscriber's offer for all tracks of one participant (WHEP)."""
    _accepts_sdp(call)
    room = room_of(call, call.path("room"))
    if call.asker.kind != "client":
        raise Problem("forbidden", "subscribing needs a client token, because it names the participant")
    require(call, "subscribe")
    return _session_answer(
        call, await begin(call, room, "whep", call.body, {"target": call.path("identity")})
    )


def session_room(call: Call) -> Room:
    """Find the room of the session that the path names; only its own participant and servers may."""
    session = call.path("session")
    room = call.control.rooms.by_session(session)
    asker = call.asker
    own = (
        room is not None
        and room.tenant == asker.tenant
        and (
            asker.kind == "server"
            or (asker.room == room.name and call.control.rooms.owner(session) == asker.identity)
        )
    )
    if room is None or not own:
        raise Problem("session_not_found", "no session has this id")
    return room


async def patch_session(call: Call) -> web.Response:
    """Take trickled candidates or restart ICE (RFC 9725 section 4.3)."""
    room = session_room(call)
    if_match = call.request.headers.get("If-Match")
    if if_match is None:
        raise Problem("precondition_required", "send If-Match with the session's ETag, or * to restart ICE")
    result = await call.control.call_worker(
        room,
        "session.patch",
        {"session": call.path("session"), "sdpfrag": call.body, "if_match": if_match.strip()},
        with_room=False,
    )
    headers = {"ETag": _quoted(str(result["etag"]))}
    fragment = result.get("sdpfrag")
    if not fragment:
        return web.Response(status=204, headers=headers)
    owner = call.control.rooms.owner(call.path("session")) or ""
    if links := turn.links(call.control.settings.turn, owner, time.time()):
        headers |= {"Link": links, "Cache-Control": "no-store"}  # the first ones may have run out
    return web.Response(status=200, headers=headers, body=str(fragment).encode(), content_type=FRAGMENT)


async def delete_session(call: Call) -> web.Response:
    """End a session."""
    room = session_room(call)
    session = call.path("session")
    await call.control.call_worker(room, "session.delete", {"session": session}, with_room=False)
    call.control.rooms.drop_session(session)
    return web.Response(status=200)


async def options(call: Call) -> web.Response:
    """Say what can be posted or patched."""
    session = "session" in call.request.match_info
    headers = {"Accept-Patch": FRAGMENT} if session else {"Accept-Post": SDP}
    headers["Allow"] = "PATCH, DELETE, OPTIONS" if session else "POST, OPTIONS"
    return web.Response(status=204, headers=headers)


_OFFER_CODES = ("sdp_invalid", "codec_mismatch", "room_not_found", "not_acceptable", "worker_unavailable")

ROUTES = (
    Route(
        "POST",
        "/v1/whip/{room}",
        publish,
        Access.CLIENT,
        "Publish (WHIP)",
        body=SDP,
        answer=SDP,
        status=201,
        query=(Query("source", "camera (default), screen or document; one session for each"),),
        codes=_OFFER_CODES,
    ),
    Route("OPTIONS", "/v1/whip/{room}", options, Access.PUBLIC, "Ask what WHIP takes", status=204),
    Route(
        "POST",
        "/v1/whep/{room}/{identity}",
        subscribe,
        Access.CLIENT,
        "Subscribe to all tracks of a participant (WHEP)",
        body=SDP,
        answer=SDP,
        status=201,
        codes=_OFFER_CODES,
    ),
    Route("OPTIONS", "/v1/whep/{room}/{identity}", options, Access.PUBLIC, "Ask what WHEP takes", status=204),
    Route(
        "PATCH",
        "/v1/sessions/{session}",
        patch_session,
        Access.CLIENT,
        "Trickle candidates or restart ICE",
        body=FRAGMENT,
        answer=FRAGMENT,
        codes=("session_not_found", "precondition_required", "etag_mismatch", "sdp_invalid"),
    ),
    Route(
        "DELETE",
        "/v1/sessions/{session}",
        delete_session,
        Access.CLIENT,
        "End a session",
        codes=("session_not_found",),
    ),
    Route(
        "OPTIONS", "/v1/sessions/{session}", options, Access.PUBLIC, "Ask what a session takes", status=204
    ),
)
