"""SRTCP both ways, reports for the tap, and transport-wide congestion feedback."""

from __future__ import annotations

import struct
import time

import pytest

from mediaserver.forwarder import Profile, Rtcp
from tests.forwarder.ends import World, rtp
from tests.forwarder.test_resending import nack


def sender_report(ssrc: int, packets: int = 1) -> bytes:
    return struct.pack("!BBHIQIII", 0x80, 200, 6, ssrc, 1 << 60, 12345, packets, 99)


def description(ssrc: int) -> bytes:
    return struct.pack("!BBHIBB4sH", 0x81, 202, 3, ssrc, 1, 4, b"name", 0)


def feedback(statuses: list[int], base: int = 0) -> bytes:
    """Build transport-cc feedback of received (1) and lost (0) packets, run by run."""
    chunks = b""
    at = 0
    while at < len(statuses):
        run = 1
        while at + run < len(statuses) and statuses[at + run] == statuses[at]:
            run += 1
        chunks += struct.pack("!H", statuses[at] << 13 | run)
        at += run
    body = struct.pack("!HHI", base, len(statuses), 0) + chunks + bytes(sum(statuses))
    body += bytes(-len(body) % 4)
    return struct.pack("!BBHII", 0x8F, 205, 2 + len(body) // 4, 5, 6) + body


@pytest.mark.parametrize("profile", list(Profile))
def test_rtcp_comes_up_decrypted_and_goes_out_encrypted(world: World, profile: Profile) -> None:
    end = world.end(profile)
    compounds = [sender_report(7, i) + description(7) for i in range(5)]
    before = time.monotonic_ns()
    for compound in compounds:
        end.send_rtcp(compound)
    events = world.take(Rtcp)
    assert [event.data for event in events if isinstance(event, Rtcp)] == compounds
    for event in events:
        assert isinstance(event, Rtcp)
        assert event.peer == end.peer
        assert before - 1_000_000 <= event.arrival_ns <= time.monotonic_ns()
    for compound in compounds:
        assert world.forwarder.send_rtcp(end.peer, compound)
    assert end.receive_rtcp() == compounds


def test_rtcp_to_a_peer_without_keys_or_address(world: World) -> None:
    end = world.end(ready=False)
    assert not world.forwarder.send_rtcp(end.peer, sender_report(1))
    world.forwarder.bind(end.peer, end.address)
    assert not world.forwarder.send_rtcp(end.peer, sender_report(1))
    world.forwarder.set_keys(end.peer, *end.keys())
    assert world.forwarder.send_rtcp(end.peer, sender_report(1))
    assert end.receive_rtcp() == [sender_report(1)]


def test_reports_of_tapped_streams_are_tapped(world: World) -> None:
    end = world.end()
    world.stream(end, 7, track=4)
    world.stream(end, 8, track=5)
    world.stream(end, 9)
    both = sender_report(7) + sender_report(8) + description(7)
    receiver = struct.pack("!BBHI", 0x80, 201, 1, 7)
    for compound in (both, sender_report(9), receiver, sender_report(1234)):
        end.send_rtcp(compound)
    world.settle()
    tapped = world.forwarder.take_tapped()
    assert [(track, data, is_rtcp) for track, _, data, is_rtcp in tapped] == [
        (4, both, True),
        (5, both, True),
    ]
    assert len(world.take(Rtcp)) == 3, "a receiver report alone does not come up"


def test_malformed_compounds_are_counted(world: World) -> None:
    end = world.end()
    for bad in (
        b"\x80\xc8\x00\x06" + bytes(8),  # longer than the packet
        sender_report(1) + b"\x80\xca\xff\xff" + bytes(4),
        sender_report(1) + b"\x00\xca\x00\x01" + bytes(4),  # version 0
        sender_report(1) + b"\x80\xca\x00\x00",  # no SSRC
    ):
        end.send_rtcp(bad)
    end.send_rtcp(sender_report(1))
    assert len(world.take(Rtcp)) == 1
    assert world.forwarder.peer_stats(end.peer).malformed == 4


def test_rtcp_senders_are_bounded(world: World) -> None:
    end = world.end()
    for ssrc in range(70):
        end.send_rtcp(sender_report(ssrc))
    end.send_rtcp(sender_report(3))
    assert len(world.take(Rtcp)) == 65
    assert world.forwarder.peer_stats(end.peer).ssrc_refused == 6


def test_feedback_of_subscribers_is_counted_and_not_delivered(world: World) -> None:
    end = world.end()
    end.send_rtcp(feedback([1] * 10 + [0] * 3 + [1] * 2))
    vector = struct.pack("!HHIHH", 0, 9, 0, 0xC000 | 1 << 12 | 2 << 8, 0x8000 | 1 << 13)
    end.send_rtcp(struct.pack("!BBHII", 0x8F, 205, 5, 5, 6) + vector)
    assert not world.take(Rtcp)
    stats = world.forwarder.peer_stats(end.peer)
    assert (stats.transport_cc_reported, stats.transport_cc_lost) == (15 + 9, 3 + 5 + 1)


def test_a_lying_feedback_counts_only_what_it_holds(world: World) -> None:
    end = world.end()
    body = struct.pack("!HHI", 0, 65535, 0) + struct.pack("!HH", 0x1FFF, 0x1FFF)
    end.send_rtcp(struct.pack("!BBHII", 0x8F, 205, 2 + len(body) // 4, 5, 6) + body)
    end.send_rtcp(struct.pack("!BBHII", 0x8F, 205, 2, 5, 6))
    assert not world.take(Rtcp)
    stats = world.forwarder.peer_stats(end.peer)
    assert (stats.transport_cc_reported, stats.transport_cc_lost) == (2 * 8191, 2 * 8191)


def test_nacks_that_are_not_ours_come_up(world: World) -> None:
    end = world.end()
    end.send_rtcp(nack(0x4444, (1, 0)))
    assert len(world.take(Rtcp)) == 1


def read_feedback(compound: bytes) -> tuple[int, dict[int, int | None]]:
    """Return the packet count and, per number, its time in 250 µs ticks or ``None``; checks all lengths."""
    assert compound[:4] == b"\x80\xc9\x00\x01"
    data = compound[8:]
    first, kind, words = struct.unpack_from("!BBH", data)
    assert (first & 0xDF, kind, 4 * (words + 1)) == (0x8F, 205, len(data))
    base, count, reference_count = struct.unpack_from("!HHI", data, 12)
    at = 20
    symbols: list[int] = []
    while len(symbols) < count:
        (chunk,) = struct.unpack_from("!H", data, at)
        at += 2
        if chunk >> 15 == 0:
            symbols += [chunk >> 13 & 3] * (chunk & 0x1FFF)
        elif chunk >> 14 & 1:
            symbols += [chunk >> (12 - 2 * i) & 3 for i in range(7)]
        else:
            symbols += [chunk >> (13 - i) & 1 for i in range(14)]
    ticks = (reference_count >> 8) * 256
    result: dict[int, int | None] = {}
    for i, symbol in enumerate(symbols[:count]):
        if symbol == 1:
            ticks += data[at]
            at += 1
        elif symbol == 2:
            ticks += struct.unpack_from("!h", data, at)[0]
            at += 2
        result[(base + i) & 0xFFFF] = ticks if symbol else None
    padding = data[-1] if first & 0x20 else 0
    assert at + padding == len(data)
    return reference_count & 0xFF, result


def numbered(i: int, number: int) -> bytes:
    return rtp(i, elements=[(3, struct.pack("!H", number & 0xFFFF))])


def test_feedback_is_built_for_publishers(world: World) -> None:
    end = world.end()
    world.stream(end, track=1)
    world.forwarder.set_feedback(end.peer, 1, sender_ssrc=0xAABB)
    numbers = [65530, 65531, 65534, 65535, 0, 2, 1, 9, *range(10, 40), 60]
    end.send(*(numbered(i, n) for i, n in enumerate(numbers)))
    world.settle()
    tapped = world.forwarder.take_tapped()
    arrivals = {n: arrival // 250_000 for n, (_, arrival, _, _) in zip(numbers, tapped, strict=True)}
    told: dict[int, int | None] = {}
    counts: list[int] = []

    def all_told() -> bool:
        for compound in end.receive_rtcp():
            assert struct.unpack_from("!I", compound, 12) == (0xAABB,)
            count, result = read_feedback(compound)
            counts.append(count)
            told.update({n: ticks for n, ticks in result.items() if ticks is not None or n not in told})
        return sum(ticks is not None for ticks in told.values()) == len(numbers)

    world.wait(all_told)
    assert counts == list(range(len(counts)))
    assert {n: t for n, t in told.items() if t is not None} == {
        n: (ticks & 0xFFFFFF * 256 | ticks % 256) for n, ticks in arrivals.items()
    }
    assert {n for n, t in told.items() if t is None} == {65532, 65533, *range(3, 9), *range(40, 60)}


def test_feedback_after_a_pause_and_after_a_jump(world: World) -> None:
    end = world.end()
    world.stream(end)
    end.send(numbered(0, 0))
    world.settle()
    time.sleep(0.12)  # one delta that needs two bytes, in real time: the clock here is the kernel's
    end.send(numbered(1, 1), numbered(2, 30000))
    world.settle()
    world.forwarder.set_feedback(end.peer, 1)
    world.wait(lambda: world.forwarder.peer_stats(end.peer).feedback_sent >= 2)
    (_, first), (_, second) = (read_feedback(compound) for compound in end.receive_rtcp())
    assert list(first) == [0, 1]
    assert first[0] is not None
    assert first[1] is not None
    assert first[1] - first[0] >= 480
    assert list(second) == [30000]


def test_arrivals_can_be_taken(world: World) -> None:
    end = world.end()
    world.stream(end, track=1)
    end.send(*(numbered(i, 65534 + i) for i in range(5000 // 100)))
    world.settle()
    log = world.forwarder.take_arrivals(end.peer)
    tapped = world.forwarder.take_tapped()
    assert log == [((65534 + i) & 0xFFFF, arrival) for i, (_, arrival, _, _) in enumerate(tapped)]
    assert world.forwarder.take_arrivals(end.peer) == []


def test_the_arrival_log_is_bounded(world: World) -> None:
    end = world.end()
    world.stream(end)
    for at in range(0, 5000, 250):
        end.send(*(numbered(i, i) for i in range(at, at + 250)))
        world.settle()
    log = world.forwarder.take_arrivals(end.peer)
    assert len(log) <= 4096
    assert log[-1][0] == 4999
