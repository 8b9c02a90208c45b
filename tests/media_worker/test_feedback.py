"""When the server asks again, and what its reports say; time is an argument."""

from __future__ import annotations

import heapq
import random
from itertools import pairwise

import pytest

from mediaserver.forwarder.interface import RouteStats, StreamStats
from mediaserver.media.feedback import (
    FIRST_ROUND_NS,
    HOLD_BOUNDS_NS,
    KEYFRAME_INTERVAL_NS,
    MAX_PENDING,
    MS,
    RECORDED_NS,
    REPORTED_MISSING,
    RETRY_BOUNDS_NS,
    SECOND_NS,
    VIEWED_NS,
    KeyframeRequester,
    Line,
    NackGenerator,
    RateByLoss,
    ReceptionReporter,
    forwarded_report,
    heeded,
)
from recorder import rtcp
from recorder.rtp import RtpError

NOW = 1_000 * SECOND_NS
REORDER_NS = HOLD_BOUNDS_NS[0]


def stream_stats(expected: int, lost: int, highest: int) -> StreamStats:
    numbers = {name: 0 for name in StreamStats.__slots__}
    numbers |= {"ssrc": 5, "packets": expected - lost, "lost": lost, "expected": expected, "jitter": 12}
    return StreamStats(**{**numbers, "max_sequence": highest, "voice": False})  # type: ignore[arg-type]


def route_stats(packets: int, octets: int, offset: int) -> RouteStats:
    numbers = {name: 0 for name in RouteStats.__slots__}
    numbers |= {"ssrc": 9, "packets": packets, "bytes": octets, "timestamp_offset": offset}
    return RouteStats(**{**numbers, "paused": False, "waiting": False})  # type: ignore[arg-type]


def test_reordered_packets_are_not_asked_for() -> None:
    nack = NackGenerator()
    nack.add(10, 11, NOW)
    assert nack.to_ask([10, 11], NOW) == []
    assert nack.to_ask([11], NOW + REORDER_NS) == [11]
    assert nack.to_ask([], NOW + REORDER_NS) == []
    assert not nack.pending


