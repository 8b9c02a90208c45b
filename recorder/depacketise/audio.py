"""Audio payloads: Opus (RFC 7587) and G.711 (RFC 3551): one packet is one frame."""

from __future__ import annotations

from collections.abc import Callable

from recorder.depacketise.frame import MediaFrame
from recorder.rtp import RtpError

_SILK_MS = (10, 20, 40, 60)
_CELT_TENTH_MS = (25, 50, 100, 200)


def opus_duration(payload: bytes) -> int:
    """Return the duration of an Opus packet in 48 kHz samples, from its first bytes (RFC 6716 section 3.1).

    Raises RtpError(``opus``) for an empty packet and for durations over 120 ms.
    """
    if not payload:
        raise RtpError("opus", "empty packet")
    config, code = payload[0] >> 3, payload[0] & 3
    if config < 12:
        frame = _SILK_MS[config & 3] * 48
    elif config < 16:
        frame = (10, 20)[config & 1] * 48
    else:
        frame = _CELT_TENTH_MS[config & 3] * 48 // 10
    if code == 3:
        if len(payload) < 2:
            raise RtpError("opus", "frame count cut off")
        count = payload[1] & 0x3F
    else:
        count = 1 if code == 0 else 2
    if not 0 < frame * count <= 5760:
        raise RtpError("opus", f"{count} frames of {frame} samples")
    return frame * count


def opus_repeated(payload: bytes) -> int:
    """Return how much an Opus packet repeats of the one before (in-band FEC), in 48 kHz samples; 0: nothing.

    Only packets of one frame are looked at, as browsers send them. The flags are the first bits of its SILK
    part (RFC 6716 sections 4.2.3 and 4.2.4): voice activity for each 20 ms, then whether LBRR follows.
    """
    if len(payload) < 2 or payload[0] >> 3 >= 16 or payload[0] & 3:
        return 0
    duration = opus_duration(payload)
    frames = max(1, duration // 960)
    flags, stereo = payload[1], payload[0] & 4
    repeats = flags >> 7 - frames & 1 or (stereo and flags >> 6 - 2 * frames & 1)
    return duration if repeats else 0


class AudioDepacketiser:
    """Pass packets through with their durations."""

    def __init__(self, duration: Callable[[bytes], int]) -> None:
        self.malformed = 0
        """Payloads that could not be parsed."""
        self._duration = duration
        self._lost = False

    def push(self, payload: bytes, timestamp: int, marker: bool, lost: bool = False) -> list[MediaFrame]:
        """See ``Depacketiser.push``."""
        self._lost |= lost
        if not payload:
            return []
        try:
            duration = self._duration(payload)
        except RtpError:
            self.malformed += 1
            self._lost = True
            return []
        lost_before, self._lost = self._lost, False
        return [MediaFrame(timestamp, payload, True, False, lost_before, duration)]

    def flush(self) -> list[MediaFrame]:
        """Nothing is held back."""
        self._lost = True
        return []
