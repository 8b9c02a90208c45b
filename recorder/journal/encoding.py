"""Records as bytes: what the plain text of a journal chunk is.

A chunk is a sequence of items; a chunk can be read alone. All integers big-endian::

    item:   type u8 | length u32 | value (length)
    type:   bit 7 set: critical, a reader that does not know the type must refuse it by name
            bit 7 clear: a reader that does not know it skips it

    0x81 SESSION   JSON {at_ns, part, info}
    0x82 TRACK     JSON {at_ns, info}
    0x83 RTP       base ns u64 | count u32 | count × (track u16 | arrival - base u32 | size u16) | packets
    0x84 RTCP      the same, one compound packet each
    0x05 EVENT     JSON {at_ns, event}
    0x06 CLOCK     at ns u64 | UTC ns u64 | offset ns i64 | stratum u8 | trusted u8 | source UTF-8
    0x07 GAP       track u16 | from ns u64 | to ns u64 | packets u32 | reason UTF-8
    0x88 END       JSON {at_ns, final, reason}
    0x09 HEAD      items SESSION, first CLOCK, TRACKs so far: begins each segment but a part's first

Packets are kept in batches: the table costs 8 bytes a packet and one call, whatever their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from struct import Struct, error
from typing import Any

from recorder.records import (
    ClockRecord,
    EndRecord,
    EventRecord,
    GapRecord,
    PacketBatch,
    Queued,
    Record,
    RtcpRecord,
    RtpRecord,
    SessionRecord,
    TrackInfo,
    TrackRecord,
)

CRITICAL = 0x80
SESSION, TRACK, RTP, RTCP, EVENT, CLOCK, GAP, END = 0x81, 0x82, 0x83, 0x84, 0x05, 0x06, 0x07, 0x88
HEAD = 0x09
_ITEM = Struct(">BI")
_BATCH = Struct(">QI")
_ENTRY = Struct(">HIH")
_CLOCK = Struct(">QQqBB")
_GAP = Struct(">HQQI")
MAX_PACKET = 0xFFFF


class JournalError(Exception):
    """The caller asked for what a journal cannot do, or a journal holds what this version cannot read."""


def record_time(record: Queued) -> int:
    """Return the monotonic ns at which a record was made (a gap: when it ended; a batch: its latest)."""
    if isinstance(record, PacketBatch):
        return record.latest_ns
    if isinstance(record, RtpRecord | RtcpRecord):
        return record.arrival_ns
    return record.to_ns if isinstance(record, GapRecord) else record.at_ns


def encode(records: Sequence[Queued]) -> bytes:
    """Return the items of ``records``, in order; consecutive packets of a kind share an item.

    Raises JournalError for a packet over 65,535 bytes or a track number outside 16 bits.
    """
    parts: list[bytes] = []
    size = len(records)
    index = 0
    while index < size:
        record = records[index]
        kind = type(record)
        if kind is RtpRecord or kind is RtcpRecord:
            end = index + 1
            while end < size and type(records[end]) is kind:
                end += 1
            parts.extend(_encode_packets(RTP if kind is RtpRecord else RTCP, records[index:end]))
            index = end
            continue
        index += 1
        if isinstance(record, PacketBatch):
            parts.append(record.items)
            continue
        try:
            number, value = _encode_one(record)
        except error as reason:
            raise JournalError(f"{kind.__name__}: {reason}") from None
        parts.append(_ITEM.pack(number, len(value)))
        parts.append(value)
    return b"".join(parts)


def encode_head(records: Sequence[Record]) -> bytes:
    """Return the item that says at a segment's begin what was said before it."""
    inner = encode(records)
    return _ITEM.pack(HEAD, len(inner)) + inner


def decode_head(chunk: bytes) -> list[Record]:
    """Return what a segment's first chunk repeats; nothing if it repeats nothing.

    Raises JournalError as ``decode``.
    """
    if len(chunk) < _ITEM.size:
        return []
    number, length = _ITEM.unpack_from(chunk)
    return list(decode(chunk[_ITEM.size : _ITEM.size + length])) if number == HEAD else []


