"""The sealed file: round trips, growing, cut at every length, changed at every byte, unknown records."""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.canonical import canonical, parse_canonical
from recorder.gm.sm3 import sm3
from recorder.sealed import (
    SUITES,
    DataKey,
    FileSummary,
    Flag,
    RecordType,
    SealedError,
    SealedReader,
    SealedWriter,
    plain_name,
    read_header,
    scan,
    summarise,
)
from recorder.sealed import format as fmt
from recorder.sealed.suites import FileKeys

KEYS = {
    suite.name: DataKey("k", bytes(range(suite.data_key_bytes)), suite.number) for suite in SUITES.values()
}


@pytest.fixture(scope="module", params=list(KEYS))
def key(request: pytest.FixtureRequest) -> DataKey:
    """A data key of each suite in turn."""
    return KEYS[request.param]


def journal(
    key: DataKey, path: Path, chunks: list[bytes], *, close: bool = True, frames: bool = True
) -> FileSummary | None:
    writer = SealedWriter(path, key, kind="original", media_type="text/plain", public={"n": 1})
    for number, chunk in enumerate(chunks):
        writer.append(chunk)
        if frames and number % 2:
            writer.public_frame(RecordType.CHECKPOINT, b"frame %d" % number)
    if close:
        return writer.close()
    writer.abandon()
    return None


def test_a_journal_round_trips_and_its_head_is_the_files_sm3(key: DataKey, tmp_path: Path) -> None:
    path = tmp_path / "a.seg"
    summary = journal(key, path, [b"one", b"two" * 1000, b"three"])
    assert summary is not None
    data = path.read_bytes()
    assert summary.sm3 == summary.head == f"sm3:{sm3(data).hex()}"
    assert summary.plain_sm3 == "", "journals are hashed once, as they lie on disk"
    assert (summary.bytes, summary.plain_bytes, summary.chunks) == (len(data), 3008, 3)
    assert path.stat().st_mode & 0o777 == 0o600
    with SealedReader(path, key) as reader:
        assert list(reader.chunks()) == [b"one", b"two" * 1000, b"three"]
        assert reader.finished
        assert reader.header.public == {"n": 1}
        assert list(reader.chunks()) == []
    assert summarise(path) == summary
    assert FileSummary.from_json(summary.to_json()) == summary
    assert b"two" not in data
    assert b"three" not in data


