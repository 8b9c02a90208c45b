"""Read and write RTCP: reports (RFC 3550 section 6), feedback (RFC 4585, 5104), REMB, transport-wide
feedback.

``parse`` takes a compound packet (RFC 3550) or a reduced-size one (RFC 5506); packets of a type unknown here
come back as ``UnknownRtcp``, so that forwarding them loses nothing. Malformed bytes raise ``RtpError`` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct

from recorder.rtcp_transport import TransportFeedback
from recorder.rtp import RtpError

__all__ = [
    "Bye",
    "FullIntraRequest",
    "Nack",
    "PictureLossIndication",
    "ReceiverReport",
    "Remb",
    "ReportBlock",
    "RtcpPacket",
    "SenderReport",
    "SourceDescription",
    "TransportFeedback",
    "UnknownRtcp",
    "build",
    "ntp_from_utc_ns",
    "parse",
    "utc_ns_from_ntp",
]

SR, RR, SDES, BYE, RTPFB, PSFB = 200, 201, 202, 203, 205, 206
_NACK, _TRANSPORT_CC = 1, 15
_PLI, _FIR, _ALFB = 1, 4, 15
_NTP_EPOCH_S = 2_208_988_800  # seconds from 1900 to 1970 (RFC 5905)

_SENDER_INFO = Struct(">IQIII")
_PAIR = Struct(">II")
_NACK_ITEM = Struct(">HH")


def utc_ns_from_ntp(ntp: int) -> int:
    """Turn a 64-bit NTP time of era 0 into Unix nanoseconds."""
    return ((ntp >> 32) - _NTP_EPOCH_S) * 1_000_000_000 + ((ntp & 0xFFFFFFFF) * 1_000_000_000 >> 32)


def ntp_from_utc_ns(utc_ns: int) -> int:
    """Turn Unix nanoseconds into a 64-bit NTP time."""
    seconds, rest = divmod(utc_ns, 1_000_000_000)
    return (seconds + _NTP_EPOCH_S & 0xFFFFFFFF) << 32 | (rest << 32) // 1_000_000_000


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """What a receiver says of one source (RFC 3550 section 6.4.1)."""

    ssrc: int
    fraction_lost: int
    """Of 256, since the last report."""
    lost: int
    """Cumulative, signed 24 bits; negative with duplicates."""
    highest_sequence: int
    """Extended highest sequence number received, 32 bits."""
    jitter: int
    """In media time."""
    last_sr: int
    """Middle 32 bits of the NTP time of the last sender report; 0 if none came."""
    delay_since_last_sr: int
    """In 1/65536 s."""

    def build(self) -> bytes:
        """Return the 24 bytes of the block."""
        lost = max(-0x800000, min(0x7FFFFF, self.lost)) & 0xFFFFFF
        return (
            self.ssrc.to_bytes(4, "big")
            + bytes((self.fraction_lost & 0xFF,))
            + lost.to_bytes(3, "big")
            + Struct(">IIII").pack(
                self.highest_sequence & 0xFFFFFFFF,
                min(self.jitter, 0xFFFFFFFF),
                self.last_sr & 0xFFFFFFFF,
                min(self.delay_since_last_sr, 0xFFFFFFFF),
            )
        )

    @classmethod
    def parse(cls, data: bytes) -> ReportBlock:
        """Parse 24 bytes."""
        lost = int.from_bytes(data[5:8], "big")
        highest, jitter, last_sr, delay = Struct(">IIII").unpack_from(data, 8)
        return cls(
            ssrc=int.from_bytes(data[:4], "big"),
            fraction_lost=data[4],
            lost=lost - (1 << 24) if lost >= 1 << 23 else lost,
            highest_sequence=highest,
            jitter=jitter,
            last_sr=last_sr,
            delay_since_last_sr=delay,
        )


@dataclass(frozen=True, slots=True)
class SenderReport:
    """SR: the sender's wallclock and media time at one moment, and what it has sent."""

    ssrc: int
    ntp: int
    """64 bits, the sender's own clock: never trusted as time (see compositor/timeline.py)."""
    rtp_timestamp: int
    packets: int
    octets: int
    reports: tuple[ReportBlock, ...] = ()

    def build(self) -> bytes:
        """Return the packet's bytes."""
        info = _SENDER_INFO.pack(
            self.ssrc,
            self.ntp & 0xFFFFFFFFFFFFFFFF,
            self.rtp_timestamp & 0xFFFFFFFF,
            self.packets & 0xFFFFFFFF,
            self.octets & 0xFFFFFFFF,
        )
        return _frame(SR, len(self.reports), info + b"".join(block.build() for block in self.reports))


