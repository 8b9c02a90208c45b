"""``/v1/signal``: the WebSocket's life, from first message to close. Requests are in ``signalling``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

import pydantic
from aiohttp import WSCloseCode, WSMsgType, web

from mediaserver.api import signalling, strictjson
from mediaserver.api.auth import require, room_of
from mediaserver.api.problems import Problem
from mediaserver.api.routing import Access, Call, Route
from mediaserver.signal.line import GRACE_S, Line, Lines
from mediaserver.signal.messages import (
    MAX_MESSAGE,
    REQUEST,
    Done,
    Failed,
    Join,
    Leave,
    Ping,
    Pong,
    Request,
    Resume,
    ServerMessage,
    Welcome,
)
from mediaserver.tokens import Principal, TokenError
from recorder.clock import rfc3339

LINES: web.AppKey[Lines] = web.AppKey("lines", Lines)
HEARTBEAT_S = 15.0
FIRST_S = 10.0
"""The first message must come within this."""
IDLE_S = 60.0
"""So long a client may say nothing; it sends ``ping``."""
SEND_S = 10.0
"""Who takes nothing of what is sent for so long is cut off: a close would wait in the same queue."""
MAX_UNNAMED = 512
"""Sockets that have not said who they are. One more costs the oldest its place: who has a token shows it at
once, who holds sockets open pushes out its own."""
MAX_FAULTS = 10
"""Messages that cannot be read, of one socket."""
CLOSES = {
    "token_missing": 4401,
    "token_invalid": 4401,
    "token_expired": 4401,
    "token_revoked": 4401,
    "forbidden": 4403,
    "room_not_found": 4404,
    "idle": 4408,
    "replaced": 4409,
    "resume_expired": 4410,
    "room_closed": 4410,
    "too_slow": 4413,
    "rate_limited": 4429,
    "left": int(WSCloseCode.OK),
    "draining": int(WSCloseCode.GOING_AWAY),
}
"""WebSocket close codes; the close's reason is the problem code. Any other reason closes with 4400."""


async def signal(call: Call) -> web.StreamResponse:
    """Open the signalling WebSocket (docs/signal.md); the token comes in its first message."""
    _check_origin(call)
    lines = call.request.app[LINES]
    socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE, compress=False)
    if not socket.can_prepare(call.request):
        raise Problem("bad_request", "this is a WebSocket", headers={"Upgrade": "websocket"})
    await socket.prepare(call.request)
    line = await _first(call, socket, lines)
    if line is None:
        return socket
    writer = asyncio.create_task(_write(call, line, socket))
    try:
        await _read(call, line, socket, lines)
    finally:
        lines.lost(line, socket)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        if not socket.closed:
            _cut(call)
    return socket


def _check_origin(call: Call) -> None:
    """Refuse other origins' pages unless ``http.cors_origins`` names them."""
    origin = call.request.headers.get("Origin")
    if origin is None or origin in call.control.settings.http.cors_origins:
        return
    own = {call.request.host, urlsplit(call.control.settings.http.public_url).netloc}
    if urlsplit(origin).netloc not in own - {""}:  # "null" has none either: a sandboxed frame, a file
        raise Problem("forbidden", "http.cors_origins does not name this page's origin")


