"""RTP packets as bytes: header, header extensions (RFC 8285), keyframes, VP8 picture numbers. Pure functions.

The native twin of this file is ``csrc/wire.c``; the conformance suite holds both to the same results.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mediaserver.forwarder.layers import Layered

_HEADER: Final = Struct("!BBHII")
MAX_ELEMENTS: Final = 32
"""Elements of one packet that are looked at; a browser sends at most about ten."""

VP8: Final = 1
VP9: Final = 2
H264: Final = 3
AV1: Final = 4

CODECS: Final = {"video/vp8": VP8, "video/vp9": VP9, "video/h264": H264, "video/av1": AV1}
"""Codecs whose keyframes we can tell; 0 stands for all others."""


class RtpPacket:
    """A well-formed RTP packet, taken apart once. Offsets are into ``data``."""

    __slots__ = (
        "arrival_ns",
        "copied",
        "csrcs_end",
        "data",
        "elements",
        "extended",
        "keyframe",
        "layered",
        "marker",
        "payload_end",
        "payload_start",
        "payload_type",
        "sequence",
        "ssrc",
        "timestamp",
        "two_byte",
        "vp8",
    )

    data: bytes
    arrival_ns: int
    marker: int
    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    csrcs_end: int
    elements: list[tuple[int, int, int]]
    two_byte: bool
    payload_start: int
    payload_end: int
    extended: int
    keyframe: bool
    layered: Layered | None
    """What ``layers.LayerReader`` found."""
    vp8: tuple[int, int, int] | None
    """``vp8_numbers`` of the payload, once a route asked for them."""
    copied: dict[tuple[tuple[int, int], ...], list[tuple[int, bytes]]]
    """Header extension elements as routes copy them, by the routes' mapping: the same for most."""


def parse_rtp(data: bytes, arrival_ns: int) -> RtpPacket | None:
    """Take an RTP packet apart; ``None`` if it is malformed (RFC 3550 section 5.1).

    ``elements`` are ``(id, offset, length)`` of the header extension; an element that runs over the
    extension's end and all after it are ignored, as are extensions of other profiles (RFC 8285 section 4).
    """
    size = len(data)
    if size < 12:
        return None
    first, second, sequence, timestamp, ssrc = _HEADER.unpack_from(data)
    if first >> 6 != 2:
        return None
    packet = RtpPacket()
    packet.data = data
    packet.arrival_ns = arrival_ns
    packet.marker = second & 0x80
    packet.payload_type = second & 0x7F
    packet.sequence = sequence
    packet.timestamp = timestamp
    packet.ssrc = ssrc
    packet.extended = 0
    packet.two_byte = packet.keyframe = False
    packet.vp8 = packet.layered = None
    packet.copied = {}
    start = 12 + 4 * (first & 0x0F)
    packet.csrcs_end = start
    if not first & 0x10:
        packet.elements = []
    else:
        if start + 4 > size:
            return None
        profile = data[start] << 8 | data[start + 1]
        end = start + 4 + 4 * (data[start + 2] << 8 | data[start + 3])
        if end > size:
            return None
        if profile == 0xBEDE:
            packet.elements = _one_byte_elements(data, start + 4, end)
        elif profile & 0xFFF0 == 0x1000:
            packet.two_byte = True
            packet.elements = _two_byte_elements(data, start + 4, end)
        else:
            packet.elements = []
        start = end
    if start > size:
        return None
    end = size
    if first & 0x20:
        padding = data[size - 1]
        if padding == 0 or padding > size - start:
            return None
        end = size - padding
    packet.payload_start = start
    packet.payload_end = end
    return packet


