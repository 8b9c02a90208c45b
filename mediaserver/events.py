"""The event log: what happened, in one order, durable, readable from any point and followed live.

One envelope everywhere, in journal, stream, webhook and audit log:
``{id, seq, type, time, tenant, room, recording, actor, data}``. ``seq`` rises over all tenants of a server,
with holes for each of them. Events whose type begins with ``audit.`` are for servers, not for participants.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass
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
OWN_ACTORS = ("server", "compositor", "auto")
"""Who asks from nowhere, even in the midst of a request."""
FOLLOWER_QUEUE = 1000
"""Events kept for one slow follower; beyond it the stream ends and is taken up again by seq."""


@dataclass(frozen=True, slots=True)
class Origin:
    """From where and what for something was asked. Not in the envelope: for the audit log alone."""

    address: str = ""
    purpose: str = ""


NOWHERE = Origin()
ORIGIN: ContextVar[Origin] = ContextVar("origin", default=NOWHERE)
"""Of the request at work; what it causes carries it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An event as the audit log has it."""

    event: Envelope
    origin: Origin


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events to search for; what is None or empty does not matter."""

    tenants: Collection[str]
    kind: str = ""
    """A type, or its beginning and ``*``."""
    recording: str = ""
    actor: str = ""
    begin: str = ""
    """RFC 3339, UTC."""
    end: str = ""


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
        self._waiting: deque[tuple[Kept, Row, asyncio.Future[Envelope]]] = deque()
        self._hurry = asyncio.Event()
        self.keep: Callable[[list[Kept]], Awaitable[None]] | None = None
        """Takes what was written, in order, before whoever waits for it is told (the audit log)."""
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
        origin: Origin | None = None,
    ) -> asyncio.Future[Envelope]:
        """Hand one event over; it is durable and has its ``seq`` when the future is done.

        ``origin`` is that of the request at work unless given. Events keep the order in which they were
        handed over. They wait ``LINGER_S`` for others, unless somebody waits in ``append``, because writing
        several together costs hardly more than one.
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
        if origin is None:
            origin = NOWHERE if actor in OWN_ACTORS else ORIGIN.get()
        purpose = event["data"].get("purpose")
        if isinstance(purpose, str):
            origin = Origin(origin.address, purpose)
        body = {name: event[name] for name in ("id", "time", "actor", "data")}
        body |= {"address": origin.address, "purpose": origin.purpose}
        row: Row = {
            "tenant": tenant,
            "type": kind,
            "room": room,
            "recording": recording,
            "at": event["time"],
            "actor_key": self._actor_key(tenant, actor),
            "sealed": self._store.key.seal(body, "events.sealed"),
        }
        future: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        self._waiting.append((Kept(event, origin), row, future))
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
            for (kept, _, _), number in zip(batch, numbers, strict=True):
                kept.event["seq"] = number
            if self.keep is not None:
                await self.keep([kept for kept, _, _ in batch])
            for kept, _, future in batch:
                event = kept.event
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
        return [one.event for one in await self._database.run(self._select, conditions, limit)]

    async def everything_after(self, seq: int, limit: int) -> list[Kept]:
        """Read every tenant's events with a larger ``seq``, oldest first."""
        return await self._database.run(self._select, [table.c.seq > seq], limit)

    async def newest(self, tenant: str, kind: str) -> Envelope | None:
        """Give the last event of a type."""
        conditions = [table.c.tenant == tenant, table.c.type == kind]
        newest = sa.select(sa.func.max(table.c.seq)).where(*conditions).scalar_subquery()
        found = await self._database.run(self._select, [table.c.seq == newest], 1)
        return found[0].event if found else None

    async def search(self, wanted: Wanted, after: int, limit: int) -> list[Kept]:
        """Find events with a larger ``seq``, oldest first, at most ``limit``.

        Actors are found by a keyed digest. Rows of a release that wrote none are opened one by one.
        """
        conditions: list[sa.ColumnElement[bool]] = [table.c.tenant.in_(wanted.tenants), table.c.seq > after]
        if wanted.kind.endswith("*"):
            conditions.append(table.c.type.startswith(wanted.kind[:-1], autoescape=True))
        elif wanted.kind:
            conditions.append(table.c.type == wanted.kind)
        if wanted.recording:
            conditions.append(table.c.recording == wanted.recording)
        if wanted.actor:
            keys = [self._actor_key(tenant, wanted.actor) for tenant in wanted.tenants]
            conditions.append(table.c.actor_key.in_(keys) | table.c.actor_key.is_(None))
        if wanted.begin:
            conditions.append((table.c.at >= wanted.begin) | table.c.at.is_(None))
        if wanted.end:
            conditions.append((table.c.at < wanted.end) | table.c.at.is_(None))
        found: list[Kept] = []
        while len(found) < limit:
            page = await self._database.run(self._select, [*conditions, table.c.seq > after], limit)
            found += [one for one in page if _fits(one.event, wanted)]
            if len(page) < limit:
                break
            after = page[-1].event["seq"]
        return found[:limit]

    def _actor_key(self, tenant: str, actor: str) -> str:
        return self._store.key.digest(f"{tenant}\0{actor}", "events.actor")

    def _select(self, conditions: list[sa.ColumnElement[bool]], limit: int) -> list[Kept]:
        query = sa.select(table).where(*conditions).order_by(table.c.seq).limit(limit)
        with self._store.engine.connect() as connection:
            rows = list(connection.execute(query).mappings())
        found = []
        for row in rows:
            body = self._store.key.unseal(row["sealed"], "events.sealed")
            origin = Origin(body.get("address", ""), body.get("purpose", ""))
            found.append(Kept(_envelope(row, body), origin))
        return found

    def follow(self, wanted: Callable[[Envelope], bool]) -> Follower:
        """Begin to follow; give it back with ``leave``."""
        follower = Follower(wanted)
        self._followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """Stop following."""
        self._followers.discard(follower)


def _envelope(row: sa.RowMapping, body: dict[str, Any]) -> Envelope:
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


def _fits(event: Envelope, wanted: Wanted) -> bool:
    return (
        (not wanted.actor or event["actor"] == wanted.actor)
        and (not wanted.begin or event["time"] >= wanted.begin)
        and (not wanted.end or event["time"] < wanted.end)
    )
