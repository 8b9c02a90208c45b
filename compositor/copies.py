"""Clips and viewers' copies of a composite: ``python -m compositor.copies``, spoken to as ``compositor.job``.

A copy is decoded, marked with the viewer's name over the whole picture, and encoded anew, frame for frame; a
clip is the frames and samples of a stretch, exact to the frame. The parent is only read. The result is a
sealed file of kind derived whose header names its parent; who made it, for whom and why, its statement says.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import av
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compositor.canvas import Canvas, Floats, SparseStamp, frame_planes
from compositor.encode import BEHIND, SAMPLE_RATE, EncodeError, Encoder
from compositor.job import EXIT_DONE, EXIT_FAILED, EXIT_PARENT_DIED, NICE, ParentDied, Voice, explain
from compositor.mp4 import Chapter, write_mp4
from compositor.overlays import tile_stamp
from compositor.sealing import seal_file
from compositor.spool import SpoolError
from recorder.sealed import DataKey, SealedError, SealedReader
from recorder.template import TileOverlay, parse_template

PROGRESS_S = 1.0
CRF = 20
"""Finer than a composite's 26: what is encoded a second time should lose nothing that is seen."""


class CopyError(Exception):
    """The parent cannot be copied or cut as asked."""


class CopyJob(BaseModel):
    """Which stretch of which file is to be made into which, and whose name goes over it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recording_dir: Path
    data_key_id: str
    data_key: str = Field(repr=False, description="base64 of 16 bytes, 32 in suite 3")
    suite: int = Field(default=1, description="Cipher suite of data_key, and so of the file to write.")
    parent: str = Field(description="Name on disk, in files/.")
    parent_id: str = Field(description="Its file id, as signed.")
    parent_sm3: str
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,59}\.mp4$")
    from_ms: int = Field(default=0, ge=0)
    to_ms: int | None = Field(default=None, ge=1)
    mark: str = Field(default="", max_length=200, description="Tiled over every picture; empty: nothing.")
    live: bool = False
    nice: int = Field(default=NICE, ge=0, le=19)

    @model_validator(mode="after")
    def _forwards(self) -> CopyJob:
        if self.to_ms is not None and self.to_ms <= self.from_ms:
            raise ValueError("to_ms lies after from_ms")
        if Path(self.parent).name != self.parent:
            raise ValueError("parent is a file's name")
        return self

    def key(self) -> DataKey:
        """Return the recording's data key. Raises ValueError when it is no base64, or not of the suite."""
        return DataKey(self.data_key_id, base64.b64decode(self.data_key, validate=True), self.suite)


