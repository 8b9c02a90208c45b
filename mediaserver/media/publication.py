"""A publication: one track that a participant sends, in one layer or several."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mediaserver.forwarder.interface import NewSsrc
from mediaserver.media import answer
from mediaserver.media.feedback import Line
from mediaserver.media.layer import Layer
from mediaserver.media.layer_choice import LOOK_NS, LayerPolicy, LayerState, OrderWatch
from mediaserver.media.scalable import ScalableLayers
from mediaserver.media.sdp import Codec, MediaOffer
from mediaserver.media.transport import Transport
from recorder.ids import uuid7
from recorder.records import RED, TrackInfo

if TYPE_CHECKING:
    from mediaserver.media.subscription import Subscription


UNLAYERED_LOOK_NS = 4 * LOOK_NS
"""A stream that might have layers and has none is looked at seldomer."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who publishes, as tracks and events name him."""

    identity: str
    seat: str
    role: str
    name: str


@dataclass(eq=False)
class Publication:
    """One m-line of a publishing session."""

    session: str
    peer: int
    sender: Sender
    source: str
    media: MediaOffer
    codec: Codec
    extensions: dict[str, int]
    feedback: list[str]
    transport: Transport
    tap: int
    """Number under which the forwarder hands its packets to recordings, unique in the worker."""
    rids: list[str] = field(default_factory=list)
    """The simulcast layers that were agreed, as offered."""
    recorded_layer_changed: Callable[[Publication, int], None] = lambda publication, at_ns: None
    """Told when recordings get another layer, and since when."""
    spatial_layers_changed: Callable[[Publication], None] = lambda publication: None
    """Told when spatial layers of its scalable stream came or went; recordings have what comes."""
    id: str = field(default_factory=lambda: str(uuid7()))
    muted: bool = False
    tapped: bool = False
    subscribers: set[Subscription] = field(default_factory=set)
    line: Line = field(default_factory=Line)
    """The sender's, shared by his publications."""
    last_fraction_lost: int = 0

    def __post_init__(self) -> None:
        self.layers = [Layer(self, rid) for rid in self.rids or [""]]
        """From the smallest; the order is corrected when it shows to be the other way round."""
        self.recorded = self.layers[0]
        """What recordings get, or would get."""
        self._moving: Layer | None = None
        self._told: Layer | None = None
        self._policy = LayerPolicy()
        self._order = OrderWatch()
        self._states: list[LayerState] = []
        self._looked_ns = 0
        self.scalable = ScalableLayers() if not self.simulcast and self.mime in answer.SCALABLE else None
        """The layers of its one stream, if its codec may have some."""
        if self.media.ssrcs and not self.media.rids:
            repairs = set(self.media.repairs.values())
            only = self.recorded
            only.ssrc = next((ssrc for ssrc in self.media.ssrcs if ssrc not in repairs), None)
            only.rtx_ssrc = self.media.repairs.get(only.ssrc) if only.ssrc is not None else None

    @property
    def kind(self) -> str:
        """Return ``audio`` or ``video``."""
        return self.media.kind

    @property
    def mime(self) -> str:
        """Return the codec's media type, such as ``video/VP8``."""
        return answer.mime(self.codec, self.kind)

    @property
    def simulcast(self) -> bool:
        """Tell whether there may be more than one layer."""
        return len(self.layers) > 1

    @property
    def layered(self) -> bool:
        """Tell whether there is anything to choose for its subscribers."""
        return self.simulcast or (self.scalable is not None and len(self.scalable.states) > 1)

    @property
    def stream(self) -> int | None:
        """Return the stream of the recorded layer; None until the first one of any layer is there."""
        return self.recorded.stream

    @property
    def ssrc(self) -> int | None:
        """Return the SSRC of the recorded layer."""
        return self.recorded.ssrc

    def begin(self, *, tap: bool) -> bool:
        """Have the forwarder take the streams whose SSRCs are known; true if the recorded one is there."""
        if self.recorded.stream is None and self.recorded.begin(tap=self.tap if tap else None):
            self.tapped = tap
        for layer in self.layers:
            layer.begin(tap=None)
        return self.stream is not None

    def end(self) -> None:
        """Take the streams from the forwarder; routes to subscribers stay, silent."""
        for layer in self.layers:
            layer.end()

    # --- layers

    def found_ssrc(self, event: NewSsrc) -> Layer | None:
        """Take an SSRC as ours, main or retransmission, if payload type and layer fit; None if it is not."""
        if event.payload_type == self.codec.rtx and self.codec.rtx is not None:
            layer = self._layer_of(event.repaired_rid, lambda one: one.rtx_ssrc is None)
            if layer is not None and (self.simulcast or layer.stream is not None):
                layer.take_rtx(event.ssrc)
                return layer
            return None
        if event.payload_type not in (self.codec.payload_type, self.codec.red):
            return None
        layer = self._layer_of(event.rid, lambda one: one.stream is None)
        if layer is None or layer.stream is not None:
            return None
        layer.ssrc = event.ssrc
        if self.stream is None:
            self.recorded = layer
        else:
            layer.begin(tap=None)
        return layer

    def _layer_of(self, rid: str, free: Callable[[Layer], bool]) -> Layer | None:
        """Return the layer of a rid; of none the first free one (a sender that leaves the extension out)."""
        if rid and self.rids:
            return next((layer for layer in self.layers if layer.rid == rid), None)
        return next((layer for layer in self.layers if free(layer)), None)

    def layer_states(self, now: int) -> list[LayerState]:
        """Return what is known of the layers, from the smallest."""
        if not self._states:
            return [LayerState(layer.stream is not None, now, 0) for layer in self.layers]
        return self._states

    def look(self, now: int) -> int | None:
        """Measure the layers and let recordings and subscribers choose; returns when to come again."""
        if not self.simulcast and self.scalable is None:
            return None
        again = (now // LOOK_NS + 1) * LOOK_NS  # all publications at once: one wake-up
        if now // LOOK_NS == self._looked_ns // LOOK_NS:
            return again
        self._looked_ns = now
        forwarder = self.transport.forwarder
        if self.scalable is not None:
            return self._look_scalable(self.scalable, now)
        for layer in self.layers:
            if layer.stream is not None:
                layer.meter.look(forwarder.received_bytes(layer.stream), now)
        newest = max(layer.meter.media_ns for layer in self.layers)
        self._states = [layer.meter.state(newest, now) for layer in self.layers]
        if self._order.reversed(self._states, now):
            self.layers.reverse()
            self._states.reverse()
        self._choose_recorded(now)
        for subscription in self.subscribers:
            subscription.look(now)
        return again

    def _look_scalable(self, scalable: ScalableLayers, now: int) -> int:
        before = self.layered
        if self.stream is not None:
            if scalable.look(self.transport.forwarder.layer_bytes(self.stream), now):
                self.spatial_layers_changed(self)
            for subscription in self.subscribers if scalable.found else ():
                subscription.look(now)
                if not before:
                    subscription.changed()  # now there is something to choose
        every = LOOK_NS if scalable.found else UNLAYERED_LOOK_NS
        return (now // every + 1) * every

    def _choose_recorded(self, now: int) -> None:
        number = self._policy.choose(self._states, self.layers.index(self._moving or self.recorded), now)
        wanted = self.recorded if number is None else self.layers[number]
        former = self.recorded.stream
        if wanted.stream is None or former is None:
            return
        if not self.tapped:
            self.recorded = wanted
            return
        if wanted is not self._moving:
            if not self._stay():
                return  # to what was wanted before: judged anew once that is told
            if wanted is self.recorded:
                return
            self.transport.forwarder.move_tap(former, wanted.stream)
            self._moving = wanted
        wanted.want_keyframe()  # asked again until one comes

    def _stay(self) -> bool:
        """Call a move off; false if it has taken place and is about to be told."""
        stream = self._moving.stream if self._moving is not None else None
        if stream is not None and not self.transport.forwarder.stay(stream):
            return False
        self._moving = None
        return True

    def tap_moved(self, layer: Layer, at_ns: int) -> None:
        """Note which layer recordings get since ``at_ns``."""
        if layer is self._moving:
            self.recorded, self._moving = layer, None
            self.recorded_layer_changed(self, at_ns)

    def set_tap(self, tap: bool) -> None:
        """Begin or stop handing the packets to recordings."""
        if self.stream is not None and tap != self.tapped:
            now = time.monotonic_ns()
            if not self._stay() and self._moving is not None:
                self.tap_moved(self._moving, now)
            if not tap:
                self._told = self.recorded
            elif self._told not in (None, self.recorded):  # it changed while nothing was recorded
                self.recorded_layer_changed(self, now)
            self.transport.forwarder.tap(self.stream, self.tap if tap else None)
            self.tapped = tap

    def want_keyframe(self) -> None:
        """Have the sender asked for a keyframe of what recordings get."""
        (self._moving or self.recorded).want_keyframe()

    # --- what is said of it

    def track_info(self, number: int) -> TrackInfo:
        """Describe the track for a journal."""
        fmtp = {key: value for key, value in self.codec.fmtp.items() if key != RED}
        if self.codec.red is not None:
            fmtp[RED] = str(self.codec.red)
        return TrackInfo(
            track=number,
            identity=self.sender.identity,
            seat=self.sender.seat,
            role=self.sender.role,
            name=self.sender.name,
            kind=self.kind,
            source=self.source,
            mime=self.mime,
            clock_rate=self.codec.clock_rate,
            payload_type=self.codec.payload_type,
            ssrc=self.ssrc or 0,
            channels=self.codec.channels,
            fmtp=fmtp,
            extensions=dict(self.extensions),
            stream=f"{self.session}/{self.media.cname}",
        )

    def summary(self) -> dict[str, object]:
        """Return what events and lists say of the track."""
        said: dict[str, object] = {
            "track": self.id,
            "id": self.id,
            "identity": self.sender.identity,
            "seat": self.sender.seat,
            "role": self.sender.role,
            "kind": self.kind,
            "source": self.source,
            "mime": self.mime,
            "muted": self.muted,
            "session": self.session,
        }
        if self.simulcast:
            said["layers"] = self.layers_json()
            said["recorded_layer"] = self.layers.index(self.recorded)
        elif self.scalable is not None and self.scalable.found:
            said["layers"] = self.layers_json()
            said["recorded_layer"] = self.scalable.top
        return said

    def layers_json(self) -> list[dict[str, object]]:
        """Return the layers as the API shows them, from the smallest."""
        if self.scalable is not None:
            return [
                {"layer": number, "rid": "", "alive": alive, "bps": state.bps}
                for number, (alive, state) in enumerate(
                    zip(self.scalable.alive, self.scalable.states, strict=True)
                )
            ]
        states = self.layer_states(time.monotonic_ns())
        return [
            {"layer": number, "rid": layer.rid, "alive": state.alive, "bps": state.bps}
            for number, (layer, state) in enumerate(zip(self.layers, states, strict=True))
        ]

    def track_info_json(self, numbers: dict[str, int]) -> dict[str, object]:
        """Return its summary with the number it has in a journal."""
        return {**self.summary(), "number": numbers.get(self.id, 0)}
