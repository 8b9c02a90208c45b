"""Simulcast layers of what a session receives: what is sent of them, and what its client wishes."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mediaserver.api import models
from mediaserver.api.routing import Access, Call, Route, answer
from mediaserver.api.whip import session_room


async def _ask(call: Call, more: dict[str, Any]) -> web.Response:
    room = session_room(call)
    params = {"session": call.path("session"), **more}
    result = await call.control.call_worker(room, "session.layers", params, with_room=False)
    return answer(models.Layers.model_validate(result))


async def show(call: Call) -> web.Response:
    """Show the layers of the pictures that a session receives, and which one is sent."""
    return await _ask(call, {})


async def wish(call: Call) -> web.Response:
    """Wish for a layer: of all pictures of the session, or of one source."""
    return await _ask(call, {"wish": call.body.model_dump()})


_CODES = ("session_not_found", "bad_request", "worker_unavailable")

ROUTES = (
    Route(
        "GET",
        "/v1/sessions/{session}/layers",
        show,
        Access.CLIENT,
        "Show which layers a session receives",
        answer=models.Layers,
        codes=_CODES,
    ),
    Route(
        "PATCH",
        "/v1/sessions/{session}/layers",
        wish,
        Access.CLIENT,
        "Wish for a layer",
        body=models.LayersPatch,
        answer=models.Layers,
        codes=_CODES,
    ),
)
