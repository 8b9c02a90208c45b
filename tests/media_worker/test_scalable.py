"""A scalable publication on real forwarders: its layers found, chosen and shown; only the clock is ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mediaserver.forwarder import DEPENDENCY, Keyframe, Switched
from mediaserver.media import answer
from mediaserver.media.layer_choice import LOOK_NS, SECOND_NS
from mediaserver.media.publication import Publication, Sender
from mediaserver.media.scalable import ScalableLayers
from mediaserver.media.sdp import Codec, parse_offer
from mediaserver.media.subscription import LayerWish, Subscription
from tests.forwarder.ends import Seen, World
from tests.forwarder.scalable import EXTENSIONS, ScalableStream
from tests.media_worker.transports import transport_of

OFFER = (Path(__file__).parent / "offers" / "chromium_simulcast.sdp").read_bytes().decode()


class Stage:
    """One publisher of a stream in three spatial and three temporal layers, one subscriber."""

    def __init__(self, world: World, codec: str = "VP9", *, described: bool = False) -> None:
        self.world = world
        self.sender, self.viewer = world.end(), world.end()
        self.transport = transport_of(world)
        media = parse_offer(OFFER).media[0]
        media.rids, media.ssrcs, media.repairs = [], [0x1111], {}
        self.codec = Codec(96, codec, 90_000)
        self.changes: list[int] = []
        self.publication = Publication(
            session="s",
            peer=self.sender.peer,
            sender=Sender("customer", "customer#1", "customer", "Wang"),
            source="camera",
            media=media,
            codec=self.codec,
            extensions=EXTENSIONS,
            feedback=["nack", "nack pli"],
            transport=self.transport,
            tap=7,
            spatial_layers_changed=lambda publication: self.changes.append(self.scalable.top),
        )
        assert self.publication.begin(tap=True)
        self.subscription = Subscription(
            session="v",
            peer=self.viewer.peer,
            media=media,
            codecs=[self.codec],
            extensions=dict.fromkeys([DEPENDENCY] if described else [], 13),
            cname="c",
            ordinal=0,
            allow_mixed=False,
            transport=self.transport,
        )
        assert self.subscription.attach(self.publication)
        self.source = ScalableStream(codec)
        self.now = 100 * SECOND_NS
        self._told = 0

    @property
    def scalable(self) -> ScalableLayers:
        """Return what is known of the stream's layers."""
        assert self.publication.scalable is not None
        return self.publication.scalable

    def look(self, seconds: float, *, key: bool = False) -> set[int]:
        """Let time pass; return the spatial layers that the viewer got, the first picture a keyframe if
        wished."""
        seen: list[Seen] = []
        for at in range(int(seconds * SECOND_NS / LOOK_NS) + 1):
            self.now += LOOK_NS
            self.sender.send(*(one.data for one in self.source.next(key=key and at == 0)))
            seen += self.viewer.receive()
            self.publication.look(self.now)
        self.world.events += self.world.forwarder.take_events()
        told, self._told = self.world.events[self._told :], len(self.world.events)
        for event in told:
            if isinstance(event, Keyframe | Switched):
                self.transport._dispatch(event)
        return {packet.payload[3] >> 1 & 7 for packet in seen}


@pytest.fixture(params=["native", "python"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    world = World(request.param)
    try:
        yield Stage(world)
    finally:
        world.close()


def test_layers_are_found_and_weigh_what_they_take_with_all_below(stage: Stage) -> None:
    assert not stage.publication.layered
    assert stage.look(2.5) == {0, 1, 2}
    assert stage.publication.layered
    assert stage.scalable.temporal == 3
    rates = [state.bps for state in stage.scalable.states]
    assert rates[0] > 0
    assert rates == [rates[0], pytest.approx(2 * rates[0], rel=0.05), pytest.approx(3 * rates[0], rel=0.05)]
    described = stage.subscription.describe_layers()
    assert (described["layer"], described["switching"], described["temporal_layers"]) == (2, False, 3)
    assert stage.publication.summary()["recorded_layer"] == 2


def test_down_at_once_and_up_at_a_keyframe_that_is_asked_for(stage: Stage) -> None:
    stage.look(2.5)
    stage.subscription.set_layers(LayerWish(preferred=0))
    assert stage.look(0.5) == {0}
    assert not stage.subscription.waiting
    stage.subscription.set_layers(LayerWish(preferred=1))
    assert stage.look(3.0) == {0}
    assert stage.subscription.waiting
    assert stage.publication.recorded._keyframes.eager  # asked until one comes
    assert stage.look(0.5, key=True) == {0, 1}
    assert not stage.subscription.waiting
    stage.subscription.set_layers(LayerWish())
    stage.look(0.2)
    assert stage.look(0.5, key=True) == {0, 1, 2}


def test_the_line_chooses_spatial_layers_and_then_temporal_ones(stage: Stage) -> None:
    stage.look(2.5)
    rates = [state.bps for state in stage.scalable.states]
    stage.subscription.set_target(rates[1] * 11 // 10)
    assert stage.look(0.5) == {0, 1}
    stage.subscription.set_target(rates[0] * 8 // 10)
    assert stage.look(0.5) == {0}
    assert stage.subscription.route is not None
    stats = stage.world.forwarder.route_stats(stage.subscription.route)
    assert (stats.spatial, stats.temporal) == (0, 1)
    stage.subscription.set_target(None)
    stage.look(2.5)
    assert stage.look(0.5, key=True) == {0, 1, 2}


def test_a_layer_that_the_sender_leaves_out_changes_nothing_but_what_is_told(stage: Stage) -> None:
    stage.look(2.5)
    stage.source.layers = 1
    assert stage.look(1.5) == {0}
    assert stage.changes == [0]
    assert [layer["alive"] for layer in stage.publication.layers_json()] == [True, False, False]
    stage.source.layers = 3
    assert stage.look(0.5) == {0, 1, 2}  # without a keyframe: the route never left them out
    assert stage.changes == [0, 2]


@pytest.mark.parametrize("described", [True, False])
def test_av1_without_descriptors_gets_the_smallest_picture(described: bool) -> None:
    world = World("native")
    try:
        stage = Stage(world, "AV1", described=described)
        stage.look(2.5)
        stage.subscription.set_layers(LayerWish(preferred=2))
        stage.look(0.5, key=True)
        assert stage.subscription.describe_layers()["layer"] == (2 if described else 0)
        assert stage.subscription.route is not None
        assert world.forwarder.route_stats(stage.subscription.route).spatial == (255 if described else 0)
    finally:
        world.close()


def test_descriptors_are_agreed_on_for_scalable_codecs_only() -> None:
    media = parse_offer(OFFER).media[0]
    media.extensions[DEPENDENCY] = 13
    supported = answer.PUBLISH_EXTENSIONS
    for name, wanted in (("VP8", False), ("H264", False), ("VP9", True), ("AV1", True)):
        agreed = answer.publish_extensions(media, Codec(96, name, 90_000), supported)
        assert (DEPENDENCY in agreed) == wanted
    assert DEPENDENCY == DEPENDENCY
