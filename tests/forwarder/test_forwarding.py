"""A packet on its way: the right bytes, rewritten for each subscriber."""

from __future__ import annotations

import socket

import pytest

from mediaserver.forwarder import (
    ABS_SEND_TIME,
    AUDIO_LEVEL,
    MID,
    TRANSPORT_CC,
    VIDEO_ORIENTATION,
    ForwarderError,
    Profile,
    RouteParameters,
    Switched,
)
from tests.forwarder.ends import PUBLISHED, SUBSCRIBED, World, rtp, sequences, vp8


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_forwards_rewritten_payloads(world: World, profile: Profile, family: int) -> None:
    publisher = world.end(profile)
    subscriber = world.end(profile, family=family)
    route = world.route(world.stream(publisher), subscriber)
    payloads = [bytes((i,)) * (i * 37 % 1200) for i in range(50)]
    publisher.send(
        *(rtp(40000 + i, timestamp=960 * i, payload=p, marker=i % 3 == 0) for i, p in enumerate(payloads))
    )
    seen = subscriber.receive()
    assert [packet.payload for packet in seen] == payloads
    assert sequences(seen) == list(range(100, 150))
    assert {packet.ssrc for packet in seen} == {0x2222}
    assert {packet.payload_type for packet in seen} == {111}
    assert [packet.timestamp for packet in seen] == [960 * i for i in range(50)]
    assert [packet.marker for packet in seen] == [i % 3 == 0 for i in range(50)]
    stats = world.forwarder.route_stats(route)
    assert (stats.packets, stats.bytes) == (50, sum(map(len, payloads)))
    assert (stats.last_sequence, stats.last_timestamp) == (149, 960 * 49)
    assert stats.sequence_offset == (100 - 40000) & 0xFFFF
    assert len(world.take(Switched)) == 1
    assert not publisher.receive_bytes()


def test_fans_out_and_mixes_profiles(world: World) -> None:
    publisher = world.end(Profile.AEAD_AES_128_GCM)
    stream = world.stream(publisher)
    others = [world.end(profile) for profile in (*Profile, *Profile, *Profile)]
    for i, other in enumerate(others):
        world.route(stream, other, 0x3000 + i, first_sequence=1000 * i)
    publisher.send(*(rtp(i, payload=bytes(1100)) for i in range(20)))
    for i, other in enumerate(others):
        seen = other.receive()
        assert sequences(seen) == [1000 * i + k for k in range(20)]
        assert {packet.ssrc for packet in seen} == {0x3000 + i}
        assert all(packet.payload == bytes(1100) for packet in seen)
    stats = world.forwarder.stats()
    assert stats.datagrams_sent >= 20 * len(others)
    assert stats.send_failed == 0


def test_packets_to_one_address_are_coalesced(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher, mime="video/VP8", clock_rate=90000)
    publisher.send(*(rtp(i, payload=vp8(i == 0, size=1000)) for i in range(20)))
    world.settle()
    # Beginning with the cached keyframe sends all of them at once.
    before = world.forwarder.stats()
    world.route(stream, subscriber)
    after = world.forwarder.stats()
    assert after.datagrams_sent - before.datagrams_sent == 20
    assert after.send_messages - before.send_messages == 1
    assert len(subscriber.receive()) == 20


