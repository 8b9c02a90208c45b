"""What a line bears, shared among pictures: pure, and closed over a simulated line."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediaserver.media.layer_choice import HEADROOM, LOOK_NS, LayerPolicy, LayerState
from mediaserver.media.sharing import PAYLOAD, SLACK, SOUND_BPS, Picture, share, wanted
from tests.media_worker.narrow_link import SECOND_NS, Flow, Link, run

RATES = (150_000, 500_000, 1_500_000)


def picture(current: int | None = None, limit: int = 2, rates: tuple[int, ...] = RATES) -> Picture:
    return Picture([LayerState(True, 0, bps) for bps in rates], current, limit)


def test_sound_comes_first_and_one_picture_has_the_rest() -> None:
    assert share(1_000_000, 60_000, [picture(current=1)]) == [int(940_000 * PAYLOAD)]
    assert share(1_000_000, 60_000, []) == []


def test_every_picture_has_its_smallest_layer_first() -> None:
    small = int(RATES[0] * HEADROOM)
    shares = share(450_000, 0, [picture(), picture()])
    assert all(one >= small for one in shares)
    assert share(100_000, 60_000, [picture(), picture()]) == [small, small], "less there is not"


def test_all_climb_together_the_first_first() -> None:
    first, second = share(1_000_000, 0, [picture(current=0), picture(current=0)])
    assert first >= RATES[1] * HEADROOM
    assert RATES[0] <= second < RATES[1]
    shares = share(1_400_000, 0, [picture(current=1), picture(current=0)])
    assert all(RATES[1] <= one < RATES[2] for one in shares), "nobody has the best while one has the worst"


def test_a_thumbnail_takes_no_more_than_it_needs() -> None:
    shares = share(3_000_000, 0, [picture(current=2), picture(current=0, limit=0)])
    assert shares[0] >= RATES[2] * SLACK
    assert wanted(0, [picture(limit=0)]) < 2 * RATES[0]
    assert wanted(60_000, [picture()]) > 60_000 + RATES[2] * HEADROOM / PAYLOAD


def test_dead_layers_and_unknown_rates() -> None:
    dead = Picture([LayerState(at == 1, 0, bps) for at, bps in enumerate(RATES)], 1, 0)
    assert dead.wished() == [1], "one too large is better than none"
    assert share(300_000, 0, [dead])[0] >= RATES[1]
    nothing = Picture([LayerState(False, 0, 0)] * 3, None, 2)
    assert share(300_000, 0, [nothing, picture()])[1] > 0
    assert wanted(0, [nothing]) == 0
    assert share(300_000, 0, [picture(rates=(0, 0, 0))]) == [int(300_000 * PAYLOAD)]


PICTURES = st.lists(
    st.builds(
        Picture,
        st.lists(
            st.builds(LayerState, st.booleans(), st.just(0), st.integers(0, 3_000_000)),
            min_size=1,
            max_size=3,
        ),
        st.none() | st.integers(0, 2),
        st.integers(0, 2),
    ),
    max_size=6,
)


@given(st.integers(0, 20_000_000), st.integers(0, 5_000_000), PICTURES)
def test_no_more_is_shared_than_there_is(target: int, taken: int, pictures: list[Picture]) -> None:
    shares = share(target, taken, pictures)
    least = sum(one.steps()[0][1] for one in pictures if one.steps())
    assert sum(shares) <= max((target - taken) * PAYLOAD, least) * SLACK + len(pictures)
    assert all(one >= 0 for one in shares)
    assert wanted(taken, pictures) >= taken


@dataclass
class Layered(Flow):
    """A subscriber whose layer is chosen as sessions do it."""

    layer: int = 0
    chosen: list[tuple[float, int]] = field(default_factory=list)
    """When (s) which layer was gone to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._policy = LayerPolicy()
        self._looked_ns = self._weighed_ns = 0
        self._weigh()
        self.sending.on_change = lambda _: self._weigh()

    def _pictures(self) -> list[Picture]:
        return [picture(self.layer)]

    def _weigh(self) -> None:
        (self._policy.target_bps,) = share(self.sending.target_bps, SOUND_BPS, self._pictures())
        self._look()

    def _look(self) -> None:
        number = self._policy.choose(self._pictures()[0].layers, self.layer, self._now)
        assert number is not None
        if number != self.layer:
            self.layer = number
            self.chosen.append((self._now / SECOND_NS, number))

    def wanted_bps(self) -> int:
        """What the session asks for."""
        return wanted(SOUND_BPS, self._pictures())

    def media_bps(self) -> float:
        """The chosen layer and the sound."""
        return RATES[self.layer] / PAYLOAD + 40_000

    def run(self, now: int) -> None:
        """Look as often as a publication and a session do."""
        super().run(now)
        if now >= self._looked_ns:
            self._looked_ns += LOOK_NS
            self._look()
        if now >= self._weighed_ns:
            self._weighed_ns += SECOND_NS
            self._weigh()


def falling(second: float) -> float:
    return 300_000 if 20 <= second < 40 else 2_500_000


@pytest.mark.parametrize("queue_bytes", [20_000, 64_000, 150_000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_layer_follows_the_line(queue_bytes: int, seed: int) -> None:
    flow = Layered(Link(falling, queue_bytes=queue_bytes, seed=seed), seed=seed)
    run([flow], 60)
    print(f"queue {queue_bytes} B: {[(round(at, 1), layer) for at, layer in flow.chosen]}")
    assert next(at for at, layer in flow.chosen if layer == 2) <= 10, "the best at the beginning"
    down = next(at for at, layer in flow.chosen if at >= 20 and layer == 0)
    assert down - 20 <= 2
    assert all(sample[3] < 500 for sample in flow.between(35, 40)), "and the queue is gone"
    assert [layer for at, layer in flow.chosen if 30 <= at < 40] == [], "no swinging"
    up = next(at for at, layer in flow.chosen if at >= 40 and layer == 2)
    assert up - 40 <= 15
    assert flow.layer == 2


def test_a_wide_line_rests() -> None:
    """Once a second, where a line that is looked at closely takes ten times as much."""
    flow = Layered(Link(lambda _: 10_000_000))
    run([flow], 30)
    before = flow.updates
    for now in range(30 * SECOND_NS, 60 * SECOND_NS, 5_000_000):
        flow.run(now)
    assert flow.layer == 2
    assert flow.updates - before <= 32
    assert all(late >= early for (early, _), (late, _) in pairwise(flow.chosen))


def test_a_resting_line_sees_trouble_at_once() -> None:
    flow = Layered(Link(lambda second: 300_000 if second >= 30 else 10_000_000))
    run([flow], 45)
    down = next(at for at, layer in flow.chosen if at >= 30 and layer == 0)
    assert down - 30 <= 1
