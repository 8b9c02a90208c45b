"""The keys: rotating a tenant's recordings to the current ones."""

from __future__ import annotations

from aiohttp import web

from mediaserver.api.routing import Access, Call, Route, answer


async def rewrap(call: Call) -> web.Response:
    """Start moving the tenant's recordings from the former keys to the current ones, in the background."""
    return answer(await call.control.rewrapping.start(call.tenant, call.actor), status=202)


async def rewrap_state(call: Call) -> web.Response:
    """Say how far that is."""
    return answer(await call.control.rewrapping.state(call.tenant))


ROUTES = (
    Route(
        "POST",
        "/v1/keys/rewrap",
        rewrap,
        Access.SERVER,
        "Move the tenant's recordings from the former keys to the current ones",
        status=202,
        codes=("former_keys_missing",),
    ),
    Route("GET", "/v1/keys/rewrap", rewrap_state, Access.SERVER, "How far that is"),
)
