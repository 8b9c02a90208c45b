"""Find out by padding whether the line carries more than is being sent.

For a short while media and padding together make the rate that is tried; the groups of packets sent meanwhile
tell at what rate they arrived. Shares and limits are those of libwebrtc's probe_bitrate_estimator.cc and
probe_controller.cc (read at 0040b66a), but for the length: libwebrtc's 15 ms are sent by a pacer with a clock
of its own and are easily fooled by the buffers of mobile and Wi-Fi links; here padding leaves every
``TICK_NS`` for ``LENGTH_NS``, which costs no thread and at twice the link's rate a queue of as much.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mediaserver.forwarder.counters import SendGroup

SECOND_NS: Final = 1_000_000_000
LENGTH_NS: Final = 160_000_000
TICK_NS: Final = 20_000_000
TIMEOUT_NS: Final = SECOND_NS
"""A result that has not come then does not come."""
FACTOR: Final = 2.0
_UNSATURATED: Final = 0.9
_UTILIZATION: Final = 0.9
"""Of a full line; libwebrtc has 0.95, with which a flow that probes takes from one that heeds the queue."""
_MAX_RATIO: Final = 2.0
_MIN_GROUPS: Final = 4
_FIRST_PAUSE_NS: Final = 3 * SECOND_NS
_MAX_PAUSE_NS: Final = 6 * SECOND_NS
"""Between probes that show nothing: the goal is to be up again 15 s after the line is."""
_SETTLE_NS: Final = 200_000_000


@dataclass(slots=True)
class _Cluster:
    bps: float
    begun_ns: int
    bytes_before: int
    groups: list[SendGroup] = field(default_factory=list)

    @property
    def end_ns(self) -> int:
        return self.begun_ns + LENGTH_NS


@dataclass(frozen=True, slots=True)
class Result:
    """What a probe showed, bit/s."""

    tried: float
    arrived: float
    """0: nothing could be measured."""
    full: bool
    """Less arrived than was sent: the line was full."""

    @property
    def usable(self) -> float:
        """Return what can be sent now without filling a queue."""
        return _UTILIZATION * self.arrived if self.full else self.arrived


class Prober:
    """The probes of one line, one at a time."""

    def __init__(self) -> None:
        self._cluster: _Cluster | None = None
        self._next_ns = 0
        self._pause_ns = _FIRST_PAUSE_NS
        self.made = 0
        """Probes begun, and below those that showed more than was known."""
        self.raised = 0

    def padding_until(self) -> int:
        """Return until when padding is to be sent (ns); 0: none."""
        return self._cluster.end_ns if self._cluster is not None else 0

    def may_begin(self, now: int) -> bool:
        """Tell whether a probe may begin."""
        return self._cluster is None and now >= self._next_ns

    def begin(self, bps: float, bytes_sent: int, now: int) -> None:
        """Try ``bps`` from now on; ``bytes_sent`` so far."""
        self._cluster = _Cluster(bps, now, bytes_sent)
        self.made += 1

    def padding(self, bytes_sent: int, now: int) -> int:
        """Return how many bytes of padding to send now."""
        cluster = self._cluster
        if cluster is None or now >= cluster.end_ns:
            return 0
        due_ns = min(now + TICK_NS, cluster.end_ns) - cluster.begun_ns
        due = int(cluster.bps * due_ns / SECOND_NS / 8)
        return max(due - (bytes_sent - cluster.bytes_before), 0)

    def takes(self, group: SendGroup) -> bool:
        """Take a group if it was sent during the probe."""
        cluster = self._cluster
        if cluster is None or not cluster.begun_ns <= group.first_sent_ns < cluster.end_ns + TICK_NS:
            return False
        cluster.groups.append(group)
        return True

    def result(self, newest_sent_ns: int, now: int) -> Result | None:
        """Return what the probe showed once it is over.

        ``newest_sent_ns``: when the last packet that feedback has told of was sent.
        """
        cluster = self._cluster
        if cluster is None or now < cluster.end_ns:
            return None
        if newest_sent_ns < cluster.end_ns + TICK_NS and now < cluster.end_ns + TIMEOUT_NS:
            return None
        self._cluster = None
        return _measure(cluster)

    def pause(self, now: int, *, raised: bool, grown: bool = False) -> None:
        """Note whether the last probe was of use without filling the line: then the next may begin at once.

        ``grown``: it was full with much more than was thought. Then it is not what it was, and worth a look
        soon.
        """
        if raised:
            self.raised += 1
            self._pause_ns = _FIRST_PAUSE_NS
            self._next_ns = now + _SETTLE_NS
        elif grown:
            self._pause_ns = _FIRST_PAUSE_NS
            self._next_ns = now + _FIRST_PAUSE_NS
        else:
            self._next_ns = now + self._pause_ns
            self._pause_ns = min(2 * self._pause_ns, _MAX_PAUSE_NS)

    def give_up(self, now: int) -> None:
        """End a probe that cannot be made."""
        if self._cluster is not None:
            self._cluster = None
            self.pause(now, raised=False)

    def hurry(self, now: int) -> None:
        """Note that the line is there again after a silence: what it carries is to be found out soon."""
        self._pause_ns = _FIRST_PAUSE_NS
        self._next_ns = now + _SETTLE_NS

    def hold(self, now: int) -> None:
        """Note that the line is full: no probe for a while."""
        self._next_ns = max(self._next_ns, now + _FIRST_PAUSE_NS)


def _measure(cluster: _Cluster) -> Result:
    nothing = Result(cluster.bps, 0.0, full=False)
    groups = cluster.groups
    if len(groups) < _MIN_GROUPS:
        return nothing
    first, last = groups[0], groups[-1]
    sent_ns = last.first_sent_ns - first.first_sent_ns
    arrived_ns = last.last_arrival_ns - first.last_arrival_ns
    if not 0 < sent_ns <= SECOND_NS or not 0 < arrived_ns <= SECOND_NS:
        return nothing
    total = sum(group.bytes for group in groups)
    sent_bps = (total - last.bytes) * 8 * SECOND_NS / sent_ns
    arrived_bps = (total - first.bytes) * 8 * SECOND_NS / arrived_ns
    if arrived_bps > _MAX_RATIO * sent_bps:
        return nothing
    return Result(cluster.bps, min(sent_bps, arrived_bps), full=arrived_bps < _UNSATURATED * sent_bps)
