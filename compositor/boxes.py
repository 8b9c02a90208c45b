"""Pieces of files of the ISO base media family: boxes, and the codec configurations that go into them.

Sources: ISO/IEC 14496-12 (boxes), 14496-14 (esds), 14496-15 (avcC), the AV1, VP9 and Opus bindings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


def box(kind: bytes, *parts: bytes) -> bytes:
    """Return a box: length, four-letter kind, content."""
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """Return a box with version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def nal_units(annex_b: bytes) -> Iterator[bytes]:
    """Yield the NAL units of an Annex B byte stream (H.264, annex B), start codes and padding left away."""
    start = annex_b.find(b"\x00\x00\x01")
    while start >= 0:
        begin = start + 3
        start = annex_b.find(b"\x00\x00\x01", begin)
        unit = annex_b[begin : start if start >= 0 else len(annex_b)].rstrip(b"\x00")
        if unit:
            yield unit


def length_prefixed(annex_b: bytes) -> bytes:
    """Turn Annex B into 4-byte length prefixes, as MP4 wants it."""
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in nal_units(annex_b))


def avc_config(annex_b: bytes) -> bytes | None:
    """Build avcC from the SPS and PPS in an Annex B stream; None when one is missing (14496-15, 5.3.3.1)."""
    sps = [unit for unit in nal_units(annex_b) if unit[0] & 31 == 7 and len(unit) >= 4]
    pps = [unit for unit in nal_units(annex_b) if unit[0] & 31 == 8]
    if not sps or not pps:
        return None
    first = sps[0]
    out = bytes([1, first[1], first[2], first[3], 0xFF, 0xE0 | len(sps)])
    out += b"".join(struct.pack(">H", len(unit)) + unit for unit in sps)
    out += bytes([len(pps)]) + b"".join(struct.pack(">H", len(unit)) + unit for unit in pps)
    if first[1] in (100, 110, 122, 144):  # high profiles add chroma format and bit depths: 4:2:0, 8 bit
        out += bytes([0xFC | 1, 0xF8, 0xF8, 0])
    return out


def _descriptor(tag: int, content: bytes) -> bytes:
    return bytes([tag, 0x80, 0x80, 0x80, len(content)]) + content


def esds(config: bytes, bitrate_bps: int) -> bytes:
    """Describe an AAC stream by its AudioSpecificConfig (14496-1, 7.2.6)."""
    specific = _descriptor(5, config)
    decoder = struct.pack(">BB3sII", 0x40, 0x15, b"\x00\x18\x00", bitrate_bps, bitrate_bps) + specific
    stream = struct.pack(">HB", 1, 0) + _descriptor(4, decoder) + _descriptor(6, b"\x02")
    return full_box(b"esds", 0, 0, _descriptor(3, stream))


def opus_head(channels: int, pre_skip: int) -> bytes:
    """Return an OpusHead for mono or stereo (RFC 7845, 5.1), as Matroska's CodecPrivate."""
    return b"OpusHead" + struct.pack("<BBHIhB", 1, channels, pre_skip, 48_000, 0, 0)


def dops(channels: int, pre_skip: int) -> bytes:
    """Return the content of dOps: the same as OpusHead, big endian, version 0."""
    return struct.pack(">BBHIhB", 0, channels, pre_skip, 48_000, 0, 0)


def vp9_config() -> bytes:
    """Return vpcC's content for profile 0, 8 bit 4:2:0, BT.601 (VP Codec ISO Media File Format Binding)."""
    return struct.pack(">IBBBBBBH", 1 << 24, 0, 40, 8 << 4 | 1 << 1, 1, 1, 6, 0)


def av1_config(temporal_unit: bytes) -> bytes | None:
    """Build av1C from the sequence header in front of a keyframe (AV1-ISOBMFF 2.3); None without one."""
    for kind, whole, payload in _obus(temporal_unit):
        if kind == 1 and len(payload) >= 3:
            profile = payload[0] >> 5
            level, tier = _av1_level(payload)
            return bytes([0x81, profile << 5 | level, tier << 7 | 0b0001100, 0]) + whole
    return None


def _av1_level(payload: bytes) -> tuple[int, int]:
    """Read seq_level_idx and tier of operating point 0 from a sequence header (AV1 5.5.1)."""
    bits = int.from_bytes(payload[:8].ljust(8, b"\x00"), "big")

    def take(position: int, count: int) -> int:
        return bits >> (64 - position - count) & (1 << count) - 1

    if take(4, 1):  # reduced_still_picture_header
        return take(5, 5), 0
    if take(5, 1):  # timing info: rare in real-time streams; say a level that fits 1080p
        return 8, 0
    level = take(6 + 1 + 5 + 12, 5)
    return level, take(6 + 1 + 5 + 12 + 5, 1) if level > 7 else 0


def _obus(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (type, whole OBU, payload) of OBUs that carry sizes (AV1 5.3)."""
    offset = 0
    while offset < len(data):
        header = data[offset]
        if not header & 2:
            return
        position = offset + 1 + (header >> 2 & 1)
        size = shift = 0
        while position < len(data):
            byte = data[position]
            position += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80 or shift > 28:
                break
        if position + size > len(data):
            return
        yield header >> 3 & 15, data[offset : position + size], data[position : position + size]
        offset = position + size
