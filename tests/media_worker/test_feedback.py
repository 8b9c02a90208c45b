"""When the server asks again, and what its reports say; time is an argument."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mediaserver.forwarder.interface import RouteStats, StreamStats
from mediaserver.media.feedback import (
    GIVE_UP_NS,
    KEYFRAME_INTERVAL_NS,
    MAX_PENDING,
    MS,
    REORDER_NS,
    RETRY_NS,
    SECOND_NS,
    KeyframeRequester,
    NackGenerator,
    RateByLoss,
    ReceptionReporter,
    forwarded_report,
    heeded,
)
from recorder import rtcp
from recorder.rtp import RtpError

NOW = 1_000 * SECOND_NS


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


def test_asks_again_and_stops_when_too_late() -> None:
    nack = NackGenerator()
    nack.add(65535, 0, NOW)
    times = [t for t in range(0, 3000, 20) if nack.to_ask([65535, 0], NOW + t * MS)]
    assert times[0] == 20
    assert all(b - a >= RETRY_NS // MS for a, b in pairwise(times))
    assert times[-1] * MS <= GIVE_UP_NS
    assert not nack.pending
    assert nack.given_up == 2


def test_an_outage_is_not_asked_for_packet_by_packet() -> None:
    nack = NackGenerator()
    nack.add(0, MAX_PENDING, NOW)
    assert nack.overrun
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
