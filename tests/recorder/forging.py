"""What someone who holds a recording's data key can do: seal anything anew, make every chain hold again.

Only the signing key is missing: pages and checkpoints that the recorder signed can be kept, removed, moved
and copied, but not made.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from recorder.gm.aead import TAG_BYTES
from recorder.gm.sm3 import sm3
from recorder.sealed import DataKey, Header, RecordType, scan
from recorder.sealed import format as fmt
from recorder.sealed.format import Flag, Index
from recorder.sealed.suites import FileKeys


@dataclass
class Piece:
    """A chunk with its plain text, or a public frame with its body."""

    type: int
    body: bytes
    flags: int = Flag.CRITICAL


@dataclass
class Forgery:
    """A sealed file taken apart; change it, then write it back whole."""

    header: Header
    pieces: list[Piece] = field(default_factory=list)
    finished: bool = True
    plain_sm3: bool = True
    """INDEX and END say the plain text's SM3 (journals do not)."""

    @classmethod
    def take_apart(cls, path: Path, data_key: DataKey) -> Forgery:
        """Open every chunk of a file that holds."""
        found, raw = scan(path), path.read_bytes()
        assert found.header is not None
        assert found.problem is None
        made = cls(found.header, finished=found.finished, plain_sm3=found.plain_sm3 != fmt.NOT_TAKEN)
        keys = FileKeys.derive(data_key.secret, bytes.fromhex(found.header.file_id), found.header.suite)
        header_digest = sm3(raw[: found.records[0].end])
        for record in found.records[2:]:
            body = raw[record.offset + fmt.RECORD.size : record.end - fmt.TRAILER_BYTES]
            if record.type == RecordType.CHUNK:
                before = raw[record.offset - fmt.TRAILER_BYTES : record.offset]
                own = raw[record.offset : record.offset + fmt.RECORD.size]
                aad = fmt.associated_data(header_digest, before, own)
                body = keys.aead.open(fmt.nonce(record.number, last=False), body, aad)
            if record.type not in (RecordType.INDEX, RecordType.END):
                made.pieces.append(Piece(record.type, body, record.flags))
        return made

    @property
    def chunks(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.type == RecordType.CHUNK]

    @property
    def checkpoints(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.type == RecordType.CHECKPOINT]

    def fresh(self) -> None:
        """Take a new file id, as an honest writer would."""
        self.header = replace(self.header, file_id=secrets.token_hex(16))

    def to_bytes(
        self,
        data_key: DataKey,
        *,
        chunk_key: DataKey | None = None,
        index: Callable[[Index], Index] = lambda index: index,
        end: Callable[[tuple[int, int, int, bytes]], tuple[int, int, int, bytes]] = lambda end: end,
    ) -> bytes:
        """Seal it all anew. ``chunk_key`` seals the chunks with another key than the header commits to."""
        file_id = bytes.fromhex(self.header.file_id)
        keys = FileKeys.derive(data_key.secret, file_id, data_key.suite)
        sealing = FileKeys.derive((chunk_key or data_key).secret, file_id, data_key.suite)
        data = bytearray(fmt.MAGIC)
        number = 0

        def record(kind: int, flags: int, body: bytes) -> None:
            nonlocal number
            data.extend(fmt.RECORD.pack(kind, flags, number, len(body)) + body)
            data.extend(sm3(bytes(data)))
            number += 1

        def sealed(kind: int, flags: int, plain: bytes) -> None:
            own = fmt.RECORD.pack(kind, flags, number, len(plain) + TAG_BYTES)
            aad = fmt.associated_data(header_digest, bytes(data[-fmt.TRAILER_BYTES :]), own)
            body = bytearray(len(plain) + TAG_BYTES)
            sealing.aead.seal_into(
                memoryview(body), fmt.nonce(number, last=bool(flags & Flag.LAST)), plain, aad
            )
            record(kind, flags, bytes(body))

        record(RecordType.HEADER, Flag.CRITICAL, self.header.to_bytes())
        header_digest = sm3(bytes(data))
        record(RecordType.COMMITMENT, Flag.CRITICAL, keys.commitment(header_digest))
        offsets: list[int] = []
        sizes: list[int] = []
        for piece in self.pieces:
            if piece.type == RecordType.CHUNK:
                offsets.append(len(data))
                sizes.append(len(piece.body))
                sealed(piece.type, piece.flags, piece.body)
            else:
                record(piece.type, piece.flags, piece.body)
        if self.finished:
            plain = b"".join(piece.body for piece in self.chunks)
            digest = sm3(plain) if self.plain_sm3 else fmt.NOT_TAKEN
            at = len(data)
            made = index(Index(len(plain), digest, tuple(offsets), tuple(sizes)))
            sealed(RecordType.INDEX, Flag.CRITICAL | Flag.LAST, made.to_bytes())
            record(RecordType.END, Flag.CRITICAL, fmt.END.pack(*end((at, len(plain), len(offsets), digest))))
        return bytes(data)
