"""Handlers of recordings: start, change, stop, find, and what the evidence says."""

from __future__ import annotations

import json
import time
from typing import Any

from aiohttp import web

from mediaserver.api import models, views
from mediaserver.api.auth import may_see, recording_of, require, room_of
from mediaserver.api.problems import Problem
from mediaserver.api.routing import Access, Call, Query, Route, answer
from mediaserver.recordings.pieces import TIMELINE
from mediaserver.recordings.reading import FileGone, open_file
from recorder.catalog import ACTIVE_STATES, Entry, cursor_of, parse_cursor
from recorder.sealed import SealedError

STATES = (*ACTIVE_STATES, "sealed", "recovered", "failed", "destroyed")
PAGE = 50
MAX_PAGE = 200


def shown(call: Call, entry: Entry) -> models.Recording:
    """Show a recording with its composing progress."""
    return views.recording(entry, call.control.finishing.composition(entry.id))


async def start(call: Call) -> web.Response:
    """Start a recording; answers when its first record is on disk."""
    room = room_of(call, call.path("room"))
    require(call, "record")
    entry = await call.control.recordings.start(room, call.body, call.actor)
    return answer(shown(call, entry), status=201, headers={"Location": f"/v1/recordings/{entry.id}"})


async def stop(call: Call) -> web.Response:
    """End a recording; answers when its manifest is signed."""
    entry = await recording_of(call)
    body: models.StopRequest = call.body
    return answer(shown(call, await call.control.recordings.stop(entry, body.reason, call.actor)))


async def pause(call: Call) -> web.Response:
    """Pause a recording."""
    entry = await recording_of(call)
    return answer(shown(call, await call.control.recordings.pause(entry, call.actor)))


async def resume(call: Call) -> web.Response:
    """Go on after a pause."""
    entry = await recording_of(call)
    return answer(shown(call, await call.control.recordings.resume(entry, call.actor)))


async def change(call: Call) -> web.Response:
    """Change layout or overlays of a running recording."""
    entry = await recording_of(call)
    body: models.RecordingPatch = call.body
    picture = body.model_dump(mode="json", exclude_none=True)
    return answer(shown(call, await call.control.recordings.change_picture(entry, picture, call.actor)))


async def mark(call: Call) -> web.Response:
    """Mark the start or end of a step."""
    entry = await recording_of(call)
    body: models.Marker = call.body
    event = await call.control.recordings.mark(entry, body.model_dump(mode="json"), call.actor)
    return answer(models.Event.model_validate(event), status=201)


async def compose(call: Call) -> web.Response:
    """Make one more composite of an ended recording."""
    entry = await recording_of(call)
    require(call, "record")
    body: models.CompositeWanted = call.body
    entry = await call.control.finishing.add(entry, body.name, body.template)
    await call.control.events.append_about(entry, "audit.compose_asked", {"name": body.name}, call.actor)
    return answer(shown(call, entry), status=202)


async def search(call: Call) -> web.Response:
    """Find recordings, newest first."""
    query = call.request.query
    unknown = set(query) - {"business_no", "room", "state", "due", "cursor", "limit"}
    if unknown:
        raise Problem("bad_request", f"unknown query parameter {sorted(unknown)[0]}")
    require(call, "record")
    room = query.get("room")
    if call.asker.kind != "server":
        if room not in (None, call.asker.room):
            raise Problem("forbidden", "the token is for another room")
        room = call.asker.room
    state = query.get("state")
    if state is not None and state not in STATES:
        raise Problem("bad_request", f"state must be one of {', '.join(STATES)}")
    if query.get("due", "false") not in ("true", "false"):
        raise Problem("bad_request", "due must be true or false")
    due_ns = time.time_ns() if query.get("due") == "true" else None
    try:
        limit = int(query.get("limit", PAGE))
        before = parse_cursor(query["cursor"]) if "cursor" in query else None
    except ValueError as error:
        raise Problem("bad_request", "cursor or limit cannot be read") from error
    if not 1 <= limit <= MAX_PAGE:
        raise Problem("bad_request", f"limit must be 1 to {MAX_PAGE}")
    control = call.control
    found = await control.database.run(
        control.catalog.search,
        call.tenant,
        room=room,
        business_no=query.get("business_no"),
        state=state,
        before=before,
        due_ns=due_ns,
        limit=limit + 1,
    )
    page = found[:limit]
    current = [
        control.recordings.active[one.id].entry if one.id in control.recordings.active else one
        for one in page
    ]
    return answer(
        models.Recordings(
            recordings=[shown(call, one) for one in current],
            next=cursor_of(page[-1]) if len(found) > limit else None,
        )
    )


