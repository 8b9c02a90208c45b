"""The line's decisions, exactly: time is given, chance is seeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.impairment import CAUSES, MS, Direction, Histogram, Impairment, SettingsError

PACKET = bytes(1000)


def run(line: Direction, count: int, every_ms: float = 1.0, packet: bytes = PACKET) -> list[str | None]:
    """Offer packets at an even pace; returns the fate of each."""
    return [line.offer(packet, round(index * every_ms * MS)) for index in range(count)]


def test_a_line_without_impairment_delivers_at_once_and_in_order() -> None:
    line = Direction(1)
    for index in range(100):
        assert line.offer(bytes([index]), index) is None
        assert line.next_ns() == index
        assert line.due(index) == [bytes([index])]
    assert line.next_ns() is None
    assert line.held == 0


def test_delay_is_exact() -> None:
    line = Direction(1, Impairment(delay_ms=50))
    line.offer(PACKET, 7)
    assert line.next_ns() == 50 * MS + 7
    assert line.due(50 * MS + 6) == []
    assert line.due(50 * MS + 7) == [PACKET]


def test_random_loss_is_the_share_set_and_the_same_for_the_same_seed() -> None:
    fates = run(Direction(5, Impairment(loss=0.05)), 100_000)
    assert fates.count("random") == pytest.approx(5000, abs=4 * (5000 * 0.95) ** 0.5)
    assert fates == run(Direction(5, Impairment(loss=0.05)), 100_000)
    assert fates != run(Direction(6, Impairment(loss=0.05)), 100_000)


def test_the_same_packets_are_lost_whatever_else_is_set() -> None:
    alone = run(Direction(5, Impairment(loss=0.1)), 2000)
    delayed = run(Direction(5, Impairment(loss=0.1, delay_ms=80, jitter_ms=50, reorder=0.5)), 2000)
    assert alone == delayed


def test_more_loss_loses_what_less_loss_lost() -> None:
    little = run(Direction(5, Impairment(loss=0.1)), 2000)
    much = run(Direction(5, Impairment(loss=0.3)), 2000)
    assert all(fate for fate, before in zip(much, little, strict=True) if before)


def test_bursts_have_the_share_and_length_that_their_chances_give() -> None:
    fates = run(Direction(3, Impairment(burst_enter=0.01, burst_leave=0.1)), 200_000)
    lost = [fate == "burst" for fate in fates]
    bursts = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
    assert sum(lost) / len(lost) == pytest.approx(0.01 / 0.11, rel=0.1)
    assert sum(lost) / bursts == pytest.approx(10, rel=0.1)


def test_an_outage_ends_each_period() -> None:
    line = Direction(1)
    line.change(Impairment(outage_every_ms=100, outage_ms=20), 5000 * MS)
    lost = [at for at in range(300) if line.offer(PACKET, (5000 + at) * MS) == "outage"]
    assert lost == [at for at in range(300) if at % 100 >= 80]


def test_a_cut_lets_through_what_is_on_the_way() -> None:
    line = Direction(1, Impairment(delay_ms=10))
    line.offer(b"before", 0)
    line.change(line.impairment.changed({"cut": True}), 1 * MS)
    assert line.offer(b"during", 2 * MS) == "cut"
    line.change(line.impairment.changed({"cut": False}), 20 * MS)
    line.offer(b"after", 20 * MS)
    assert line.due(100 * MS) == [b"before", b"after"]


def test_rate_spaces_packets_by_their_size() -> None:
    line = Direction(1, Impairment(rate_bps=800_000))  # 1,000 bytes take 10 ms
    for _ in range(3):
        line.offer(PACKET, 0)
    times = []
    while (at := line.next_ns()) is not None:
        if line.due(at):
            times.append(at)
    assert times == [10 * MS, 20 * MS, 30 * MS]
    assert line.statistics.queue.percentile_ms(100) == pytest.approx(30, abs=0.25)


def test_a_full_queue_drops_the_newest() -> None:
    line = Direction(1, Impairment(rate_bps=800_000, queue_bytes=3000))
    fates = [line.offer(PACKET, 0) for _ in range(5)]
    assert fates == [None, None, None, "queue", "queue"]
    assert line.offer(PACKET, 10 * MS) is None, "the first has left"
    assert line.statistics.dropped["queue"] == 2


def test_a_new_rate_holds_from_the_next_packet_on() -> None:
    line = Direction(1, Impairment(rate_bps=800_000))
    line.offer(PACKET, 0)
    line.offer(PACKET, 0)
    line.change(line.impairment.changed({"rate_bps": 8_000_000}), 5 * MS)
    assert line.due(10 * MS - 1) == []
    assert line.due(10 * MS) == [PACKET]
    assert line.due(11 * MS) == [PACKET]


def test_no_limit_any_more_empties_the_queue() -> None:
    line = Direction(1, Impairment(rate_bps=8_000))
    for _ in range(3):
        line.offer(PACKET, 0)
    line.change(Impairment(), 1 * MS)
    assert len(line.due(1000 * MS)) == 3


@pytest.mark.parametrize(("reorder", "overtaken"), [(0.0, False), (0.3, True), (1.0, True)])
def test_jitter_overtakes_only_where_it_may(reorder: float, overtaken: bool) -> None:
    line = Direction(9, Impairment(delay_ms=25, jitter_ms=50, reorder=reorder))
    for index in range(1000):
        line.offer(index.to_bytes(2, "big"), index * MS)
        line.due(index * MS)
    line.due(10_000 * MS)
    assert (line.statistics.overtaken > 0) == overtaken


def test_jitter_of_sparse_packets_is_spread_evenly_over_its_width() -> None:
    line = Direction(9, Impairment(delay_ms=25, jitter_ms=50))
    for index in range(4000):
        line.offer(PACKET, index * 100 * MS)
        at = line.next_ns()
        assert at is not None
        assert 25 * MS <= at - index * 100 * MS <= 75 * MS
        assert line.due(at) == [PACKET]
    assert line.statistics.way.percentile_ms(50) == pytest.approx(50, abs=2)
    assert line.statistics.way.percentile_ms(10) == pytest.approx(30, abs=2)
    assert line.statistics.way.percentile_ms(90) == pytest.approx(70, abs=2)


@given(
    st.builds(
        Impairment,
        loss=st.floats(0, 1),
        burst_enter=st.floats(0, 1),
        burst_leave=st.floats(0, 1),
        burst_loss=st.floats(0, 1),
        outage_every_ms=st.floats(50, 100),
        outage_ms=st.floats(0, 50),
        delay_ms=st.floats(0, 200),
        jitter_ms=st.floats(0, 200),
        reorder=st.floats(0, 1),
        rate_bps=st.integers(0, 10_000_000),
        queue_bytes=st.integers(0, 100_000),
    ),
    st.lists(st.tuples(st.integers(0, 20 * MS), st.integers(20, 1500)), max_size=80),
    st.integers(0, 2**32 - 1),
)
def test_every_packet_is_delivered_or_dropped_once(
    impairment: Impairment, packets: list[tuple[int, int]], seed: int
) -> None:
    line, now_ns, out = Direction(seed, impairment), 0, 0
    for gap_ns, size in packets:
        now_ns += gap_ns
        line.offer(bytes(size), now_ns)
        out += len(line.due(now_ns))
    while (at := line.next_ns()) is not None:
        now_ns = max(now_ns, at)
        out += len(line.due(now_ns))
    statistics = line.statistics
    assert line.held == 0
    assert statistics.offered_packets == len(packets) == out + sum(statistics.dropped.values())
    assert statistics.delivered_packets == out
    if not impairment.reorder:
        assert statistics.overtaken == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": 1.5}, "loss"),
        ({"loss": "much"}, "loss"),
        ({"loss": True}, "loss"),
        ({"cut": 1}, "cut"),
        ({"delay_ms": -1}, "delay_ms"),
        ({"delay": 1}, "delay"),
        ({"outage_ms": 5}, "outage_ms"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        Impairment().changed(changes)


def test_statistics_are_told_as_json_values() -> None:
    line = Direction(1, Impairment(cut=True))
    line.offer(PACKET, 0)
    row = line.statistics.row()
    assert row["offered_bytes"] == 1000
    assert row["dropped"] == {**dict.fromkeys(CAUSES, 0), "cut": 1}


def test_the_histogram_takes_any_time() -> None:
    times = Histogram()
    assert times.percentile_ms(50) == 0
    times.add(-5)
    times.add(60_000 * MS)
    assert times.percentile_ms(50) == pytest.approx(0.125)
    assert times.percentile_ms(100) == pytest.approx(9999.875)
