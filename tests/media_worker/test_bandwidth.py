"""The bandwidth estimator on simulated lines: time is virtual, chance is seeded, no packet is real."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediaserver.forwarder.counters import SendFeedback, SendGroup
from mediaserver.media.bandwidth.estimator import CEILING_BPS, FLOOR_BPS, START_BPS, Estimator
from mediaserver.media.bandwidth.trend import TrendDetector, Usage
from tests.media_worker.narrow_link import MS, SECOND_NS, STEP_NS, Flow, Link, run


def fixed(bps: float, **more: object) -> Link:
    return Link(lambda _: bps, **more)  # type: ignore[arg-type]


def falling(second: float) -> float:
    """2 Mbit/s, from 20 s to 40 s 300 kbit/s."""
    return 300_000 if 20 <= second < 40 else 2_000_000


@pytest.mark.parametrize("buffer_s", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("bps", [300_000, 800_000, 2_000_000, 5_000_000])
def test_finds_what_a_fixed_line_carries(bps: float, buffer_s: float) -> None:
    flow = Flow(fixed(bps, queue_bytes=max(int(bps * buffer_s / 8), 8_000)), seed=2, max_bps=2 * bps)
    run([flow], 60)
    assert 0.84 <= flow.mean_target(20, 60) / bps <= 1.05
    assert 0.85 <= flow.mean_rate(20, 60) / bps <= 1.0
    targets = [sample[1] / bps for sample in flow.between(20, 60)]
    assert min(targets) >= 0.75, "no wild oscillation"
    assert max(targets) <= 1.15
    assert max(sample[3] for sample in flow.between(10, 60)) < 420


@pytest.mark.parametrize(
    ("bps", "layer_bps", "keyframe_bytes", "queue_bytes"),
    [
        (500_000, 300_000, 20_000, 12_000),
        (700_000, 500_000, 30_000, 20_000),
        (2_000_000, 1_300_000, 70_000, 40_000),
    ],
)
def test_a_paced_keyframe_fits_a_short_buffer(
    bps: float, layer_bps: float, keyframe_bytes: int, queue_bytes: int
) -> None:
    shares = []
    for paced in (False, True):
        link = fixed(bps, queue_bytes=queue_bytes)
        flow = Flow(
            link, max_bps=1.25 * layer_bps, steps=(layer_bps,), keyframe_bytes=keyframe_bytes, paced=paced
        )
        run([flow], 60)
        shares.append(flow.key_dropped / flow.key_packets)
        assert flow.pacer.bps == pytest.approx(2.5 * flow.sending.target_bps * paced, rel=0.06)
        flow.sending.stop()
        assert flow.pacer.bps == 0
    assert shares[0] > 0.3
    assert shares[1] < 0.1


@pytest.mark.parametrize("steps", [(), (150_000.0, 500_000.0, 1_500_000.0)], ids=["follows", "layers"])
@pytest.mark.parametrize("queue_bytes", [20_000, 64_000, 150_000])
def test_falls_with_the_line_and_climbs_again(queue_bytes: int, steps: tuple[float, ...]) -> None:
    flow = Flow(Link(falling, queue_bytes=queue_bytes), max_bps=2_000_000, steps=steps)
    run([flow], 60)
    down = next(sample[0] for sample in flow.between(20, 40) if sample[1] < 330_000)
    assert down - 20 <= 1.0
    long_s = sum(sample[3] > 500 for sample in flow.between(20, 40)) / 10
    # What was sent before the fall was seen fills the buffer; it can only drain.
    full_s = queue_bytes * 8 / 300_000
    assert long_s <= 1.5 * min(full_s, 2.0) + 2.5
    assert all(sample[3] < 500 for sample in flow.between(30, 40))
    assert flow.mean_target(26, 40) >= 0.75 * 300_000
    up = next(sample[0] for sample in flow.between(40, 60) if sample[1] > 1_600_000)
    assert up - 40 <= 15


@pytest.mark.parametrize("loss", [0.02, 0.05, 0.10])
@pytest.mark.parametrize("bps", [500_000, 2_000_000])
def test_stands_loss_that_is_not_its_own(bps: float, loss: float) -> None:
    flow = Flow(fixed(bps, loss=loss), max_bps=1.1 * bps)
    run([flow], 60)
    assert flow.mean_target(10, 60) >= 0.75 * bps
    assert min(sample[1] for sample in flow.between(10, 60)) >= 0.5 * bps


@pytest.mark.parametrize("loss", [0.20, 0.30])
def test_heavy_loss_does_not_throttle_to_nothing(loss: float) -> None:
    flow = Flow(fixed(2_000_000, loss=loss), max_bps=2_200_000)
    run([flow], 60)
    assert flow.mean_target(20, 60) >= 0.7 * 2_000_000
    assert flow.estimator.loss == pytest.approx(loss, abs=0.1)


def test_yields_to_others_and_comes_back() -> None:
    flow = Flow(fixed(2_000_000), max_bps=2_000_000)
    run([flow], 60, lambda second: 1_000_000 if 20 <= second < 40 else 0)
    assert flow.mean_target(10, 20) >= 1_700_000
    assert 600_000 <= flow.mean_target(25, 40) <= 1_100_000
    assert flow.mean_target(50, 60) >= 1_700_000


@pytest.mark.parametrize("later_s", [0, 20])
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_two_share_a_line(seed: int, later_s: int) -> None:
    link = fixed(3_000_000)
    one, other = Flow(link, seed=seed, max_bps=3e6), Flow(link, seed=seed + 11, max_bps=3e6)
    for now in range(0, 120 * SECOND_NS, STEP_NS):
        pair = (one, other) if now // STEP_NS % 2 else (other, one)
        for flow in pair if now >= later_s * SECOND_NS else (one,):
            flow.run(now)
    rates = sorted((one.mean_rate(60, 120), other.mean_rate(60, 120)))
    assert rates[1] / rates[0] <= 3
    assert sum(rates) >= 0.85 * 3_000_000


@pytest.mark.parametrize("jitter_ms", [10, 30, 50])
def test_jitter_is_not_taken_for_a_queue(jitter_ms: float) -> None:
    flow = Flow(fixed(2_000_000, jitter_ms=jitter_ms), max_bps=2_200_000)
    run([flow], 60)
    assert flow.mean_target(20, 60) >= 0.8 * 2_000_000


def test_a_longer_way_is_got_used_to() -> None:
    link = fixed(2_000_000)
    flow = Flow(link, max_bps=2_200_000)
    for now in range(0, 60 * SECOND_NS, STEP_NS):
        if now == 20 * SECOND_NS:
            link.delay_ms += 200  # a handover
        flow.run(now)
    assert flow.mean_target(30, 60) >= 0.75 * 2_000_000


def test_grows_no_further_than_what_is_sent_can_show() -> None:
    flow = Flow(fixed(10_000_000), max_bps=500_000, wants=False)
    run([flow], 60)
    assert flow.mean_target(30, 60) <= 1.05 * START_BPS
    assert flow.padding == 0, "nothing is wanted, nothing is probed for"
    assert flow.estimator.prober.made == 0


def test_probes_for_what_is_wanted() -> None:
    flow = Flow(fixed(10_000_000), max_bps=2_500_000, steps=(150_000.0, 500_000.0, 2_000_000.0))
    run([flow], 20)
    assert flow.mean_target(10, 20) >= 2_500_000
    assert flow.padding > 0
    padding = flow.padding
    for now in range(20 * SECOND_NS, 30 * SECOND_NS, STEP_NS):
        flow.run(now)
    assert flow.padding == padding, "what is wanted fits: no more padding"


def test_a_cut_halves_the_rate_each_second() -> None:
    link = fixed(2_000_000)
    flow = Flow(link, max_bps=2_200_000)
    run([flow], 20)
    before = flow.estimator.target_bps
    link.loss = 1.0
    for now in range(20 * SECOND_NS, 24 * SECOND_NS, STEP_NS):
        flow.run(now)
    assert flow.estimator.target_bps <= before / 4
    link.loss = 0.0
    for now in range(24 * SECOND_NS, 40 * SECOND_NS, STEP_NS):
        flow.run(now)
    assert flow.mean_target(30, 40) >= 1_500_000


def test_outages_are_not_taken_for_a_full_line() -> None:
    link = fixed(2_000_000)
    flow = Flow(link, max_bps=2_000_000, steps=(150_000.0, 500_000.0, 1_500_000.0))
    for now in range(0, 80 * SECOND_NS, STEP_NS):
        link.loss = 1.0 if now >= 20 * SECOND_NS and now % (10 * SECOND_NS) < 500 * MS else 0.0
        flow.run(now)
    assert min(sample[1] for sample in flow.between(25, 80)) >= 1_500_000, "the layer is kept"


def test_a_line_without_a_buffer_is_found_by_its_loss() -> None:
    flow = Flow(Link(falling, queue_bytes=6_000), max_bps=2_000_000)
    run([flow], 40)
    down = next(sample[0] for sample in flow.between(20, 40) if sample[1] < 400_000)
    assert down - 20 <= 1.5
    assert flow.mean_target(25, 40) <= 1.25 * 300_000


def test_remb_is_followed_and_capped_by_loss() -> None:
    estimator = Estimator()
    now = SECOND_NS
    assert estimator.take_remb(700_000, now) == 700_000
    assert estimator.take_remb(400, now) == FLOOR_BPS
    assert estimator.take_remb(1 << 40, now) == CEILING_BPS
    assert estimator.take_remb(900_000, now) == 900_000
    for second in range(2, 6):
        estimator.take_report(64, 900_000, second * SECOND_NS)
    assert estimator.target_bps < 900_000


def test_reports_alone_serve_as_last_resort() -> None:
    estimator = Estimator()
    for second in range(1, 10):
        sent = min(estimator.target_bps, 800_000)
        estimator.take_report(128 if sent > 600_000 else 0, sent, second * SECOND_NS)
    assert estimator.target_bps < 800_000
    low = estimator.target_bps
    for second in range(10, 30):
        estimator.take_report(0, estimator.target_bps, second * SECOND_NS)
    assert estimator.target_bps > 1.5 * low


def test_a_growing_queue_is_seen_and_a_steady_one_is_not() -> None:
    detector = TrendDetector()
    usages = [detector.update(20, 20, 20 * i) for i in range(100)]
    assert set(usages) == {Usage.NORMAL}
    usages = [detector.update(20, 24, 2000 + 24 * i) for i in range(30)]
    assert Usage.OVER in usages
    usages = [detector.update(20, 15, 3000 + 15 * i) for i in range(60)]
    assert Usage.UNDER in usages


BIG = st.integers(-(2**62), 2**62)
GROUPS = st.lists(
    st.builds(SendGroup, BIG, BIG, BIG, BIG, BIG, st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)),
    max_size=20,
)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(GROUPS, BIG, st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40)), max_size=10),
    st.integers(0, 2**32),
)
def test_no_feedback_breaks_it(rounds: list[tuple[list[SendGroup], int, int, int]], wanted: int) -> None:
    estimator = Estimator()
    estimator.wanted_bps = wanted
    now = 0
    for groups, told_ns, packets, lost in rounds:
        now += 100 * MS
        opened = groups[0] if groups else None
        feedback = SendFeedback(
            now, now, told_ns, packets, packets, lost, lost, 0, told_ns // 2, groups, opened
        )
        assert FLOOR_BPS <= estimator.update(feedback, now) <= CEILING_BPS
        assert FLOOR_BPS <= estimator.rest(feedback, now + 50 * MS) <= CEILING_BPS
        assert estimator.padding(now, now) >= 0


def test_random_but_plausible_feedback_keeps_it_within_bounds() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    flow = Flow(Link(lambda _: rng.uniform(50_000, 8_000_000), queue_bytes=100_000, loss=0.1, seed=seed))
    run([flow], 60)
    assert all(FLOOR_BPS <= sample[1] <= CEILING_BPS for sample in flow.samples)
