"""Sealed file version 1, the bytes: magic, records, header, index. docs/container.md is the
authority.

    magic (8) | record 0: HEADER | record 1: COMMITMENT | CHUNK … and public frames … | INDEX | END

    record:  type u16 | flags u16 | number u32 | length u32 | body (length) | SM3 of all bytes of the file
    before (32)

All integers big-endian. Every record ends in the running SM3 of the file, so a change is placed in its
record without any key, and the chain head of a finished file is simply the SM3 of its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from recorder.canonical import JSON, CanonicalError, canonical, parse_canonical
from recorder.gm.aead import TAG_BYTES
from recorder.gm.sm3 import DIGEST_BYTES, named, parse_named
from recorder.sealed.suites import SUITE_SM4_GCM, SUITES

MAGIC = b"\x89SLS\r\n\x1a\n"
"""As PNG's: not text, and a transfer that touches line ends or the eighth bit breaks it visibly."""
VERSION = 1
KINDS = ("original", "archive", "derived")

RECORD = struct.Struct(">HHII")
TRAILER_BYTES = DIGEST_BYTES
OVERHEAD_BYTES = RECORD.size + TRAILER_BYTES
BLOB_CHUNK_BYTES = 256 * 1024
MAX_BODY_BYTES = 16 * 1024 * 1024
"""A reader refuses longer records before it makes room for them."""
MAX_HEADER_BYTES = 64 * 1024
FILE_ID_BYTES = 16

NOT_TAKEN = bytes(DIGEST_BYTES)
"""In place of the plain text's SM3 in journals: nobody exports one, and a second pass over every packet of a
call costs as much as the chain."""

INDEX_HEAD = struct.Struct(">QI32s")
INDEX_ENTRY = struct.Struct(">QI")
END = struct.Struct(">QQI32s")
END_RECORD_BYTES = RECORD.size + END.size + TRAILER_BYTES


class RecordType(IntEnum):
    """The record types of version 1; public frames have numbers from 16 on."""

    HEADER = 1
    COMMITMENT = 2
    CHUNK = 3
    INDEX = 4
    END = 5
    CHECKPOINT = 16
    ANCHOR = 17
    """Of the audit log: ties recordings to its chain."""
    MARK = 18
    """Of the audit log: which entries the chunk before it holds."""
    TIMESTAMP = 19
    """Of the audit log: a time-stamp token over an anchor, whole."""
    EXPIRED = 20
    """Of the audit log: which of its older files were removed when their time had come."""


class Flag(IntFlag):
    """Bits of a record's flags; the others are 0."""

    CRITICAL = 1
    """A reader that does not know the type must refuse the file, naming it."""
    LAST = 2
    """The last sealed record of the file (STREAM's last flag): the INDEX and nothing else."""
    OPAQUE = 4
    """The plain text is itself end-to-end encrypted by the callers and means nothing to us."""


class SealedError(ValueError):
    """A sealed file is not what it should be; names the record and the byte range, and never holds plain
    text.

    ``code`` is one of incomplete, bad_magic, bad_header, unsupported_version, unsupported_suite, wrong_key,
    unknown_critical, bad_record, changed, index_mismatch.
    """

    def __init__(
        self, code: str, offset: int, detail: str, *, end: int | None = None, record: int | None = None
    ) -> None:
        self.code = code
        self.offset = offset
        self.end = end if end is not None else offset
        self.record = record
        self.detail = detail
        where = f"record {record}, " if record is not None else ""
        super().__init__(f"{code}: {detail} ({where}bytes {offset}–{self.end})")


