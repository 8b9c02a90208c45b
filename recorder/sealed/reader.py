"""Open a sealed file with its recording's data key: front to back, while it grows, or at any byte."""

from __future__ import annotations

import hmac
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType

from recorder.gm import selftest
from recorder.gm.aead import TAG_BYTES, TagError
from recorder.gm.sm3 import sm3
from recorder.sealed import format as fmt
from recorder.sealed.format import Flag, Index, RecordType, SealedError
from recorder.sealed.source import ByteSource, RawRecord, RecordSource
from recorder.sealed.suites import SUITES, DataKey, FileKeys


class SealedReader:
    """Read one sealed file. Every byte returned was authenticated before; nothing is written anywhere.

    ``read`` may be called from several threads; ``chunks`` from one.
    """

    def __init__(self, path: Path | ByteSource, data_key: DataKey) -> None:
        """Open the file and check that the key is the one it was sealed with.

        ``path`` may be what reads like a file, such as an object at a site.

        Raise SealedError: ``incomplete`` while the writer has not written the header yet, ``wrong_key``, and
        what ``recorder.sealed.format.SealedError`` lists for damaged files. Raise OSError as open(2) does.
        """
        selftest.require()
        self._source = RecordSource(path)
        try:
            self.header, first, second = self._source.header()
            self._header_digest = sm3(fmt.MAGIC + first.record_header + first.rest)
            self._keys = self._derive(data_key, second)
        except BaseException:
            self._source.close()
            raise
        self._begin = self._next = second.end
        self._number = 2
        self._trailer = second.trailer
        self._seen: tuple[list[int], list[int]] = ([], [])
        """Offsets and plain sizes of the chunks that ``chunks`` came by."""
        self._offsets: Sequence[int] = []
        self._starts: list[int] = [0]
        """Where in the plain text each chunk begins; one more than there are chunks."""
        self._index: Index | None = None
        self._ended = False
        self._scan = (second.end, 2)
        self._cached: tuple[int, bytes] = (-1, b"")
        self._lock = threading.Lock()

    def _derive(self, data_key: DataKey, commitment: RawRecord) -> FileKeys:
        """Derive the file's keys by its own suite; refuse a data key it was not sealed with."""
        fits = len(data_key.secret) == SUITES[self.header.suite].data_key_bytes
        if fits:
            keys = FileKeys.derive(data_key.secret, bytes.fromhex(self.header.file_id), self.header.suite)
            if hmac.compare_digest(keys.commitment(self._header_digest), bytes(commitment.body)):
                return keys
        raise SealedError(
            "wrong_key",
            commitment.offset,
            f"not sealed with key {data_key.key_id}, or changed (it names {self.header.key_id})",
            end=commitment.end,
            record=1,
        )

    def __enter__(self) -> SealedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._source.close()

    @property
    def finished(self) -> bool:
        """Whether the writer closed the file (it ends in a valid END and index)."""
        with self._lock:
            return self._finished()

    @property
    def size(self) -> int:
        """Bytes of plain text in whole chunks; of a finished file, all of it."""
        with self._lock:
            self._locate()
            return self._starts[-1]

    def chunks(self, limit: int | None = None) -> Iterator[bytes]:
        """Yield the plain text of all whole chunks not yet yielded, in order.

        Ends where the file ends for now; call again for what came since. A torn last record (the writer
        died, or is writing) is waited for, not an error. At the END the index is compared with what was
        read. Raise SealedError where anything was changed, removed or put elsewhere; what came before was
        good. After ``changed`` call again for what is behind the changed record: it is bound to that record's
        stated trailer, not to its content. ``limit``: the file offset at which the records end that count.
        """
        while not self._ended and (limit is None or self._next < limit):
            record = self._source.record(self._next)
            if record is None:
                return
            if record.number != self._number:
                raise SealedError(
                    "bad_record",
                    record.offset,
                    f"record {self._number} should be here, number {record.number} is",
                    end=record.end,
                    record=self._number,
                )
            plaintext = None
            trailer_before = self._trailer
            if record.type in (RecordType.CHUNK, RecordType.INDEX):
                self._next, self._number, self._trailer = record.end, record.number + 1, record.trailer
            if record.type == RecordType.CHUNK:
                self._seen[0].append(record.offset)
                self._seen[1].append(len(record.body) - TAG_BYTES)
                plaintext = self._open(record, trailer_before)
            elif record.type == RecordType.INDEX:
                index = Index.from_bytes(self._open(record, trailer_before), record.offset)
                if (list(index.offsets), list(index.sizes)) != self._seen:
                    raise SealedError(
                        "index_mismatch", record.offset, "index names other chunks", end=record.end
                    )
                with self._lock:
                    self._index = index
            elif record.type == RecordType.END:
                self._check_end(record)
                self._ended = True
            elif record.type in (RecordType.HEADER, RecordType.COMMITMENT):
                raise SealedError(
                    "bad_record", record.offset, "a second header", end=record.end, record=record.number
                )
            self._next, self._number, self._trailer = record.end, record.number + 1, record.trailer
            if plaintext is not None:
                yield plaintext

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` plain bytes from ``offset`` (fewer only at the end): what an HTTP Range
        needs.

        Opens the one or two chunks concerned (256 KiB each in blobs). Raise ValueError for a negative
        argument, SealedError where the file was changed.
        """
        if offset < 0 or size < 0:
            raise ValueError("offset and size are not negative")
        with self._lock:
            self._locate()
            parts: list[bytes] = []
            end = min(offset + size, self._starts[-1])
            position = offset
            while position < end:
                number = bisect_right(self._starts, position) - 1
                text = self._chunk(number)
                begin = position - self._starts[number]
                part = text[begin : begin + end - position]
                parts.append(part)
                position += len(part)
            return b"".join(parts)

    def _chunk(self, number: int) -> bytes:
        if self._cached[0] == number:
            return self._cached[1]
        at, size = self._offsets[number], self._starts[number + 1] - self._starts[number]
        record = self._source.record(at)
        if record is None or record.type != RecordType.CHUNK:
            raise SealedError("bad_record", at, f"chunk {number} is not where the index says", end=at)
        text = self._open(record, self._source.pread(fmt.TRAILER_BYTES, at - fmt.TRAILER_BYTES))
        if len(text) != size:
            raise SealedError(
                "index_mismatch", at, f"chunk {number} has another size than the index says", end=record.end
            )
        self._cached = (number, text)
        return text

    def _open(self, record: RawRecord, trailer_before: bytes) -> bytes:
        aad = fmt.associated_data(self._header_digest, trailer_before, record.record_header)
        nonce = fmt.nonce(record.number, last=bool(record.flags & Flag.LAST))
        try:
            return self._keys.aead.open(nonce, record.body, aad)
        except TagError:
            raise SealedError(
                "changed", record.offset, "does not open", end=record.end, record=record.number
            ) from None

    def _finished(self) -> bool:
        if self._index is None:
            end = self._source.end_record()
            if end is None:
                return False
            index_offset, _, _, _ = fmt.END.unpack(end.body)
            record = self._source.record(index_offset) if self._begin <= index_offset < end.offset else None
            if record is None or record.type != RecordType.INDEX or record.end != end.offset:
                raise SealedError(
                    "index_mismatch", end.offset, "END names no index", end=end.end, record=end.number
                )
            trailer_before = self._source.pread(fmt.TRAILER_BYTES, index_offset - fmt.TRAILER_BYTES)
            self._index = Index.from_bytes(self._open(record, trailer_before), record.offset)
            self._check_end(end)
        return self._ended or self._source.end_record() is not None

    def _check_end(self, end: RawRecord) -> None:
        if len(end.body) != fmt.END.size:
            raise SealedError(
                "bad_record", end.offset, "END has another length", end=end.end, record=end.number
            )
        _, plain_bytes, chunks, plain_sm3 = fmt.END.unpack(end.body)
        index = self._index
        if index is None or (plain_bytes, chunks, plain_sm3) != (
            index.plain_bytes,
            len(index.offsets),
            index.plain_sm3,
        ):
            raise SealedError(
                "index_mismatch", end.offset, "END and index disagree", end=end.end, record=end.number
            )

    def _locate(self) -> None:
        """Know where every whole chunk begins: from the index, or by walking a growing file's records."""
        if self._finished() and self._index is not None:
            if self._offsets is not self._index.offsets:
                self._offsets = self._index.offsets
                self._starts = list(accumulate(self._index.sizes, initial=0))
            return
        offsets = list(self._offsets)
        offset, number = self._scan
        while (record := self._source.record(offset)) is not None:
            if record.number != number:
                raise SealedError(
                    "bad_record", offset, f"record {number} should be here", end=record.end, record=number
                )
            if record.type == RecordType.CHUNK:
                offsets.append(offset)
                self._starts.append(self._starts[-1] + len(record.body) - TAG_BYTES)
            offset, number = record.end, number + 1
        self._scan = (offset, number)
        self._offsets = offsets
