"""Simulcast layers of what a session receives: what is sent of them, and what its client wishes."""

from __future__ import annotations

from typing import Any, Literal

from aiohttp import web
from pydantic import Field

from mediaserver.api.models import Answer, Request
from mediaserver.api.routing import Access, Call, Route, answer
from mediaserver.api.whip import session_room


class LayersPatch(Request):
    """Wishes for layers of received pictures, 0 the smallest; one that is null or left out: the highest."""

    preferred: int | None = Field(default=None, ge=0, le=2)
    maximum: int | None = Field(default=None, ge=0, le=2)
    temporal: int | None = Field(
        default=None, ge=0, le=2, description="Highest temporal layer, of a scalable stream only."
    )
    source: Literal["camera", "screen", "document"] | None = None


class Layer(Answer):
    layer: int = Field(description="0 is the smallest.")
    rid: str = Field(description="Its name in the publisher's offer; empty without simulcast.")
    alive: bool
    bps: int = Field(
        description="Payload rate of the last second, bit/s; 0: not measured. Of a scalable stream that of "
        "all up to it."
    )


class Picture(Answer):
    mid: str
    source: str
    track: str
    layer: int = Field(description="The layer that is sent, or will be from its next keyframe on.")
    switching: bool = Field(description="Its next keyframe is waited for.")
    preferred: int | None
    maximum: int | None
    temporal: int | None = Field(description="The wish for temporal layers; null: all.")
    temporal_layers: int = Field(description="How many the stream has; 0: it is not scalable.")
    target_bps: int | None = Field(description="What the line bears for this picture; null: no limit known.")
    layers: list[Layer]


class Layers(Answer):
    pictures: list[Picture]


async def _ask(call: Call, more: dict[str, Any]) -> web.Response:
    room = session_room(call)
    params = {"session": call.path("session"), **more}
    result = await call.control.call_worker(room, "session.layers", params, with_room=False)
    return answer(Layers.model_validate(result))


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
        answer=Layers,
        codes=_CODES,
    ),
    Route(
        "PATCH",
        "/v1/sessions/{session}/layers",
        wish,
        Access.CLIENT,
        "Wish for a layer",
        body=LayersPatch,
        answer=Layers,
        codes=_CODES,
    ),
)