@given(st.lists(st.binary(min_size=1, max_size=400), max_size=12), st.data())
@settings(max_examples=25, deadline=None)
def test_any_chunks_come_back_and_any_range_of_them(
    key: DataKey, tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("h") / "a.seg"
    journal(key, path, chunks)
    plain = b"".join(chunks)
    with SealedReader(path, key) as reader:
        assert list(reader.chunks()) == chunks
        assert reader.size == len(plain)
        for _ in range(5):
            offset = data.draw(st.integers(0, len(plain) + 3))
            size = data.draw(st.integers(0, len(plain) + 3))
            assert reader.read(offset, size) == plain[offset : offset + size]


def test_a_blob_is_cut_into_256_kib_and_read_at_any_byte(key: DataKey, tmp_path: Path) -> None:
    plain = random.Random(3).randbytes(3 * fmt.BLOB_CHUNK_BYTES + 17)
    source = random.Random(4)
    path = tmp_path / "composite.mp4.{file_id}.sealed"
    with SealedWriter(path, key, kind="archive", media_type="video/mp4") as writer:
        position = 0
        while position < len(plain):
            size = source.choice([1, 1000, 70_000, 300_000, 600_000])
            assert writer.write(plain[position : position + size]) == len(plain[position : position + size])
            position += size
        summary = writer.close()
    assert summary.chunks == 4
    assert plain_name(summary.name) == "composite.mp4"
    assert writer.path.name == f"composite.mp4.{writer.file_id}.sealed"
    with SealedReader(writer.path, key) as reader:
        assert reader.size == len(plain)
        for offset, size in [
            (0, 1),
            (fmt.BLOB_CHUNK_BYTES - 1, 2),
            (len(plain) - 1, 9),
            (5, len(plain)),
            (9, 0),
        ]:
            assert reader.read(offset, size) == plain[offset : offset + size]
        with pytest.raises(ValueError, match="negative"):
            reader.read(-1, 5)


def test_ranges_are_read_from_several_threads(key: DataKey, tmp_path: Path) -> None:
    plain = random.Random(5).randbytes(fmt.BLOB_CHUNK_BYTES * 2)
    with SealedWriter(tmp_path / "a", key, kind="derived", media_type="x/y") as writer:
        writer.write(plain)
        writer.close()
    wrong: list[int] = []
    with SealedReader(tmp_path / "a", key) as reader:

        def read(seed: int) -> None:
            source = random.Random(seed)
            for _ in range(20):
                offset = source.randrange(len(plain))
                if reader.read(offset, 5000) != plain[offset : offset + 5000]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_follower_sees_each_chunk_as_it_is_written(key: DataKey, tmp_path: Path) -> None:
    writer = SealedWriter(tmp_path / "a", key, kind="original", media_type="x/y")
    reader = SealedReader(tmp_path / "a", key)
    seen: list[bytes] = []
    for number in range(5):
        assert list(reader.chunks()) == []
        writer.append(b"chunk %d" % number)
        seen += reader.chunks()
        assert reader.size == len(b"".join(seen))
        assert not reader.finished
    writer.close()
    assert list(reader.chunks()) == []
    assert reader.finished
    assert seen == [b"chunk %d" % number for number in range(5)]


def test_a_file_cut_at_any_length_gives_its_whole_chunks(key: DataKey, tmp_path: Path) -> None:
    chunks = [b"first", b"second one", b"third"]
    path, cut = tmp_path / "a", tmp_path / "cut"
    journal(key, path, chunks)
    data = path.read_bytes()
    problems = []
    for size in range(len(data)):
        cut.write_bytes(data[:size])
        found = scan(cut)
        try:
            with SealedReader(cut, key) as reader:
                opened = list(reader.chunks())
                finished = reader.finished
        except SealedError as error:
            if error.code != "incomplete" or (found.header is not None and found.good_bytes > 400):
                problems.append((size, str(error)))
            continue
        if opened != chunks[: len(opened)] or finished or found.finished or found.problem is not None:
            problems.append((size, str(found.problem)))
        if found.good_bytes + found.torn_bytes != size or found.chunks != len(opened):
            problems.append((size, "scan and reader disagree"))
    assert not problems
    cut.write_bytes(data + b"x")
    assert scan(cut).problem is not None


def test_a_change_of_any_byte_is_found_in_its_record_without_a_key(key: DataKey, tmp_path: Path) -> None:
    path, changed = tmp_path / "a", tmp_path / "changed"
    journal(key, path, [b"first", b"second one", b"third"])
    data = path.read_bytes()
    records = {record.number: record for record in scan(path).records}
    source = random.Random(6)
    problems = []
    for position in range(len(data)):
        copy = bytearray(data)
        copy[position] ^= 1 << source.randrange(8)
        changed.write_bytes(copy)
        problem = scan(changed).problem
        if problem is None or not problem.offset <= position < problem.end:
            problems.append((position, str(problem)))
        elif position >= 8:
            number = next(n for n, record in records.items() if record.offset <= position < record.end)
            if problem.record is not None and problem.record != number:
                problems.append((position, f"record {problem.record}, not {number}"))
    assert not problems


def test_a_change_of_any_byte_never_gives_wrong_plain_text(key: DataKey, tmp_path: Path) -> None:
    chunks = [b"first", b"second one", b"third"]
    path, changed = tmp_path / "a", tmp_path / "changed"
    journal(key, path, chunks, frames=False)
    data = path.read_bytes()
    problems = []
    for position in range(len(data)):
        copy = bytearray(data)
        copy[position] ^= 0x10
        changed.write_bytes(copy)
        opened: list[bytes] = []
        try:
            with SealedReader(changed, key) as reader:
                for chunk in reader.chunks():
                    opened.append(chunk)
                whole = reader.read(0, 1000)
        except SealedError:
            whole = b"".join(opened)
        if opened != chunks[: len(opened)] or not b"".join(chunks).startswith(whole):
            problems.append(position)
    assert not problems


def test_another_key_is_refused_before_any_chunk(key: DataKey, tmp_path: Path) -> None:
    journal(key, tmp_path / "a", [b"x"])
    with pytest.raises(SealedError) as caught:
        SealedReader(tmp_path / "a", DataKey("other", bytes(len(key.secret)), key.suite))
    assert (caught.value.code, caught.value.record) == ("wrong_key", 1)
    assert "other" in caught.value.detail
    assert bytes(range(16)).hex() not in repr(key)
    assert repr(bytes(range(16)))[2:-1] not in repr(key)


def test_a_changed_header_is_refused_even_with_its_chain_made_anew(key: DataKey, tmp_path: Path) -> None:
    """Whoever has no key can make the SM3 trailers anew, but not the commitment."""
    path = tmp_path / "a"
    journal(key, path, [b"x"])
    records = split(path.read_bytes())
    header = parse_canonical(records[0][2])
    records[0][2] = canonical({**header, "kind": "archive"})
    path.write_bytes(join(records))
    assert scan(path).problem is None
    with pytest.raises(SealedError, match="wrong_key"):
        SealedReader(path, key)


def test_a_file_opens_by_its_own_suite_and_by_no_other(key: DataKey, tmp_path: Path) -> None:
    path = tmp_path / "a"
    journal(key, path, [b"x"])
    twin = next((one for one in KEYS.values() if one.suite != key.suite and one.secret == key.secret), None)
    if twin is not None:  # what a data key would write with does not matter to a reader
        with SealedReader(path, twin) as reader:
            assert (list(reader.chunks()), reader.header.suite) == ([b"x"], key.suite)
    for other in KEYS.values():
        if len(other.secret) != len(key.secret):
            with pytest.raises(SealedError, match="wrong_key"):
                SealedReader(path, other)
    records = split(path.read_bytes())
    header = parse_canonical(records[0][2])
    for suite in set(SUITES) - {key.suite}:
        records[0][2] = canonical({**header, "suite": suite})
        path.write_bytes(join(records))
        assert scan(path).problem is None
        for reading in KEYS.values():
            with pytest.raises(SealedError, match="wrong_key"):
                SealedReader(path, reading)


@pytest.mark.parametrize("what", ["frame", "swap", "drop", "splice"])
def test_with_the_key_a_rechained_file_is_refused(key: DataKey, what: str, tmp_path: Path) -> None:
    """Chunks authenticate all bytes before them: public frames, order, number and file."""
    path = tmp_path / "a"
    journal(key, path, [b"aaaa", b"bbbb", b"cccc", b"dddd"])
    records = split(path.read_bytes())
    chunks = [place for place, record in enumerate(records) if record[0] == RecordType.CHUNK]
    if what == "frame":
        frame = next(record for record in records if record[0] == RecordType.CHECKPOINT)
        frame[2] = frame[2][:-1] + b"9"
    elif what == "swap":
        first, second = chunks[1], chunks[2]
        records[first][2], records[second][2] = records[second][2], records[first][2]
    elif what == "drop":
        del records[chunks[1]]
    else:
        journal(key, tmp_path / "b", [b"aaaa", b"bbbb", b"cccc", b"dddd"])
        records[chunks[1]][2] = split((tmp_path / "b").read_bytes())[chunks[1]][2]
    path.write_bytes(join(records))
    assert scan(path).problem is None or what == "drop"  # END counts the chunks
    with SealedReader(path, key) as reader, pytest.raises(SealedError, match="changed"):
        list(reader.chunks())


def test_an_unknown_critical_record_is_refused_by_name_others_are_skipped(
    key: DataKey, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    with SealedWriter(path, key, kind="original", media_type="x/y") as writer:
        writer.append(b"one")
        writer.public_frame(777, b"from a later version")
        writer.append(b"two")
        writer.close()
    with SealedReader(path, key) as reader:
        assert list(reader.chunks()) == [b"one", b"two"]
    assert [record.payload for record in scan(path).records if record.type == 777] == [
        b"from a later version"
    ]
    records = split(path.read_bytes())
    next(record for record in records if record[0] == 777)[1] = 1
    path.write_bytes(join(records))
    with SealedReader(path, key) as reader, pytest.raises(SealedError, match="777 is critical") as caught:
        list(reader.chunks())
    assert caught.value.code == "unknown_critical"
    assert scan(path).problem is not None


@pytest.mark.parametrize(
    ("member", "value", "code"),
    [
        ("suite", 4, "unsupported_suite"),
        ("suite", True, "unsupported_suite"),
        ("version", 2, "unsupported_version"),
        ("kind", "other", "bad_header"),
    ],
)
def test_what_this_version_cannot_read_is_refused_by_name(
    key: DataKey, member: str, value: object, code: str, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    journal(key, path, [b"x"])
    records = split(path.read_bytes())
    records[0][2] = canonical({**parse_canonical(records[0][2]), member: value})  # type: ignore[dict-item]
    path.write_bytes(join(records))
    with pytest.raises(SealedError) as caught:
        read_header(path)
    assert caught.value.code == code


def test_opaque_chunks_are_marked_and_read_like_the_others(key: DataKey, tmp_path: Path) -> None:
    with SealedWriter(tmp_path / "a", key, kind="original", media_type="x/y") as writer:
        writer.append(b"end-to-end", opaque=True)
        writer.append(b"ours")
        writer.close()
    flags = [record.flags for record in scan(tmp_path / "a").records if record.type == RecordType.CHUNK]
    assert flags == [Flag.CRITICAL | Flag.OPAQUE, Flag.CRITICAL]
    with SealedReader(tmp_path / "a", key) as reader:
        assert list(reader.chunks()) == [b"end-to-end", b"ours"]
        assert reader.read(8, 4) == b"ndou"
    records = split((tmp_path / "a").read_bytes())
    places = {record[0]: place for place, record in enumerate(records)}
    # The mark taken away, or given to another: what is sealed says which chunk has it.
    for place, mark in ((2, Flag.CRITICAL), (3, Flag.CRITICAL | Flag.OPAQUE)):
        changed: list[list[Any]] = [list(record) for record in records]
        changed[place][1] = mark
        (tmp_path / "b").write_bytes(join(changed))
        assert scan(tmp_path / "b").problem is None
        with SealedReader(tmp_path / "b", key) as reader, pytest.raises(SealedError, match="changed"):
            list(reader.chunks())
    for kind in (RecordType.HEADER, RecordType.COMMITMENT, RecordType.INDEX, RecordType.END):
        changed = [list(record) for record in records]
        changed[places[kind]][1] |= Flag.OPAQUE
        (tmp_path / "b").write_bytes(join(changed))
        problem = scan(tmp_path / "b").problem
        assert problem is not None
        assert problem.code == "bad_record"


def test_no_file_is_ever_written_twice(key: DataKey, tmp_path: Path) -> None:
    path = tmp_path / "a"
    journal(key, path, [b"x"], close=False)
    with pytest.raises(FileExistsError):
        SealedWriter(path, key, kind="original", media_type="x/y")
    writer = SealedWriter(tmp_path / "b", key, kind="original", media_type="x/y")
    writer.append(b"x")
    with pytest.raises(ValueError, match="mix"):
        writer.write(b"y")
    writer.close()
    for late in (
        lambda: writer.append(b"z"),
        writer.close,
        writer.sync,
        lambda: writer.public_frame(16, b""),
    ):
        with pytest.raises(ValueError, match="never written again"):
            late()


def test_a_full_disk_ends_the_file_and_its_good_records_stay(
    key: DataKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    writer = SealedWriter(path, key, kind="original", media_type="x/y")
    writer.append(b"good")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", disk_that_fills_up())
        with pytest.raises(OSError, match="No space"):
            writer.append(b"lost")
    with pytest.raises(ValueError, match="never written again"):
        writer.append(b"again")
    with SealedReader(path, key) as reader:
        assert list(reader.chunks()) == [b"good"]
    found = scan(path)
    assert found.torn_bytes == 7
    assert found.problem is None


def disk_that_fills_up() -> Callable[[int, memoryview], int]:
    """Write seven bytes, then no more: what a disk does that fills up in the middle of a record."""
    real_write = os.write
    calls = 0

    def write(fd: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(28, "No space left on device")
        return real_write(fd, data[:7])

    return write


def test_no_key_and_nonce_occur_twice(key: DataKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many files of one data key: finished, abandoned, and written after a failure."""
    used: list[tuple[bytes, bytes]] = []
    derive = FileKeys.derive.__func__  # type: ignore[attr-defined]

    class Watched:
        def __init__(self, aead: object, name: bytes) -> None:
            self._aead = aead
            self._name = name

        def seal_into(self, out: memoryview, nonce: bytes, plaintext: bytes, aad: bytes) -> None:
            used.append((self._name, nonce))
            self._aead.seal_into(out, nonce, plaintext, aad)  # type: ignore[attr-defined]

    def watched(secret: bytes, file_id: bytes, suite: int) -> FileKeys:
        keys = derive(FileKeys, secret, file_id, suite)
        return FileKeys(Watched(keys.aead, keys.commitment_key), keys.commitment_key)  # type: ignore[arg-type]

    monkeypatch.setattr(FileKeys, "derive", staticmethod(watched))
    source = random.Random(8)
    for number in range(40):
        journal(key, tmp_path / str(number), [b"x"] * source.randrange(5), close=source.random() < 0.5)
    assert len(used) > 60
    assert len(set(used)) == len(used)


def test_the_writer_refuses_misuse(key: DataKey, tmp_path: Path) -> None:
    for arguments in (
        {"kind": "other"},
        {"kind": "original", "previous": b"x"},
    ):
        with pytest.raises(ValueError):
            SealedWriter(tmp_path / "a", key, media_type="x/y", **arguments)
    for secret, suite in ((b"short", 1), (bytes(32), 1), (bytes(32), 2), (bytes(16), 3)):
        with pytest.raises(ValueError, match="data key"):
            DataKey("k", secret, suite)
    with pytest.raises(ValueError, match="suite 4"):
        DataKey("k", bytes(16), 4)
    with SealedWriter(tmp_path / "a", key, kind="original", media_type="x/y") as writer:
        with pytest.raises(ValueError, match="empty"):
            writer.append(b"")
        with pytest.raises(ValueError, match="16 MiB"):
            writer.append(bytes(fmt.MAX_BODY_BYTES))
        with pytest.raises(ValueError, match="16 to"):
            writer.public_frame(3, b"")
        assert writer.close().chunks == 0


def split(data: bytes) -> list[list]:  # type: ignore[type-arg]
    """Take a file apart: type, flags, body of each record."""
    records, offset = [], 8
    while offset < len(data):
        kind, flags, _, length = struct.unpack(">HHII", data[offset : offset + 12])
        records.append([kind, flags, data[offset + 12 : offset + 12 + length]])
        offset += 44 + length
    return records


def join(records: list[list]) -> bytes:  # type: ignore[type-arg]
    """Put a file together as someone without the key can: numbers, lengths and SM3 trailers made anew."""
    data = fmt.MAGIC
    for number, (kind, flags, body) in enumerate(records):
        data += struct.pack(">HHII", kind, flags, number, len(body)) + body
        data += sm3(data)
    return data
