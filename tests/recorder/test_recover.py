"""What is left of a journal: any prefix, any damage, and writers killed at random moments."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recorder.journal import GroupCommit, JournalReader, recover
from recorder.records import EndRecord, Record, RtpRecord
from recorder.storage import list_segments
from tests.recorder.journal_tools import KEY, MS, SECOND, DigestSigner, VirtualClock, nonces, packets, session

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished journal of two parts and some segments, about 200 KiB."""
    directory = tmp_path_factory.mktemp("journal")
    clock = VirtualClock()
    commit = GroupCommit(DigestSigner(), clock, segment_ns=SECOND, threads=False)
    for part in (1, 2):
        writer = commit.open(directory, KEY, session(part, clock.now))
        for index in range(10):
            writer.write(packets(20, clock.now, seed=index, track_number=part))
            clock.now += 250 * MS
            commit.step(clock.now)
        writer.close(EndRecord(clock.now, part == 2, "x"))
        clock.now += 250 * MS
        commit.step(clock.now)
    return directory


@pytest.fixture(scope="module")
def all_records(journal: Path) -> list[Record]:
    return list(JournalReader(journal, KEY).records())


@pytest.fixture
def copy(journal: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    target = tmp_path_factory.mktemp("copy") / "recording"
    yield target
    shutil.rmtree(target, ignore_errors=True)


def fingerprint(directory: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for _, path in list_segments(directory)]


@given(share=st.floats(0, 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_prefix_of_the_files_gives_a_prefix_of_the_records(
    journal: Path, all_records: list[Record], copy: Path, share: float
) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(journal, copy)
    left = int(share * sum(path.stat().st_size for _, path in list_segments(copy)))
    for _, path in list_segments(copy):
        size = path.stat().st_size
        if left <= 0:
            path.unlink()
        elif size > left:
            os.truncate(path, left)
        left -= size
    before = fingerprint(copy)
    reader = JournalReader(copy, KEY)
    records = list(reader.records())
    assert records == all_records[: len(records)]
    assert reader.damage == []
    summaries = recover(copy, KEY)
    assert sum(summary.records for summary in summaries) == len(records)
    assert recover(copy, KEY) == summaries
    assert fingerprint(copy) == before
    assert all(not summary.damage for summary in summaries)
    assert [segment.chunks for summary in recover(copy) for segment in summary.segments] == [
        segment.chunks for summary in summaries for segment in summary.segments
    ]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bits_and_lost_files_cost_only_what_they_touch(
    journal: Path, all_records: list[Record], copy: Path, seed: int
) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(journal, copy)
    generator = random.Random(seed)
    segments = list_segments(copy)
    for _, path in generator.sample(segments, 2):
        if generator.random() < 0.2:
            path.unlink()
            continue
        data = bytearray(path.read_bytes())
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
    reader = JournalReader(copy, KEY)
    records = list(reader.records())
    places = iter(all_records)
    assert all(any(record == kept for kept in places) for record in records)  # a subsequence
    assert len(records) >= len(all_records) * (len(segments) - 2) // len(segments) // 2
    summaries = recover(copy, KEY)
    assert sum(summary.records for summary in summaries) == len(records)
    assert len([line for summary in summaries for line in summary.damage]) >= len(reader.damage)


def test_an_empty_place_holds_nothing(tmp_path: Path) -> None:
    assert recover(tmp_path, KEY) == []
    (tmp_path / "segments").mkdir()
    (tmp_path / "segments" / "notes.txt").write_text("not a segment")
    (tmp_path / "segments" / "p0001-000000.seg").write_bytes(b"")
    (tmp_path / "segments" / "p0002-000000.seg").write_bytes(b"rubbish")
    assert [(summary.part, summary.records, len(summary.damage)) for summary in recover(tmp_path, KEY)] == [
        (1, 0, 0),
        (2, 0, 2),
    ]


def test_another_key_opens_nothing(journal: Path) -> None:
    other = type(KEY)("other", bytes(16))
    reader = JournalReader(journal, other)
    assert list(reader.records()) == []
    assert all("wrong_key" in line for line in reader.damage)


def test_writers_killed_at_random_lose_less_than_a_second(tmp_path: Path) -> None:
    generator = random.Random(os.urandom(8))
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.recorder.journal_child", str(tmp_path), str(part)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for part in range(1, 6)
    ]
    told: list[list[tuple[int, int]]] = []
    for child in children:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(generator.randrange(100, 900))]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        child.wait()
        told.append(
            [(int(number), int(at)) for number, at in (line.split() for line in lines if line[-1:] == b"\n")]
        )
    kept: dict[int, list[RtpRecord]] = {part: [] for part in range(1, 6)}
    for record in JournalReader(tmp_path, KEY).records():
        if isinstance(record, RtpRecord):
            kept[record.track].append(record)
    for part, written in enumerate(told, 1):
        assert [int.from_bytes(record.packet[:4], "big") for record in kept[part]] == list(
            range(len(kept[part]))
        )
        lost = written[len(kept[part]) :]
        lost_ns = lost[-1][1] - lost[0][1] if lost else 0
        assert lost_ns < SECOND, f"part {part}: {len(lost)} packets, {lost_ns / MS} ms"
    pairs = nonces(tmp_path)
    assert len(pairs) == len(set(pairs)) >= 10
    summaries = recover(tmp_path, KEY)
    assert [summary.part for summary in summaries] == [1, 2, 3, 4, 5]
    assert not any(summary.ended or summary.damage for summary in summaries)
