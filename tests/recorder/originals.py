"""Recordings to be tampered with: ended, recovered after a crash, and crashed, from real parts, all small."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from bench.tampering import Original
from recorder.ids import uuid7
from recorder.journal import GroupCommit
from recorder.keys import FileProvider, write_sidecar
from recorder.records import SessionRecord
from recorder.recovering import recover_recording
from recorder.sealed import DataKey
from tests.recorder.journal_tools import MS, SECOND, VirtualClock, packets
from tests.recorder.small_recording import make_recording


def make_originals(folder: Path, provider: FileProvider) -> list[Original]:
    """Make three ended recordings of some 100 to 300 KiB, one recovered and one that is still to be."""
    made = []
    for seed, composite_bytes in ((1, 150_000), (2, 90_000), (3, 300_000)):
        path = folder / f"ended-{seed}"
        recording = make_recording(path, provider, seed=seed, segments=4, composite_bytes=composite_bytes)
        made.append(Original(path.rename(folder / recording.recording)))
    path, data_key = make_crashed(folder, provider)
    recover_recording(path, data_key, provider=provider.info(), signer=provider.signer())
    made.append(Original(path))
    path, _ = make_crashed(folder, provider)
    made.append(Original(path, ended=False))
    return made


def make_crashed(folder: Path, provider: FileProvider) -> tuple[Path, DataKey]:
    """Make a recording of two parts whose writers both died, the last in the middle of a record."""
    recording = str(uuid7())
    path = folder / recording
    path.mkdir()
    data_key, wrap = asyncio.run(provider.new_data_key(recording))
    write_sidecar(path, recording, data_key.key_id, [wrap], provider.signer())
    clock = VirtualClock()
    about = {"recording": recording, "tenant": "default", "room": "r", "business_no": "B", "mode": "single"}
    for part in (1, 2):
        commit = GroupCommit(provider.signer(), clock, segment_ns=3 * SECOND, threads=False)
        info = {**about, "armed_ns": 5 * SECOND}
        writer = commit.open(path, data_key, SessionRecord(clock.now, part, info))
        for index in range(28):
            writer.write(packets(4, clock.now, seed=index, size=400, track_number=part))
            clock.now += 250 * MS
            commit.step(clock.now)
        writer.chain.leave()  # as a killed process leaves its file
        clock.now += SECOND
    last = sorted((path / "segments").iterdir())[-1]
    os.truncate(last, last.stat().st_size - 21)
    return path, data_key