def decode(chunk: bytes) -> Iterator[Record]:
    """Yield the records of a chunk's plain text; what a head repeats is not among them.

    Raises JournalError for an unknown critical type (by its number) and for items that do not add up: an
    authenticated chunk was written so, hence by another version or a broken writer.
    """
    offset, size = 0, len(chunk)
    while offset < size:
        if offset + _ITEM.size > size:
            raise JournalError(f"item header cut off at byte {offset} of a chunk")
        number, length = _ITEM.unpack_from(chunk, offset)
        start, offset = offset + _ITEM.size, offset + _ITEM.size + length
        if offset > size:
            raise JournalError(f"item 0x{number:02x} ends {offset - size} bytes after its chunk")
        try:
            if number in (RTP, RTCP):
                yield from _decode_packets(number, chunk, start, offset)
            else:
                record = _decode_one(number, chunk[start:offset])
                if record is not None:
                    yield record
        except (KeyError, TypeError, ValueError, error) as reason:
            raise JournalError(f"item 0x{number:02x}: {reason}") from None


def _encode_packets(number: int, records: Sequence[Any]) -> Iterator[bytes]:
    """Yield the parts of one or more batches; a batch spans less than 4.2 s, the reach of 32 bits."""
    start, size = 0, len(records)
    while start < size:
        low = high = records[start].arrival_ns
        end = start + 1
        while end < size:
            arrival = records[end].arrival_ns
            low_after, high_after = min(low, arrival), max(high, arrival)
            if high_after - low_after > 0xFFFFFFFF:
                break
            low, high = low_after, high_after
            end += 1
        packets = [record.packet for record in records[start:end]]
        numbers: list[int] = []
        for record in records[start:end]:
            numbers += (record.track, record.arrival_ns - low, len(record.packet))
        try:
            table = Struct(">" + "HIH" * len(packets)).pack(*numbers)
        except error as reason:
            raise JournalError(f"packet that does not fit a batch: {reason}") from None
        length = _BATCH.size + len(table) + sum(map(len, packets))
        yield _ITEM.pack(number, length)
        yield _BATCH.pack(low, len(packets))
        yield table
        yield from packets
        start = end


def _decode_packets(number: int, chunk: bytes, start: int, end: int) -> Iterator[RtpRecord | RtcpRecord]:
    kind = RtpRecord if number == RTP else RtcpRecord
    base, count = _BATCH.unpack_from(chunk, start)
    table = start + _BATCH.size
    offset = table + count * _ENTRY.size
    if offset > end:
        raise ValueError(f"table of {count} packets cut off")
    for track, after, size in _ENTRY.iter_unpack(chunk[table:offset]):
        if offset + size > end:
            raise ValueError("packets cut off")
        yield kind(track, base + after, chunk[offset : offset + size])
        offset += size
    if offset != end:
        raise ValueError(f"{end - offset} bytes left over")


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as reason:
        raise JournalError(f"record that is no JSON: {reason}") from None


def _encode_one(record: Record) -> tuple[int, bytes]:
    match record:
        case SessionRecord():
            return SESSION, _json({"at_ns": record.at_ns, "part": record.part, "info": record.info})
        case TrackRecord():
            return TRACK, _json({"at_ns": record.at_ns, "info": asdict(record.info)})
        case EventRecord():
            return EVENT, _json({"at_ns": record.at_ns, "event": record.event})
        case EndRecord():
            return END, _json({"at_ns": record.at_ns, "final": record.final, "reason": record.reason})
        case ClockRecord():
            trusted = record.trust == "trusted"
            head = _CLOCK.pack(record.at_ns, record.utc_ns, record.offset_ns, record.stratum & 0xFF, trusted)
            return CLOCK, head + record.source.encode()
        case GapRecord():
            head = _GAP.pack(record.track, record.from_ns, record.to_ns, min(record.packets, 0xFFFFFFFF))
            return GAP, head + record.reason.encode()
    raise JournalError(f"{type(record).__name__} is no record")


def _decode_one(number: int, value: bytes) -> Record | None:
    if number == CLOCK:
        at_ns, utc_ns, offset_ns, stratum, trusted = _CLOCK.unpack_from(value)
        source = value[_CLOCK.size :].decode()
        return ClockRecord(at_ns, utc_ns, offset_ns, source, stratum, "trusted" if trusted else "degraded")
    if number == GAP:
        track, from_ns, to_ns, packets = _GAP.unpack_from(value)
        return GapRecord(track, from_ns, to_ns, packets, value[_GAP.size :].decode())
    if number not in (SESSION, TRACK, EVENT, END):
        if number & CRITICAL:
            raise JournalError(f"critical record type 0x{number:02x} is unknown to this version")
        return None
    fields = json.loads(value)
    if number == SESSION:
        return SessionRecord(fields["at_ns"], fields["part"], fields["info"])
    if number == TRACK:
        return TrackRecord(fields["at_ns"], TrackInfo(**fields["info"]))
    if number == EVENT:
        return EventRecord(fields["at_ns"], fields["event"])
    return EndRecord(fields["at_ns"], fields["final"], fields["reason"])
