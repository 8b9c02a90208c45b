"""The timeline's parts alone: reordering, delays, reports."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compositor.timeline import Frame, Timeline
from compositor.timeline.delay import WINDOW_NS, Delays, Mapping
from compositor.timeline.reorder import Arrival, Reorder
from compositor.timeline.reports import ReportedOffset, relation
from recorder.journal.encoding import record_time
from recorder.records import Record, RtcpRecord, RtpRecord, TrackRecord
from recorder.rtp import RtpPacket
from tests.compositor.call_simulator import (
    MS,
    SECOND,
    START,
    Network,
    Sender,
    capture_ns,
    event,
    insert,
    simulate,
)

LOST = {"audio": 5, "video": 9}
"""Packets of each kind that are sent in 100 ms."""


def arrival(number: int, at_ns: int = 0, due_ns: int = 1000 * MS) -> Arrival:
    return Arrival(RtpPacket(96, number & 0xFFFF, 0, 1), at_ns, 0, due_ns, Mapping(sound=True))


def numbers(released: list[tuple[Arrival, int]]) -> list[tuple[int, int]]:
    return [(item.packet.sequence_number, missing) for item, missing in released]


@given(
    st.integers(0, 0xFFFF),
    st.permutations(list(range(12))),
    st.sets(st.integers(1, 10), max_size=5),
    st.lists(st.integers(0, 11), max_size=5),
)
def test_any_order_comes_out_in_order(start: int, order: list[int], lost: set[int], again: list[int]) -> None:
    reorder = Reorder()
    sent = [number for number in order if number not in lost]
    for number in sent + [number for number in again if number not in lost]:
        reorder.push(arrival(start + number))
    assert reorder.release(50 * MS) == []  # the opening: who knows what comes before
    released = numbers(reorder.release(2000 * MS)) + numbers(reorder.release(2000 * MS))
    assert [number for number, _ in released] == [(start + number) & 0xFFFF for number in sorted(sent)]
    missing = [number for number in range(min(sent), max(sent)) if number in lost]
    assert sum(count for _, count in released) == len(missing)
    assert reorder.due_ns is None


def test_a_hole_is_waited_for_until_due() -> None:
    reorder = Reorder()
    reorder.push(arrival(1))
    assert numbers(reorder.release(100 * MS)) == [(1, 0)]
    reorder.push(arrival(3, 110 * MS, due_ns=900 * MS))
    reorder.push(arrival(4, 120 * MS, due_ns=910 * MS))
    assert reorder.release(899 * MS) == []
    assert reorder.due_ns == 900 * MS
    reorder.push(arrival(6, 130 * MS, due_ns=950 * MS))
    assert numbers(reorder.release(900 * MS)) == [(3, 1), (4, 0)]
    reorder.push(arrival(2))
    assert reorder.dropped == 1
    assert numbers(reorder.end()) == [(6, 1)]


def test_one_stray_number_is_no_restart_two_are() -> None:
    reorder = Reorder()
    for number in (10, 11, 12):
        assert not reorder.restarts(number)
        reorder.push(arrival(number))
    assert not reorder.restarts(40_000)
    reorder.push(arrival(40_000))
    assert reorder.dropped == 1
    assert not reorder.restarts(13)
    assert not reorder.restarts(40_000)
    assert reorder.restarts(40_001)


def test_a_sender_that_counts_anew_goes_on() -> None:
    records = simulate([Sender(1, "audio", Network())], 4 * SECOND)
    changed: list[Record] = []
    for record in records:
        if isinstance(record, RtpRecord) and record.arrival_ns > START + 2 * SECOND:
            packet = RtpPacket.parse(record.packet)
            packet.sequence_number = (packet.sequence_number + 30_000) & 0xFFFF
            record = RtpRecord(record.track, record.arrival_ns, packet.build())
        changed.append(record)
    timeline = Timeline()
    for record in changed:
        timeline.feed(record)
    timeline.end()
    frames = timeline.ready(1 << 62)
    assert len(frames) == 199  # the first packet with a strange number was not believed
    assert {frame.at_ns - capture_ns(frame) for frame in frames} == {55 * MS}
    assert [gap.reason for gap in timeline.gaps] == ["loss"]


@given(st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(-SECOND, SECOND)), min_size=1, max_size=60))
def test_the_least_delay_of_the_window(steps: list[tuple[int, int]]) -> None:
    delays = Delays()
    at_ns = 0
    seen: list[tuple[int, int]] = []
    for step, delay in steps:
        at_ns += step
        seen.append((at_ns, delay))
        delays.add(at_ns, delay)
        window = [value for time, value in seen if time >= at_ns - WINDOW_NS]
        assert delays.least() == min(window)
        since = random.Random(at_ns).randrange(max(0, at_ns - WINDOW_NS), at_ns + 1)
        assert delays.least_since(since) == min(value for time, value in seen if time >= since)


def test_half_a_second_that_media_time_jumps_ahead_is_none_here() -> None:
    senders = [Sender(1, "audio", Network(in_order=True), jumps=[(4 * SECOND, 24_000)])]
    timeline = Timeline()
    for record in simulate(senders, 8 * SECOND):
        timeline.feed(record)
    timeline.end()
    frames = timeline.ready(1 << 62)
    assert [frame.at_ns for frame in frames] == sorted(frame.at_ns for frame in frames)
    assert len(frames) == 400
    assert {frame.at_ns - capture_ns(frame) for frame in frames} == {55 * MS}


def test_congestion_from_the_start_that_clears_costs_listed_sound_and_no_order() -> None:
    records = simulate([Sender(1, "audio", Network(), report_every_ns=60 * SECOND)], 8 * SECOND)
    slow: list[Record] = []
    for record in records:
        if isinstance(record, RtpRecord) and record.arrival_ns < START + 4 * SECOND:
            record = RtpRecord(record.track, record.arrival_ns + 600 * MS, record.packet)
        slow.append(record)
    slow.sort(key=lambda record: record.arrival_ns if isinstance(record, RtpRecord) else record_time(record))
    timeline = Timeline()
    for record in slow:
        timeline.feed(record)
    timeline.end()
    frames = timeline.ready(1 << 62)
    assert [frame.at_ns for frame in frames] == sorted(frame.at_ns for frame in frames)
    late = [frame for frame in frames if capture_ns(frame) > START + 5 * SECOND]
    assert {frame.at_ns - capture_ns(frame) for frame in late} == {55 * MS}
    assert len(frames) >= 400 - 33
    assert [(gap.reason, gap.packets) for gap in timeline.gaps] == [("resync", 400 - len(frames))]


def test_reports_that_contradict_are_not_taken() -> None:
    offset = ReportedOffset()
    assert offset.value() is None
    for index in range(5):
        assert offset.add(1000 * SECOND + index * SECOND + index * MS, index * SECOND)
    assert offset.value() == 1000 * SECOND + 2 * MS
    assert offset.add(1000 * SECOND + 4 * SECOND + 4 * MS, 4 * SECOND)  # the same once more
    assert offset.value() == 1000 * SECOND + 2 * MS
    assert not offset.add(1007 * SECOND, 6 * SECOND)
    offset.forget()
    assert offset.add(1007 * SECOND, 6 * SECOND)
    assert offset.value() == 1001 * SECOND


def test_relations_beyond_belief_are_none() -> None:
    assert relation(55 * MS, 7 * SECOND, 170 * MS, 7 * SECOND) == -115 * MS
    assert relation(55 * MS, 7 * SECOND, 55 * MS, 2 * SECOND) is None


def test_stragglers_of_a_former_ssrc_change_nothing() -> None:
    sender = Sender(1, "audio", Network(duplicates=0.3), new_ssrc=[2 * SECOND])
    records = simulate([sender], 4 * SECOND, 6)
    packets = [record for record in records if isinstance(record, RtpRecord)]
    last_old = next(record for record in packets if record.arrival_ns > START + 1900 * MS)
    at = next(
        i for i, record in enumerate(records) if isinstance(record, RtpRecord) and _ssrc(record) != 1001
    )
    straggler = RtpRecord(1, packets[-1].arrival_ns, last_old.packet)
    records.insert(at + 3, RtpRecord(1, START + 2 * SECOND + 100 * MS, straggler.packet))
    timeline = Timeline()
    for record in records:
        timeline.feed(record)
    timeline.end()
    frames = timeline.ready(1 << 62)
    assert len({frame.data for frame in frames}) == len(frames) == 200
    assert timeline.counts()[1]["left_out"] >= 1


@pytest.mark.parametrize("announced", [True, False])
def test_a_layer_that_is_announced_and_soon_comes_back_loses_nothing(announced: bool) -> None:
    """Simulcast in a recording: each change is at a keyframe and the track is described anew before it."""
    sender = Sender(1, "video", Network(jitter_ns=5 * MS, in_order=True))
    sender.new_ssrc, sender.keyframe_every = [2 * SECOND, 2 * SECOND + 200 * MS], 5
    records: list[Record] = []
    before = sender.ssrc
    seen: list[int] = []
    for record in simulate([sender], 4 * SECOND, 6):
        if isinstance(record, RtpRecord):
            if (number := _ssrc(record)) not in seen:
                seen.append(number)
            ssrc = seen[0] if number == seen[-1] and len(seen) == 3 else number  # the first comes back
            packet = record.packet[:8] + ssrc.to_bytes(4, "big") + record.packet[12:]
            record = RtpRecord(record.track, record.arrival_ns, packet)
            if ssrc != before and announced:
                records.append(TrackRecord(record.arrival_ns, replace(sender.info, ssrc=ssrc)))
            before = ssrc
        elif isinstance(record, RtcpRecord):
            continue
        records.append(record)
    assert len(seen) == 3
    timeline = Timeline()
    for record in records:
        timeline.feed(record)
    timeline.end()
    frames = timeline.ready(1 << 62)
    lost = [frame for frame in frames if frame.lost_before]
    left_out = timeline.counts()[1]["left_out"]
    if announced:
        assert (len(frames), lost, timeline.gaps, left_out) == (100, [], [], 0)
        times = [frame.at_ns for frame in frames]
        assert max(late - early for early, late in itertools.pairwise(times)) < 60 * MS
    else:
        assert left_out > 0


def layers(keep: Callable[[int, int, int], int | None]) -> tuple[list[Frame], Timeline]:
    """Play a recording that goes over from one layer to another at the picture of 2 s, a keyframe.

    ``keep`` (layer 0 or 1, picture, packet of it) says by how many ns a packet comes later; None: it is not
    in the journal.
    """
    packets: list[tuple[int, int, bytes]] = []
    for layer in (0, 1):
        sender = Sender(1, "video", Network(in_order=True), ssrc=1001 + layer, keyframe_every=50)
        sent = [r for r in simulate([sender], 3 * SECOND) if isinstance(r, RtpRecord)]
        for number, record in enumerate(sent):
            later = keep(layer, number // 3, number % 3)
            if later is not None:
                at_ns = record.arrival_ns + number % 3 * MS + layer * MS // 2 + later
                packets.append((at_ns, layer, record.packet))
    timeline = Timeline()
    timeline.feed(TrackRecord(START, Sender(1, "video", Network(), ssrc=1001).info))
    told = False
    for at_ns, layer, packet in sorted(packets):
        if layer and not told:
            told = True
            timeline.feed(TrackRecord(at_ns, Sender(1, "video", Network(), ssrc=1002).info))
        timeline.feed(RtpRecord(1, at_ns, packet))
    timeline.end()
    return timeline.ready(1 << 62), timeline


def recorded(layer: int, picture: int) -> bool:
    return picture >= 50 if layer else picture < 50


def test_a_change_of_layer_in_the_middle_of_a_picture_loses_nothing() -> None:
    """The keyframe of the new layer came before the end of the former one's picture of the same moment."""
    frames, timeline = layers(
        lambda layer, n, part: 0 if recorded(layer, n) or (n, part) == (50, 0) else None
    )
    assert [(capture_ns(frame) - START) // (40 * MS) for frame in frames] == list(range(75))
    assert timeline.gaps == []
    assert not any(frame.lost_before for frame in frames)
    assert timeline.counts()[1]["left_out"] == 1


@pytest.mark.parametrize("later_ns", [30 * MS, 400 * MS])
def test_what_was_resent_of_before_a_change_of_layer_is_no_loss(later_ns: int) -> None:
    def keep(layer: int, picture: int, part: int) -> int | None:
        if layer == 1 and (picture, part) in ((48, 1), (49, 2)):
            return 40 * MS * (50 - picture) + later_ns  # of the new layer, from before its keyframe
        return 0 if recorded(layer, picture) else None

    frames, timeline = layers(keep)
    assert len(frames) == 75
    assert timeline.gaps == []


def test_a_keyframe_of_another_layer_may_come_in_any_order() -> None:
    late = {0: 600 * MS, 1: 0, 2: 300 * MS}
    frames, timeline = layers(
        lambda layer, n, part: late[part] if (layer, n) == (1, 50) else (0 if recorded(layer, n) else None)
    )
    assert len(frames) == 75
    assert timeline.gaps == []
    assert max(late.at_ns - early.at_ns for early, late in itertools.pairwise(frames)) < 60 * MS


@pytest.mark.parametrize("lost", [(48, 1), (49, 0), (49, 1)])
def test_what_is_lost_before_a_change_of_layer_is_listed(lost: tuple[int, int]) -> None:
    frames, timeline = layers(
        lambda layer, n, part: 0 if recorded(layer, n) and (layer, (n, part)) != (0, lost) else None
    )
    (gap,) = timeline.gaps
    assert (gap.reason, gap.packets) == ("loss", 1)
    assert (gap.to_ns - gap.from_ns) // (40 * MS) == 51 - lost[0]
    assert timeline.counts()[1]["lost"] == 1
    assert len(frames) == 75 - 1


@pytest.mark.parametrize("kind", ["audio", "video"])
@pytest.mark.parametrize(
    "names", [("track.muted", "track.unmuted"), ("recording.paused", "recording.resumed")]
)
def test_what_was_not_to_be_recorded_is_not_lost(kind: str, names: tuple[str, str]) -> None:
    sender = Sender(1, kind, Network(in_order=True), keyframe_every=25)
    records: list[Record] = []
    for record in simulate([sender], 6 * SECOND):
        at_ns = record.arrival_ns - START if isinstance(record, RtpRecord) else 0
        lost = isinstance(record, RtpRecord) and 4500 * MS < at_ns < 4600 * MS
        if not lost and not 2 * SECOND < at_ns < 3990 * MS:
            records.append(record)
    for name, at_ns in zip(names, (2 * SECOND, 3990 * MS), strict=True):
        records = insert(records, event(name, at_ns, track=1), at_ns)
    timeline = Timeline()
    for record in records:
        timeline.feed(record)
    timeline.end()
    resumed = [gap for gap in timeline.gaps if gap.to_ns < START + 4200 * MS]
    assert [(gap.reason, gap.packets) for gap in timeline.gaps if gap not in resumed] == [
        ("loss", LOST[kind])
    ]
    # The first picture after it is nothing without those that were not recorded: lost until the keyframe.
    assert [gap.packets for gap in resumed] == ([0] if kind == "video" else [])
    assert all(gap.from_ns > START + 3900 * MS for gap in resumed)


def test_a_new_ssrc_whose_first_packet_is_lost_gives_no_half_picture() -> None:
    """Also when packets of the former one still wait for their turn."""
    for seed in range(20):
        sender = Sender(1, "video", Network(jitter_ns=5 * MS, loss=0.2, duplicates=0.1, resend_ns=2500 * MS))
        sender.new_ssrc = [2 * SECOND]
        timeline = Timeline()
        for record in simulate([sender], 3 * SECOND, seed):
            timeline.feed(record)
        timeline.end()
        frames = timeline.ready(1 << 62)
        assert len(frames) > 20
        assert {len(frame.data) for frame in frames} == {49}, seed


def _ssrc(record: RtpRecord) -> int:
    return RtpPacket.parse(record.packet).ssrc
