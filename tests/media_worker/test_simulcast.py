"""A simulcast publication on real forwarders: its layers found, recorded and sent; only the clock is ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mediaserver.forwarder import MID, REPAIRED_RID, RID, Keyframe, NewSsrc, Switched, TapMoved
from mediaserver.media.answer import choose
from mediaserver.media.layer import Layer
from mediaserver.media.layer_choice import LOOK_NS, SECOND_NS
from mediaserver.media.publication import Publication, Sender
from mediaserver.media.sdp import parse_offer
from mediaserver.media.subscription import LayerWish, Subscription
from tests.forwarder.ends import End, World, rtp, vp8
from tests.media_worker.transports import transport_of

OFFER = (Path(__file__).parent / "offers" / "chromium_simulcast.sdp").read_bytes().decode()
IDS = {MID: 1, RID: 3, REPAIRED_RID: 4}
LOW, HIGH, LOW_RTX = 0x10, 0x20, 0x11


class Stage:
    """One publisher of two layers, one subscriber, and what they are told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sender, self.viewer = world.end(), world.end()
        world.forwarder.set_extensions(self.sender.peer, IDS)
        self.transport = transport_of(world)
        media = parse_offer(OFFER).media[0]
        self.codec = choose(media, ["VP8"])[0]
        self.recorded: list[str] = []
        self.publication = Publication(
            session="s",
            peer=self.sender.peer,
            sender=Sender("customer", "customer#1", "customer", "Wang"),
            source="camera",
            media=media,
            codec=self.codec,
            extensions=IDS,
            feedback=["nack", "nack pli"],
            transport=self.transport,
            tap=7,
            rids=media.simulcast_rids,
            recorded_layer_changed=lambda publication, at_ns: self.recorded.append(publication.recorded.rid),
        )
        self.now = 100 * SECOND_NS
        self._numbers: dict[int, int] = {}
        self._told = 0

    def packet(self, ssrc: int, *, key: bool = False, **names: bytes) -> bytes:
        """Make the next packet of an SSRC; ``rid`` and ``repaired`` are header extensions."""
        number = self._numbers[ssrc] = self._numbers.get(ssrc, 0) + 1
        elements = [({"rid": 3, "repaired": 4}[name], value) for name, value in names.items()]
        payload_type = self.codec.rtx if "repaired" in names else self.codec.payload_type
        assert payload_type is not None
        return rtp(number, ssrc=ssrc, payload_type=payload_type, payload=vp8(key, number), elements=elements)

    def send(self, *packets: bytes) -> list[object]:
        """Send, then pass on what the forwarder tells, as the transport does; returns it."""
        self.sender.send(*packets)
        self.world.settle()
        self.world.events += self.world.forwarder.take_events()
        told, self._told = self.world.events[self._told :], len(self.world.events)
        for event in told:
            if isinstance(event, Keyframe | TapMoved | Switched):
                self.transport._dispatch(event)
        return list(told)

    def look(self, seconds: float, *ssrcs: int) -> None:
        """Let time pass while these SSRCs send."""
        for _ in range(int(seconds * SECOND_NS / LOOK_NS) + 1):
            self.now += LOOK_NS
            self.send(*(self.packet(ssrc) for ssrc in ssrcs))
            self.publication.look(self.now)

    def find(self) -> Layer:
        """Let both layers and a retransmission stream be found, the high one last."""
        for packet in (
            self.packet(LOW_RTX, repaired=b"l"),
            self.packet(LOW, rid=b"l", key=True),
            self.packet(HIGH, rid=b"h", key=True),
        ):
            for event in self.send(packet):
                if isinstance(event, NewSsrc):
                    assert self.publication.found_ssrc(event) is not None
                    self.publication.begin(tap=True)
        self.world.forwarder.take_tapped()
        return self.publication.layers[1]

    def tapped(self) -> set[int]:
        """Return the SSRCs of what recordings got since the last time."""
        return {int.from_bytes(data[8:12], "big") for _, _, data, _ in self.world.forwarder.take_tapped()}


