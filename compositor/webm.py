"""Write a WebM file in one pass, its index in front. Source: RFC 8794 (EBML), RFC 9559 (Matroska)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from compositor.spool import Run, SampleTable

_CLUSTER_MS = 2_000
_MATROSKA_EPOCH_NS = 978_307_200_000_000_000  # 2001-01-01 in Unix time


def element(identifier: int, content: bytes) -> bytes:
    """Return an EBML element: id, length in 8 bytes, content."""
    return _head(identifier, len(content)) + content


def _head(identifier: int, size: int) -> bytes:
    raw = identifier.to_bytes((identifier.bit_length() + 7) // 8, "big")
    return raw + (1 << 56 | size).to_bytes(8, "big")


def _number(identifier: int, value: int) -> bytes:
    return element(identifier, value.to_bytes(8, "big"))


def write_webm(
    write: Callable[[bytes], object],
    tables: Sequence[SampleTable],
    runs: Sequence[Run],
    data: Iterable[bytes],
    *,
    duration_s: Fraction,
    created_utc_ns: int = 0,
) -> None:
    """Write the file by calling ``write`` front to back; arguments as ``mp4.write_mp4``.

    Samples lie in the order of ``runs``; a cluster begins with each video keyframe, or after 2 s.
    """
    clusters = _clusters(tables, runs)
    info = element(
        0x1549A966,
        _number(0x2AD7B1, 1_000_000)
        + element(0x4489, struct.pack(">d", float(duration_s * 1000)))
        + (element(0x4461, struct.pack(">q", created_utc_ns - _MATROSKA_EPOCH_NS)) if created_utc_ns else b"")
        + element(0x4D80, b"shuanglu")
        + element(0x5741, b"shuanglu"),
    )
    entries = b"".join(_track(index + 1, table) for index, table in enumerate(tables) if len(table))
    tracks = element(0x1654AE6B, entries)
    cues_size = len(_cues(clusters, 0))
    seek_size = len(_seek_head(0, 0, 0))
    start = seek_size + len(info) + len(tracks) + cues_size
    seek = _seek_head(seek_size, seek_size + len(info), seek_size + len(info) + len(tracks))
    size = start + sum(cluster.size for cluster in clusters)
    doc_type = (
        _number(0x4286, 1)
        + _number(0x42F7, 1)
        + _number(0x42F2, 4)
        + _number(0x42F3, 8)
        + element(0x4282, b"webm")
        + _number(0x4287, 4)
        + _number(0x4285, 2)
    )
    write(element(0x1A45DFA3, doc_type) + _head(0x18538067, size) + seek + info + tracks)
    write(_cues(clusters, start))
    source = _Pieces(data)
    for cluster in clusters:
        write(_head(0x1F43B675, cluster.content) + _number(0xE7, cluster.time_ms))
        for block in cluster.blocks:
            write(block.head(cluster.time_ms) + source.take(block.size))


class _Block:
    def __init__(self, track: int, time_ms: int, size: int, key: bool) -> None:
        self.track, self.time_ms, self.size, self.key = track, time_ms, size, key

    def head(self, cluster_ms: int) -> bytes:
        """Return the SimpleBlock's header (RFC 9559, 10.2)."""
        relative = struct.pack(">BhB", 0x80 | self.track, self.time_ms - cluster_ms, 0x80 if self.key else 0)
        return _head(0xA3, len(relative) + self.size) + relative


_BLOCK_OVERHEAD = 1 + 8 + 4


class _Cluster:
    def __init__(self, time_ms: int) -> None:
        self.time_ms = time_ms
        self.blocks: list[_Block] = []
        self.content = 1 + 8 + 8  # its Timestamp element

    @property
    def size(self) -> int:
        return 4 + 8 + self.content

    def add(self, block: _Block) -> None:
        self.blocks.append(block)
        self.content += _BLOCK_OVERHEAD + block.size


class _Pieces:
    """Cut a stream of chunks into samples."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def take(self, size: int) -> bytes:
        parts = []
        while size > len(self._rest):
            parts.append(self._rest)
            size -= len(self._rest)
            self._rest = next(self._chunks)
        parts.append(self._rest[:size])
        self._rest = self._rest[size:]
        return b"".join(parts)


def _clusters(tables: Sequence[SampleTable], runs: Sequence[Run]) -> list[_Cluster]:
    clusters: list[_Cluster] = []
    nexts = [0] * len(tables)
    keys = [set(table.keys) for table in tables]
    for run in runs:
        table = tables[run.track]
        for index in range(nexts[run.track], nexts[run.track] + run.samples):
            time_ms = round(table.pts[index] * table.time_base * 1000)
            key = index in keys[run.track]
            opens = table.kind == "video" and key
            late = clusters and not -2000 <= time_ms - clusters[-1].time_ms <= _CLUSTER_MS + 4000
            if not clusters or opens or late or time_ms - clusters[-1].time_ms > _CLUSTER_MS:
                clusters.append(_Cluster(time_ms))
            clusters[-1].add(_Block(run.track + 1, time_ms, table.sizes[index], key))
        nexts[run.track] += run.samples
    return clusters


def _track(number: int, table: SampleTable) -> bytes:
    common = _number(0xD7, number) + _number(0x73C5, number) + _number(0x9C, 0)
    if table.kind == "video":
        size = _number(0xB0, table.width) + _number(0xBA, table.height)
        codec = {"vp8": b"V_VP8", "vp9": b"V_VP9"}[table.codec]
        return element(0xAE, common + _number(0x83, 1) + element(0x86, codec) + element(0xE0, size))
    sound = element(0xB5, struct.pack(">d", float(table.sample_rate))) + _number(0x9F, table.channels)
    delay = round(table.skip * table.time_base * 1_000_000_000)
    return element(
        0xAE,
        common
        + _number(0x83, 2)
        + element(0x86, b"A_OPUS")
        + element(0x63A2, table.config)
        + _number(0x56AA, delay)
        + _number(0x56BB, 80_000_000)
        + element(0xE1, sound),
    )


def _cues(clusters: Sequence[_Cluster], start: int) -> bytes:
    points = []
    position = start
    for cluster in clusters:
        first = cluster.blocks[0]
        if first.key:
            place = element(0xB7, _number(0xF7, first.track) + _number(0xF1, position))
            points.append(element(0xBB, _number(0xB3, cluster.time_ms) + place))
        position += cluster.size
    return element(0x1C53BB6B, b"".join(points))


def _seek_head(info: int, tracks: int, cues: int) -> bytes:
    entries = b""
    for identifier, position in ((0x1549A966, info), (0x1654AE6B, tracks), (0x1C53BB6B, cues)):
        entries += element(0x4DBB, element(0x53AB, identifier.to_bytes(4, "big")) + _number(0x53AC, position))
    return element(0x114D9B74, entries)
