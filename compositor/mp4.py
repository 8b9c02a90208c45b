"""Write a regular MP4, index in front, in one pass: it plays and seeks at once over HTTP Range.

Source: ISO/IEC 14496-12. Own code instead of libavformat's muxer, because a sealed file is written once,
front to back: libavformat puts ``moov`` in front only by rewriting a finished file. Here all sizes are known
beforehand.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby

import numpy as np
import numpy.typing as npt

from compositor.boxes import box, dops, esds, full_box
from compositor.spool import Run, SampleTable

MOVIE_TIMESCALE = 48_000
MAX_CHAPTERS = 255
_EPOCH = 2_082_844_800  # seconds from 1904 to 1970
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_TURNED = {
    0: _MATRIX,
    90: struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000),
    180: struct.pack(">9i", -0x10000, 0, 0, 0, -0x10000, 0, 0, 0, 0x40000000),
    270: struct.pack(">9i", 0, -0x10000, 0, 0x10000, 0, 0, 0, 0, 0x40000000),
}


@dataclass(frozen=True, slots=True)
class Chapter:
    """A place players offer to jump to; it lasts until the next."""

    at_ms: int
    title: str


def write_mp4(
    write: Callable[[bytes], object],
    tables: Sequence[SampleTable],
    runs: Sequence[Run],
    data: Iterable[bytes],
    *,
    duration_s: Fraction,
    created_utc_ns: int = 0,
    chapters: Sequence[Chapter] = (),
) -> None:
    """Write the file by calling ``write`` front to back. ``data`` are the samples' bytes in the order of
    ``runs``.

    ``duration_s`` is the movie's length: what is longer is cut by the edit lists, tracks begin at time 0.
    """
    size = sum(run.size for run in runs)
    names = _chapters(chapters)
    moov = _moov(tables, runs, 0, duration_s, created_utc_ns, names)
    ftyp = box(b"ftyp", b"isom", struct.pack(">I", 512), b"isomiso2avc1mp41")
    header = 16 if size + 8 > 0xFFFFFFFF else 8
    start = len(ftyp) + len(moov) + header
    if start + size > 0xFFFFFFFF:  # 64-bit offsets: four bytes more for each chunk
        start = len(ftyp) + len(_moov(tables, runs, 1 << 33, duration_s, created_utc_ns, names)) + header
    write(ftyp)
    write(_moov(tables, runs, start, duration_s, created_utc_ns, names))
    write(
        struct.pack(">I4sQ", 1, b"mdat", size + 16)
        if header == 16
        else struct.pack(">I4s", size + 8, b"mdat")
    )
    for part in data:
        write(part)


def _moov(
    tables: Sequence[SampleTable],
    runs: Sequence[Run],
    start: int,
    duration_s: Fraction,
    utc_ns: int,
    chapters: bytes,
) -> bytes:
    duration = round(duration_s * MOVIE_TIMESCALE)
    created = utc_ns // 1_000_000_000 + _EPOCH if utc_ns else 0
    offsets: list[list[int]] = [[] for _ in tables]
    counts: list[list[int]] = [[] for _ in tables]
    position = start
    for run in runs:
        offsets[run.track].append(position)
        counts[run.track].append(run.samples)
        position += run.size
    wide = position > 0xFFFFFFFF
    tracks = [
        _trak(index + 1, table, offsets[index], counts[index], wide, duration, created)
        for index, table in enumerate(tables)
        if len(table)
    ]
    mvhd = full_box(
        b"mvhd",
        1,
        0,
        struct.pack(">QQIQ", created, created, MOVIE_TIMESCALE, duration),
        struct.pack(">IH10x", 0x10000, 0x0100),
        _MATRIX,
        bytes(24),
        struct.pack(">I", len(tables) + 1),
    )
    return box(b"moov", mvhd, *tracks, chapters)


def _chapters(chapters: Sequence[Chapter]) -> bytes:
    """Return chapters as players read them: Nero's ``chpl`` in ``udta``; nothing without chapters.

    At most 255, titles of at most 255 bytes, times in 100 ns: the form has no room for more.
    """
    if not chapters:
        return b""
    entries = b"".join(
        struct.pack(">QB", at_ms * 10_000, len(name)) + name
        for at_ms, name in ((chapter.at_ms, _short(chapter.title)) for chapter in chapters[:MAX_CHAPTERS])
    )
    head = struct.pack(">IB", 0, min(len(chapters), MAX_CHAPTERS))
    return box(b"udta", full_box(b"chpl", 1, 0, head, entries))


def _short(title: str) -> bytes:
    """Cut a title to 255 bytes of UTF-8, between characters."""
    return title.encode()[:255].decode(errors="ignore").encode()


def _trak(
    number: int,
    table: SampleTable,
    offsets: list[int],
    counts: list[int],
    wide: bool,
    duration: int,
    created: int,
) -> bytes:
    video = table.kind == "video"
    timescale = Fraction(1) / table.time_base
    if timescale.denominator != 1:
        raise ValueError("the time base of an MP4 track is 1/n")
    tkhd = full_box(
        b"tkhd",
        1,
        3,
        struct.pack(">QQIIQ8xhhHH", created, created, number, 0, duration, 0, 0, 0 if video else 0x0100, 0),
        _TURNED[table.rotation],
        struct.pack(">II", table.width << 16, table.height << 16),
    )
    media = int(_durations(table).sum())
    mdhd = full_box(
        b"mdhd", 1, 0, struct.pack(">QQIQHH", created, created, timescale.numerator, media, 0x55C4, 0)
    )
    name = b"VideoHandler\x00" if video else b"SoundHandler\x00"
    hdlr = full_box(b"hdlr", 0, 0, struct.pack(">I4s12x", 0, b"vide" if video else b"soun"), name)
    head = full_box(b"vmhd", 0, 1, bytes(8)) if video else full_box(b"smhd", 0, 0, bytes(4))
    dinf = box(b"dinf", full_box(b"dref", 0, 0, struct.pack(">I", 1), full_box(b"url ", 0, 1)))
    stbl = box(b"stbl", _stsd(table), *_tables(table, offsets, counts, wide))
    return box(
        b"trak",
        tkhd,
        _edts(table, duration, timescale.numerator),
        box(b"mdia", mdhd, hdlr, box(b"minf", head, dinf, stbl)),
    )


def _edts(table: SampleTable, duration: int, timescale: int) -> bytes:
    """Map media to the movie: an empty edit up to a late first sample, then what is played of the media."""
    first = min(table.pts[: min(len(table), 32)])
    begin = max(0, first + table.skip) if first + table.skip > 0 else 0
    late = round(Fraction(begin, timescale) * MOVIE_TIMESCALE)
    edits = b""
    if late:
        edits += struct.pack(">QqHH", late, -1, 1, 0)
    # media time counts from the first decoding time, which stts starts from
    media_time = (begin if late else 0) - table.dts[0]
    edits += struct.pack(">QqHH", duration - late, media_time, 1, 0)
    return box(b"edts", full_box(b"elst", 1, 0, struct.pack(">I", 2 if late else 1), edits))


def _stsd(table: SampleTable) -> bytes:
    if table.kind == "video":
        kind, config = {
            "h264": (b"avc1", b"avcC"),
            "h264_inband": (b"avc3", b"avcC"),
            "vp9": (b"vp09", b"vpcC"),
            "av1": (b"av01", b"av1C"),
        }[table.codec]
        visual = struct.pack(
            ">6xH16xHHIIIH32sHh", 1, table.width, table.height, 0x480000, 0x480000, 0, 1, b"", 24, -1
        )
        # primaries BT.709, transfer BT.709, matrix BT.601, limited range: what the canvas is made in
        colour = box(b"colr", b"nclx", struct.pack(">HHHB", 1, 1, 6, 0))
        entry = box(kind, visual, box(config, table.config), colour, box(b"pasp", struct.pack(">II", 1, 1)))
    else:
        sound = struct.pack(">6xH8xHHHHI", 1, table.channels, 16, 0, 0, table.sample_rate << 16)
        if table.codec == "aac":
            entry = box(b"mp4a", sound, esds(table.config, table.bitrate_bps))
        else:
            entry = box(b"Opus", sound, box(b"dOps", dops(table.channels, table.skip)))
    return full_box(b"stsd", 0, 0, struct.pack(">I", 1), entry)


def _tables(table: SampleTable, offsets: list[int], counts: list[int], wide: bool) -> list[bytes]:
    boxes = [full_box(b"stts", 0, 0, *_run_lengths(_durations(table)))]
    shifts = np.array(table.pts, np.int64) - np.array(table.dts, np.int64)
    if shifts.any():
        boxes.append(full_box(b"ctts", 0, 0, *_run_lengths(shifts)))
    if table.kind == "video":
        keys = np.array(table.keys, ">u4") + 1
        boxes.append(full_box(b"stss", 0, 0, struct.pack(">I", len(keys)), keys.astype(">u4").tobytes()))
    chunks = b""
    entries = 0
    index = 1
    for count, group in groupby(counts):
        chunks += struct.pack(">III", index, count, 1)
        index += sum(1 for _ in group)
        entries += 1
    boxes.append(full_box(b"stsc", 0, 0, struct.pack(">I", entries), chunks))
    sizes = np.array(table.sizes, ">u4")
    boxes.append(full_box(b"stsz", 0, 0, struct.pack(">II", 0, len(sizes)), sizes.tobytes()))
    kind, width = (b"co64", ">u8") if wide else (b"stco", ">u4")
    boxes.append(full_box(kind, 0, 0, struct.pack(">I", len(offsets)), np.array(offsets, width).tobytes()))
    return boxes


def _durations(table: SampleTable) -> npt.NDArray[np.int64]:
    """Return how long each sample lasts in decoding time; together as long as the track."""
    dts = np.array(table.dts, np.int64)
    last = max(table.end - table.dts[-1] + min(table.dts[0], 0), table.end - table.pts[-1], 1)
    return np.append(np.diff(dts), last)


def _run_lengths(values: npt.NDArray[np.int64]) -> list[bytes]:
    """Return count and run-length entries (count, value) of 32-bit values, as stts and ctts hold them."""
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    lengths = np.diff(ends, prepend=-1)
    entries = np.stack([lengths, values[ends]], axis=1).astype(">u4")
    return [struct.pack(">I", len(entries)), entries.tobytes()]
