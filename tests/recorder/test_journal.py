"""Write and read journals under virtual time; disk errors; the real threads once."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recorder.checkpoint import Checkpoint
from recorder.clock import SystemClock
from recorder.gm.sm3 import sm3
from recorder.journal import GroupCommit, JournalError, JournalReader, JournalTrouble, PartSummary, recover
from recorder.journal.writer import LARGE_TEMPLATE_BYTES
from recorder.records import (
    ClockRecord,
    EndRecord,
    GapRecord,
    Record,
    RtpRecord,
    SessionRecord,
    TrackRecord,
)
from recorder.sealed import RecordType, scan
from recorder.storage import list_segments
from tests.recorder.journal_tools import (
    KEY,
    MS,
    SECOND,
    DigestSigner,
    VirtualClock,
    nonces,
    packets,
    session,
    some_of_each,
    track,
    without_clocks,
)


class Bench:
    """A group commit driven by hand."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.signer = DigestSigner()
        self.troubles: list[JournalTrouble] = []
        self.commit = GroupCommit(
            self.signer,
            self.clock,
            on_trouble=self.troubles.append,
            threads=False,
            **options,
        )

    def run(self, duration_ns: int) -> None:
        """Step as the thread would, a step each 50 ms."""
        for _ in range(duration_ns // (50 * MS)):
            self.clock.now += 50 * MS
            self.commit.step(self.clock.now)


def read(directory: Path) -> list[Record]:
    return list(JournalReader(directory, KEY).records())


def test_everything_written_is_read_back_in_order(tmp_path: Path) -> None:
    bench = Bench()
    journal = bench.commit.open(tmp_path, KEY, session())
    written: list[Record] = [session()]
    for second in range(25):
        records = some_of_each(bench.clock.now) + packets(50, bench.clock.now, seed=second)
        journal.write(records)
        written += records
        bench.run(SECOND)
    end = EndRecord(bench.clock.now, True, "stopped")
    future = journal.close(end)
    bench.run(250 * MS)
    summary = future.result(0)
    records = read(tmp_path)
    assert without_clocks(records) == [*written, end]
    clocks = [record for record in records if isinstance(record, ClockRecord)]
    assert isinstance(records[0], type(session()))
    assert isinstance(records[1], ClockRecord)
    assert 25 <= len(clocks) <= 27
    assert [name for name, _ in list_segments(tmp_path)] == sorted(
        name for name, _ in list_segments(tmp_path)
    )
    assert len(summary.segments) == 3
    assert all(segment.finished for segment in summary.segments)
    assert (summary.ended, summary.final, summary.reason, summary.part) == (True, True, "stopped", 1)
    assert summary.records == len(records)
    assert summary.clocks == [clocks[0], clocks[-1]]
    assert [info.track for info in summary.tracks] == [1]
    counts = {count.track: count for count in summary.counts}
    assert counts[1].packets == 25 * 58
    assert counts[1].rtcp_packets == 25
    assert counts[2].packets == 25
    assert PartSummary.from_json(summary.to_json()) == summary
    assert recover(tmp_path, KEY) == [summary]


@pytest.mark.parametrize("lost", [(0,), (0, 1), (1,)])
def test_what_lost_segments_said_is_said_again(tmp_path: Path, lost: tuple[int, ...]) -> None:
    bench = Bench(segment_ns=SECOND)
    first = session()
    journal = bench.commit.open(tmp_path, KEY, first)
    told = [TrackRecord(bench.clock.now + number, track(number)) for number in (1, 2)]
    journal.write([told[0], *packets(20, bench.clock.now)])
    bench.run(1500 * MS)
    journal.write([told[1], *packets(20, bench.clock.now, track_number=2)])
    for _ in range(4):
        bench.run(SECOND)
        journal.write(packets(20, bench.clock.now))
    ending = journal.close(EndRecord(bench.clock.now, True, "stopped"))
    bench.run(250 * MS)
    whole, summary = read(tmp_path), ending.result(0)
    clock = next(record for record in whole if isinstance(record, ClockRecord))
    for index in lost:
        list_segments(tmp_path)[index if len(lost) == 1 else 0][1].unlink()
    reader = JournalReader(tmp_path, KEY)
    records = reader.poll()
    reader.close()
    assert reader.ended
    assert [record for record in records if isinstance(record, SessionRecord)] == [first]
    assert [record for record in records if isinstance(record, TrackRecord)] == told
    assert next(record for record in records if isinstance(record, ClockRecord)) == clock
    if 0 in lost:
        assert records[:3] == [first, clock, told[0]]
    assert len(records) < len(whole)
    (left,) = recover(tmp_path, KEY)
    assert left.tracks == summary.tracks
    assert left.records == len(records)


def test_a_template_with_pictures_is_said_once(tmp_path: Path) -> None:
    bench = Bench(segment_ns=SECOND)
    large = {"overlays": [{"kind": "image", "png": "A" * LARGE_TEMPLATE_BYTES}]}
    journal = bench.commit.open(tmp_path, KEY, session_with(template=large))
    for second in range(3):
        journal.write(packets(5, bench.clock.now, seed=second))
        bench.run(SECOND)
    bench.commit.close()
    sizes = [path.stat().st_size for _, path in list_segments(tmp_path)]
    assert sizes[0] > LARGE_TEMPLATE_BYTES > max(sizes[1:])
    list_segments(tmp_path)[0][1].unlink()
    found = read(tmp_path)[0]
    assert isinstance(found, SessionRecord)
    assert found == session_with()


def session_with(**info: object) -> SessionRecord:
    plain = session()
    return replace(plain, info={**plain.info, **info})


def test_segments_are_chained_and_never_share_a_nonce(tmp_path: Path) -> None:
    bench = Bench(segment_ns=SECOND)
    journal = bench.commit.open(tmp_path, KEY, session())
    for _ in range(12):
        journal.write(packets(100, bench.clock.now))
        bench.run(250 * MS)
    bench.commit.close()
    previous = None
    for _, path in list_segments(tmp_path):
        found = scan(path)
        assert found.problem is None
        assert found.finished
        assert found.header is not None
        assert found.header.previous == previous
        assert found.header.public["recording"] == "0197a0b0"
        previous = found.head
    pairs = nonces(tmp_path)
    assert len(pairs) == len(set(pairs)) > 10


def test_one_signature_covers_all_journals(tmp_path: Path) -> None:
    bench = Bench()
    journals = [bench.commit.open(tmp_path / str(name), KEY, session()) for name in range(5)]
    for _ in range(20):
        for journal in journals:
            journal.write(packets(3, bench.clock.now))
        bench.run(500 * MS)
    bench.commit.close()
    assert bench.signer.calls in (5, 6)
    roots = set()
    shares = 0
    for name in range(5):
        for _, path in list_segments(tmp_path / str(name)):
            for record in scan(path).records:
                if record.type == RecordType.CHECKPOINT:
                    share = Checkpoint.from_bytes(record.payload)
                    assert share.proves(record.head_before)
                    assert share.signature == sm3(share.signed_message())
                    assert share.leaves == 5
                    roots.add(share.root)
                    shares += 1
    assert len(roots) == bench.signer.calls
    assert shares == 5 * bench.signer.calls


def test_a_signer_that_fails_costs_only_the_checkpoint(tmp_path: Path) -> None:
    bench = Bench()

    def refuse(message: bytes) -> bytes:
        raise RuntimeError("device gone")

    bench.signer.sign = refuse  # type: ignore[method-assign]
    journal = bench.commit.open(tmp_path, KEY, session())
    journal.write(packets(10, bench.clock.now))
    bench.run(3 * SECOND)
    assert {trouble.type for trouble in bench.troubles} == {"recording.unsigned"}
    assert sum(isinstance(record, RtpRecord) for record in read(tmp_path)) == 10


def test_chunks_close_at_250_ms_or_256_kib(tmp_path: Path) -> None:
    bench = Bench()
    journal = bench.commit.open(tmp_path, KEY, session())
    bench.run(300 * MS)
    before = len(read(tmp_path))
    journal.write(packets(10, bench.clock.now))
    bench.run(200 * MS)
    assert len(read(tmp_path)) == before
    bench.run(50 * MS)
    assert len(read(tmp_path)) == before + 10
    assert not journal.urgent
    journal.write(packets(700, bench.clock.now, size=1200))
    assert journal.urgent
    bench.commit.step(bench.clock.now + 1)
    assert len(read(tmp_path)) == before + 710
    largest = max(
        record.end - record.offset for _, path in list_segments(tmp_path) for record in scan(path).records
    )
    assert largest < 258 << 10


def test_following_sees_every_record_once(tmp_path: Path) -> None:
    bench = Bench(segment_ns=SECOND)
    reader = JournalReader(tmp_path, KEY)
    assert reader.poll() == []
    followed: list[Record] = []
    for part in (1, 2):
        journal = bench.commit.open(tmp_path, KEY, session(part, bench.clock.now))
        for second in range(16):
            journal.write(packets(20, bench.clock.now, seed=second))
            bench.run(200 * MS)
            followed += reader.poll()
        assert not reader.ended
        journal.close(EndRecord(bench.clock.now, part == 2, "x"))
        bench.run(250 * MS)
    followed += reader.poll()
    assert reader.ended
    assert reader.damage == []
    assert followed == read(tmp_path)
    assert reader.poll() == []
    reader.close()
    assert [summary.part for summary in recover(tmp_path, KEY)] == [1, 2]


def test_a_part_is_never_continued(tmp_path: Path) -> None:
    bench = Bench()
    bench.commit.open(tmp_path, KEY, session())
    bench.run(250 * MS)
    with pytest.raises(JournalError, match=r"part 1 .* begun before"):
        bench.commit.open(tmp_path, KEY, session())


def test_writing_after_the_end_is_refused(tmp_path: Path) -> None:
    bench = Bench()
    journal = bench.commit.open(tmp_path, KEY, session())
    future = journal.close(EndRecord(bench.clock.now, True, "x"))
    assert journal.close(EndRecord(bench.clock.now, True, "again")) is future
    with pytest.raises(JournalError, match="closed"):
        journal.write(packets(1, 0))
    with pytest.raises(JournalError, match="fits no journal"):
        bench.commit.open(tmp_path, KEY, session(2)).write([RtpRecord(1 << 16, 0, b"")])


def test_an_end_that_comes_while_a_chunk_is_written_waits_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The END record, and what was written just before it, were not among the records just taken."""
    bench = Bench()
    journal = bench.commit.open(tmp_path, KEY, session())
    append = journal.chain.append
    last, end = packets(3, bench.clock.now), EndRecord(bench.clock.now, True, "stopped")

    def meanwhile(items: bytes, now_ns: int) -> None:
        append(items, now_ns)
        monkeypatch.undo()
        journal.write(last)
        journal.close(end)

    monkeypatch.setattr(journal.chain, "append", meanwhile)
    bench.run(SECOND)
    summary = journal.close(end).result(0)
    assert summary.proven_end
    assert without_clocks(read(tmp_path))[-4:] == [*last, end]
    assert bench.commit.queued_bytes == 0


def test_what_exceeds_the_queue_becomes_a_listed_gap(tmp_path: Path) -> None:
    bench = Bench(queue_bytes=400_000)
    journal = bench.commit.open(tmp_path, KEY, session())
    other = bench.commit.open(tmp_path / "other", KEY, session())
    start = bench.clock.now
    for index in range(400):
        journal.write([RtpRecord(1, start + index, bytes(1000))])
    other.write(packets(10, start))
    journal.write([TrackRecord(start, track(9))])
    assert journal.lost_packets > 300
    assert bench.commit.queued_bytes < 200_000
    bench.run(500 * MS)
    journal.write([RtpRecord(1, start + 400, b"later")])
    bench.run(500 * MS)
    records = read(tmp_path)
    kept = [record for record in records if isinstance(record, RtpRecord)]
    (gap,) = [record for record in records if isinstance(record, GapRecord)]
    assert gap == GapRecord(1, kept[-2].arrival_ns + 1, start + 399, 401 - len(kept), "queue_full")
    assert kept[-1].packet == b"later"
    assert any(isinstance(record, TrackRecord) for record in records)
    assert bench.commit.queued_bytes == 0
    assert [trouble.type for trouble in bench.troubles] == ["recording.gap"]
    assert other.lost_packets == 0
    assert sum(isinstance(record, RtpRecord) for record in read(tmp_path / "other")) == 10


class FullDisk:
    """Writes into one directory fail as on a full disk; half of what is written still gets there.

    The fault is put under ``os.write``: a file system of a size of its own needs root.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.full = True
        self._write = os.write
        self._directory = str(directory)
        monkeypatch.setattr(os, "write", self._fail)

    def _fail(self, descriptor: int, data: bytes) -> int:
        if self.full and os.readlink(f"/proc/self/fd/{descriptor}").startswith(self._directory):
            if len(data) > 1:
                self._write(descriptor, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(descriptor, data)


def test_a_full_disk_costs_nothing_if_it_empties_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    journal = bench.commit.open(tmp_path / "full", KEY, session())
    other = bench.commit.open(tmp_path / "other", KEY, session())
    written: list[Record] = [session()]

    def speak() -> None:
        records = packets(20, bench.clock.now, seed=len(written))
        journal.write(records)
        other.write(records)
        written.extend(records)

    speak()
    bench.run(500 * MS)
    disk = FullDisk(monkeypatch, tmp_path / "full")
    for _ in range(8):
        speak()
        bench.run(500 * MS)
    assert journal.failing
    assert not other.failing
    pending = journal.flushed()
    bench.run(2 * SECOND)
    with pytest.raises(OSError, match="No space left"):
        pending.result(0)
    disk.full = False
    speak()
    bench.run(1500 * MS)
    speak()
    future = journal.close(EndRecord(bench.clock.now, True, "x"))
    bench.run(250 * MS)
    summary = future.result(0)
    assert [trouble.type for trouble in bench.troubles] == ["recording.stalled", "recording.restored"]
    assert bench.troubles[0].code == "disk_full"
    expected = [*written, EndRecord(bench.clock.now - 250 * MS, True, "x")]
    assert without_clocks(read(tmp_path / "full")) == expected
    assert summary.gaps == []
    assert summary.damage == []
    # The torn file stays, its good records chained to the next one's header.
    assert [segment.finished for segment in summary.segments] == [False, True]
    scans = [scan(path) for _, path in list_segments(tmp_path / "full")]
    assert scans[0].torn_bytes > 0
    assert scans[1].header is not None
    assert scans[1].header.previous == scans[0].head
    pairs = nonces(tmp_path / "full")
    assert len(pairs) == len(set(pairs))
    assert recover(tmp_path / "full", KEY) == [summary]


def test_a_disk_that_stays_full_ends_in_a_summary_with_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    journal = bench.commit.open(tmp_path, KEY, session())
    journal.write(packets(20, bench.clock.now))
    bench.run(500 * MS)
    FullDisk(monkeypatch, tmp_path)
    start = bench.clock.now
    journal.write(packets(30, start))
    bench.run(SECOND)
    future = journal.close(EndRecord(bench.clock.now, True, "x"))
    bench.run(4 * SECOND)
    summary = future.result(0)
    (gap,) = [gap for gap in summary.gaps if gap.track == 1]
    assert gap == GapRecord(1, start, start + 29 * MS, 30, "disk")
    assert not summary.ended
    assert sum(isinstance(record, RtpRecord) for record in read(tmp_path)) == 20
    assert bench.commit.queued_bytes == 0


def test_a_failed_sync_begins_a_new_segment_and_lists_what_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    journal = bench.commit.open(tmp_path, KEY, session())
    bench.run(1500 * MS)
    sync = os.fdatasync

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    journal.write(packets(10, bench.clock.now))
    flushed = journal.flushed()
    bench.run(300 * MS)
    with pytest.raises(OSError, match="Input/output"):
        flushed.result(0)
    monkeypatch.setattr(os, "fdatasync", sync)
    journal.write(packets(10, bench.clock.now, seed=1))
    bench.run(2 * SECOND)
    records = read(tmp_path)
    assert sum(isinstance(record, RtpRecord) for record in records) == 20
    assert [record.reason for record in records if isinstance(record, GapRecord)] == ["sync_failed"]
    assert len(list_segments(tmp_path)) == 2
    assert bench.troubles[0].code == "disk_error"


def test_a_disk_full_from_the_start_leaves_no_trail_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    disk = FullDisk(monkeypatch, tmp_path)
    journal = bench.commit.open(tmp_path, KEY, session())
    armed = journal.flushed()
    bench.run(5 * SECOND)
    with pytest.raises(OSError, match="No space"):
        armed.result(0)
    assert list_segments(tmp_path) == []
    disk.full = False
    bench.run(2 * SECOND)
    assert read(tmp_path)[0] == session()


def test_the_threads_write_by_themselves(tmp_path: Path) -> None:
    commit = GroupCommit(DigestSigner(), SystemClock())
    clock = SystemClock()
    journal = commit.open(tmp_path, KEY, session(1, clock.now_ns()))
    assert journal.flushed().result(20) > 0
    assert isinstance(read(tmp_path)[1], ClockRecord)
    journal.write(packets(50, clock.now_ns()))
    journal.flushed().result(20)
    assert sum(isinstance(record, RtpRecord) for record in read(tmp_path)) == 50
    summary = journal.close(EndRecord(clock.now_ns(), True, "x")).result(20)
    assert summary.ended
    commit.close()
    commit.close()
    assert recover(tmp_path, KEY) == [summary]


def test_a_wait_that_was_given_up_harms_nobody(tmp_path: Path) -> None:
    bench = Bench()
    given_up = bench.commit.open(tmp_path / "a", KEY, session())
    other = bench.commit.open(tmp_path / "b", KEY, session())
    assert given_up.flushed().cancel()
    waited = other.flushed()
    bench.run(SECOND)
    assert waited.result(0) > 0
    for journal in (given_up, other):
        ended = journal.close(EndRecord(bench.clock.now, True, "requested"))
        bench.run(SECOND)
        assert ended.result(0).ended
    assert bench.troubles == []


def test_many_starts_do_not_wait_for_each_other(tmp_path: Path) -> None:
    clock = SystemClock()
    commit = GroupCommit(DigestSigner(), clock)
    try:
        journals = [commit.open(tmp_path / str(number), KEY, session()) for number in range(60)]
        for flushed in [journal.flushed() for journal in journals]:
            assert flushed.result(20) > 0
    finally:
        commit.close()
    for number in range(60):
        assert len(read(tmp_path / str(number))) >= 2
