"""Check and describe a sealed file without any key: structure, numbering and the SM3 chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from recorder.gm.aead import TAG_BYTES
from recorder.gm.sm3 import DIGEST_BYTES, Sm3, named, sm3
from recorder.sealed import format as fmt
from recorder.sealed.format import Flag, Header, RecordType, SealedError
from recorder.sealed.source import RawRecord, RecordSource
from recorder.sealed.summary import FileSummary

_READ_BYTES = 1024 * 1024
_KEPT_PAYLOAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class RecordInfo:
    """One record as seen without the key."""

    number: int
    type: int
    flags: int
    offset: int
    end: int
    head_before: bytes
    """Chain head before the record: SM3 of all bytes of the file up to ``offset``. Empty where nobody asks
    for it: of records that are no public frame, in a file that has its END."""
    payload: bytes
    """Body of a public frame (type 16 and up) of at most 64 KiB; else empty."""


@dataclass
class FileScan:
    """What ``scan`` saw: the records as far as the chain holds; ``problem`` says where and why it ends."""

    path: Path
    size: int = 0
    header: Header | None = None
    """What it says is sure once record 0 holds (``header_holds``)."""
    records: list[RecordInfo] = field(default_factory=list)
    finished: bool = False
    """The file ends in END, and nothing is behind it."""
    good_bytes: int = 0
    """Bytes up to which every record is whole and chained."""
    head: bytes = b""
    """SM3 of the first ``good_bytes`` bytes."""
    digest: bytes = b""
    """SM3 of all bytes of the file."""
    chunks: int = 0
    plain_bytes: int = 0
    plain_sm3: bytes = fmt.NOT_TAKEN
    """As END says; ``NOT_TAKEN`` while unfinished."""
    problem: SealedError | None = None
    torn_bytes: int = 0
    """Bytes of an incomplete last record (of an unfinished file whose chain holds otherwise)."""

    @property
    def header_holds(self) -> bool:
        """Whether the header is whole: a problem, if any, is behind it."""
        behind = self.problem is not None and self.problem.record == 1
        return self.header is not None and (bool(self.records) or behind)


def read_header(path: Path) -> Header:
    """Return the clear-text header. Raise SealedError or OSError."""
    source = RecordSource(path)
    try:
        return source.header()[0]
    finally:
        source.close()


def scan(path: Path, *, on_record: Callable[[RecordInfo], None] | None = None) -> FileScan:
    """Read the file once, front to back, checking every record's number and trailer; no key is needed.

    Never raises for what is in the file: see ``FileScan.problem``. Raises OSError if it cannot be read.
    """
    source = RecordSource(path)
    result = FileScan(path, size=source.size())
    walk = _Walk(source, result)
    try:
        try:
            for record in walk.records():
                result.records.append(record)
                if on_record is not None:
                    on_record(record)
        except SealedError as problem:
            problem = _not_torn(source, problem) if problem.code == "incomplete" else problem
            # Without its frames: they hold the record, and the report is kept.
            result.problem = _placed(source, result, problem).with_traceback(None)
        result.size = source.size()
        running = walk.running()
        result.head = running.digest() if result.good_bytes else b""
        offset = result.good_bytes
        while data := source.pread(_READ_BYTES, offset):
            running.update(data)
            offset += len(data)
        result.digest = running.digest()
        if result.problem is None and not result.finished:
            result.torn_bytes = result.size - result.good_bytes
            result.problem = _changed_length(source, result, walk.running())
        return result
    finally:
        source.close()


def _placed(source: RecordSource, result: FileScan, problem: SealedError) -> SealedError:
    """Name the first record that does not hold: by its place, whatever number it bears now."""
    if result.records and problem.offset == result.good_bytes:
        problem.record = len(result.records)
    elif problem.record == 1:  # what follows the header is no commitment; is the header what it was?
        first = source.record(len(fmt.MAGIC))
        if first is not None and sm3(b"".join((fmt.MAGIC, first.record_header, first.body))) != first.trailer:
            detail = "the SM3 chain does not hold here"
            return SealedError("changed", first.offset, detail, end=first.end, record=0)
        if first is not None:  # whole, but perhaps another file's
            result.header = Header.from_bytes(bytes(first.body))
    return problem


def _not_torn(source: RecordSource, problem: SealedError) -> SealedError:
    """Tell a changed length in the first two records from a writer's death in its first write.

    That write holds both; if a commitment's record header is there, it was whole.
    """
    start = source.pread(fmt.MAX_HEADER_BYTES + 2 * fmt.OVERHEAD_BYTES, 0)
    place = start.find(_COMMITMENT_HEADER)
    if place < 0 or len(start) < place + fmt.OVERHEAD_BYTES + DIGEST_BYTES:
        return problem
    detail = "the header's length was changed"
    return SealedError("changed", problem.offset, detail, end=problem.offset + fmt.RECORD.size, record=0)


_COMMITMENT_HEADER = fmt.RECORD.pack(RecordType.COMMITMENT, Flag.CRITICAL, 1, DIGEST_BYTES)


def _changed_length(source: RecordSource, result: FileScan, good: Sm3) -> SealedError | None:
    """Tell a record whose length was changed from one that its writer did not finish.

    A torn write leaves nothing behind it. If the next record's number follows where a known type begins, or
    the last 32 bytes are the digest they were with the right length, the length was changed.
    """
    offset, number = result.good_bytes, len(result.records)
    tail = source.pread(fmt.MAX_BODY_BYTES + fmt.OVERHEAD_BYTES, offset)
    if len(tail) < fmt.OVERHEAD_BYTES:
        return None
    kind, flags, stated, _ = fmt.RECORD.unpack_from(tail)
    again = good.copy()
    again.update(fmt.RECORD.pack(kind, flags, stated, len(tail) - fmt.OVERHEAD_BYTES))
    again.update(tail[fmt.RECORD.size : -fmt.TRAILER_BYTES])
    whole = again.digest() == tail[-fmt.TRAILER_BYTES :]
    if whole:
        detail = "the record's length was changed"
        return SealedError("changed", offset, detail, end=offset + fmt.RECORD.size, record=number)
    # It may have less than its overhead now: bytes may have been removed from it.
    followers = [
        place
        for kind, flags in _FOLLOWERS
        if (place := tail.find(fmt.RECORD.pack(kind, flags, number + 1, 0)[:-4], fmt.RECORD.size)) >= 0
    ]
    if followers:
        detail = "its length was changed, or bytes of it removed"
        # With the header behind it: its bytes may be where this record's last ones were.
        end = offset + min(followers) + fmt.RECORD.size
        return SealedError("changed", offset, detail, end=end, record=number)
    return None


_FOLLOWERS = (
    (RecordType.CHUNK, Flag.CRITICAL),
    (RecordType.CHUNK, Flag.CRITICAL | Flag.OPAQUE),
    (RecordType.INDEX, Flag.CRITICAL | Flag.LAST),
    (RecordType.END, Flag.CRITICAL),
    *((kind, Flag(0)) for kind in RecordType if kind >= RecordType.CHECKPOINT),
)


class _Walk:
    """Go from record to record, hashing on the way."""

    def __init__(self, source: RecordSource, result: FileScan) -> None:
        self._source = source
        self._result = result
        self._running = Sm3()
        self._overrun = False
        self._all_heads = source.end_record() is None

    def running(self) -> Sm3:
        """Return a hash of exactly the bytes found good; after a changed record they are read once more."""
        if not self._overrun:
            return self._running.copy()
        again, offset = Sm3(), 0
        while data := self._source.pread(min(_READ_BYTES, self._result.good_bytes - offset), offset):
            again.update(data)
            offset += len(data)
        return again

    def records(self) -> Iterator[RecordInfo]:
        """Yield records while they hold. Raise SealedError at the first that does not."""
        source, result = self._source, self._result
        result.header, _, _ = source.header()
        running = self._running
        running.update(fmt.MAGIC)
        offset, number = len(fmt.MAGIC), 0
        while (record := source.record(offset)) is not None:
            _check_number(record, number)
            public = record.type >= RecordType.CHECKPOINT
            head_before = running.digest() if public or self._all_heads else b""
            self._overrun = True
            running.update(record.record_header)
            running.update(record.body)
            if running.digest() != record.trailer:
                raise SealedError(
                    "changed", offset, "the SM3 chain does not hold here", end=record.end, record=number
                )
            _count(record, result)
            running.update(record.trailer)
            self._overrun = False
            result.good_bytes = record.end
            payload = bytes(record.body[:_KEPT_PAYLOAD_BYTES]) if public else b""
            yield RecordInfo(number, record.type, record.flags, offset, record.end, head_before, payload)
            offset, number = record.end, number + 1
            if record.type == RecordType.END:
                if source.size() > offset:
                    raise SealedError(
                        "bad_record", offset, "bytes behind the END", end=source.size(), record=number
                    )
                result.finished = True
                return


def _check_number(record: RawRecord, number: int) -> None:
    if record.number != number:
        what = "records are missing before it" if record.number > number else "it is repeated or moved"
        detail = f"record {number} should be here, number {record.number} is: {what}"
        raise SealedError("bad_record", record.offset, detail, end=record.end, record=number)


def _count(record: RawRecord, result: FileScan) -> None:
    if record.type == RecordType.CHUNK:
        result.chunks += 1
        result.plain_bytes += len(record.body) - TAG_BYTES
    elif record.type == RecordType.END:
        if len(record.body) != fmt.END.size:
            raise SealedError(
                "bad_record", record.offset, "END has another length", end=record.end, record=record.number
            )
        _, plain_bytes, chunks, result.plain_sm3 = fmt.END.unpack(record.body)
        if (plain_bytes, chunks) != (result.plain_bytes, result.chunks):
            raise SealedError(
                "bad_record", record.offset, "END miscounts", end=record.end, record=record.number
            )
    elif record.type in (RecordType.HEADER, RecordType.COMMITMENT) and record.number != record.type - 1:
        raise SealedError(
            "bad_record", record.offset, "a second header", end=record.end, record=record.number
        )


def summarise(path: Path) -> FileSummary:
    """Describe a file from its bytes alone, finished or left by a dead writer.

    Raise SealedError if it has no valid header.
    """
    found = scan(path)
    if found.header is None:
        raise found.problem or SealedError("bad_header", 0, "no header")
    return FileSummary(
        name=path.name,
        file_id=found.header.file_id,
        kind=found.header.kind,
        media_type=found.header.media_type,
        bytes=found.size,
        plain_bytes=found.plain_bytes,
        chunks=found.chunks,
        sm3=named(found.digest),
        plain_sm3=fmt.plain_named(found.plain_sm3),
        head=named(found.head) if found.head else "",
        finished=found.finished,
    )
