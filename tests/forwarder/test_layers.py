"""Scalable streams: what a subscriber gets of them is one stream without holes, whatever is left out."""

from __future__ import annotations

import random

import pytest

from mediaserver.forwarder import ABS_SEND_TIME, MID, TRANSPORT_CC, ForwarderError, StreamParameters
from mediaserver.forwarder.layers import LayerReader, Structure, _Bits, rewrite_descriptor, vp9_layer
from mediaserver.forwarder.native import ffi, load
from mediaserver.forwarder.wire import AV1, VP9, parse_rtp
from tests.forwarder.ends import End, Seen, World, rtp, sequences
from tests.forwarder.scalable import DEPENDENCY_ID, EXTENSIONS, STRUCTURES, ScalableStream, Sent
from tests.forwarder.test_resending import nack

CODECS = ("VP9", "AV1")
DESCRIBED = 11
ROUTED = {uri: number for uri, number in EXTENSIONS.items() if uri not in (MID, TRANSPORT_CC, ABS_SEND_TIME)}


def wanted(packets: list[Sent], spatial: int, temporal: int) -> list[Sent]:
    """Return what of them is of these layers."""
    return [one for one in packets if one.spatial <= spatial and one.temporal <= temporal]


def payloads(packets: list[Sent]) -> list[bytes]:
    """Return the payloads as sent."""
    return [Seen(one.data).payload for one in packets]


def begin(world: World, codec: str, **more: object) -> tuple[ScalableStream, End, End, int]:
    """Publish a scalable stream and subscribe to it; return it, both ends and the route."""
    publisher, subscriber = world.end(), world.end()
    source = ScalableStream(codec)
    extensions = {
        **ROUTED,
        **{uri: DESCRIBED for uri, number in EXTENSIONS.items() if number == DEPENDENCY_ID},
    }
    stream = world.forwarder.add_stream(publisher.peer, 0x1111, parameters(codec))
    route = world.route(stream, subscriber, extensions=extensions, allow_mixed=True, **more)  # type: ignore[arg-type]
    return source, publisher, subscriber, route


def parameters(codec: str) -> StreamParameters:
    """Describe the stream."""
    return StreamParameters("video", f"video/{codec}", 90000, 96, extensions=EXTENSIONS)


def send(publisher: End, packets: list[Sent]) -> None:
    """Send packets in their order."""
    publisher.send(*(one.data for one in packets))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("spatial", "temporal"), [(0, 0), (0, 2), (1, 1), (1, None), (None, 1), (2, 0)])
def test_only_the_wished_layers_are_sent_without_holes(
    world: World, codec: str, spatial: int | None, temporal: int | None
) -> None:
    source, publisher, subscriber, route = begin(world, codec)
    world.forwarder.set_layers(route, spatial, temporal)
    packets = source.pictures(12)
    send(publisher, packets)
    seen = subscriber.receive()
    top = 2 if spatial is None else spatial
    kept = wanted(packets, top, 2 if temporal is None else temporal)
    assert [packet.payload for packet in seen] == payloads(kept)
    assert sequences(seen) == list(range(100, 100 + len(kept)))
    assert [packet.marker for packet in seen] == [one.last and one.spatial == top for one in kept]
    stats = world.forwarder.route_stats(route)
    assert stats.packets == len(kept)
    assert (stats.spatial, stats.temporal) == tuple(255 if x is None else x for x in (spatial, temporal))


