"""Encoded samples of a running composite: sealed on disk as they come, their table in memory.

A regular MP4 has its index in front, and a sealed file is written once, front to back. So the packets go to a
sealed spool while the call runs, and at its end the finished file is written in one pass: index, then the
spool's bytes as they are. No plaintext touches the disk, and nothing is rewritten. A job that dies leaves an
unfinished spool, which the next attempt removes: it starts again from the journal.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from recorder.sealed import DataKey, SealedReader, SealedWriter


class SpoolError(Exception):
    """The spool lost bytes that were written to it."""


@dataclass(slots=True)
class SampleTable:
    """Samples of one track in decoding order, times in units of ``time_base``."""

    kind: str
    """``video`` or ``audio``."""
    codec: str
    """``h264, av1, vp8, vp9, aac, opus``."""
    time_base: Fraction
    config: bytes = b""
    """Codec configuration as the container wants it (avcC, av1C, vpcC, AudioSpecificConfig, dOps)."""
    width: int = 0
    height: int = 0
    sample_rate: int = 0
    channels: int = 0
    rotation: int = 0
    skip: int = 0
    """Priming at the start that is decoded but not played, in units of ``time_base``."""
    bitrate_bps: int = 0
    dts: array[int] = field(default_factory=lambda: array("q"))
    pts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("L"))
    keys: array[int] = field(default_factory=lambda: array("L"))
    """Indices of the samples that are keyframes."""
    end: int = 0
    """Time at which the last sample ends."""

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, slots=True)
class Run:
    """Samples of one track that lie together in the spool: the container's chunk."""

    track: int
    samples: int
    size: int


class Spool:
    """Append samples of several tracks; read their bytes back in order."""

    def __init__(self, path: Path, data_key: DataKey, tables: list[SampleTable]) -> None:
        self.tables = tables
        self.runs: list[Run] = []
        self.size = 0
        self._data_key = data_key
        self._pending: list[list[bytes]] = [[] for _ in tables]
        self._pending_size = 0
        self._writer = SealedWriter(path, data_key, kind="derived", media_type="application/octet-stream")
        self.path = self._writer.path

    def add(self, track: int, data: bytes, *, pts: int, dts: int, duration: int, key: bool) -> None:
        """Append one sample; its time lies not before the one before it."""
        table = self.tables[track]
        if key:
            table.keys.append(len(table))
        table.dts.append(dts)
        table.pts.append(pts)
        table.sizes.append(len(data))
        table.end = max(table.end, pts + duration)
        self._pending[track].append(data)
        self._pending_size += len(data)

    def flush(self) -> None:
        """Seal what was added since the last call as one chunk, each track's samples together."""
        if not self._pending_size:
            return
        parts = []
        for track, pending in enumerate(self._pending):
            if pending:
                joined = b"".join(pending)
                self.runs.append(Run(track, len(pending), len(joined)))
                parts.append(joined)
                pending.clear()
        self._writer.append(b"".join(parts))
        self.size += self._pending_size
        self._pending_size = 0

    def flush_if(self, size: int) -> None:
        """Flush when at least ``size`` bytes are gathered."""
        if self._pending_size >= size:
            self.flush()

    def finish(self) -> None:
        """Flush and close for writing. No index and no fsync: the file lives only until it has been read."""
        self.flush()
        self._writer.abandon()

    def read(self) -> Iterator[bytes]:
        """Yield all bytes in order, authenticated, chunk by chunk. Raises SpoolError if some are missing."""
        size = 0
        with SealedReader(self.path, self._data_key) as reader:
            for chunk in reader.chunks():
                size += len(chunk)
                yield chunk
        if size != self.size:
            raise SpoolError(f"the spool {self.path.name} holds {size} of {self.size} bytes")

    def remove(self) -> None:
        """Delete the spool's file."""
        self._writer.abandon()
        self.path.unlink(missing_ok=True)
