"""Assemble video frames from packets of one timestamp: what is the same for every codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from recorder.depacketise.frame import MediaFrame
from recorder.rtp import RtpError


@dataclass(frozen=True, slots=True)
class PayloadInfo:
    """What a codec tells of one payload."""

    starts: bool
    """The frame certainly begins here: nothing of it was sent before."""
    keyframe: bool
    picture_id: int | None = None
    picture_id_bits: int = 0


class FrameBuilder(Protocol):
    """One codec's way to collect the payloads of a frame."""

    def add(self, payload: bytes, lost: bool) -> PayloadInfo:
        """Add a payload; ``lost``: packets before it are missing. Raises RtpError if it is malformed."""

    def take(self) -> tuple[bytes, bool]:
        """Return the frame's bytes so far and whether they are whole, and begin anew."""


class VideoDepacketiser:
    """Cut a stream of payloads into frames, at markers and at changes of the timestamp."""

    def __init__(self, builder: FrameBuilder) -> None:
        self.malformed = 0
        """Payloads that could not be parsed."""
        self._builder = builder
        self._timestamp: int | None = None
        self._damaged = False
        self._keyframe = False
        self._lost_before = False
        self._lost_at_padding = False
        self._begun = False
        self._picture: tuple[int, int] | None = None
        self._last_picture: tuple[int, int] | None = None

    def push(self, payload: bytes, timestamp: int, marker: bool, lost: bool = False) -> list[MediaFrame]:
        """See ``Depacketiser.push``."""
        frames: list[MediaFrame] = []
        if not payload:
            if lost:
                self._lost_before = True
                if self._timestamp is not None:
                    self._damaged = True
                self._lost_at_padding = True
            return frames
        lost = lost or self._lost_at_padding
        self._lost_at_padding = False
        if self._timestamp is not None and timestamp != self._timestamp:
            # No marker came. Without loss the frame is whole (some senders set none), else its end is
            # missing.
            self._damaged |= lost
            frames.extend(self._close())
        begins = self._timestamp is None
        if begins:
            self._timestamp = timestamp
            self._lost_before |= lost
        elif lost:
            self._damaged = True
        try:
            info = self._builder.add(payload, lost)
        except RtpError:
            self.malformed += 1
            self._damaged = True
        else:
            if begins:
                # The first payload ever may be the middle of a picture as well.
                self._damaged |= (lost or not self._begun) and not info.starts
                self._begun = True
                if info.picture_id is not None:
                    self._picture = (info.picture_id, info.picture_id_bits)
            self._keyframe |= info.keyframe
        if marker:
            frames.extend(self._close())
        return frames

    def flush(self) -> list[MediaFrame]:
        """Return an unfinished frame, damaged; what comes next follows a loss."""
        frames: list[MediaFrame] = []
        if self._timestamp is not None:
            self._damaged = True
            frames = self._close()
        self._lost_before = True
        self._last_picture = None
        return frames

    def _close(self) -> list[MediaFrame]:
        assert self._timestamp is not None
        data, whole = self._builder.take()
        damaged = self._damaged or not whole
        if self._lost_before and self._follows_last_picture():
            # Only padding was lost: the encoder's own count has no hole.
            self._lost_before = False
        frame = MediaFrame(self._timestamp, data, self._keyframe, damaged, self._lost_before)
        self._last_picture = None if damaged else self._picture
        self._timestamp = self._picture = None
        self._damaged = self._keyframe = False
        self._lost_before = damaged
        return [frame] if data else []

    def _follows_last_picture(self) -> bool:
        if self._picture is None or self._last_picture is None:
            return False
        (now, bits), (last, last_bits) = self._picture, self._last_picture
        return bits == last_bits and now == (last + 1) % (1 << bits)
