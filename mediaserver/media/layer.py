"""One received stream of a publication, its only one or a simulcast layer; and what we ask of its sender."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mediaserver.forwarder.interface import Gap, Keyframe, StreamParameters, TapMoved
from mediaserver.media.feedback import SERVER_SSRC, KeyframeRequester, NackGenerator, ReceptionReporter
from mediaserver.media.layer_choice import LayerMeter
from recorder import rtcp

if TYPE_CHECKING:
    from mediaserver.media.publication import Publication

MISSING_SPAN = 1_024
"""Packets looked back over for missing ones, as many as the forwarder knows of: 2 s of 5 Mbit/s."""


@dataclass(eq=False)
class Layer:
    """``stream`` is None until its SSRC is known and its client connected."""

    publication: Publication
    rid: str = ""
    """Its name in the offer (RFC 8851); empty without simulcast."""
    stream: int | None = None
    ssrc: int | None = None
    rtx_ssrc: int | None = None
    reporter: ReceptionReporter | None = None

    def __post_init__(self) -> None:
        self.meter = LayerMeter()
        self._nack = NackGenerator(self.publication.line)
        self._keyframes = KeyframeRequester()
        self._fir = 0

    def begin(self, *, tap: int | None) -> bool:
        """Have the forwarder take the stream if its SSRC is known; true if it is there now."""
        publication = self.publication
        if self.stream is None and self.ssrc is not None:
            self.stream = publication.transport.forwarder.add_stream(
                publication.peer,
                self.ssrc,
                StreamParameters(
                    kind=publication.kind,
                    mime=publication.mime,
                    clock_rate=publication.codec.clock_rate,
                    payload_type=publication.codec.payload_type,
                    rtx_ssrc=self.rtx_ssrc,
                    rtx_payload_type=publication.codec.rtx,
                    red_payload_type=publication.codec.red,
                    extensions=publication.extensions,
                    track=tap,
                ),
            )
            self.reporter = ReceptionReporter(self.ssrc)
            publication.transport.watch_stream(self.stream, self)
            if publication.simulcast or publication.scalable is not None:
                publication.transport.wake(self.stream)
        return self.stream is not None

    def end(self) -> None:
        """Take the stream from the forwarder; routes to subscribers stay, silent."""
        if self.stream is not None:
            self.publication.transport.forget_stream(self.stream)
            self.publication.transport.forwarder.remove_stream(self.stream)
            self.stream = None

    def take_rtx(self, ssrc: int) -> None:
        """Learn the SSRC of its retransmissions."""
        self.rtx_ssrc = ssrc
        if self.stream is not None:
            self.publication.transport.forwarder.set_rtx_ssrc(self.stream, ssrc)

    # --- what the forwarder tells

    def keyframe_came(self, event: Keyframe) -> None:
        """Note a keyframe: nobody waits any more."""
        self._keyframes.came(event.arrival_ns)

    def gap_seen(self, event: Gap) -> None:
        """Note skipped numbers, to be asked for again if the sender keeps packets."""
        if "nack" not in self.publication.feedback:
            return
        self._nack.add(event.first, event.last, event.arrival_ns)
        self._mend()

    def tap_moved(self, event: TapMoved) -> None:
        """Note that recordings get this layer from a keyframe on."""
        self.publication.tap_moved(self, event.at_ns)

    def handle_timer(self, now: int) -> int | None:
        """Ask for what is missing and due, look at the layers; returns when to come again, None if nothing is
        to come."""
        if self.stream is None:
            return None
        again = self.ask(now)
        look = self.publication.look(now)
        due = [when for when in (again, look) if when is not None]
        return min(due, default=None)

    # --- asking the sender

    def want_keyframe(self) -> None:
        """Have the sender asked for a keyframe, soon and until one comes."""
        if self.publication.kind == "video" and self.stream is not None:
            now = time.monotonic_ns()
            self._keyframes.want(now)
            self._ask_keyframe(now)
            if self._keyframes.eager:
                self.publication.transport.wake(self.stream)

    def ask(self, now: int) -> int | None:
        """Ask for what is missing and due; returns when to come again, None if nothing is missing."""
        if self.stream is None:
            return None
        transport = self.publication.transport
        if self._nack.pending:
            still = transport.forwarder.missing(self.stream, MISSING_SPAN)
            resends = self.publication.codec.rtx is not None
            stats = transport.forwarder.stream_stats(self.stream)
            sequences = self._nack.to_ask(
                still,
                now,
                recovered=stats.recovered if resends else None,
                duplicates=stats.duplicates,
                recorded=self.publication.tapped and self is self.publication.recorded,
            )
            self._mend()
            if sequences and self.ssrc is not None:
                transport.counters.nacks_sent += 1
                self._send(rtcp.Nack(SERVER_SSRC, self.ssrc, tuple(sequences)))
        self._ask_keyframe(now)
        if self._nack.pending:
            return now
        return self._keyframes.next_ns() if self._keyframes.eager else None

    def _mend(self) -> None:
        # Viewers ask by themselves; a recording that nobody watches would stand still for ever.
        if self._nack.broken:
            self._nack.broken = False
            self.want_keyframe()

    def _ask_keyframe(self, now: int) -> None:
        if self.ssrc is None or not self._keyframes.should_ask(now):
            return
        feedback = self.publication.feedback
        self.publication.transport.counters.keyframe_requests += 1
        if "nack pli" in feedback or "ccm fir" not in feedback:
            self._send(rtcp.PictureLossIndication(SERVER_SSRC, self.ssrc))
        else:
            self._fir += 1
            self._send(rtcp.FullIntraRequest(SERVER_SSRC, ((self.ssrc, self._fir & 255),)))

    def _send(self, packet: rtcp.RtcpPacket) -> None:
        # A compound begins with a report (RFC 3550 section 6.1); reduced size (RFC 5506) is not agreed with
        # everybody.
        data = rtcp.build([rtcp.ReceiverReport(SERVER_SSRC), packet])
        self.publication.transport.forwarder.send_rtcp(self.publication.peer, data)
