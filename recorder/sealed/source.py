"""Read records off a file descriptor, the whole ones only: what reader and scan share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from recorder.gm.aead import TAG_BYTES
from recorder.gm.sm3 import DIGEST_BYTES
from recorder.sealed import format as fmt
from recorder.sealed.format import RECORD, TRAILER_BYTES, Flag, Header, RecordType, SealedError

_ALL_FLAGS = Flag.CRITICAL | Flag.LAST | Flag.OPAQUE
_USUAL = {
    (int(RecordType.CHUNK), int(Flag.CRITICAL)),
    (int(RecordType.INDEX), int(Flag.CRITICAL | Flag.LAST)),
    (int(RecordType.CHECKPOINT), 0),
}
"""Type and flags of nearly every record: looking at flags one by one takes longer than hashing 2 KiB."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as it lies in the file."""

    number: int
    type: int
    flags: int
    offset: int
    record_header: bytes
    """The 12 bytes before the body."""
    rest: bytes
    """Body and trailer; apart from the header, because joining them would copy every chunk once more."""

    @property
    def end(self) -> int:
        """File offset just after the trailer."""
        return self.offset + RECORD.size + len(self.rest)

    @property
    def body(self) -> memoryview:
        """The body alone."""
        return memoryview(self.rest)[:-TRAILER_BYTES]

    @property
    def trailer(self) -> bytes:
        """The stated SM3 of all bytes of the file before the trailer."""
        return self.rest[-TRAILER_BYTES:]


class ByteSource(Protocol):
    """Where a sealed file's bytes come from: the disk, or an object store. For several threads."""

    def size(self) -> int:
        """Return the size now."""

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes; fewer only at the end."""

    def close(self) -> None:
        """Let go; may be called twice."""


class FileBytes:
    """The bytes of a local file."""

    def __init__(self, path: Path) -> None:
        """Open it. Raise OSError."""
        # Without O_NONBLOCK opening a named pipe waits for ever; to files it means nothing.
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def close(self) -> None:
        """Close the file; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def size(self) -> int:
        """Return the file's size now."""
        return os.fstat(self._fd).st_size

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes; fewer only at the end of the file."""
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


class RecordSource:
    """Positioned reading of one sealed file; safe from several threads (pread only)."""

    def __init__(self, where: Path | ByteSource) -> None:
        self._bytes: ByteSource = FileBytes(where) if isinstance(where, Path) else where
        self.close, self.size, self.pread = self._bytes.close, self._bytes.size, self._bytes.pread

    def record(self, offset: int) -> RawRecord | None:
        """Return the record at ``offset``, or None while it is not wholly there.

        Raise SealedError bad_record for a record header that no writer writes, unknown_critical for a
        critical record of a type this version does not know.
        """
        head = self.pread(RECORD.size, offset)
        if len(head) < RECORD.size:
            return None
        kind, flags, number, length = RECORD.unpack(head)
        check_record_header(kind, flags, number, length, offset)
        rest = self.pread(length + TRAILER_BYTES, offset + RECORD.size)
        if len(rest) < length + TRAILER_BYTES:
            return None
        return RawRecord(number, kind, flags, offset, head, rest)

    def header(self) -> tuple[Header, RawRecord, RawRecord]:
        """Return the parsed header, its record and the commitment record.

        Raise SealedError incomplete while they are not wholly there, else for what is wrong with them.
        """
        magic = self.pread(len(fmt.MAGIC), 0)
        if magic != fmt.MAGIC[: len(magic)]:
            raise SealedError("bad_magic", 0, "not a sealed file", end=len(fmt.MAGIC))
        if len(magic) < len(fmt.MAGIC):
            raise SealedError("incomplete", 0, "shorter than the magic", end=len(magic))
        first = self.record(len(fmt.MAGIC))
        if first is None:
            raise SealedError(
                "incomplete", len(fmt.MAGIC), "header not wholly there", end=self.size(), record=0
            )
        if (first.type, first.number) != (RecordType.HEADER, 0) or len(first.body) > fmt.MAX_HEADER_BYTES:
            raise SealedError(
                "bad_header", first.offset, "first record is no header", end=first.end, record=0
            )
        header = Header.from_bytes(bytes(first.body))
        stated = self.pread(RECORD.size, first.end)
        if len(stated) == RECORD.size and RECORD.unpack(stated)[3] != DIGEST_BYTES:
            end = first.end + RECORD.size
            raise SealedError("bad_header", first.end, "a commitment has 32 bytes", end=end, record=1)
        second = self.record(first.end)
        if second is None:
            raise SealedError(
                "incomplete", first.end, "commitment not wholly there", end=self.size(), record=1
            )
        if (second.type, second.number) != (RecordType.COMMITMENT, 1) or len(second.body) != DIGEST_BYTES:
            raise SealedError("bad_header", second.offset, "no key commitment", end=second.end, record=1)
        return header, first, second

    def end_record(self) -> RawRecord | None:
        """Return the END record if the file ends in one."""
        size = self.size()
        offset = size - fmt.END_RECORD_BYTES
        if offset < len(fmt.MAGIC):
            return None
        data = self.pread(fmt.END_RECORD_BYTES, offset)
        if len(data) < fmt.END_RECORD_BYTES:
            return None
        kind, flags, number, length = RECORD.unpack_from(data)
        if (kind, flags, length) != (RecordType.END, Flag.CRITICAL, fmt.END.size):
            return None
        return RawRecord(number, kind, flags, offset, data[: RECORD.size], data[RECORD.size :])


def check_record_header(kind: int, flags: int, number: int, length: int, offset: int) -> None:
    """Raise SealedError for a record header version 1 does not write, or whose record may not be skipped."""
    if (kind, flags) in _USUAL and TAG_BYTES <= length <= fmt.MAX_BODY_BYTES:
        return
    end = offset + RECORD.size
    if length > fmt.MAX_BODY_BYTES:
        raise SealedError("bad_record", offset, f"length {length} is over the limit", end=end, record=number)
    if flags & ~_ALL_FLAGS:
        raise SealedError("bad_record", offset, f"unknown flags {flags:#06x}", end=end, record=number)
    known = kind in RecordType.__members__.values()
    if not known and flags & Flag.CRITICAL:
        raise SealedError(
            "unknown_critical",
            offset,
            f"record type {kind} is critical and unknown to this version",
            end=end + length + TRAILER_BYTES,
            record=number,
        )
    sealed = kind in (RecordType.CHUNK, RecordType.INDEX)
    # A CHUNK whose type became a public frame's must not be skipped.
    wrong = known and bool(flags & Flag.CRITICAL) != (kind < RecordType.CHECKPOINT)
    if wrong or bool(flags & Flag.LAST) != (kind == RecordType.INDEX):
        raise SealedError(
            "bad_record", offset, f"flags {flags:#06x} do not fit type {kind}", end=end, record=number
        )
    if (flags & Flag.OPAQUE and kind != RecordType.CHUNK) or (sealed and length < TAG_BYTES):
        raise SealedError(
            "bad_record", offset, f"length {length} or flags do not fit type {kind}", end=end, record=number
        )
