"""The line between control and a media worker: JSON lines over a Unix stream socket.

The worker listens, the control process connects, because a worker and its calls outlive a control
process that dies. On connecting the server says ``{"ipc": 1, "epoch": …}``; then

* requests ``{"id": n, "method": …, "params": {…}}`` are answered, in any order, with
  ``{"id": n, "result": {…}}`` or ``{"id": n, "error": {"code": …, "detail": …, "status": …}}``;
* events ``{"n": k, "event": {…}}`` go to the control process until it says ``{"ack": k}`` (everything up to
  ``k`` is processed). Unacknowledged ones are sent again on the next connection.

Everything is bounded: a line (4 MiB), events kept (10 000; beyond that the oldest is dropped and counted),
events under way (256), requests under way (256), bytes waiting for a peer that does not read (32 MiB).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]
Handler = Callable[[JsonObject], Awaitable[JsonObject]]

MAX_LINE = 4 << 20
"""Bytes of one line, newline included. A large room's ``hello`` is about 100 KiB."""
KEEP_EVENTS = 10_000
EVENT_WINDOW = 256
MAX_REQUESTS = 256
MAX_UNSENT = 32 << 20

_log = logging.getLogger(__name__)


class IpcError(Exception):
    """A request failed on the other side; ``code`` is a stable problem code, ``status`` the HTTP status."""

    def __init__(self, code: str, detail: str = "", status: int = 500) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
        self.status = status


def encode_line(message: JsonObject) -> bytes:
    """Return ``message`` as one line; ValueError if it is over MAX_LINE, TypeError if it is not JSON."""
    line = json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of {len(line)} bytes is over the limit of {MAX_LINE}")
    return line


def decode_line(line: bytes) -> JsonObject:
    """Return the JSON object of one line; ValueError if it is anything else."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Give a name of ``path`` that fits sockaddr_un (108 bytes), going through its directory's descriptor."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class _Connection:
    """One connected control process, as the server sees it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.requests = asyncio.Semaphore(MAX_REQUESTS)
        self.sent = 0
        """Number of the last event written to this connection."""
        self.acked = 0

    def send(self, line: bytes) -> None:
        transport = self.writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() + len(line) > MAX_UNSENT:
            _log.warning("ipc peer does not read, closing its connection")
            transport.abort()
            return
        self.writer.write(line)