@pytest.mark.parametrize("codec", CODECS)
def test_down_at_the_next_picture_and_up_at_the_next_keyframe(world: World, codec: str) -> None:
    source, publisher, subscriber, route = begin(world, codec)
    first = source.pictures(3)
    half, rest = source.next(), source.pictures(3)
    send(publisher, first + half[:3])
    world.settle()
    world.forwarder.set_layers(route, 0, None)  # in the midst of a picture: it is sent whole
    send(publisher, half[3:] + rest)
    world.settle()
    assert world.forwarder.route_stats(route).spatial == 0
    world.forwarder.set_layers(route, 1, None)
    more, key = source.pictures(2), source.next(key=True)
    send(publisher, more)
    world.settle()
    assert world.forwarder.route_stats(route).spatial == 0
    send(publisher, key + source.pictures(2))
    seen = subscriber.receive()
    kept = first + half + wanted(rest + more, 0, 2) + wanted(key, 1, 2)
    assert [packet.payload for packet in seen][: len(kept)] == payloads(kept)
    assert sequences(seen) == list(range(100, 100 + len(seen)))
    assert world.forwarder.route_stats(route).spatial == 1


@pytest.mark.parametrize("codec", CODECS)
def test_temporally_up_where_the_stream_says_that_one_can(world: World, codec: str) -> None:
    source, publisher, subscriber, route = begin(world, codec)
    world.forwarder.set_layers(route, None, 0)
    send(publisher, low := source.pictures(2))
    world.settle()
    world.forwarder.set_layers(route, None, 2)
    send(publisher, high := source.pictures(8))
    seen = subscriber.receive()
    # Pictures 2 and 3 need none of those left out only from 4, of temporal layer 0, on.
    kept = wanted(low, 2, 0) + [one for one in high if one.picture >= 4]
    assert [packet.payload for packet in seen] == payloads(kept)
    assert sequences(seen) == list(range(100, 100 + len(kept)))


@pytest.mark.parametrize("codec", CODECS)
def test_a_late_packet_that_is_left_out_leaves_no_hole(world: World, codec: str) -> None:
    source, publisher, subscriber, route = begin(world, codec, rtx_ssrc=0x3333, rtx_payload_type=112)
    world.forwarder.set_layers(route, 1, None)
    packets = source.pictures(3)
    lost = [at for at, one in enumerate(packets) if one.picture == 1 and one.spatial in (1, 2)]
    send(publisher, [one for at, one in enumerate(packets) if at not in lost])
    seen = subscriber.receive()
    numbers = sequences(seen)
    holes = sorted(set(range(100, numbers[-1])) - set(numbers))
    assert len(holes) == len(lost)  # nobody knows yet whether they are of a layer that is sent
    send(publisher, [packets[at] for at in lost])
    late = subscriber.receive()
    assert sorted(sequences(late)) == holes
    for at, packet in zip(lost, late, strict=True):
        if packets[at].spatial == 1:
            assert packet.payload == payloads([packets[at]])[0]
        else:
            assert packet.data[0] & 0x20
            assert packet.payload == b"\x01"
    subscriber.send_rtcp(nack(0x2222, *((hole, 0) for hole in holes)))
    again = subscriber.receive()
    assert [packet.payload[:2] for packet in again] == [hole.to_bytes(2, "big") for hole in holes]


@pytest.mark.parametrize("codec", CODECS)
def test_without_rtx_a_packet_is_sent_again_bit_by_bit(world: World, codec: str) -> None:
    source, publisher, subscriber, route = begin(world, codec)
    world.forwarder.set_layers(route, 1, 1)
    send(publisher, source.pictures(4))
    sealed = subscriber.receive_bytes()
    numbers = sequences([Seen(subscriber.rx.unprotect(data)) for data in sealed])
    world.forwarder.set_layers(route, 0, 0)
    send(publisher, source.pictures(2))
    subscriber.receive_bytes()
    assert world.forwarder.resend(route, numbers) == len(numbers) == 8
    assert subscriber.receive_bytes() == sealed


