"""One subscriber session's estimator with its timer: the shell between forwarder and estimate.

It asks the forwarder for feedback every ``UPDATE_NS`` or two while something is sent and while a probe runs
every ``TICK_NS``, sends the probe's padding, and tells whoever chooses layers when the estimate has changed.
A line that has room for all that is wanted rests: the forwarder watches it for trouble. While nothing is sent
there is no timer; ``look`` (once a second, with the session's reports) finds out when that ends. Where there
is nothing to choose nothing is measured at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mediaserver.forwarder.interface import Forwarder
from mediaserver.media.bandwidth.estimator import MS, SECOND_NS, Estimator
from mediaserver.media.bandwidth.probe import TICK_NS
from recorder import rtcp

UPDATE_NS: Final = 100 * MS
"""Between two looks at the feedback; libwebrtc's receivers send it every 50 to 250 ms."""
ALERT_NS: Final = UPDATE_NS // 2
ALERTED_NS: Final = 600 * MS
"""The same when a resting line has got into trouble, for so long."""
CALM_NS: Final = 2 * UPDATE_NS
"""The same while the line has room for all that is wanted."""
REST_AFTER_NS: Final = 1 * SECOND_NS
"""When it has been so for so long, the forwarder watches, and the estimator looks once a second."""
REST_NS: Final = SECOND_NS
"""After so long without a packet the timer rests."""
PATIENCE_NS: Final = 5 * SECOND_NS
"""A client that agreed to feedback and has sent none for so long is looked at once a second."""
PACING: Final = 2.5
"""So many times the target is the pace at which pictures leave: libwebrtc's kDefaultPaceMultiplier."""
CHANGE: Final = 0.05
"""An estimate that moves by less than this share of what was told last is not told."""


