"""One continuous stream at the subscriber, whatever is switched, paused or removed behind it."""

from __future__ import annotations

import struct

import pytest

from mediaserver.forwarder import ForwarderError, Keyframe, Profile, Switched, TapMoved
from tests.forwarder.ends import Seen, World, rtp, sequences, vp8

VIDEO = {"mime": "video/VP8", "clock_rate": 90000}


def pictures(packets: list[Seen]) -> list[tuple[int, int]]:
    """Return picture id and TL0PICIDX of VP8 packets."""
    return [(struct.unpack_from("!H", p.payload, 2)[0] & 0x7FFF, p.payload[4]) for p in packets]


def test_video_begins_at_a_keyframe(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher, **VIDEO)  # type: ignore[arg-type]
    route = world.route(stream, subscriber)
    publisher.send(*(rtp(i, payload=vp8(False, i, i)) for i in range(3)))
    world.settle()
    assert world.forwarder.route_stats(route).waiting
    publisher.send(*(rtp(i, payload=vp8(i == 3, i, i)) for i in range(3, 6)))
    seen = subscriber.receive()
    assert sequences(seen) == [100, 101, 102]
    assert pictures(seen) == [(3, 3), (4, 4), (5, 5)]
    assert not world.forwarder.route_stats(route).waiting
    assert len(world.take(Keyframe)) == 1
    assert len(world.take(Switched)) == 1


def test_a_late_subscriber_gets_the_last_keyframe_from_the_cache(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher, **VIDEO)  # type: ignore[arg-type]
    publisher.send(*(rtp(i, payload=vp8(i == 2, i)) for i in (0, 1, 2, 4, 3)))
    world.settle()
    world.route(stream, subscriber)
    publisher.send(rtp(5, payload=vp8(False, 5)))
    seen = subscriber.receive()
    assert sequences(seen) == [100, 101, 102, 103]
    assert [struct.unpack_from("!H", p.payload, 2)[0] & 0x7FFF for p in seen] == [2, 3, 4, 5]


def test_a_subscriber_that_gets_ready_later_begins_then(world: World) -> None:
    publisher, subscriber = world.end(), world.end(ready=False)
    stream = world.stream(publisher, **VIDEO)  # type: ignore[arg-type]
    world.route(stream, subscriber)
    publisher.send(rtp(0, payload=vp8(True, 1)), rtp(1, payload=vp8(False, 2)))
    world.settle()
    world.forwarder.bind(subscriber.peer, subscriber.address)
    world.forwarder.set_keys(subscriber.peer, *subscriber.keys())
    assert sequences(subscriber.receive()) == [100, 101]


