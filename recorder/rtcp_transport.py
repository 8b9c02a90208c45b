"""Transport-wide congestion feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01), section 3.1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from recorder.rtp import RtpError

TICK_NS = 250_000
"""Unit of arrival deltas."""
_REFERENCE_TICKS = 256  # the reference time counts 64 ms
_NOT_RECEIVED, _SMALL, _LARGE = 0, 1, 2
_MAX_STATUSES = 0xFFFF
_HEADER_SIZE = 16


@dataclass(frozen=True, slots=True)
class TransportFeedback:
    """When each packet of a range of transport sequence numbers arrived."""

    sender_ssrc: int
    media_ssrc: int
    base_sequence: int
    """16 bits, number of the first status."""
    feedback_count: int
    """8 bits, counts feedback packets."""
    reference_time: int
    """Signed 24 bits, in 64 ms."""
    deltas: tuple[int | None, ...]
    """One per number from the base: ticks of 250 µs since the one received before (the first: since the
    reference time), signed 16 bits; None for packets that did not arrive."""

    def arrivals_ns(self) -> list[tuple[int, int | None]]:
        """Return (sequence number, arrival) pairs; arrivals lie on the receiver's own clock, in ns."""
        ticks = self.reference_time * _REFERENCE_TICKS
        arrivals: list[tuple[int, int | None]] = []
        for index, delta in enumerate(self.deltas):
            if delta is not None:
                ticks += delta
            number = self.base_sequence + index & 0xFFFF
            arrivals.append((number, None if delta is None else ticks * TICK_NS))
        return arrivals

    @classmethod
    def from_arrivals(
        cls,
        sender_ssrc: int,
        media_ssrc: int,
        feedback_count: int,
        arrivals: Iterable[tuple[int, int]],
    ) -> list[TransportFeedback]:
        """Make the feedback packets for received packets.

        ``arrivals``: (extended sequence number, arrival ns), each number once; any order. Where a delta does
        not fit 16 bits (8 s) or a packet would get too long, another is begun; counts go up by one each.
        """
        feedbacks: list[TransportFeedback] = []
        base = next_number = ticks = reference = 0
        deltas: list[int | None] = []

        def close() -> None:
            if deltas:
                count = feedback_count + len(feedbacks) & 0xFF
                feedbacks.append(
                    cls(sender_ssrc, media_ssrc, base & 0xFFFF, count, _signed_24(reference), tuple(deltas))
                )

        for number, arrival_ns in sorted(arrivals):
            now = arrival_ns // TICK_NS
            missing = number - next_number
            if not deltas or missing + len(deltas) >= 1000 or not -0x8000 <= now - ticks <= 0x7FFF:
                close()
                reference = now // _REFERENCE_TICKS
                base, deltas, ticks, missing = number, [], reference * _REFERENCE_TICKS, 0
            deltas.extend([None] * missing)
            deltas.append(now - ticks)
            ticks, next_number = now, number + 1
        close()
        return feedbacks

    def build_body(self) -> bytes:
        """Return what follows the RTCP header, padded to words."""
        if not 0 < len(self.deltas) <= _MAX_STATUSES:
            raise RtpError("transport_cc", f"{len(self.deltas)} statuses")
        symbols: list[int] = []
        encoded = bytearray()
        for delta in self.deltas:
            if delta is None:
                symbols.append(_NOT_RECEIVED)
            elif 0 <= delta <= 0xFF:
                symbols.append(_SMALL)
                encoded.append(delta)
            elif -0x8000 <= delta <= 0x7FFF:
                symbols.append(_LARGE)
                encoded += (delta & 0xFFFF).to_bytes(2, "big")
            else:
                raise RtpError("transport_cc", f"delta of {delta} ticks does not fit 16 bits")
        body = (
            self.sender_ssrc.to_bytes(4, "big")
            + self.media_ssrc.to_bytes(4, "big")
            + self.base_sequence.to_bytes(2, "big")
            + len(self.deltas).to_bytes(2, "big")
            + (self.reference_time & 0xFFFFFF).to_bytes(3, "big")
            + bytes((self.feedback_count & 0xFF,))
            + b"".join(chunk.to_bytes(2, "big") for chunk in _chunks(symbols))
            + bytes(encoded)
        )
        return body + bytes(-len(body) % 4)

    def build(self) -> bytes:
        """Return the packet's bytes, header included (format 15 of packet type 205)."""
        body = self.build_body()
        return bytes((0x8F, 205)) + (len(body) // 4).to_bytes(2, "big") + body

    @classmethod
    def parse_body(cls, body: bytes) -> TransportFeedback:
        """Parse what follows the RTCP header. Raises RtpError(``transport_cc``)."""
        if len(body) < _HEADER_SIZE:
            raise RtpError("transport_cc", f"{len(body)} of {_HEADER_SIZE} bytes")
        count = int.from_bytes(body[10:12], "big")
        symbols: list[int] = []
        offset = _HEADER_SIZE
        while len(symbols) < count:
            if offset + 2 > len(body):
                raise RtpError("transport_cc", f"statuses of {count - len(symbols)} packets missing")
            chunk = body[offset] << 8 | body[offset + 1]
            offset += 2
            if chunk < 0x8000:
                symbols += [chunk >> 13] * min(chunk & 0x1FFF, count - len(symbols))
                if not chunk & 0x1FFF:
                    raise RtpError("transport_cc", "run of length 0")
            elif chunk & 0x4000:
                symbols += [chunk >> shift & 3 for shift in range(12, -1, -2)]
            else:
                symbols += [chunk >> shift & 1 for shift in range(13, -1, -1)]
        deltas: list[int | None] = []
        for symbol in symbols[:count]:
            size = symbol  # a small delta has one byte, a large one two
            if symbol == 3:
                raise RtpError("transport_cc", "reserved status 3")
            if offset + size > len(body):
                raise RtpError("transport_cc", "deltas cut off")
            delta = int.from_bytes(body[offset : offset + size], "big", signed=size == 2)
            deltas.append(delta if size else None)
            offset += size
        return cls(
            sender_ssrc=int.from_bytes(body[:4], "big"),
            media_ssrc=int.from_bytes(body[4:8], "big"),
            base_sequence=int.from_bytes(body[8:10], "big"),
            feedback_count=body[15],
            reference_time=_signed_24(int.from_bytes(body[12:15], "big")),
            deltas=tuple(deltas),
        )


def _signed_24(value: int) -> int:
    return (value + 0x800000 & 0xFFFFFF) - 0x800000


def _chunks(symbols: list[int]) -> list[int]:
    """Pack statuses: a run where it saves space, else 14 one-bit or 7 two-bit statuses a chunk."""
    chunks: list[int] = []
    index, size = 0, len(symbols)
    while index < size:
        run = 1
        while index + run < size and run < 0x1FFF and symbols[index + run] == symbols[index]:
            run += 1
        fourteen = symbols[index : index + 14]
        if run >= 14 or (run >= 7 and _LARGE in fourteen) or run == size - index:
            chunks.append(symbols[index] << 13 | run)
            index += run
        elif _LARGE not in fourteen:
            chunks.append(0x8000 | sum(symbol << 13 - at for at, symbol in enumerate(fourteen)))
            index += 14
        else:
            seven = symbols[index : index + 7]
            chunks.append(0xC000 | sum(symbol << 12 - 2 * at for at, symbol in enumerate(seven)))
            index += 7
    return chunks
