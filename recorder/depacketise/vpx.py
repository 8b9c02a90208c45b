"""VP8 (RFC 7741) and VP9 (RFC 9628) payloads."""

from __future__ import annotations

from recorder.depacketise.video import PayloadInfo
from recorder.rtp import RtpError


def parse_vp8(payload: bytes) -> tuple[int, PayloadInfo]:
    """Parse a VP8 payload descriptor (RFC 7741 section 4.2); return where the VP8 data begins, and what it
    says.

    Raises RtpError(``vp8``).
    """
    try:
        first, offset = payload[0], 1
        picture_id, bits = None, 0
        if first & 0x80:
            flags, offset = payload[1], 2
            if flags & 0x80:
                picture_id, bits, offset = _picture_id(payload, offset)
            offset += bool(flags & 0x40) + bool(flags & 0x30)
        starts = bool(first & 0x10) and not first & 0x07
        header = payload[offset]
    except IndexError:
        raise RtpError("vp8", f"descriptor cut off at {len(payload)} bytes") from None
    return offset, PayloadInfo(starts, starts and not header & 0x01, picture_id, bits)


def _picture_id(payload: bytes, offset: int) -> tuple[int, int, int]:
    if payload[offset] & 0x80:
        return (payload[offset] & 0x7F) << 8 | payload[offset + 1], 15, offset + 2
    return payload[offset], 7, offset + 1


def parse_vp9(payload: bytes) -> tuple[int, PayloadInfo, bool]:
    """Parse a VP9 payload descriptor (RFC 9628 section 4.2).

    Returns where the VP9 data begins, what it says, and whether a layer's frame begins. Raises
    RtpError(``vp9``).
    """
    try:
        first, offset = payload[0], 1
        picture_id, bits, spatial = None, 0, 0
        if first & 0x80:
            picture_id, bits, offset = _picture_id(payload, offset)
        if first & 0x20:
            spatial = payload[offset] >> 1 & 7
            offset += 1 if first & 0x10 else 2
        if first & 0x50 == 0x50:
            for _ in range(3):
                offset += 1
                if not payload[offset - 1] & 0x01:
                    break
        if first & 0x02:
            offset = _skip_scalability_structure(payload, offset)
        _ = payload[offset]
    except IndexError:
        raise RtpError("vp9", f"descriptor cut off at {len(payload)} bytes") from None
    begins = bool(first & 0x08)
    starts = begins and spatial == 0
    return offset, PayloadInfo(starts, starts and not first & 0x40, picture_id, bits), begins


def _skip_scalability_structure(payload: bytes, offset: int) -> int:
    head = payload[offset]
    offset += 1
    if head & 0x10:
        offset += 4 * ((head >> 5) + 1)
    if head & 0x08:
        count = payload[offset]
        offset += 1
        for _ in range(count):
            offset += 1 + (payload[offset] >> 2 & 3)
    return offset


class Vp8Builder:
    """Collect one VP8 frame."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, payload: bytes, lost: bool) -> PayloadInfo:
        """See ``FrameBuilder``."""
        offset, info = parse_vp8(payload)
        self._parts.append(payload[offset:])
        return info

    def take(self) -> tuple[bytes, bool]:
        """See ``FrameBuilder``."""
        data = b"".join(self._parts)
        self._parts = []
        return data, True


class Vp9Builder:
    """Collect one VP9 picture; several spatial layers become a superframe (VP9 bitstream, annex B)."""

    def __init__(self) -> None:
        self._layers: list[list[bytes]] = []

    def add(self, payload: bytes, lost: bool) -> PayloadInfo:
        """See ``FrameBuilder``."""
        offset, info, begins = parse_vp9(payload)
        if begins or not self._layers:
            self._layers.append([])
        self._layers[-1].append(payload[offset:])
        return info

    def take(self) -> tuple[bytes, bool]:
        """See ``FrameBuilder``."""
        layers = [b"".join(parts) for parts in self._layers]
        self._layers = []
        data = b"".join(layers)
        if 1 < len(layers) <= 8:
            size = (max(map(len, layers)).bit_length() + 7) // 8
            marker = bytes((0xC0 | size - 1 << 3 | len(layers) - 1,))
            data += marker + b"".join(len(layer).to_bytes(size, "little") for layer in layers) + marker
        return data, len(layers) <= 8
