"""Who is in the call, and in which state, at a moment of the recording: events applied in time order.

All state changes happen in ``Scene._apply``. Records are handed in as they come; a frame at time t asks for
the state at t, so that a composite made while the call runs and one made later are the same.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from compositor.layout import Party
from recorder.records import EventRecord, Record, SessionRecord, TrackInfo, TrackRecord
from recorder.template import Source, Template, TemplateChange, apply_change

TrackState = Literal["live", "muted", "ended", "interrupted"]


@dataclass(slots=True)
class Seat:
    """A seat and who sits there now."""

    seat: str
    identity: str
    role: str
    name: str
    present: bool = True


@dataclass(slots=True)
class SceneTrack:
    """A track and since when it is in its state (monotonic ns)."""

    info: TrackInfo
    state: TrackState
    since_ns: int


@dataclass(slots=True)
class Step:
    """A step of the call as its markers tell it."""

    code: str
    name: str
    began_ns: int
    ended_ns: int | None = None
    result: str | None = None


@dataclass(slots=True)
class Scene:
    """The call's state; ``revision`` rises with every change that may be seen."""

    template: Template
    seats: dict[str, Seat] = field(default_factory=dict)
    tracks: dict[int, SceneTrack] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    changes: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """Layout and overlay changes as they took effect: (ns, the event's data)."""
    refused: list[tuple[int, str]] = field(default_factory=list)
    paused: bool = False
    pauses: list[list[int]] = field(default_factory=list)
    """Paused stretches as [from ns, to ns]; the last may lack its end."""
    info: dict[str, Any] = field(default_factory=dict)
    """``info`` of the first part."""
    revision: int = 0
    _waiting: list[tuple[int, int, Record]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def feed(self, record: Record) -> None:
        """Keep a record that changes the scene until its time comes; others are ignored."""
        if isinstance(record, EventRecord | SessionRecord | TrackRecord):
            heapq.heappush(self._waiting, (record.at_ns, next(self._order), record))

    def advance(self, now_ns: int) -> None:
        """Apply everything that happened up to and with ``now_ns``."""
        while self._waiting and self._waiting[0][0] <= now_ns:
            at_ns, _, record = heapq.heappop(self._waiting)
            self._apply(at_ns, record)
            self.revision += 1

    def _apply(self, at_ns: int, record: Record) -> None:
        if isinstance(record, SessionRecord):
            if not self.info:
                self.info = dict(record.info)
            for track in self.tracks.values():  # a new part: the worker of the one before is gone
                if track.state in ("live", "muted"):
                    track.state, track.since_ns = "interrupted", at_ns
        elif isinstance(record, TrackRecord):
            info = record.info
            self._seat(info.seat, info.identity, info.role, info.name)
            known = self.tracks.get(info.track)
            if known is None:
                self.tracks[info.track] = SceneTrack(info, "live", at_ns)
            else:
                known.info = info
        elif isinstance(record, EventRecord):
            data = record.event.get("data")
            self._event(at_ns, str(record.event.get("type", "")), data if isinstance(data, dict) else {})

    def _seat(self, seat: str, identity: str, role: str, name: str) -> None:
        known = self.seats.get(seat)
        if known is None:
            self.seats[seat] = Seat(seat, identity, role, name)
        else:
            known.identity, known.present = identity, True
            known.role, known.name = role or known.role, name or known.name

    def _event(self, at_ns: int, kind: str, data: dict[str, Any]) -> None:
        if kind == "participant.joined" and data.get("seat") and not data.get("hidden"):
            words = [str(data.get(key) or "") for key in ("seat", "identity", "role", "name")]
            self._seat(*words)
        elif kind == "participant.left":
            for seat in self.seats.values():
                if seat.seat == data.get("seat") or (
                    not data.get("seat") and seat.identity == data.get("identity")
                ):
                    seat.present = False
                    self._set(at_ns, [t for t in self.tracks.values() if t.info.seat == seat.seat], "ended")
        elif kind in ("track.muted", "track.unmuted", "track.ended"):
            states: dict[str, TrackState] = {
                "track.muted": "muted",
                "track.unmuted": "live",
                "track.ended": "ended",
            }
            self._set(at_ns, self._named(data), states[kind])
        elif kind == "recording.layout_changed":
            self._change(at_ns, data)
        elif kind == "recording.paused" and not self.paused:
            self.paused = True
            self.pauses.append([at_ns])
        elif kind == "recording.resumed" and self.paused:
            self.paused = False
            self.pauses[-1].append(at_ns)
        elif kind == "step.started":
            self._end_step(at_ns, str(data.get("code", "")), None)
            self.steps.append(
                Step(str(data.get("code", "")), str(data.get("name") or data.get("code", "")), at_ns)
            )
        elif kind == "step.ended":
            self._end_step(at_ns, str(data.get("code", "")), data.get("result"))

    def _end_step(self, at_ns: int, code: str, result: Any) -> None:
        for step in reversed(self.steps):
            if step.code == code and step.ended_ns is None:
                step.ended_ns, step.result = at_ns, None if result is None else str(result)
                return

    def _named(self, data: dict[str, Any]) -> list[SceneTrack]:
        """Find the tracks an event means: by number, else by seat or identity, kind and source."""
        number = data.get("track")
        if isinstance(number, int) and number in self.tracks:
            return [self.tracks[number]]
        keys = [key for key in ("seat", "identity", "kind", "source") if data.get(key)]
        if not any(key in ("seat", "identity") for key in keys):
            return []
        return [t for t in self.tracks.values() if all(getattr(t.info, key) == data[key] for key in keys)]

    def _set(self, at_ns: int, tracks: list[SceneTrack], state: TrackState) -> None:
        for track in tracks:
            if track.state != state and track.state not in ("ended", "interrupted"):
                track.state, track.since_ns = state, at_ns

    def _change(self, at_ns: int, data: dict[str, Any]) -> None:
        wanted = {key: data[key] for key in ("layout", "overlays") if data.get(key) is not None}
        try:
            self.template = apply_change(self.template, TemplateChange.model_validate(wanted))
        except ValidationError as error:
            # the API validates before it writes the event; a journal may come from elsewhere
            self.refused.append((at_ns, str(error)))
        else:
            self.changes.append((at_ns, wanted))

    @property
    def step(self) -> Step | None:
        """The step that is active: the latest begun of those not ended."""
        return next((step for step in reversed(self.steps) if step.ended_ns is None), None)

    def track_of(self, seat: str, source: Source) -> SceneTrack | None:
        """The newest video track of a seat's source, whatever its state."""
        found = [
            t
            for t in self.tracks.values()
            if t.info.kind == "video" and t.info.seat == seat and t.info.source == source
        ]
        return max(found, key=lambda t: (t.state in ("live", "muted"), t.info.track), default=None)

    def microphone_muted(self, seat: str) -> bool:
        """Whether a seat has a microphone and all of them are muted."""
        states = [
            t.state
            for t in self.tracks.values()
            if t.info.kind == "audio" and t.info.seat == seat and t.state in ("live", "muted")
        ]
        return bool(states) and all(state == "muted" for state in states)

    def parties(self) -> list[Party]:
        """Everyone present, in order of first joining, with what they share."""
        parties = []
        for seat in self.seats.values():
            if seat.present:
                shared: list[Source] = []
                for source in ("screen", "document"):
                    track = self.track_of(seat.seat, source)
                    if track is not None and track.state in ("live", "muted", "interrupted"):
                        shared.append(source)
                parties.append(Party(seat.seat, seat.role, tuple(shared)))
        return parties
