"""The event log: what happened, in one order, durable, readable from any point and followed live.

One envelope everywhere, in journal, stream, webhook and audit:
``{id, seq, type, time, tenant, room, recording, actor, data}``. ``seq`` rises over all tenants of a server,
with holes for each of them. Events whose type begins with ``audit.`` are for servers, not for participants.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from mediaserver.store import Database, Store
from mediaserver.store import events as table
from recorder.catalog import Entry
from recorder.clock import rfc3339
from recorder.ids import uuid7

Envelope = dict[str, Any]
Row = dict[str, Any]
Logged = asyncio.Future[Envelope]
AT_ONCE = 100
"""Events in one transaction."""
LINGER_S = 0.05
"""What a joining client causes comes within so long."""
_INSERT = table.insert()
FOLLOWER_QUEUE = 1000
"""Events kept for one slow follower; beyond it the stream ends and is taken up again by seq."""


class Follower:
    """One live reader. ``next`` gives None when the reader was too slow and must read on by seq."""

    def __init__(self, wanted: Callable[[Envelope], bool]) -> None:
        self._wanted = wanted
        self._queue: asyncio.Queue[Envelope] = asyncio.Queue(FOLLOWER_QUEUE)
        self._overrun = False

    def offer(self, event: Envelope) -> None:
        """Give an event to the reader, never waiting."""
        if self._overrun or not self._wanted(event):
            return
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._overrun = True

    async def next(self) -> Envelope | None:
        """Wait for the next event."""
        if self._overrun and self._queue.empty():
            return None
        return await self._queue.get()


class EventLog:
    """Appends events and gives them out."""

    def __init__(self, store: Store, database: Database) -> None:
        self._store = store
        self._database = database
        self._followers: set[Follower] = set()
        self._waiting: deque[tuple[Envelope, Row, asyncio.Future[Envelope]]] = deque()
        self._hurry = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    async def append(
        self,
        kind: str,
        *,
        tenant: str,
        room: str | None = None,
        recording: str | None = None,
        actor: str = "server",
        data: dict[str, Any] | None = None,
    ) -> Envelope:
        """Write one event; it is durable and has its ``seq`` when this returns."""
        future = self.put(kind, tenant=tenant, room=room, recording=recording, actor=actor, data=data)
        self._hurry.set()
        return await future

    async def append_about(
        self, entry: Entry, kind: str, data: dict[str, Any], actor: str = "server"
    ) -> Envelope:
        """Write an event about a recording, as ``append`` does."""
        return await self.append(
            kind, tenant=entry.tenant, room=entry.room, recording=entry.id, actor=actor, data=data
        )

    def put(
        self,
        kind: str,
        *,
        tenant: str,
        room: str | None = None,
        recording: str | None = None,
        actor: str = "server",
        data: dict[str, Any] | None = None,
    ) -> asyncio.Future[Envelope]:
        """Hand one event over; it is durable and has its ``seq`` when the future is done.

        Events keep the order in which they were handed over. They wait ``LINGER_S`` for others, unless
        somebody waits in ``append``, because writing several together costs hardly more than one.
        """
        event: Envelope = {
            "id": str(uuid7()),
            "seq": 0,
            "type": kind,
            "time": rfc3339(time.time_ns()),
            "tenant": tenant,
            "room": room,
            "recording": recording,
            "actor": actor,
            "data": data or {},
        }
        body = {name: event[name] for name in ("id", "time", "actor", "data")}
        row: Row = {
            "tenant": tenant,
            "type": kind,
            "room": room,
            "recording": recording,
            "sealed": self._store.key.seal(body, "events.sealed"),
        }
        future: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, row, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="event log")
        return future

    async def settle(self) -> None:
        """Wait until everything handed over is written."""
        self._hurry.set()
        if self._writing is not None:
            await self._writing

    async def _write(self) -> None:
        while self._waiting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._hurry.wait()
            self._hurry.clear()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), AT_ONCE))]
            try:
                numbers = await self._database.run(self._insert, [row for _, row, _ in batch])
            except Exception as error:  # it belongs to those who wait for it
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (event, _, future), number in zip(batch, numbers, strict=True):
                event["seq"] = number
                for follower in self._followers:
                    follower.offer(event)
                if not future.done():
                    future.set_result(event)
        self._writing = None

    def _insert(self, rows: list[Row]) -> list[int]:
        numbers = []
        with self._store.engine.begin() as connection:
            for row in rows:
                key = connection.execute(_INSERT, row).inserted_primary_key
                assert key is not None
                numbers.append(int(key[0]))
        return numbers

    async def after(
        self,
        tenant: str,
        seq: int,
        *,
        limit: int = 500,
        room: str | None = None,
        recording: str | None = None,
        with_audit: bool = True,
    ) -> list[Envelope]:
        """Read events with a larger ``seq``, oldest first, at most ``limit``."""
        conditions = [table.c.tenant == tenant, table.c.seq > seq]
        if room is not None:
            conditions.append(table.c.room == room)
        if recording is not None:
            conditions.append(table.c.recording == recording)
        if not with_audit:
            conditions.append(~table.c.type.startswith("audit."))
        return await self._database.run(self._select, conditions, limit)

    def _select(self, conditions: list[sa.ColumnElement[bool]], limit: int) -> list[Envelope]:
        query = sa.select(table).where(*conditions).order_by(table.c.seq).limit(limit)
        with self._store.engine.connect() as connection:
            rows = list(connection.execute(query).mappings())
        return [self._envelope(row) for row in rows]

    def _envelope(self, row: sa.RowMapping) -> Envelope:
        body = self._store.key.unseal(row["sealed"], "events.sealed")
        return {
            "id": body["id"],
            "seq": row["seq"],
            "type": row["type"],
            "time": body["time"],
            "tenant": row["tenant"],
            "room": row["room"],
            "recording": row["recording"],
            "actor": body["actor"],
            "data": body["data"],
        }

    def follow(self, wanted: Callable[[Envelope], bool]) -> Follower:
        """Begin to follow; give it back with ``leave``."""
        follower = Follower(wanted)
        self._followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """Stop following."""
        self._followers.discard(follower)