@dataclass(frozen=True, slots=True)
class ReceiverReport:
    """RR: report blocks of a receiver that sends nothing itself."""

    ssrc: int
    reports: tuple[ReportBlock, ...] = ()

    def build(self) -> bytes:
        """Return the packet's bytes."""
        body = self.ssrc.to_bytes(4, "big") + b"".join(block.build() for block in self.reports)
        return _frame(RR, len(self.reports), body)


@dataclass(frozen=True, slots=True)
class SourceDescription:
    """SDES: for each SSRC its items, type (1 is CNAME) and text as bytes."""

    chunks: tuple[tuple[int, tuple[tuple[int, bytes], ...]], ...]

    @classmethod
    def of_cname(cls, ssrc: int, cname: str) -> SourceDescription:
        """Describe one source by its CNAME."""
        return cls(((ssrc, ((1, cname.encode()),)),))

    def cname(self, ssrc: int) -> str | None:
        """Return the CNAME given for ``ssrc``, bytes outside UTF-8 replaced."""
        for source, items in self.chunks:
            for kind, text in items:
                if source == ssrc and kind == 1:
                    return text.decode(errors="replace")
        return None

    def build(self) -> bytes:
        """Return the packet's bytes."""
        body = b""
        for ssrc, items in self.chunks:
            chunk = ssrc.to_bytes(4, "big")
            for kind, text in items:
                if len(text) > 255:
                    raise RtpError("sdes", f"item {kind} has {len(text)} bytes, at most 255")
                chunk += bytes((kind, len(text))) + text
            body += chunk + bytes(4 - len(chunk) % 4)  # at least one zero ends the list
        return _frame(SDES, len(self.chunks), body)


@dataclass(frozen=True, slots=True)
class Bye:
    """BYE: sources that stop sending, and why."""

    ssrcs: tuple[int, ...]
    reason: bytes = b""

    def build(self) -> bytes:
        """Return the packet's bytes."""
        body = b"".join(ssrc.to_bytes(4, "big") for ssrc in self.ssrcs)
        if self.reason:
            body += bytes((len(self.reason[:255]),)) + self.reason[:255]
            body += bytes(-len(body) % 4)
        return _frame(BYE, len(self.ssrcs), body)


@dataclass(frozen=True, slots=True)
class Nack:
    """Generic NACK (RFC 4585 section 6.2.1): sequence numbers asked for again."""

    sender_ssrc: int
    media_ssrc: int
    lost: tuple[int, ...]
    """Sequence numbers, 16 bits."""

    def build(self) -> bytes:
        """Return the packet's bytes, numbers packed into PID and bit mask in the order given."""
        items: list[list[int]] = []
        for sequence in self.lost:
            ahead = sequence - items[-1][0] & 0xFFFF if items else 0
            if items and 0 < ahead <= 16:
                items[-1][1] |= 1 << ahead - 1
            elif not items or ahead:
                items.append([sequence & 0xFFFF, 0])
        body = b"".join(_NACK_ITEM.pack(pid, mask) for pid, mask in items)
        return _frame(RTPFB, _NACK, _PAIR.pack(self.sender_ssrc, self.media_ssrc) + body)


@dataclass(frozen=True, slots=True)
class PictureLossIndication:
    """PLI (RFC 4585 section 6.3.1): a keyframe is wanted."""

    sender_ssrc: int
    media_ssrc: int

    def build(self) -> bytes:
        """Return the packet's bytes."""
        return _frame(PSFB, _PLI, _PAIR.pack(self.sender_ssrc, self.media_ssrc))