def test_uneven_sizes_keep_order(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    world.route(world.stream(publisher), subscriber)
    sizes = [500, 500, 499, 500, 10, 1200, 1200, 1200, 1199, 1200, 0, 1, 1, 2]
    publisher.send(*(rtp(i, payload=bytes(size)) for i, size in enumerate(sizes)))
    assert [len(packet.payload) for packet in subscriber.receive()] == sizes


def test_header_extensions_are_renumbered_and_replaced(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher)
    world.route(stream, subscriber, extensions=SUBSCRIBED, mid="sub7")
    elements = [(1, b"pub0"), (2, b"\0\0\1"), (3, b"\x12\x34"), (4, b"\x85"), (5, b"\1"), (12, b"unknown")]
    publisher.send(*(rtp(i, elements=elements, csrcs=(7, 8)) for i in range(3)))
    seen = subscriber.receive()
    for i, packet in enumerate(seen):
        assert packet.profile == 0xBEDE
        assert packet.data[12:20] == b"\0\0\0\7\0\0\0\x08", "contributing sources are kept"
        assert set(packet.elements) == set(SUBSCRIBED.values())
        assert packet.elements[SUBSCRIBED[MID]] == b"sub7"
        assert packet.elements[SUBSCRIBED[TRANSPORT_CC]] == i.to_bytes(2, "big")
        assert packet.elements[SUBSCRIBED[AUDIO_LEVEL]] == b"\x85"
        assert packet.elements[SUBSCRIBED[VIDEO_ORIENTATION]] == b"\1"
        assert packet.elements[SUBSCRIBED[ABS_SEND_TIME]] != b"\0\0\1"
        assert packet.payload == b"payload"
    stats = world.forwarder.stream_stats(stream)
    assert (stats.audio_level, stats.voice) == (5, True)
    assert world.forwarder.peer_stats(subscriber.peer).transport_cc_sent == 3


def test_transport_cc_numbers_run_over_all_routes_of_a_subscriber(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    for ssrc in (1, 2):
        world.route(
            world.stream(publisher, ssrc), subscriber, 0x20 + ssrc, extensions={TRANSPORT_CC: 3}, mid="x"
        )
    for i in range(4):
        publisher.send(rtp(i, ssrc=1), rtp(i, ssrc=2))
    seen = subscriber.receive()
    assert sorted(int.from_bytes(packet.elements[3], "big") for packet in seen) == list(range(8))


def test_extensions_that_were_not_negotiated_are_dropped(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    world.route(world.stream(publisher), subscriber)
    publisher.send(rtp(1, elements=[(1, b"pub0"), (4, b"\x85"), (12, b"secret")]))
    (packet,) = subscriber.receive()
    assert packet.data[0] == 0x80
    assert not packet.elements
    assert packet.payload == b"payload"


@pytest.mark.parametrize("mixed", [False, True])
def test_two_byte_headers(world: World, mixed: bool) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher)
    world.route(stream, subscriber, extensions={AUDIO_LEVEL: 6, VIDEO_ORIENTATION: 2}, allow_mixed=mixed)
    publisher.send(
        rtp(1, elements=[(PUBLISHED[AUDIO_LEVEL], b"\x07"), (5, bytes(20))], two_byte=True),
        rtp(2, elements=[(PUBLISHED[AUDIO_LEVEL], b"\x08"), (5, b"")], two_byte=True),
        rtp(3, elements=[(PUBLISHED[AUDIO_LEVEL], b"\x09"), (5, b"\1")], two_byte=True),
    )
    long, empty, short = subscriber.receive()
    if mixed:
        assert (long.profile, long.elements) == (0x1000, {6: b"\x07", 2: bytes(20)})
        assert (empty.profile, empty.elements) == (0x1000, {6: b"\x08", 2: b""})
    else:
        assert (long.profile, long.elements) == (0xBEDE, {6: b"\x07"})
        assert (empty.profile, empty.elements) == (0xBEDE, {6: b"\x08"})
    assert (short.profile, short.elements) == (0xBEDE, {6: b"\x09", 2: b"\1"})


def test_large_ids_need_two_byte_headers(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    world.route(world.stream(publisher), subscriber, extensions={AUDIO_LEVEL: 16, MID: 200}, mid="m")
    publisher.send(rtp(1, elements=[(4, b"\x07")]))
    (packet,) = subscriber.receive()
    assert (packet.profile, packet.elements) == (0x1000, {200: b"m", 16: b"\x07"})


def test_padding_is_passed_on(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher)
    world.route(stream, subscriber)
    publisher.send(rtp(1, payload=b"abc", padding=5), rtp(2, payload=b"", padding=255))
    seen = subscriber.receive()
    assert [packet.payload for packet in seen] == [b"abc\0\0\0\0\5", bytes(254) + b"\xff"]
    assert all(packet.data[0] & 0x20 for packet in seen)
    assert world.forwarder.stream_stats(stream).bytes == 3


def test_other_payload_types_are_not_forwarded(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher)
    world.route(stream, subscriber)
    publisher.send(rtp(1), rtp(2, payload_type=97), rtp(3))
    assert len(subscriber.receive()) == 2
    assert world.forwarder.stream_stats(stream).other_payload == 1


def test_streams_go_only_where_they_are_routed(world: World) -> None:
    ends = [world.end() for _ in range(4)]
    for i in (0, 2):
        world.route(world.stream(ends[i], 0x10 + i), ends[i + 1], 0x20 + i)
    for i in (0, 2):
        ends[i].send(*(rtp(k, ssrc=0x10 + i, payload=bytes((i,))) for k in range(5)))
    for i in (0, 2):
        assert {packet.payload for packet in ends[i + 1].receive()} == {bytes((i,))}
        assert not ends[i].receive_bytes()


def test_rebinding_moves_the_path(world: World) -> None:
    publisher, subscriber, spare = world.end(), world.end(), world.end(ready=False)
    world.route(world.stream(publisher), subscriber)
    publisher.send(rtp(1))
    assert len(subscriber.receive()) == 1
    world.forwarder.bind(subscriber.peer, spare.address)
    publisher.send(rtp(2))
    assert len(spare.receive_bytes()) == 1
    assert not subscriber.receive_bytes()
    # The old path is still good for receiving, until another peer takes the address.
    subscriber.send(rtp(5, ssrc=77))
    world.settle()
    assert world.forwarder.peer_stats(subscriber.peer).packets_received == 1
    world.forwarder.bind(spare.peer, subscriber.address)
    subscriber.send(rtp(6, ssrc=77))
    world.settle()
    assert world.forwarder.peer_stats(subscriber.peer).packets_received == 1
    assert world.forwarder.peer_stats(spare.peer).auth_failed == 1


def test_removed_routes_and_peers_are_silent(world: World) -> None:
    publisher, first, second = world.end(), world.end(), world.end()
    stream = world.stream(publisher)
    route = world.route(stream, first)
    world.route(stream, second)
    world.forwarder.remove_route(route)
    world.forwarder.remove_peer(second.peer)
    publisher.send(rtp(1))
    assert not first.receive_bytes()
    assert not second.receive_bytes()
    world.forwarder.remove_peer(publisher.peer)
    publisher.send(rtp(2))
    world.settle()
    stats = world.forwarder.stats()
    assert (stats.peers, stats.streams, stats.routes, stats.cache_bytes) == (1, 0, 0, 0)
    assert stats.unknown_address == 1


def test_misuse_raises(world: World) -> None:
    forwarder = world.forwarder
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher)
    route = world.route(stream, subscriber)
    for misuse in (
        lambda: world.stream(publisher),
        lambda: world.route(stream, subscriber),
        lambda: world.route(stream, subscriber, 5, first_sequence=0x8000),
        lambda: world.route(stream, subscriber, 5, rtx_ssrc=6),
        lambda: world.route(stream, subscriber, 5, mid="x" * 17),
        lambda: world.route(stream, subscriber, 5, extensions={MID: 15}),
        lambda: forwarder.remove_route(route + 1000),
        lambda: forwarder.remove_stream(route),
        lambda: forwarder.remove_peer(stream),
        lambda: forwarder.bind(publisher.peer, ("127.0.0.1", 0)),
        lambda: forwarder.bind(publisher.peer, ("::1", 5)),
        lambda: forwarder.bind(publisher.peer, ("not an address", 5)),
        lambda: forwarder.bind(publisher.peer, ("127.0.0.1", 5), 2),
        lambda: forwarder.set_keys(
            publisher.peer, Profile.AEAD_AES_128_GCM, bytes(16), bytes(14), bytes(16), bytes(12)
        ),
        lambda: forwarder.send_rtcp(publisher.peer, b"short"),
        lambda: forwarder.send_raw(publisher.address, bytes(2000)),
        lambda: forwarder.switch(route, 12345),
        lambda: forwarder.add_route(stream, 12345, RouteParameters(ssrc=1, payload_type=1)),
    ):
        with pytest.raises(ForwarderError):
            misuse()
    publisher.send(rtp(1))
    assert len(subscriber.receive()) == 1


def test_closed_forwarder_refuses(world: World) -> None:
    world.forwarder.close()
    world.forwarder.close()
    with pytest.raises(ForwarderError):
        world.forwarder.add_peer()


def test_python_calls_do_not_grow_with_packets(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    world.route(world.stream(publisher), subscriber)
    before = world.forwarder.stats().python_calls
    publisher.send(*(rtp(i) for i in range(200)))
    for _ in range(200):
        subscriber.socket.recv(2048)
    assert world.forwarder.stats().python_calls == before + 1