class IpcServer:
    """The worker's end: answers requests through ``handlers`` and publishes events.

    A handler raises IpcError to answer with an error. A request goes on when its connection is lost: what
    control asked for happens, only the answer is dropped. All methods belong to the event loop's thread.
    """

    def __init__(
        self, path: Path, handlers: Mapping[str, Handler], *, keep_events: int = KEEP_EVENTS
    ) -> None:
        self.path = path
        self.epoch = uuid.uuid4().hex
        self.dropped_events = 0
        """Events lost because nobody acknowledged them in time."""
        self._handlers = handlers
        self._keep = keep_events
        self._events: deque[tuple[int, bytes]] = deque()
        self._next = 1
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def unacknowledged(self) -> int:
        """Number of events kept for control."""
        return len(self._events)

    async def start(self) -> None:
        """Listen. A socket file left by a dead worker is replaced; the new one is 0600."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path.unlink(missing_ok=True)
            with _short_path(self.path) as name:
                listener.bind(name)
            self.path.chmod(0o600)
            listener.listen(8)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Stop listening, let running requests end (5 s at most) and take the socket file away."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.path.unlink(missing_ok=True)
        own = asyncio.current_task()
        running = {task for task in self._tasks if task is not own}
        if running:
            await asyncio.wait(running, timeout=5)
        for connection in list(self._connections):
            connection.writer.close()
        for task in running:
            task.cancel()

    def publish(self, event: JsonObject) -> int:
        """Keep and send one event; returns its number. ValueError or TypeError if it cannot be one line."""
        number = self._next
        line = encode_line({"n": number, "event": event})
        self._next += 1
        if len(self._events) >= self._keep:
            self._events.popleft()
            self.dropped_events += 1
        self._events.append((number, line))
        for connection in list(self._connections):
            self._pump(connection)
        return number

    def _pump(self, connection: _Connection) -> None:
        if not self._events:
            return
        first = self._events[0][0]
        connection.sent = max(connection.sent, first - 1)
        connection.acked = max(connection.acked, first - 1)
        while connection.sent < self._next - 1 and connection.sent - connection.acked < EVENT_WINDOW:
            connection.send(self._events[connection.sent + 1 - first][1])
            connection.sent += 1

    def _acknowledge(self, connection: _Connection, number: int) -> None:
        connection.acked = max(connection.acked, min(number, connection.sent))
        while self._events and self._events[0][0] <= connection.acked:
            self._events.popleft()
        self._pump(connection)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        connection.send(encode_line({"ipc": 1, "epoch": self.epoch, "pid": os.getpid()}))
        self._connections.add(connection)
        self._pump(connection)
        try:
            while line := await reader.readline():
                await self._take(connection, decode_line(line))
        except ConnectionError:
            _log.debug("ipc connection reset")
        except ValueError as error:  # readline raises it for an over-long line too
            _log.warning("ipc peer sent rubbish, closing its connection: %s", error)
            connection.send(encode_line({"id": None, "error": _problem("bad_request", str(error), 400)}))
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _take(self, connection: _Connection, message: JsonObject) -> None:
        if "ack" in message:
            number = message["ack"]
            if not isinstance(number, int):
                raise ValueError("ack is not a number")
            self._acknowledge(connection, number)
            return
        number, method, params = message.get("id"), message.get("method"), message.get("params", {})
        if not isinstance(number, int) or not isinstance(method, str) or not isinstance(params, dict):
            raise ValueError("neither a request nor an acknowledgement")
        await connection.requests.acquire()  # over the bound: stop reading, the peer waits
        task = asyncio.create_task(self._answer(connection, number, method, params), name=f"ipc {method}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, connection: _Connection, number: int, method: str, params: JsonObject) -> None:
        try:
            handler = self._handlers.get(method)
            if handler is None:
                raise IpcError("method_unknown", method, 501)
            line = encode_line({"id": number, "result": await handler(params)})
        except IpcError as error:
            line = encode_line({"id": number, "error": _problem(error.code, error.detail, error.status)})
        except Exception as error:
            _log.exception("ipc request %s failed", method)
            line = encode_line({"id": number, "error": _problem("internal", type(error).__name__, 500)})
        finally:
            connection.requests.release()
        connection.send(line)


def _problem(code: str, detail: str, status: int) -> JsonObject:
    return {"code": code, "detail": detail[:4096], "status": status}


class IpcClient:
    """Control's end. Connects, and connects again after a loss, until closed.

    ``on_lost`` is called (in the event loop) each time a connection ends that close() did not end.
    """

    def __init__(self, path: Path, *, on_lost: Callable[[], None] | None = None) -> None:
        self.path = path
        self.epoch = ""
        """Identity of the server process last connected to."""
        self.peer_pid = 0
        """Process id of the listener, from the kernel (SO_PEERCRED)."""
        self._on_lost = on_lost
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._pending: dict[int, asyncio.Future[JsonObject]] = {}
        self._last_request = 0
        self._last_event = 0
        self._queue: asyncio.Queue[tuple[str, int, JsonObject] | None] = asyncio.Queue()
        self._run: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Wait until the server answers; ConnectionError after ``timeout_s``. Trying goes on after that."""
        if self._closed:
            raise ConnectionError("this client is closed")
        if self._run is None:
            self._run = asyncio.create_task(self._keep_connected(), name=f"ipc client {self.path.name}")
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError:
            raise ConnectionError(f"nobody answers on {self.path}") from None

    async def call(
        self, method: str, params: JsonObject | None = None, timeout_s: float = 10.0
    ) -> JsonObject:
        """Ask and wait for the answer.

        Raises IpcError (the other side refused), ConnectionError (not connected, or lost while waiting: the
        request may or may not have been carried out), TimeoutError (no answer in ``timeout_s``).
        """
        if self._writer is None or not self.connected:
            raise ConnectionError(f"not connected to {self.path}")
        self._last_request += 1
        number = self._last_request
        line = encode_line({"id": number, "method": method, "params": params or {}})
        future: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            self._writer.write(line)
            async with asyncio.timeout(timeout_s):
                await self._writer.drain()
                return await future
        finally:
            self._pending.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # seen: a loss may have failed it while drain() raised

    @property
    def events(self) -> AsyncIterator[JsonObject]:
        """Iterate over the server's events, over all reconnections, until close().

        An event is acknowledged when the loop's body is done with it (the next one is asked for), so one
        whose processing control did not survive comes again.
        """
        return self._one_by_one()

    async def _one_by_one(self) -> AsyncIterator[JsonObject]:
        async for (event,), acknowledge in self.batches(1):
            yield event
            acknowledge()

    async def batches(
        self, limit: int = EVENT_WINDOW
    ) -> AsyncIterator[tuple[list[JsonObject], Callable[[], None]]]:
        """Iterate over ``events`` by what has come, at most ``limit`` at a time.

        With each batch comes what acknowledges it and all before it: to be called once it is processed, which
        may be later.
        """
        ended = False
        while not ended and (item := await self._queue.get()) is not None:
            epoch, number, event = item
            batch = [event]
            while len(batch) < limit and not self._queue.empty():
                following = self._queue.get_nowait()
                if following is None:
                    ended = True
                    break
                if following[0] != epoch:  # of another server process, numbered anew: it waits for no answer
                    yield batch, lambda: None
                    batch, epoch = [], following[0]
                number = following[1]
                batch.append(following[2])
            yield batch, partial(self._acknowledge, epoch, number)

    def _acknowledge(self, epoch: str, number: int) -> None:
        if self._writer is not None and epoch == self.epoch:
            self._writer.write(encode_line({"ack": number}))

    async def close(self) -> None:
        """End the connection, fail what is pending and end the event iteration."""
        self._closed = True
        if self._run is not None:
            self._run.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._run
            self._run = None
        self._queue.put_nowait(None)

    async def _keep_connected(self) -> None:
        delay_s = 0.02
        while True:
            try:
                with _short_path(self.path) as name:
                    reader, writer = await asyncio.open_unix_connection(name, limit=MAX_LINE)
            except OSError:
                await asyncio.sleep(delay_s)
                delay_s = min(1.0, delay_s * 1.5)
                continue
            try:
                await self._converse(reader, writer)
                delay_s = 0.02
            except (ConnectionError, ValueError, KeyError, TypeError) as error:
                _log.warning("ipc connection to %s broke: %s", self.path.name, error)
                await asyncio.sleep(delay_s)
                delay_s = min(1.0, delay_s * 1.5)
            finally:
                self._lose(writer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = decode_line(await reader.readline() or b"{}")
        if greeting.get("ipc") != 1:
            raise ConnectionError("the server did not greet")
        if greeting["epoch"] != self.epoch:
            self.epoch, self._last_event = str(greeting["epoch"]), 0
        self.peer_pid = _peer_pid(writer)
        self._writer = writer
        self._connected.set()
        while line := await reader.readline():
            message = decode_line(line)
            if "event" in message:
                number = int(message["n"])
                if number > self._last_event:  # else it was sent again and waits in the queue already
                    self._last_event = number
                    self._queue.put_nowait((self.epoch, number, message["event"]))
            else:
                self._resolve(message)

    def _resolve(self, message: JsonObject) -> None:
        future = self._pending.get(message["id"]) if message.get("id") is not None else None
        if future is None or future.done():
            return  # its caller stopped waiting
        if "error" in message:
            error = message["error"]
            future.set_exception(IpcError(error["code"], error["detail"], error["status"]))
        else:
            future.set_result(message["result"])

    def _lose(self, writer: asyncio.StreamWriter) -> None:
        was_connected = self.connected
        self._connected.clear()
        self._writer = None
        writer.close()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ConnectionError(f"lost the connection to {self.path.name}"))
        if was_connected and not self._closed and self._on_lost is not None:
            self._on_lost()


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    peer = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little")
