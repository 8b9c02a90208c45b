"""What is known of a received stream: numbers, loss, keyframes, new SSRCs, and the tap."""

from __future__ import annotations

import random
import time

import pytest

from mediaserver.forwarder import (
    MID,
    REPAIRED_RID,
    RID,
    Gap,
    Keyframe,
    NewSsrc,
    Profile,
    TapDropped,
)
from tests.forwarder.ends import World, rtp, sequences, vp8


def test_counts_loss_and_gaps(world: World) -> None:
    publisher = world.end()
    stream = world.stream(publisher)
    publisher.send(*(rtp(n) for n in (65530, 65531, 65534, 2, 1, 65535, 0)))
    gaps = [(gap.first, gap.last) for gap in world.take(Gap) if isinstance(gap, Gap)]
    assert gaps == [(65532, 65533), (65535, 1)]
    stats = world.forwarder.stream_stats(stream)
    assert (stats.packets, stats.expected, stats.lost) == (7, 9, 2)
    assert (stats.base_sequence, stats.max_sequence) == (65530, 0x10002)
    assert world.forwarder.missing(stream) == [65532, 65533]
    assert world.forwarder.missing(stream, 4) == []


def test_an_earlier_first_packet_moves_the_base(world: World) -> None:
    publisher = world.end()
    stream = world.stream(publisher)
    publisher.send(rtp(10), rtp(9), rtp(11))
    world.settle()
    stats = world.forwarder.stream_stats(stream)
    assert (stats.base_sequence, stats.expected, stats.lost) == (9, 3, 0)


@pytest.mark.parametrize("profile", list(Profile))
def test_reordered_packets_pass_in_their_places_over_roll_overs(world: World, profile: Profile) -> None:
    publisher, subscriber = world.end(profile), world.end(profile)
    stream = world.stream(publisher)
    world.route(stream, subscriber, first_sequence=0)
    rng = random.Random(7)
    order = [65000 + i for i in range(1000)]
    for at in range(0, 1000, 20):
        part = order[at : at + 20]
        rng.shuffle(part)
        order[at : at + 20] = part
    first = order[0]
    # The publisher's own SRTP must protect in order; the network reorders.
    protected = {n: publisher.tx.protect(rtp(n, payload=n.to_bytes(4, "big"))) for n in sorted(order)}
    seen = []
    for at in range(0, 1000, 100):
        for n in order[at : at + 100]:
            publisher.send_bytes(protected[n])
        seen += subscriber.receive()
    in_time = [n for n in order if n >= first]  # before the route's first packet nothing is sent
    assert [int.from_bytes(packet.payload, "big") for packet in seen] == in_time
    assert [packet.sequence for packet in seen] == [(n - first) & 0xFFFF for n in in_time]
    stats = world.forwarder.stream_stats(stream)
    assert (stats.packets, stats.lost, stats.duplicates) == (1000, 0, 0)
    assert stats.max_sequence == 65999


def test_a_jump_back_too_far_is_dropped(world: World) -> None:
    publisher = world.end(Profile.AES_CM_128_HMAC_SHA1_80)
    stream = world.stream(publisher, rtx_ssrc=0x9999, rtx_payload_type=97)
    publisher.send(rtp(5000), rtp(6500))
    publisher.send(rtp(1, ssrc=0x9999, payload_type=97, payload=(5100).to_bytes(2, "big")))
    publisher.send(rtp(2, ssrc=0x9999, payload_type=97, payload=(6499).to_bytes(2, "big")))
    world.settle()
    stats = world.forwarder.stream_stats(stream)
    assert (stats.late, stats.recovered, stats.max_sequence) == (1, 1, 6500)


def test_jitter_follows_the_arrivals(world: World) -> None:
    publisher = world.end()
    even, uneven = world.stream(publisher, 1), world.stream(publisher, 2)
    for i in range(200):
        # 0 ticks apart sent at once is even; 9,600 ticks (0.2 s) apart is not.
        publisher.send(rtp(i, ssrc=1, timestamp=0), rtp(i, ssrc=2, timestamp=9600 * (i % 2)))
    world.settle()
    assert world.forwarder.stream_stats(even).jitter < 4000
    assert world.forwarder.stream_stats(uneven).jitter > 6000