@pytest.fixture(params=["native", "python"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    world = World(request.param)
    try:
        yield Stage(world)
    finally:
        world.close()


def subscribe(stage: Stage, viewer: End) -> Subscription:
    media = stage.publication.media
    subscription = Subscription(
        session="v",
        peer=viewer.peer,
        media=media,
        codecs=[stage.codec],
        extensions={},
        cname="c",
        ordinal=0,
        allow_mixed=False,
        transport=stage.transport,
    )
    assert subscription.attach(stage.publication)
    return subscription


def test_layers_are_found_by_their_names(stage: Stage) -> None:
    high = stage.find()
    low = stage.publication.layers[0]
    assert (low.rid, low.ssrc, low.rtx_ssrc) == ("l", LOW, LOW_RTX)
    assert (high.rid, high.ssrc, high.rtx_ssrc) == ("h", HIGH, None)
    stranger = NewSsrc(stage.sender.peer, 0x99, stage.codec.payload_type, "", "x", "", 0)
    again = NewSsrc(stage.sender.peer, 0x98, stage.codec.payload_type, "", "l", "", 0)
    assert stage.publication.found_ssrc(stranger) is None
    assert stage.publication.found_ssrc(again) is None
    assert [layer["rid"] for layer in stage.publication.layers_json()] == ["l", "h"]


def test_recordings_get_the_best_layer_that_lives(stage: Stage) -> None:
    stage.find()
    stage.look(0.6, LOW, HIGH)
    assert stage.tapped() == {LOW}  # the high one has to settle
    stage.look(1.2, LOW, HIGH)
    assert stage.tapped() == {LOW}  # no keyframe has come yet
    stage.send(stage.packet(HIGH, key=True), stage.packet(LOW, key=True))
    assert stage.recorded == ["h"]
    assert stage.publication.track_info(1).ssrc == HIGH
    stage.look(0.5, LOW, HIGH)
    assert stage.tapped() == {HIGH}
    stage.look(0.6, LOW)  # the high one dies
    stage.send(stage.packet(LOW, key=True))
    assert stage.recorded == ["h", "l"]
    stage.look(0.5, LOW)
    assert stage.tapped() == {LOW}
    stage.publication.set_tap(False)
    stage.look(3.0, LOW, HIGH)
    stage.publication.set_tap(True)
    stage.send(stage.packet(HIGH), stage.packet(LOW))
    assert stage.tapped() == {HIGH}
    assert stage.recorded == ["h", "l", "h"]  # also of what changed meanwhile


@pytest.mark.parametrize("pause", [True, False])
def test_a_change_of_mind_amid_a_move_loses_no_packet(stage: Stage, pause: bool) -> None:
    """The forwarder has moved the tap, the worker does not know it yet and wants the former layer again."""
    stage.find()
    stage.look(2.0, LOW, HIGH)
    assert stage.tapped() == {LOW}
    stage.sender.send(stage.packet(HIGH, key=True), stage.packet(LOW))
    stage.world.settle_undrained()
    if pause:
        stage.publication.set_tap(False)
        assert stage.recorded == ["h"]
        stage.publication.set_tap(True)
    else:
        stage.publication._policy.maximum = 0
        stage.now += LOOK_NS
        stage.publication.look(stage.now)
    stage.send(stage.packet(LOW), stage.packet(HIGH))
    assert stage.recorded == ["h"]
    assert stage.tapped() == {HIGH}
    stage.look(0.3, LOW, HIGH)
    stage.send(stage.packet(LOW, key=True), stage.packet(HIGH, key=True), stage.packet(LOW))
    assert stage.tapped() == ({HIGH} if pause else {HIGH, LOW})
    assert stage.recorded == (["h"] if pause else ["h", "l"])


def test_a_subscriber_goes_where_it_wishes_at_the_next_keyframe(stage: Stage) -> None:
    high = stage.find()
    stage.look(1.5, LOW, HIGH)
    subscription = subscribe(stage, stage.viewer)
    assert subscription.layer is high
    stage.send(stage.packet(HIGH, key=True))
    assert not subscription.waiting
    subscription.set_layers(LayerWish(preferred=0))
    assert subscription.layer is stage.publication.layers[0]
    assert subscription.waiting
    assert subscription.route is not None
    stats = stage.world.forwarder.route_stats(subscription.route)
    assert (stats.stream, stats.pending_stream) == (high.stream, stage.publication.layers[0].stream)
    subscription.set_layers(LayerWish())  # thought better of it: nothing to wait for
    stage.look(2.5, LOW, HIGH)
    assert (subscription.layer, subscription.waiting) == (high, False)
    subscription.set_target(1)
    stage.send(stage.packet(LOW, key=True))
    assert (subscription.layer, subscription.waiting) == (stage.publication.layers[0], False)
    said = subscription.describe_layers()
    assert (said["layer"], said["target_bps"], said["switching"]) == (0, 1, False)
    subscription.set_target(None)
    stage.look(2.5, HIGH, LOW)
    assert subscription.layer is high


def test_without_names_and_layers_nothing_changes(stage: Stage) -> None:
    stage.publication.rids = []
    stage.publication.layers = stage.publication.layers[:1]
    stage.publication.recorded = stage.publication.layers[0]
    (event,) = [e for e in stage.send(stage.packet(LOW, key=True)) if isinstance(e, NewSsrc)]
    assert stage.publication.found_ssrc(event) is stage.publication.recorded
    assert stage.publication.begin(tap=True)
    assert stage.publication.look(stage.now) is None
    assert "layers" not in stage.publication.summary()
