"""The choice of simulcast layers, without network: states and time in, a number out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mediaserver.media.layer_choice import (
    CLIMB_NS,
    LOOK_NS,
    SECOND_NS,
    SETTLE_NS,
    SILENT_NS,
    LayerMeter,
    LayerPolicy,
    LayerState,
    OrderWatch,
)

RATES = (150_000, 500_000, 1_500_000)


def states(*alive: bool, since_ns: int = 0) -> list[LayerState]:
    """Return layers with the rates above."""
    return [LayerState(there, since_ns, bps) for there, bps in zip(alive, RATES, strict=False)]


ALL = states(True, True, True)
T = 100 * SECOND_NS


def test_the_highest_is_the_default_and_wishes_limit_it() -> None:
    assert LayerPolicy().choose(ALL, None, T) == 2
    assert LayerPolicy(preferred=1).choose(ALL, None, T) == 1
    assert LayerPolicy(preferred=2, maximum=0).choose(ALL, None, T) == 0
    assert LayerPolicy(preferred=1).choose(ALL, 2, T) == 1  # a wish counts at once
    assert LayerPolicy(maximum=0).choose(states(False, True, True), None, T) == 1  # better than nothing


def test_a_dead_layer_is_left_at_once_and_a_new_one_must_settle() -> None:
    policy = LayerPolicy()
    assert policy.choose(states(True, True, False), 2, T) == 1
    assert policy.choose(states(False, False, True), 1, T) == 2
    assert policy.choose(states(False, False, False), 1, T) == 1
    back = states(True, True, True, since_ns=T)
    assert policy.choose(back, 1, T) == 1
    assert policy.choose(back, 1, T + SETTLE_NS - 1) == 1
    assert policy.choose(back, 1, T + SETTLE_NS) == 2


def test_down_at_once_and_up_after_a_while_with_room() -> None:
    policy = LayerPolicy()
    policy.target_bps = 600_000
    assert policy.choose(ALL, 2, T) == 1
    policy.target_bps = 1_600_000  # bears it, but not with room to spare
    for tick in range(60):
        assert policy.choose(ALL, 1, T + tick * LOOK_NS) == 1
    policy.target_bps = 1_800_000
    now = T + 60 * LOOK_NS
    assert policy.choose(ALL, 1, now) == 1
    assert policy.choose(ALL, 1, now + CLIMB_NS - 1) == 1
    assert policy.choose(ALL, 1, now + CLIMB_NS) == 2
    policy.target_bps = 1_600_000  # what was climbed to is kept while it fits
    assert policy.choose(ALL, 2, now + CLIMB_NS + 1) == 2
    policy.target_bps = 10_000  # nothing fits: the smallest
    assert policy.choose(ALL, 2, now + CLIMB_NS + 2) == 0


def test_a_line_that_swings_around_a_rate_changes_nothing() -> None:
    policy = LayerPolicy()
    current: int | None = 1
    for tick in range(200):
        policy.target_bps = 1_500_000 + (300_000 if tick % 8 < 4 else 0)
        current = policy.choose(ALL, current, T + tick * LOOK_NS)
        assert current == 1


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3_000_000)), min_size=1, max_size=3),
    st.none() | st.integers(0, 2),
    st.none() | st.integers(0, 2),
    st.none() | st.integers(0, 4_000_000),
    st.none() | st.integers(0, 2),
)
def test_a_choice_lives_and_keeps_to_the_limit(
    layers: list[tuple[bool, int]],
    preferred: int | None,
    maximum: int | None,
    target: int | None,
    current: int | None,
) -> None:
    policy = LayerPolicy(preferred, maximum)
    policy.target_bps = target
    given_states = [LayerState(alive, 0, bps) for alive, bps in layers]
    if current is not None and current >= len(layers):
        current = None
    chosen = policy.choose(given_states, current, T)
    live = [number for number, state in enumerate(given_states) if state.alive]
    if not live:
        assert chosen == current
        return
    assert chosen in live
    assert chosen is not None
    if any(number <= policy.limit for number in live):
        assert chosen <= policy.limit
    assert policy.choose(given_states, chosen, T) == chosen  # asked again at once: the same


def test_a_layer_is_dead_only_beside_living_ones() -> None:
    low, high = LayerMeter(), LayerMeter()
    now, octets = T, 0
    for _ in range(10):
        now += LOOK_NS
        octets += 10_000
        low.look(octets, now)
        high.look(octets * 4, now)
    newest = max(low.media_ns, high.media_ns)
    assert low.state(newest, now).alive
    assert high.state(newest, now) == LayerState(True, now, 320_000 * SECOND_NS // LOOK_NS)
    silent = now
    while now - silent < 5 * SECOND_NS:  # the camera is covered: both are silent, none is dead
        now += LOOK_NS
        low.look(octets, now)
        high.look(octets * 4, now)
        newest = max(low.media_ns, high.media_ns)
        assert low.state(newest, now).alive
        assert high.state(newest, now).alive
    went = now
    while high.state(max(low.media_ns, high.media_ns), now).alive:
        now += LOOK_NS
        octets += 1
        low.look(octets, now)
    assert now - went <= SILENT_NS + LOOK_NS
    assert low.state(low.media_ns, now).alive


def test_layers_offered_from_the_largest_are_turned_round() -> None:
    watch = OrderWatch()
    turned = list(reversed(ALL))
    assert not watch.reversed(turned, T)
    assert not watch.reversed(ALL, T + SECOND_NS)  # begins anew
    assert not watch.reversed(turned, T + 2 * SECOND_NS)
    assert not watch.reversed(turned, T + 4 * SECOND_NS)
    assert watch.reversed(turned, T + 5 * SECOND_NS)
    dead = [turned[0], turned[1], LayerState(False, 0, 150_000)]
    assert not any(watch.reversed(dead, T + tick * SECOND_NS) for tick in range(10, 20))
    assert not watch.reversed(ALL[:1], T)
