"""The power goes while a journal is written: what the disk has then is enough, but for the last two seconds.

The writer's disk is an image on a loop device. What a power cut would leave is a copy of the image: it holds
what the file system has written out, and nothing of what waits in memory. The writer is stopped (SIGSTOP)
for the copy, which is taken again until two are alike.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from recorder.gm.sm3 import sm3
from recorder.journal import JournalReader, recover
from recorder.records import RtpRecord
from recorder.sealed import scan
from recorder.storage import list_segments
from tests.recorder.disks import make_image, mounted
from tests.recorder.journal_tools import KEY, SECOND

IMAGE_BYTES = 96 << 20
CUTS = 3
LOST_NS = 2 * SECOND


def write_until(folder: Path, seconds: float, image: Path, copy: Path) -> tuple[int, int]:
    """Record, stop dead after so many seconds, copy the disk; returns the last arrival and the moment."""
    told = copy.with_suffix(".told")
    command = [sys.executable, "-m", "tests.recorder.journal_child", str(folder), "1"]
    with told.open("wb") as sink:
        child = subprocess.Popen(command, stdout=sink)
    try:
        while not told.stat().st_size:
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(child.pid, signal.SIGSTOP)
        cut_ns = time.monotonic_ns()
        digest = b""
        while (now := _copied(image, copy)) != digest:
            digest = now
    finally:
        child.kill()
        child.wait()
    arrivals = [int(line.split()[1]) for line in told.read_text().splitlines() if line.count(" ") == 1]
    return arrivals[-2], cut_ns  # the last line may have been cut off


def packets_in(folder: Path) -> list[RtpRecord]:
    with closing(JournalReader(folder, KEY)) as reader:
        found = [one for one in reader.records() if isinstance(one, RtpRecord)]
        assert reader.damage == []
    return found


def _copied(image: Path, copy: Path) -> bytes:
    shutil.copyfile(image, copy)
    return sm3(copy.read_bytes())


@pytest.mark.parametrize("number", range(CUTS))
def test_at_most_two_seconds_are_lost(tmp_path: Path, number: int) -> None:
    seconds = random.Random(20261126 + number).uniform(2.0, 5.0)
    image, copy = tmp_path / "disk.img", tmp_path / "cut.img"
    make_image(image, IMAGE_BYTES)
    with mounted(image, tmp_path / "disk") as disk:
        last_ns, cut_ns = write_until(disk / "r", seconds, image, copy)
        whole = [
            record for record in JournalReader(disk / "r", KEY).records() if isinstance(record, RtpRecord)
        ]
    with mounted(copy, tmp_path / "cut") as cut:
        for _, path in list_segments(cut / "r"):
            found = scan(path)
            assert found.problem is None, found.problem
        kept = packets_in(cut / "r")
        assert recover(cut / "r", KEY)[0].records >= len(kept)
    lost_ns = last_ns - kept[-1].arrival_ns
    length_s = (cut_ns - kept[0].arrival_ns) / 1e9
    print(f"cut after {seconds:.2f} s: {lost_ns / 1e6:.0f} ms lost of {length_s:.1f} s")
    assert kept == whole[: len(kept)]
    assert lost_ns <= LOST_NS