def _one_byte_elements(data: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    elements: list[tuple[int, int, int]] = []
    while at < end and len(elements) < MAX_ELEMENTS:
        byte = data[at]
        at += 1
        if byte == 0:
            continue
        number = byte >> 4
        if number == 15:
            break
        length = (byte & 0x0F) + 1
        if at + length > end:
            break
        if number:
            elements.append((number, at, length))
        at += length
    return elements


def _two_byte_elements(data: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    elements: list[tuple[int, int, int]] = []
    while at < end and len(elements) < MAX_ELEMENTS:
        number = data[at]
        at += 1
        if number == 0:
            continue
        if at >= end:
            break
        length = data[at]
        at += 1
        if at + length > end:
            break
        elements.append((number, at, length))
        at += length
    return elements


def element(packet: RtpPacket, number: int) -> bytes | None:
    """Return the value of the packet's extension element with this id."""
    for found, at, length in packet.elements:
        if found == number:
            return packet.data[at : at + length]
    return None


def is_keyframe_start(codec: int, data: bytes, start: int, end: int) -> bool:
    """Tell whether the payload begins a keyframe. Never raises, whatever the bytes."""
    if start >= end:
        return False
    if codec == VP8:
        return _vp8_keyframe(data, start, end)
    if codec == H264:
        return _h264_keyframe(data, start, end)
    if codec == VP9:
        # RFC 9628 section 4.2: not inter-picture predicted (P=0), begins a frame (B=1), lowest spatial layer.
        first = data[start]
        if first & 0x40 or not first & 0x08:
            return False
        if not first & 0x20:
            return True
        at = start + 1
        if first & 0x80:
            at += 2 if at < end and data[at] & 0x80 else 1
        return at < end and data[at] & 0x0E == 0
    if codec == AV1:
        # AV1 RTP section 4.4: N, "first packet of a coded video sequence", and not Z, "continues an OBU".
        return data[start] & 0x88 == 0x08
    return False


def _vp8_keyframe(data: bytes, start: int, end: int) -> bool:
    # RFC 7741: S=1, partition 0, then the P bit of the frame header (0: keyframe).
    first = data[start]
    if first & 0x17 != 0x10:
        return False
    at = start + 1
    if first & 0x80:
        if at >= end:
            return False
        flags = data[at]
        at += 1
        if flags & 0x80:
            at += 2 if at < end and data[at] & 0x80 else 1
        if flags & 0x40:
            at += 1
        if flags & 0x30:
            at += 1
    return at < end and data[at] & 0x01 == 0


def _h264_keyframe(data: bytes, start: int, end: int) -> bool:
    # RFC 6184: an SPS (what a decoder needs first) or, where none is sent in band, the first slice of an IDR
    # picture.
    kind = data[start] & 0x1F
    if kind in (5, 7):
        return True
    if kind == 24:  # STAP-A
        at = start + 1
        while at + 2 < end:
            length = data[at] << 8 | data[at + 1]
            if data[at + 2] & 0x1F in (5, 7):
                return True
            at += 2 + length
        return False
    if kind == 28 and start + 1 < end:  # FU-A
        return data[start + 1] & 0x80 != 0 and data[start + 1] & 0x1F in (5, 7)
    return False


def vp8_numbers(data: bytes, start: int, end: int) -> tuple[int, int, int]:
    """Find the VP8 picture id and TL0PICIDX: ``(offset of the id or 0, its bits 7, 15 or 0, offset of
    TL0PICIDX or 0)``."""
    if start + 1 >= end or not data[start] & 0x80:
        return 0, 0, 0
    flags = data[start + 1]
    at = start + 2
    picture, bits, index = 0, 0, 0
    if flags & 0x80:
        if at >= end:
            return 0, 0, 0
        picture = at
        if data[at] & 0x80:
            if at + 1 >= end:
                return 0, 0, 0
            bits = 15
            at += 2
        else:
            bits = 7
            at += 1
    if flags & 0x40 and at < end:
        index = at
    return picture, bits, index


def rtcp_packets(data: bytes) -> list[tuple[int, int, int, int]] | None:
    """Split a compound into ``(payload type, count or format, offset, length)``; ``None`` if it is
    malformed."""
    size = len(data)
    packets = []
    at = 0
    while at < size:
        if at + 8 > size or data[at] >> 6 != 2:
            return None
        length = 4 * ((data[at + 2] << 8 | data[at + 3]) + 1)
        if length < 8 or at + length > size:
            return None
        packets.append((data[at + 1], data[at] & 0x1F, at, length))
        at += length
    return packets if packets else None