@dataclass(frozen=True, slots=True)
class FullIntraRequest:
    """FIR (RFC 5104 section 4.3.1): for each SSRC the command's sequence number."""

    sender_ssrc: int
    entries: tuple[tuple[int, int], ...]
    """Pairs of SSRC and sequence number (8 bits)."""

    def build(self) -> bytes:
        """Return the packet's bytes."""
        body = b"".join(
            ssrc.to_bytes(4, "big") + bytes((number & 0xFF, 0, 0, 0)) for ssrc, number in self.entries
        )
        return _frame(PSFB, _FIR, _PAIR.pack(self.sender_ssrc, 0) + body)


@dataclass(frozen=True, slots=True)
class Remb:
    """Receiver estimated maximum bitrate (draft-alvestrand-rmcat-remb)."""

    sender_ssrc: int
    bitrate_bps: int
    ssrcs: tuple[int, ...] = ()

    def build(self) -> bytes:
        """Return the packet's bytes; the bitrate keeps its 18 highest bits."""
        exponent = max(0, self.bitrate_bps.bit_length() - 18)
        if exponent > 63 or len(self.ssrcs) > 255:
            raise RtpError("remb", f"{self.bitrate_bps} bit/s for {len(self.ssrcs)} sources")
        value = exponent << 18 | self.bitrate_bps >> exponent
        body = b"REMB" + bytes((len(self.ssrcs),)) + value.to_bytes(3, "big")
        body += b"".join(ssrc.to_bytes(4, "big") for ssrc in self.ssrcs)
        return _frame(PSFB, _ALFB, _PAIR.pack(self.sender_ssrc, 0) + body)


@dataclass(frozen=True, slots=True)
class UnknownRtcp:
    """A packet of a type or format not known here, kept whole."""

    packet_type: int
    count: int
    """Count or format: the low five bits of the first byte."""
    body: bytes

    def build(self) -> bytes:
        """Return the packet's bytes."""
        return _frame(self.packet_type, self.count, self.body)


RtcpPacket = (
    SenderReport
    | ReceiverReport
    | SourceDescription
    | Bye
    | Nack
    | PictureLossIndication
    | FullIntraRequest
    | Remb
    | TransportFeedback
    | UnknownRtcp
)


def build(packets: Iterable[RtcpPacket]) -> bytes:
    """Return a compound packet."""
    return b"".join(packet.build() for packet in packets)


def parse(data: bytes | memoryview) -> list[RtcpPacket]:
    """Parse a compound or reduced-size packet into its parts.

    Raises RtpError naming the field: ``header``, ``version``, ``length``, ``padding``, or a part (``sr`` …).
    """
    data = bytes(data)
    if not data:
        raise RtpError("header", "no bytes")
    packets: list[RtcpPacket] = []
    offset, size = 0, len(data)
    while offset < size:
        if size - offset < 4:
            raise RtpError("header", f"{size - offset} of 4 bytes")
        first, packet_type = data[offset], data[offset + 1]
        if first >> 6 != 2:
            raise RtpError("version", f"{first >> 6}, not 2")
        end = offset + 4 + 4 * (data[offset + 2] << 8 | data[offset + 3])
        if end > size:
            raise RtpError("length", f"{end - offset} bytes announced, {size - offset} left")
        body = data[offset + 4 : end]
        if first & 0x20:
            padding = body[-1] if body else 0
            if not 0 < padding <= len(body) or end != size:
                raise RtpError("padding", f"{padding} bytes announced, {len(body)} left")
            body = body[:-padding]
        packets.append(_parse_body(packet_type, first & 0x1F, body))
        offset = end
    return packets


