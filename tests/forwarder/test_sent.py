"""What a subscriber's transport-cc feedback and reports say of packets sent to it; filling the line."""

from __future__ import annotations

import random
import struct
import time

import pytest

from mediaserver.forwarder import TRANSPORT_CC, ForwarderError, SendFeedback
from mediaserver.forwarder.sent import BURST_NS, SENT_LOG, SendLog
from recorder import rtcp
from recorder.rtcp_transport import TransportFeedback
from tests.forwarder.ends import SUBSCRIBED, End, Seen, World, rtp, sequences, vp8

MS = 1_000_000


def call(world: World, *, rtx: bool = True, mime: str = "audio/opus") -> tuple[End, End, int]:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher, mime=mime, clock_rate=90000)
    more = {"rtx_ssrc": 0x3333, "rtx_payload_type": 112} if rtx else {}
    return publisher, subscriber, world.route(stream, subscriber, extensions=SUBSCRIBED, **more)


def numbers(packets: list[Seen]) -> list[int]:
    return [int.from_bytes(packet.elements[SUBSCRIBED[TRANSPORT_CC]], "big") for packet in packets]


def tell(world: World, end: End, arrivals: dict[int, int], last: int | None = None) -> SendFeedback:
    """Send feedback of arrivals (number to ms), numbers up to ``last`` being lost; take what it tells."""
    for feedback in TransportFeedback.from_arrivals(5, 6, 0, [(n, at * MS) for n, at in arrivals.items()]):
        more = 0 if last is None else last - max(arrivals)
        told = TransportFeedback(
            5, 6, feedback.base_sequence, 0, feedback.reference_time, (*feedback.deltas, *[None] * more)
        )
        end.send_rtcp(rtcp.build([told]))
    world.settle()
    return world.forwarder.take_feedback(end.peer)


def send_bursts(world: World) -> tuple[End, int, int]:
    """Send three bursts of four packets, 12 ms apart; return who gets them, before and after (monotonic ns).

    What a burst is is told by the time it takes: one that a busy machine draws out is sent to somebody else.
    """
    for _ in range(50):
        publisher, subscriber, _ = call(world)
        before = time.monotonic_ns()
        longest = 0
        for burst in range(3):
            begin = time.monotonic_ns()
            publisher.send(*(rtp(10 * burst + i, payload=bytes(300)) for i in range(4)))
            world.settle()
            longest = max(longest, time.monotonic_ns() - begin)
            time.sleep(0.012)
        if longest < BURST_NS:
            return subscriber, before, time.monotonic_ns()
        subscriber.receive()
    raise AssertionError(f"no burst of four packets took less than {BURST_NS} ns")