class Sending:
    """What is sent to one subscriber, and how much may be.

    Nothing is measured until ``start``: an estimate that nobody heeds is not made. ``target_bps`` is the seam
    to layer choice: what may be sent now, all streams and retransmissions together. ``wanted_bps`` says what
    would be sent if it fitted (0: what is sent is all there is): only then is more probed for. ``on_change``
    is called with the new target whenever it moved by ``CHANGE``.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        peer: int,
        *,
        numbered: bool,
        padded: Callable[[], int | None],
        routes: Callable[[], list[int]],
        wake: Callable[[], None],
    ) -> None:
        """``numbered``: transport-cc was agreed. ``padded`` gives the route that padding goes on, ``routes``
        all that send, ``wake`` has ``handle_timer`` called soon."""
        self.on_change: Callable[[int], None] | None = None
        self._forwarder, self._peer, self._numbered = forwarder, peer, numbered
        self._padded, self._routes, self._wake = padded, routes, wake
        self._measuring = False
        self._forget(0)
        forwarder.set_measured(peer, False)

    def _forget(self, told_ns: int) -> None:
        self.estimator = Estimator(told_ns=told_ns)
        self._told_bps = self.estimator.target_bps
        self._sent = self._bytes = 0
        self._begun_ns = self._sent_ns = self._looked_ns = self._calm_ns = 0
        self._running = self._resting = self._heard = self._alerted = False
        self._alert_ns = 0
        self._paced_bps = 0

    @property
    def known(self) -> bool:
        """Tell whether ``target_bps`` is to be heeded: the client will say, or has said, what it rests on."""
        return self._measuring and (self._numbered or self._heard)

    @property
    def measuring(self) -> bool:
        """Tell whether the line is measured."""
        return self._measuring

    def start(self) -> None:
        """Begin to measure the line: there is something to choose now."""
        if not self._measuring:
            self._measuring = True
            self._forget(self._forwarder.take_feedback(self._peer).told_ns)
            self._forwarder.set_measured(self._peer, True)
            self._pace()
            self.begin()

    def stop(self) -> None:
        """Measure no more; what was known is forgotten."""
        if self._measuring:
            self._measuring = False
            self._forget(0)
            self._forwarder.set_measured(self._peer, False)
            self._forwarder.set_pace(self._peer, 0)

    @property
    def target_bps(self) -> int:
        """Return what may be sent now, bit/s."""
        return self.estimator.target_bps

    @property
    def wanted_bps(self) -> int:
        """Return what would be sent if it fitted, bit/s; 0: no more than is sent."""
        return self.estimator.wanted_bps

    @wanted_bps.setter
    def wanted_bps(self, bps: int) -> None:
        self.estimator.wanted_bps = bps
        if self._resting and not self.estimator.calm:
            self.trouble()

    @property
    def available_bps(self) -> int | None:
        """Return the estimate, bit/s; ``None`` while the client has said nothing that it rests on."""
        return self.target_bps if self._heard or self.estimator.has_feedback else None

    def begin(self) -> None:
        """Begin to look: a route has begun to send."""
        if self._measuring and self._numbered and not self._running:
            self._running = True
            self._sent_ns = 0
            self._wake()

    def trouble(self) -> None:
        """Look closely again: the forwarder has seen what it watches for, or more is wanted."""
        if self._measuring and self._numbered:
            self._running, self._resting, self._calm_ns = True, False, 0
            self._alerted = True
            self._wake()

    def handle_timer(self, now: int) -> int | None:
        """Do what is due; returns when to be called again (monotonic ns), None when nothing is sent any more.

        Raises ForwarderError when the peer has gone.
        """
        if not self._running:
            return None
        if self._resting:
            return self._rest(now)
        feedback = self._forwarder.take_feedback(self._peer)
        if not self._sent_ns:
            self._begun_ns = now
        self._note_sent(feedback.sent, now)
        target = self.estimator.update(feedback, now)
        padding = self.estimator.padding(feedback.bytes_sent, now)
        if padding:
            route = self._padded()
            if route is None or not self._forwarder.send_padding(route, padding):
                self.estimator.prober.give_up(now)
        self._tell(target)
        if self.estimator.prober.padding_until() > now:
            return now + TICK_NS
        if now - self._sent_ns > REST_NS:
            self._running = False
            return None
        if not self.estimator.has_feedback:
            return now + SECOND_NS if now - self._begun_ns > PATIENCE_NS else _next(UPDATE_NS, now)
        if self._alerted:
            self._alerted, self._alert_ns = False, now + ALERTED_NS
        if now < self._alert_ns:
            return _next(ALERT_NS, now)
        if not self.estimator.calm:
            self._calm_ns = 0
            return _next(UPDATE_NS, now)
        self._calm_ns = self._calm_ns or now
        if now - self._calm_ns < REST_AFTER_NS:
            return _next(CALM_NS, now)
        self._resting = True
        return self._rest(now)

    def _rest(self, now: int) -> int | None:
        estimator = self.estimator
        feedback = self._forwarder.watch_feedback(self._peer, estimator.way_limit_ns, estimator.lost_limit)
        self._note_sent(feedback.sent, now)
        self._tell(estimator.rest(feedback, now))
        if now - self._sent_ns > REST_NS:
            self._running = self._resting = False
            return None
        if estimator.calm:
            return _next(SECOND_NS, now)
        self._resting, self._calm_ns = False, 0
        return _next(UPDATE_NS, now)

    def _note_sent(self, sent: int, now: int) -> None:
        if sent != self._sent or not self._sent_ns:
            self._sent, self._sent_ns = sent, now

    def look(self, now: int) -> None:
        """See whether something is sent again; for a client without transport-cc take its reports' loss.
        Once a second."""
        if not self._measuring or (self._running and self.estimator.has_feedback):
            return
        stats = self._forwarder.peer_stats(self._peer)
        if self._numbered and stats.transport_cc_sent != self._sent:
            self.begin()
        if self.estimator.has_feedback:
            return
        sent = stats.bytes_sent - self._bytes
        elapsed_ns, self._bytes = now - self._looked_ns, stats.bytes_sent
        since_ns, self._looked_ns = self._looked_ns, now
        if not sent or not since_ns:
            return
        fractions = []
        for route in self._routes():
            report = self._forwarder.route_stats(route)
            if report.report_ns > since_ns:
                fractions.append(report.fraction_lost)
        if fractions:
            self._heard = True
            self._tell(self.estimator.take_report(max(fractions), sent * 8 * SECOND_NS / elapsed_ns, now))

    def take_rtcp(self, packets: list[rtcp.RtcpPacket], now: int) -> None:
        """Take a REMB (draft-alvestrand-rmcat-remb-03)."""
        for packet in packets:
            if isinstance(packet, rtcp.Remb) and self._measuring and not self.estimator.has_feedback:
                self._heard = True
                self._tell(self.estimator.take_remb(packet.bitrate_bps, now))

    def _pace(self) -> None:
        """Let pictures leave as the estimate is; who has no numbers would take waiting for a queue on his
        line."""
        target = self.target_bps
        if self._numbered and abs(target - self._paced_bps) >= CHANGE * self._paced_bps:
            self._paced_bps = target
            self._forwarder.set_pace(self._peer, int(PACING * target))

    def _tell(self, target: int) -> None:
        self._pace()
        if self.on_change is not None and abs(target - self._told_bps) >= CHANGE * self._told_bps:
            self._told_bps = target
            self.on_change(target)


def _next(interval_ns: int, now: int) -> int:
    return (now // interval_ns + 1) * interval_ns  # all sessions at once: one wake-up
