"""Decide when to ask a publisher again: lost packets, keyframes, rate; and what reports say. No I/O, time
given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mediaserver.forwarder.interface import RouteStats, StreamStats
from recorder import rtcp
from recorder.rtp import RtpError

SERVER_SSRC = 1
"""SSRC of our own feedback, as libwebrtc uses 1 for a sender without media."""

MS = 1_000_000
SECOND_NS = 1_000 * MS
EARLY_REPORTS = 3
"""The first reports of a session or route are not held back: the other side knows nothing yet."""

HOLD_BOUNDS_NS = (10 * MS, 80 * MS)
"""A missing packet is given so long to arrive by itself: at first as long as most reordering lasts (RFC 4653
speaks of a few ms), more where a line is seen to reorder more."""
HOLD_STEP_NS = 5 * MS
DOUBTFUL = 8
"""So many packets in a row that had to be asked for again; by chance once in 200 times at 30 % loss each
way."""
FIRST_ROUND_NS = 100 * MS
"""The round trip taken for granted before one was measured (libwebrtc: kDefaultRtt)."""
RETRY_BOUNDS_NS = (30 * MS, 600 * MS)
"""Asked again not sooner than the timer's tick and a half, not so late that no second try fits before
``VIEWED_NS``."""
REPEAT_NS = 15 * MS
"""For half a round trip a request is repeated so often, or every tick, so that one arrives; then it rests
until the answer should be there. libwebrtc resends a packet once in a round trip, however often it is
asked."""
ECHOES = 16
"""So many packets may come twice, and one for every four asked for: a sender that makes more of them answers
every request, and is asked once a round."""
VIEWED_NS = 1_000 * MS
"""Later than this a retransmission serves no viewer: his jitter buffer has gone on or asked for a
keyframe."""
RECORDED_NS = 2_000 * MS
"""The compositor's horizon: what comes within it is still put in its place in the recording."""
REPORTED_MISSING = 256
"""As many missing packets at most does a forwarder report, the oldest first; later ones are unknown then."""
MAX_PENDING = 512
"""More missing packets than this are an outage: a keyframe is cheaper than resending."""
MAX_ASKS = 16

KEYFRAME_INTERVAL_NS = 500 * MS
"""Time between two keyframe requests of a stream, wanted anew or not yet answered: each costs the publisher
a burst of 3-10 times a frame."""

EAGER_REQUESTS = 6
"""After so many unanswered requests the caller asks once a second only."""


def heeded(data: bytes, kinds: frozenset[int]) -> list[rtcp.RtcpPacket]:
    """Return the packets of a compound whose packet type is one of ``kinds``; others are only stepped over.

    Most of what clients send (receiver reports, CNAMEs) decides nothing here. Raises RtpError as
    ``rtcp.parse``, of the frames and of what is wanted.
    """
    packets: list[rtcp.RtcpPacket] = []
    at, size = 0, len(data)
    while at < size:
        if size - at < 4 or data[at] >> 6 != 2:
            raise RtpError("header", f"{size - at} bytes left, or not version 2")
        end = at + 4 + 4 * (data[at + 2] << 8 | data[at + 3])
        if end > size:
            raise RtpError("length", f"{end - at} bytes announced, {size - at} left")
        if data[at + 1] in kinds:
            packets += rtcp.parse(data[at:end])
        at = end
    if not size:
        raise RtpError("header", "no bytes")
    return packets


@dataclass(slots=True)
class Line:
    """What a sender's line is like, learnt from its retransmissions; all times in ns.

    An ice-lite server sends no checks and a receiver gets no report blocks, so that the time from a request
    to the packet is what there is to measure; it is just what the next request has to wait for. ``round_ns``
    and ``deviation_ns`` are smoothed as in RFC 6298 section 2; ``hold_ns`` is what 97 of 100 packets that
    were only reordered did not need to arrive by themselves.
    """

    round_ns: int = FIRST_ROUND_NS
    deviation_ns: int = FIRST_ROUND_NS // 4
    hold_ns: int = HOLD_BOUNDS_NS[0]
    samples: int = 0
    _doubtful: int = 0

    def resent(self, after_ns: int, *, sure: bool = True) -> None:
        """Note that a packet came so long after it was first asked for; ``sure`` if once only (Karn's rule).

        Where all have to be asked for twice the round trip is longer than was thought: then the others count
        too.
        """
        self._doubtful = 0 if sure else self._doubtful + 1
        if 0 < self._doubtful < DOUBTFUL:
            return
        self._doubtful = 0
        if self.samples == 0:
            self.round_ns, self.deviation_ns = after_ns, after_ns // 2
        else:
            error_ns = abs(self.round_ns - after_ns)
            self.deviation_ns += (error_ns - self.deviation_ns) // 4
            self.round_ns += (after_ns - self.round_ns) // 8
        self.samples += 1
        self.reordered(0)  # it was not

    def reordered(self, late_ns: int) -> None:
        """Note that a packet came by itself so long after it was missed."""
        step = HOLD_STEP_NS * 97 // 100 if late_ns > self.hold_ns else -HOLD_STEP_NS * 3 // 100
        low, high = HOLD_BOUNDS_NS
        self.hold_ns = max(low, min(self.hold_ns + step, high))

    @property
    def retry_ns(self) -> int:
        """Return when to ask again: by then most answers have come (once the deviation, not four times:
        asking twice costs a packet, asking late a frozen picture)."""
        low, high = RETRY_BOUNDS_NS
        return max(low, min(self.round_ns + self.deviation_ns, high))


