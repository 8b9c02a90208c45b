"""Large pictures do not leave faster than a subscriber's pace, and nothing else of what is sent changes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from mediaserver.forwarder import ABS_SEND_TIME, MID, ForwarderError
from mediaserver.forwarder.pace import LONGEST_NS
from recorder import rtcp
from recorder.rtcp_transport import TransportFeedback
from tests.forwarder.ends import SUBSCRIBED, End, Seen, World, rtp, sequences, vp8
from tests.forwarder.test_resending import nack
from tests.forwarder.test_sent import MS, numbers

SLOW_BPS = 30_000
VIDEO, SOUND, MORE = 0x2222, 0x4444, 0x5555
STAMPED = {uri: SUBSCRIBED[uri] for uri in SUBSCRIBED if uri not in (ABS_SEND_TIME, MID)}


def call(world: World, *, bps: int = SLOW_BPS, rtx: bool = True, **more: object) -> tuple[End, End, int]:
    publisher, subscriber = world.end(), world.end()
    if rtx:
        more |= {"rtx_ssrc": 0x3333, "rtx_payload_type": 112}
    more.setdefault("extensions", SUBSCRIBED)
    stream = world.stream(publisher, mime="video/VP8", clock_rate=90000)
    route = world.route(stream, subscriber, VIDEO, **more)
    world.forwarder.set_pace(subscriber.peer, bps)
    return publisher, subscriber, route


def picture(
    first: int, count: int = 30, *, number: int = 1, keyframe: bool = True, ssrc: int = 0x1111
) -> list[bytes]:
    """Build a picture of some 30 kB in ``count`` packets."""
    return [
        rtp(
            first + i,
            timestamp=3000 * number,
            payload=vp8(keyframe, number, number, start=not i, size=1000),
            ssrc=ssrc,
        )
        for i in range(count)
    ]


def drained(world: World, end: End, count: int) -> list[Seen]:
    """Return what has come once so many packets were sent."""
    world.wait(lambda: world.forwarder.peer_stats(end.peer).packets_sent >= count)
    return end.receive()


def test_a_large_picture_is_spread_in_order(world: World) -> None:
    publisher, subscriber, _ = call(world)
    began = time.monotonic()
    publisher.send(*picture(0))
    seen = drained(world, subscriber, 30)
    assert time.monotonic() - began < 4, "8 s at this pace, but nothing waits for longer than 250 ms"
    assert sequences(seen) == [100 + i for i in range(30)]
    assert numbers(seen) == list(range(30))
    of_peer, whole = world.forwarder.peer_stats(subscriber.peer), world.forwarder.stats()
    assert 20 <= of_peer.paced < 30
    assert of_peer.paced_ns > of_peer.paced * LONGEST_NS / 4
    assert (whole.paced, whole.paced_ns) == (of_peer.paced, of_peer.paced_ns)
    assert (whole.paced_bytes, whole.pace_dropped) == (0, 0)


def test_small_pictures_do_not_wait(world: World) -> None:
    publisher, subscriber, _ = call(world, bps=5_000_000)
    for at in range(5):
        publisher.send(*picture(4 * at, 4, number=at, keyframe=not at))
        world.settle()
        time.sleep(0.03)
    assert len(subscriber.receive()) == 20
    assert world.forwarder.peer_stats(subscriber.peer).paced == 0
    with pytest.raises(ForwarderError):
        world.forwarder.set_pace(12345, 0)
    with pytest.raises(ForwarderError):
        world.forwarder.set_pace(subscriber.peer, -1)


def test_sound_overtakes_and_numbers_are_in_the_order_of_leaving(world: World) -> None:
    publisher, subscriber, _ = call(world)
    sound = world.stream(publisher, 0x6666)
    world.route(sound, subscriber, SOUND, extensions=SUBSCRIBED)
    publisher.send(*picture(0), *(rtp(i, ssrc=0x6666) for i in range(3)))
    seen = drained(world, subscriber, 33)
    assert [packet.sequence for packet in seen if packet.ssrc == SOUND] == [100, 101, 102]
    assert [packet.sequence for packet in seen if packet.ssrc == VIDEO] == [100 + i for i in range(30)]
    assert {packet.ssrc for packet in seen[-20:]} == {VIDEO}
    assert numbers(seen) == list(range(33))


def test_sound_counts_and_padding_does_not(world: World) -> None:
    publisher, subscriber, route = call(world, bps=100_000)
    sound = world.stream(publisher, 0x6666)
    world.route(sound, subscriber, SOUND, extensions=SUBSCRIBED)
    publisher.send(*picture(0, 1))
    world.wait(lambda: world.forwarder.peer_stats(subscriber.peer).packets_sent == 1)
    time.sleep(0.2)
    world.forwarder.send_padding(route, 5000)
    publisher.send(rtp(1, payload=vp8(False)))
    world.settle()
    assert world.forwarder.peer_stats(subscriber.peer).paced == 0
    publisher.send(*(rtp(i, ssrc=0x6666, payload=bytes(1000)) for i in range(4)), rtp(2, payload=vp8(False)))
    world.wait(lambda: world.forwarder.peer_stats(subscriber.peer).paced == 1)


def test_feedback_knows_when_a_packet_left(world: World) -> None:
    publisher, subscriber, _ = call(world)
    publisher.send(*picture(0))
    drained(world, subscriber, 30)
    for feedback in TransportFeedback.from_arrivals(5, 6, 0, [(n, (1000 + 8 * n) * MS) for n in range(30)]):
        subscriber.send_rtcp(rtcp.build([feedback]))
    world.settle()
    told = world.forwarder.take_feedback(subscriber.peer)
    assert (told.sent, told.packets, told.lost) == (30, 30, 0)
    assert len(told.groups) > 2
    assert told.groups[-1].last_sent_ns - told.groups[0].first_sent_ns > LONGEST_NS / 2


@pytest.mark.parametrize("rtx", [True, False])
def test_what_waits_is_not_sent_again(world: World, rtx: bool) -> None:
    """Without RTX it would be other bytes under the same nonce: there is no transport-cc number yet."""
    publisher, subscriber, route = call(world, rtx=rtx)
    publisher.send(*picture(0))
    world.settle()
    subscriber.send_rtcp(nack(VIDEO, (120, 0xFF)))
    world.settle()
    stats = world.forwarder.route_stats(route)
    assert stats.retransmit_missed > 0
    assert stats.retransmit_missed + stats.retransmitted == 9
    world.wait(lambda: world.forwarder.stats().paced_bytes == 0)
    first = subscriber.receive_bytes()
    assert len(first) == 30 + stats.retransmitted
    time.sleep(0.02)
    subscriber.send_rtcp(nack(VIDEO, (120, 0xFF)))
    again = subscriber.receive_bytes()
    assert len(again) == 9
    assert rtx or len({*first, *again}) == 30


def test_without_a_pace_what_waits_leaves(world: World) -> None:
    publisher, subscriber, _ = call(world)
    publisher.send(*picture(0))
    world.settle()
    world.forwarder.set_pace(subscriber.peer, 0)
    assert world.forwarder.stats().paced_bytes == 0
    publisher.send(*picture(30, number=2))
    assert sequences(subscriber.receive()) == [100 + i for i in range(60)]


def test_more_than_may_wait_leaves_sooner(world: World) -> None:
    publisher, subscriber, _ = call(world)
    for at in range(0, 800, 50):
        publisher.send(*(rtp(at + i, payload=vp8(not at + i, size=20)) for i in range(50)))
    seen = drained(world, subscriber, 800)
    assert sequences(seen) == [100 + i for i in range(800)]
    assert world.forwarder.stats().pace_dropped == 0


def rekeyed(world: World, end: End, route: int) -> None:
    end.key(end.profile)
    world.forwarder.set_keys(end.peer, *end.keys())


def moved(world: World, end: End, route: int) -> None:
    world.forwarder.bind(world.end(ready=False).peer, end.address)


@pytest.mark.parametrize(
    "end_it",
    [
        rekeyed,
        moved,
        lambda world, end, route: world.forwarder.remove_route(route),
        lambda world, end, route: world.forwarder.remove_peer(end.peer),
        lambda world, end, route: world.forwarder.close(),
    ],
    ids=["new keys", "no address", "no route", "no peer", "no forwarder"],
)
def test_what_waits_for_what_has_ended_is_dropped(
    world: World, end_it: Callable[[World, End, int], None], request: pytest.FixtureRequest
) -> None:
    publisher, subscriber, route = call(world)
    other = world.stream(publisher, 0x6666, mime="video/VP8", clock_rate=90000)
    world.route(other, subscriber, MORE)
    publisher.send(*picture(0), *picture(0, ssrc=0x6666))
    world.settle()
    end_it(world, subscriber, route)
    if "forwarder" in request.node.callspec.id:
        return
    world.wait(lambda: world.forwarder.stats().paced_bytes == 0)
    stats = world.forwarder.stats()
    assert stats.pace_dropped + stats.paced >= 40
    assert 1 <= stats.pace_dropped <= (30 if "route" in request.node.callspec.id else 60)
    if "keys" in request.node.callspec.id:
        subscriber.receive_bytes()
        publisher.send(*picture(30, number=2))
        world.settle()
        world.wait(lambda: world.forwarder.stats().paced_bytes == 0)
        assert sequences(subscriber.receive())[-1] == 159


def test_twins_send_the_same_though_it_waits() -> None:
    """Over a switch of streams in mid-queue, too."""
    said = []
    for kind in ("python", "native"):
        world = World(kind)
        try:
            publisher, subscriber, route = call(world, rtx=False, extensions=STAMPED)
            other = world.stream(publisher, 0x6666, mime="video/VP8", clock_rate=90000)
            publisher.send(*picture(0, number=7), *picture(30, number=8, keyframe=False))
            world.settle()
            world.forwarder.switch(route, other)
            publisher.send(*picture(500, number=8000, ssrc=0x6666))
            seen = drained(world, subscriber, 90)
            assert world.forwarder.peer_stats(subscriber.peer).paced > 30
            said.append([packet.data[:4] + packet.data[8:] for packet in seen])
        finally:
            world.close()
    assert said[0] == said[1]
