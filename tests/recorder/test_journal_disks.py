"""Journals on disks that fail for real, one at a time, and what making them durable means."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from recorder.records import EndRecord, RtpRecord
from tests.recorder.disks import make_image, mounted
from tests.recorder.journal_tools import KEY, MS, packets, session
from tests.recorder.test_journal import Bench, read

ROOM_BYTES = 16 << 20
IMAGE_BYTES = 64 << 20


@pytest.fixture
def breaking(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk whose sectors run out: writing them is answered with an I/O error, as by a dying disk."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a disk that breaks")
    backing = tmp_path / "backing"
    backing.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(backing)]
    if subprocess.run(command, check=False, timeout=10, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        make_image(backing / "disk.img", IMAGE_BYTES)
        with mounted(backing / "disk.img", tmp_path / "breaking") as disk:
            yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(backing)], check=True, timeout=10)


def test_a_disk_that_breaks_under_one_recording_touches_no_other(tmp_path: Path, breaking: Path) -> None:
    bench = Bench()
    broken = bench.commit.open(breaking / "r", KEY, session())
    other = bench.commit.open(tmp_path / "other", KEY, session())
    written = 0
    for number in range(400):
        records = packets(400, bench.clock.now, seed=number)
        broken.write(records)
        other.write(records)
        written += len(records)
        bench.run(500 * MS)
        if broken.failing and number > 100:
            break
    assert broken.failing
    assert not other.failing
    assert {trouble.directory for trouble in bench.troubles} == {breaking / "r"}
    assert bench.troubles[0].type == "recording.stalled"
    assert "disk_error" in {trouble.code for trouble in bench.troubles}
    endings = [journal.close(EndRecord(bench.clock.now, True, "x")) for journal in (broken, other)]
    bench.run(5000 * MS)
    lost, whole = (ending.result(0) for ending in endings)
    assert whole.gaps == []
    assert whole.damage == []
    assert sum(isinstance(record, RtpRecord) for record in read(tmp_path / "other")) == written
    assert other.lost_packets == 0
    assert any(gap.reason in ("disk", "sync_failed", "queue_full") for gap in lost.gaps)


@pytest.mark.parametrize("fsync", [True, False])
def test_without_fsync_who_waits_is_answered_and_nothing_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    synced: list[int] = []
    sync = os.fdatasync

    def count(descriptor: int) -> None:
        synced.append(descriptor)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", count)
    bench = Bench(fsync=fsync)
    journal = bench.commit.open(tmp_path, KEY, session())
    armed = journal.flushed()
    for number in range(8):
        journal.write(packets(5, bench.clock.now, seed=number))
        bench.run(500 * MS)
    assert armed.result(0) > 0
    assert bool(synced) == fsync
    assert sum(isinstance(record, RtpRecord) for record in read(tmp_path)) == 40
