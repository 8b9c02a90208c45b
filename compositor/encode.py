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

from compositor.boxes import avc_config, length_prefixed
from compositor.canvas import Canvas, Floats
from compositor.spool import SampleTable, Spool
from recorder.sealed import DataKey
from recorder.template import Template

SAMPLE_RATE = 48_000
AAC_FRAME = 1024
VIDEO, AUDIO = 0, 1
_FLUSH_BYTES = 128 * 1024
_FLUSH_SECONDS = 1
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
        fps = template.frame_rate
        self._video: Any = av.CodecContext.create("libx264", "w")
        video = self._video
        video.width, video.height, video.pix_fmt = template.width, template.height, "yuv420p"
        video.time_base, video.framerate = Fraction(1, fps), Fraction(fps)
        video.thread_type, video.thread_count = "FRAME", 1
        video.gop_size = max(1, round(template.gop_s * fps))
        video.flags |= Flags.global_header
        video.color_primaries, video.color_trc, video.colorspace, video.color_range = 1, 1, 6, 1
        video.options = {"preset": "veryfast"}
        if template.bitrate_bps is None:
            video.options = {"preset": "veryfast", "crf": str(template.crf)}
        else:
            video.bit_rate = template.bitrate_bps
        video.open()
        self._audio: Any = av.CodecContext.create("aac", "w")
        audio = self._audio
        audio.sample_rate, audio.format = SAMPLE_RATE, "fltp"
        audio.layout = "stereo" if channels == 2 else "mono"
        audio.bit_rate = template.audio.bitrate_bps
        audio.time_base = Fraction(1, SAMPLE_RATE)
        audio.flags |= Flags.global_header
        audio.thread_count = 1
        audio.open()
        config = avc_config(bytes(video.extradata or b""))
        if config is None:
            raise EncodeError("libx264 gave no parameter sets")
        tables = [
            SampleTable("video", "h264", Fraction(1, fps * 1000), config, template.width, template.height),
            SampleTable(
                "audio",
                "aac",
                Fraction(1, SAMPLE_RATE),
                bytes(audio.extradata or b""),
                sample_rate=SAMPLE_RATE,
                channels=channels,
                skip=AAC_FRAME,
                bitrate_bps=template.audio.bitrate_bps,
            ),
        ]
        self.spool = Spool(spool_path, data_key, tables)
        self._fps = fps
        self._channels = channels
        self._frames = 0
        self._samples = 0
        self._flushed_frame = 0
        self._rest: Floats = np.zeros((channels, 0), np.float32)
        self._thread = ThreadPoolExecutor(1, "x264")
        self._encoding: deque[Future[Any]] = deque()

    @property
    def frames(self) -> int:
        """Pictures taken so far."""
        return self._frames

    def picture(self, canvas: Canvas) -> None:
        """Encode the canvas as the next frame; it must not change until ``BEHIND`` more were given."""
        frame = canvas.frame
        frame.pts = self._frames
        frame.time_base = Fraction(1, self._fps)
        self._frames += 1
        self._encoding.append(self._thread.submit(self._video.encode, frame))
        if len(self._encoding) > BEHIND:
            self._put_video(self._encoding.popleft().result())
        if self._frames - self._flushed_frame >= self._fps * _FLUSH_SECONDS:
            self._flushed_frame = self._frames
            self.spool.flush()

    def sound(self, samples: Floats) -> None:
        """Encode the next samples, (channels, n) float32."""
        self._rest = np.concatenate([self._rest, samples], axis=1)
        whole = self._rest.shape[1] // AAC_FRAME * AAC_FRAME
        for start in range(0, whole, AAC_FRAME):
            self._put_audio(self._audio.encode(self._audio_frame(self._rest[:, start : start + AAC_FRAME])))
        if whole:
            self._rest = self._rest[:, whole:].copy()

    def _audio_frame(self, samples: Floats) -> Any:
        layout = "stereo" if self._channels == 2 else "mono"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate = SAMPLE_RATE
        frame.pts = self._samples
        frame.time_base = Fraction(1, SAMPLE_RATE)
        self._samples += samples.shape[1]
        return frame

    def finish(self) -> Spool:
        """Encode what is left, drain both encoders, close the spool for writing."""
        if self._rest.shape[1]:
            short = AAC_FRAME - self._rest.shape[1]
            self._put_audio(self._audio.encode(self._audio_frame(np.pad(self._rest, ((0, 0), (0, short))))))
        while self._encoding:
            self._put_video(self._encoding.popleft().result())
        self._thread.shutdown()
        self._put_video(self._video.encode(None))
        self._put_audio(self._audio.encode(None))
        if len(self.spool.tables[VIDEO]) != self._frames:
            raise EncodeError(f"{len(self.spool.tables[VIDEO])} of {self._frames} frames were encoded")
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
            self.spool.add(AUDIO, bytes(packet), pts=packet.pts, dts=packet.pts, duration=AAC_FRAME, key=True)
