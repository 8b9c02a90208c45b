"""The event log over HTTP: pages of JSON, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import time

from aiohttp import web

from mediaserver.api import models
from mediaserver.api.problems import Problem
from mediaserver.api.recordings import event_is_visible, shown_to
from mediaserver.api.routing import Access, Call, Query, Route, answer
from mediaserver.events import Envelope

MAX_PAGE = 1000
HEARTBEAT_S = 15.0
EVENT_STREAM = "text/event-stream"


async def read_events(call: Call) -> web.StreamResponse:
    """Read events after a sequence number; with Accept: text/event-stream go on as they happen."""
    query = call.request.query
    resume = call.request.headers.get("Last-Event-ID", query.get("after", "0"))
    try:
        after = int(resume)
        limit = int(query.get("limit", 500))
    except ValueError as error:
        raise Problem("bad_request", "after and limit are whole numbers") from error
    if not 0 <= after < 1 << 62 or not 1 <= limit <= MAX_PAGE:
        raise Problem("bad_request", f"after must not be negative, limit 1 to {MAX_PAGE}")
    if EVENT_STREAM in call.request.headers.get("Accept", ""):
        return await _stream(call, after)
    events = await _page(call, after, limit)
    last = events[-1]["seq"] if events else after
    visible = [shown_to(call, event) for event in events if event_is_visible(call, event)]
    shown = [models.Event.model_validate(event) for event in visible]
    return answer(models.Events(events=shown, next=last))


async def _page(call: Call, after: int, limit: int) -> list[Envelope]:
    server = call.asker.kind == "server"
    return await call.control.events.after(
        call.tenant, after, limit=limit, room=None if server else call.asker.room, with_audit=server
    )


async def _stream(call: Call, after: int) -> web.StreamResponse:
    """Send what is there, then what comes, until the reader leaves, its token ends or the server closes."""
    response = web.StreamResponse(
        headers={"Content-Type": EVENT_STREAM, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    log = call.control.events
    # Followed before the log is read, so that nothing falls between; what is seen twice is told by its seq.
    follower = log.follow(lambda event: event_is_visible(call, event))
    try:
        await response.prepare(call.request)
        await response.write(b"retry: 1000\n\n")
        while page := await _page(call, after, 500):
            for event in page:
                if event_is_visible(call, event):
                    await response.write(_frame(shown_to(call, event)))
            after = page[-1]["seq"]
        while not call.control.closing.is_set() and time.time() < call.asker.expires_at:
            try:
                event_or_none = await asyncio.wait_for(follower.next(), HEARTBEAT_S)
            except TimeoutError:
                await response.write(b": still here\n\n")
                continue
            if event_or_none is None:
                break
            if event_or_none["seq"] > after:
                after = event_or_none["seq"]
                await response.write(_frame(shown_to(call, event_or_none)))
    except ConnectionError:
        return response  # the reader left; it resumes with Last-Event-ID
    finally:
        log.leave(follower)
    return response


def _frame(event: Envelope) -> bytes:
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"id: {event['seq']}\nevent: {event['type']}\ndata: {data}\n\n".encode()


ROUTES = (
    Route(
        "GET",
        "/v1/events",
        read_events,
        Access.READER,
        "Read or follow events",
        answer=models.Events,
        query=(
            Query("after", "events with a larger seq; Last-Event-ID does the same for a stream"),
            Query("limit", f"1 to {MAX_PAGE}, default 500"),
        ),
    ),
)
