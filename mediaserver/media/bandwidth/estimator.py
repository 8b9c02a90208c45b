"""The estimate for one subscriber: feedback in, a rate out, no I/O; all times are monotonic ns given by the
caller.

With transport-cc the rate is the smaller of what delay and loss allow; probes raise both. A client with REMB
only (draft-alvestrand-rmcat-remb-03) estimates itself, and loss of its receiver reports caps it; one with
neither has the loss alone.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from mediaserver.forwarder.counters import SendFeedback, SendGroup
from mediaserver.media.bandwidth.aimd import BETA, RateControl
from mediaserver.media.bandwidth.loss import LOW, LossControl
from mediaserver.media.bandwidth.probe import FACTOR, Prober
from mediaserver.media.bandwidth.trend import TrendDetector, Usage

MS: Final = 1_000_000
SECOND_NS: Final = 1_000 * MS
START_BPS: Final = 1_000_000
"""Before anything is known. libwebrtc begins with 300 kbit/s and probes at once; we have pictures to send and
see a full queue within 300 ms."""
FLOOR_BPS: Final = 30_000
"""Sound and a thumbnail: less is no call."""
CEILING_BPS: Final = 20_000_000
_ACKED_NS: Final = 500 * MS
"""Window of the rate that arrives (``T`` of the draft's table 1: 0.5 to 1 s)."""
_ACKED_SHORT_NS: Final = 250 * MS
"""The same while the queue grows, when what arrived before the link got slower says nothing."""
_BASE_NS: Final = 30 * SECOND_NS
"""The shortest way of the last 30 to 60 s is taken for one without a queue; clocks that are 100 millionths
apart make an error of 6 ms in that time."""
_FOR_EVER_NS: Final = 1 << 62
_NO_QUEUE_MS: Final = 15.0
_PICTURES_NS: Final = 150 * MS
"""If one packet in two pictures' time (at 15 a second) came through faster, what looks like a growing queue
is a picture's own packets, others' bursts or jitter."""
_SHORT_QUEUE_MS: Final = 40.0
_REST_QUEUE_MS: Final = 100.0
"""While a line rests, a packet that waited for longer is trouble: 40 ms are often the jitter of a busy
machine or of radio, and a line that falls to a fifth has such a queue after 30 ms."""
_LONG_QUEUE_MS: Final = 150.0
"""While a queue is longer, the rate does not rise."""
_FALL_QUEUE_MS: Final = 80.0
_FALL_SHARE: Final = 0.6
"""A queue longer than that, while less than this share of what is sent arrives, is that of a line that fell:
too few packets come through it for the trend to see it soon, and each 0.1 s costs half a second of queue."""
_FALL_NS: Final = 200 * MS
_FALLEN_SHARE: Final = 0.5
_AFTER_PROBE_NS: Final = 500 * MS
"""So long after a probe its padding is among what was sent."""
_FULL_QUEUE_MS: Final = 300.0
"""While it is longer, less than what arrives is sent, so that it is gone in a second or two."""
_CLEAR_QUEUE_MS: Final = 80.0
"""A probe is not put on top of a longer one."""
_DRAIN_SHARE: Final = 0.3
_PATIENCE_NS: Final = 3 * SECOND_NS
"""A queue that does not shrink for so long is a longer way (a handover) or others' queue, and is got used
to."""
_SHRUNK: Final = 0.8
_SHRUNK_MS: Final = 150.0
_DRAIN_NS: Final = 500 * MS
_SILENCE_NS: Final = SECOND_NS
"""Without feedback for so long the rate is halved, and again each time as much passes (ours: libwebrtc waits
for 15 s, which would fill a phone's queue for as long)."""
_RTT_S: Final = 0.2
"""kDefaultRttMs of libwebrtc's aimd_rate_control.cc."""
_REMB_NS: Final = 5 * SECOND_NS
"""An older REMB does not hold any more; libwebrtc sends one at least every second."""
_ROOM: Final = 1.05
_GROWN: Final = 1.25
_FRESH_NS: Final = 250 * MS
"""Bursts that were told of longer ago say nothing of now: there are such when the line has been at rest."""
_FEW_LOST: Final = 5


class Estimator:
    """See the module's text."""

    def __init__(self, start_bps: int = START_BPS, told_ns: int = 0) -> None:
        """``told_ns``: feedback up to then is not about it."""
        self.has_feedback = False
        """Whether the client sends transport-cc feedback."""
        self.target_bps = start_bps
        """What may be sent now, all streams and retransmissions together, bit/s."""
        self.wanted_bps = 0
        """What would be sent if it fitted; nothing is probed for unless this is more than ``target_bps``."""
        self.rtt_s = _RTT_S
        self.queue_ms = 0.0
        self.prober = Prober()
        self._trend = TrendDetector()
        self._delay = RateControl(start_bps)
        self._loss = LossControl(CEILING_BPS, CEILING_BPS)
        self._last: SendGroup | None = None
        self._arrived: deque[tuple[int, int]] = deque()
        """Arrival of a group's last packet (subscriber's clock) and its bytes, of ``_ACKED_NS``."""
        self._queues: deque[tuple[int, float]] = deque()
        """Arrival of groups (subscriber's clock) and the queue that they met, of ``_PICTURES_NS``."""
        self._base: list[int] = []
        """Shortest way in this and the last ``_BASE_NS`` (sending to arrival, clocks apart), ns."""
        self._base_ns = 0
        self._drained_ns = 0
        self._newest_sent_ns = 0
        self._probed_ns = 0
        self._left: deque[tuple[int, int]] = deque(maxlen=8)
        """When we looked, and how many bytes had been sent."""
        self._long_ms = 0.0
        self._long_ns = 0
        """Since when the queue is long, and how long it was then."""
        self._sent = 0
        self._quiet_since_ns = 0
        self._silent = False
        self.lost_limit = _FEW_LOST
        """Packets that may be lost between two ``rest`` without anybody being told at once."""
        self._told_ns = told_ns
        self._taken_ns = 0
        self._remb_bps = 0
        self._remb_ns = 0
        self._usage = Usage.NORMAL
        self._drain_bps: float | None = None

    @property
    def loss(self) -> float:
        """Share lost lately, 0 to 1."""
        return self._loss.loss

    @property
    def calm(self) -> bool:
        """Tell whether nothing is lost, no queue stands and nothing more is wanted."""
        return (
            self._loss.loss < LOW
            and self.queue_ms < _SHORT_QUEUE_MS
            and self.wanted_bps <= self.target_bps
            and not self._silent
        )

    @property
    def way_limit_ns(self) -> int:
        """Return how long a packet may be under way (clocks apart) while the line rests; for ever as long as
        none is known to have arrived."""
        return min(self._base) + int(_SHORT_QUEUE_MS * MS) if self._base else _FOR_EVER_NS

    def acked_bps(self, last: SendGroup | None, window_ns: int = _ACKED_NS) -> float | None:
        """Return the rate that arrives, bit/s; ``last`` is the burst still open. ``None`` while too little is
        known."""
        if len(self._arrived) < 3:
            return None
        begin = end = self._arrived[-1][0]
        total = 0
        if last is not None and last.last_arrival_ns > end:
            begin = end = last.last_arrival_ns
            total = last.bytes
        for arrival_ns, size in reversed(self._arrived):
            begin = arrival_ns
            if end - arrival_ns >= window_ns:
                break
            total += size
        else:
            total -= self._arrived[0][1]  # it arrived before its time, which the window begins with
        return total * 8 * SECOND_NS / (end - begin) if end - begin >= 50 * MS else None

    def update(self, feedback: SendFeedback, now: int) -> int:
        """Take what the feedback has told since the last call; returns ``target_bps``. Call it every 50 to
        200 ms while something is sent."""
        over = self._take_groups(feedback, now)
        if self._hears(feedback, now):
            self._control(feedback, over, now)
        self._note_taken(feedback, now)
        self._probe(feedback, now)
        return self._settle(now)

    def rest(self, feedback: SendFeedback, now: int) -> int:
        """Take the totals of a calm line, whose bursts nobody looked at; returns ``target_bps``.

        Call it once a second, and ``update`` again when there is trouble or the line is not calm any more.
        """
        elapsed_ns = now - self._taken_ns
        self._last = None
        self._arrived.clear()
        if self._hears(feedback, now):
            if feedback.packets:
                self._note_shortest(feedback.shortest_ns, now)
            if feedback.open is not None:
                self._note_way(feedback.open.last_sent_ns, feedback.open.last_arrival_ns, now)
            acked = feedback.bytes * 8 * SECOND_NS / elapsed_ns if elapsed_ns >= _ACKED_NS else None
            self._usage = Usage.NORMAL
            self._delay.update(self._usage, acked, self.rtt_s, now)
            self._note_loss(feedback, now)
            self.lost_limit = max(_FEW_LOST, int(2 * LOW * feedback.packets))
        self._note_taken(feedback, now)
        return self._settle(now)

    def padding(self, bytes_sent: int, now: int) -> int:
        """Return how many bytes of padding to send now, beside the ``bytes_sent`` to the subscriber so
        far."""
        return self.prober.padding(bytes_sent, now)

    def take_remb(self, bps: int, now: int) -> int:
        """Take a REMB of the client; returns ``target_bps``."""
        self._remb_bps, self._remb_ns = bps, now
        return self._settle(now)

    def take_report(self, fraction_lost: int, sent_bps: float, now: int) -> int:
        """Take a receiver report's loss (of 256) of a client without transport-cc, and the rate sent to it;
        returns ``target_bps``."""
        loss = fraction_lost / 256
        self._loss.loss = loss
        if self._loss.bps >= CEILING_BPS:
            self._loss.bps = self.target_bps
        before = self._loss.bps
        self._loss.take_loss(now, loss, sent_bps, sent_bps * (1 - loss), self.target_bps, self.rtt_s)
        self._loss.bps = max(min(self._loss.bps, 1.5 * sent_bps + 10_000), min(before, self._loss.bps))
        return self._settle(now)

    # --- inside

    def _note_taken(self, feedback: SendFeedback, now: int) -> None:
        self._taken_ns = now
        self._left.append((now, feedback.bytes_sent))

    def _hears(self, feedback: SendFeedback, now: int) -> bool:
        """Tell whether there was feedback; halve the rate when there was none for too long."""
        sending = feedback.sent != self._sent
        self._sent = feedback.sent
        if feedback.told_ns > self._told_ns:
            if self._silent:
                self._silent = False
                self.prober.hurry(now)
            self._told_ns = feedback.told_ns
            self._quiet_since_ns = now
            self.has_feedback = True
            return True
        if self.has_feedback and sending and now - self._quiet_since_ns >= _SILENCE_NS:
            self._quiet_since_ns = now
            self._silent = True
            self._delay.bps = max(self._delay.bps / 2, FLOOR_BPS)
        elif not sending:
            self._quiet_since_ns = now
        return False

    def _take_groups(self, feedback: SendFeedback, now: int) -> bool:
        over = False
        for group in feedback.groups:
            fresh = feedback.told_ns - group.told_ns <= _FRESH_NS
            self._arrived.append((group.last_arrival_ns, group.bytes))
            rtt_s = (group.told_ns - group.last_sent_ns) / SECOND_NS
            self.rtt_s += 0.1 * (min(max(rtt_s, 0.0), 2.0) - self.rtt_s)
            self._note_way(group.last_sent_ns, group.last_arrival_ns, now)
            self._queues.append((group.last_arrival_ns, self.queue_ms))
            if self.prober.takes(group):
                self._last = None  # its queue is the probe's own, and told by its result
                continue
            last, self._last = self._last, group
            if last is None or group.last_arrival_ns < last.last_arrival_ns:
                continue
            usage = self._trend.update(
                (group.last_sent_ns - last.last_sent_ns) / MS,
                (group.last_arrival_ns - last.last_arrival_ns) / MS,
                group.last_arrival_ns / MS,
            )
            over = over or (fresh and usage is Usage.OVER)
            self._usage = usage
        if self._arrived:
            end = self._arrived[-1][0]
            while len(self._arrived) > 1 and not 0 <= end - self._arrived[0][0] <= 2 * _ACKED_NS:
                self._arrived.popleft()
        while self._queues and not 0 <= self._queues[-1][0] - self._queues[0][0] <= _PICTURES_NS:
            self._queues.popleft()
        return over and min((queue_ms for _, queue_ms in self._queues), default=0.0) > _NO_QUEUE_MS

    def _is_way(self, now: int) -> bool:
        """Tell whether what looks like a long queue does not shrink though less is sent, and so is none.

        What arrives now was sent before the queue was seen: only packets that left since then can tell.
        """
        if not self._long_ns:
            self._long_ns = now
        since_ns = self._newest_sent_ns - self._long_ns
        if since_ns <= 0:
            self._long_ms = self.queue_ms
        elif self.queue_ms < max(_SHRUNK * self._long_ms, self._long_ms - _SHRUNK_MS):
            self._long_ns, self._long_ms = self._newest_sent_ns, self.queue_ms
        return since_ns > _PATIENCE_NS

    def _note_way(self, sent_ns: int, arrival_ns: int, now: int) -> None:
        way_ns = arrival_ns - sent_ns
        self._newest_sent_ns = sent_ns
        self._note_shortest(way_ns, now)
        self.queue_ms = (way_ns - min(self._base)) / MS

    def _note_shortest(self, way_ns: int, now: int) -> None:
        if not self._base:
            self._base = [way_ns, way_ns]
            self._base_ns = now
        elif now - self._base_ns >= _BASE_NS:
            self._base = [way_ns, self._base[0]]
            self._base_ns = now
        else:
            self._base[0] = min(self._base[0], way_ns)

    def _has_fallen(self, feedback: SendFeedback, now: int) -> bool:
        """Tell whether much less arrives than is sent, and what was sent stands in a queue."""
        if self.queue_ms < _FALL_QUEUE_MS or not self._left or now - self._probed_ns < _AFTER_PROBE_NS:
            return False
        begun_ns, before = next(
            (one for one in reversed(self._left) if now - one[0] >= _FALL_NS), self._left[0]
        )
        acked = self.acked_bps(feedback.open, _FALL_NS)
        if acked is None or now - begun_ns < _FALL_NS // 2:
            return False
        return acked < _FALL_SHARE * (feedback.bytes_sent - before) * 8 * SECOND_NS / (now - begun_ns)

    def _control(self, feedback: SendFeedback, over: bool, now: int) -> None:
        usage = Usage.OVER if over else self._usage
        doubted = usage is Usage.OVER and not over
        if doubted:
            usage = Usage.NORMAL
        probing = bool(self.prober.padding_until())
        if feedback.open is not None:
            self._note_way(feedback.open.last_sent_ns, feedback.open.last_arrival_ns, now)
        if probing:
            self._probed_ns = now
        fallen = self._has_fallen(feedback, now)
        if fallen:
            usage = Usage.OVER
        long_queue = self.queue_ms > _LONG_QUEUE_MS and not probing
        if long_queue and self._is_way(now):
            self._base = []
            long_queue = False
        if not long_queue:
            self._long_ns = 0
        if long_queue and self.queue_ms > _FULL_QUEUE_MS and now - self._drained_ns >= _DRAIN_NS:
            self._drained_ns = now
            usage = Usage.OVER  # a queue that stands is nothing to the trend
        if usage is Usage.OVER:
            self.prober.hold(now)
        window_ns = (
            _FALL_NS if fallen else _ACKED_SHORT_NS if usage is Usage.OVER or long_queue else _ACKED_NS
        )
        acked = self.acked_bps(feedback.open, window_ns)
        if acked is not None:
            acked /= 1 - self._loss.own  # what the path loses by itself is not its queue's
        self._delay.update(usage, acked, self.rtt_s, now, hold=long_queue or doubted)
        self._drain_bps = None
        if fallen and acked is not None:
            self._drain_bps = _FALLEN_SHARE * acked  # what arrived is in part from before the fall
        if long_queue and acked is not None and self.queue_ms > _FULL_QUEUE_MS:
            self._drain_bps = acked * max(1 - self.queue_ms / 1000, _DRAIN_SHARE)
        self._note_loss(feedback, now)

    def _note_loss(self, feedback: SendFeedback, now: int) -> None:
        self._loss.update(
            now,
            lost=feedback.lost,
            packets=feedback.packets,
            lost_bytes=feedback.lost_bytes,
            arrived_bytes=feedback.bytes,
            target_bps=self.target_bps,
            rtt_s=self.rtt_s,
            calm=self.queue_ms < _SHORT_QUEUE_MS,
        )

    def _probe(self, feedback: SendFeedback, now: int) -> None:
        result = self.prober.result(self._newest_sent_ns, now)
        if result is not None:
            # What the path loses by itself was sent all the same.
            shown = result.usable / (1 - self._loss.own)
            raised, grown = shown > self.target_bps, shown > _GROWN * self.target_bps
            if raised:
                self._delay.raise_to(shown, now)
                self._loss.raise_to(shown)
            if result.full:
                # The line is full with what is sent: as if its queue had grown, else a probing flow would
                # drive away those that heed the queue.
                self._delay.update(Usage.OVER, shown / BETA, self.rtt_s, now)
            self.prober.pause(now, raised=raised and not result.full, grown=grown)
            self._settle(now)
        if (
            self.has_feedback
            and self.wanted_bps > _ROOM * self.target_bps
            and self._usage is not Usage.OVER
            and self.queue_ms < _CLEAR_QUEUE_MS
            and self._arrived
            and now - self._quiet_since_ns < _SILENCE_NS
            and self.prober.may_begin(now)
        ):
            rate = min(FACTOR * self.target_bps, 1.1 * self.wanted_bps, CEILING_BPS)
            self.prober.begin(rate, feedback.bytes_sent, now)

    def _settle(self, now: int) -> int:
        if self.has_feedback:
            rate = min(self._delay.bps, self._loss.bps)
            if self._drain_bps is not None:
                rate = min(rate, self._drain_bps)
        elif self._remb_ns and now - self._remb_ns < _REMB_NS:
            rate = min(self._remb_bps, self._loss.bps)
        else:
            rate = min(self.target_bps, self._loss.bps) if self._loss.bps >= CEILING_BPS else self._loss.bps
        self.target_bps = int(min(max(rate, FLOOR_BPS), CEILING_BPS))
        self._delay.bps = max(self._delay.bps, FLOOR_BPS)
        return self.target_bps
