"""The timeline under a simulated network: where things are put, and that it is always the same."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from statistics import median

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from compositor.timeline import HORIZON_NS, Frame, Gap, Timeline
from recorder.records import ClockRecord, GapRecord, Record, RtcpRecord, RtpRecord, SessionRecord, TrackRecord
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


def run(records: list[Record]) -> tuple[list[Frame], Timeline]:
    """Feed a whole journal."""
    timeline = Timeline()
    for record in records:
        timeline.feed(record)
    timeline.end()
    return timeline.ready(1 << 62), timeline


def run_live(records: list[Record], generator: random.Random) -> list[Frame]:
    """Feed bit by bit, taking frames at odd moments."""
    timeline = Timeline()
    frames: list[Frame] = []
    for record in records:
        timeline.feed(record)
        if generator.random() < 0.05:
            frames += timeline.ready(timeline.settled_ns + generator.randrange(-SECOND, 3 * SECOND))
    timeline.end()
    return frames + timeline.ready(1 << 62)


def errors(frames: list[Frame], track: int, after_ns: int = 0) -> list[int]:
    """Return placed minus captured, ns, of a track's frames captured ``after_ns`` or later."""
    return [
        frame.at_ns - capture_ns(frame)
        for frame in frames
        if frame.track == track and capture_ns(frame) >= START + after_ns
    ]


def both(network: Network, **options: object) -> list[Sender]:
    return [
        Sender(1, "audio", network, **options),  # type: ignore[arg-type]
        Sender(2, "video", network, **options),  # type: ignore[arg-type]
    ]


