"""What a route is, and the one way every request goes: access, strict body, idempotency, handler."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pydantic
from aiohttp import web

from mediaserver.api import strictjson
from mediaserver.api.problems import Problem
from mediaserver.tokens import Principal

if TYPE_CHECKING:
    from mediaserver.control import Control


class Access(enum.Enum):
    """Who may call a route. Finer rules (whose room, which grant) are in ``auth``."""

    PUBLIC = "anyone"
    SERVER = "a server's token"
    CLIENT = "a server's or a client's token"
    READER = "a server's or a client's token, or a browser's session cookie (reading only)"
    COOKIE = "a browser's session cookie"


@dataclass
class Call:
    """One request on its way: who asks, what for, with which body."""

    request: web.Request
    control: Control
    route: Route
    principal: Principal | None
    body: Any = None

    @property
    def asker(self) -> Principal:
        """Who asks; only routes that are not public have one."""
        assert self.principal is not None
        return self.principal

    @property
    def tenant(self) -> str:
        return self.asker.tenant

    @property
    def actor(self) -> str:
        """Who is named in events: a participant's identity, or the API key."""
        return self.asker.identity or f"key:{self.asker.key_id}"

    def path(self, name: str) -> str:
        """Give a part of the path."""
        return self.request.match_info[name]


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Query:
    """One query parameter."""

    name: str
    description: str


@dataclass(frozen=True)
class Route:
    """One method on one path, with all that access, validation and documentation need."""

    method: str
    path: str
    handler: Handler
    access: Access
    summary: str
    body: type[pydantic.BaseModel] | str | None = None
    """Model of a JSON body (may be left out if it has no required field), or the media type of another body.
    """
    answer: type[pydantic.BaseModel] | str | None = None
    status: int = 200
    query: Sequence[Query] = field(default=())
    codes: Sequence[str] = field(default=())
    """Problem codes beside those that any route may answer."""


def answer(
    value: pydantic.BaseModel | dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """Make a JSON answer."""
    data = value.model_dump(mode="json") if isinstance(value, pydantic.BaseModel) else value
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    return web.Response(
        status=status, body=body, headers=headers, content_type="application/json", charset="utf-8"
    )


async def read_body(request: web.Request, route: Route) -> Any:
    """Read and validate the body a route wants; raises Problem."""
    if route.body is None:
        return None
    raw = await request.read()
    if isinstance(route.body, str):
        if request.content_type != route.body:
            raise Problem("media_type_unsupported", f"send {route.body}", headers={"Accept-Post": route.body})
        if not raw.strip():
            raise Problem("sdp_invalid", "the body is empty")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Problem("sdp_invalid", "not UTF-8") from error
    if not raw and not any(model_field.is_required() for model_field in route.body.model_fields.values()):
        return route.body()
    if request.content_type != "application/json":
        raise Problem("media_type_unsupported", "send application/json")
    return strictjson.read(raw, route.body)


KEPT_HEADERS = ("Location", "ETag", "Link", "Content-Type", "Set-Cookie", "Retry-After")


async def run(call: Call) -> web.StreamResponse:
    """Answer a request, once per Idempotency-Key.

    The key belongs to who sent it and to the path. A repeated request with the same body gets the stored
    answer (header ``Idempotency-Replayed: true``), one with another body ``idempotency_key_reused``. Our own
    failures (5xx) are not stored, so that trying again means something. Answers are kept, sealed, for 24 h.
    """
    key = call.request.headers.get("Idempotency-Key")
    if call.request.method != "POST" or key is None:
        call.body = await read_body(call.request, call.route)
        return await call.route.handler(call)
    if not 1 <= len(key) <= 128 or not key.isprintable():
        raise Problem("bad_request", "Idempotency-Key must have 1 to 128 printable characters")
    who = f"{call.asker.tenant}\0{call.asker.kind}\0{call.asker.identity}" if call.principal else ""
    scope = hashlib.sha256(f"{who}\0{call.request.path}\0{key}".encode()).hexdigest()
    raw = await call.request.read()
    target = f"{call.request.path_qs}\0{call.request.content_type}\0".encode()
    digest = hashlib.sha256(target + raw).hexdigest()
    store, database = call.control.store, call.control.database
    known = await database.run(store.claim_answer, scope, digest)
    if known is not None:
        return _replay(known, digest)
    try:
        call.body = await read_body(call.request, call.route)
        response = await call.route.handler(call)
    except Problem as problem:
        if problem.status >= 500 or problem.status == 429:
            await database.run(store.drop_answer, scope)
        else:
            await database.run(store.keep_answer, scope, _kept(problem.response()))
        raise
    except BaseException:
        await database.run(store.drop_answer, scope)
        raise
    assert isinstance(response, web.Response), "a POST answers whole"
    await database.run(store.keep_answer, scope, _kept(response))
    return response


def _kept(response: web.Response) -> dict[str, Any]:
    headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
    cookies = [morsel.OutputString() for morsel in response.cookies.values()]
    body = response.body.decode() if isinstance(response.body, bytes) else ""
    return {"status": response.status, "headers": headers, "cookies": cookies, "body": body}


def _replay(known: tuple[str, Any], digest: str) -> web.Response:
    first, kept = known
    if first != digest:
        raise Problem("idempotency_key_reused", "this Idempotency-Key came with another request before")
    if kept is None:
        raise Problem("idempotency_in_progress", "try again", headers={"Retry-After": "1"})
    response = web.Response(status=kept["status"], headers=kept["headers"], body=kept["body"].encode())
    for cookie in kept["cookies"]:
        response.headers.add("Set-Cookie", cookie)
    response.headers["Idempotency-Replayed"] = "true"
    return response
