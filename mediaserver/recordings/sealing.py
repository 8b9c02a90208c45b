"""The end of a recording, and ends that take more than one try: the keys do not sign, or the disk is full.

The media is safe meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import sqlalchemy as sa

from mediaserver.recordings import evidence
from mediaserver.recordings.states import changed, duration_ms
from recorder.catalog import Entry
from recorder.keys import KeyProblem

if TYPE_CHECKING:
    from mediaserver.recordings.lifecycle import Active, Recordings

_log = logging.getLogger(__name__)
AGAIN_S = 2.0
NOTICE_S = 5.0
"""A stop waits so long for what follows the signed manifest."""


def is_full(error: BaseException) -> bool:
    """Say whether an error means a full disk or quota: of a file, or of a database."""
    if isinstance(error, sa.exc.OperationalError):
        said = str(error.orig).lower()
        return "disk is full" in said or "no space left" in said
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


async def seal(recordings: Recordings, active: Active, *, lost: bool, actor: str) -> Entry:
    """Sign the capture manifest of what was recorded; the recording has ended then.

    ``lost``: the last part's writer died, so that the end is where its journal ends. Raises
    KeysUnavailable, and what ``is_full`` knows when the disk is full: a later try signs it.
    """
    if active.ended is None:
        active.ended = await _capture(recordings, active, lost=lost)
    await recordings.database.run(recordings.catalog.put, active.ended)
    active.entry = active.ended
    recordings.active.pop(active.entry.id, None)
    recordings.later(recordings.custody.ended(active.entry))
    recordings.metrics.recordings_ended.labels(active.entry.state).inc()
    follows = asyncio.create_task(_follows(recordings, active, actor))
    recordings.keep(follows)
    await asyncio.wait({follows}, timeout=NOTICE_S)
    if follows.done():
        follows.result()
    return await recordings.find(active.entry.id) or active.entry


async def _capture(recordings: Recordings, active: Active, *, lost: bool) -> Entry:
    entry = active.entry
    try:
        return await evidence.capture(
            recordings.provider,
            recordings.directory(entry),
            active.data_key,
            entry,
            dict(active.summaries),
            lost=lost,
        )
    except (evidence.EvidenceProblem, OSError) as error:
        if is_full(error):
            raise  # the media is safe; a later try signs it
        _log.exception("recording %s could not be sealed", entry.id)
        code = "storage_failed" if isinstance(error, OSError) else "seal_failed"
        none = {"state": "none", "progress": None}
        return changed(entry, "failed", failure=code, composing=none, worker=None)


async def _follows(recordings: Recordings, active: Active, actor: str) -> None:
    """Say that a recording has ended and have it finished; each step waits for room on the disk."""
    ended = active.entry
    told = {
        "state": ended.state,
        "reason": ended.details.get("reason", "worker_lost"),
        "code": ended.failure,
        "duration_ms": duration_ms(ended),
        "parts": ended.part,
        "gaps": ended.details["gaps"],
    }
    kind = "recording.stopped" if ended.state != "failed" else "recording.failed"
    steps: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: recordings.events.append_about(ended, kind, told, actor),
        lambda: recordings.finishing.stopped(active),
        lambda: recordings.uploads.changed(ended),
    )
    for step in steps:
        while True:
            try:
                await step()
                break
            except Exception as error:
                if not is_full(error):
                    raise
                _log.error("what follows the end of recording %s waits for room: %s", ended.id, error)
                await asyncio.sleep(AGAIN_S)


async def seal_or_wait(recordings: Recordings, active: Active, *, lost: bool, actor: str) -> Entry:
    """Seal now, or in the background once the keys sign; then the entry is still stopping.

    A KMS that refuses is waited for as one that is down: a token that ended, a key replaced under our feet.

    Raises what ``is_full`` knows when the disk is full.
    """
    try:
        return await seal(recordings, active, lost=lost, actor=actor)
    except KeyProblem as error:
        _log.error("recording %s has ended and cannot be signed yet: %s", active.entry.id, error)
        active.unsigned = True
        recordings.later(_seal_at_last(recordings, active, lost=lost, actor=actor))
        data = {"code": "keys_unavailable"}
        await recordings.events.append_about(active.entry, "recording.unsigned", data)
        return active.entry


async def _seal_at_last(recordings: Recordings, active: Active, *, lost: bool, actor: str) -> None:
    while True:
        await asyncio.sleep(AGAIN_S)
        try:
            await seal(recordings, active, lost=lost, actor=actor)
            return
        except (KeyProblem, OSError, sa.exc.OperationalError) as error:
            _log.warning("recording %s waits for its signature: %s", active.entry.id, error)


def stop_later(recordings: Recordings, active: Active, reason: str) -> None:
    """Stop a recording in the background, as often as that takes; only one such task at a time."""
    if active.retry is None or active.retry.done():
        active.retry = asyncio.create_task(_stop_at_last(recordings, active, reason))
        recordings.keep(active.retry)


async def _stop_at_last(recordings: Recordings, active: Active, reason: str) -> None:
    """Stop a recording whose disk is full: it is sealed as soon as there is room again."""
    while active.entry.id in recordings.active:
        try:
            await recordings.stop_once(active, reason)
            return
        except (OSError, sa.exc.OperationalError) as error:
            _log.error("recording %s cannot be ended yet: %s", active.entry.id, error)
        await asyncio.sleep(AGAIN_S)
