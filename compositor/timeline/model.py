"""What comes out of a timeline, and its constants."""

from __future__ import annotations

from dataclasses import dataclass

MS = 1_000_000
SECOND = 1_000 * MS

VERSION = 2
"""Raised whenever the same journal would give other frames."""
HORIZON_NS = 2 * SECOND
"""Media time t is decided from records up to t + 2 s."""
LATE_NS = 1500 * MS
"""No frame is placed earlier than this before its arrival; the rest of the horizon is for looking around."""
RELEASE_NS = 1800 * MS
"""A hole in the sequence is waited for until this after the place of what waits behind it."""
DECIDE_NS = 1900 * MS
"""A frame's place is settled this long after it, with all that arrived meanwhile in view."""
STALL_NS = 2 * SECOND
"""A pause longer than this, of a track that is not muted, is a gap to list."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole video frame, or one audio packet, at its place in the session."""

    track: int
    at_ns: int
    """Session timeline: monotonic ns, anchored to arrival at the server. Never decreases within a track."""
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
    in_band: bool = False
    """Of sound: ``data`` is the packet after it, to be decoded for what it repeats of this one (FEC)."""


@dataclass(frozen=True, slots=True)
class Gap:
    """An interval of a track of which nothing, or nothing whole, was recorded."""

    track: int
    """0: all tracks."""
    from_ns: int
    to_ns: int
    reason: str
    """``loss`` (of pictures: until the next keyframe), ``stalled``, ``resync``, ``part`` (between two
    writers), or the reason of a GapRecord."""
    packets: int
    """Lost packets, 0 if unknown."""
