"""Read the events that the native forwarder queues: each a head, fwd_event_t, and its payload."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from mediaserver.forwarder.interface import (
    Event,
    FeedbackTrouble,
    Gap,
    Keyframe,
    NewSsrc,
    RawDatagram,
    Rtcp,
    Switched,
    TapDropped,
    TapMoved,
)
from mediaserver.forwarder.sockets import unpack_address

EVENT: Final = Struct("IIqqqqIIII32s")


class _EventHead(NamedTuple):
    """fwd_event_t."""

    kind: int
    size: int
    number: int
    other: int
    at_ns: int
    until_ns: int
    ssrc: int
    a: int
    b: int
    socket: int
    name: bytes


def read_events(data: bytes) -> list[Event]:
    """Read what ``fwd_take_events`` gave."""
    events: list[Event] = []
    at = 0
    while at < len(data):
        head = _EventHead._make(EVENT.unpack_from(data, at))
        at += EVENT.size
        events.append(_event(head, data[at : at + head.size]))
        at += (head.size + 7) & ~7
    return events


def _event(head: _EventHead, payload: bytes) -> Event:
    match head.kind:
        case 1:
            address = unpack_address(head.name)
            return RawDatagram(head.number or None, address, head.socket, payload, head.at_ns)
        case 2:
            return Rtcp(head.number, payload, head.at_ns)
        case 3:
            texts = []
            at = 0
            for _ in range(3):
                text = payload[at + 1 : at + 1 + payload[at]]
                texts.append(text.decode("ascii", "replace").rstrip("\0"))
                at += 1 + payload[at]
            mid, rid, repaired_rid = texts
            return NewSsrc(head.number, head.ssrc, head.a, mid, rid, repaired_rid, head.at_ns)
        case 4:
            return Keyframe(head.number, head.a, head.at_ns)
        case 5:
            return Gap(head.number, head.a, head.b, head.at_ns)
        case 6:
            return Switched(head.number, head.other, head.at_ns)
        case 7:
            return TapDropped(head.number, head.other, head.at_ns, head.until_ns)
        case 9:
            return FeedbackTrouble(head.number, head.at_ns)
        case _:
            return TapMoved(head.number, head.other, head.at_ns)
