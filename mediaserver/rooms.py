"""The rooms as the control process knows them: which worker, who is in, who sits where.

The worker is the truth of what flows; this is the picture made from its answers and events. A room is pinned
to one worker; when that dies it is opened on another, with the same seats. A seat (``customer#1``) belongs to
an identity for the room's life, so that layouts and files stay right over reconnects.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mediaserver.store import Database, Store
from mediaserver.supervisor import NoWorker, Worker, Workers

_log = logging.getLogger(__name__)
UNUSED_ROOM_S = 12 * 3600
"""A room that nobody ever entered closes after this long."""
CALL_TIMEOUT_S = 10.0


@dataclass
class Participant:
    """Somebody who is or was in a room."""

    identity: str
    seat: str
    role: str
    name: str = ""
    hidden: bool = False
    connected: bool = False
    tracks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the worker's track id: kind, source, mime, muted."""


@dataclass
class Room:
    """An open room."""

    tenant: str
    name: str
    codecs: list[str]
    created_ns: int
    worker: int
    auto: dict[str, Any] | None = None
    """The automatic recording it was opened with: a RecordingStart body and ``roles``."""
    auto_started: bool = False
    participants: dict[str, Participant] = field(default_factory=dict)
    sessions: set[str] = field(default_factory=set)
    empty_since_ns: int | None = None
    """Monotonic; None while somebody is in."""
    used: bool = False
    """Somebody has been in it."""

    @property
    def key(self) -> tuple[str, str]:
        return self.tenant, self.name

    def present(self) -> list[Participant]:
        """List who is connected and not hidden."""
        return [one for one in self.participants.values() if one.connected and not one.hidden]

    def seat(self, identity: str, role: str) -> str:
        """Give an identity's seat, a new one of its role if it has none yet."""
        known = self.participants.get(identity)
        if known is not None and known.role == role:
            return known.seat
        taken = {one.seat for one in self.participants.values() if one.identity != identity}
        number = next(n for n in range(1, len(taken) + 2) if f"{role}#{n}" not in taken)
        return f"{role}#{number}"

    def admit(self, identity: str, role: str, name: str, *, hidden: bool = False) -> Participant:
        """Note a participant, connected or about to be."""
        known = self.participants.get(identity)
        if known is None or known.role != role:
            known = Participant(identity, self.seat(identity, role), role, hidden=hidden)
            self.participants[identity] = known
        known.name = name or known.name
        known.hidden = hidden
        return known