def arrivals(records: list[Record]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for record in records:
        if isinstance(record, RtpRecord):
            found.setdefault(record.track, []).append(record.arrival_ns)
    return found


def test_a_quiet_network_keeps_every_distance() -> None:
    records = simulate(both(Network()), 10 * SECOND)
    frames, timeline = run(records)
    sound, pictures = errors(frames, 1), errors(frames, 2)
    assert len(sound) == 500
    assert len(pictures) == 250
    # Without reports sound would lie at 55 ms: its packets wait 20 ms to fill. Reports lay both together.
    assert all(abs(found - 35 * MS) < MS // 10 for found in sound + pictures)
    assert timeline.gaps == []
    assert [frame.duration_ns for frame in frames if frame.track == 1] == [20 * MS] * 500
    assert all(frame.duration_ns == 0 for frame in frames if frame.track == 2)
    assert not any(frame.lost_before for frame in frames)


@pytest.mark.parametrize("seed", range(3))
def test_jitter_loss_and_reordering_do_not_wobble(seed: int) -> None:
    network = Network(jitter_ns=50 * MS, loss=0.05, duplicates=0.02)
    frames, _ = run(simulate(both(network), 30 * SECOND, seed))
    for track in (1, 2):
        found = errors(frames, track)
        assert max(found) - min(found) < 12 * MS
        settled = errors(frames, track, 5 * SECOND)
        assert max(settled) - min(settled) < 8 * MS
    sound = [frame for frame in frames if frame.track == 1]
    for before, after in pairwise(sound):
        step, media = after.at_ns - before.at_ns, capture_ns(after) - capture_ns(before)
        if not after.lost_before:
            assert abs(step - media) <= media * 0.0051


def test_pictures_are_laid_on_the_same_senders_sound() -> None:
    senders = both(Network(jitter_ns=20 * MS))
    senders[1].encode_ns = 140 * MS  # a slow camera: pictures come later than sound
    frames, _ = run(simulate(senders, 20 * SECOND, 3))
    sound = median(errors(frames, 1))
    assert all(abs(found - sound) < 10 * MS for found in errors(frames, 2))


def test_a_sender_cannot_move_the_clock() -> None:
    truth, _ = run(simulate(both(Network(jitter_ns=20 * MS)), 20 * SECOND, 3))
    for shift in (3600 * SECOND, -SECOND, 40 * 365 * 86400 * SECOND):
        senders = both(Network(jitter_ns=20 * MS), wallclock_offset_ns=shift)
        assert run(simulate(senders, 20 * SECOND, 3))[0] == truth
    senders = both(Network(jitter_ns=20 * MS))
    senders[1].report_shift_ns = -5 * SECOND  # pictures said to be 5 s older than they are
    lied, _ = run(simulate(senders, 20 * SECOND, 3))
    assert all(abs(found - 45 * MS) < 12 * MS for found in errors(lied, 1))
    assert all(abs(found - 40 * MS) < 30 * MS for found in errors(lied, 2))


def test_tracks_of_different_senders_are_not_related() -> None:
    senders = both(Network())
    senders[1].encode_ns = 140 * MS
    senders[1].stream = "another"
    frames, _ = run(simulate(senders, 20 * SECOND))
    assert set(errors(frames, 2)) <= set(range(169 * MS, 171 * MS))


@pytest.mark.parametrize("ppm", [-200.0, 200.0])
def test_drifting_clocks_are_followed(ppm: float) -> None:
    senders = both(Network(jitter_ns=30 * MS), ppm=ppm)
    frames, _ = run(simulate(senders, 120 * SECOND, 5))
    for track in (1, 2):
        found = errors(frames, track, 10 * SECOND)
        assert max(found) - min(found) < 12 * MS
        first, last = median(found[: len(found) // 4]), median(found[-len(found) // 4 :])
        assert abs(last - first) < 1500_000  # 80 s apart: about 1 ms a minute


def test_sound_that_stalls_does_not_shift_later_speech() -> None:
    senders = both(Network(jitter_ns=10 * MS))
    senders[0].stalled = [(5 * SECOND, 15 * SECOND)]
    records = simulate(senders, 30 * SECOND, 1)
    frames, timeline = run(records)
    before, after = errors(frames, 1)[:250], errors(frames, 1, 15 * SECOND)
    assert len(after) == 750
    for found, usual in ((after, median(before)), (errors(frames, 2), median(errors(frames, 2)))):
        assert max(found) - usual < 8 * MS
        assert usual - min(found) < 8 * MS
    (gap,) = timeline.gaps
    assert (gap.track, gap.reason) == (1, "stalled")
    assert abs(gap.to_ns - gap.from_ns - 10 * SECOND) < 50 * MS


def test_silence_without_packets_keeps_the_time() -> None:
    senders = both(Network(jitter_ns=10 * MS))
    senders[0].silent = [(index * SECOND, index * SECOND + 700 * MS) for index in range(3, 30, 2)]
    senders[1].silent = [(10 * SECOND, 20 * SECOND)]
    records = simulate(senders, 30 * SECOND, 1)
    frames, timeline = run(records)
    for track in (1, 2):
        assert max(errors(frames, track)) - min(errors(frames, track)) < 12 * MS
    assert [(gap.track, gap.reason) for gap in timeline.gaps] == [(2, "stalled")]
    muted = insert(records, event("track.muted", 10 * SECOND, track=2), 10 * SECOND)
    muted = insert(muted, event("track.unmuted", 20 * SECOND, track=2), 20 * SECOND)
    again, timeline = run(muted)
    assert again == frames
    assert timeline.gaps == []
    assert [record.event["type"] for record in timeline.events] == ["track.muted", "track.unmuted"]


def test_who_vanished_is_missed_until_that_was_noticed() -> None:
    senders = both(Network(jitter_ns=10 * MS))
    senders[1].silent = [(10 * SECOND, 30 * SECOND)]
    records = insert(
        simulate(senders, 30 * SECOND, 1), event("track.ended", 14 * SECOND, track=2), 14 * SECOND
    )
    _, timeline = run(records)
    (gap,) = timeline.gaps
    assert (gap.track, gap.reason) == (2, "stalled")
    assert abs(gap.to_ns - gap.from_ns - 4 * SECOND) < 100 * MS


@pytest.mark.parametrize("held_ns", [400 * MS, 1200 * MS])
def test_a_burst_after_a_hold_up_is_put_where_it_was_captured(held_ns: int) -> None:
    network = Network(jitter_ns=5 * MS, held=[(6 * SECOND, 6 * SECOND + held_ns)])
    frames, timeline = run(simulate(both(network), 15 * SECOND, 1))
    for track in (1, 2):
        found = errors(frames, track)
        assert max(found) - min(found) < 12 * MS
    assert timeline.gaps == []


@pytest.mark.parametrize("ticks", [10**9, -(10**9), 48_000 * 3, -48_000 * 3, 2**31 + 5])
def test_jumps_of_the_timestamp_change_nothing(ticks: int) -> None:
    senders = both(Network(jitter_ns=10 * MS, in_order=True))
    for sender in senders:
        sender.jumps = [(8 * SECOND, ticks)]
    frames, timeline = run(simulate(senders, 20 * SECOND, 1))
    for track in (1, 2):
        found = errors(frames, track)
        assert max(found) - min(found) < 30 * MS
    assert len(errors(frames, 1)) == 1000
    assert [gap for gap in timeline.gaps if gap.reason != "loss"] == []


def test_another_ssrc_goes_on_at_its_time() -> None:
    senders = both(Network(jitter_ns=10 * MS, in_order=True))
    for sender in senders:
        sender.new_ssrc = [8 * SECOND, 12 * SECOND]
        sender.keyframe_every = 25
    frames, timeline = run(simulate(senders, 20 * SECOND, 1))
    for track in (1, 2):
        found = errors(frames, track)
        assert max(found) - min(found) < 30 * MS
    assert len(errors(frames, 1)) == 1000
    assert len(errors(frames, 2)) == 500
    assert sum(frame.lost_before for frame in frames if frame.track == 2) == 2
    assert len(timeline.gaps) <= 4


def test_counters_roll_over() -> None:
    senders = both(Network(jitter_ns=10 * MS), first_sequence=65_500, first_timestamp=2**32 - 100_000)
    plain = both(Network(jitter_ns=10 * MS))
    rolled, _ = run(simulate(senders, 10 * SECOND, 4))
    straight, _ = run(simulate(plain, 10 * SECOND, 4))
    assert [frame.data for frame in rolled] == [frame.data for frame in straight]
    assert all(abs(one.at_ns - other.at_ns) < 50_000 for one, other in zip(rolled, straight, strict=True))


def test_resent_packets_fill_the_holes() -> None:
    network = Network(jitter_ns=10 * MS, loss=0.1, resend_ns=120 * MS)
    frames, timeline = run(simulate(both(network), 20 * SECOND, 2))
    assert len(errors(frames, 1)) == 1000
    assert len(errors(frames, 2)) == 500
    assert not any(frame.lost_before for frame in frames)
    assert timeline.gaps == []
    assert max(errors(frames, 2)) - min(errors(frames, 2)) < 12 * MS


def test_what_is_lost_is_listed_and_no_broken_picture_passes() -> None:
    records = simulate(both(Network()), 20 * SECOND)
    lost = [(5 * SECOND, 5100 * MS), (9030 * MS, 9040 * MS)]
    kept = [
        record
        for record in records
        if not (
            isinstance(record, RtpRecord)
            and any(START + start <= record.arrival_ns < START + stop for start, stop in lost)
        )
    ]
    frames, timeline = run(kept)
    pictures = [frame for frame in frames if frame.track == 2]
    assert all(len(frame.data) == 9 + 40 for frame in pictures)
    flagged = [frame for frame in pictures if frame.lost_before]
    assert len(flagged) == 2
    losses = [gap for gap in timeline.gaps if gap.track == 2]
    assert all(gap.reason == "loss" and gap.packets > 0 for gap in losses)
    # A picture's gap lasts until the next keyframe (each 2 s here).
    assert losses[0].from_ns < START + 5100 * MS
    assert any(frame.at_ns == losses[0].to_ns and frame.keyframe for frame in pictures)
    assert any(frame.at_ns == losses[1].to_ns and frame.keyframe for frame in pictures)
    sound = [gap for gap in timeline.gaps if gap.track == 1]
    assert [(gap.reason, gap.packets) for gap in sound] == [("loss", 5), ("loss", 1)]
    assert sound[0].to_ns - sound[0].from_ns == 100 * MS


def test_padding_is_nothing_and_its_loss_neither() -> None:
    senders = [Sender(2, "video", Network(), probes=True)]
    frames, timeline = run(simulate(senders, 5 * SECOND))
    assert len(frames) == 125
    assert timeline.gaps == []
    records = simulate(senders, 5 * SECOND)
    kept = [
        record
        for index, record in enumerate(records)
        if not (isinstance(record, RtpRecord) and len(record.packet) == 112 and index % 3 == 0)
    ]
    assert len(kept) < len(records)
    again, timeline = run(kept)
    assert again == frames
    assert timeline.gaps == []


def test_a_recording_that_begins_amid_pictures_says_so() -> None:
    records = simulate([Sender(2, "video", Network(), keyframe_every=50)], 6 * SECOND)
    cut = [
        record
        for record in records
        if not isinstance(record, RtpRecord) or record.arrival_ns > START + SECOND
    ]
    frames, timeline = run(cut)
    assert frames[0].lost_before
    assert not frames[0].keyframe
    (gap,) = timeline.gaps
    assert (gap.reason, gap.from_ns) == ("loss", frames[0].at_ns)
    assert next(frame for frame in frames if frame.keyframe).at_ns == gap.to_ns


def test_rotation_follows_the_extension() -> None:
    sender = Sender(2, "video", Network(), rotation=lambda at_ns: 90 if at_ns >= 2 * SECOND else 0)
    frames, _ = run(simulate([sender], 4 * SECOND))
    assert {frame.rotation for frame in frames if capture_ns(frame) < START + 2 * SECOND} == {0}
    assert {frame.rotation for frame in frames if capture_ns(frame) >= START + 2 * SECOND} == {90}


def test_a_part_after_a_dead_worker_goes_on_with_the_gap_listed() -> None:
    first = simulate(both(Network()), 5 * SECOND, end=False)
    senders = both(Network())
    for sender in senders:
        sender.track += 2
    second = simulate(senders, 20 * SECOND)
    later = [
        record
        for record in second
        if not isinstance(record, SessionRecord | TrackRecord)
        and (record.arrival_ns if isinstance(record, RtpRecord | RtcpRecord) else getattr(record, "at_ns", 0))
        > START + 9 * SECOND
    ]
    described: list[Record] = [SessionRecord(START + 9 * SECOND, 2, {"armed_ns": START, "boot_id": "one"})]
    described += [TrackRecord(START + 9 * SECOND, sender.info) for sender in senders]
    frames, timeline = run([*first, *described, *later])
    assert sorted(timeline.tracks) == [1, 2, 3, 4]
    gap = next(gap for gap in timeline.gaps if gap.reason == "part")
    assert gap == Gap(0, gap.from_ns, START + 9 * SECOND, "part", 0)
    assert [gap.reason for gap in timeline.gaps if gap.track in (1, 2)] == []
    assert all(abs(found - 45 * MS) <= 10 * MS for found in errors(frames, 3))


def test_after_a_restart_of_the_machine_time_goes_on() -> None:
    first = simulate(both(Network()), 5 * SECOND, end=False)
    boot_ns = START - 50 * SECOND  # the new boot's clock shows so much less
    moved: list[Record] = []
    for record in simulate(both(Network()), 5 * SECOND):
        if isinstance(record, SessionRecord):
            moved.append(SessionRecord(60 * SECOND, 2, {"boot_id": "two"}))
        elif isinstance(record, RtpRecord):
            moved.append(
                RtpRecord(record.track + 2, record.arrival_ns - boot_ns + 10 * SECOND, record.packet)
            )
        elif isinstance(record, TrackRecord):
            info = replace(record.info, track=record.info.track + 2)
            moved.append(TrackRecord(60 * SECOND, info))
        elif isinstance(record, ClockRecord):
            shifted = record.at_ns - boot_ns + 10 * SECOND
            moved.append(replace(record, at_ns=shifted, utc_ns=record.utc_ns + 10 * SECOND))
    assert any(isinstance(record, RtpRecord) for record in moved)
    moved.insert(1, moved.pop(next(i for i, r in enumerate(moved) if isinstance(r, ClockRecord))))
    frames, timeline = run([*first, *moved])
    assert timeline.shift_ns == boot_ns
    late = [frame for frame in frames if frame.at_ns > START + 9 * SECOND]
    assert late
    assert {frame.at_ns - capture_ns(frame) for frame in late if frame.track == 3} == {10 * SECOND + 55 * MS}


def test_rubbish_is_counted_and_nothing_else() -> None:
    records = simulate(both(Network()), 5 * SECOND)
    frames, _ = run(records)
    generator = random.Random(1)
    spoilt: list[Record] = []
    for record in records:
        spoilt.append(record)
        if isinstance(record, RtpRecord):
            spoilt.append(
                RtpRecord(record.track, record.arrival_ns, generator.randbytes(generator.randrange(12)))
            )
            spoilt.append(RtpRecord(99, record.arrival_ns, record.packet))
            spoilt.append(RtcpRecord(record.track, record.arrival_ns, generator.randbytes(20)))
            spoilt.append(RtcpRecord(99, record.arrival_ns, b""))
    again, timeline = run(spoilt)
    assert again == frames
    assert timeline.malformed > 0
    assert timeline.counts()[1]["malformed"] == 250


def test_a_codec_nobody_knows_gives_no_frames() -> None:
    records = simulate(both(Network()), 2 * SECOND)
    spoilt = [
        TrackRecord(START, replace(record.info, mime="audio/red"))
        if isinstance(record, TrackRecord) and record.info.kind == "audio"
        else record
        for record in records
    ]
    frames, timeline = run(spoilt)
    assert {frame.track for frame in frames} == {2}
    assert timeline.tracks[1].mime == "audio/red"


def test_gaps_of_the_journal_are_passed_on() -> None:
    records = simulate(both(Network()), 3 * SECOND)
    records = insert(records, GapRecord(1, START + SECOND, START + 2 * SECOND, 7, "queue_full"), 2 * SECOND)
    _, timeline = run(records)
    assert timeline.gaps == [Gap(1, START + SECOND, START + 2 * SECOND, "queue_full", 7)]


NETWORKS = st.builds(
    Network,
    delay_ns=st.integers(0, 300 * MS),
    jitter_ns=st.sampled_from([0, 5 * MS, 40 * MS, 400 * MS]),
    loss=st.sampled_from([0.0, 0.02, 0.2]),
    duplicates=st.sampled_from([0.0, 0.1]),
    resend_ns=st.sampled_from([None, 100 * MS, 2500 * MS]),
    held=st.lists(
        st.sampled_from([(2 * SECOND, 3 * SECOND), (4 * SECOND, 7 * SECOND)]), unique=True, max_size=2
    ),
)
INTERVALS = st.lists(
    st.sampled_from([(SECOND, 2 * SECOND), (3 * SECOND, 6 * SECOND)]), unique=True, max_size=1
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[Sender], int]:
    senders = []
    for track, kind in ((1, "audio"), (2, "video")):
        senders.append(
            Sender(
                track,
                kind,
                draw(NETWORKS),
                ppm=draw(st.sampled_from([0.0, -300.0, 300.0])),
                silent=draw(INTERVALS),
                stalled=draw(INTERVALS),
                jumps=draw(
                    st.lists(st.tuples(st.just(4 * SECOND), st.integers(-(2**31), 2**31)), max_size=1)
                ),
                new_ssrc=draw(st.lists(st.just(5 * SECOND), max_size=1)),
                report_shift_ns=draw(st.sampled_from([0, 200 * MS, -3 * SECOND])),
                probes=draw(st.booleans()),
                redundancy=draw(st.sampled_from([0, 1, 3])) if kind == "audio" else 0,
            )
        )
    return senders, draw(st.integers(0, 2**32))


@given(calls())
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_in_any_weather(call: tuple[list[Sender], int]) -> None:
    senders, seed = call
    records = simulate(senders, 7 * SECOND, seed)
    frames, timeline = run(records)
    # The same however it is fed.
    assert run_live(records, random.Random(seed)) == frames
    # In order; every frame once, whole, and sent.
    assert [frame.at_ns for frame in frames] == sorted(frame.at_ns for frame in frames)
    for track in (1, 2):
        of_track = [frame for frame in frames if frame.track == track]
        assert len({frame.data for frame in of_track}) == len(of_track)
        expected = 9 if track == 1 else 49
        assert all(len(frame.data) == expected for frame in of_track)
    # Never before arrival - 2 s, never long after it.
    times = arrivals(records)
    for frame in frames:
        captured = capture_ns(frame)
        assert frame.at_ns > captured - HORIZON_NS
        assert frame.at_ns <= max(times[frame.track])
    for gap in timeline.gaps:
        assert gap.from_ns < gap.to_ns
    # Causal: what is known at t + 2 s settles everything up to t.
    cut = random.Random(seed).randrange(len(records))
    timeline = Timeline()
    for record in records[:cut]:
        timeline.feed(record)
    early = timeline.ready(1 << 62)
    assert early == frames[: len(early)]
    assert all(frame.at_ns > timeline.settled_ns for frame in frames[len(early) :])


def test_the_first_packets_may_come_in_any_order() -> None:
    records = simulate([Sender(1, "audio", Network())], 2 * SECOND)
    packets = [record for record in records if isinstance(record, RtpRecord)]
    first = [
        RtpRecord(1, packets[0].arrival_ns + index, packet.packet)
        for index, packet in enumerate((packets[2], packets[0], packets[1]))
    ]
    frames, timeline = run([*records[:3], *first, *packets[3:]])
    assert [frame.data for frame in frames] == [frame.data for frame in run(records)[0]]
    assert timeline.gaps == []
