"""Read and write RTP packets (RFC 3550 section 5.1) with header extensions (RFC 8285).

Nothing here does I/O or keeps state, except ``Unwrapper``. Whatever bytes a peer sends, the only exception
that leaves this module is ``RtpError``, which names the field that is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct

MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
RID = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
REPAIRED_RID = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id"
AUDIO_LEVEL = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
VIDEO_ORIENTATION = "urn:3gpp:video-orientation"
ABS_SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
TRANSPORT_CC = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"

HEADER_SIZE = 12
_HEADER = Struct(">BBHII")
_ONE_BYTE_PROFILE = 0xBEDE
_TWO_BYTE_PROFILE = 0x1000  # the low four bits are "appbits" (RFC 8285 section 4.3)


class RtpError(ValueError):
    """A packet that is not what it says: ``field`` names the part that is wrong, ``detail`` says how."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


def is_rtcp(packet: bytes | memoryview) -> bool:
    """Tell RTCP from RTP on one port: second byte 192 … 223 (RFC 5761 section 4)."""
    return len(packet) >= 2 and 192 <= packet[1] <= 223


def sequence_after(first: int, second: int, bits: int = 16) -> int:
    """Return ``second - first`` on the circle of ``bits`` bits, from -2^(bits-1) to 2^(bits-1) - 1."""
    half = 1 << bits - 1
    return (second - first + half & (half << 1) - 1) - half


class Unwrapper:
    """Turn counters of 16 or 32 bits that roll over into ones that never do.

    A value is taken to lie within half a circle of the one before; going backwards (reordering) is allowed.
    """

    def __init__(self, bits: int = 16) -> None:
        self._bits = bits
        self._last: int | None = None

    def unwrap(self, value: int) -> int:
        """Return the extended value; the first one keeps its own value."""
        if self._last is None:
            self._last = value
        else:
            self._last += sequence_after(self._last & (1 << self._bits) - 1, value, self._bits)
        return self._last


