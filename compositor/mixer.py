"""The sound of all parties on the session's timeline: every packet at its time, silence where there is none.

Samples are placed by the timeline's time of each packet. Within running speech nothing ever jumps: when the
time says that a sender's clock runs fast or slow, the packet is stretched by at most 0.5 %. Where a packet
does not follow the one before (loss, DTX, mute, stall) it is placed anew, exactly. A limiter keeps the sum
below full scale without clipping it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compositor.canvas import Floats
from compositor.timeline import Frame
from recorder.records import TrackInfo
from recorder.template import Audio

SAMPLE_RATE = 48_000
STRETCH = 0.005
CONTINUOUS_NS = 5_000_000
"""A packet that begins less than 5 ms from where the last one ended follows it."""
JUMP_SAMPLES = 4800
"""Speech further than 100 ms from its time is placed anew even so: stretching would take 20 s."""
CEILING = 0.966  # −0.3 dBFS: AAC overshoots a little when decoded
_BLOCK = 240  # 5 ms
_RELEASE = 1.0 / 60  # from full to no reduction in 300 ms


@dataclass(slots=True)
class _Voice:
    """Where one track's sound has got to."""

    ends_ns: int
    """Timeline time at which the last packet ended."""
    next_sample: int
    """Output sample at which it ended, counted from the session's start."""
    last: Floats
    """The last input sample of each channel: where stretching the next packet begins."""


class Mixer:
    """Add up packets; take the sum in order. Times in ns of the session's monotonic timeline."""

    def __init__(self, start_ns: int, audio: Audio) -> None:
        self.channels = 2 if audio.layout == "stereo_by_role" else 1
        self._by_role = audio.layout == "stereo_by_role"
        self._start_ns = start_ns
        self._voices: dict[int, _Voice] = {}
        self._sum: Floats = np.zeros((self.channels, 4 * SAMPLE_RATE), np.float32)
        self._taken = 0
        self._limiter = Limiter(self.channels)
        self.late_samples = 0
        """Samples that came after their time had been handed out; the timeline's horizon makes this 0."""

    def sample_at(self, at_ns: int) -> int:
        """Return the output sample of a time."""
        return round((at_ns - self._start_ns) * SAMPLE_RATE / 1_000_000_000)

    def add(self, info: TrackInfo, frame: Frame, samples: Floats) -> None:
        """Place one packet's samples, (channels, n)."""
        wanted = self.sample_at(frame.at_ns)
        voice = self._voices.get(info.track)
        count = samples.shape[1]
        follows = (
            voice is not None
            and not frame.lost_before
            and abs(frame.at_ns - voice.ends_ns) < CONTINUOUS_NS
            and abs(wanted - voice.next_sample) < JUMP_SAMPLES
        )
        if voice is not None and follows:
            position = voice.next_sample
            limit = int(count * STRETCH)
            shift = max(-limit, min(limit, wanted - position))
            placed = _stretch(samples, voice.last, count + shift) if shift else samples
        else:
            position = wanted if voice is None else max(wanted, voice.next_sample)
            placed = _faded_in(samples)
        ends_ns = frame.at_ns + count * 1_000_000_000 // SAMPLE_RATE
        self._voices[info.track] = _Voice(ends_ns, position + placed.shape[1], samples[:, -1:].copy())
        self._put(position, self._route(info, placed))

    def _route(self, info: TrackInfo, samples: Floats) -> Floats:
        """Bring a party's sound to the output's channels."""
        mono: Floats = samples
        if samples.shape[0] == 2:
            mono = ((samples[0] + samples[1]) * np.float32(0.5))[None, :]
        if not self._by_role:
            return mono
        left, right = {"agent": (1.0, 0.0), "customer": (0.0, 1.0)}.get(info.role, (0.7071, 0.7071))
        return np.concatenate([mono * np.float32(left), mono * np.float32(right)])

    def _put(self, position: int, samples: Floats) -> None:
        offset = position - self._taken
        if offset < 0:
            late = min(-offset, samples.shape[1])
            self.late_samples += late if position >= 0 else 0
            samples, offset = samples[:, late:], 0
        needed = offset + samples.shape[1]
        if needed > self._sum.shape[1]:
            grown = np.zeros((self.channels, needed + SAMPLE_RATE), np.float32)
            grown[:, : self._sum.shape[1]] = self._sum
            self._sum = grown
        self._sum[:, offset : offset + samples.shape[1]] += samples

    def silence(self, from_ns: int, to_ns: int) -> None:
        """Take out all sound of an interval that was not handed out yet (the recording was paused)."""
        first = max(0, self.sample_at(from_ns) - self._taken)
        self._sum[:, first : max(first, self.sample_at(to_ns) - self._taken)] = 0.0

    def take(self, upto_sample: int) -> Floats:
        """Return the next samples before ``upto_sample``, (channels, n); whole blocks of 5 ms, limited.

        Everything before it must have been added.
        """
        count = (upto_sample - self._taken) // _BLOCK * _BLOCK
        if count <= 0:
            return np.zeros((self.channels, 0), np.float32)
        if count + _BLOCK > self._sum.shape[1]:
            grown = np.zeros((self.channels, count + SAMPLE_RATE), np.float32)
            grown[:, : self._sum.shape[1]] = self._sum
            self._sum = grown
        ahead = float(np.abs(self._sum[:, count : count + _BLOCK]).max(initial=0.0))
        out = self._limiter.apply(self._sum[:, :count], ahead)
        kept = self._sum.shape[1] - count
        self._sum[:, :kept] = self._sum[:, count:].copy()
        self._sum[:, kept:] = 0.0
        self._taken += count
        return out


