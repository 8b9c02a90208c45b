"""The server's clock."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from recorder.clock import SystemClock, boot_id, read_discipline, rfc3339


def test_rfc3339_cuts_to_milliseconds() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_767_323_045_678_999_999) == "2026-01-02T03:04:05.678Z"


@given(st.integers(0, 4_102_444_800_000))
def test_rfc3339_sorts_as_time_does(milliseconds: int) -> None:
    now, later = rfc3339(milliseconds * 1_000_000), rfc3339((milliseconds + 1) * 1_000_000)
    assert now < later
    assert len(now) == 24


def test_a_pair_is_read_at_one_moment() -> None:
    clock = SystemClock()
    before = clock.now_ns()
    pair = clock.pair()
    after = clock.now_ns()
    assert before <= pair.at_ns <= after
    assert abs(pair.utc_ns - time.time_ns()) < 60_000_000_000
    assert pair.source in {"ntp", "ptp", "free"}
    assert pair.trust in {"trusted", "degraded"}
    assert abs(clock.utc_ns() - pair.utc_ns) < 60_000_000_000


def test_the_kernel_tells_its_discipline() -> None:
    state = read_discipline()
    assert state.synchronised == (state.source != "free")
    assert state.max_error_ns >= 0


def test_the_boot_has_a_stable_id() -> None:
    assert boot_id() == boot_id() != ""
