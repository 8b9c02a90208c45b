"""The written MP4: index in front, exact duration, seekable, right in every decoder there is."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from compositor.boxes import avc_config, length_prefixed, nal_units
from compositor.canvas import Canvas
from compositor.encode import Encoder
from compositor.mp4 import Chapter, write_mp4
from compositor.spool import Run, SampleTable, Spool, SpoolError
from recorder.sealed import DataKey
from recorder.template import parse_template

KEY = DataKey("test", b"0123456789abcdef")


def composed(tmp_path: Path, frames: int, template: dict[str, Any] | None = None, channels: int = 1) -> bytes:
    made = parse_template({"width": 320, "height": 240, "gop_s": 1.0, **(template or {})})
    encoder = Encoder(made, channels, tmp_path / "{file_id}.spool", KEY)
    per_frame = 48_000 // made.frame_rate
    for number in range(frames):
        canvas = Canvas(made.width, made.height)
        canvas.planes.fill((30 + 2 * number % 200, 128, 128))
        encoder.picture(canvas, number)
        at = np.arange(number * per_frame, (number + 1) * per_frame, dtype=np.float32)
        tone = np.sin(2 * np.pi * 1000 * at / 48_000).astype(np.float32) * np.float32(0.5)
        if number < 20:
            tone[:] = 0
        encoder.sound(np.repeat(tone[None, :], channels, axis=0))
    spool = encoder.finish(frames)
    out = io.BytesIO()
    write_mp4(out.write, spool.tables, spool.runs, spool.read(), duration_s=Fraction(frames, made.frame_rate))
    spool.remove()
    assert not spool.path.exists()
    return out.getvalue()


def opened(data: bytes) -> Any:
    """Open a file in memory for reading."""
    return av.open(io.BytesIO(data))


def top_level(data: bytes) -> list[bytes]:
    kinds, offset = [], 0
    while offset < len(data):
        size, kind = struct.unpack_from(">I4s", data, offset)
        kinds.append(kind)
        offset += size
    assert offset == len(data)
    return kinds


@pytest.mark.parametrize(("fps", "channels"), [(25, 1), (15, 2), (7, 1)])
def test_plays_and_lasts_as_long_as_it_should(tmp_path: Path, fps: int, channels: int) -> None:
    data = composed(tmp_path, 60, {"fps": fps}, channels)
    assert top_level(data) == [b"ftyp", b"moov", b"mdat"]
    with opened(data) as container:
        assert abs(container.duration - 60 / fps * 1e6) < 1000
        video: Any = container.streams.video[0]
        pictures = list(container.decode(video))
    assert len(pictures) == 60
    times = [picture.pts * picture.time_base for picture in pictures]
    assert times == [Fraction(number, fps) for number in range(60)]
    for number, picture in enumerate(pictures):
        assert abs(int(picture.to_ndarray(format="yuv420p")[100, 100]) - (30 + 2 * number % 200)) <= 3
    with opened(data) as container:
        sound = np.concatenate([f.to_ndarray() for f in container.decode(container.streams.audio[0])], axis=1)
    onset = int(np.flatnonzero(np.abs(sound[0]) > 0.25)[0])
    assert abs(onset - 20 * 48_000 / fps) < 300, "sound begins where it was put"
    assert sound.shape[0] == channels


def test_seeks_to_every_second(tmp_path: Path) -> None:
    data = composed(tmp_path, 100)
    for second in range(4):
        with opened(data) as container:
            stream: Any = container.streams.video[0]
            container.seek(round(second / stream.time_base), stream=stream)
            picture: Any = next(container.decode(stream))
            assert picture.pts * picture.time_base == second
            number = second * 25
            assert abs(int(picture.to_ndarray(format="yuv420p")[100, 100]) - (30 + 2 * number % 200)) <= 3


def test_colours_are_tagged_and_the_edit_cuts_the_end(tmp_path: Path) -> None:
    probe = shutil.which("ffprobe")
    path = tmp_path / "out.mp4"  # a made-up picture, no recording
    path.write_bytes(composed(tmp_path, 60))
    with av.open(str(path)) as container:
        context: Any = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (6, 1)
    if probe is None:
        pytest.skip("ffprobe is not installed")
    shown = json.loads(
        subprocess.run(
            [probe, "-v", "warning", "-show_streams", "-of", "json", str(path)],
            check=True,
            capture_output=True,
            timeout=20,
        ).stdout
    )
    assert [s["duration"] for s in shown["streams"]] == ["2.400000", "2.400000"]
    assert [s["start_time"] for s in shown["streams"]] == ["0.000000", "0.000000"]
    assert shown["streams"][0]["color_space"] == "smpte170m"


def test_large_files_use_wide_offsets() -> None:
    table = SampleTable("video", "h264", Fraction(1, 25_000), b"config", 320, 240)
    runs = []
    for index in range(5):
        table.dts.append(index * 1000)
        table.pts.append(index * 1000)
        table.sizes.append(1 << 30)
        table.keys.append(index)
        runs.append(Run(0, 1, 1 << 30))
    table.end = 5000
    out = io.BytesIO()
    write_mp4(out.write, [table], runs, [], duration_s=Fraction(1, 5))
    data = out.getvalue()
    at = data.index(b"co64")
    offsets = struct.unpack_from(">5Q", data, at + 12)
    mdat = data.index(b"mdat")
    assert struct.unpack_from(">Q", data, mdat + 4)[0] == (5 << 30) + 16
    assert offsets == tuple(mdat + 12 + (index << 30) for index in range(5))


def test_spool_is_sealed_and_notices_missing_bytes(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "{file_id}.spool", KEY, [SampleTable("audio", "aac", Fraction(1, 48_000))])
    for index in range(4):
        spool.add(0, b"secret sample" * 9, pts=index, dts=index, duration=1, key=True)
        spool.flush()
    spool.finish()
    assert b"secret" not in spool.path.read_bytes()
    assert b"".join(spool.read()) == b"secret sample" * 36
    with open(spool.path, "r+b") as file:
        file.truncate(spool.path.stat().st_size - 5)
    with pytest.raises(SpoolError):
        list(spool.read())


def test_annex_b() -> None:
    stream = b"\0\0\0\1\x67\x42\xc0\x1f\x01\0\0\1\x68\xce\0\0\0\0\1\x65abc"
    assert [unit[0] & 31 for unit in nal_units(stream)] == [7, 8, 5]
    assert length_prefixed(b"\0\0\1\x65abc\0\0\1\x61") == b"\0\0\0\4\x65abc\0\0\0\1\x61"
    assert avc_config(stream) == b"\x01\x42\xc0\x1f\xff\xe1\0\5\x67\x42\xc0\x1f\x01\x01\0\2\x68\xce"
    assert avc_config(b"\0\0\1\x65abc") is None


def test_frames_that_last_longer_keep_their_times_and_key_frames_their_distance(tmp_path: Path) -> None:
    """Frames 0–24, then one in five: times on the grid, a key frame each second, the last one to the end."""
    made = parse_template({"width": 320, "height": 240, "gop_s": 1.0, "fps": 25})
    encoder = Encoder(made, 1, tmp_path / "{file_id}.spool", KEY)
    numbers = [*range(25), *range(25, 98, 5)]
    for number in numbers:
        canvas = Canvas(made.width, made.height)
        canvas.planes.fill((30 + number, 128, 128))
        encoder.picture(canvas, number)
    encoder.sound(np.zeros((1, 192_000), np.float32))
    spool = encoder.finish(100)
    out = io.BytesIO()
    write_mp4(out.write, spool.tables, spool.runs, spool.read(), duration_s=Fraction(4))
    spool.remove()
    with opened(out.getvalue()) as container:
        frames = list(container.decode(video=0))
        assert [round(float(frame.time) * 25) for frame in frames] == numbers
        assert [round(float(frame.time)) for frame in frames if frame.key_frame] == [0, 1, 2, 3]
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(4.0, abs=0.041)
        luma = [int(frame.to_ndarray()[120, 160]) for frame in frames]
    assert luma == pytest.approx([30 + number for number in numbers], abs=3)


def test_chapters_are_read_by_ffmpeg(tmp_path: Path) -> None:
    made = parse_template({"width": 320, "height": 240, "fps": 10})
    encoder = Encoder(made, 1, tmp_path / "{file_id}.spool", KEY)
    for number in range(30):
        encoder.picture(Canvas(320, 240), number)
    spool = encoder.finish(30)
    long = "风" * 100
    chapters = [Chapter(0, "开始 start"), Chapter(1200, "身份核验"), Chapter(2400, long)]
    target = tmp_path / "steps.mp4"
    with target.open("wb") as file:
        write_mp4(
            file.write, spool.tables, spool.runs, spool.read(), duration_s=Fraction(3), chapters=chapters
        )
    spool.remove()
    told = subprocess.run(
        ["ffprobe", "-v", "error", "-show_chapters", "-of", "json", str(target)],
        capture_output=True,
        check=True,
    )
    found = json.loads(told.stdout)["chapters"]
    assert [(float(one["start_time"]), one["tags"]["title"]) for one in found] == [
        (0.0, "开始 start"),
        (1.2, "身份核验"),
        (2.4, long[:85]),
    ]
