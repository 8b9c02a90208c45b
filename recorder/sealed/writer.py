"""Write one sealed file, from its first byte to its last, once."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from recorder.canonical import JSON
from recorder.gm import selftest
from recorder.gm.aead import TAG_BYTES
from recorder.gm.sm3 import DIGEST_BYTES, Sm3, named
from recorder.sealed import format as fmt
from recorder.sealed.format import RECORD, TRAILER_BYTES, Flag, Header, Index, RecordType
from recorder.sealed.suites import DataKey, FileKeys
from recorder.sealed.summary import FileSummary

FIRST_PUBLIC_TYPE = 16


class SealedWriter:
    """Seal one new file. Not for two threads at once.

    Two ways of use, never mixed: ``append`` seals each call as one chunk at once (journals: a reader may
    follow), ``write`` gathers chunks of 256 KiB (finished media: byte ranges are cheap to open) and takes the
    digest of the plain text too, by which an exported file is known.

    Each record is one write(2), nothing is left in a buffer. When a write fails half-way the file is left as
    it is and every later call raises: the record's number, and with it its nonce, has been used.
    """

    def __init__(
        self,
        path: Path,
        data_key: DataKey,
        *,
        kind: str,
        media_type: str,
        public: Mapping[str, JSON] | None = None,
        previous: bytes | None = None,
    ) -> None:
        """Create the file (O_EXCL, mode 0600) with a fresh random file id and write its header.

        The cipher suite is the data key's.
        ``{file_id}`` in the file's name is replaced by that id. Raise FileExistsError if it is there already:
        a sealed file is never opened for writing twice. Raise ValueError for an unknown kind.
        """
        selftest.require()
        if kind not in fmt.KINDS:
            raise ValueError(f"kind {kind!r} is not one this version writes")
        if previous is not None and len(previous) != DIGEST_BYTES:
            raise ValueError("previous is a chain head of 32 bytes")
        file_id = secrets.token_bytes(fmt.FILE_ID_BYTES)
        self.path = path.with_name(path.name.replace("{file_id}", file_id.hex()))
        self.header = Header(
            file_id.hex(), kind, media_type, data_key.key_id, previous, dict(public or {}), data_key.suite
        )
        self._keys = FileKeys.derive(data_key.secret, file_id, data_key.suite)
        self._hash = Sm3()
        self._plain_hash = Sm3()
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._buffer = bytearray()
        self._number = 0
        self._mode = ""
        self.plain_bytes = 0
        """Plain bytes given so far, those still gathered included."""
        self.bytes = 0
        """Bytes of the file so far."""
        body = self.header.to_bytes()
        if len(body) > fmt.MAX_HEADER_BYTES:
            raise ValueError("the header is limited to 64 KiB")
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # Magic, header and commitment in one write, so that a follower never meets a file without them.
        self._hash.update(fmt.MAGIC)
        first = self._frame(RecordType.HEADER, Flag.CRITICAL, body)
        self._header_digest = self._hash.digest()
        second = self._frame(RecordType.COMMITMENT, Flag.CRITICAL, self._keys.commitment(self._header_digest))
        self._put(fmt.MAGIC + first + second)

    def __enter__(self) -> SealedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            if kind is None:
                self.close()
            else:
                self.abandon()

    @property
    def file_id(self) -> str:
        """The file's id, 32 hex digits."""
        return self.header.file_id

    @property
    def head(self) -> bytes:
        """The chain head: SM3 of all bytes written so far."""
        return self._hash.digest()

    @property
    def records(self) -> int:
        """Records written so far: the number of the next one."""
        return self._number

    def append(self, plaintext: bytes, *, opaque: bool = False) -> None:
        """Seal ``plaintext`` (1 byte to 16 MiB − 16) as one chunk and write it now.

        ``opaque`` marks it as end-to-end encrypted by the parties themselves.
        """
        self._use("append")
        if not plaintext:
            raise ValueError("an empty chunk says nothing")
        self._chunk(plaintext, Flag.OPAQUE if opaque else Flag(0))
        self.plain_bytes += len(plaintext)

    def write(self, data: bytes) -> int:
        """Gather ``data`` into chunks of 256 KiB, sealing each as it fills. Return ``len(data)``."""
        self._use("write")
        self.plain_bytes += len(data)
        view = memoryview(data)
        position = 0
        if self._buffer:
            position = min(fmt.BLOB_CHUNK_BYTES - len(self._buffer), len(view))
            self._buffer += view[:position]
            if len(self._buffer) == fmt.BLOB_CHUNK_BYTES:
                full, self._buffer = self._buffer, bytearray()
                self._chunk(full)
        while len(view) - position >= fmt.BLOB_CHUNK_BYTES:
            self._chunk(view[position : position + fmt.BLOB_CHUNK_BYTES])
            position += fmt.BLOB_CHUNK_BYTES
        self._buffer += view[position:]
        return len(data)

    def public_frame(self, frame_type: int, payload: bytes) -> None:
        """Write a clear-text, non-critical record of a type from 16 on (a checkpoint), chained like all."""
        if not FIRST_PUBLIC_TYPE <= frame_type <= 0xFFFF or len(payload) > fmt.MAX_BODY_BYTES:
            raise ValueError("public frames have types 16 to 65535 and at most 16 MiB")
        self._check_open()
        self._put(self._frame(frame_type, Flag(0), payload))

    def sync(self) -> None:
        """Make what is written survive a power cut (fdatasync)."""
        self._check_open()
        os.fdatasync(self._fd)

    def close(self) -> FileSummary:
        """Seal what is gathered, write index and end, sync. Raise OSError if a write fails."""
        self._check_open()
        if self._buffer:
            rest, self._buffer = self._buffer, bytearray()
            self._chunk(rest)
        plain_digest = fmt.NOT_TAKEN if self._mode == "append" else self._plain_hash.digest()
        index = Index(self.plain_bytes, plain_digest, tuple(self._offsets), tuple(self._sizes))
        index_offset = self.bytes
        self._put(self._seal(RecordType.INDEX, Flag.CRITICAL | Flag.LAST, index.to_bytes()))
        end = fmt.END.pack(index_offset, self.plain_bytes, len(self._offsets), plain_digest)
        self._put(self._frame(RecordType.END, Flag.CRITICAL, end))
        os.fsync(self._fd)
        self.abandon()
        digest = named(self._hash.digest())
        return FileSummary(
            name=self.path.name,
            file_id=self.header.file_id,
            kind=self.header.kind,
            media_type=self.header.media_type,
            bytes=self.bytes,
            plain_bytes=self.plain_bytes,
            chunks=len(self._offsets),
            sm3=digest,
            plain_sm3=fmt.plain_named(plain_digest),
            head=digest,
        )

    def abandon(self) -> None:
        """Leave the file as it is, unfinished; what is gathered and not sealed is lost. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _use(self, mode: str) -> None:
        self._check_open()
        if self._mode not in ("", mode):
            raise ValueError("append and write do not mix in one file")
        self._mode = mode

    def _check_open(self) -> None:
        if self._fd < 0:
            raise ValueError(f"{self.path.name} is closed and is never written again")

    def _chunk(self, plaintext: bytes | bytearray | memoryview, flags: Flag = Flag(0)) -> None:  # noqa: B008
        if len(plaintext) + TAG_BYTES > fmt.MAX_BODY_BYTES:
            raise ValueError("a chunk is limited to 16 MiB")
        offset = self.bytes
        record = self._seal(RecordType.CHUNK, Flag.CRITICAL | flags, plaintext)
        if self._mode != "append":
            self._plain_hash.update(plaintext)
        self._put(record)
        self._offsets.append(offset)
        self._sizes.append(len(plaintext))

    def _seal(self, kind: int, flags: Flag, plaintext: bytes | bytearray | memoryview) -> bytearray:
        """Build one sealed record in a single buffer; encrypting and hashing release the interpreter lock."""
        body_end = RECORD.size + len(plaintext) + TAG_BYTES
        record = bytearray(body_end + TRAILER_BYTES)
        RECORD.pack_into(record, 0, kind, flags, self._number, len(plaintext) + TAG_BYTES)
        aad = fmt.associated_data(self._header_digest, self._trailer, bytes(record[: RECORD.size]))
        nonce = fmt.nonce(self._number, last=bool(flags & Flag.LAST))
        self._number += 1
        view = memoryview(record)
        self._keys.aead.seal_into(view[RECORD.size : body_end], nonce, plaintext, aad)
        self._end_record(record, body_end)
        return record

    def _frame(self, kind: int, flags: Flag, body: bytes) -> bytearray:
        record = bytearray(RECORD.size + len(body) + TRAILER_BYTES)
        RECORD.pack_into(record, 0, kind, flags, self._number, len(body))
        self._number += 1
        record[RECORD.size : -TRAILER_BYTES] = body
        self._end_record(record, len(record) - TRAILER_BYTES)
        return record

    def _end_record(self, record: bytearray, body_end: int) -> None:
        view = memoryview(record)
        self._hash.update(view[:body_end])
        self._trailer = self._hash.digest()
        self._hash.update(self._trailer)
        record[body_end:] = self._trailer

    def _put(self, record: bytes | bytearray) -> None:
        view = memoryview(record)
        try:
            while view:
                written = os.write(self._fd, view)
                self.bytes += written
                view = view[written:]
        except OSError:
            # The number is spent and the tail may be torn: this file ends here, the caller begins another.
            self.abandon()
            raise