def _frame(packet_type: int, count: int, body: bytes) -> bytes:
    if count > 31:
        raise RtpError("count", f"{count} does not fit 5 bits")
    if len(body) % 4 or len(body) > 4 * 0xFFFF:
        raise RtpError("length", f"{len(body)} bytes are not up to 65535 words")
    return bytes((0x80 | count, packet_type)) + (len(body) // 4).to_bytes(2, "big") + body


def _parse_body(packet_type: int, count: int, body: bytes) -> RtcpPacket:
    if packet_type == SR:
        _need("sr", body, 24 + 24 * count)
        ssrc, ntp, timestamp, packets, octets = _SENDER_INFO.unpack_from(body)
        return SenderReport(ssrc, ntp, timestamp, packets, octets, _parse_reports(body, 24, count))
    if packet_type == RR:
        _need("rr", body, 4 + 24 * count)
        return ReceiverReport(int.from_bytes(body[:4], "big"), _parse_reports(body, 4, count))
    if packet_type == SDES:
        return _parse_sdes(count, body)
    if packet_type == BYE:
        _need("bye", body, 4 * count)
        reason = body[4 * count :]
        if reason:
            _need("bye", reason, 1 + reason[0])
        return Bye(_parse_words(body[: 4 * count]), reason[1 : 1 + reason[0]] if reason else b"")
    if packet_type == RTPFB and count == _NACK:
        return _parse_nack(body)
    if packet_type == RTPFB and count == _TRANSPORT_CC:
        return TransportFeedback.parse_body(body)
    if packet_type == PSFB and count == _PLI:
        _need("pli", body, 8)
        return PictureLossIndication(*_PAIR.unpack_from(body))
    if packet_type == PSFB and count == _FIR:
        _need("fir", body, 8)
        if len(body) % 8:
            raise RtpError("fir", f"{len(body) - 8} bytes are not whole entries")
        entries = tuple(
            (int.from_bytes(body[at : at + 4], "big"), body[at + 4]) for at in range(8, len(body), 8)
        )
        return FullIntraRequest(int.from_bytes(body[:4], "big"), entries)
    if packet_type == PSFB and count == _ALFB and body[8:12] == b"REMB":
        return _parse_remb(body)
    return UnknownRtcp(packet_type, count, body)


def _need(part: str, body: bytes, size: int) -> None:
    if len(body) < size:
        raise RtpError(part, f"{len(body)} of {size} bytes")


def _parse_words(data: bytes) -> tuple[int, ...]:
    return Struct(f">{len(data) // 4}I").unpack(data[: len(data) // 4 * 4])


def _parse_reports(body: bytes, offset: int, count: int) -> tuple[ReportBlock, ...]:
    return tuple(
        ReportBlock.parse(body[offset + 24 * index : offset + 24 * index + 24]) for index in range(count)
    )


def _parse_sdes(count: int, body: bytes) -> SourceDescription:
    chunks: list[tuple[int, tuple[tuple[int, bytes], ...]]] = []
    offset = 0
    for _ in range(count):
        _need("sdes", body, offset + 4)
        ssrc = int.from_bytes(body[offset : offset + 4], "big")
        offset += 4
        items: list[tuple[int, bytes]] = []
        while True:
            _need("sdes", body, offset + 1)
            kind = body[offset]
            if kind == 0:
                offset += 4 - offset % 4
                break
            _need("sdes", body, offset + 2)
            end = offset + 2 + body[offset + 1]
            _need("sdes", body, end)
            items.append((kind, body[offset + 2 : end]))
            offset = end
        chunks.append((ssrc, tuple(items)))
    return SourceDescription(tuple(chunks))


def _parse_nack(body: bytes) -> Nack:
    _need("nack", body, 8)
    lost: list[int] = []
    for pid, mask in _NACK_ITEM.iter_unpack(body[8:]):
        lost.append(pid)
        lost.extend(pid + 1 + bit & 0xFFFF for bit in range(16) if mask >> bit & 1)
    sender_ssrc, media_ssrc = _PAIR.unpack_from(body)
    return Nack(sender_ssrc, media_ssrc, tuple(lost))


def _parse_remb(body: bytes) -> Remb:
    _need("remb", body, 16)
    _need("remb", body, 16 + 4 * body[12])
    value = int.from_bytes(body[13:16], "big")
    return Remb(
        int.from_bytes(body[:4], "big"),
        (value & 0x3FFFF) << (value >> 18),
        _parse_words(body[16 : 16 + 4 * body[12]]),
    )


def sender_reports(packets: Sequence[RtcpPacket]) -> list[SenderReport]:
    """Return the sender reports among ``packets``."""
    return [packet for packet in packets if isinstance(packet, SenderReport)]
