"""Live camera and microphone for aiortc: what they send was captured now, by this machine's monotonic
clock.
"""

from __future__ import annotations

import asyncio
import fractions
import time

import av
import numpy as np
from aiortc import MediaStreamTrack

from tests.media.pictures import FPS, HEIGHT, WIDTH, Party, picture
from tests.media.sounds import PERIOD_S, RATE, programme

SOUND_SAMPLES = 960
"""20 ms at 48 kHz: one Opus frame."""


def monotonic_ms() -> int:
    """Return CLOCK_MONOTONIC in ms."""
    return time.monotonic_ns() // 1_000_000


class CameraTrack(MediaStreamTrack):
    """Pictures of a party, stamped with the moment they were made, on a grid that hits every whole second."""

    kind = "video"

    def __init__(
        self, party: Party, *, fps: int = FPS, width: int = WIDTH, height: int = HEIGHT, ppm: float = 0.0
    ) -> None:
        """``ppm``: by how much the sender's media clock runs fast."""
        super().__init__()
        self.party, self.fps, self.width, self.height = party, fps, width, height
        self._rate = 1 + ppm / 1e6
        self.off = False
        """A camera that is off delivers nothing."""
        self.sent_ms: list[int] = []
        """Capture time of every frame handed out."""
        self._begin_ms = monotonic_ms() // 1000 * 1000
        self._index = -1

    async def recv(self) -> av.VideoFrame:
        """Wait for the next point of the grid and return the picture captured there."""
        while True:
            now_ms = monotonic_ms()
            passed = (now_ms - self._begin_ms) * self.fps // 1000
            self._index = max(self._index + 1, passed)
            due_ms = self._begin_ms + (self._index * 1000 + self.fps - 1) // self.fps
            await asyncio.sleep(max(due_ms - now_ms, 0) / 1000)
            if not self.off:
                break
        captured_ms = monotonic_ms()
        frame = av.VideoFrame.from_ndarray(
            picture(self.party, captured_ms, self.width, self.height), format="yuv420p"
        )
        frame.pts = round((captured_ms - self._begin_ms) * 90 * self._rate)
        frame.time_base = fractions.Fraction(1, 90000)
        self.sent_ms.append(captured_ms)
        return frame


class MicrophoneTrack(MediaStreamTrack):
    """A party's programme: its second 0 is every monotonic second that the period divides."""

    kind = "audio"

    def __init__(self, party: Party, *, ppm: float = 0.0) -> None:
        """``ppm``: by how much the sound card's clock runs fast; what is heard stays at its true time."""
        super().__init__()
        self.party = party
        self.muted = False
        self._rate = 1 + ppm / 1e6
        self._stalled_s = 0.0
        sound = programme(party)
        self._samples = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
        begin_ms = monotonic_ms()
        self._begin_s = begin_ms / 1000
        self._offset = round(begin_ms * (RATE // 1000)) % (PERIOD_S * RATE)
        self._sent = 0

    def stall(self, seconds: float) -> None:
        """Deliver nothing for so long; meanwhile the timestamps stand still."""
        self._stalled_s += seconds

    async def recv(self) -> av.AudioFrame:
        """Wait until the next 20 ms have been said, and return them."""
        due_s = self._begin_s + self._stalled_s + (self._sent + 1) * SOUND_SAMPLES / RATE / self._rate
        await asyncio.sleep(max(due_s - time.monotonic(), 0))
        heard = (self._sent * SOUND_SAMPLES + np.arange(SOUND_SAMPLES)) / self._rate + self._stalled_s * RATE
        samples = self._samples[(self._offset + np.rint(heard).astype(np.int64)) % len(self._samples)]
        if self.muted:
            samples = np.zeros_like(samples)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples[None, :]), format="s16", layout="mono"
        )
        frame.sample_rate = RATE
        frame.pts = self._sent * SOUND_SAMPLES
        frame.time_base = fractions.Fraction(1, RATE)
        self._sent += 1
        return frame