class Limiter:
    """Turn the sum down where it would pass the ceiling: one block (5 ms) ahead, gain in straight lines."""

    def __init__(self, channels: int) -> None:
        self._gain = 1.0
        self._channels = channels

    def apply(self, samples: Floats, ahead_peak: float) -> Floats:
        """Limit (channels, n), n a multiple of 240; ``ahead_peak``: the largest sample of the next block."""
        blocks = samples.reshape(self._channels, -1, _BLOCK)
        peaks = np.append(np.abs(blocks).max(axis=(0, 2)), np.float32(ahead_peak))
        if self._gain == 1.0 and float(peaks.max()) <= CEILING:
            return samples.copy()
        wanted = np.minimum(1.0, CEILING / np.maximum(peaks, 1e-9))
        ramp = np.arange(1, _BLOCK + 1, dtype=np.float32) / np.float32(_BLOCK)
        out = np.empty_like(blocks)
        for index in range(blocks.shape[1]):
            begin = min(self._gain, float(wanted[index]))
            end = min(float(wanted[index]), float(wanted[index + 1]), begin + _RELEASE)
            out[:, index] = blocks[:, index] * (np.float32(begin) + ramp * np.float32(end - begin))
            self._gain = end if end < 0.9999 else 1.0
        return out.reshape(self._channels, -1)


def _stretch(samples: Floats, last: Floats, count: int) -> Floats:
    """Resample to ``count`` samples so that the last stays the last and the first follows ``last`` evenly."""
    size = samples.shape[1]
    at = np.arange(1, count + 1, dtype=np.float64) * (size / count)
    grid = np.arange(size + 1, dtype=np.float64)
    rows = [
        np.interp(at, grid, np.concatenate([last[channel % last.shape[0]], samples[channel]]))
        for channel in range(samples.shape[0])
    ]
    return np.stack(rows).astype(np.float32)


def _faded_in(samples: Floats) -> Floats:
    """Begin after silence without a click: 1 ms."""
    out = samples.copy()
    ramp = min(48, out.shape[1])
    out[:, :ramp] *= np.arange(1, ramp + 1, dtype=np.float32) / np.float32(ramp)
    return out