class Rooms:
    """All open rooms."""

    def __init__(self, workers: Workers, store: Store, database: Database) -> None:
        self._workers = workers
        self._store = store
        self._database = database
        self._rooms: dict[tuple[str, str], Room] = {}
        self._sessions: dict[str, tuple[Room, str]] = {}
        """Room and identity of every WHIP and WHEP session."""
        self._opening = asyncio.Lock()

    def __iter__(self) -> Iterator[Room]:
        return iter(list(self._rooms.values()))

    def __len__(self) -> int:
        return len(self._rooms)

    def get(self, tenant: str, name: str) -> Room | None:
        """Find an open room."""
        return self._rooms.get((tenant, name))

    def any_session(self) -> bool:
        """Say whether anybody has a WHIP or WHEP session."""
        return bool(self._sessions)

    def by_session(self, session: str) -> Room | None:
        """Find the room of a WHIP or WHEP session."""
        found = self._sessions.get(session)
        return found[0] if found is not None else None

    def owner(self, session: str) -> str | None:
        """Give the identity whose session it is."""
        found = self._sessions.get(session)
        return found[1] if found is not None else None

    async def open(
        self, tenant: str, name: str, codecs: list[str], auto: dict[str, Any] | None
    ) -> tuple[Room, bool]:
        """Open a room, or give the open one; True if it is new.

        Raises NoWorker, and what the worker answers (IpcError, ConnectionError, TimeoutError).
        """
        async with self._opening:
            known = self.get(tenant, name)
            if known is not None:
                return known, False
            worker = await self._workers.worker_for_room(tenant, name)
            try:
                await self._open_on(worker, tenant, name, codecs)
            except BaseException:
                self._workers.release_room(tenant, name)
                raise
            now = time.monotonic_ns()
            room = Room(tenant, name, codecs, time.time_ns(), worker, auto=auto, empty_since_ns=now)
            self._rooms[room.key] = room
        await self.save(room)
        return room, True

    async def close(self, room: Room) -> None:
        """Close a room; its sessions end."""
        self._rooms.pop(room.key, None)
        for session in room.sessions:
            self._sessions.pop(session, None)
        params = {"tenant": room.tenant, "room": room.name}
        try:
            await self._workers.client(room.worker).call("room.close", params, CALL_TIMEOUT_S)
        except (ConnectionError, TimeoutError, NoWorker) as error:
            _log.warning("room not closed on worker %d, which will lose it anyway: %s", room.worker, error)
        finally:
            self._workers.release_room(room.tenant, room.name)
            await self._database.run(self._store.drop_room, room.tenant, room.name)

    async def save(self, room: Room) -> None:
        """Keep what must outlive this process: settings and seats."""
        state = {
            "codecs": room.codecs,
            "created_ns": room.created_ns,
            "auto": room.auto,
            "auto_started": room.auto_started,
            "seats": [
                {
                    "identity": one.identity,
                    "seat": one.seat,
                    "role": one.role,
                    "name": one.name,
                    "hidden": one.hidden,
                }
                for one in room.participants.values()
            ],
        }
        await self._database.run(self._store.put_room, room.tenant, room.name, state)

    async def admit(
        self, room: Room, identity: str, role: str, name: str, *, hidden: bool = False
    ) -> Participant:
        """Give a participant its seat and keep it."""
        before = room.participants.get(identity)
        known = (before.seat, before.hidden) if before is not None else None
        participant = room.admit(identity, role, name, hidden=hidden)
        if (participant.seat, participant.hidden) != known:
            await self.save(room)
        return participant

    def add_session(self, room: Room, session: str, identity: str) -> None:
        """Note a session, so that its URL can be found."""
        room.sessions.add(session)
        self._sessions[session] = (room, identity)

    def drop_session(self, session: str) -> None:
        """Forget a session that ended."""
        found = self._sessions.pop(session, None)
        if found is not None:
            found[0].sessions.discard(session)

    def observe(self, room: Room, kind: str, data: dict[str, Any]) -> None:
        """Bring the picture of a room up to date with one event of its worker."""
        identity = str(data.get("identity", ""))
        if kind == "participant.joined":
            one = room.admit(
                identity,
                str(data.get("role", "")),
                str(data.get("name", "")),
                hidden=bool(data.get("hidden", False)),
            )
            one.connected = True
            room.used = True
        elif kind == "participant.left" and identity in room.participants:
            room.participants[identity].connected = False
            room.participants[identity].tracks.clear()
        elif kind == "track.started" and identity in room.participants:
            room.participants[identity].tracks[str(data["track"])] = _track(data)
        elif kind == "track.ended":
            for one in room.participants.values():
                one.tracks.pop(str(data.get("track")), None)
        elif kind in ("track.muted", "track.unmuted"):
            for one in room.participants.values():
                track = one.tracks.get(str(data.get("track")))
                if track is not None:
                    track["muted"] = kind == "track.muted"
        elif kind in ("session.failed", "session.ended"):
            self.drop_session(str(data.get("session", "")))
        self._note_emptiness(room)

    def _note_emptiness(self, room: Room) -> None:
        if room.present():
            room.empty_since_ns = None
        elif room.empty_since_ns is None:
            room.empty_since_ns = time.monotonic_ns()

    def idle(self, idle_room_s: float) -> list[Room]:
        """List rooms that have been empty for too long."""
        now = time.monotonic_ns()
        return [
            room
            for room in self._rooms.values()
            if room.empty_since_ns is not None
            and now - room.empty_since_ns > (idle_room_s if room.used else UNUSED_ROOM_S) * 1e9
        ]

    async def move(self, room: Room) -> list[Participant]:
        """Open a room of a dead worker on another one; returns who was cut off. Raises as ``open``."""
        cut_off = room.present()
        for participant in room.participants.values():
            participant.connected = False
            participant.tracks.clear()
        for session in room.sessions:
            self._sessions.pop(session, None)
        room.sessions.clear()
        self._note_emptiness(room)
        room.worker = await self._workers.worker_for_room(room.tenant, room.name)
        await self._open_on(room.worker, room.tenant, room.name, room.codecs)
        return cut_off

    async def restore(self) -> None:
        """Read the rooms of an earlier control process. ``adopt`` says which of them still live."""
        now = time.monotonic_ns()
        for tenant, name, state in await self._database.run(self._store.all_rooms):
            room = Room(tenant, name, state["codecs"], state["created_ns"], -1, empty_since_ns=now)
            room.auto, room.auto_started = state["auto"], state["auto_started"]
            for seat in state["seats"]:
                room.participants[seat["identity"]] = Participant(**seat)
            self._rooms[room.key] = room

    def adopt(self, worker: Worker) -> None:
        """Take the state of a worker that outlived the last control process."""
        for state in worker.hello.get("rooms", []):
            key = (str(state["tenant"]), str(state["room"]))
            room = self._rooms.get(key)
            if room is None:
                room = Room(*key, list(state.get("codecs", [])), time.time_ns(), worker.index)
                self._rooms[key] = room
            room.worker = worker.index
            for seen in state.get("participants", []):
                room.used = True
                one = room.admit(
                    str(seen["identity"]),
                    str(seen.get("role", "")),
                    str(seen.get("name", "")),
                    hidden=bool(seen.get("hidden", False)),
                )
                one.connected = bool(seen.get("connected", True))
                one.tracks = {str(track["track"]): _track(track) for track in seen.get("tracks", [])}
                for session in seen.get("sessions", []):
                    self.add_session(room, str(session["session"]), one.identity)
            self._note_emptiness(room)

    def orphans(self) -> list[Room]:
        """List rooms that no live worker has."""
        alive = {worker.index for worker in self._workers.all()}
        return [room for room in self._rooms.values() if room.worker not in alive]

    async def _open_on(self, worker: int, tenant: str, name: str, codecs: list[str]) -> None:
        params = {"tenant": tenant, "room": name, "codecs": codecs}
        await self._workers.client(worker).call("room.open", params, CALL_TIMEOUT_S)


def _track(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": str(data.get("kind", "")),
        "source": str(data.get("source", "")),
        "mime": str(data.get("mime", "")),
        "muted": bool(data.get("muted", False)),
    }
