"""What a journal holds: the record types, as the rest of the program sees them.

Three words of time. *now* and every ``…_ns`` field: nanoseconds of the machine's CLOCK_MONOTONIC, one
timeline for all processes of a machine. *media time*: RTP ticks. *wallclock*: UTC, known only through
``ClockRecord`` pairs. How records become bytes is in ``recorder/journal.py`` and docs/container.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

RED = "red"
"""Key in ``TrackInfo.fmtp``; see ``TrackInfo.redundancy``."""


@dataclass(frozen=True, slots=True)
class TrackInfo:
    """One track of a recording. A reconnect makes a new track with the same seat and source."""

    track: int
    """Number of the track, unique in the recording over all parts, 1 … 65535."""
    identity: str
    seat: str
    """Stable place in the recording, such as ``customer#1``."""
    role: str
    name: str
    """Name to show people; sealed wherever it is stored."""
    kind: str
    """``audio`` or ``video``."""
    source: str
    """``camera``, ``microphone``, ``screen`` or ``document``."""
    mime: str
    """Such as ``video/VP8``, ``video/H264``, ``audio/opus`` (RFC 6838 names as SDP spells them)."""
    clock_rate: int
    payload_type: int
    ssrc: int
    channels: int = 1
    fmtp: dict[str, str] = field(default_factory=dict)
    extensions: dict[str, int] = field(default_factory=dict)
    """Header extension URI to its id in the recorded packets (RFC 8285)."""
    stream: str = ""
    """Tracks of one sender, whose sender reports relate their media times, share this name (CNAME)."""

    @property
    def redundancy(self) -> int | None:
        """Payload type of this sound's RED packets (RFC 2198), None: it has none.

        It is kept in ``fmtp`` under ``RED``, so that readers who do not know it read the track all the same.
        """
        number = self.fmtp.get(RED, "")
        fits = self.kind == "audio" and number.isascii() and number.isdecimal() and len(number) <= 3
        return int(number) if fits and int(number) <= 127 else None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """First record of every part: what is being recorded, in which part, since when."""

    at_ns: int
    part: int
    info: dict[str, Any]
    """``recording, tenant, room, business_no, mode, armed_ns, boot_id, template, metadata, …``, JSON."""


@dataclass(frozen=True, slots=True)
class TrackRecord:
    """A track begins (or its description changed)."""

    at_ns: int
    info: TrackInfo


@dataclass(frozen=True, slots=True)
class RtpRecord:
    """One RTP packet as decrypted. ``packet`` is the whole packet, header included (RFC 3550)."""

    track: int
    arrival_ns: int
    packet: bytes


@dataclass(frozen=True, slots=True)
class RtcpRecord:
    """One compound RTCP packet of a track's sender as decrypted."""

    track: int
    arrival_ns: int
    packet: bytes


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event of the call, the envelope of ``GET /v1/events``: ``{id, seq, type, time, …, data}``."""

    at_ns: int
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ClockRecord:
    """A pair of both times, once a second: ``utc_ns`` was read at monotonic ``at_ns``."""

    at_ns: int
    utc_ns: int
    offset_ns: int
    """Estimated error of UTC, as the system's clock discipline states it."""
    source: str
    """``ntp``, ``ptp``, ``free``."""
    stratum: int
    trust: str
    """``trusted`` or ``degraded``."""


@dataclass(frozen=True, slots=True)
class GapRecord:
    """Packets of a track that were received but could not be kept (``reason`` says why)."""

    track: int
    from_ns: int
    to_ns: int
    packets: int
    reason: str


@dataclass(frozen=True, slots=True)
class EndRecord:
    """The part ends here on purpose. ``final`` says that the recording was stopped, not only this part."""

    at_ns: int
    final: bool
    reason: str


class TrackCount(NamedTuple):
    """What a batch holds of one track; times and bytes are of its RTP packets."""

    track: int
    packets: int
    rtcp_packets: int
    bytes: int
    first_ns: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class PacketBatch:
    """Many packets on their way into a journal, encoded already (``recorder.journal.encoding``).

    No journal holds this record: read back, its packets are ``RtpRecord`` and ``RtcpRecord`` items.
    """

    items: bytes
    counts: tuple[TrackCount, ...]
    latest_ns: int
    """Latest arrival."""

    @property
    def packets(self) -> int:
        """Number of packets, RTCP included."""
        return sum(count.packets + count.rtcp_packets for count in self.counts)


Record = (
    SessionRecord | TrackRecord | RtpRecord | RtcpRecord | EventRecord | ClockRecord | GapRecord | EndRecord
)
Queued = Record | PacketBatch
"""What a journal is given to write."""