@dataclass(slots=True)
class _Missing:
    since_ns: int
    first_ns: int = 0
    """When it was asked for first; when in the last round, and last of all."""
    asked_ns: int = 0
    repeated_ns: int = 0
    asks: int = 0
    """Rounds in which it was asked for."""
    late: bool = False
    """No viewer waits for it any more."""


class NackGenerator:
    """Which packets of one stream to ask for again, and when."""

    def __init__(self, line: Line | None = None) -> None:
        """``line`` may be shared by all streams of a sender."""
        self._missing: dict[int, _Missing] = {}
        self._recovered = 0
        self._wanted = 0
        """Packets asked for, each counted once."""
        self.line = line or Line()
        self.asked = 0
        self.given_up = 0
        self.broken = False
        """A packet will not come any more; of a video stream the caller asks for a keyframe and clears
        this."""

    @property
    def pending(self) -> bool:
        """Tell whether ``to_ask`` has work."""
        return bool(self._missing)

    def add(self, first: int, last: int, now: int) -> None:
        """Note that the numbers ``first`` … ``last`` (inclusive, wrapping) were skipped."""
        count = ((last - first) & 0xFFFF) + 1
        if count + len(self._missing) > MAX_PENDING:
            self.given_up += count + len(self._missing)
            self._missing.clear()
            self.broken = True
            return
        for offset in range(count):
            self._missing[(first + offset) & 0xFFFF] = _Missing(now)

    def to_ask(
        self,
        still_missing: Sequence[int],
        now: int,
        *,
        recovered: int | None = None,
        duplicates: int = 0,
        recorded: bool = False,
    ) -> list[int]:
        """Return the numbers to ask for now; those no longer in ``still_missing`` have come.

        ``recovered`` counts the packets that came as retransmissions (RFC 4588) so far; it tells those from
        reordered ones. None: the sender resends in the stream itself, from which nothing is learnt.
        ``duplicates`` counts those that came twice. What comes too late for viewers is asked for on only
        while the stream is ``recorded``, and not when the answer would pass the recording's horizon too.
        """
        absent = set(still_missing)
        cut = len(still_missing) >= REPORTED_MISSING
        last_ns = RECORDED_NS - self.line.round_ns if recorded else VIEWED_NS
        repeats = duplicates <= ECHOES + self._wanted // 4
        half_ns = self.line.round_ns // 2
        ask: list[int] = []
        came: list[_Missing] = []
        for sequence, entry in list(self._missing.items()):
            if sequence not in absent:
                if cut and (sequence - still_missing[-1]) & 0xFFFF < 0x8000:
                    continue  # behind the end of the list
                came.append(self._missing.pop(sequence))
            elif now - entry.since_ns > last_ns or entry.asks >= MAX_ASKS:
                del self._missing[sequence]
                self.given_up += 1
                self.broken = True
            elif now - entry.since_ns >= self.line.hold_ns:
                if now - entry.asked_ns >= self.line.retry_ns:
                    self._wanted += entry.asks == 0
                    entry.asked_ns = entry.repeated_ns = now
                    entry.first_ns = entry.first_ns or now
                    entry.asks += 1
                    ask.append(sequence)
                elif repeats and now - entry.repeated_ns >= REPEAT_NS and now - entry.asked_ns <= half_ns:
                    entry.repeated_ns = now
                    ask.append(sequence)
                if not entry.late and now - entry.since_ns > VIEWED_NS:
                    entry.late = self.broken = True
        if recovered is not None:
            self._learn(came, recovered - self._recovered, now)
            self._recovered = recovered
        self.asked += len(ask)
        return ask

    def _learn(self, came: list[_Missing], resent: int, now: int) -> None:
        for entry in came:
            if entry.asks == 0 or resent == 0:
                self.line.reordered(now - entry.since_ns)
            elif resent >= sum(1 for one in came if one.asks):
                self.line.resent(now - entry.first_ns, sure=entry.asks == 1)


