"""Retransmission, both ways: NACKs of subscribers answered, RTX of publishers unwrapped."""

from __future__ import annotations

import struct

import pytest

from mediaserver.forwarder import ABS_SEND_TIME, MID, TRANSPORT_CC, Gap, NewSsrc, Profile, Rtcp
from tests.forwarder.ends import End, World, rtp, sequences, vp8


def nack(media_ssrc: int, *pairs: tuple[int, int], sender: int = 5) -> bytes:
    """Build a generic NACK (RFC 4585) behind an empty receiver report."""
    body = b"".join(struct.pack("!HH", first, mask) for first, mask in pairs)
    return struct.pack("!BBHI", 0x80, 201, 1, sender) + struct.pack(
        "!BBHII", 0x81, 205, 2 + len(pairs), sender, media_ssrc
    ) + body  # fmt: skip


def published(world: World, subscriber: End, count: int = 20, **more: int) -> tuple[End, int]:
    publisher = world.end()
    route = world.route(world.stream(publisher), subscriber, **more)
    publisher.send(*(rtp(i, timestamp=i, payload=bytes((i & 255,)) * 30) for i in range(count)))
    assert len(subscriber.receive()) == count
    return publisher, route


def test_nack_is_answered_by_rtx(world: World) -> None:
    subscriber = world.end()
    _, route = published(world, subscriber, rtx_ssrc=0x3333, rtx_payload_type=112)
    subscriber.send_rtcp(nack(0x2222, (103, 0b101), (119, 0)))
    seen = subscriber.receive()
    assert {packet.ssrc for packet in seen} == {0x3333}
    assert {packet.payload_type for packet in seen} == {112}
    assert [struct.unpack_from("!H", packet.payload)[0] for packet in seen] == [103, 104, 106, 119]
    assert [packet.payload[2:] for packet in seen] == [bytes((i,)) * 30 for i in (3, 4, 6, 19)]
    assert [packet.timestamp for packet in seen] == [3, 4, 6, 19]
    first = seen[0].sequence
    assert sequences(seen) == [first + i for i in range(4)]
    assert first < 0x8000
    stats = world.forwarder.route_stats(route)
    assert (stats.retransmitted, stats.retransmit_missed, stats.packets) == (4, 0, 20)
    assert not world.take(Rtcp) or all(isinstance(e, Rtcp) and len(e.data) > 8 for e in world.take(Rtcp))


@pytest.mark.parametrize("profile", list(Profile))
def test_without_rtx_the_same_bytes_are_sent_again(world: World, profile: Profile) -> None:
    publisher, subscriber = world.end(profile), world.end(profile)
    stream = world.stream(publisher, mime="video/VP8", clock_rate=90000)
    world.route(stream, subscriber, extensions={TRANSPORT_CC: 3, ABS_SEND_TIME: 4, MID: 1}, mid="v")
    publisher.send(*(rtp(i, payload=vp8(i == 0, i, i)) for i in range(10)))
    first = subscriber.receive_bytes()
    subscriber.send_rtcp(nack(0x2222, (104, 0b11)))
    again = subscriber.receive_bytes()
    # The nonce is the packet's number: any other plaintext under it would give the authentication key away.
    assert again == first[4:7]


def test_what_is_not_cached_is_counted(world: World) -> None:
    subscriber = world.end()
    publisher, route = published(world, subscriber, rtx_ssrc=0x3333, rtx_payload_type=112)
    subscriber.send_rtcp(nack(0x2222, (99, 0), (120, 0), (40000, 0xFFFF)))
    assert not subscriber.receive()
    assert world.forwarder.route_stats(route).retransmit_missed == 19
    publisher.send(*(rtp(20 + i) for i in range(1100)))
    world.settle()
    subscriber.receive()
    assert world.forwarder.resend(route, [105]) == 0
    assert world.forwarder.resend(route, [100 + 1100]) == 1


def test_a_burst_of_nacks_is_answered_once(world: World) -> None:
    subscriber = world.end()
    _, route = published(world, subscriber, rtx_ssrc=0x3333, rtx_payload_type=112)
    assert world.forwarder.resend(route, [105] * 50) == 1
    assert len(subscriber.receive()) == 1


