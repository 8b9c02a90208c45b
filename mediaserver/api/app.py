"""Put the API together: routes, errors as problems, security headers, CORS, who is really asking."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Middleware

from mediaserver.api import (
    audit,
    custody,
    events,
    exports,
    files,
    invites,
    keys,
    layers,
    recordings,
    rooms,
    signal,
    system,
    whip,
)
from mediaserver.api.auth import identify
from mediaserver.api.problems import CODES, Problem, from_http_error
from mediaserver.api.routing import Call, Route, run
from mediaserver.errors import Refused
from mediaserver.events import ORIGIN, Origin
from mediaserver.ipc import IpcError
from mediaserver.recordings.evidence import EvidenceProblem
from mediaserver.signal.line import Lines
from mediaserver.supervisor import NoWorker
from recorder.keys import KeysUnavailable, SealedOnly

if TYPE_CHECKING:
    from mediaserver.control import Control

_log = logging.getLogger(__name__)

ROUTES: tuple[Route, ...] = (
    *rooms.ROUTES,
    *whip.ROUTES,
    *layers.ROUTES,
    *signal.ROUTES,
    *recordings.ROUTES,
    *files.ROUTES,
    *custody.ROUTES,
    *exports.ROUTES,
    *events.ROUTES,
    *audit.ROUTES,
    *invites.ROUTES,
    *keys.ROUTES,
    *system.ROUTES,
)

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), display-capture=(self)",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
METHODS = frozenset(route.method for route in ROUTES)
CORS_METHODS = "GET, HEAD, POST, PATCH, DELETE, OPTIONS"
CORS_HEADERS = "Authorization, Content-Type, If-Match, Idempotency-Key, Range, Last-Event-ID"
CORS_EXPOSED = "Location, ETag, Link, Retry-After, Content-Range, Accept-Ranges"
HSTS = "max-age=31536000"
FAILED_SIGN_INS = ("token_invalid", "token_expired", "token_revoked")
MAX_PURPOSE = 64

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build(control: Control) -> web.Application:
    """Make the application of a control process."""
    app = web.Application(
        client_max_size=control.settings.http.max_body_bytes,
        middlewares=[_outermost(control), _cors(control)],
    )
    app[system.ROUTES_KEY] = ROUTES
    app[signal.LINES] = Lines()
    app.on_shutdown.append(signal.close_lines)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _handler(control, route))
    app.on_response_prepare.append(_secured(control))
    return app


def _handler(control: Control, route: Route) -> Next:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            principal = identify(request, control.tokens, route.access)
        except Problem as problem:
            if problem.code in FAILED_SIGN_INS:
                tenant = control.tokens.claimed_tenant(request.headers.get("Authorization", ""))
                control.sign_ins.note(request.remote or "", problem.code, tenant, time.monotonic())
            raise
        return await run(Call(request, control, route, principal))

    return handle


def problem_of(error: Exception) -> Problem:
    """Translate what handlers raise into a problem; what is none of it is our own failure."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Refused):
        return Problem(error.code, error.detail, **error.members)
    if isinstance(error, IpcError):
        status = None if error.code in CODES else error.status if 400 <= error.status < 600 else 500
        return Problem(error.code, error.detail, status=status)
    if isinstance(error, NoWorker | ConnectionError | TimeoutError):
        return Problem("worker_unavailable", str(error), headers={"Retry-After": "1"})
    if isinstance(error, SealedOnly):
        return Problem("sealed_only", str(error))
    if isinstance(error, KeysUnavailable):
        return Problem("keys_unavailable", str(error), headers={"Retry-After": "5"})
    if isinstance(error, EvidenceProblem):
        return Problem("internal", str(error))
    if isinstance(error, web.HTTPException):
        return from_http_error(error)
    _log.exception("request failed", exc_info=error)
    return Problem("internal", "the server's log says more")


def _outermost(control: Control) -> Middleware:
    @web.middleware
    async def outermost(request: web.Request, handler: Next) -> web.StreamResponse:
        started = time.monotonic()
        seen = _behind_proxy(request, control.settings.trusted_proxy)
        ORIGIN.set(Origin(seen.remote or "", _purpose(seen)))
        try:
            response = await handler(seen)
        except Exception as error:
            response = problem_of(error).response()
        stream = response.content_type == events.EVENT_STREAM or isinstance(response, web.WebSocketResponse)
        if not stream:
            control.metrics.request_seconds.observe(time.monotonic() - started)
        method = request.method if request.method in METHODS else "other"
        control.metrics.requests.labels(method, str(response.status)).inc()
        return response

    return outermost


def _purpose(request: web.Request) -> str:
    """Give what a request says it is for; ``?purpose=`` on any of them goes into the audit log."""
    purpose = request.query.get("purpose", "")
    return purpose if len(purpose) <= MAX_PURPOSE and purpose.isprintable() else ""


def _behind_proxy(request: web.Request, trusted: Sequence[str]) -> web.Request:
    """Believe X-Forwarded-For and -Proto of configured proxies only."""
    if not trusted or request.remote is None:
        return request
    networks = [ipaddress.ip_network(one) for one in trusted]

    def is_trusted(text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in networks)

    if not is_trusted(request.remote):
        return request
    chain = [one.strip() for one in request.headers.get("X-Forwarded-For", "").split(",") if one.strip()]
    # From the right: the nearest address that no proxy of ours wrote for itself is the client's.
    client = next((one for one in reversed(chain) if not is_trusted(one)), None)
    scheme = request.headers.get("X-Forwarded-Proto", "")
    changes: dict[str, str] = {}
    if client is not None:
        changes["remote"] = client
    if scheme in ("http", "https"):
        changes["scheme"] = scheme
    return request.clone(**changes) if changes else request  # type: ignore[arg-type]


def _cors(control: Control) -> Middleware:
    allowed = frozenset(control.settings.http.cors_origins)

    @web.middleware
    async def cors(request: web.Request, handler: Next) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not preflight or origin is None or origin not in allowed:
            return await handler(request)
        headers = {
            "Access-Control-Allow-Methods": CORS_METHODS,
            "Access-Control-Allow-Headers": CORS_HEADERS,
            "Access-Control-Max-Age": "600",
        }
        return web.Response(status=204, headers=headers)

    return cors


def _secured(control: Control) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    allowed = frozenset(control.settings.http.cors_origins)

    async def secured(request: web.Request, response: web.StreamResponse) -> None:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        if request.path.startswith("/v1/"):
            response.headers.setdefault("Cache-Control", "no-store")
        if control.is_https:
            response.headers.setdefault("Strict-Transport-Security", HSTS)
        origin = request.headers.get("Origin")
        if origin is not None and origin in allowed:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = CORS_EXPOSED
            response.headers["Vary"] = "Origin"
        response.headers.pop("Server", None)

    return secured
