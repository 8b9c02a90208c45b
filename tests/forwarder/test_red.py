"""Redundant audio (RFC 2198): passed on in the subscriber's numbers, or its primary block alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediaserver.forwarder import (
    ABS_SEND_TIME,
    AUDIO_LEVEL,
    MID,
    TRANSPORT_CC,
    ForwarderError,
    Profile,
    StreamParameters,
)
from mediaserver.forwarder.red import FOREIGN, MALFORMED, primary, renumbered
from recorder.depacketise import parse_red
from recorder.rtp import RtpError
from tests.forwarder.ends import End, Seen, World, rtp
from tests.forwarder.test_resending import nack

RED, OPUS = 98, 96
EXTENSIONS = {TRANSPORT_CC: 3, ABS_SEND_TIME: 4, MID: 1, AUDIO_LEVEL: 7}


def red(own: bytes, *copies: tuple[int, bytes], kind: int = OPUS) -> bytes:
    """Build a RED payload; ``copies`` are (media time before the packet, frame)."""
    heads = [(1 << 31 | kind << 24 | before << 10 | len(copy)).to_bytes(4, "big") for before, copy in copies]
    return b"".join(heads) + bytes((kind,)) + b"".join(copy for _, copy in copies) + own


def sound(count: int, first: int = 0) -> list[bytes]:
    """Return packets of speech: each with its frame and the two before it, one in five plain."""
    frames = [bytes((0x78, at & 255)) * (at % 7 + 1) for at in range(first + count)]
    packets = []
    for at in range(first, first + count):
        copies = [(960 * (at - old), frames[old]) for old in range(max(0, at - 2), at)]
        plain = at % 5 == 4
        packets.append(
            rtp(
                at,
                timestamp=960 * at,
                payload_type=OPUS if plain else RED,
                payload=frames[at] if plain else red(frames[at], *copies),
                elements=[(4, bytes((at & 127,)))],
                padding=4 * (at % 3 == 1),
            )
        )
    return packets


def frames_of(packets: list[Seen]) -> list[bytes]:
    """Return the payloads without their padding."""
    return [p.payload[: -p.payload[-1]] if p.data[0] & 0x20 else p.payload for p in packets]


def listen(world: World, publisher: End, *, takes: bool, **more: object) -> tuple[End, int, int]:
    subscriber = world.end()
    stream = world.stream(publisher, red_payload_type=RED, track=1)
    if takes:
        more["red_payload_type"] = 113
    route = world.route(stream, subscriber, 0x2222, extensions=EXTENSIONS, mid="a", **more)
    return subscriber, stream, route


def test_a_subscriber_with_red_gets_all_blocks_in_its_numbers(world: World) -> None:
    publisher = world.end()
    subscriber, stream, route = listen(world, publisher, takes=True)
    packets = sound(20)
    publisher.send(*packets)
    seen = subscriber.receive()
    assert [packet.sequence for packet in seen] == list(range(100, 120))
    assert [packet.payload_type for packet in seen] == [111 if at % 5 == 4 else 113 for at in range(20)]
    for at, (packet, payload) in enumerate(zip(seen, frames_of(seen), strict=True)):
        received = frames_of([Seen(packets[at])])[0]
        if packet.payload_type == 111:
            assert payload == received
        else:
            assert parse_red(payload) == [replace(block, payload_type=111) for block in parse_red(received)]
        assert packet.elements[7] == bytes((at & 127,))
    stats = world.forwarder.route_stats(route)
    assert stats.bytes == sum(len(payload) for payload in frames_of(seen))
    assert world.forwarder.stream_stats(stream).other_payload == 0


def test_a_subscriber_without_gets_the_frames_alone(world: World) -> None:
    publisher = world.end()
    subscriber, _, route = listen(world, publisher, takes=False)
    publisher.send(*sound(20))
    seen = subscriber.receive()
    assert [packet.sequence for packet in seen] == list(range(100, 120))
    assert {packet.payload_type for packet in seen} == {111}
    assert [packet.timestamp for packet in seen] == [960 * at for at in range(20)]
    assert frames_of(seen) == [bytes((0x78, at)) * (at % 7 + 1) for at in range(20)]
    assert world.forwarder.route_stats(route).bytes == sum(len(payload) for payload in frames_of(seen))


def test_recordings_get_the_packets_as_they_came(world: World) -> None:
    publisher = world.end()
    listen(world, publisher, takes=False)
    packets = sound(20)
    publisher.send(*packets)
    world.settle()
    assert [data for _, _, data, is_rtcp in world.forwarder.take_tapped() if not is_rtcp] == packets


@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize("profile", list(Profile))
def test_what_is_sent_again_is_the_same_bytes(world: World, profile: Profile, takes: bool) -> None:
    publisher, subscriber = world.end(profile), world.end(profile)
    stream = world.stream(publisher, red_payload_type=RED)
    more = {"red_payload_type": 113} if takes else {}
    route = world.route(stream, subscriber, extensions=EXTENSIONS, mid="a", **more)
    publisher.send(*sound(20))
    first = subscriber.receive_bytes()
    world.forwarder.switch(route, stream, payload_type=110)  # of the next epoch
    subscriber.send_rtcp(nack(0x2222, (104, 0b111), (112, 0)))
    assert subscriber.receive_bytes() == [*first[4:8], first[12]]


def test_after_another_payload_type_the_old_packets_are_the_same(world: World) -> None:
    publisher = world.end()
    subscriber, _, route = listen(world, publisher, takes=True)
    second = world.stream(publisher, 0x7777, red_payload_type=RED)
    publisher.send(*sound(5))
    before = subscriber.receive_bytes()
    world.forwarder.switch(route, second, payload_type=110)
    publisher.send(rtp(7, ssrc=0x7777, payload_type=RED, payload=red(b"new", (960, b"old"))))
    (after,) = subscriber.receive()
    assert [block.payload_type for block in parse_red(after.payload)] == [110, 110]
    subscriber.send_rtcp(nack(0x2222, (101, 1)))
    assert subscriber.receive_bytes() == before[1:3]


def test_with_rtx_the_frames_alone_are_sent_and_sent_again(world: World) -> None:
    publisher = world.end()
    subscriber, _, _ = listen(world, publisher, takes=True, rtx_ssrc=0x3333, rtx_payload_type=112)
    publisher.send(*sound(10))
    seen = subscriber.receive()
    assert {packet.payload_type for packet in seen} == {111}
    subscriber.send_rtcp(nack(0x2222, (103, 0)))
    (again,) = subscriber.receive()
    assert (again.payload_type, again.payload[2:]) == (112, seen[3].payload)


def test_red_without_agreement_is_another_payload(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher)
    world.route(stream, subscriber, red_payload_type=113)
    publisher.send(*sound(5))
    assert [packet.sequence for packet in subscriber.receive()] == [100]  # the plain one
    assert world.forwarder.stream_stats(stream).other_payload == 4


BAD = {
    "empty": b"",
    "no primary block": (1 << 31 | OPUS << 24).to_bytes(4, "big"),
    "head cut off": b"\xe0\0\0",
    "block cut off": red(b"", (960, b"copy"))[:-1],
    "33 copies": red(b"own", *[(960, b"")] * 33),
}


@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize("name", BAD)
def test_malformed_red_is_dropped_and_counted(world: World, name: str, takes: bool) -> None:
    publisher = world.end()
    subscriber, stream, _ = listen(world, publisher, takes=takes)
    good = rtp(0, payload_type=RED, payload=red(b"own"))
    publisher.send(good, rtp(1, payload_type=RED, payload=BAD[name]), rtp(2, payload_type=OPUS))
    assert [packet.sequence for packet in subscriber.receive()] == [100, 102]
    assert world.forwarder.stream_stats(stream).malformed == 1


@pytest.mark.parametrize("takes", [True, False])
def test_blocks_of_another_codec_are_dropped_and_counted(world: World, takes: bool) -> None:
    publisher = world.end()
    subscriber, stream, _ = listen(world, publisher, takes=takes)
    mixed = red(b"own", (960, b"copy"))
    mixed = bytes((0x80 | 13,)) + mixed[1:]
    publisher.send(
        rtp(0, payload_type=RED, payload=red(b"own")),
        rtp(1, payload_type=RED, payload=mixed),
        rtp(2, payload_type=RED, payload=red(b"noise", kind=13)),
        rtp(3, payload_type=RED, payload=red(b"own", *[(960, b"x")] * 32)),
    )
    assert [packet.sequence for packet in subscriber.receive()] == [100, 103]
    stats = world.forwarder.stream_stats(stream)
    assert (stats.other_payload, stats.malformed) == (2, 0)


def test_parameters_that_contradict_are_refused(world: World) -> None:
    publisher = world.end()
    for kind, number in (("video", RED), ("audio", OPUS)):
        parameters = StreamParameters(kind, f"{kind}/any", 48000, OPUS, red_payload_type=number)
        with pytest.raises(ForwarderError, match="RED"):
            world.forwarder.add_stream(publisher.peer, 5, parameters)


def media(end: End) -> list[bytes]:
    return [data for data in end.receive_bytes() if not 192 <= data[1] <= 223]


def conversation(kind: str, seed: int) -> tuple[list[bytes], list[bytes], object]:
    """Send good and bad RED; return all that two subscribers got, and what was counted."""
    generator = random.Random(seed)
    world = World(kind)
    try:
        publisher = world.end()
        stream = world.stream(publisher, red_payload_type=RED)
        ends = [world.end(), world.end()]
        for end, more in zip(ends, ({"red_payload_type": 113}, {}), strict=True):
            world.route(stream, end, 0x2222, extensions={MID: 1, AUDIO_LEVEL: 2}, mid="a", **more)
        received: list[list[bytes]] = [[], []]
        for turn in range(12):
            packets = [bytearray(packet) for packet in sound(10, 10 * turn)]
            for packet in packets:
                if generator.random() < 0.3:
                    packet[generator.randrange(20, len(packet))] = generator.randrange(256)
                if generator.random() < 0.1:
                    del packet[generator.randrange(20, len(packet)) :]
            publisher.send(*map(bytes, packets))
            for end, got in zip(ends, received, strict=True):
                got += media(end)
                end.send_rtcp(nack(0x2222, (100 + 10 * turn, generator.randrange(1 << 16))))
                again = media(end)
                assert set(again) <= set(got)
                got += again
        stats = world.forwarder.stream_stats(stream)
        return received[0], received[1], (stats.packets, stats.other_payload, stats.malformed, stats.bytes)
    finally:
        world.close()


@pytest.mark.parametrize("seed", range(4))
def test_both_forwarders_take_red_alike(seed: int) -> None:
    ours, theirs = conversation("python", seed), conversation("native", seed)
    assert ours == theirs
    assert len(ours[0]) > 100


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=8).map(lambda own: red(own, (960, b"copy")))))
@settings(max_examples=500, deadline=None)
def test_it_is_read_as_the_recorder_reads_it(payload: bytes) -> None:
    found = primary(b"head" + payload, 4, 4 + len(payload), None)
    try:
        blocks = parse_red(payload)
    except RtpError:
        assert found == MALFORMED
        return
    assert payload[found - 4 :] == blocks[-1].data
    kinds = {block.payload_type for block in blocks}
    assert (primary(payload, 0, len(payload), OPUS) == FOREIGN) == (kinds != {OPUS})
    assert parse_red(renumbered(payload, 5)) == [replace(block, payload_type=5) for block in blocks]