def test_arrival_times_are_monotonic_clock(world: World) -> None:
    publisher = world.end()
    stream = world.stream(publisher, track=1)
    before = time.monotonic_ns()
    publisher.send(*(rtp(i) for i in range(50)))
    world.settle()
    after = time.monotonic_ns()
    times = [arrival for _, arrival, _, _ in world.forwarder.take_tapped()]
    assert len(times) == 50
    assert times == sorted(times)
    # The kernel's stamp is wallclock; converting it costs microseconds of accuracy.
    assert before - 1_000_000 <= times[0]
    assert times[-1] <= after
    stats = world.forwarder.stream_stats(stream)
    assert (stats.first_arrival_ns, stats.last_arrival_ns) == (times[0], times[-1])


KEYFRAMES = [
    ("video/VP8", vp8(True, 1, 1), True),
    ("video/vp8", vp8(True), True),
    ("video/VP8", vp8(False), False),
    ("video/VP8", vp8(True, start=False), False),
    ("video/VP8", b"\x90\xe0\x05\x01\x00\x00", True),  # 7 bit picture id
    ("video/VP8", b"\x90\xf0\x80\x05\x01\x20\x00", True),  # picture id, TL0PICIDX, TID
    ("video/VP8", b"\x11\x00", False),  # not partition 0
    ("video/H264", b"\x67\x42\x00\x1f", True),
    ("video/H264", b"\x65\x88", True),
    ("video/H264", b"\x61\x88", False),
    ("video/H264", b"\x78\x00\x02\x09\xf0\x00\x04\x67\x42\x00\x1f", True),  # STAP-A: AUD, SPS
    ("video/H264", b"\x78\x00\x02\x41\xf0\x00\x02\x41\x00", False),
    ("video/H264", b"\x7c\x85\x88", True),  # FU-A, start, IDR
    ("video/H264", b"\x7c\x05\x88", False),  # FU-A, not its start
    ("video/H264", b"\x7c\x81\x88", False),
    ("video/VP9", b"\x08\x00", True),
    ("video/VP9", b"\x48\x00", False),  # inter-picture predicted
    ("video/VP9", b"\x00\x00", False),  # not the beginning of a frame
    ("video/VP9", b"\xa8\x85\x01\x00\x00", True),  # picture id, spatial layer 0
    ("video/VP9", b"\xa8\x85\x01\x02\x00", False),  # spatial layer 1
    ("video/AV1", b"\x18\x0a", True),
    ("video/AV1", b"\x10\x0a", False),
    ("video/AV1", b"\x98\x0a", False),  # continues an OBU
    ("video/other", b"\x67", False),
    ("audio/opus", b"\x67", False),
    ("video/VP8", b"", False),
    ("video/H264", b"\x78\xff\xff\x67", True),
]


def test_tells_keyframes(world: World) -> None:
    publisher = world.end()
    wrong = []
    for ssrc, (mime, payload, keyframe) in enumerate(KEYFRAMES, 1):
        stream = world.stream(publisher, ssrc, mime=mime, clock_rate=90000)
        publisher.send(rtp(1, ssrc=ssrc, payload=payload, timestamp=77))
        world.settle()
        stats = world.forwarder.stream_stats(stream)
        if (stats.keyframes == 1) != keyframe or (stats.last_keyframe_ns > 0) != keyframe:
            wrong.append((mime, payload.hex(), keyframe))
    assert not wrong
    events = world.take(Keyframe)
    assert len(events) == sum(keyframe for _, _, keyframe in KEYFRAMES)
    assert all(isinstance(event, Keyframe) and event.timestamp == 77 for event in events)