def test_bursts_are_told_with_their_times(world: World) -> None:
    subscriber, before, after = send_bursts(world)
    packets = subscriber.receive()
    assert numbers(packets) == list(range(12))
    arrivals = {n: 1000 + 20 * (n // 4) + n % 4 for n in range(12)}
    told = tell(world, subscriber, arrivals)
    size = len(packets[0].data) + 16
    assert (told.sent, told.packets, told.bytes) == (12, 12, 12 * size)
    assert (told.lost, told.lost_bytes, told.dropped) == (0, 0, 0)
    assert told.bytes_sent == 12 * size
    assert [(group.packets, group.bytes) for group in told.groups] == [(4, 4 * size)] * 2
    first, second = told.groups
    assert told.open is not None
    assert (told.open.packets, told.open.first_arrival_ns) == (4, second.first_arrival_ns + 20 * MS)
    assert before <= first.first_sent_ns <= first.last_sent_ns < second.first_sent_ns <= after
    assert second.first_arrival_ns - first.first_arrival_ns == 20 * MS
    assert second.last_arrival_ns - second.first_arrival_ns == 3 * MS
    assert after <= first.told_ns == second.told_ns == told.told_ns
    again = world.forwarder.take_feedback(subscriber.peer)
    assert (again.packets, again.bytes, again.groups, again.sent) == (0, 0, [], 12)


def test_losses_are_told_once_and_taken_back(world: World) -> None:
    publisher, subscriber, _ = call(world)
    publisher.send(*(rtp(i, payload=bytes(100)) for i in range(10)))
    size = len(subscriber.receive()[0].data) + 16
    told = tell(world, subscriber, {0: 5, 1: 5, 4: 6}, last=9)
    assert (told.packets, told.lost, told.lost_bytes) == (3, 7, 7 * size)
    told = tell(world, subscriber, {0: 5, 1: 5, 4: 6}, last=9)
    assert (told.packets, told.lost, told.lost_bytes) == (0, 0, 0), "the same feedback again"
    told = tell(world, subscriber, {2: 9, 3: 9})
    assert (told.packets, told.lost, told.lost_bytes) == (2, -2, -2 * size)


def test_feedback_of_what_was_never_sent_tells_nothing(world: World) -> None:
    publisher, subscriber, _ = call(world)
    told = tell(world, subscriber, {3: 1})
    assert (told.sent, told.packets, told.told_ns) == (0, 0, 0)
    publisher.send(rtp(0))
    world.settle()
    told = tell(world, subscriber, {1: 1, 2: 2, 40000: 3})
    assert (told.sent, told.packets, told.lost, told.groups) == (1, 0, 0, [])
    assert told.open is None
    assert world.forwarder.peer_stats(subscriber.peer).malformed == 0
    with pytest.raises(ForwarderError):
        world.forwarder.take_feedback(12345)


def test_cut_off_feedback_tells_what_it_holds(world: World) -> None:
    publisher, subscriber, _ = call(world)
    publisher.send(*(rtp(i) for i in range(9)))
    subscriber.receive()
    chunks = struct.pack("!HH", 0x2000 | 6, 0x6000 | 3)  # six small deltas, three of the reserved status
    body = struct.pack("!HHI", 0, 9, 0) + chunks + bytes((1, 2, 3, 4))  # two deltas are missing
    subscriber.send_rtcp(struct.pack("!BBHII", 0x8F, 205, 2 + len(body) // 4, 5, 6) + body)
    world.settle()
    told = world.forwarder.take_feedback(subscriber.peer)
    assert (told.packets, told.lost) == (4, 0)


def test_the_log_rolls_over(world: World) -> None:
    publisher, subscriber, _ = call(world)
    count = SENT_LOG + 500
    for at in range(0, count, 250):
        publisher.send(*(rtp(at + i) for i in range(250)))
        world.settle()
        subscriber.receive()
    told = tell(world, subscriber, {n: n // 10 for n in range(0, 1000)})
    assert told.packets == 1000 - (told.sent - SENT_LOG), "what is older than the log is not known any more"


def test_a_group_is_no_larger_than_the_log(world: World) -> None:
    """Who claims that all arrives ever earlier would have its bytes counted beyond 31 bits."""
    publisher, subscriber, _ = call(world)
    for at in range(0, SENT_LOG + 500, 250):
        publisher.send(*(rtp(at + i) for i in range(250)))
        world.settle()
        subscriber.receive()
        told = tell(world, subscriber, {n: 5000 - n for n in range(at, at + 250)})
    assert told.open is not None
    assert told.open.packets <= SENT_LOG
    assert told.packets == 250


@pytest.mark.parametrize("step", [0x7FFFFF, 0x800000], ids=["forwards", "back"])
def test_a_clock_that_runs_away_is_begun_anew(world: World, step: int) -> None:
    """17,200 feedbacks a quarter of a year apart, 40 in each datagram, would pass 2^63 ns."""
    publisher, subscriber, _ = call(world)
    publisher.send(rtp(0))
    subscriber.receive()
    reference = 0
    for _ in range(450):
        compound = b""
        for _ in range(40):
            reference = (reference + step) & 0xFFFFFF
            body = struct.pack("!HHIHBx", 9, 1, reference << 8, 0x2001, 0)
            compound += struct.pack("!BBHII", 0x8F, 205, 5, 5, 6) + body
        subscriber.send_rtcp(compound)
        world.settle()
    told = tell(world, subscriber, {0: 3})
    assert told.packets == 1
    assert told.open is not None
    assert abs(told.open.first_arrival_ns) < 1 << 60


def test_groups_nobody_takes_are_bounded() -> None:
    """The twin alone: real time would be 2 s of sending."""
    log = SendLog()
    for number in range(600):
        log.note(number, number * 10 * MS, 100)
    arrivals = [(number, number * 10 * MS) for number in range(600)]
    for feedback in TransportFeedback.from_arrivals(5, 6, 0, arrivals):
        data = feedback.build()
        log.told(data, 0, len(data), 600, 7)
    told = log.take(600, 0)
    assert (len(told.groups), told.packets) == (599 - told.dropped, 600)
    assert 256 - 64 <= len(told.groups) <= 256
    assert told.groups[-1].last_sent_ns == 598 * 10 * MS, "the newest are kept"


def test_both_logs_tell_the_same() -> None:
    """Random sending and hostile feedback, the same for the native log and its twin."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    results = []
    for kind in ("python", "native"):
        rng = random.Random(seed)
        world = World(kind)
        try:
            publisher, subscriber, _ = call(world)
            outcome: list[tuple[int, ...]] = []
            for round_number in range(30):
                publisher.send(*(rtp(20 * round_number + i, payload=bytes(50 + i)) for i in range(20)))
                world.settle()
                subscriber.receive()
                for _ in range(3):
                    body = struct.pack("!HHI", rng.randrange(700), rng.randrange(80), rng.randrange(2**32))
                    body += rng.randbytes(4 * rng.randrange(1, 30))
                    subscriber.send_rtcp(struct.pack("!BBHII", 0x8F, 205, 2 + len(body) // 4, 5, 6) + body)
                world.settle()
                told = world.forwarder.take_feedback(subscriber.peer)
                outcome.append((told.sent, told.packets, told.bytes, told.lost, told.lost_bytes))
            results.append(outcome)
        finally:
            world.close()
    assert results[0] == results[1]
    assert sum(packets for _, packets, *_ in results[0]) > 50


def test_padding_is_the_last_packets_again(world: World) -> None:
    publisher, subscriber, route = call(world)
    publisher.send(*(rtp(i, payload=bytes((i,)) * 500) for i in range(5)))
    media = subscriber.receive()
    sent = world.forwarder.send_padding(route, 1500)
    filler = subscriber.receive()
    assert [packet.ssrc for packet in filler] == [0x3333] * 3
    assert [int.from_bytes(packet.payload[:2], "big") for packet in filler] == sequences(media)[:1:-1]
    assert [packet.payload[2:] for packet in filler] == [packet.payload for packet in media[:1:-1]]
    assert numbers(filler) == [5, 6, 7]
    first = filler[0].sequence
    assert sequences(filler) == [first, first + 1, first + 2]
    stats = world.forwarder.route_stats(route)
    assert stats.padding == sent == sum(len(packet.data) + 16 for packet in filler)
    assert (stats.packets, stats.retransmitted, stats.retransmit_missed) == (5, 0, 0)
    told = tell(world, subscriber, dict.fromkeys(range(8), 9))
    assert told.packets == 8


def test_padding_without_packets_is_padding(world: World) -> None:
    publisher, subscriber, route = call(world)
    publisher.send(rtp(0, payload=b"small"))
    (media,) = subscriber.receive()
    sent = world.forwarder.send_padding(route, 600)
    filler = subscriber.receive()
    assert len(filler) == 3
    assert sent >= 600
    for packet in filler:
        assert (packet.ssrc, packet.payload_type, packet.data[0] & 0x20) == (0x3333, 112, 0x20)
        assert packet.timestamp == media.timestamp
        assert packet.payload == bytes(254) + b"\xff"
    assert numbers(filler) == [1, 2, 3]
    publisher.send(rtp(1, payload=b"small"))
    assert sequences(subscriber.receive()) == [media.sequence + 1], "the picture's numbers have no hole"


def test_padding_is_bounded_and_needs_a_sending_route_with_rtx(world: World) -> None:
    publisher, subscriber, route = call(world)
    assert world.forwarder.send_padding(route, 1000) == 0, "nothing was sent yet"
    publisher.send(rtp(0, payload=b"small"))
    world.settle()
    subscriber.receive()
    world.forwarder.send_padding(route, 10**9)
    assert len(subscriber.receive()) == 64
    assert world.forwarder.send_padding(route, 0) == 0
    world.forwarder.pause(route, True)
    assert world.forwarder.send_padding(route, 1000) == 0
    with pytest.raises(ForwarderError):
        world.forwarder.send_padding(12345, 1)


def test_no_padding_without_rtx(world: World) -> None:
    publisher, subscriber, route = call(world, rtx=False)
    publisher.send(rtp(0, payload=bytes(500)))
    assert len(subscriber.receive()) == 1
    assert world.forwarder.send_padding(route, 1000) == 0


def test_padding_after_a_switch_keeps_each_packets_codec(world: World) -> None:
    publisher, subscriber, route = call(world, mime="video/VP8")
    other = world.stream(publisher, 0x4444, mime="video/VP8", clock_rate=90000)
    publisher.send(rtp(0, payload=vp8(True, picture=7, size=400)))
    publisher.send(rtp(1, payload=vp8(False, picture=8, size=400)))
    world.settle()
    world.forwarder.switch(route, other)
    publisher.send(rtp(900, ssrc=0x4444, payload=vp8(True, picture=99, size=400)))
    media = subscriber.receive()
    assert len(media) == 3
    world.forwarder.send_padding(route, 1200)
    filler = subscriber.receive()
    assert [packet.payload[2:] for packet in filler] == [packet.payload for packet in reversed(media)]


def test_receiver_reports_are_noted_at_their_route(world: World) -> None:
    publisher, subscriber, route = call(world)
    publisher.send(rtp(0))
    subscriber.receive()
    assert world.forwarder.route_stats(route).report_ns == 0
    blocks = (rtcp.ReportBlock(0x9999, 99, 0, 0, 0, 0, 0), rtcp.ReportBlock(0x2222, 64, 5, 100, 0, 0, 0))
    before = time.monotonic_ns() - MS
    subscriber.send_rtcp(rtcp.build([rtcp.ReceiverReport(77, blocks)]))
    world.settle()
    stats = world.forwarder.route_stats(route)
    assert stats.fraction_lost == 64
    assert before <= stats.report_ns <= time.monotonic_ns()