def test_resending_is_budgeted(world: World) -> None:
    subscriber = world.end()
    _, route = published(world, subscriber, 600, rtx_ssrc=0x3333, rtx_payload_type=112)
    assert world.forwarder.resend(route, range(100, 700)) == 256
    assert world.forwarder.route_stats(route).retransmit_missed == 344


def test_the_cache_is_capped_in_bytes(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher, keep_bytes=10_000)
    route = world.route(stream, subscriber)
    publisher.send(*(rtp(i, payload=bytes(988)) for i in range(50)))
    world.settle()
    stats = world.forwarder.stream_stats(stream)
    assert (stats.cached_packets, stats.cached_bytes) == (10, 10_000)
    assert world.forwarder.stats().cache_bytes == 10_000
    assert world.forwarder.resend(route, range(100, 150)) == 10
    world.forwarder.remove_stream(stream)
    assert world.forwarder.stats().cache_bytes == 0


def test_nack_after_a_switch_reaches_the_old_stream(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    first, second = world.stream(publisher, 1), world.stream(publisher, 2)
    route = world.route(first, subscriber, rtx_ssrc=0x3333, rtx_payload_type=112)
    publisher.send(rtp(0, ssrc=1, payload=b"old"))
    world.settle()
    world.forwarder.switch(route, second)
    publisher.send(rtp(900, ssrc=2, payload=b"new"))
    subscriber.receive()
    subscriber.send_rtcp(nack(0x2222, (100, 1)))
    assert [packet.payload[2:] for packet in subscriber.receive()] == [b"old", b"new"]


def test_a_nack_for_somebody_elses_route_does_nothing(world: World) -> None:
    subscriber, stranger = world.end(), world.end()
    _, route = published(world, subscriber)
    stranger.send_rtcp(nack(0x2222, (100, 0xFFFF)))
    assert not stranger.receive_bytes()
    assert not subscriber.receive_bytes()
    assert world.forwarder.route_stats(route).retransmitted == 0


def rtx(sequence: int, original: int, payload: bytes, timestamp: int = 0) -> bytes:
    return rtp(
        sequence,
        ssrc=0x9999,
        payload_type=97,
        payload=struct.pack("!H", original) + payload,
        timestamp=timestamp,
    )


def test_rtx_of_a_publisher_becomes_the_original(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher, rtx_ssrc=0x9999, rtx_payload_type=97, track=3)
    world.route(stream, subscriber)
    publisher.send(rtp(10, payload=b"a"), rtp(13, payload=b"d", timestamp=3))
    (gap,) = world.take(Gap)
    assert isinstance(gap, Gap)
    assert (gap.stream, gap.first, gap.last) == (stream, 11, 12)
    assert world.forwarder.missing(stream) == [11, 12]
    publisher.send(
        rtx(500, 12, b"c", timestamp=2),
        rtx(501, 11, b"b", timestamp=1),
        rtx(502, 11, b"b", timestamp=1),  # asked twice
        rtp(503, ssrc=0x9999, payload_type=97, payload=b"", padding=200),  # a probe
        rtx(504, 10, b"a"),
    )
    seen = subscriber.receive()
    assert sequences(seen) == [100, 103, 102, 101]
    assert [packet.payload for packet in seen] == [b"a", b"d", b"c", b"b"]
    assert world.forwarder.missing(stream) == []
    stats = world.forwarder.stream_stats(stream)
    assert (stats.packets, stats.lost, stats.recovered, stats.duplicates) == (4, 0, 2, 2)
    tapped = world.forwarder.take_tapped()
    assert [packet for _, _, packet, _ in tapped] == [
        rtp(10, payload=b"a"),
        rtp(13, payload=b"d", timestamp=3),
        rtp(12, payload=b"c", timestamp=2),
        rtp(11, payload=b"b", timestamp=1),
    ]
    assert {track for track, _, _, _ in tapped} == {3}


def test_an_rtx_ssrc_learned_later(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher, rtx_payload_type=97)
    world.route(stream, subscriber)
    publisher.send(rtp(1), rtp(3), rtx(7, 2, b"two"))
    world.settle()
    (event,) = world.take(NewSsrc)
    assert isinstance(event, NewSsrc)
    assert (event.peer, event.ssrc, event.payload_type) == (publisher.peer, 0x9999, 97)
    world.forwarder.set_rtx_ssrc(stream, 0x9999)
    assert [packet.payload for packet in subscriber.receive()] == [b"payload", b"payload", b"two"]
