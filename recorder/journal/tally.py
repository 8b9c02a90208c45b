"""Count what passes, record by record: the same summary for a living writer and for recovery."""

from __future__ import annotations

from collections.abc import Sequence

from recorder.journal.encoding import record_time
from recorder.journal.summary import PartSummary, TrackSummary
from recorder.records import (
    ClockRecord,
    EndRecord,
    GapRecord,
    PacketBatch,
    Queued,
    RtcpRecord,
    RtpRecord,
    SessionRecord,
    TrackCount,
    TrackRecord,
)


class Tally:
    """Running summary of one part. ``add`` is called for records that are kept, in order."""

    def __init__(self, part: int) -> None:
        self.summary = PartSummary(part)
        self.tracks: dict[int, TrackRecord] = {}
        """The newest description of each track."""
        self._counts: dict[int, TrackSummary] = {}

    def add(self, records: Sequence[Queued]) -> None:
        """Count records."""
        summary, counts = self.summary, self._counts
        summary.records += len(records)
        latest = summary.ended_ns
        for record in records:
            kind = type(record)
            if isinstance(record, PacketBatch):
                summary.records += record.packets - 1
                latest = max(record.latest_ns, latest)
                for one in record.counts:
                    self._add_count(one)
                continue
            if kind is RtpRecord or kind is RtcpRecord:
                assert isinstance(record, RtpRecord | RtcpRecord)
                arrival = record.arrival_ns
                count = counts.get(record.track)
                if count is None:
                    count = counts[record.track] = TrackSummary(record.track)
                if kind is RtcpRecord:
                    count.rtcp_packets += 1
                else:
                    if not count.packets:
                        count.first_arrival_ns = arrival
                    count.packets += 1
                    count.bytes += len(record.packet)
                    count.last_arrival_ns = max(arrival, count.last_arrival_ns)
                latest = max(arrival, latest)
                continue
            latest = max(record_time(record), latest)
            match record:
                case SessionRecord():
                    summary.began_ns = record.at_ns
                case TrackRecord():
                    self.tracks[record.info.track] = record
                case GapRecord():
                    summary.gaps.append(record)
                case ClockRecord():
                    summary.clocks[1:] = [record] if summary.clocks else []
                    if not summary.clocks:
                        summary.clocks.append(record)
                case EndRecord():
                    summary.ended, summary.final, summary.reason = True, record.final, record.reason
        summary.ended_ns = latest

    def _add_count(self, added: TrackCount) -> None:
        count = self._counts.setdefault(added.track, TrackSummary(added.track))
        count.rtcp_packets += added.rtcp_packets
        if not added.packets:
            return
        if not count.packets:
            count.first_arrival_ns = added.first_ns
        count.packets += added.packets
        count.bytes += added.bytes
        count.last_arrival_ns = max(added.last_ns, count.last_arrival_ns)

    def finish(self) -> PartSummary:
        """Return the summary so far, tracks in the order of their numbers."""
        self.summary.tracks = [self.tracks[track].info for track in sorted(self.tracks)]
        self.summary.counts = [self._counts[track] for track in sorted(self._counts)]
        return self.summary
