"""Tapped packets as a journal keeps them; the twin of csrc/journal.c."""

from __future__ import annotations

from collections.abc import Sequence

from mediaserver.forwarder.interface import Tapped, Targets
from recorder.journal.encoding import encode
from recorder.records import PacketBatch, RtcpRecord, RtpRecord, TrackCount

MAX_BATCH_BYTES = 128 << 10


def batches(tapped: Sequence[Tapped], targets: Targets) -> list[tuple[int, PacketBatch]]:
    """Encode packets group by group, in batches of about ``MAX_BATCH_BYTES``."""
    groups: dict[int, list[RtpRecord | RtcpRecord]] = {}
    for tap, arrival_ns, packet, is_rtcp in tapped:
        if (target := targets.by_tap.get(tap)) is not None:
            group, track = target
            kind = RtcpRecord if is_rtcp else RtpRecord
            groups.setdefault(group, []).append(kind(track, arrival_ns, packet))
    made = []
    for group in sorted(groups):
        records = groups[group]
        while records:
            size = count = 0
            while count < len(records) and size < MAX_BATCH_BYTES:
                size += len(records[count].packet)
                count += 1
            made.append((group, _batch(records[:count])))
            records = records[count:]
    return made


def _batch(records: Sequence[RtpRecord | RtcpRecord]) -> PacketBatch:
    counts = []
    for track in dict.fromkeys(record.track for record in records):
        mine = [record for record in records if record.track == track]
        media = [record for record in mine if isinstance(record, RtpRecord)]
        counts.append(
            TrackCount(
                track,
                len(media),
                len(mine) - len(media),
                sum(len(record.packet) for record in media),
                media[0].arrival_ns if media else 0,
                max((record.arrival_ns for record in media), default=0),
            )
        )
    return PacketBatch(encode(records), tuple(counts), max(record.arrival_ns for record in records))
