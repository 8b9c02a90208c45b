"""Recordings from start to seal.

A recording is started when the first record of its journal is on disk ("no record, no call" rests on it), and
ended by a capture manifest that is signed at once. Everything a caller asks of one recording goes through its
lock, one after another; a stop is carried out even if who asked for it hangs up.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import shutil
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mediaserver.errors import Refused
from mediaserver.ipc import IpcError
from mediaserver.recordings import evidence, sealing
from mediaserver.recordings.retention import wanted_retention
from mediaserver.recordings.states import changed, next_attempt
from mediaserver.rooms import Participant, Room, Rooms
from mediaserver.supervisor import NoWorker, Workers
from recorder.catalog import Catalog, CatalogError, Entry
from recorder.clock import boot_id
from recorder.ids import uuid7
from recorder.journal import PartSummary
from recorder.keys import KeyProblem
from recorder.sealed import DataKey, suite_named
from recorder.storage import recording_directory
from recorder.template import Template

if TYPE_CHECKING:
    from mediaserver.api.models import RecordingStart
    from mediaserver.events import EventLog
    from mediaserver.metrics import Metrics
    from mediaserver.recordings.custody import RecordingCustody
    from mediaserver.recordings.finishing import Finishing
    from mediaserver.recordings.uploads import Uploads
    from mediaserver.settings import Settings
    from mediaserver.store import Database
    from recorder.keys import CryptoProvider

_log = logging.getLogger(__name__)
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 20.0
TRACKS_PER_PART = 1000
"""Part n numbers its tracks from (n-1) x 1000 + 1 on: unique without having read what the dead part wrote."""

WORKER_FAULTS = (ConnectionError, TimeoutError, NoWorker, IpcError)


def _went_wrong(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


@dataclass
class Active:
    """A recording that has not ended, as this process holds it."""

    entry: Entry
    data_key: DataKey
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    stopping: asyncio.Task[Entry] | None = None
    summaries: dict[int, PartSummary] = field(default_factory=dict)
    """Of parts that told how they ended, by part number."""
    began_ns: int = 0
    """When the current part began, monotonic: a worker that died before then did not write it."""
    unsigned: bool = False
    """It has ended, and waits for the key service to sign its manifest."""
    ended: Entry | None = None
    """As its signed manifest has it, while the index may not have that yet."""
    retry: asyncio.Task[None] | None = None
    """Stops it in the background, again and again while the disk is full."""

    @property
    def running(self) -> bool:
        return self.entry.state in ("recording", "paused")

    def media_ms(self, at_ns: int) -> int:
        """Give the recording's time of a monotonic time."""
        return max(0, (at_ns - int(self.entry.details["armed_mono_ns"])) // 1_000_000)


class Recordings:
    """All recordings: the running ones held here, the ended ones in the catalog."""

    finishing: Finishing
    uploads: Uploads
    custody: RecordingCustody

    def __init__(
        self,
        settings: Settings,
        workers: Workers,
        rooms: Rooms,
        provider: CryptoProvider,
        catalog: Catalog,
        database: Database,
        events: EventLog,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.workers = workers
        self.rooms = rooms
        self.provider = provider
        self.catalog = catalog
        self.database = database
        self.events = events
        self.metrics = metrics
        self.active: dict[str, Active] = {}
        self.may_start: Callable[[], None] = lambda: None
        """Raises Refused while no recording may start."""
        self._data = settings.data_dir.absolute()
        self._tasks: set[asyncio.Task[Any]] = set()

    def directory(self, entry: Entry) -> Path:
        """Give the recording's directory."""
        return self._data / entry.directory

    async def find(self, recording: str) -> Entry | None:
        """Find a recording, running or ended."""
        active = self.active.get(recording)
        return active.entry if active is not None else await self.database.run(self.catalog.get, recording)

    def in_room(self, tenant: str, room: str) -> list[Active]:
        """List what runs in a room."""
        return [one for one in self.active.values() if (one.entry.tenant, one.entry.room) == (tenant, room)]

    async def data_key(self, entry: Entry, *, purpose: str, actor: str) -> DataKey:
        """Unwrap a recording's key; the purpose and who asks go to the key provider.

        Raises EvidenceProblem, KeysUnavailable, and SealedOnly where nothing is to be opened here, running
        recordings included.
        """
        active = self.active.get(entry.id)
        if active is not None and self.provider.can_open:
            return active.data_key
        return await evidence.unwrap(
            self.provider, self.directory(entry), entry, purpose=purpose, actor=actor
        )

    async def save(self, active: Active) -> None:
        """Write a recording's row."""
        await self.database.run(self.catalog.put, active.entry)

    async def start(self, room: Room, request: RecordingStart, actor: str) -> Entry:
        """Start a recording; returns when its first record is on disk. Raises Refused."""
        self.may_start()
        free = shutil.disk_usage(self._data).free
        if free < self.settings.recording.min_free_bytes:
            raise Refused("disk_full", f"{free >> 20} MiB of disk space are free")
        earlier = await self.database.run(self.catalog.by_business_no, room.tenant, request.business_no)
        attempt = next_attempt(earlier, request.attempt, request.supersedes)
        asked = request.retention.model_dump() if request.retention is not None else None
        retention = wanted_retention(asked, self.settings.retention)
        identifier = str(uuid7())
        directory = recording_directory(self._data, room.tenant, identifier)
        template = request.template
        if "profile" not in template.model_fields_set:
            given = template.model_dump(exclude_unset=True)
            template = Template.model_validate({"profile": self.settings.composing.profile, **given})
        entry = Entry(
            id=identifier,
            tenant=room.tenant,
            room=room.name,
            business_no=request.business_no,
            mode=request.mode,
            directory=str(directory.relative_to(self._data)),
            created_ns=time.time_ns(),
            attempt=attempt,
            supersedes=request.supersedes,
            assurance=self.provider.info().assurance,
            worker=room.worker,
            details={
                "template": template.model_dump(mode="json"),
                "composites": [one.model_dump(mode="json") for one in request.composites],
                "metadata": request.metadata,
                "retention": retention,
                "actor": actor,
                "boot_id": boot_id(),
                "armed_mono_ns": 0,
                "participants": [_who(one) for one in room.present()],
                "gaps": [],
                "losses": [],
            },
        )
        try:
            await self.database.run(self.catalog.add, entry)
        except CatalogError as error:  # two callers at the same moment: the second hears of the first
            again = await self.database.run(self.catalog.by_business_no, room.tenant, request.business_no)
            raise Refused("recording_active", str(error), recording=again[-1].id) from error
        try:
            suite = suite_named(self.settings.crypto.suite)
            data_key = await evidence.new_key(self.provider, directory, entry.id, suite)
            entry = replace(entry, details={**entry.details, "key_id": data_key.key_id})
            active = Active(entry, data_key)
            self.active[entry.id] = active
            armed_ns, _ = await self.start_part(active)
        except (*WORKER_FAULTS, KeyProblem, OSError) as error:
            code = _code_of(error)
            await self._give_up(entry, error, code)
            why = str(error) or "its media worker did not answer in time"
            raise Refused(code, f"the recording could not be started: {why}", recording=entry.id) from error
        details = {**active.entry.details, "armed_mono_ns": armed_ns}
        armed_utc = time.time_ns() - (time.monotonic_ns() - armed_ns)
        active.entry = changed(active.entry, "recording", armed_ns=armed_utc, details=details)
        await self.save(active)
        await self.publish(
            active,
            "recording.started",
            {"mode": entry.mode, "attempt": attempt, "armed_ns": str(armed_ns), "part": 1},
            actor,
        )
        await self.finishing.started(active)
        await self.uploads.changed(active.entry)
        return active.entry

    async def _give_up(self, entry: Entry, error: BaseException, code: str) -> None:
        self.active.pop(entry.id, None)
        failed = changed(entry, "failed", failure=code, composing={"state": "none", "progress": None})
        await self.database.run(self.catalog.put, failed)
        _log.error("recording %s could not be started: %s", entry.id, error)
        await self.events.append_about(entry, "recording.failed", {"code": code})

    async def start_part(self, active: Active) -> tuple[int, int]:
        """Let the room's worker write the entry's part.

        Returns when the recording was armed and when this part began (monotonic ns).
        """
        entry = active.entry
        room = self.rooms.get(entry.tenant, entry.room)
        if room is None:
            raise IpcError("room_not_found", "the room was closed", 404)
        info: dict[str, Any] = {
            "recording": entry.id,
            "tenant": entry.tenant,
            "room": entry.room,
            "business_no": entry.business_no,
            "attempt": entry.attempt,
            "mode": entry.mode,
            "template": entry.details["template"],
            "metadata": entry.details["metadata"],
            "boot_id": boot_id(),
            "next_track": (entry.part - 1) * TRACKS_PER_PART + 1,
        }
        if entry.part > 1:
            info["armed_ns"] = entry.details["armed_mono_ns"]
        params = {
            "recording": entry.id,
            "tenant": entry.tenant,
            "room": entry.room,
            "directory": str(self.directory(entry)),
            "part": entry.part,
            "data_key_id": active.data_key.key_id,
            "data_key": base64.b64encode(active.data_key.secret).decode(),
            "suite": active.data_key.suite,
            "next_track": info["next_track"],
            "info": info,
        }
        answer = await self.workers.client(room.worker).call("recording.start", params, START_TIMEOUT_S)
        active.entry = replace(active.entry, worker=room.worker)
        active.began_ns = int(answer["began_ns"])
        return int(answer["armed_ns"]), int(answer["began_ns"])

    async def publish(
        self, active: Active, kind: str, data: dict[str, Any], actor: str = "server"
    ) -> dict[str, Any]:
        """Log an event of a running recording and put it into its journal."""
        entry = active.entry
        event = await self.events.append_about(entry, kind, data, actor)
        if entry.worker is not None:
            params = {"recording": entry.id, "event": event}
            try:
                await self.workers.client(entry.worker).call("recording.event", params, START_TIMEOUT_S)
            except WORKER_FAULTS as error:
                _log.warning("event %s of %s is in the log only: %s", kind, entry.id, error)
        return event

    def running(self, entry: Entry) -> Active:
        """Give a recording that records or pauses; raises Refused."""
        active = self.active.get(entry.id)
        if active is None or not active.running:
            raise Refused("recording_state", f"the recording is {entry.state}")
        return active

    async def pause(self, entry: Entry, actor: str) -> Entry:
        """Pause: the composite shows a card, the interval is listed. Pausing a paused one changes nothing."""
        active = self.running(entry)
        async with active.lock:
            if active.entry.state != "paused":
                details = {**active.entry.details, "paused_ns": time.monotonic_ns()}
                active.entry = changed(active.entry, "paused", details=details)
                await self.save(active)
                await self.publish(active, "recording.paused", {}, actor)
        return active.entry

    async def resume(self, entry: Entry, actor: str) -> Entry:
        """Go on after a pause. Resuming a running one changes nothing."""
        active = self.running(entry)
        async with active.lock:
            if active.entry.state != "recording":
                active.entry = changed(active.entry, "recording", details=_pause_listed(active))
                await self.save(active)
                await self.publish(active, "recording.resumed", {}, actor)
        return active.entry

    async def change_picture(self, entry: Entry, change: dict[str, Any], actor: str) -> Entry:
        """Change layout or overlays from now on; the template in the manifest stays as it was."""
        active = self.running(entry)
        async with active.lock:
            await self.publish(active, "recording.layout_changed", change, actor)
        return active.entry

    async def mark(self, entry: Entry, marker: dict[str, Any], actor: str) -> dict[str, Any]:
        """Put the start or end of a step into log and journal; returns the event."""
        active = self.running(entry)
        kind = "step.started" if marker["action"] == "start" else "step.ended"
        data = {
            **marker["step"],
            "result": marker["result"],
            "data": marker["data"],
            "media_ms": active.media_ms(time.monotonic_ns()),
        }
        async with active.lock:
            return await self.publish(active, kind, data, actor)

    async def stop(self, entry: Entry, reason: str, actor: str = "server") -> Entry:
        """End a recording; returns when its manifest is signed. One that has ended stays as it is.

        While the key service is down it returns in state ``stopping``: the media is safe, and the manifest is
        signed as soon as that is back. When the disk is full it raises
        Refused, and the recording is sealed as soon as there is room again.
        """
        active = self.active.get(entry.id)
        if active is None:
            return await self.find(entry.id) or entry
        if active.unsigned:
            return active.entry
        try:
            return await self.stop_once(active, reason, actor)
        except Exception as error:
            if not sealing.is_full(error):
                raise
            sealing.stop_later(self, active, reason)
            raise Refused("disk_full", "its media is kept; it is sealed when there is room") from error

    async def stop_once(self, active: Active, reason: str, actor: str = "server") -> Entry:
        """Try once to end a recording. Raises what ``sealing.is_full`` knows when the disk is full."""
        if active.stopping is None or _went_wrong(active.stopping):
            active.stopping = asyncio.create_task(self._stop(active, reason, actor))
        return await asyncio.shield(active.stopping)

    def seal_later(self, active: Active) -> None:
        """Seal in the background what a dead writer left. A stop meanwhile waits for the same end."""
        work = sealing.seal_or_wait(self, active, lost=True, actor="server")
        active.stopping = asyncio.create_task(work, name=f"seal {active.entry.id}")
        sealing.stop_later(self, active, "worker_lost")  # while the disk is full

    async def stop_room(self, room: Room, reason: str) -> None:
        """End everything that records a room."""
        await asyncio.gather(
            *(self.stop(active.entry, reason) for active in self.in_room(room.tenant, room.name)),
            return_exceptions=False,
        )

    async def _stop(self, active: Active, reason: str, actor: str) -> Entry:
        async with active.lock:
            if active.entry.state != "stopping":
                details = _pause_listed(active)
                details["reason"] = reason
                active.entry = changed(active.entry, "stopping", details=details)
                try:
                    await self.save(active)
                except Exception as error:
                    if not sealing.is_full(error):
                        raise
                    # The worker is told all the same: it must not record on for want of a row.
                    _log.error("the index is full at the stop of recording %s: %s", active.entry.id, error)
            lost = not await self._end_part(active, reason)
        return await sealing.seal_or_wait(self, active, lost=lost, actor=actor)

    async def _end_part(self, active: Active, reason: str) -> bool:
        """Let the worker end its part; False if there is no worker left to do so."""
        entry = active.entry
        if entry.part in active.summaries:  # a stop before this one did
            return True
        params = {"recording": entry.id, "final": True, "reason": reason}
        for _ in range(3):
            if entry.worker is None:  # none could go on with it
                return False
            try:
                client = self.workers.client(entry.worker)
                await client.connect(timeout_s=2.0)
                answer = await client.call("recording.stop", params, STOP_TIMEOUT_S)
            except IpcError as error:
                _log.error("the worker could not end recording %s: %s", entry.id, error)
                return False
            except NoWorker:
                return False
            except (ConnectionError, TimeoutError) as error:
                _log.warning("no answer to the stop of recording %s, asking again: %s", entry.id, error)
                continue
            summary = PartSummary.from_json(answer["part"])
            active.summaries[summary.part] = summary
            return True
        return False

    async def observe(self, room: Room, kind: str, data: dict[str, Any]) -> None:
        """Take from a worker's event what concerns the recordings of its room."""
        for active in self.in_room(room.tenant, room.name):
            if kind == "participant.joined":
                who = room.participants.get(str(data.get("identity")))
                known = {one["identity"] for one in active.entry.details["participants"]}
                if who is not None and not who.hidden and who.identity not in known:
                    joined = [*active.entry.details["participants"], _who(who)]
                    active.entry = replace(
                        active.entry, details={**active.entry.details, "participants": joined}
                    )
                    await self.save(active)
            elif data.get("recording", active.entry.id) != active.entry.id:
                continue
            elif kind in ("recording.stalled", "recording.restored"):
                # The worker goes on by itself when the disk lets it; what it could not hold is a gap.
                failure = str(data.get("code")) if kind == "recording.stalled" else None
                active.entry = replace(active.entry, failure=failure)
                await self.save(active)
            elif kind == "recording.failed":
                _log.error("the worker cannot go on recording %s: %s", active.entry.id, data)
                reason = str(data.get("code", "recording_failed"))
                active.entry = replace(active.entry, failure=reason)
                sealing.stop_later(self, active, reason)

    def later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let something go on that nobody waits for; its failure is logged."""
        self.keep(asyncio.create_task(work))

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Hold on to a task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("background work on a recording failed", exc_info=task.exception())

    async def settle(self, timeout_s: float) -> None:
        """Wait for what goes on in the background."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)


def _code_of(error: BaseException) -> str:
    if isinstance(error, IpcError):
        return error.code
    return "keys_unavailable" if isinstance(error, KeyProblem) else "recording_failed"


def _who(one: Participant) -> dict[str, Any]:
    return {"identity": one.identity, "seat": one.seat, "role": one.role, "name": one.name}


def _pause_listed(active: Active) -> dict[str, Any]:
    """Give the details with a running pause closed and listed."""
    details = dict(active.entry.details)
    paused_ns = details.pop("paused_ns", None)
    if paused_ns is not None:
        interval = {
            "from_ms": active.media_ms(paused_ns),
            "to_ms": active.media_ms(time.monotonic_ns()),
            "reason": "paused",
        }
        details["gaps"] = [*details["gaps"], interval]
    return details