@dataclass(frozen=True)
class Header:
    """What a sealed file says about itself in the clear."""

    file_id: str
    """32 hex digits, fresh and random for every file ever begun."""
    kind: str
    media_type: str
    key_id: str
    previous: bytes | None = None
    """Chain head of the file before in the same series."""
    public: Mapping[str, JSON] = field(default_factory=dict)
    suite: int = SUITE_SM4_GCM
    version: int = VERSION

    def to_bytes(self) -> bytes:
        """Return the HEADER record's body: canonical JSON."""
        return canonical(
            {
                "file_id": self.file_id,
                "key_id": self.key_id,
                "kind": self.kind,
                "media_type": self.media_type,
                "previous": named(self.previous) if self.previous is not None else None,
                "public": self.public,
                "suite": self.suite,
                "version": self.version,
            }
        )

    @classmethod
    def from_bytes(cls, body: bytes) -> Header:
        """Parse a HEADER record's body. Raise SealedError (bad_header, unsupported_…)."""
        offset = len(MAGIC)
        end = offset + OVERHEAD_BYTES + len(body)
        try:
            fields = parse_canonical(body)
            version, suite = fields["version"], fields["suite"]
            if version != VERSION:
                raise SealedError("unsupported_version", offset, f"version {version!r}", end=end, record=0)
            if type(suite) is not int or suite not in SUITES:
                raise SealedError("unsupported_suite", offset, f"suite {suite!r}", end=end, record=0)
            previous, public, kind = fields["previous"], fields["public"], fields["kind"]
            file_id = fields["file_id"]
            if not isinstance(public, Mapping) or kind not in KINDS or not isinstance(file_id, str):
                raise CanonicalError("a member has the wrong type")
            if len(bytes.fromhex(file_id)) != FILE_ID_BYTES:
                raise CanonicalError("file_id is not 16 bytes")
            return cls(
                file_id=file_id,
                kind=str(kind),
                media_type=str(fields["media_type"]),
                key_id=str(fields["key_id"]),
                previous=None if previous is None else parse_named(str(previous)),
                public=public,
                suite=suite,
            )
        except SealedError:
            raise
        except (KeyError, ValueError) as error:
            raise SealedError("bad_header", offset, str(error), end=end, record=0) from None


def nonce(number: int, *, last: bool) -> bytes:
    """STREAM (Hoang et al. 2015): record number in 11 bytes, then 1 for the last sealed one, else 0."""
    return number.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def associated_data(header_digest: bytes, trailer_before: bytes, record_header: bytes) -> bytes:
    """Return what a record authenticates beside its text: file header, all bytes before, own header."""
    return header_digest + trailer_before + record_header


@dataclass(frozen=True)
class Index:
    """The INDEX record's plain text: where each chunk begins, what is in them together."""

    plain_bytes: int
    plain_sm3: bytes
    offsets: tuple[int, ...]
    """Where in the file each CHUNK record begins."""
    sizes: tuple[int, ...]
    """Bytes of each one's plain text."""

    def to_bytes(self) -> bytes:
        """Return total u64 ‖ count u32 ‖ SM3 of the plain text ‖ count × (offset u64 ‖ size u32)."""
        head = INDEX_HEAD.pack(self.plain_bytes, len(self.offsets), self.plain_sm3)
        return head + b"".join(map(INDEX_ENTRY.pack, self.offsets, self.sizes))

    @classmethod
    def from_bytes(cls, data: bytes, offset: int) -> Index:
        """Parse; raise SealedError index_mismatch if the numbers do not add up."""
        if len(data) < INDEX_HEAD.size or (len(data) - INDEX_HEAD.size) % INDEX_ENTRY.size:
            raise SealedError("index_mismatch", offset, "index has an impossible length")
        plain_bytes, count, plain_sm3 = INDEX_HEAD.unpack_from(data)
        held = (len(data) - INDEX_HEAD.size) // INDEX_ENTRY.size
        # One call for all: a byte range of a long film waits for this, 4,096 entries a GiB.
        numbers = struct.unpack_from(">" + "QI" * held, data, INDEX_HEAD.size)
        offsets, sizes = numbers[::2], numbers[1::2]
        if held != count or sum(sizes) != plain_bytes:
            raise SealedError("index_mismatch", offset, "index does not add up")
        return cls(plain_bytes, plain_sm3, offsets, sizes)


def plain_named(digest: bytes) -> str:
    """Write the plain text's SM3 as signed pages do; empty where it was not taken."""
    return "" if digest == NOT_TAKEN else named(digest)


def sealed_record_bytes(plain_bytes: int) -> int:
    """Return how many bytes of file a chunk of this plain size takes."""
    return OVERHEAD_BYTES + plain_bytes + TAG_BYTES
