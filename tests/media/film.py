"""Read a finished MP4: every picture with its time, the sound as one line, and whatever is wrong with the
timestamps.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from tests.media.barcode import Luma
from tests.media.sounds import RATE, Sound


@dataclass(slots=True)
class Film:
    """Facts of an MP4; pictures are decoded again by each `pictures` call, since a minute does not fit in
    memory.
    """

    source: Path | bytes
    width: int = 0
    height: int = 0
    fps: float = 0.0
    video_codec: str = ""
    audio_codec: str = ""
    frame_times_s: list[float] = field(default_factory=list)
    sound: Sound = field(default_factory=lambda: np.zeros(0, np.float32))
    """Mono mix at 48 kHz; sample 0 is time 0 of the file, silence where the file has none."""
    left: Sound = field(default_factory=lambda: np.zeros(0, np.float32))
    right: Sound = field(default_factory=lambda: np.zeros(0, np.float32))
    """The channels, as `sound`; alike in a mono file."""
    sound_gaps: list[tuple[float, float]] = field(default_factory=list)
    """(time, size in s) of every place where the next packet's time is not the end of the one before, > 1
    ms.
    """
    sound_end_s: float = 0.0

    def pictures(self) -> Iterator[tuple[float, Luma]]:
        """Yield (time in s, luma plane ``(H, W)`` uint8, limited range) of every frame in order."""
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "FRAME"
            for frame in container.decode(stream):
                assert frame.pts is not None
                assert frame.time_base is not None
                plane = frame.planes[0]
                luma = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
                    : frame.height, : frame.width
                ]
                yield float(frame.pts * frame.time_base), luma

    @property
    def duration_s(self) -> float:
        """Return the length of the picture track: the last frame is shown for one frame's time."""
        return self.frame_times_s[-1] + 1 / self.fps if self.frame_times_s else 0.0

    def _open(self) -> av.container.InputContainer:
        return av.open(io.BytesIO(self.source) if isinstance(self.source, bytes) else str(self.source), "r")


def read_film(source: Path | bytes) -> Film:
    """Open an MP4 (a path or its bytes), read all packet times and all sound. Raises ``av.FFmpegError``."""
    film = Film(source)
    with film._open() as container:
        video = container.streams.video[0]
        film.width, film.height = video.codec_context.width, video.codec_context.height
        film.fps = float(video.average_rate or 0)
        film.video_codec = video.codec_context.name
        for packet in container.demux(video):
            if packet.pts is not None and packet.time_base is not None:
                film.frame_times_s.append(float(packet.pts * packet.time_base))
    film.frame_times_s.sort()
    with film._open() as container:
        if not container.streams.audio:
            return film
        audio = container.streams.audio[0]
        film.audio_codec = audio.codec_context.name
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=RATE)
        pieces: list[tuple[float, Sound]] = []
        for frame in container.decode(audio):
            assert frame.pts is not None
            assert frame.time_base is not None
            start_s = float(frame.pts * frame.time_base)
            if pieces and abs(start_s - film.sound_end_s) > 0.001:
                film.sound_gaps.append((film.sound_end_s, start_s - film.sound_end_s))
            film.sound_end_s = start_s + frame.samples / frame.sample_rate
            for part in resampler.resample(frame):
                pieces.append((start_s, part.to_ndarray().astype(np.float32)))
    channels = np.zeros((2, max(round(film.sound_end_s * RATE), 0)), np.float32)
    for start_s, piece in pieces:
        at = round(start_s * RATE)
        piece = piece[:, max(-at, 0) :]
        at = max(at, 0)
        channels[:, at : at + piece.shape[1]] = piece[:, : max(channels.shape[1] - at, 0)]
    film.left, film.right = channels
    film.sound = channels.mean(axis=0)
    return film


def stretch(sound: Sound, start_s: float, length_s: float) -> Sound:
    """Return a stretch of a film's sound or channel."""
    return sound[round(start_s * RATE) : round((start_s + length_s) * RATE)]