async def _first(call: Call, socket: web.WebSocketResponse, lines: Lines) -> Line | None:
    """Take ``join`` or ``resume``; closes the socket on anything else."""
    from mediaserver.api.app import problem_of

    number = 0
    line: Line | None = None
    try:
        message = await _introduction(socket, lines)
        if message is None:
            return None
        request = read(message)
        number = request.id
        if not isinstance(request, Join | Resume):
            raise Problem("token_missing", "the first message is join or resume")
        call.principal = _identify(call, request.token)
        room = room_of(call, call.principal.room)
        require_any(call)
        allowance = lines.allowance(call.principal)
        if not allowance.take():
            raise Problem("rate_limited", "too many messages")
        await call.control.note_token(call.principal)
        if isinstance(request, Resume):
            found = lines.find(request.resume, call.principal)
            if found is None or request.id <= found.last_id or not found.rewind(request.last_seq):
                raise Problem("resume_expired", "the signalling session is not here any more: join anew")
            line = found
            line.principal, line.token, taken = call.principal, request.token, line.last_id
        else:
            line, taken = Line(call.principal, request.token, allowance=allowance), request.id
            lines.add(line)
            call.control.spawn(signalling.follow(call, line, lines))
        line.last_id = request.id
        line.socket = socket
        one = await call.control.rooms.admit(
            room,
            call.principal.identity,
            call.principal.role,
            call.principal.name,
            hidden=call.principal.grants.hidden,
        )
        await _send(
            call,
            socket,
            Welcome,
            seq=request.last_seq if isinstance(request, Resume) else 0,
            re=request.id,
            resumed=isinstance(request, Resume),
            resume=line.key,
            grace_s=GRACE_S,
            last_id=taken,
            room=room.name,
            identity=call.principal.identity,
            seat=one.seat,
            participants=signalling.participants(call, room),
            recordings=[active.entry.id for active in call.control.recordings.in_room(*room.key)],
        )
    except Exception as error:  # what it is, is for problem_of
        if line is not None:
            lines.lost(line, socket)
        await _refuse(call, socket, number, problem_of(error))
        return None
    return line


async def _introduction(socket: web.WebSocketResponse, lines: Lines) -> str | None:
    """Wait for the first message, beside ``MAX_UNNAMED`` others. Raises Problem as ``_receive``."""
    while len(lines.unnamed) >= MAX_UNNAMED:
        lines.unnamed.pop(next(iter(lines.unnamed))).set()
    pushed = lines.unnamed[socket] = asyncio.Event()
    message = asyncio.create_task(_receive(socket, FIRST_S))
    out = asyncio.create_task(pushed.wait())
    try:
        await asyncio.wait((message, out), return_when=asyncio.FIRST_COMPLETED)
        if not message.done():
            raise Problem("rate_limited", "too many sockets wait to be named")
        return message.result()
    finally:
        lines.unnamed.pop(socket, None)
        message.cancel()
        out.cancel()


def require_any(call: Call) -> None:
    """Demand a client's token that may publish or subscribe."""
    if call.asker.kind != "client":
        raise Problem("forbidden", "signalling needs a client token, because it names the participant")
    if not call.asker.grants.publish:
        require(call, "subscribe")


def _identify(call: Call, token: str) -> Principal:
    control = call.control
    try:
        return control.tokens.verify(token)
    except TokenError as error:
        tenant = control.tokens.claimed_tenant(f"Bearer {token}")
        control.sign_ins.note(call.request.remote or "", error.code, tenant, time.monotonic())
        raise Problem(error.code, error.detail) from error


async def _receive(socket: web.WebSocketResponse, seconds: float) -> str | None:
    """Wait for a message; None once the socket is closed. Raises Problem."""
    try:
        async with asyncio.timeout(seconds):
            message = await socket.receive()
    except TimeoutError:
        raise Problem("idle", f"nothing came for {seconds:g} s") from None
    if message.type is WSMsgType.TEXT:
        return str(message.data)
    if message.type is WSMsgType.BINARY:
        raise Problem("json_invalid", "messages are text")
    return None


def read(text: str) -> Request:
    """Read a request strictly; raises Problem json_invalid or body_invalid, the latter naming fields."""
    value = strictjson.parse(text.encode("utf-8", "surrogatepass"))
    try:
        return REQUEST.validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in fault["loc"])
        number = value.get("id") if isinstance(value, dict) else None
        known = number if isinstance(number, int) and not isinstance(number, bool) else 0
        raise Problem("body_invalid", f"{name}: {fault['msg']}"[:500], re=known) from None


