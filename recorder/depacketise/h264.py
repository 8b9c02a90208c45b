"""H.264 payloads (RFC 6184): single NAL unit, STAP-A, FU-A, to Annex B."""

from __future__ import annotations

from recorder.depacketise.video import PayloadInfo
from recorder.rtp import RtpError

START_CODE = b"\x00\x00\x00\x01"
_SLICE, _IDR, _SPS, _AUD = 1, 5, 7, 9
_STAP_A, _FU_A = 24, 28


def split(payload: bytes) -> tuple[list[bytes], bool, bool]:
    """Split a payload into NAL units; return them, and whether the first one begins and the last one ends
    here.

    A FU-A fragment comes with its NAL header put back at the first fragment, and bare otherwise.
    Raises RtpError(``h264``).
    """
    if not payload:
        raise RtpError("h264", "empty payload")
    kind = payload[0] & 0x1F
    if 0 < kind < _STAP_A:
        return [payload], True, True
    if kind == _STAP_A:
        units: list[bytes] = []
        offset = 1
        while offset < len(payload):
            end = offset + 2 + int.from_bytes(payload[offset : offset + 2], "big")
            if offset + 2 >= end or end > len(payload):
                raise RtpError("h264", f"STAP-A unit at byte {offset} does not fit {len(payload)} bytes")
            units.append(payload[offset + 2 : end])
            offset = end
        if not units:
            raise RtpError("h264", "STAP-A without units")
        return units, True, True
    if kind == _FU_A:
        if len(payload) < 3:
            raise RtpError("h264", f"FU-A of {len(payload)} bytes")
        begins, ends = bool(payload[1] & 0x80), bool(payload[1] & 0x40)
        head = bytes((payload[0] & 0xE0 | payload[1] & 0x1F,)) if begins else b""
        return [head + payload[2:]], begins, ends
    raise RtpError("h264", f"NAL unit type {kind}")


def _first_slice(unit: bytes) -> bool:
    """Tell whether a slice begins at the first macroblock: ``first_mb_in_slice`` is ue(v), 0 is one bit
    set."""
    return len(unit) > 1 and unit[1] >= 0x80


def starts_keyframe(payload: bytes) -> bool:
    """Tell whether a keyframe begins with this payload: parameter sets, or the first slice of an IDR
    picture."""
    units, begins, _ = split(payload)
    return begins and any(
        unit[0] & 0x1F == _SPS or (unit[0] & 0x1F == _IDR and _first_slice(unit)) for unit in units
    )


class H264Builder:
    """Collect the NAL units of one access unit."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._in_fragment = False
        self._whole = True

    def add(self, payload: bytes, lost: bool) -> PayloadInfo:
        """See ``FrameBuilder``."""
        units, begins, ends = split(payload)
        first = not self._parts
        if not begins:
            # The middle of a unit whose beginning is missing is nothing a decoder may see.
            self._whole &= self._in_fragment and not lost
        elif self._in_fragment:
            self._whole = False
        for unit in units:
            self._parts += (START_CODE, unit) if begins else (unit,)
        self._in_fragment = not ends
        kinds = [unit[0] & 0x1F for unit in units] if begins else []
        starts = (
            first
            and bool(kinds)
            and (kinds[0] in (_SPS, _AUD) or (kinds[0] == _SLICE and _first_slice(units[0])))
        )
        return PayloadInfo(starts, _IDR in kinds)

    def take(self) -> tuple[bytes, bool]:
        """See ``FrameBuilder``."""
        data, whole = b"".join(self._parts), self._whole and not self._in_fragment
        self._parts, self._in_fragment, self._whole = [], False, True
        return data, whole