class KeyframeRequester:
    """When to ask one video stream for a keyframe: soon, not too often, again until one comes."""

    def __init__(self) -> None:
        self._wanted_ns: int | None = None
        self._asked_ns: int | None = None
        self._unanswered = 0
        self.asked = 0

    @property
    def pending(self) -> bool:
        """Tell whether a keyframe is being waited for."""
        return self._wanted_ns is not None

    @property
    def eager(self) -> bool:
        """Tell whether it is worth asking every half second: a sender whose camera is off never answers."""
        return self.pending and self._unanswered < EAGER_REQUESTS

    def next_ns(self) -> int:
        """Return when another request may go out."""
        return 0 if self._asked_ns is None else self._asked_ns + KEYFRAME_INTERVAL_NS

    def want(self, now: int) -> None:
        """Note that somebody needs a keyframe (a subscriber, a recording, a switch, a receiver's PLI)."""
        if self._wanted_ns is None:
            self._wanted_ns = now

    def came(self, arrival_ns: int) -> None:
        """Note that a keyframe began to arrive; one that was under way before the wish serves it as well."""
        self._wanted_ns = None
        self._unanswered = 0

    def should_ask(self, now: int) -> bool:
        """Tell whether to send a request now; the caller sends it if so."""
        if self._wanted_ns is None:
            return False
        if self._asked_ns is not None and now - self._asked_ns < KEYFRAME_INTERVAL_NS:
            return False
        self._asked_ns = now
        self._unanswered += 1
        self.asked += 1
        return True


@dataclass(slots=True)
class ReceptionReporter:
    """Makes the report block of one received stream."""

    ssrc: int
    _expected: int = 0
    _received: int = 0
    _report: rtcp.SenderReport | None = None
    _report_ns: int = 0

    def heard(self, report: rtcp.SenderReport, arrival_ns: int) -> None:
        """Note the sender's latest report."""
        self._report, self._report_ns = report, arrival_ns

    @property
    def sender(self) -> tuple[rtcp.SenderReport, int] | None:
        """Return the latest sender report and when it arrived."""
        return None if self._report is None else (self._report, self._report_ns)

    def block(self, stats: StreamStats, now: int) -> rtcp.ReportBlock:
        """Build the block for the time since the last one (RFC 3550 appendix A.3)."""
        expected = stats.expected - self._expected
        received = stats.expected - stats.lost - self._received
        self._expected, self._received = stats.expected, stats.expected - stats.lost
        lost = max(0, expected - received)
        fraction = min(255, lost * 256 // expected) if expected > 0 else 0
        last_sr = delay = 0
        if self._report is not None:
            last_sr = self._report.ntp >> 16 & 0xFFFFFFFF
            delay = (now - self._report_ns) * 65_536 // SECOND_NS
        return rtcp.ReportBlock(
            ssrc=self.ssrc,
            fraction_lost=fraction,
            lost=max(-(1 << 23), min(stats.lost, (1 << 23) - 1)),
            highest_sequence=max(0, stats.max_sequence) & 0xFFFFFFFF,
            jitter=min(stats.jitter, 0xFFFFFFFF),
            last_sr=last_sr,
            delay_since_last_sr=min(delay, 0xFFFFFFFF),
        )


def forwarded_report(
    sender: rtcp.SenderReport, heard_ns: int, route: RouteStats, clock_rate: int, now: int
) -> rtcp.SenderReport:
    """Move a publisher's NTP-to-RTP map to a route's time stamps and to ``now``.

    A subscriber must learn when media was captured, not when we had it (mediasoup#1881, janus PR#2007).
    """
    passed = now - heard_ns
    return rtcp.SenderReport(
        ssrc=route.ssrc,
        ntp=(sender.ntp + (passed << 32) // SECOND_NS) & (2**64 - 1),
        rtp_timestamp=(sender.rtp_timestamp + route.timestamp_offset + passed * clock_rate // SECOND_NS)
        & 0xFFFFFFFF,
        packets=route.packets & 0xFFFFFFFF,
        octets=route.bytes & 0xFFFFFFFF,
    )


@dataclass(slots=True)
class RateByLoss:
    """A bitrate to allow a publisher that knows only REMB, from the loss it suffers (RFC-less; GCC's loss
    rule)."""

    ceiling_bps: int = 3_000_000
    floor_bps: int = 150_000
    bps: int = 1_000_000

    def update(self, fraction_lost: int) -> int:
        """Take the loss of the last second (of 256) and return the rate now allowed, bit/s."""
        loss = fraction_lost / 256
        if loss > 0.10:
            self.bps = int(self.bps * (1 - 0.5 * loss))
        elif loss < 0.02:
            self.bps = int(self.bps * 1.08) + 1_000
        self.bps = max(self.floor_bps, min(self.bps, self.ceiling_bps))
        return self.bps
