"""AV1 payloads (AOM "RTP Payload Format For AV1" v1.0) to temporal units of the low-overhead bitstream."""

from __future__ import annotations

from recorder.depacketise.video import PayloadInfo
from recorder.rtp import RtpError

TEMPORAL_DELIMITER = b"\x12\x00"
_SEQUENCE_HEADER, _DELIMITER, _TILE_LIST, _PADDING = 1, 2, 8, 15


def read_leb128(data: bytes, offset: int) -> tuple[int, int]:
    """Return a value and the offset after it (AV1 specification 4.10.5). Raises RtpError(``av1``)."""
    value = 0
    for index in range(8):
        if offset + index >= len(data):
            break
        value |= (data[offset + index] & 0x7F) << 7 * index
        if data[offset + index] < 0x80:
            return value, offset + index + 1
    raise RtpError("av1", f"length at byte {offset} has no end")


def leb128(value: int) -> bytes:
    """Write a value as leb128."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def elements(payload: bytes) -> list[bytes]:
    """Split a payload into its OBU elements (section 4.3). Raises RtpError(``av1``)."""
    if len(payload) < 2:
        raise RtpError("av1", f"payload of {len(payload)} bytes")
    count = payload[0] >> 4 & 3
    found: list[bytes] = []
    offset = 1
    while offset < len(payload):
        if count and len(found) == count - 1:
            size = len(payload) - offset
        else:
            size, offset = read_leb128(payload, offset)
        if offset + size > len(payload):
            raise RtpError("av1", f"element of {size} bytes, {len(payload) - offset} left")
        found.append(payload[offset : offset + size])
        offset += size
    if count and len(found) != count:
        raise RtpError("av1", f"{len(found)} of {count} elements")
    return found


def _with_size(obu: bytes) -> tuple[int, bytes]:
    """Return an OBU's type and its bytes with a size field, which the low-overhead format needs."""
    head = obu[0]
    extension = obu[1:2] if head & 0x04 else b""
    if head & 0x04 and not extension:
        raise RtpError("av1", "OBU extension cut off")
    offset = 1 + len(extension)
    if head & 0x02:
        size, offset = read_leb128(obu, offset)
        body = obu[offset : offset + size]
        if len(body) != size:
            raise RtpError("av1", f"OBU of {size} bytes, {len(body)} there")
    else:
        body = obu[offset:]
    return head >> 3 & 0x0F, bytes((head | 0x02,)) + extension + leb128(len(body)) + body


def starts_keyframe(payload: bytes) -> bool:
    """Tell whether a new coded video sequence begins with this payload (the N bit)."""
    elements(payload)
    return bool(payload[0] & 0x08) and not payload[0] & 0x80


class Av1Builder:
    """Collect the OBUs of one temporal unit."""

    def __init__(self) -> None:
        self._obus: list[bytes] = []
        self._open = False
        self._whole = True

    def add(self, payload: bytes, lost: bool) -> PayloadInfo:
        """See ``FrameBuilder``."""
        found = elements(payload)
        continues, goes_on = bool(payload[0] & 0x80), bool(payload[0] & 0x40)
        if continues != self._open or (continues and lost):
            self._whole = False
        if continues and self._obus and found:
            self._obus[-1] += found.pop(0)
        self._obus.extend(found)
        self._open = goes_on
        new_sequence = bool(payload[0] & 0x08) and not continues
        return PayloadInfo(new_sequence, new_sequence)

    def take(self) -> tuple[bytes, bool]:
        """See ``FrameBuilder``."""
        obus, whole = self._obus, self._whole and not self._open
        self._obus, self._open, self._whole = [], False, True
        parts: list[bytes] = []
        try:
            for obu in obus:
                if obu:
                    kind, data = _with_size(obu)
                    if kind not in (_DELIMITER, _TILE_LIST, _PADDING):
                        parts.append(data)
        except RtpError:
            whole = False
        return (TEMPORAL_DELIMITER + b"".join(parts) if parts else b""), whole
