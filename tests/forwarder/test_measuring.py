"""Subscribers whose line is not measured, and lines that are only watched for trouble."""

from __future__ import annotations

import time

import pytest

from mediaserver.forwarder import ABS_SEND_TIME, TRANSPORT_CC, FeedbackTrouble, ForwarderError
from mediaserver.forwarder.sent import WATCH_SILENCE_NS
from recorder import rtcp
from recorder.rtcp_transport import TransportFeedback
from tests.forwarder.ends import SUBSCRIBED, End, World, rtp, sequences
from tests.forwarder.test_sent import MS, call, numbers

TIMING = {SUBSCRIBED[TRANSPORT_CC], SUBSCRIBED[ABS_SEND_TIME]}
FAR_NS = 10**18
MANY = 1000


def feed(world: World, end: End, arrivals: dict[int, int], last: int | None = None) -> int:
    """Send feedback of arrivals (number to ms), numbers up to ``last`` being lost; return how often trouble
    was told so far."""
    for feedback in TransportFeedback.from_arrivals(5, 6, 0, [(n, at * MS) for n, at in arrivals.items()]):
        lost = 0 if last is None else last - max(arrivals)
        told = TransportFeedback(
            5, 6, feedback.base_sequence, 0, feedback.reference_time, (*feedback.deltas, *[None] * lost)
        )
        end.send_rtcp(rtcp.build([told]))
    return troubles(world)


def troubles(world: World) -> int:
    return len(world.take(FeedbackTrouble))


def test_an_unmeasured_line_gets_neither_numbers_nor_times(world: World) -> None:
    publisher, subscriber, route = call(world)
    publisher.send(*(rtp(i) for i in range(3)))
    measured = subscriber.receive()
    world.forwarder.set_measured(subscriber.peer, False)
    publisher.send(*(rtp(i) for i in range(3, 6)))
    plain = subscriber.receive()
    world.forwarder.send_padding(route, 600)
    padding = subscriber.receive()
    world.forwarder.set_measured(subscriber.peer, True)
    publisher.send(*(rtp(i) for i in range(6, 9)))
    again = subscriber.receive()
    assert all(set(packet.elements) >= TIMING for packet in measured + again)
    assert (len(plain), len(again)) == (3, 3)
    assert padding
    assert not any(TIMING & set(packet.elements) for packet in plain + padding)
    assert set(measured[0].elements) - TIMING == set(plain[0].elements)
    assert numbers(measured) + numbers(again) == list(range(6)), "no number is left out"
    assert sequences(measured + plain + again) == [100 + i for i in range(9)]
    assert world.forwarder.take_feedback(subscriber.peer).sent == 6
    with pytest.raises(ForwarderError):
        world.forwarder.set_measured(12345, True)


@pytest.mark.parametrize("first", [True, False])
def test_what_is_sent_again_is_the_same_though_measuring_has_changed(world: World, first: bool) -> None:
    """Without RTX the number is the same, and so is the nonce: other bytes would give the key away."""
    publisher, subscriber, _ = call(world, rtx=False)
    world.forwarder.set_measured(subscriber.peer, first)
    publisher.send(*(rtp(i, payload=bytes((i,)) * 40) for i in range(5)))
    before = subscriber.receive_bytes()
    world.forwarder.set_measured(subscriber.peer, not first)
    subscriber.send_rtcp(rtcp.build([rtcp.Nack(1, 0x2222, (101, 102))]))
    assert subscriber.receive_bytes() == before[1:3]


def test_a_long_way_is_told_once(world: World) -> None:
    publisher, subscriber, _ = call(world)
    publisher.send(*(rtp(i, payload=bytes(60)) for i in range(6)))
    subscriber.receive()
    feed(world, subscriber, {0: 1000, 1: 1001})
    before = world.forwarder.watch_feedback(subscriber.peer, FAR_NS, MANY)
    assert before.open is not None
    assert before.shortest_ns == 1000 * MS - before.open.first_sent_ns
    assert (before.packets, before.groups) == (2, [])
    least = before.shortest_ns
    world.forwarder.watch_feedback(subscriber.peer, least + 200 * MS, MANY)
    assert feed(world, subscriber, {2: 1100}) == 0, "within what is allowed"
    assert feed(world, subscriber, {3: 1500, 4: 1600}) == 1
    assert feed(world, subscriber, {5: 1700}) == 1, "the watch is over"
    told = world.forwarder.take_feedback(subscriber.peer)
    assert (told.packets, told.lost) == (4, 0)


def test_bursts_are_kept_while_watched(world: World) -> None:
    publisher, subscriber, _ = call(world)
    for at in range(4):
        publisher.send(rtp(at))
        world.settle()
        time.sleep(0.012)
    world.forwarder.watch_feedback(subscriber.peer, FAR_NS, MANY)
    feed(world, subscriber, {n: 1000 + 15 * n for n in range(4)})
    assert world.forwarder.watch_feedback(subscriber.peer, FAR_NS, MANY).packets == 4
    told = world.forwarder.take_feedback(subscriber.peer)
    assert (told.packets, [group.packets for group in told.groups]) == (0, [1, 1, 1])


def test_loss_is_told_from_so_many_packets_on(world: World) -> None:
    publisher, subscriber, _ = call(world)
    publisher.send(*(rtp(i) for i in range(12)))
    subscriber.receive()
    world.forwarder.watch_feedback(subscriber.peer, FAR_NS, 3)
    assert feed(world, subscriber, {0: 1000}, last=2) == 0
    assert feed(world, subscriber, {3: 1001}, last=4) == 1
    world.forwarder.watch_feedback(subscriber.peer, FAR_NS, 3)
    assert feed(world, subscriber, {5: 1002}, last=7) == 1, "the count begins anew with the watch"
    world.forwarder.take_feedback(subscriber.peer)
    assert feed(world, subscriber, {8: 1003}, last=11) == 1, "taking has ended the watch"


def test_silence_is_told(world: World) -> None:
    publisher, subscriber, _ = call(world)
    publisher.send(rtp(0))
    subscriber.receive()
    feed(world, subscriber, {0: 1000})
    world.forwarder.watch_feedback(subscriber.peer, FAR_NS, MANY)
    publisher.send(rtp(1))
    world.settle()
    assert troubles(world) == 0
    time.sleep(WATCH_SILENCE_NS / 1e9 + 0.05)
    publisher.send(rtp(2), rtp(3))
    world.settle()
    assert troubles(world) == 1
    with pytest.raises(ForwarderError):
        world.forwarder.watch_feedback(12345, 0, 0)