class _Opened(io.RawIOBase):
    """A sealed file's plain text as a file that libavformat reads; nothing of it goes to the disk."""

    def __init__(self, reader: SealedReader) -> None:
        self._reader = reader
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._reader.size - self._at)
        data = self._reader.read(self._at, left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._reader.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at


class _Cut:
    """Takes decoded frames and samples of the parent; gives those of the stretch to the encoder.

    Pictures lie on the parent's grid of frames. The first one is what was shown when the stretch begins, so
    that a clip begins with a picture, not with black.
    """

    def __init__(
        self, encoder: Encoder, fps: int, size: tuple[int, int], begin: Fraction, end: Fraction
    ) -> None:
        self._encoder = encoder
        self._fps = fps
        self._canvases = [Canvas(*size) for _ in range(BEHIND + 2)]
        self._begin, self._end = begin, end
        self.stamp: SparseStamp | None = None
        self._waiting: tuple[int, Any] | None = None
        self.pictures = 0
        self._samples = 0
        self.frames = max(1, round((end - begin) * fps))

    def picture(self, frame: Any) -> None:
        """Take a decoded picture; they come in the order of their times."""
        number = round(Fraction(frame.pts) * frame.time_base * self._fps) - round(self._begin * self._fps)
        if number >= self.frames:
            return
        if self._waiting is not None and number > 0:
            self._put()
        self._waiting = (max(0, number), frame)

    def _put(self) -> None:
        if self._waiting is None:
            return
        number, frame = self._waiting
        canvas = self._canvases[self.pictures % len(self._canvases)]
        if frame.format.name != "yuv420p":
            frame = frame.reformat(format="yuv420p")
        canvas.planes.copy_from(frame_planes(frame))
        if self.stamp is not None:
            self.stamp.blend(canvas.planes)
        self._encoder.picture(canvas, number)
        self.pictures += 1
        self._waiting = None

    def sound(self, frame: Any, channels: int) -> None:
        """Take decoded samples, planar floats; what lies between two of them is silence."""
        samples: Floats = np.stack(
            [np.frombuffer(plane, np.float32, frame.samples) for plane in frame.planes[:channels]]
        )
        at = round((Fraction(frame.pts) * frame.time_base - self._begin) * SAMPLE_RATE)
        skip = max(0, self._samples - at)
        samples = samples[:, skip : max(skip, self.samples - at)]
        if samples.shape[1]:
            self._fill(at + skip, channels)
            self._encoder.sound(samples)
            self._samples += samples.shape[1]

    @property
    def samples(self) -> int:
        """How many samples the stretch has."""
        return round((self._end - self._begin) * SAMPLE_RATE)

    def _fill(self, upto: int, channels: int) -> None:
        if upto > self._samples:
            self._encoder.sound(np.zeros((channels, upto - self._samples), np.float32))
            self._samples = upto

    def finish(self, channels: int) -> None:
        """Give what is left, and silence up to the end."""
        self._put()
        self._fill(self.samples, channels)


def make_copy(job: CopyJob, said: Callable[[int, int], None] = lambda done_ms, of_ms: None) -> dict[str, Any]:
    """Make the file; returns ``file``, ``duration_ms``, ``frames``. Raise CopyError, SealedError, OSError.

    ``said`` is told about once a second how many ms are done, of how many.
    """
    key, files = job.key(), job.recording_dir / "files"
    with SealedReader(files / job.parent, key) as reader:
        if reader.header.file_id != job.parent_id or not reader.finished:
            raise CopyError(f"{job.parent} is not the file that was signed")
        try:
            with av.open(_Opened(reader), format="mp4") as film:
                return _made(job, key, files, film, said)
        except av.FFmpegError as error:
            raise CopyError(f"{job.parent} cannot be decoded: {error}") from error


def _made(
    job: CopyJob, key: DataKey, files: Path, film: Any, said: Callable[[int, int], None]
) -> dict[str, Any]:
    if not film.streams.video or not film.streams.audio:
        raise CopyError(f"{job.parent} has no picture and sound together: only composites are copied")
    video, audio = film.streams.video[0], film.streams.audio[0]
    length = Fraction(film.duration, av.time_base)
    begin = Fraction(job.from_ms, 1000)
    end = min(length, Fraction(job.to_ms, 1000)) if job.to_ms is not None else length
    if begin >= end:
        raise CopyError(f"{job.from_ms} ms lies behind the end, {float(length):.3f} s")
    fps = max(1, video.time_base.denominator // 1000)  # as mp4.py writes a composite's track
    channels = audio.layout.nb_channels
    template = parse_template(
        {"width": video.width, "height": video.height, "fps": fps, "crf": CRF, "overlays": []}
    )
    encoder = Encoder(template, channels, files / f".{job.name}.{{file_id}}.spool", key)
    try:
        cut = _Cut(encoder, fps, (video.width, video.height), begin, end)
        if job.mark:
            overlay = TileOverlay(alpha=0.25, gap=0.15)
            stamp = tile_stamp(overlay, job.mark, video.width, video.height, lambda character: None)
            cut.stamp = SparseStamp(stamp)
        _decode(film, video, audio, cut, (begin, end), channels, said)
        spool = encoder.finish(cut.frames)
        summary = seal_file(
            files / f"{job.name}.{{file_id}}.sealed",
            key,
            lambda write: write_mp4(
                write,
                spool.tables,
                spool.runs,
                spool.read(),
                duration_s=end - begin,
                created_utc_ns=_created_ns(film, begin),
                chapters=_chapters(film, begin, end),
            ),
            kind="derived",
            media_type="video/mp4",
            public={
                "duration_ms": round((end - begin) * 1000),
                "frames": cut.pictures,
                "parent": job.parent_id,
                "parent_sm3": job.parent_sm3,
            },
        )
    finally:
        encoder.spool.remove()
    return {
        "file": summary.to_json(),
        "duration_ms": round((end - begin) * 1000),
        "from_ms": job.from_ms,
        "to_ms": round(end * 1000),
        "frames": cut.pictures,
        "cpu_s": round(time.process_time(), 3),
    }


def _decode(
    film: Any,
    video: Any,
    audio: Any,
    cut: _Cut,
    stretch: tuple[Fraction, Fraction],
    channels: int,
    said: Callable[[int, int], None],
) -> None:
    """Give the cut all frames from the key frame before the stretch to its end."""
    begin, end = stretch
    video.thread_count = 1
    if begin > 1:
        film.seek(int((begin - 1) * av.time_base), backward=True)
    told = time.monotonic()
    for packet in film.demux(video, audio):
        for frame in packet.decode():
            at = Fraction(frame.pts) * frame.time_base
            if packet.stream is audio:
                cut.sound(frame, channels)
            elif at < end:
                cut.picture(frame)
            if time.monotonic() - told >= PROGRESS_S:
                told = time.monotonic()
                said(max(0, round((at - begin) * 1000)), round((end - begin) * 1000))
        if packet.dts is not None and Fraction(packet.dts) * packet.time_base > end + 1:
            break
    cut.finish(channels)


def _chapters(film: Any, begin: Fraction, end: Fraction) -> list[Chapter]:
    """Take over the chapters that begin in the stretch."""
    found = []
    for one in film.chapters():
        at = Fraction(one["start"]) * Fraction(one["time_base"])
        title = str(one.get("metadata", {}).get("title", ""))
        if begin <= at < end:
            found.append(Chapter(round((at - begin) * 1000), title))
    return found


def _created_ns(film: Any, begin: Fraction) -> int:
    created = film.metadata.get("creation_time")
    if not created:
        return 0
    return round(datetime.fromisoformat(created).timestamp()) * 1_000_000_000 + int(begin * 1_000_000_000)


def run(lines: TextIO, out: TextIO) -> int:
    """Run one job. Returns the exit code; every failure is said as ``failed`` with a stable code."""
    voice = Voice(out)
    try:
        job = CopyJob.model_validate(json.loads(lines.readline() or "null"))
        job.key()
    except (ValueError, ValidationError) as error:
        voice.say({"failed": {"code": "job_invalid", "detail": explain(error)}})
        return EXIT_FAILED
    os.setpriority(os.PRIO_PROCESS, 0, max(job.nice, os.getpriority(os.PRIO_PROCESS, 0)))
    try:
        done = make_copy(
            job, lambda done_ms, of_ms: voice.say({"progress": {"composed_ms": done_ms, "of_ms": of_ms}})
        )
        voice.say({"done": done})
    except ParentDied:
        return EXIT_PARENT_DIED
    except (CopyError, SealedError, EncodeError, SpoolError) as error:
        code = "parent_unreadable" if isinstance(error, CopyError | SealedError) else "encode_failed"
        voice.say({"failed": {"code": code, "detail": str(error)}})
        return EXIT_FAILED
    except OSError as error:
        code = "disk_full" if error.errno == 28 else "storage_failed"
        voice.say({"failed": {"code": code, "detail": str(error)}})
        return EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    os._exit(run(sys.stdin, sys.stdout))  # as compositor.job: nothing waits for a thread