@pytest.mark.parametrize(("recorded", "last_ns"), [(False, VIEWED_NS), (True, RECORDED_NS - FIRST_ROUND_NS)])
def test_asks_again_and_stops_when_too_late(recorded: bool, last_ns: int) -> None:
    """For viewers a second, for a recording until an answer would pass the horizon."""
    nack = NackGenerator()
    nack.add(65535, 0, NOW)
    missing = [65535, 0]
    times = [t for t in range(0, 3000, 20) if nack.to_ask(missing, NOW + t * MS, recorded=recorded)]
    assert times[0] == 20
    rounds = [times[0], *(b for a, b in pairwise(times) if b - a > 20)]
    assert all(b - a >= FIRST_ROUND_NS // MS for a, b in pairwise(rounds))
    assert len(rounds) > last_ns // (200 * MS)
    assert times[-1] * MS <= last_ns < (times[-1] + 300) * MS
    assert not nack.pending
    assert nack.given_up == 2
    assert nack.broken


def test_the_round_trip_is_measured_from_packets_asked_for_once() -> None:
    nack = NackGenerator()
    for number in range(40):  # each is resent 260 ms after it was asked for
        at = NOW + number * SECOND_NS
        nack.add(number, number, at)
        first = 0
        while nack.pending:
            came = bool(first) and at - first >= 260 * MS
            asked = nack.to_ask([] if came else [number], at, recovered=number + came)
            first = first or (at if asked else 0)
            at += 20 * MS
    assert abs(nack.line.round_ns - 260 * MS) <= 10 * MS
    assert nack.line.hold_ns == REORDER_NS
    assert nack.asked <= 40 * 8  # every 20 ms for half of it


def test_a_request_is_repeated_for_half_a_round_trip() -> None:
    nack = NackGenerator()
    nack.add(7, 7, NOW)
    asked = [after for after in range(0, 120, 20) if nack.to_ask([7], NOW + after * MS)]
    assert asked == [20, 40, 60]


def test_a_sender_that_answers_every_request_is_asked_once_a_round() -> None:
    nack = NackGenerator()
    came_twice = 0
    for number in range(200):
        at = NOW + number * SECOND_NS
        nack.add(number, number, at)
        asked = sum(
            bool(nack.to_ask([number], at + t * MS, duplicates=came_twice)) for t in range(0, 120, 20)
        )
        came_twice += asked - 1
        nack.to_ask([], at + 200 * MS, recovered=number, duplicates=came_twice)
    assert 0 < came_twice < 80


def test_viewers_get_a_keyframe_while_a_recording_still_waits() -> None:
    nack = NackGenerator()
    nack.add(7, 7, NOW)
    times = [t for t in range(0, 1400, 20) if nack.to_ask([7], NOW + t * MS, recorded=True) and nack.broken]
    assert times[0] * MS > VIEWED_NS
    assert nack.pending
    nack.broken = False
    nack.to_ask([7], NOW + 1400 * MS, recorded=True)
    assert not nack.broken, "one is asked for once"


def test_bounds_of_what_is_learnt() -> None:
    low, high = RETRY_BOUNDS_NS
    assert Line(MS, 0).retry_ns == low
    assert Line(3 * SECOND_NS, 0).retry_ns == high
    line = Line()
    for _ in range(1000):
        line.reordered(SECOND_NS)
    assert line.hold_ns == HOLD_BOUNDS_NS[1]
    for _ in range(1000):
        line.resent(50 * MS)
    assert (line.hold_ns, line.round_ns) == (HOLD_BOUNDS_NS[0], 50 * MS)


def test_a_line_that_only_reorders_is_not_asked_for_much() -> None:
    nack = NackGenerator()
    for number in range(200):  # each comes by itself, 45 ms late
        at = NOW + number * SECOND_NS
        nack.add(number, number, at)
        for later in range(0, 60, 20):
            nack.to_ask([] if later >= 45 else [number], at + later * MS, recovered=0)
        nack.to_ask([], at + 60 * MS, recovered=0)
    assert nack.asked <= 20
    assert nack.line.samples == 0


def test_of_a_sender_that_resends_in_the_stream_itself_nothing_is_learnt() -> None:
    """Its answers look like reordered packets."""
    nack = NackGenerator()
    nack.add(1, 1, NOW)
    assert nack.to_ask([1], NOW + REORDER_NS) == [1]
    assert nack.to_ask([], NOW + 200 * MS) == []
    assert nack.line == Line()


def test_what_lies_behind_a_full_list_is_not_taken_for_arrived() -> None:
    nack = NackGenerator()
    nack.add(0, 299, NOW)
    listed = list(range(REPORTED_MISSING))
    assert nack.to_ask(listed, NOW + REORDER_NS) == listed
    assert nack.to_ask(list(range(200, 300)), NOW + 2 * REORDER_NS) == list(range(REPORTED_MISSING, 300))


def simulate(
    nack: NackGenerator, seed: int, *, loss: float, jitter_ms: int, round_ms: int
) -> tuple[int, int]:
    """Send 60 s of 200 packets a second over a bad line; returns (lost for ever, resent in vain)."""
    chance = random.Random(seed)
    due: list[
        tuple[int, int, bool]
    ] = []  # (arrival in ms, number, whether it is resent) of what is under way
    sent = 200 * 60
    came: set[int] = set()
    resent_ms: dict[int, int] = {}
    highest, in_vain, recovered = -1, 0, 0

    def send(number: int, at_ms: int, *, again: bool = False) -> None:
        if chance.random() >= loss:
            heapq.heappush(due, (at_ms + round_ms // 2 + round(chance.uniform(0, jitter_ms)), number, again))

    for now_ms in range(0, 63_000, 5):
        if now_ms // 5 < sent:
            send(now_ms // 5, now_ms)
        while due and due[0][0] <= now_ms:
            _, number, again = heapq.heappop(due)
            in_vain += number in came
            recovered += again and number not in came
            came.add(number)
            if number > highest + 1 and highest >= 0:
                nack.add((highest + 1) & 0xFFFF, (number - 1) & 0xFFFF, NOW + now_ms * MS)
            highest = max(highest, number)
        if now_ms % 20 == 0 and nack.pending:
            missing = [number for number in range(max(0, highest - 1000), highest) if number not in came]
            ask = nack.to_ask(
                missing[:REPORTED_MISSING], NOW + now_ms * MS, recovered=recovered, recorded=True
            )
            if ask and chance.random() >= loss:  # the request passes the same line
                for number in ask:
                    if now_ms - resent_ms.get(number, -round_ms) < round_ms:
                        continue  # as libwebrtc does: the first answer is still under way
                    resent_ms[number] = now_ms
                    send(number, now_ms + round_ms // 2 + round(chance.uniform(0, jitter_ms)), again=True)
    return sum(1 for number in range(min(came), highest) if number not in came), in_vain


@pytest.mark.parametrize(
    ("loss", "round_ms", "most_lost", "most_in_vain"),
    [
        (0.05, 100, 0.0004, 0.008),
        (0.10, 100, 0.0006, 0.013),
        (0.20, 100, 0.001, 0.025),
        (0.30, 100, 0.002, 0.035),
        (0.05, 400, 0.001, 0.02),
    ],
)
def test_a_bad_line_loses_next_to_nothing(
    loss: float, round_ms: int, most_lost: float, most_in_vain: float
) -> None:
    """Shares of all packets: lost for ever, and resent though the first answer was still under way.

    One lost between two reordered ones at the very beginning cannot be noticed.
    """
    seed = random.SystemRandom().randrange(2**32)
    nack = NackGenerator()
    lost, in_vain = simulate(nack, seed, loss=loss, jitter_ms=50, round_ms=round_ms)
    print(f"seed {seed}: {lost} of 12000 lost, {in_vain} in vain, asked {nack.asked}, {nack.line}")
    assert lost <= 12_000 * most_lost
    assert in_vain <= 12_000 * most_in_vain


def test_an_outage_is_not_asked_for_packet_by_packet() -> None:
    nack = NackGenerator()
    nack.add(0, MAX_PENDING, NOW)
    assert nack.broken
    assert not nack.pending


def test_keyframes_are_asked_for_at_once_then_seldom_until_one_comes() -> None:
    keyframes = KeyframeRequester()
    assert not keyframes.should_ask(NOW)
    keyframes.want(NOW)
    asked = [t for t in range(0, 2000, 20) if keyframes.should_ask(NOW + t * MS)]
    assert asked == [0, 500, 1000, 1500]
    assert keyframes.eager
    assert [t for t in range(2000, 4000, 20) if keyframes.should_ask(NOW + t * MS)] == [
        2000,
        2500,
        3000,
        3500,
    ]
    assert keyframes.pending
    assert not keyframes.eager  # the camera is off: the caller comes once a second only
    keyframes.came(NOW + 4 * SECOND_NS)
    assert not keyframes.should_ask(NOW + 5 * SECOND_NS)


def test_a_burst_of_wishes_makes_few_requests() -> None:
    keyframes = KeyframeRequester()
    asked = 0
    for t in range(0, 1000, 10):  # a subscriber sends a PLI every 10 ms, a keyframe comes after each request
        keyframes.want(NOW + t * MS)
        if keyframes.should_ask(NOW + t * MS):
            asked += 1
            keyframes.came(NOW + t * MS)
    assert asked == SECOND_NS // KEYFRAME_INTERVAL_NS


def test_report_block_counts_since_the_last_report() -> None:
    reporter = ReceptionReporter(5)
    reporter.heard(rtcp.SenderReport(5, 0x1122334455667788, 0, 0, 0), NOW)
    first = reporter.block(stream_stats(100, 25, 1000), NOW + SECOND_NS // 2)
    assert (first.fraction_lost, first.lost, first.highest_sequence) == (64, 25, 1000)
    assert (first.last_sr, first.delay_since_last_sr) == (0x33445566, 32768)
    second = reporter.block(stream_stats(200, 25, 1100), NOW)
    assert second.fraction_lost == 0
    recovered = reporter.block(stream_stats(300, 20, 1200), NOW)
    assert recovered.fraction_lost == 0
    assert recovered.build()


def test_forwarded_report_keeps_capture_time() -> None:
    sender = rtcp.SenderReport(5, 1000 << 32, 90_000, 0, 0)
    report = forwarded_report(sender, NOW, route_stats(7, 700, 2**32 - 1000), 90_000, NOW + 2 * SECOND_NS)
    assert report.ssrc == 9
    assert report.ntp == 1002 << 32
    assert report.rtp_timestamp == 90_000 - 1000 + 180_000
    assert (report.packets, report.octets) == (7, 700)


def test_rate_falls_with_loss_and_recovers() -> None:
    rate = RateByLoss()
    start = rate.bps
    assert rate.update(128) < start
    for _ in range(60):
        rate.update(0)
    assert rate.bps == rate.ceiling_bps
    for _ in range(60):
        rate.update(255)
    assert rate.bps == rate.floor_bps


def test_only_what_is_heeded_is_read() -> None:
    pli = rtcp.PictureLossIndication(1, 9)
    sdes = rtcp.SourceDescription.of_cname(1, "name")
    whole = rtcp.build([rtcp.ReceiverReport(1), sdes, pli])
    assert heeded(whole, frozenset({rtcp.PSFB})) == [pli]
    assert heeded(whole, frozenset({rtcp.SR})) == []
    for length in range(len(whole)):
        if length % 4 or length == 0:
            with pytest.raises(RtpError):
                heeded(whole[:length], frozenset({rtcp.PSFB}))
    with pytest.raises(RtpError):
        heeded(b"\x40" + whole[1:], frozenset())
