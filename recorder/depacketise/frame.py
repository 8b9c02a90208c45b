"""What all depacketisers share: the assembled frame and the interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MediaFrame:
    """One frame (video) or packet (audio) as a decoder takes it."""

    timestamp: int
    """RTP media time, 32 bits."""
    data: bytes
    """Never empty."""
    keyframe: bool
    damaged: bool
    """A part of this frame is missing; it must not be shown."""
    lost_before: bool
    """Packets between the frame before and this one were lost, so what it refers to may be missing."""
    duration: int = 0
    """Media time, audio only."""


class Depacketiser(Protocol):
    """Turn the payloads of one stream, in sequence order, into frames."""

    def push(self, payload: bytes, timestamp: int, marker: bool, lost: bool = False) -> list[MediaFrame]:
        """Take the payload of the next packet; ``lost``: packets before it are missing for good.

        Returns the frames that are complete now. An empty payload (padding probe) is part of no frame. A
        malformed payload damages its frame and is counted in ``malformed``; nothing is raised.
        """

    def flush(self) -> list[MediaFrame]:
        """Return what is left, as a damaged frame, when the stream ends or starts anew."""

    malformed: int
