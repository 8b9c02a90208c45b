"""Who may do what: all rules in one place, deny by default.

A server's token may do everything in its tenant. A client's token may do in its own room what its grants say.
A browser's session cookie is for reading only, so that another site can make a browser do nothing with it.
What belongs to another tenant does not exist for the asker (404, never 403).
"""

from __future__ import annotations

from aiohttp import web

from mediaserver.api.problems import Problem
from mediaserver.api.routing import Access, Call
from mediaserver.rooms import Room
from mediaserver.tokens import Principal, TokenError, Tokens
from recorder.catalog import Entry

COOKIE = "shuanglu_session"


def identify(request: web.Request, tokens: Tokens, access: Access) -> Principal | None:
    """Find out who asks; raises Problem unless the route's access lets them in."""
    if access is Access.PUBLIC:
        return None
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    try:
        if token and scheme.lower() == "bearer":
            principal = tokens.verify(token.strip())
        elif COOKIE in request.cookies and access in (Access.READER, Access.COOKIE):
            principal = tokens.verify_session(request.cookies[COOKIE])
        else:
            raise Problem(
                "token_missing", f"this needs {access.value}", headers={"WWW-Authenticate": "Bearer"}
            )
    except TokenError as error:
        headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise Problem(error.code, error.detail, headers=headers) from error
    allowed = {
        Access.SERVER: ("server",),
        Access.CLIENT: ("server", "client"),
        Access.READER: ("server", "client", "cookie"),
        Access.COOKIE: ("cookie",),
    }[access]
    if principal.kind not in allowed:
        raise Problem("forbidden", f"this needs {access.value}")
    return principal


def require(call: Call, grant: str) -> None:
    """Demand a grant of a participant; servers have all."""
    asker = call.asker
    if asker.kind != "server" and not getattr(asker.grants, grant):
        raise Problem("forbidden", f"the token does not grant {grant}")


def room_of(call: Call, name: str) -> Room:
    """Find an open room the asker may see; raises Problem."""
    asker = call.asker
    if asker.kind != "server" and asker.room != name:
        raise Problem("forbidden", "the token is for another room")
    room = call.control.rooms.get(asker.tenant, name)
    if room is None:
        raise Problem("room_not_found", "the room is not open")
    return room


def may_see(asker: Principal, tenant: str, room: str | None) -> bool:
    """Say whether something of a tenant's room is the asker's to see."""
    return asker.tenant == tenant and (asker.kind == "server" or asker.room == room)


async def recording_of(call: Call, *, grant: str = "record") -> Entry:
    """Find the recording that the path names, if the asker may have it; raises Problem."""
    entry = await call.control.recordings.find(call.path("recording"))
    if entry is None or not may_see(call.asker, entry.tenant, entry.room):
        raise Problem("recording_not_found", "no recording has this id")
    require(call, grant)
    return entry