async def show(call: Call) -> web.Response:
    """Show a recording."""
    return answer(shown(call, await recording_of(call)))


async def manifest(call: Call) -> web.Response:
    """Give the signed capture manifest, its public part as written."""
    entry = await recording_of(call)
    path = call.control.recordings.directory(entry) / "manifest.json"
    try:
        body = path.read_bytes()
    except FileNotFoundError as error:
        raise Problem("file_not_found", f"a recording that is {entry.state} has no manifest") from error
    return web.Response(body=body, content_type="application/json")


async def statements(call: Call) -> web.Response:
    """Give the signed statements, first to last."""
    entry = await recording_of(call)
    return answer({"statements": await call.control.finishing.statements(entry)})


async def timeline(call: Call) -> web.Response:
    """Give the recording's events and gaps, and once composed what the composite shows when."""
    entry = await recording_of(call)
    control = call.control
    events: list[dict[str, Any]] = []
    seq = 0
    while page := await control.events.after(entry.tenant, seq, recording=entry.id, with_audit=False):
        events += page
        seq = page[-1]["seq"]
    view = shown(call, entry)
    return answer(
        {
            "recording": entry.id,
            "armed_at": view.armed_at,
            "stopped_at": view.stopped_at,
            "duration_ms": view.duration_ms,
            "gaps": [gap.model_dump(mode="json") for gap in view.gaps],
            "events": events,
            "composite": await _composite_timeline(call, entry),
        }
    )


async def _composite_timeline(call: Call, entry: Entry) -> dict[str, Any] | None:
    """Open the compositor's account of the composite; None while there is none, or nothing is opened here."""
    file = next((one for one in entry.files if one.name == TIMELINE), None)
    if file is None or not call.control.recordings.provider.can_open:
        return None
    recordings = call.control.recordings
    key = await recordings.data_key(entry, purpose="timeline", actor=call.actor)
    directory = recordings.directory(entry)
    sites = recordings.uploads.sites
    try:
        reader, text = await open_file(directory, sites, entry, file, key, 0, file.plain_bytes)
        reader.close()
        account: dict[str, Any] = json.loads(text)
    except (SealedError, FileGone) as error:
        raise Problem("internal", f"{TIMELINE} is damaged or gone: {error}") from error
    return account


async def verify(call: Call) -> web.Response:
    """Check everything that was signed and sealed; the report says what does not hold and where."""
    entry = await recording_of(call)
    if entry.active:
        raise Problem("recording_state", f"the recording is {entry.state}; verify it when it has ended")
    report = await call.control.finishing.verify(entry, call.actor)
    await call.control.events.append_about(entry, "audit.verified", {"ok": report.get("ok")}, call.actor)
    return answer(report)


def event_is_visible(call: Call, event: dict[str, Any]) -> bool:
    """Say whether an event is for who asks: to participants nothing of hidden others, nor the audit log."""
    asker = call.asker
    if not may_see(asker, event["tenant"], event["room"]):
        return False
    if asker.kind == "server":
        return True
    if event["type"].startswith("audit."):
        return False
    data = event["data"]
    identity = str(data.get("identity", ""))
    if identity == asker.identity:
        return True
    room = call.control.rooms.get(asker.tenant, asker.room)
    one = room.participants.get(identity) if room is not None else None
    return not data.get("hidden") and not (one is not None and one.hidden)