@pytest.mark.parametrize("codec", CODECS)
def test_descriptors_say_what_is_left(world: World, codec: str) -> None:
    source, publisher, subscriber, route = begin(world, codec)
    world.forwarder.set_layers(route, 1, 0)
    packets = source.pictures(5)
    send(publisher, packets)
    seen = subscriber.receive()
    kept = wanted(packets, 1, 0)
    assert len(seen) == len(kept)
    structure: Structure | None = None
    for packet, one in zip(seen, kept, strict=True):
        told, original = packet.elements[DESCRIBED], Seen(one.data).elements[DEPENDENCY_ID]
        assert told[:3] == original[:3]
        bits = _Bits(told)
        bits.at = 24
        flags = bits.read(5) if len(told) > 3 else 0
        if flags & 0x10:
            structure = Structure(bits)
        assert structure is not None
        first = told[0] & 0x80 and one.spatial == 0
        assert bool(flags & 0x08) == bool(first)
        if first:
            targets = [(s, t) for s in range(3) for t in range(3)]
            active = bits.read(9)
            assert sorted(structure.targets) == targets
            assert [x for at, x in enumerate(structure.targets) if active >> at & 1] == [(0, 0), (1, 0)]
        if not first:
            assert told == original


def test_frame_numbers_go_on_when_another_stream_is_switched_to(world: World) -> None:
    source, publisher, subscriber, route = begin(world, "AV1")
    again = world.end()
    send(publisher, source.pictures(3))
    world.settle()
    world.forwarder.remove_peer(publisher.peer)
    other = ScalableStream("AV1", ssrc=9, first=60000)
    other.frame = 40000
    stream = world.forwarder.add_stream(again.peer, 9, parameters("AV1"))
    world.forwarder.switch(route, stream)
    send(again, other.pictures(2))
    seen = subscriber.receive()
    numbers = [int.from_bytes(packet.elements[DESCRIBED][1:3], "big") for packet in seen]
    assert numbers == [at // 2 for at in range(30)]


@pytest.mark.parametrize("codec", CODECS)
def test_layers_are_counted(world: World, codec: str) -> None:
    publisher = world.end()
    stream = world.forwarder.add_stream(publisher.peer, 0x1111, parameters(codec))
    packets = ScalableStream(codec).pictures(4)
    send(publisher, packets)
    world.settle()
    found = world.forwarder.layer_bytes(stream)
    expected = [[0] * 4 for _ in range(4)]
    for one, payload in zip(packets, payloads(packets), strict=True):
        expected[one.spatial][one.temporal] += len(payload)
    assert found == expected


def test_what_cannot_be_is_refused(world: World) -> None:
    _, _, _, route = begin(world, "VP9")
    for wish in ((-1, None), (None, 256)):
        with pytest.raises(ForwarderError):
            world.forwarder.set_layers(route, *wish)
    with pytest.raises(ForwarderError):
        world.forwarder.set_layers(route + 1000, 0, 0)
    with pytest.raises(ForwarderError):
        world.forwarder.layer_bytes(route + 1000)


@pytest.mark.parametrize("codec", CODECS)
def test_hostile_descriptors_are_sent_on_and_harm_nothing(world: World, codec: str) -> None:
    source, publisher, subscriber, route = begin(world, codec)
    world.forwarder.set_layers(route, 1, 1)
    whole = bytes.fromhex(STRUCTURES["L3T3"])
    rng = random.Random(5)
    told = [whole[:size] for size in range(1, len(whole))]
    told += [bytes((*whole[:3], *rng.randbytes(size))) for size in range(1, 60)]
    send(publisher, source.next())
    sent = 0
    for at, value in enumerate(told):
        payload = rng.randbytes(rng.randrange(1, 6))
        packet = rtp(
            5000 + at, timestamp=90000 * at, payload=payload, elements=[(DEPENDENCY_ID, value)], two_byte=True
        )
        publisher.send(packet)
        sent += 1
    seen = subscriber.receive()
    assert 0 < len(seen) <= sent + 4
    numbers = sequences(seen)
    assert numbers == sorted(set(numbers))


def conversation(kind: str, codec: str, seed: int) -> tuple[list[bytes], list[int]]:
    """Lose, reorder, wish and ask again by chance; return what was sent and counted."""
    rng = random.Random(seed)
    world = World(kind)
    try:
        source, publisher, subscriber, route = begin(world, codec)
        out: list[bytes] = []
        late: list[Sent] = []
        for _ in range(60):
            if rng.random() < 0.3:
                world.forwarder.set_layers(route, rng.choice((None, 0, 1, 2)), rng.choice((None, 0, 1, 2)))
            if rng.random() < 0.1:
                world.forwarder.pause(route, True)
                world.forwarder.pause(route, False)
            packets = source.next(key=rng.random() < 0.15)
            if rng.random() < 0.2:
                rng.shuffle(packets)
            if rng.random() < 0.3:
                late.append(packets.pop(rng.randrange(len(packets))))
            send(publisher, packets)
            if late and rng.random() < 0.5:
                send(publisher, [late.pop(rng.randrange(len(late)))])
            sealed = subscriber.receive_bytes()
            seen = [Seen(subscriber.rx.unprotect(data)) for data in sealed]
            out += [packet.data for packet in seen]
            if seen and rng.random() < 0.3:
                at = rng.randrange(len(seen))
                world.forwarder.resend(route, [seen[at].sequence])
                assert subscriber.receive_bytes() == [sealed[at]]
        stats = world.forwarder.route_stats(route)
        facts = [
            stats.packets,
            stats.bytes,
            stats.last_sequence,
            stats.spatial,
            stats.temporal,
            stats.retransmitted,
        ]
        return out, facts
    finally:
        world.close()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seed", range(4))
def test_both_forwarders_send_the_same(codec: str, seed: int) -> None:
    print(f"seed {seed}")
    native, python = conversation("native", codec, seed), conversation("python", codec, seed)
    assert native == python
    assert len(native[0]) > 50


@pytest.mark.parametrize("mode", STRUCTURES)
def test_structures_of_chromium(mode: str) -> None:
    reader = LayerReader(AV1, 1)
    data = rtp(0, elements=[(1, bytes.fromhex(STRUCTURES[mode]))], two_byte=True)
    packet = parse_rtp(data, 0)
    assert packet is not None
    reader.read(packet)
    structure = reader.structure
    assert structure is not None
    spatial, temporal = int(mode[1]), int(mode[3])
    assert sorted(structure.targets) == [(s, t) for s in range(spatial) for t in range(temporal)]
    assert packet.layered is not None
    assert (packet.layered.spatial, packet.layered.temporal) == (0, 0)
    assert packet.layered.up == temporal - 1
    assert structure.active == (1 << spatial * temporal) - 1


def test_rewriting_agrees_with_the_native_twin_and_keeps_all_else() -> None:
    library = load()
    rng = random.Random(11)
    told = [bytes.fromhex(value) for value in STRUCTURES.values()]
    told += [value[:size] for value in told for size in range(1, len(value), 5)]
    told += [rng.randbytes(rng.randrange(1, 90)) for _ in range(500)]
    out = ffi.new("uint8_t[]", 300)
    for value in told:
        for targets in (0, 2, 9, 32):
            mask = rng.randrange(1 << targets) if targets else 0
            ours = rewrite_descriptor(value, 77, mask, targets)
            size = library.fwd_rewrite_for_test(value, len(value), 77, mask, targets, out)
            assert bytes(ffi.buffer(out, size)) == ours, (value.hex(), targets)
            assert len(ours) <= len(value) + 5
    value = bytes.fromhex(STRUCTURES["L3T3"])
    bits = _Bits(rewrite_descriptor(value, 0, 0b101, 9))
    bits.at = 24
    assert bits.read(5) == 0x18
    Structure(bits)
    assert bits.read(9) == 0b101


def test_vp9_layers_of_chromium() -> None:
    layer = vp9_layer(bytes.fromhex("adf57e33"), 0, 4)  # TID 1, U, SID 1, D
    assert layer is not None
    assert (layer.spatial, layer.temporal, layer.up, layer.starts, layer.ends) == (1, 1, 7, True, True)
    assert VP9 == 2
    for cut in range(3):
        assert vp9_layer(bytes.fromhex("adf57e33"), 0, cut) is None
