"""Tapped packets as journal items: both encoders, the recorder's decoder, and the live path."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest

from mediaserver.forwarder import native
from mediaserver.forwarder.interface import Tapped, Targets
from mediaserver.forwarder.journal import MAX_BATCH_BYTES, batches
from recorder.journal.encoding import decode
from recorder.records import PacketBatch, RtcpRecord, RtpRecord
from tests.forwarder.ends import World, rtp

TARGETS = Targets({7: (0, 1), 8: (0, 2), 9: (2, 1), 12: (1, 65535)})


def encode_natively(tapped: Sequence[Tapped], targets: Targets) -> list[tuple[int, PacketBatch]]:
    """Run the C encoder alone over made-up packets."""
    ffi, library = native.ffi, native.load()
    data = b"".join(
        struct.pack("<qiIII", at_ns, tap, len(packet), is_rtcp, 0) + packet + bytes(-len(packet) % 8)
        for tap, at_ns, packet, is_rtcp in tapped
    )
    kept = ffi.new("uint8_t[]", data or b"\0")
    array = ffi.new("fwd_target_t[]", [(tap, *to) for tap, to in sorted(targets.by_tap.items())])
    room = library.fwd_encoded_room(kept, len(data))
    out = ffi.new("uint8_t[]", room)
    made = library.fwd_encode_tapped(kept, len(data), array, len(targets.by_tap), targets.groups, out, room)
    assert made >= 0
    return list(native.read_batches(out, made))


def records(made: Sequence[tuple[int, PacketBatch]], group: int) -> list[object]:
    return [record for which, batch in made if which == group for record in decode(batch.items)]


@pytest.mark.parametrize("seed", range(5))
def test_the_encoders_agree_and_the_recorder_reads_them(seed: int) -> None:
    draw = random.Random(seed)
    at_ns = 10**12
    tapped: list[Tapped] = []
    for _ in range(draw.choice((0, 1, 7, 400, 3000))):
        at_ns += draw.choice((0, 1, 10**6, -(10**5), 10**8))
        size = draw.choice((8, 12, 13, 200, 1200, 1500))
        tapped.append((draw.choice((7, 8, 9, 10, 12)), at_ns, draw.randbytes(size), draw.random() < 0.1))
    theirs, ours = batches(tapped, TARGETS), encode_natively(tapped, TARGETS)
    for group, taps in ((0, {7: 1, 8: 2}), (1, {12: 65535}), (2, {9: 1})):
        expected = [
            (RtcpRecord if is_rtcp else RtpRecord)(taps[tap], at, packet)
            for tap, at, packet, is_rtcp in tapped
            if tap in taps
        ]
        assert records(ours, group) == expected
        assert records(theirs, group) == expected
        for made in (ours, theirs):
            mine = [batch for which, batch in made if which == group]
            assert sum(batch.packets for batch in mine) == len(expected)
            assert all(len(batch.items) < 2 * MAX_BATCH_BYTES for batch in mine)
            counts = [count for batch in mine for count in batch.counts]
            media = [one for one in expected if isinstance(one, RtpRecord)]
            assert sum(count.packets for count in counts) == len(media)
            assert sum(count.bytes for count in counts) == sum(len(one.packet) for one in media)
            if media:
                assert max(count.last_ns for count in counts if count.packets) == max(
                    one.arrival_ns for one in media
                )


def test_many_tracks_and_long_pauses_make_more_batches() -> None:
    targets = Targets({tap: (0, tap) for tap in range(1, 201)})
    tapped: list[Tapped] = [(tap, tap * 10**8, bytes(20), False) for tap in range(1, 201)]
    ours = encode_natively(tapped, targets)
    assert len(ours) > 3  # 64 tracks and 4 s at most in one
    assert [record.track for record in records(ours, 0) if isinstance(record, RtpRecord)] == [*range(1, 201)]
    assert encode_natively(tapped, Targets({})) == []


def test_what_is_tapped_comes_as_batches(world: World) -> None:
    publisher = world.end()
    world.stream(publisher, track=7)
    packets = [rtp(number) for number in range(1, 20)]
    publisher.send(*packets)
    world.settle()
    seen = records(world.forwarder.take_batches(TARGETS), 0)
    assert [record.packet for record in seen if isinstance(record, RtpRecord)] == packets
    assert world.forwarder.take_batches(TARGETS) == []


def test_packets_far_apart_are_batches_of_their_own() -> None:
    tapped: list[Tapped] = [(7, (number % 2) * 5 * 10**9, bytes(8), False) for number in range(100)]
    ours = encode_natively(tapped, TARGETS)
    assert len(ours) == 100
    assert len(records(ours, 0)) == 100
