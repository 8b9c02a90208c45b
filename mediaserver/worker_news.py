"""What media workers tell, taken in: events, rooms coming up, a death and the rescue of its rooms."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from mediaserver.api.models import RecordingStart
from mediaserver.errors import Refused
from mediaserver.events import NOWHERE, Logged
from mediaserver.ipc import IpcError, JsonObject
from mediaserver.recordings import continuity
from mediaserver.recordings.sealing import is_full
from mediaserver.rooms import Room
from mediaserver.supervisor import Death, NoWorker, Worker

if TYPE_CHECKING:
    from mediaserver.control import Control

_log = logging.getLogger(__name__)
AGAIN_S = 1.0
Put = Callable[[], Logged]
"""Hands an event to the log; called again where the log had no room for it."""


class WorkerNews:
    """The control process's ear for its workers."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._acknowledged: dict[int, asyncio.Future[None]] = {}
        """By worker, of its newest batch."""

    async def up(self, worker: Worker) -> None:
        """Take the rooms of a worker that came up, or was there before this process."""
        self._control.rooms.adopt(worker)

    async def take(self, worker: Worker, events: list[JsonObject], acknowledge: Callable[[], None]) -> None:
        """Take what a worker tells; acknowledged when it is in the log. One bad event spoils no other."""
        logged: list[tuple[Put, Logged]] = []
        joined: dict[tuple[str, str], Room] = {}
        for event in events:
            try:
                logged.append(await self._worker_event(worker, event))
            except Exception:
                _log.exception("an event of worker %d is lost", worker.index)
                continue
            room = self._control.rooms.get(str(event.get("tenant", "")), str(event.get("room", "")))
            if room is not None and event["type"] in ("participant.joined", "track.started"):
                joined[room.key] = room
        for room in joined.values():
            await self._start_automatically(room)
        before = self._acknowledged.get(worker.index)
        done = self._acknowledged[worker.index] = asyncio.get_running_loop().create_future()
        self._control.spawn(self._when_logged(logged, acknowledge, before, done))

    async def _when_logged(
        self,
        logged: list[tuple[Put, Logged]],
        acknowledge: Callable[[], None],
        before: asyncio.Future[None] | None,
        done: asyncio.Future[None],
    ) -> None:
        """Acknowledge a batch once it is in the log, for which it waits while the disk is full.

        And after the batch before it: an acknowledgement is one of all that came earlier.
        """
        for put, told in logged:
            while True:
                try:
                    await told
                    break
                except Exception as error:
                    if not is_full(error):
                        _log.exception("an event of a worker is lost")
                        break
                    _log.error("an event of a worker waits for room in the log: %s", error)
                await asyncio.sleep(AGAIN_S)
                told = put()
        if before is not None:
            await before
        acknowledge()
        done.set_result(None)

    async def _worker_event(self, worker: Worker, event: JsonObject) -> tuple[Put, Logged]:
        kind, data = str(event["type"]), dict(event.get("data", {}))
        if kind == "recording.heads":
            await self._control.audit.heads(data.get("heads", []))
            told: Logged = asyncio.get_running_loop().create_future()
            told.set_result(event)
            return lambda: told, told
        tenant, name = str(event.get("tenant", "")), str(event.get("room", ""))
        room = self._control.rooms.get(tenant, name)
        put = partial(
            self._control.events.put,
            kind,
            tenant=tenant,
            room=name,
            recording=event.get("recording") or self._recording_in(tenant, name),
            actor=str(data.get("identity") or f"worker:{worker.index}"),
            data=data,
            origin=NOWHERE,
        )
        logged = put()  # before anything that can fail
        if room is not None and room.worker == worker.index:
            try:
                self._control.rooms.observe(room, kind, data)
                await self._control.recordings.observe(room, kind, {**data, **_recording_of(event)})
            except Exception:
                _log.exception("what %s of worker %d changes is not kept", kind, worker.index)
        return put, logged

    def _recording_in(self, tenant: str, room: str) -> str | None:
        return next((active.entry.id for active in self._control.recordings.in_room(tenant, room)), None)

    async def _start_automatically(self, room: Room) -> None:
        auto = room.auto
        if auto is None or room.auto_started:
            return
        present = {one.role for one in room.present()}
        if not present or not set(auto.get("roles") or ()) <= present:
            return
        room.auto_started = True
        await self._control.rooms.save(room)
        self._control.spawn(self._record_automatically(room, auto))

    async def _record_automatically(self, room: Room, auto: JsonObject) -> None:
        wanted = {name: auto[name] for name in RecordingStart.model_fields if name in auto}
        if auto.get("any_attempt"):
            earlier = await self._control.database.run(
                self._control.catalog.by_business_no, room.tenant, wanted["business_no"]
            )
            if earlier:
                wanted["attempt"] = earlier[-1].attempt + 1
        try:
            await self._control.recordings.start(room, RecordingStart.model_validate(wanted), "auto")
        except Refused as error:
            _log.error("the automatic recording of room %s did not start: %s", room.name, error)
            await self._control.events.append(
                "recording.failed",
                tenant=room.tenant,
                room=room.name,
                data={"code": error.code, "automatic": True},
            )

    async def died(self, death: Death) -> None:
        """Let a dead worker's rooms go on elsewhere."""
        self._control.metrics.worker_deaths.inc()
        rooms = [
            room for room in self._control.rooms if room.worker == death.index or room.key in death.rooms
        ]
        await asyncio.gather(*(self.rescue(room, death.at_ns) for room in rooms))

    async def rescue(self, room: Room, died_ns: int) -> None:
        """Open a room of a dead worker on a live one and let its recordings go on there."""
        for _ in range(20):
            try:
                cut_off = await self._control.rooms.move(room)
                break
            except (NoWorker, ConnectionError, TimeoutError, IpcError) as error:
                _log.warning("room %s has no worker yet: %s", room.name, error)
                self._control.workers.release_room(room.tenant, room.name)
                await asyncio.sleep(0.5)
        else:
            await self._control.close_room(room, "worker_lost")
            return
        await continuity.go_on(self._control.recordings, room, died_ns)
        for one in cut_off:
            await self._control.events.append(
                "participant.left",
                tenant=room.tenant,
                room=room.name,
                recording=self._recording_in(*room.key),
                actor=one.identity,
                data={
                    "identity": one.identity,
                    "seat": one.seat,
                    "role": one.role,
                    "name": one.name,
                    "reason": "worker_lost",
                },
            )
        await self._control.events.append(
            "room.moved",
            tenant=room.tenant,
            room=room.name,
            data={"reason": "worker_lost", "cut_off": [one.identity for one in cut_off]},
        )


def _recording_of(event: JsonObject) -> JsonObject:
    return {"recording": event["recording"]} if event.get("recording") else {}
