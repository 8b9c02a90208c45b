"""Recordings over deaths: of a media worker (the same id goes on as the next part) and of this process."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from dataclasses import replace

from mediaserver.ipc import IpcError, JsonObject
from mediaserver.recordings import evidence
from mediaserver.recordings.lifecycle import WORKER_FAULTS, Active, Recordings
from mediaserver.recordings.sealing import AGAIN_S, is_full
from mediaserver.recordings.states import changed
from mediaserver.rooms import Room
from mediaserver.supervisor import Worker
from recorder.catalog import Entry
from recorder.keys import KeyProblem, SealedOnly, data_key_id
from recorder.sealed import DataKey
from recorder.statements import StatementError
from recorder.storage import list_segments

_log = logging.getLogger(__name__)
GO_ON_TRIES = 20
GO_ON_PAUSE_S = 0.25
LATELY_NS = 3 * 86400 * 10**9
"""Three days: what ended before a weekend is looked at again after it."""


async def go_on(recordings: Recordings, room: Room, died_ns: int) -> None:
    """After a room moved to another worker: let its recordings go on there as their next part."""
    await asyncio.gather(
        *(
            _next_part(recordings, room, active, died_ns)
            for active in recordings.in_room(room.tenant, room.name)
        )
    )


async def _next_part(recordings: Recordings, room: Room, active: Active, died_ns: int) -> None:
    async with active.lock:
        if not active.running:
            return  # a stop is under way: it seals what the dead worker left
        if active.began_ns > died_ns:
            return  # two workers died one after the other, and the rescue from the first went on after both
        last = active.entry.part
        active.entry = replace(active.entry, part=last + 1)
        for attempt in range(GO_ON_TRIES):
            try:
                _, began_ns = await recordings.start_part(active)
                break
            except WORKER_FAULTS as error:
                _log.warning("recording %s cannot go on yet: %s", active.entry.id, error)
                if isinstance(error, IpcError) and error.code == "part_exists":
                    # A writer began it and died, or its disk was too slow: a part has one writer, ever.
                    active.entry = replace(active.entry, part=active.entry.part + 1)
                if attempt + 1 < GO_ON_TRIES:
                    await asyncio.sleep(GO_ON_PAUSE_S)
        else:
            # Whoever has the room is asked to end what it may have begun after all: a part that is written
            # when the manifest is signed would be taken for one that was changed.
            active.entry = replace(active.entry, part=last, worker=room.worker)
            recordings.later(recordings.stop(active.entry, "worker_lost"))
            return
        loss = {"from_ns": str(died_ns), "to_ns": str(began_ns), "reason": "worker_lost"}
        details = {**active.entry.details, "losses": [*active.entry.details["losses"], loss]}
        active.entry = replace(active.entry, details=details)
        await recordings.save(active)
        data = {"part": active.entry.part, "gap": loss}
        await recordings.publish(active, "recording.failover", data)
        if active.entry.state == "paused":
            await recordings.publish(active, "recording.paused", {"since_part": active.entry.part})


async def take_over(recordings: Recordings, workers: list[Worker]) -> None:
    """At the start of this process: take up what the last one left.

    Recordings that a live worker writes go on; others are sealed as what their journal holds (``recovered``).
    """
    written = {
        str(state["recording"]): (worker, state)
        for worker in workers
        for state in worker.hello.get("recordings", [])
    }
    for entry in await recordings.database.run(recordings.catalog.active):
        try:
            await _take_over(recordings, entry, written.get(entry.id))
        except (evidence.WrongKey, SealedOnly) as error:
            await _cannot(recordings, entry, error)
        except Exception as error:
            if not _passes(error):
                raise
            _log.error("recording %s is taken over when that is over: %s", entry.id, error)
            recordings.later(_take_over_at_last(recordings, entry, written.get(entry.id)))


async def catch_up(recordings: Recordings) -> None:
    """Hand over again what the last process may have died before: what ended lately and lacks a statement.

    The retention it began with, a time-stamp, a certificate status.
    """
    since = time.time_ns() - LATELY_NS
    for entry in await recordings.database.run(recordings.catalog.ended_since, since):
        try:
            statements = await asyncio.to_thread(
                evidence.our_statements, recordings.provider, recordings.directory(entry)
            )
        except (StatementError, evidence.EvidenceProblem, OSError) as error:
            _log.error("recording %s: its statements do not read: %s", entry.id, error)
            continue
        if all(one.kind != "retention" for one in statements):
            await recordings.custody.ended(entry)
        if recordings.finishing.attesting.lacks(statements):
            await recordings.finishing.attesting.wanted(entry)


def _passes(error: Exception) -> bool:
    """Say whether a later try may do: only a wrong key stays one. A KMS that refuses (a token that ended), a
    disk that does not read or is full: none of them says anything of the recording.
    """
    return isinstance(error, (KeyProblem, evidence.EvidenceProblem, OSError)) or is_full(error)


async def _cannot(recordings: Recordings, entry: Entry, error: Exception) -> None:
    _log.error("recording %s cannot be taken over", entry.id, exc_info=error)
    failure = "sealed_only" if isinstance(error, SealedOnly) else "key_unavailable"
    failed = replace(entry, state="failed", failure=failure, worker=None)
    await recordings.database.run(recordings.catalog.put, failed)


async def _take_over_at_last(
    recordings: Recordings, entry: Entry, written: tuple[Worker, JsonObject] | None
) -> None:
    """Take a recording over once its key can be had, or seal it if its writer is gone by then."""
    while entry.id not in recordings.active:
        await asyncio.sleep(AGAIN_S)
        if written is not None and written[0] not in recordings.workers.all():
            written = None
        try:
            await _take_over(recordings, entry, written)
        except (evidence.WrongKey, SealedOnly) as error:
            await _cannot(recordings, entry, error)
            return
        except Exception as error:
            if not _passes(error):
                raise
            _log.warning("recording %s waits to be taken over: %s", entry.id, error)
        else:
            return


async def _key(recordings: Recordings, entry: Entry, written: tuple[Worker, JsonObject] | None) -> DataKey:
    """Give a recording's data key: opened, or, where that cannot be, as the worker that writes it has it.

    The worker got it over the same socket (in a directory of ours, 0700). Raises EvidenceProblem (WrongKey if
    that is for good), KeysUnavailable, SealedOnly, OSError.
    """
    try:
        return await evidence.unwrap(
            recordings.provider,
            recordings.directory(entry),
            entry,
            purpose="take over",
            actor="server",
        )
    except (KeyProblem, evidence.EvidenceProblem, OSError):
        if written is None:
            raise
        try:
            answer = await written[0].client.call("recording.key", {"recording": entry.id}, 5.0)
            secret = base64.b64decode(str(answer["data_key"]), validate=True)
            key = DataKey(str(answer["data_key_id"]), secret, int(answer["suite"]))
        except (*WORKER_FAULTS, KeyError, ValueError) as error:
            raise evidence.EvidenceProblem(f"the worker of {entry.id} gives no key: {error}") from error
        if key.key_id != entry.details.get("key_id") or data_key_id(key.secret, key.suite) != key.key_id:
            raise evidence.WrongKey(f"the worker of {entry.id} has another key") from None
        return key


async def _take_over(recordings: Recordings, entry: Entry, written: tuple[Worker, JsonObject] | None) -> None:
    directory = recordings.directory(entry)
    if written is None and not list_segments(directory):
        failed = replace(
            entry, state="failed", failure="never_armed", composing={"state": "none", "progress": None}
        )
        await recordings.database.run(recordings.catalog.put, failed)
        return
    key = await _key(recordings, entry, written)
    active = Active(entry, key)
    recordings.active[entry.id] = active
    if written is None:
        _log.error("the writer of recording %s is gone: sealing what it left", entry.id)
        if entry.state != "stopping":
            details = {**entry.details, "reason": "worker_lost"}
            active.entry = changed(entry, "stopping", worker=None, details=details)
        recordings.seal_later(active)
        return
    worker, state = written
    active.entry = replace(entry, worker=worker.index, part=int(state.get("part", entry.part)))
    active.began_ns = int(state.get("began_ns", 0))
    if entry.state == "arming":  # it armed, and the answer found nobody
        armed_ns = int(state.get("armed_ns", time.monotonic_ns()))
        armed_utc = time.time_ns() - (time.monotonic_ns() - armed_ns)
        details = {**entry.details, "armed_mono_ns": armed_ns}
        active.entry = changed(active.entry, "recording", armed_ns=armed_utc, details=details)
    try:
        await recordings.save(active)
    except Exception as error:
        if not is_full(error):
            raise
        _log.error("recording %s goes on; the index is full: %s", entry.id, error)
    if entry.state == "stopping":
        recordings.later(recordings.stop(active.entry, str(entry.details.get("reason", "requested"))))
        return
    await recordings.publish(active, "recording.taken_over", {"part": active.entry.part})
    await recordings.finishing.started(active)
    await recordings.uploads.changed(active.entry)