@dataclass(slots=True)
class RtpPacket:
    """One RTP packet. ``payload`` excludes padding; a padding probe has an empty payload."""

    payload_type: int
    """0 … 127."""
    sequence_number: int
    """0 … 65535."""
    timestamp: int
    """32 bits of media time."""
    ssrc: int
    payload: bytes = b""
    marker: bool = False
    csrcs: tuple[int, ...] = ()
    extensions: dict[int, bytes] = field(default_factory=dict)
    """Id to value. One-byte form: ids 1 … 14, 1 … 16 bytes; two-byte form: 1 … 255, 0 … 255 bytes."""
    padding_size: int = 0
    """Bytes of padding, the count byte included; 0 … 255."""
    other_extension: tuple[int, bytes] | None = None
    """Profile and data of a header extension that RFC 8285 does not define, kept as it was."""

    @classmethod
    def parse(cls, data: bytes | memoryview) -> RtpPacket:
        """Parse one whole packet.

        Raises RtpError: ``header``, ``version``, ``csrcs``, ``extension`` or ``padding``.
        """
        size = len(data)
        if size < HEADER_SIZE:
            raise RtpError("header", f"{size} of {HEADER_SIZE} bytes")
        first, second, sequence, timestamp, ssrc = _HEADER.unpack_from(data)
        if first >> 6 != 2:
            raise RtpError("version", f"{first >> 6}, not 2")
        offset = HEADER_SIZE + 4 * (first & 0x0F)
        csrcs: tuple[int, ...] = ()
        if offset > HEADER_SIZE:
            if offset > size:
                raise RtpError("csrcs", f"{first & 0x0F} announced, {size - HEADER_SIZE} bytes left")
            csrcs = Struct(f">{first & 0x0F}I").unpack_from(data, HEADER_SIZE)
        extensions: dict[int, bytes] = {}
        other: tuple[int, bytes] | None = None
        if first & 0x10:
            if offset + 4 > size:
                raise RtpError("extension", f"header cut at {size - offset} of 4 bytes")
            profile = data[offset] << 8 | data[offset + 1]
            end = offset + 4 + 4 * (data[offset + 2] << 8 | data[offset + 3])
            if end > size:
                raise RtpError("extension", f"{end - offset - 4} bytes announced, {size - offset - 4} left")
            block = bytes(data[offset + 4 : end])
            if profile == _ONE_BYTE_PROFILE:
                extensions = _parse_one_byte(block)
            elif profile & 0xFFF0 == _TWO_BYTE_PROFILE:
                extensions = _parse_two_byte(block)
            else:
                other = (profile, block)
            offset = end
        padding = 0
        if first & 0x20:
            padding = data[size - 1] if offset < size else 0
            if not 0 < padding <= size - offset:
                raise RtpError("padding", f"{padding} bytes announced, {size - offset} left")
        return cls(
            payload_type=second & 0x7F,
            sequence_number=sequence,
            timestamp=timestamp,
            ssrc=ssrc,
            payload=bytes(data[offset : size - padding]),
            marker=second >= 0x80,
            csrcs=csrcs,
            extensions=extensions,
            padding_size=padding,
            other_extension=other,
        )

    def build(self) -> bytes:
        """Return the packet's bytes. Raises RtpError when a value does not fit its field."""
        if not 0 <= self.payload_type <= 127:
            raise RtpError("payload_type", f"{self.payload_type} does not fit 7 bits")
        if len(self.csrcs) > 15:
            raise RtpError("csrcs", f"{len(self.csrcs)}, at most 15")
        if not 0 <= self.padding_size <= 255:
            raise RtpError("padding", f"{self.padding_size} does not fit 8 bits")
        extension = self._build_extension()
        first = 0x80 | len(self.csrcs) | (0x10 if extension else 0) | (0x20 if self.padding_size else 0)
        second = self.payload_type | (0x80 if self.marker else 0)
        header = _HEADER.pack(
            first,
            second,
            self.sequence_number & 0xFFFF,
            self.timestamp & 0xFFFFFFFF,
            self.ssrc & 0xFFFFFFFF,
        )
        csrcs = b"".join((csrc & 0xFFFFFFFF).to_bytes(4, "big") for csrc in self.csrcs)
        padding = bytes(self.padding_size - 1) + bytes((self.padding_size,)) if self.padding_size else b""
        return header + csrcs + extension + self.payload + padding

    def _build_extension(self) -> bytes:
        if self.other_extension is not None:
            if self.extensions:
                raise RtpError("extension", "RFC 8285 elements and another profile in one packet")
            profile, block = self.other_extension
        elif not self.extensions:
            return b""
        elif all(0 < key < 15 and 0 < len(value) <= 16 for key, value in self.extensions.items()):
            profile = _ONE_BYTE_PROFILE
            block = b"".join(
                bytes((key << 4 | len(value) - 1,)) + value for key, value in self.extensions.items()
            )
        else:
            profile = _TWO_BYTE_PROFILE
            for key, value in self.extensions.items():
                if not 0 < key <= 255 or len(value) > 255:
                    raise RtpError("extension", f"id {key} with {len(value)} bytes fits neither form")
            block = b"".join(bytes((key, len(value))) + value for key, value in self.extensions.items())
        block += bytes(-len(block) % 4)
        if len(block) > 4 * 0xFFFF:
            raise RtpError("extension", f"{len(block)} bytes")
        return profile.to_bytes(2, "big") + (len(block) // 4).to_bytes(2, "big") + block


def _parse_one_byte(block: bytes) -> dict[int, bytes]:
    """Parse elements of RFC 8285 section 4.2. Id 0 is padding, id 15 ends the processing."""
    elements: dict[int, bytes] = {}
    offset, size = 0, len(block)
    while offset < size:
        key = block[offset] >> 4
        if key == 0:
            offset += 1
            continue
        if key == 15:
            break
        end = offset + 2 + (block[offset] & 0x0F)
        if end > size:
            raise RtpError("extension", f"element {key} ends {end - size} bytes after the block")
        elements[key] = block[offset + 1 : end]
        offset = end
    return elements


def _parse_two_byte(block: bytes) -> dict[int, bytes]:
    """Parse elements of RFC 8285 section 4.3. Id 0 is padding."""
    elements: dict[int, bytes] = {}
    offset, size = 0, len(block)
    while offset < size:
        key = block[offset]
        if key == 0:
            offset += 1
            continue
        end = offset + 2 + block[offset + 1] if offset + 1 < size else size + 1
        if end > size:
            raise RtpError("extension", f"element {key} ends {end - size} bytes after the block")
        elements[key] = block[offset + 2 : end]
        offset = end
    return elements


def video_rotation(value: bytes) -> int:
    """Return clockwise degrees (0, 90, 180, 270) to turn a picture upright, from a CVO extension value.

    3GPP TS 26.114 section 7.4.5: bits ``0000CFRR``; the two low bits count quarter turns counter-clockwise
    that the sender's picture has undergone, so the receiver turns it clockwise as often. An empty value: 0.
    """
    return 90 * (value[0] & 0x03) if value else 0


def audio_level(value: bytes) -> tuple[int, bool]:
    """Return level in -dBov (0 loudest … 127 silence) and the voice flag (RFC 6464). Empty: (127, False)."""
    return (value[0] & 0x7F, value[0] >= 0x80) if value else (127, False)
