"""Ends that take more than one try: the key service is down, or the disk full. The media is safe."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import sqlalchemy as sa

from recorder.catalog import Entry
from recorder.keys import KeysUnavailable

if TYPE_CHECKING:
    from mediaserver.recordings.lifecycle import Active, Recordings

_log = logging.getLogger(__name__)
AGAIN_S = 2.0


async def seal_or_wait(recordings: Recordings, active: Active, *, lost: bool, actor: str) -> Entry:
    """Seal now, or in the background once the key service is back; then the entry is still stopping.

    Raises OSError when the disk is full.
    """
    try:
        return await recordings.seal(active, lost=lost, actor=actor)
    except KeysUnavailable as error:
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
            await recordings.seal(active, lost=lost, actor=actor)
            return
        except (KeysUnavailable, OSError) as error:
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
