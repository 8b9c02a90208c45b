"""The end of a recording, and ends that take more than one try: the keys do not sign, or the disk is full.

The media is safe meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import logging
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
FULL = (errno.ENOSPC, errno.EDQUOT)


async def seal(recordings: Recordings, active: Active, *, lost: bool, actor: str) -> Entry:
    """Sign the capture manifest of what was recorded; the recording has ended then.

    ``lost``: the last part's writer died, so that the end is where its journal ends. Raises
    KeyProblem when it is not signed, and OSError when the disk is full: a later try signs it.
    """
    entry = active.entry
    try:
        active.entry = await evidence.capture(
            recordings.provider,
            recordings.directory(entry),
            active.data_key,
            entry,
            dict(active.summaries),
            lost=lost,
        )
    except (evidence.EvidenceProblem, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise  # the media is safe; a later try signs it
        _log.exception("recording %s could not be sealed", entry.id)
        code = "storage_failed" if isinstance(error, OSError) else "seal_failed"
        none = {"state": "none", "progress": None}
        active.entry = changed(entry, "failed", failure=code, composing=none, worker=None)
    await recordings.save(active)
    recordings.active.pop(entry.id, None)
    recordings.later(recordings.custody.begin(active.entry, active.data_key))
    recordings.metrics.recordings_ended.labels(active.entry.state).inc()
    ended = active.entry
    await recordings.events.append_about(
        ended,
        "recording.stopped" if ended.state != "failed" else "recording.failed",
        {
            "state": ended.state,
            "reason": ended.details.get("reason", "worker_lost"),
            "code": ended.failure,
            "duration_ms": duration_ms(ended),
            "parts": ended.part,
            "gaps": ended.details["gaps"],
        },
        actor,
    )
    await recordings.finishing.stopped(active)
    await recordings.uploads.changed(ended)
    return await recordings.find(ended.id) or ended


async def seal_or_wait(recordings: Recordings, active: Active, *, lost: bool, actor: str) -> Entry:
    """Seal now, or in the background once the keys sign; then the entry is still stopping.

    A KMS that refuses is waited for as one that is down: a token that ended, a key replaced under our feet.

    Raises OSError when the disk is full.
    """
    try:
        return await seal(recordings, active, lost=lost, actor=actor)
    except KeyProblem as error:
        _log.error("recording %s has ended and cannot be signed yet: %s", active.entry.id, error)
        active.unsigned = True
        data = {"code": "keys_unavailable"}
        await recordings.events.append_about(active.entry, "recording.unsigned", data)
        recordings.later(_seal_at_last(recordings, active, lost=lost, actor=actor))
        return active.entry


async def _seal_at_last(recordings: Recordings, active: Active, *, lost: bool, actor: str) -> None:
    while True:
        await asyncio.sleep(AGAIN_S)
        try:
            await seal(recordings, active, lost=lost, actor=actor)
            return
        except (KeyProblem, OSError) as error:
            _log.warning("recording %s waits for its signature: %s", active.entry.id, error)


async def stop_at_last(recordings: Recordings, active: Active, reason: str) -> None:
    """Stop a recording whose disk is full: it is sealed as soon as there is room again."""
    while active.entry.id in recordings.active:
        try:
            await recordings.stop_once(active, reason)
            return
        except (OSError, sa.exc.OperationalError) as error:
            _log.error("recording %s cannot be ended yet: %s", active.entry.id, error)
        await asyncio.sleep(AGAIN_S)
