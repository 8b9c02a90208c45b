"""Decoders of one track: frames of the timeline in, pictures or samples out.

Decoders conceal losses without an error, so damage is known from RTP only: after a frame that says
``lost_before`` nothing is shown until a keyframe; the last good picture stands (for 2 s, then the card). An
empty frame is never handed on: PyAV takes it for the end of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.codec.context import Flags

from compositor.canvas import Floats, Planes, frame_planes, rotate
from compositor.opus import SAMPLE_RATE, OpusDecoder, OpusError
from compositor.timeline import Frame
from recorder.records import TrackInfo

_NS = Fraction(1, 1_000_000_000)
_VIDEO = {"video/vp8": "vp8", "video/vp9": "vp9", "video/h264": "h264", "video/av1": "libdav1d"}
_TELEPHONE = {"audio/pcma": "pcm_alaw", "audio/pcmu": "pcm_mulaw"}
PICTURE_LIMIT = 4096
"""Wider or higher pictures are counted as damaged, not shown: no sender of a call needs them."""


class UnknownCodec(Exception):
    """The track's codec cannot be decoded here."""


@dataclass(slots=True)
class Picture:
    """A decoded picture; ``planes`` keep its memory alive."""

    at_ns: int
    """Of the newest frame that shows just these pixels."""
    planes: Planes


@dataclass(slots=True)
class Damage:
    """What could not be shown of a track."""

    errors: int = 0
    held: int = 0
    """Frames not shown because a reference before them was lost."""
    stretches: list[list[int]] = field(default_factory=list)
    """[from ns, to ns] without a whole picture; the last may still lack its end."""


class VideoDecoder:
    """Decode the frames of one video track in order; ``push`` returns the newest whole picture of each."""

    def __init__(self, info: TrackInfo) -> None:
        name = _VIDEO.get(info.mime.lower())
        if name is None:
            raise UnknownCodec(f"{info.mime} cannot be decoded")
        self._name = name
        self._context: Any = None
        self._waiting = True
        self._rotation = 0
        self.damage = Damage()

    def _open(self) -> Any:
        context = av.CodecContext.create(self._name, "r")
        context.thread_count = 1  # one job is one core; frame threads would also hold pictures back
        context.flags |= Flags.low_delay
        return context

    def push(self, frame: Frame) -> Picture | None:
        """Decode one frame. Returns its picture; None when there is none to show (damage, no keyframe)."""
        if not frame.data:
            return None
        if frame.keyframe:
            self._sound(frame.at_ns)
        elif frame.lost_before or self._waiting:
            self._broken(frame.at_ns)
        if self._waiting:
            self.damage.held += 1
            return None
        self._rotation = frame.rotation
        if self._context is None:
            self._context = self._open()
        packet = av.Packet(frame.data)
        packet.pts = packet.dts = frame.at_ns
        packet.time_base = _NS
        try:
            decoded = self._context.decode(packet)
        except av.FFmpegError:
            self.damage.errors += 1
            self._context = None  # its references are not to be trusted
            self._broken(frame.at_ns)
            return None
        if not decoded:
            return None
        return self._picture(decoded[-1], frame.at_ns)

    def _picture(self, decoded: Any, at_ns: int) -> Picture | None:
        if (
            decoded.width > PICTURE_LIMIT
            or decoded.height > PICTURE_LIMIT
            or min(decoded.width, decoded.height) < 2
        ):
            self.damage.errors += 1
            return None
        if decoded.format.name not in ("yuv420p", "yuvj420p"):
            decoded = decoded.reformat(format="yuv420p")
        elif decoded.format.name == "yuvj420p" or int(decoded.color_range) == 2:
            decoded = decoded.reformat(format="yuv420p", src_color_range=2, dst_color_range=1)
        return Picture(at_ns, rotate(frame_planes(decoded), self._rotation))

    def _broken(self, at_ns: int) -> None:
        stretches = self.damage.stretches
        if not stretches or len(stretches[-1]) == 2:
            stretches.append([at_ns])
        self._waiting = True

    def _sound(self, at_ns: int) -> None:
        stretches = self.damage.stretches
        if stretches and len(stretches[-1]) == 1:
            stretches[-1].append(at_ns)
        self._waiting = False


class AudioDecoder:
    """Decode the packets of one audio track to mono or stereo float32 at 48 kHz."""

    def __init__(self, info: TrackInfo) -> None:
        self._mime = info.mime.lower()
        if self._mime != "audio/opus" and self._mime not in _TELEPHONE:
            raise UnknownCodec(f"{info.mime} cannot be decoded")
        self._rate = info.clock_rate
        self._context: Any = None
        self._last: float = 0.0
        self.damage = Damage()

    def push(self, frame: Frame) -> Floats | None:
        """Return the packet's samples, (channels, n) float32 of −1 … 1; None when it cannot be decoded."""
        if not frame.data:
            return None
        try:
            return self._opus(frame) if self._mime == "audio/opus" else self._telephone(frame)
        except (av.FFmpegError, OpusError):
            self.damage.errors += 1
            self._context = None
            return None

    def _opus(self, frame: Frame) -> Floats:
        if self._context is None:
            self._context = OpusDecoder()
        decoder: OpusDecoder = self._context
        if frame.in_band:
            return decoder.decode_fec(frame.data, round(frame.duration_ns * SAMPLE_RATE / 1_000_000_000))
        return decoder.decode(frame.data)

    def _telephone(self, frame: Frame) -> Floats | None:
        if self._context is None:
            self._context = av.CodecContext.create(_TELEPHONE[self._mime], "r")
            self._context.thread_count = 1
            self._context.sample_rate = self._rate
            self._context.layout = "mono"
        parts = [part.to_ndarray().reshape(-1) for part in self._context.decode(av.Packet(frame.data))]
        if not parts:
            return None
        return self._resample(np.concatenate(parts).astype(np.float32) / np.float32(32768.0))

    def _resample(self, samples: Floats) -> Floats:
        """Bring narrow-band telephone sound to 48 kHz by linear interpolation, continuous over packets."""
        count = samples.size
        ratio = SAMPLE_RATE // self._rate
        known = np.concatenate([np.array([self._last], np.float32), samples])
        at = np.arange(1, count * ratio + 1, dtype=np.float32) / np.float32(ratio)
        self._last = float(samples[-1]) if count else self._last
        out: Floats = np.interp(at, np.arange(count + 1, dtype=np.float32), known).astype(np.float32)[None, :]
        return out
