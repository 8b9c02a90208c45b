"""Frames of lost packets, found again in the packets after them.

A sender that repeats the last frame or two in each packet makes most losses harmless (RFC 2198)::

    sent      A   B+A   C+B   D+C   E+D
    came      A    x     x    D+C   E+D      the frame of C is in D's packet: only B is missing

Opus can repeat the last frame within the bits of the next, coarser (in-band FEC, RFC 6716 section 2.1.7).
Where no copy is, the frame found is then the next one, to be decoded for what it says of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass

from recorder.depacketise import duration_of, parse_red, repeated_by
from recorder.records import TrackInfo
from recorder.rtp import RtpError, RtpPacket, sequence_after

REMEMBERED = 1024
"""Frames, 20 s of them, of which it is known that they are placed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One frame of a packet, on its way to the depacketiser."""

    before: int
    """Media time by which it lies before its packet."""
    payload: bytes
    missing: int
    """Packets lost for good before it."""
    in_band: bool = False
    """``payload`` is of the packet after it, which repeats it inside."""


class Redundancy:
    """What a track's packets say of those that were lost. Packets are taken in order of sending."""

    def __init__(self) -> None:
        self.recovered = 0
        """Lost packets whose frames were found."""
        self.in_band = 0
        """Of these the ones found by in-band FEC."""
        self.malformed = 0
        """Packets and redundant blocks that could not be parsed."""
        self._end: int | None = None
        """Media time (32 bits) at which the last frame ends."""
        self._missing = 0
        self._placed: dict[tuple[int, int], bool] = {}
        """SSRC and media time of the last frames, and whether they were found again. A packet that is resent
        so late that its SSRC has been left and come back must not bring them twice."""

    def begin(self) -> None:
        """Another run of packets begins, which says nothing of the one before."""
        self._end = None

    def take(self, packet: RtpPacket, info: TrackInfo, missing: int) -> list[Piece]:
        """Return the frames that the next packet brings, oldest first, its own last (empty: it has none).

        ``missing``: packets lost before it. As many frames are found again at most, and only such that lie
        whole between the frame before and this packet.
        """
        self._missing += missing
        found: dict[int, bytes] = {}
        if packet.payload_type == info.payload_type:
            own = packet.payload
        elif info.redundancy is None or packet.payload_type != info.redundancy or not packet.payload:
            return []
        else:
            try:
                *copies, primary = parse_red(packet.payload)
            except RtpError:
                self.malformed += 1
                self._missing += 1  # as good as lost; the next packet may have its frame
                return []
            found = {
                copy.offset: copy.data
                for copy in copies
                if copy.data and copy.payload_type == info.payload_type
            }
            own = primary.data if primary.payload_type == info.payload_type else b""
        if self._placed.get((packet.ssrc, packet.timestamp)):
            own = b""  # a copy has its place
        return self._row(self._whole(found, own, packet, info), own, packet, info)

    def _whole(
        self, found: dict[int, bytes], own: bytes, packet: RtpPacket, info: TrackInfo
    ) -> list[tuple[int, bytes]]:
        """Return the copies that lie over nothing else, as (media time before the packet, frame)."""
        row: list[tuple[int, bytes]] = []
        timestamp, end = packet.timestamp, self._end
        if not self._missing or end is None:
            return row
        if inside := repeated_by(info.mime, own):
            found.setdefault(inside, own)
        for before in sorted(found, reverse=True):
            if (packet.ssrc, timestamp - before & 0xFFFFFFFF) in self._placed:
                continue
            try:
                ticks = duration_of(info.mime, found[before])
            except ValueError:  # an RtpError, or no sound
                self.malformed += 1
                continue
            at = timestamp - before & 0xFFFFFFFF
            if sequence_after(end, at, 32) >= 0 and ticks <= before:
                row.append((before, found[before]))
                end = at + ticks & 0xFFFFFFFF
        return row[-self._missing :]

    def _row(
        self, copies: list[tuple[int, bytes]], own: bytes, packet: RtpPacket, info: TrackInfo
    ) -> list[Piece]:
        """Say where something is missing still: where no frame follows on the one before."""
        timestamp = packet.timestamp
        self.recovered += len(copies)
        self.in_band += sum(data is own for _, data in copies)
        left, self._missing = self._missing - len(copies), 0
        frames = [*copies, (0, own)] if own else copies
        if not frames:
            self._missing = left
            return []
        holes = []
        for index, (before, data) in enumerate(frames):
            at = timestamp - before & 0xFFFFFFFF
            self._placed[packet.ssrc, at] = before > 0
            if self._end is None or sequence_after(self._end, at, 32) > 0:
                holes.append(index)
            try:
                self._end = at + duration_of(info.mime, data) & 0xFFFFFFFF
            except ValueError:
                self._end = at  # the depacketiser counts it
        while len(self._placed) > REMEMBERED:
            del self._placed[next(iter(self._placed))]
        missing = dict.fromkeys(holes[:left] or [0], 1)
        missing[min(missing)] += left - len(missing)
        return [
            Piece(before, data, missing.get(index, 0), before > 0 and data is own)
            for index, (before, data) in enumerate(frames)
        ]