def test_a_new_ssrc_is_said_once_and_its_packets_are_held(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    world.forwarder.set_extensions(publisher.peer, {MID: 1, RID: 10, REPAIRED_RID: 11})
    publisher.send(
        rtp(1, ssrc=0xABC, elements=[(1, b"0"), (10, b"hi")], payload=vp8(True, 1)),
        rtp(1, ssrc=0xDEF, elements=[(11, b"hi")], payload_type=97),
        rtp(2, ssrc=0xABC, payload=vp8(False, 2)),
    )
    events = [event for event in world.take(NewSsrc) if isinstance(event, NewSsrc)]
    assert [(e.peer, e.ssrc, e.payload_type, e.mid, e.rid, e.repaired_rid) for e in events] == [
        (publisher.peer, 0xABC, 96, "0", "hi", ""),
        (publisher.peer, 0xDEF, 97, "", "", "hi"),
    ]
    world.forwarder.ignore_ssrc(publisher.peer, 0xDEF)
    stream = world.stream(publisher, 0xABC, mime="video/VP8", clock_rate=90000, track=8)
    tapped = world.forwarder.take_tapped()
    assert tapped[0][:2] == (8, events[0].arrival_ns)
    assert len(tapped) == 2
    world.route(stream, subscriber)
    publisher.send(rtp(3, ssrc=0xABC, payload=vp8(False, 3)), rtp(2, ssrc=0xDEF, payload_type=97))
    assert sequences(subscriber.receive()) == [100, 101, 102]
    assert world.forwarder.peer_stats(publisher.peer).ssrc_refused == 1


def test_held_packets_are_bounded(world: World) -> None:
    publisher = world.end()
    publisher.send(*(rtp(i) for i in range(100)))
    world.settle()
    assert world.forwarder.peer_stats(publisher.peer).ssrc_refused == 36
    stream = world.stream(publisher)
    assert world.forwarder.stream_stats(stream).packets == 64


def test_the_tap_is_complete_and_exact(world: World) -> None:
    publisher, subscriber = world.end(), world.end()
    stream = world.stream(publisher, track=5)
    other = world.stream(publisher, 0x77)
    world.route(stream, subscriber)
    rng = random.Random(1)
    packets = [
        rtp(
            i,
            timestamp=i * 960,
            payload=rng.randbytes(rng.randrange(1, 1200)),
            marker=bool(i & 1),
            elements=[(1, b"m"), (3, bytes(2)), (12, b"kept")],
            padding=rng.choice((0, 3)),
        )
        for i in range(500)
    ]
    for at in range(0, 500, 50):
        publisher.send(*packets[at : at + 50], rtp(at, ssrc=0x77))
        world.settle()
    tapped = world.forwarder.take_tapped()
    assert [packet for _, _, packet, _ in tapped] == packets
    assert {(track, is_rtcp) for track, _, _, is_rtcp in tapped} == {(5, False)}
    world.forwarder.tap(stream, None)
    world.forwarder.tap(other, 6)
    publisher.send(rtp(500), rtp(501, ssrc=0x77))
    world.settle()
    assert [(track, packet) for track, _, packet, _ in world.forwarder.take_tapped()] == [
        (6, rtp(501, ssrc=0x77))
    ]


def test_an_undrained_tap_is_bounded_and_told(world: World) -> None:
    publisher = world.end()
    world.stream(publisher, track=5, keep_bytes=10_000)
    packet = bytes(1300)
    count = (16 << 20) // 1312 + 50
    for at in range(0, count, 200):
        publisher.send(*(rtp(i, payload=packet) for i in range(at, min(at + 200, count))))
        world.settle()
    event = world.take(TapDropped)[0]
    assert isinstance(event, TapDropped)
    tapped = world.forwarder.take_tapped()
    assert sum(len(data) for _, _, data, _ in tapped) <= 16 << 20
    dropped = sum(e.packets for e in world.take(TapDropped) if isinstance(e, TapDropped))
    assert len(tapped) + dropped == count
    assert event.track == 5
    assert event.from_ns <= event.to_ns
    assert world.forwarder.stats().tap_dropped == dropped
