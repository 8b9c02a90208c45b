"""Lay every picture and sound on the session's clock: pure, causal, the same live and afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from recorder.records import ClockRecord, EventRecord, Record, TrackInfo

HORIZON_NS = 2_000_000_000
"""Media time t is decided from records up to t + 2 s; part of the timeline's version."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole video frame, or one audio packet, at its place in the session."""

    track: int
    at_ns: int
    """Session timeline: monotonic ns, anchored to arrival at the server."""
    duration_ns: int
    """Of audio; 0 for video, which is shown until the next frame."""
    data: bytes
    """As the decoder wants it: VP8/VP9 frame, H.264 in Annex B, AV1 temporal unit, Opus packet, G.711
    bytes."""
    keyframe: bool
    lost_before: bool
    """Something between the frame before and this one was lost: decoding may show rubbish until a
    keyframe."""
    rotation: int
    """Degrees (0, 90, 180, 270) to turn the picture clockwise to stand upright."""


@dataclass(frozen=True, slots=True)
class Gap:
    """An interval of a track of which nothing, or nothing whole, was recorded."""

    track: int
    """0: all tracks."""
    from_ns: int
    to_ns: int
    reason: str
    """``loss``, ``stalled``, ``resync``, ``part``, or the reason of a GapRecord."""
    packets: int


class Timeline:
    """Feed records in journal order; take frames in time order."""

    tracks: dict[int, TrackInfo]
    events: list[EventRecord]
    gaps: list[Gap]
    clocks: list[ClockRecord]

    def feed(self, record: Record) -> None:
        """Take the next record."""
        raise NotImplementedError

    def end(self) -> None:
        """Say that no further record comes."""
        raise NotImplementedError

    def ready(self, until_ns: int) -> list[Frame]:
        """Return the frames with ``at_ns < until_ns`` not yet returned, in time order."""
        raise NotImplementedError
