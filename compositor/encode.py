"""Encode the composite: H.264 by libx264, AAC, one thread each, into the spool."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import PictureType

from compositor.boxes import avc_config, length_prefixed
from compositor.canvas import Canvas, Floats
from compositor.spool import SampleTable, Spool
from recorder.sealed import DataKey
from recorder.template import Template

SAMPLE_RATE = 48_000
AAC_FRAME = 1024
VIDEO = 0
_FLUSH_SECONDS = 1
PRESET = "veryfast"
LOW_EFFORT = "me=dia:subme=1:rc-lookahead=5:b-adapt=0:weightp=0"
"""Half the CPU of the preset alone on pictures of calls: faces before a room that stands still gain little
from finer motion search. docs/composing.md has the measured curve."""
BEHIND = 2
"""Frames that may wait for libx264; their canvases stay untouched so long."""


class EncodeError(Exception):
    """The encoders did not do what was asked of them."""


class Encoder:
    """Take frames and samples in order; write packets to a sealed spool.

    libx264 with ``threads=1`` saves 5 to 18 % CPU over frame threads; PyAV's default thread type would
    silently turn on sliced encoding. It runs in a thread of its own, up to ``BEHIND`` frames behind, so
    that a composite that lags catches up on two cores. Packets come in the same order however they run.
    """

    def __init__(self, template: Template, channels: int, spool_path: Path, data_key: DataKey) -> None:
        self._video = open_video(template) if template.video else None
        self._audio = open_audio(template, channels)
        tables = [] if self._video is None else [_video_table(self._video, template)]
        tables.append(
            SampleTable(
                "audio",
                "aac",
                Fraction(1, SAMPLE_RATE),
                bytes(self._audio.extradata or b""),
                sample_rate=SAMPLE_RATE,
                channels=channels,
                skip=AAC_FRAME,
                bitrate_bps=template.audio.bitrate_bps,
            )
        )
        self.spool = Spool(spool_path, data_key, tables)
        self._audio_track = len(tables) - 1
        self._fps = template.frame_rate
        self._channels = channels
        self._frames = 0
        self._gop = _gop(template)
        self._key_number = -self._gop
        self._samples = 0
        self._flushed_samples = 0
        self._rest: Floats = np.zeros((channels, 0), np.float32)
        self._thread = ThreadPoolExecutor(1, "x264")
        self._encoding: deque[Future[Any]] = deque()

    @property
    def frames(self) -> int:
        """Frames taken so far."""
        return self._frames

    def picture(self, canvas: Canvas, number: int) -> None:
        """Encode the canvas as the frame of this number; it must not change until ``BEHIND`` more were
        given.

        Key frames lie at the template's distance in time, however few frames there are.
        """
        assert self._video is not None, "the template has no picture"
        frame = canvas.frame
        frame.pts = number
        frame.time_base = Fraction(1, self._fps)
        frame.pict_type = PictureType.NONE
        if number - self._key_number >= self._gop:
            self._key_number = number
            frame.pict_type = PictureType.I
        self._frames += 1
        self._encoding.append(self._thread.submit(self._video.encode, frame))
        if len(self._encoding) > BEHIND:
            self._put_video(self._encoding.popleft().result())

    def sound(self, samples: Floats) -> None:
        """Encode the next samples, (channels, n) float32."""
        self._rest = np.concatenate([self._rest, samples], axis=1)
        whole = self._rest.shape[1] // AAC_FRAME * AAC_FRAME
        for start in range(0, whole, AAC_FRAME):
            self._put_audio(self._audio.encode(self._audio_frame(self._rest[:, start : start + AAC_FRAME])))
        if whole:
            self._rest = self._rest[:, whole:].copy()
        if self._samples - self._flushed_samples >= SAMPLE_RATE * _FLUSH_SECONDS:
            self._flushed_samples = self._samples
            self.spool.flush()

    def _audio_frame(self, samples: Floats) -> Any:
        layout = "stereo" if self._channels == 2 else "mono"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate = SAMPLE_RATE
        frame.pts = self._samples
        frame.time_base = Fraction(1, SAMPLE_RATE)
        self._samples += samples.shape[1]
        return frame

    def finish(self, frames: int) -> Spool:
        """Encode what is left, drain both encoders, close the spool for writing.

        ``frames``: the number at which the last frame's time ends.
        """
        if self._rest.shape[1]:
            short = AAC_FRAME - self._rest.shape[1]
            self._put_audio(self._audio.encode(self._audio_frame(np.pad(self._rest, ((0, 0), (0, short))))))
        while self._encoding:
            self._put_video(self._encoding.popleft().result())
        self._thread.shutdown()
        self._put_audio(self._audio.encode(None))
        if self._video is not None:
            self._put_video(self._video.encode(None))
            table = self.spool.tables[VIDEO]
            if len(table) != self._frames:
                raise EncodeError(f"{len(table)} of {self._frames} frames were encoded")
            table.end = frames * 1000
        self.spool.finish()
        return self.spool

    def _put_video(self, packets: Any) -> None:
        for packet in packets:
            data = length_prefixed(bytes(packet))
            self.spool.add(
                VIDEO,
                data,
                pts=packet.pts * 1000,
                dts=packet.dts * 1000,
                duration=1000,
                key=packet.is_keyframe,
            )

    def _put_audio(self, packets: Any) -> None:
        for packet in packets:
            self.spool.add(
                self._audio_track, bytes(packet), pts=packet.pts, dts=packet.pts, duration=AAC_FRAME, key=True
            )


def _gop(template: Template) -> int:
    return max(1, round(template.gop_s * template.frame_rate))


def open_video(template: Template) -> Any:
    """Return libx264's context as the template wants it."""
    fps = template.frame_rate
    video: Any = av.CodecContext.create("libx264", "w")
    video.width, video.height, video.pix_fmt = template.width, template.height, "yuv420p"
    video.time_base, video.framerate = Fraction(1, fps), Fraction(fps)
    video.thread_type, video.thread_count = "FRAME", 1
    video.gop_size = _gop(template)
    video.flags |= Flags.global_header
    video.color_primaries, video.color_trc, video.colorspace, video.color_range = 1, 1, 6, 1
    video.options = {"preset": PRESET, "forced-idr": "1"}
    if template.effort == "low":
        video.options |= {"x264-params": LOW_EFFORT}
    if template.bitrate_bps is None:
        video.options |= {"crf": str(template.crf)}
    else:
        video.bit_rate = template.bitrate_bps
    video.open()
    return video


def _video_table(video: Any, template: Template) -> SampleTable:
    config = avc_config(bytes(video.extradata or b""))
    if config is None:
        raise EncodeError("libx264 gave no parameter sets")
    time_base = Fraction(1, template.frame_rate * 1000)
    return SampleTable("video", "h264", time_base, config, template.width, template.height)


def open_audio(template: Template, channels: int) -> Any:
    """Return the AAC encoder's context, for planar floats at 48 kHz."""
    audio: Any = av.CodecContext.create("aac", "w")
    audio.sample_rate, audio.format = SAMPLE_RATE, "fltp"
    audio.layout = "stereo" if channels == 2 else "mono"
    audio.bit_rate = template.audio.bitrate_bps
    audio.time_base = Fraction(1, SAMPLE_RATE)
    audio.flags |= Flags.global_header
    audio.thread_count = 1
    audio.open()
    return audio
