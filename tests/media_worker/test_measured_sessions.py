"""A subscriber's session on real forwarders measures while there are layers to choose, and chooses them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mediaserver.forwarder import TRANSPORT_CC
from mediaserver.media import layer_choice
from mediaserver.media.link import LinkState
from mediaserver.media.publication import Publication
from mediaserver.media.sdp import parse_offer
from mediaserver.media.session import Session, SubscribeSession
from mediaserver.media.sharing import SOUND_BPS
from mediaserver.media.subscription import LayerWish
from mediaserver.media.view import ViewSession
from tests.forwarder.ends import World
from tests.media_worker.test_simulcast import HIGH, LOW, Stage

OFFER = (Path(__file__).parent / "offers" / "chromium_subscribe.sdp").read_bytes().decode()
CODECS = ["VP8", "opus"]


class Owner:
    """A room that is not interested."""

    red = "off"

    def session_changed(self, session: Session, state: LinkState, reason: str) -> None: ...

    def session_ready(self, session: Session) -> None: ...

    def publication_found(self, publication: Publication) -> None: ...

    def recorded_layer_changed(self, publication: Publication, at_ns: int) -> None: ...
    def spatial_layers_changed(self, publication: Publication) -> None: ...


@pytest.fixture(params=["native", "python"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    world = World(request.param)
    try:
        made = Stage(world)
        made.now = time.monotonic_ns()  # sessions ask the clock themselves
        made.find()
        yield made
    finally:
        world.close()


def connect(stage: Stage, session: SubscribeSession) -> None:
    """Let the session's peer be the stage's viewer."""
    peer, viewer = session.link.peer, stage.viewer
    stage.world.forwarder.remove_peer(viewer.peer)
    viewer.peer = peer
    stage.world.forwarder.bind(peer, viewer.address)
    stage.world.forwarder.set_keys(peer, *viewer.keys())


def subscribed(stage: Stage) -> SubscribeSession:
    session = SubscribeSession(Owner(), stage.transport, "agent")
    session.open(parse_offer(OFFER), CODECS, "customer")
    connect(stage, session)
    return session


def numbered(stage: Stage, session: SubscribeSession) -> list[bool]:
    """Send a keyframe of each layer; tells which packets arrive with a number."""
    stage.send(stage.packet(LOW, key=True), stage.packet(HIGH, key=True))
    element = session.subscriptions[1].extensions[TRANSPORT_CC]
    return [element in packet.elements for packet in stage.viewer.receive()]


def bears(session: SubscribeSession, bps: int) -> None:
    """Let the estimate be so much."""
    session.sending.estimator.target_bps = bps
    session.share(time.monotonic_ns())


def test_measures_from_the_first_layered_track_to_the_last(stage: Stage) -> None:
    session = subscribed(stage)
    assert not session.sending.measuring
    place = session.place_for(stage.publication)
    assert place is not None
    assert place.attach(stage.publication)
    assert session.sending.measuring
    assert all(numbered(stage, session))
    place.detach()
    assert not session.sending.measuring
    assert session.sending.available_bps is None
    assert place.policy.target_bps is None
    stage.publication.rids = []
    stage.publication.layers = stage.publication.layers[1:]  # one size from now on
    assert place.attach(stage.publication)
    assert not session.sending.measuring
    found = numbered(stage, session)
    assert found
    assert not any(found)


def test_what_the_line_bears_decides_the_layer(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_choice, "SETTLE_NS", 0)
    monkeypatch.setattr(layer_choice, "CLIMB_NS", 0)
    session = subscribed(stage)
    place = session.place_for(stage.publication)
    assert place is not None
    assert place.attach(stage.publication)
    low, high = stage.publication.layers
    for layer, bps in ((low, 100_000), (high, 600_000)):
        layer.meter.bps = bps
    stage.publication._states = [layer_choice.LayerState(True, 1, one.meter.bps) for one in (low, high)]
    bears(session, 2_000_000)
    assert place.layer is high
    assert session.sending.wanted_bps > 600_000 * layer_choice.HEADROOM
    stage.send(stage.packet(HIGH, key=True))
    bears(session, 300_000)
    assert place.layer is low
    before = len(stage.viewer.receive())
    stage.send(stage.packet(HIGH), stage.packet(HIGH))
    assert stage.viewer.receive() == [], "what the line does not bear is not sent on"
    assert before > 0
    stage.send(stage.packet(LOW, key=True))
    assert len(stage.viewer.receive()) == 1
    bears(session, 2_000_000)
    assert place.layer is high
    session.set_layers(LayerWish(preferred=0))
    assert place.layer is low
    assert session.sending.wanted_bps < 600_000, "nobody wishes for more"


def test_a_view_measures_as_well(stage: Stage) -> None:
    session = ViewSession(Owner(), stage.transport, "agent")
    session.hidden = True
    session.open_view(parse_offer(OFFER.replace("a=group:BUNDLE 0 1 2 3", "a=group:BUNDLE 0 1 2 3")), CODECS)
    connect(stage, session)
    session.link_ready()
    offered = session.next_offer([stage.publication])
    assert not session.sending.measuring
    session.answered(offered["version"], parse_offer(offered["sdp"].replace("sendonly", "recvonly")))
    assert session.sending.measuring
    picture = session.subscriptions[-1]
    assert picture.layer is stage.publication.layers[0], "a supervisor's thumbnail"
    assert session.next_offer([])["version"] > offered["version"]
    assert not session.sending.measuring


def test_sound_is_taken_from_the_line_first() -> None:
    world = World("native")
    try:
        stage = Stage(world)
        stage.publication.media = parse_offer(OFFER).media[0]
        session = subscribed(stage)
        subscription = session.subscriptions[0]
        subscription.publication, subscription.route = stage.publication, 1
        assert subscription.taken_bps(time.monotonic_ns()) == SOUND_BPS
        stage.publication.muted = True
        assert subscription.taken_bps(time.monotonic_ns()) == 0
    finally:
        world.close()