async def _read(call: Call, line: Line, socket: web.WebSocketResponse, lines: Lines) -> None:
    """Take requests, one after the other, until the socket or the line ends."""
    faults = 0
    while line.socket is socket and not line.ending:
        number = 0
        try:
            text = await _receive(socket, min(IDLE_S, max(0.0, call.asker.expires_at - time.time()) + 1.0))
            if text is None:
                return
            if not line.allowance.take():
                raise Problem("rate_limited", "too many messages")
            _identify(call, line.token)  # expired or revoked meanwhile?
            request = read(text)
            number = request.id
            if request.id <= line.last_id:
                raise Problem("body_invalid", f"id: must rise; the last one taken is {line.last_id}")
            line.last_id = request.id
            if isinstance(request, Ping):
                line.acknowledge(request.last_seq)
                await _send(call, socket, Pong, seq=line.seq, re=request.id, time=rfc3339(time.time_ns()))
            elif isinstance(request, Leave):
                await signalling.leave(call, line)
                lines.drop(line, "left")
                line.put(Done, re=request.id)
            else:
                await signalling.answer(call, line, lines, request)
        except Problem as problem:
            fatal = problem.code in ("idle", "rate_limited") or CLOSES.get(problem.code) == 4401
            number = problem.members.pop("re", number)
            faults += problem.code in ("json_invalid", "body_invalid")
            if fatal or faults > MAX_FAULTS:
                await _refuse(call, socket, number, problem)
                return
            line.put(Failed, re=max(0, number), problem=problem.to_json())
        except ConnectionError:
            return
    if line.socket is not socket:
        await _close(call, socket, "replaced")
    else:
        await asyncio.sleep(0)  # the writer closes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEND_S):
                while not socket.closed:
                    await socket.receive()


async def _write(call: Call, line: Line, socket: web.WebSocketResponse) -> None:
    """Send what is queued, until another socket takes the line over."""
    while line.socket is socket:
        if (text := line.next_text()) is not None:
            await _take(call, socket.send_str(text))
        elif line.ending:
            await _say_goodbye(call, socket, line.ending)
            return
        else:
            line.wake.clear()
            await line.wake.wait()


async def _take(call: Call, sending: Coroutine[Any, Any, object]) -> None:
    """Give a client ``SEND_S`` to take what is sent; raises ConnectionError, and cuts off who does not."""
    try:
        async with asyncio.timeout(SEND_S):
            await sending
    except TimeoutError:
        _cut(call)
        raise ConnectionResetError("the client takes nothing") from None


def _cut(call: Call) -> None:
    if (transport := call.request.transport) is not None:
        transport.abort()


async def _send(
    call: Call, socket: web.WebSocketResponse, kind: type[ServerMessage], **members: object
) -> None:
    text = kind(**members).model_dump_json()  # type: ignore[arg-type]  # pydantic checks
    await _take(call, socket.send_str(text))


async def _refuse(call: Call, socket: web.WebSocketResponse, number: int, problem: Problem) -> None:
    """Say what is wrong and close."""
    if not socket.closed:
        try:
            number = int(problem.members.pop("re", number))
            await _send(call, socket, Failed, seq=0, re=max(0, number), problem=problem.to_json())
        except ConnectionError:
            return
    await _close(call, socket, problem.code)


async def _close(call: Call, socket: web.WebSocketResponse, reason: str) -> None:
    call.control.metrics.signal_closed.labels(reason if reason in CLOSES else "other").inc()
    await _say_goodbye(call, socket, reason)


async def _say_goodbye(call: Call, socket: web.WebSocketResponse, reason: str) -> None:
    with contextlib.suppress(ConnectionError):
        await _take(call, socket.close(code=CLOSES.get(reason, 4400), message=reason.encode()))


async def close_lines(app: web.Application) -> None:
    """Close all sockets: the server goes down and must not wait for them."""
    app[LINES].close()


ROUTES = (
    Route(
        "GET",
        "/v1/signal",
        signal,
        Access.PUBLIC,
        "Open the signalling WebSocket; the token comes in its first message",
        status=101,
        codes=("rate_limited", "forbidden"),
    ),
    *signalling.ROUTES,
)