def shown_to(call: Call, event: dict[str, Any]) -> dict[str, Any]:
    """Return a visible event as who asks may read it: to participants ``server`` did what hidden others
    did."""
    asker, actor = call.asker, event["actor"]
    nobody = actor.startswith(("key:", "worker-")) or actor in ("server", "auto", "compositor", "unknown")
    if asker.kind == "server" or actor == asker.identity or nobody:
        return event
    room = call.control.rooms.get(asker.tenant, asker.room)
    one = room.participants.get(actor) if room is not None else None
    return event if one is not None and not one.hidden else {**event, "actor": "server"}


_STATE = ("recording_not_found", "recording_state")

ROUTES = (
    Route(
        "POST",
        "/v1/rooms/{room}/recordings",
        start,
        Access.CLIENT,
        "Start a recording",
        body=models.RecordingStart,
        answer=models.Recording,
        status=201,
        codes=("room_not_found", "recording_active", "attempt_required", "disk_full", "recording_failed"),
    ),
    Route(
        "GET",
        "/v1/recordings",
        search,
        Access.READER,
        "Find recordings, newest first",
        answer=models.Recordings,
        query=(
            Query("business_no", "exactly this business number"),
            Query("room", "in this room"),
            Query("state", "in this state"),
            Query("due", "true: of which something may be destroyed by now"),
            Query("cursor", "next of the page before"),
            Query("limit", f"1 to {MAX_PAGE}, default {PAGE}"),
        ),
    ),
    Route(
        "GET",
        "/v1/recordings/{recording}",
        show,
        Access.READER,
        "Show a recording",
        answer=models.Recording,
        codes=("recording_not_found",),
    ),
    Route(
        "PATCH",
        "/v1/recordings/{recording}",
        change,
        Access.CLIENT,
        "Change layout or overlays while recording",
        body=models.RecordingPatch,
        answer=models.Recording,
        codes=_STATE,
    ),
    Route(
        "POST",
        "/v1/recordings/{recording}/stop",
        stop,
        Access.CLIENT,
        "End a recording",
        body=models.StopRequest,
        answer=models.Recording,
        codes=("recording_not_found",),
    ),
    Route(
        "POST",
        "/v1/recordings/{recording}/pause",
        pause,
        Access.CLIENT,
        "Pause a recording",
        answer=models.Recording,
        codes=_STATE,
    ),
    Route(
        "POST",
        "/v1/recordings/{recording}/resume",
        resume,
        Access.CLIENT,
        "Go on after a pause",
        answer=models.Recording,
        codes=_STATE,
    ),
    Route(
        "POST",
        "/v1/recordings/{recording}/markers",
        mark,
        Access.CLIENT,
        "Mark the start or end of a step",
        body=models.Marker,
        answer=models.Event,
        status=201,
        codes=_STATE,
    ),
    Route(
        "POST",
        "/v1/recordings/{recording}/composites",
        compose,
        Access.CLIENT,
        "Make one more composite, of kind derived, with another template",
        body=models.CompositeWanted,
        answer=models.Recording,
        status=202,
        codes=(*_STATE, "composite_exists"),
    ),
    Route(
        "GET",
        "/v1/recordings/{recording}/manifest",
        manifest,
        Access.READER,
        "Fetch the signed capture manifest",
        answer="application/json",
        codes=("recording_not_found", "file_not_found"),
    ),
    Route(
        "GET",
        "/v1/recordings/{recording}/statements",
        statements,
        Access.READER,
        "Fetch the signed statements",
        codes=("recording_not_found",),
    ),
    Route(
        "GET",
        "/v1/recordings/{recording}/timeline",
        timeline,
        Access.READER,
        "Fetch events and gaps",
        codes=("recording_not_found",),
    ),
    Route(
        "POST",
        "/v1/recordings/{recording}/verify",
        verify,
        Access.CLIENT,
        "Verify a recording",
        codes=_STATE,
    ),
)