def test_switches_at_the_next_keyframe_and_stays_continuous(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    low = world.stream(publisher, 1, **VIDEO)  # type: ignore[arg-type]
    high = world.stream(publisher, 2, **VIDEO)  # type: ignore[arg-type]
    route = world.route(low, subscriber)
    publisher.send(
        *(
            rtp(i, ssrc=1, timestamp=1000 + 3000 * i, payload=vp8(i == 0, 32766 + i, 254 + i))
            for i in range(3)
        )
    )
    world.settle()
    world.forwarder.switch(route, high)
    assert world.forwarder.route_stats(route).pending_stream == high
    publisher.send(rtp(65000, ssrc=2, timestamp=9, payload=vp8(False, 500, 7)))
    publisher.send(rtp(3, ssrc=1, timestamp=10000, payload=vp8(False, 32769, 257)))
    publisher.send(rtp(65001, ssrc=2, timestamp=4_000_000_000, payload=vp8(True, 501, 8)))
    publisher.send(rtp(4, ssrc=1, timestamp=13000, payload=vp8(False, 32770, 258)))
    publisher.send(rtp(65002, ssrc=2, timestamp=4_000_003_000, payload=vp8(False, 502, 9)))
    # Older than the switch: its number is taken.
    publisher.send(rtp(64999, ssrc=2, timestamp=0, payload=vp8(False, 499, 6)))
    seen = subscriber.receive()
    assert sequences(seen) == [100, 101, 102, 103, 104, 105]
    # 15 bits and 8 bits wrap; the new layer's numbers go on where the old one's ended.
    assert pictures(seen) == [(32766, 254), (32767, 255), (0, 0), (1, 1), (2, 2), (3, 3)]
    assert 0 < seen[4].timestamp - seen[3].timestamp < 90000
    assert seen[5].timestamp - seen[4].timestamp == 3000
    stats = world.forwarder.route_stats(route)
    assert (stats.stream, stats.pending_stream, stats.waiting) == (high, 0, False)
    events = world.take(Switched)
    assert [event.stream for event in events if isinstance(event, Switched)] == [low, high]


def test_a_reordered_keyframe_is_whole_after_a_switch(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    low = world.stream(publisher, 1, **VIDEO)  # type: ignore[arg-type]
    high = world.stream(publisher, 2, **VIDEO)  # type: ignore[arg-type]
    route = world.route(low, subscriber)
    publisher.send(rtp(0, ssrc=1, payload=vp8(True, 1)))
    world.settle()
    world.forwarder.switch(route, high)
    publisher.send(rtp(11, ssrc=2, payload=vp8(False, 9, start=False)), rtp(10, ssrc=2, payload=vp8(True, 9)))
    seen = subscriber.receive()
    assert sequences(seen) == [100, 101, 102]
    assert seen[1].payload[0] & 0x10


def test_audio_switches_at_once(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    first, second = world.stream(publisher, 1), world.stream(publisher, 2)
    route = world.route(first, subscriber)
    publisher.send(rtp(7, ssrc=1, timestamp=5))
    world.settle()
    world.forwarder.switch(route, second)
    publisher.send(rtp(30000, ssrc=2, timestamp=99999), rtp(8, ssrc=1), rtp(30001, ssrc=2, timestamp=100959))
    seen = subscriber.receive()
    assert sequences(seen) == [100, 101, 102]
    assert seen[2].timestamp - seen[1].timestamp == 960


def test_pause_skips_no_numbers(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    route = world.route(world.stream(publisher), subscriber)
    publisher.send(*(rtp(i, timestamp=i) for i in range(5)))
    world.settle()
    world.forwarder.pause(route, True)
    publisher.send(*(rtp(i, timestamp=i) for i in range(5, 10)))
    world.settle()
    assert world.forwarder.route_stats(route).paused
    world.forwarder.pause(route, False)
    publisher.send(*(rtp(i, timestamp=i) for i in (10, 9, 11)))
    seen = subscriber.receive()
    assert sequences(seen) == list(range(100, 107))
    assert [packet.timestamp for packet in seen] == [0, 1, 2, 3, 4, 10, 11]


def test_paused_video_goes_on_at_a_keyframe(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    route = world.route(world.stream(publisher, **VIDEO), subscriber)  # type: ignore[arg-type]
    publisher.send(rtp(0, payload=vp8(True, 0, 0)), rtp(1, payload=vp8(False, 1, 1)))
    world.settle()
    world.forwarder.pause(route, True)
    world.forwarder.pause(route, False)
    publisher.send(
        rtp(2, payload=vp8(False, 2, 2)), rtp(3, payload=vp8(True, 3, 3)), rtp(4, payload=vp8(False, 4, 4))
    )
    seen = subscriber.receive()
    assert sequences(seen) == [100, 101, 102, 103]
    assert pictures(seen) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_publisher_that_comes_back_goes_on_on_the_same_route(world: World) -> None:
    publisher, subscriber, again = world.end(), world.end(), world.end()
    route = world.route(world.stream(publisher, **VIDEO), subscriber)  # type: ignore[arg-type]
    publisher.send(rtp(0, payload=vp8(True, 0)))
    world.settle()
    world.forwarder.remove_peer(publisher.peer)
    assert world.forwarder.route_stats(route).stream == 0
    # The new stream's first keyframe was held, then cached, before the route is switched.
    again.send(rtp(500, ssrc=9, payload=vp8(True, 77)), rtp(501, ssrc=9, payload=vp8(False, 78)))
    world.settle()
    stream = world.stream(again, 9, **VIDEO)  # type: ignore[arg-type]
    world.forwarder.switch(route, stream, payload_type=112)
    seen = subscriber.receive()
    assert sequences(seen) == [100, 101, 102]
    assert [packet.payload_type for packet in seen] == [111, 112, 112]


def test_no_number_is_used_twice_under_one_key(world: World) -> None:
    publisher, subscriber = world.end(Profile.AEAD_AES_128_GCM), world.end(Profile.AEAD_AES_128_GCM)
    stream = world.stream(publisher)
    for turn in range(3):
        route = world.route(stream, subscriber, first_sequence=100)
        publisher.send(*(rtp(10 * turn + i) for i in range(4)))
        assert sequences(subscriber.receive()) == [100 + 4 * turn + i for i in range(4)]
        world.forwarder.remove_route(route)


def test_sent_numbers_wrap_and_the_subscriber_follows(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    world.route(world.stream(publisher), subscriber, first_sequence=0x7FFF)
    received = []
    for begin in range(0, 70000, 1000):
        publisher.send(*(rtp(60000 + i, payload=b"") for i in range(begin, begin + 1000, 200)))
        received += sequences(subscriber.receive())
    assert received == [(0x7FFF + i) & 0xFFFF for i in range(0, 70000, 200)]


def test_new_keys_for_a_subscriber_after_a_roll_over(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher)
    world.route(stream, subscriber, first_sequence=0, rtx_ssrc=0x3333, rtx_payload_type=112)
    for begin in range(0, 72000, 6000):
        publisher.send(*(rtp(begin + i, payload=b"old") for i in range(0, 6000, 500)))
        subscriber.receive()
    subscriber.key(Profile.AEAD_AES_128_GCM)
    world.forwarder.set_keys(subscriber.peer, *subscriber.keys())
    publisher.send(rtp(72000, payload=b"new"), rtp(72001, payload=b"new"))
    seen = subscriber.receive()
    assert [packet.payload for packet in seen] == [b"new", b"new"]
    assert sequences(seen) == [72000 - 65536, 72001 - 65536]


def test_a_tap_moves_at_the_keyframe_without_a_packet_twice_or_lost(world: World) -> None:
    publisher = world.end()
    low = world.stream(publisher, 1, track=5, **VIDEO)  # type: ignore[arg-type]
    high = world.stream(publisher, 2, **VIDEO)  # type: ignore[arg-type]
    world.forwarder.move_tap(low, high)
    sent = [
        rtp(0, ssrc=1, payload=vp8(True)),
        rtp(0, ssrc=2, payload=vp8(False)),
        rtp(1, ssrc=1, payload=vp8(False)),
        rtp(1, ssrc=2, payload=vp8(True)),
        rtp(2, ssrc=1, payload=vp8(True)),
        rtp(2, ssrc=2, payload=vp8(True)),
    ]
    publisher.send(*sent)
    moved = world.take(TapMoved)
    assert [(e.track, e.stream) for e in moved if isinstance(e, TapMoved)] == [(5, high)]
    tapped = world.forwarder.take_tapped()
    assert [packet for _, _, packet, _ in tapped] == [sent[0], sent[2], sent[3], sent[5]]
    assert {track for track, _, _, _ in tapped} == {5}
    assert isinstance(moved[0], TapMoved)
    assert moved[0].at_ns == tapped[2][1]


def test_a_tap_takes_a_keyframe_whose_first_packet_was_resent_whole(world: World) -> None:
    publisher = world.end()
    low = world.stream(publisher, 1, track=5, **VIDEO)  # type: ignore[arg-type]
    repair = {"rtx_ssrc": 3, "rtx_payload_type": 97}
    high = world.stream(publisher, 2, **VIDEO, **repair)  # type: ignore[arg-type]
    part = vp8(False, start=False)
    publisher.send(rtp(9, ssrc=2, payload=vp8(False)))
    world.settle()
    world.forwarder.move_tap(low, high)
    late = rtp(8, ssrc=2, payload=vp8(True))
    publisher.send(late)  # of before: perhaps tapped already
    tapped = [rtp(11, ssrc=2, payload=part), rtp(12, ssrc=2, payload=part)]
    first = vp8(True)
    publisher.send(*reversed(tapped), rtp(0, ssrc=1, payload=part))
    publisher.send(rtp(0, ssrc=3, payload_type=97, payload=bytes((0, 10)) + first))
    publisher.send(rtp(13, ssrc=2, payload=part), rtp(1, ssrc=1, payload=part))
    assert len(world.take(TapMoved)) == 1
    assert [packet for _, _, packet, _ in world.forwarder.take_tapped()] == [
        rtp(0, ssrc=1, payload=part),
        rtp(10, ssrc=2, payload=first),
        *tapped,
        rtp(13, ssrc=2, payload=part),
    ]


def test_what_is_tapped_after_a_move_waits_until_the_move_is_told(world: World) -> None:
    """Else a journal had packets of another layer before it says that they are."""
    publisher = world.end()
    low = world.stream(publisher, 1, track=5, **VIDEO)  # type: ignore[arg-type]
    high = world.stream(publisher, 2, **VIDEO)  # type: ignore[arg-type]
    world.settle()
    world.forwarder.move_tap(low, high)
    sent = [rtp(n, ssrc=ssrc, payload=vp8(True)) for n, ssrc in ((0, 1), (0, 2), (1, 2), (2, 2))]
    publisher.send(*sent[:3])
    world.settle_undrained()
    assert [packet for _, _, packet, _ in world.forwarder.take_tapped()] == sent[:1]
    assert world.forwarder.take_tapped() == []
    publisher.send(sent[3])
    world.settle_undrained()
    assert world.forwarder.take_tapped() == []
    assert TapMoved in [type(event) for event in world.forwarder.take_events()]
    assert [packet for _, _, packet, _ in world.forwarder.take_tapped()] == sent[1:]


def test_a_move_is_called_off_or_has_taken_place(world: World) -> None:
    publisher = world.end()
    low = world.stream(publisher, 1, track=5, **VIDEO)  # type: ignore[arg-type]
    high = world.stream(publisher, 2, **VIDEO)  # type: ignore[arg-type]
    world.forwarder.move_tap(low, high)
    assert world.forwarder.stay(high)
    publisher.send(rtp(0, ssrc=2, payload=vp8(True)))
    assert world.take(TapMoved) == []
    world.forwarder.move_tap(low, high)
    publisher.send(rtp(1, ssrc=2, payload=vp8(True)))
    assert len(world.take(TapMoved)) == 1
    assert not world.forwarder.stay(high)
    assert len(world.forwarder.take_tapped()) == 1
    with pytest.raises(ForwarderError):
        world.forwarder.stay(12345)


def test_a_tap_that_moves_is_called_back_or_gone(world: World) -> None:
    publisher = world.end()
    low = world.stream(publisher, 1, track=5, **VIDEO)  # type: ignore[arg-type]
    high = world.stream(publisher, 2, **VIDEO)  # type: ignore[arg-type]
    sound = world.stream(publisher, 3)
    world.forwarder.move_tap(low, high)
    world.forwarder.move_tap(low, low)  # no move
    world.forwarder.tap(high, None)
    publisher.send(rtp(0, ssrc=2, payload=vp8(True)), rtp(0, ssrc=1, payload=vp8(True)))
    assert world.take(TapMoved) == []
    assert [packet for _, _, packet, _ in world.forwarder.take_tapped()] == [
        rtp(0, ssrc=1, payload=vp8(True))
    ]
    world.forwarder.move_tap(low, sound)  # nothing tells a keyframe there: the next packet
    publisher.send(rtp(0, ssrc=3))
    assert len(world.take(TapMoved)) == 1
    world.forwarder.move_tap(sound, high)
    world.forwarder.remove_stream(sound)
    publisher.send(rtp(1, ssrc=2, payload=vp8(True)))
    assert len(world.take(TapMoved)) == 1
    assert [packet for _, _, packet, _ in world.forwarder.take_tapped()] == [rtp(0, ssrc=3)]
    for pair in ((sound, high), (high, sound)):
        with pytest.raises(ForwarderError):
            world.forwarder.move_tap(*pair)
