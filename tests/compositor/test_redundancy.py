"""Lost sound is found again in the packets after it (RFC 2198), and rubbish in its place does no harm."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compositor.timeline import HORIZON_NS, Frame, Timeline
from compositor.timeline.redundancy import Redundancy
from recorder.depacketise import parse_red
from recorder.journal.encoding import decode, encode
from recorder.records import RED, Record, RtpRecord, TrackInfo, TrackRecord
from recorder.rtp import RtpPacket
from tests.compositor.call_simulator import (
    MS,
    RED_TYPE,
    SECOND,
    START,
    Network,
    Sender,
    build_red,
    capture_ns,
    simulate,
)
from tests.compositor.test_timeline import run


def speech(redundancy: int, network: Network | None = None) -> Sender:
    return Sender(1, "audio", network or Network(), redundancy=redundancy)


def without(records: list[Record], numbers: set[int]) -> list[Record]:
    """Leave out the packets of sound with these places, from 0."""
    kept, place = [], 0
    for record in records:
        if isinstance(record, RtpRecord):
            place += 1
            if place - 1 in numbers:
                continue
        kept.append(record)
    return kept


@pytest.mark.parametrize("options", [{}, {"first_timestamp": 2**32 - 100_000, "first_sequence": 65_450}])
def test_nothing_lost_is_the_same_with_and_without(options: dict[str, Any]) -> None:
    plain, _ = run(simulate([replace(speech(0), **options)], 5 * SECOND))
    frames, timeline = run(simulate([replace(speech(2), **options)], 5 * SECOND))
    assert frames == plain
    assert len(frames) == 250
    assert timeline.counts()[1]["recovered"] == 0
    assert timeline.gaps == []


@pytest.mark.parametrize("redundancy", [1, 2, 4])
def test_what_is_lost_is_found_at_its_own_time(redundancy: int) -> None:
    records = simulate([speech(redundancy)], 5 * SECOND)
    whole, _ = run(records)
    lost = {at + more for at in (20, 60, 110) for more in range(redundancy)}
    frames, timeline = run(without(records, lost))
    assert [frame.data for frame in frames] == [frame.data for frame in whole]
    assert [frame.at_ns for frame in frames] == [frame.at_ns for frame in whole]
    assert not any(frame.lost_before for frame in frames)
    assert timeline.gaps == []
    counts = timeline.counts()[1]
    assert (counts["lost"], counts["recovered"], counts["malformed"]) == (len(lost), len(lost), 0)


def test_what_no_packet_repeats_is_listed() -> None:
    records = simulate([speech(2)], 5 * SECOND)
    frames, timeline = run(without(records, {50, 51, 52, 53, 54}))
    assert len(frames) == 247
    (gap,) = timeline.gaps
    assert (gap.reason, gap.packets, gap.to_ns - gap.from_ns) == ("loss", 3, 60 * MS)
    flagged = next(frame for frame in frames if frame.lost_before)
    assert capture_ns(flagged) == START + 53 * 20 * MS  # the first that is there again
    assert flagged.at_ns == gap.to_ns
    assert timeline.counts()[1]["recovered"] == 2


def test_two_holes_at_once_are_two_gaps() -> None:
    records = simulate([speech(2)], 5 * SECOND)
    kept: list[Record] = []
    for record in without(records, {50, 51, 52, 53}):
        if (
            isinstance(record, RtpRecord)
            and (packet := RtpPacket.parse(record.packet)).sequence_number == 154
        ):
            oldest, _, own = parse_red(packet.payload)
            packet.payload = build_red(
                [(packet.timestamp - oldest.offset, oldest.data), (packet.timestamp, own.data)]
            )
            record = replace(record, packet=packet.build())
        kept.append(record)
    frames, timeline = run(kept)
    assert len(frames) == 247
    assert [(gap.packets, gap.to_ns - gap.from_ns) for gap in timeline.gaps] == [(2, 40 * MS), (1, 20 * MS)]


def test_a_packet_resent_in_time_is_taken_before_its_copies() -> None:
    network = Network(jitter_ns=10 * MS, loss=0.2, resend_ns=120 * MS)
    frames, timeline = run(simulate([speech(2, network)], 10 * SECOND, 3))
    assert len(frames) == 500
    assert timeline.counts()[1]["recovered"] == 0
    assert timeline.counts()[1]["lost"] == 0


def test_packets_resent_after_their_ssrc_was_left_bring_nothing_twice() -> None:
    network = Network(loss=0.2, duplicates=0.1, resend_ns=2500 * MS)
    frames, timeline = run(simulate([replace(speech(3, network), new_ssrc=[5 * SECOND])], 7 * SECOND, 140))
    assert timeline.counts()[1]["recovered"] > 30
    assert len({frame.data for frame in frames}) == len(frames)


def test_most_of_random_loss_is_repaired() -> None:
    frames, timeline = run(simulate([speech(2, Network(loss=0.2))], 60 * SECOND, 11))
    counts = timeline.counts()[1]
    assert counts["lost"] > 500
    assert counts["lost"] - counts["recovered"] == sum(gap.packets for gap in timeline.gaps)
    assert len(frames) > 3000 * 0.985  # of 20 % lost in a row of three 0.8 % stay lost
    assert len({frame.data for frame in frames}) == len(frames)
    assert all(frame.at_ns == capture_ns(frame) + 55 * MS for frame in frames)


def test_plain_packets_between_are_taken_too() -> None:
    """Chromium sends frames plain that are too large to be repeated."""
    records = simulate([speech(1)], 4 * SECOND)
    mixed: list[Record] = []
    for record in records:
        if isinstance(record, RtpRecord):
            packet = RtpPacket.parse(record.packet)
            if packet.sequence_number % 5 == 0:
                packet.payload_type, packet.payload = 111, packet.payload[-9:]
                record = replace(record, packet=packet.build())
        mixed.append(record)
    frames, timeline = run(without(mixed, {33}))
    assert [frame.data for frame in frames] == [frame.data for frame in run(records)[0]]
    assert timeline.gaps == []


def test_a_reader_that_does_not_know_it_hears_nothing_but_reads_on() -> None:
    """As a former version sees such a track: its packets count, none is sound."""
    records = [
        TrackRecord(record.at_ns, replace(record.info, fmtp={}))
        if isinstance(record, TrackRecord)
        else record
        for record in simulate([speech(1), Sender(2, "video", Network())], 2 * SECOND)
    ]
    frames, timeline = run(records)
    assert {frame.track for frame in frames} == {2}
    assert timeline.counts()[1]["packets"] == 100


@pytest.mark.parametrize("number", ["", "x", "128", "-1", "63 ", "٦٣", "0063", "1" * 5000])
def test_a_payload_type_that_is_none_is_none(number: str) -> None:
    assert replace(speech(1).info, fmtp={RED: number}).redundancy is None
    assert replace(speech(1).info, kind="video").redundancy is None
    assert speech(1).info.redundancy == RED_TYPE


def test_it_stays_in_the_journal() -> None:
    info: TrackInfo = speech(1).info
    record = TrackRecord(START, info)
    assert list(decode(encode([record]))) == [record]


RUBBISH = st.one_of(
    st.binary(max_size=40),
    st.lists(
        st.tuples(st.integers(0, 127), st.integers(0, 2**14 - 1), st.binary(max_size=12)), max_size=40
    ).map(
        lambda blocks: (
            b"".join(
                (1 << 31 | kind << 24 | offset << 10 | len(data)).to_bytes(4, "big")
                for kind, offset, data in blocks
            )
            + b"\x6f"
            + b"".join(data for _, _, data in blocks)
        )
    ),
    st.lists(st.tuples(st.integers(0, 2**14 - 1), st.binary(max_size=12)), max_size=6).map(
        lambda copies: build_red([*((2**14 - before, data) for before, data in copies), (2**14, b"\x78own")])
    ),
)


@given(
    st.lists(st.tuples(st.integers(0, 99), RUBBISH), max_size=30),
    st.sets(st.integers(0, 99)),
    st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
def test_rubbish_is_counted_and_nothing_is_raised(
    spoilt: list[tuple[int, bytes]], lost: set[int], seed: int
) -> None:
    rubbish = dict(spoilt)
    records: list[Record] = []
    place = 0
    for record in simulate([speech(2, Network(jitter_ns=30 * MS))], 2 * SECOND, seed):
        if isinstance(record, RtpRecord):
            if place in rubbish:
                packet = RtpPacket.parse(record.packet)
                packet.payload = rubbish[place]
                record = replace(record, packet=packet.build())
            place += 1
        records.append(record)
    records = without(records, lost)
    frames, timeline = run(records)
    counts = timeline.counts()[1]
    assert counts["frames"] == len(frames)
    assert counts["recovered"] <= counts["lost"] + len(rubbish)
    assert [frame.at_ns for frame in frames] == sorted(frame.at_ns for frame in frames)
    for one, other in pairwise(frames):
        assert other.at_ns >= one.at_ns + one.duration_ns - 60 * MS
    newest = max((record.arrival_ns for record in records if isinstance(record, RtpRecord)), default=0)
    assert all(START - HORIZON_NS < frame.at_ns <= newest for frame in frames)
    for gap in timeline.gaps:
        assert gap.from_ns < gap.to_ns
    # The same however it is fed.
    again = Timeline()
    generator = random.Random(seed)
    found: list[Frame] = []
    for record in records:
        again.feed(record)
        if generator.random() < 0.1:
            found += again.ready(again.settled_ns)
    again.end()
    assert found + again.ready(1 << 62) == frames


FRAME = b"\x78\x80own"
"""An Opus frame of 20 ms, 960 ticks, with voice and without FEC."""


def packet(timestamp: int, *copies: int, number: int = 0) -> RtpPacket:
    """Return a packet whose copies lie so many ticks before it."""
    frames = [(timestamp - before, b"\x78%d" % (timestamp - before)) for before in copies]
    return RtpPacket(RED_TYPE, number, timestamp, 7, build_red([*frames, (timestamp, FRAME)]))


def taken(told: Redundancy, one: RtpPacket, missing: int) -> list[tuple[int, int]]:
    """Return (media time before the packet, packets missing before it) of the frames that it brings."""
    return [(piece.before, piece.missing) for piece in told.take(one, speech(1).info, missing)]


def test_only_copies_that_lie_over_nothing_are_taken() -> None:
    told = Redundancy()
    assert taken(told, packet(9600, 1920, 960), 5) == [(0, 5)]  # what came before the first is not known
    assert taken(told, packet(10560, 960), 0) == [(0, 0)]
    assert taken(told, packet(13440, 2400, 1920, 480), 2) == [(1920, 0), (0, 1)]
    assert told.recovered == 1
    assert taken(told, packet(14400, 960), 1) == [(0, 1)]  # its number is missing, its time is not
    assert told.recovered == 1


def test_no_more_copies_than_packets_are_missing_are_taken_the_newest_first() -> None:
    told = Redundancy()
    taken(told, packet(9600), 0)
    assert taken(told, packet(13440, 2880, 1920, 960), 2) == [(1920, 0), (960, 0), (0, 0)]
    assert told.recovered == 2


def test_a_copy_of_a_frame_that_is_placed_is_not_taken() -> None:
    told = Redundancy()
    for timestamp in (9600, 10560, 11520):
        taken(told, packet(timestamp), 0)
    told.begin()
    told.begin()  # another SSRC came and went
    assert taken(told, packet(8640), 1) == [(0, 1)]
    assert taken(told, packet(12480, 1920, 960), 1) == [(0, 1)]
    assert told.recovered == 0


def test_a_packet_whose_frame_is_placed_brings_nothing_from_within() -> None:
    told = Redundancy()
    taken(told, packet(8640), 0)
    assert taken(told, packet(11520, 960), 2) == [(960, 1), (0, 0)]
    told.begin()
    taken(told, packet(7680), 0)
    late = RtpPacket(RED_TYPE, 0, 10560, 7, build_red([(10560, b"\x78\xc0repeats")]))
    assert told.take(late, speech(1).info, 1) == []
    assert told.in_band == 0
    fresh = replace(late, timestamp=13440)
    assert [(piece.before, piece.in_band) for piece in told.take(fresh, speech(1).info, 0)] == [
        (960, True),
        (0, False),
    ]


def test_what_a_malformed_packet_had_may_be_found_in_the_next() -> None:
    told = Redundancy()
    taken(told, packet(9600), 0)
    assert taken(told, RtpPacket(RED_TYPE, 1, 10560, 7, b"\xef"), 0) == []
    assert taken(told, packet(11520, 960), 0) == [(960, 0), (0, 0)]
    assert (told.malformed, told.recovered) == (1, 1)
    assert taken(told, RtpPacket(RED_TYPE, 3, 12480, 7), 0) == []  # padding alone
    assert taken(told, RtpPacket(13, 4, 12480, 7, b"noise"), 0) == []
    assert told.malformed == 1
