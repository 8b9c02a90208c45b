"""What a part of a recording holds, told when it ends: the input of the capture manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from recorder.canonical import JSON, CanonicalError, as_int
from recorder.records import ClockRecord, GapRecord, TrackInfo
from recorder.sealed import FileSummary


@dataclass(slots=True)
class TrackSummary:
    """What was kept of one track."""

    track: int
    packets: int = 0
    bytes: int = 0
    rtcp_packets: int = 0
    first_arrival_ns: int = 0
    last_arrival_ns: int = 0


@dataclass(frozen=True, slots=True)
class Proven:
    """How far checkpoints prove a part that was recovered."""

    until: str
    """UTC of the last one that holds, RFC 3339; empty if there is none."""
    ms_behind: int | None
    """From it to the latest record, in ms; None if there is none."""
    bytes_behind: int
    """Of segments, behind it."""
    end: bool
    """The part's last record is before it."""


@dataclass(slots=True)
class PartSummary:
    """One part: the work of one writer, from its SessionRecord to its EndRecord or its death."""

    part: int
    began_ns: int = 0
    ended_ns: int = 0
    """Time of the EndRecord; without one, the latest time of any record."""
    ended: bool = False
    """An EndRecord is there."""
    final: bool = False
    """The EndRecord says that the recording was stopped."""
    reason: str = ""
    records: int = 0
    segments: list[FileSummary] = field(default_factory=list)
    tracks: list[TrackInfo] = field(default_factory=list)
    counts: list[TrackSummary] = field(default_factory=list)
    gaps: list[GapRecord] = field(default_factory=list)
    clocks: list[ClockRecord] = field(default_factory=list)
    """First and last clock pair of the part."""
    damage: list[str] = field(default_factory=list)
    """What could not be read (recovery only), a sentence each."""
    proven: Proven | None = None
    """Of a recovered part (``recorder.proven``); None: its own writer summarised it."""

    @property
    def proven_end(self) -> bool:
        """Whether the part ended on purpose: by its writer's word, or in a record that is proven."""
        return self.ended and (self.proven is None or self.proven.end)

    def to_json(self) -> dict[str, JSON]:
        """Return the members as JSON; names of people are in it (``tracks``)."""
        value = asdict(self)
        value["segments"] = [segment.to_json() for segment in self.segments]
        if self.proven is None:
            del value["proven"]
        return value

    @classmethod
    def from_json(cls, value: JSON) -> PartSummary:
        """Read what ``to_json`` wrote. Raise CanonicalError for anything else."""
        if not isinstance(value, Mapping):
            raise CanonicalError("a part summary is a JSON object")
        try:
            return cls(
                part=as_int(value["part"]),
                began_ns=as_int(value["began_ns"]),
                ended_ns=as_int(value["ended_ns"]),
                ended=bool(value["ended"]),
                final=bool(value["final"]),
                reason=str(value["reason"]),
                records=as_int(value["records"]),
                segments=[FileSummary.from_json(item) for item in _items(value["segments"])],
                tracks=[TrackInfo(**_members(item)) for item in _items(value["tracks"])],
                counts=[TrackSummary(**_members(item)) for item in _items(value["counts"])],
                gaps=[GapRecord(**_members(item)) for item in _items(value["gaps"])],
                clocks=[ClockRecord(**_members(item)) for item in _items(value["clocks"])],
                damage=[str(item) for item in _items(value["damage"])],
                proven=Proven(**_members(value["proven"])) if "proven" in value else None,
            )
        except (KeyError, TypeError) as error:
            raise CanonicalError(f"part summary: {error}") from None


def _items(value: JSON) -> Sequence[JSON]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise CanonicalError("part summary: a list is wanted")
    return value


def _members(value: JSON) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise CanonicalError("part summary: an object is wanted")
    return dict(value)
