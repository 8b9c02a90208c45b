"""All tracks of a session, driven by the journal's records alone."""

from __future__ import annotations

from dataclasses import replace
from heapq import merge

from compositor.timeline.model import HORIZON_NS, Frame, Gap
from compositor.timeline.reports import relation
from compositor.timeline.track import TrackTimeline
from recorder import rtcp
from recorder.records import (
    ClockRecord,
    EventRecord,
    GapRecord,
    Record,
    RtcpRecord,
    RtpRecord,
    SessionRecord,
    TrackInfo,
    TrackRecord,
)
from recorder.rtp import RtpError

_FAR = 1 << 62


class Timeline:
    """Feed records in journal order; take frames in time order.

    Pure: no clock, no I/O. A frame at t is settled once a record of t + ``HORIZON_NS`` or later was fed (a
    journal has a clock pair each second), or after ``end``.
    """

    def __init__(self) -> None:
        self.tracks: dict[int, TrackInfo] = {}
        self.events: list[EventRecord] = []
        self.gaps: list[Gap] = []
        """In the order of being known."""
        self.clocks: list[ClockRecord] = []
        """Pairs of both times, on the session's timeline."""
        self.now_ns = 0
        """Latest time of any record."""
        self.shift_ns = 0
        """Added to the records' times: not 0 after a restart of the machine, whose monotonic time began
        anew."""
        self.malformed = 0
        """RTCP packets that could not be parsed."""
        self._timelines: dict[int, TrackTimeline] = {}
        self._due_ns = _FAR
        self._ended = False
        self._boot: object = None
        self._boot_offset_ns: int | None = None
        self._held: list[Record] | None = None
        self._part_ended_ns: int | None = None

    @property
    def settled_ns(self) -> int:
        """All frames up to this time, and no later ones for sure, are what ``ready`` returns."""
        return _FAR if self._ended else self.now_ns - HORIZON_NS

    def feed(self, record: Record) -> None:
        """Take the next record."""
        if self._held is not None:
            # A part on another boot: its times are known with its first clock pair (the second record).
            self._held.append(record)
            if isinstance(record, ClockRecord):
                assert self._boot_offset_ns is not None
                self.shift_ns = record.utc_ns - record.at_ns - self._boot_offset_ns
                held, self._held = self._held, None
                for waiting in held:
                    self._take(waiting)
            return
        if isinstance(record, SessionRecord):
            boot = record.info.get("boot_id")
            another = self._boot is not None and boot != self._boot
            self._boot = boot
            if another and self._boot_offset_ns is not None:
                self._held = [record]
                return
        self._take(record)

    def end(self) -> None:
        """Say that no further record comes."""
        if self._ended:
            return
        if self._held is not None:
            held, self._held = self._held, None
            for record in held:
                self._take(record)
        for track in self._timelines.values():
            track.finish(self.now_ns)
        self._ended = True

    def ready(self, until_ns: int) -> list[Frame]:
        """Return the settled frames with ``at_ns < until_ns`` not yet returned, in time order.

        Frames after ``settled_ns`` wait, however late ``until_ns`` is.
        """
        limit = min(until_ns, self.settled_ns + 1)
        streams: list[list[Frame]] = []
        for track in self._timelines.values():
            count = 0
            for frame in track.placed:
                if frame.at_ns >= limit:
                    break
                count += 1
            if count:
                streams.append(track.placed[:count])
                del track.placed[:count]
        return list(merge(*streams, key=lambda frame: (frame.at_ns, frame.track)))

    def counts(self) -> dict[int, dict[str, int]]:
        """Return per track what was seen of it."""
        return {
            number: {name: getattr(track.counts, name) for name in track.counts.__dataclass_fields__}
            for number, track in self._timelines.items()
        }

    def _take(self, record: Record) -> None:
        match record:
            case RtpRecord():
                now_ns = self._advance(record.arrival_ns)
                track = self._timelines.get(record.track)
                if track is not None:
                    track.packet(record.packet, record.arrival_ns + self.shift_ns, now_ns)
                    self._due_ns = min(self._due_ns, track.due_ns if track.due_ns is not None else _FAR)
            case RtcpRecord():
                self._advance(record.arrival_ns)
                self._reports(record)
            case TrackRecord():
                self._advance(record.at_ns)
                self._describe(record.info)
            case EventRecord():
                self._event(replace(record, at_ns=self._advance_to(record.at_ns)))
            case ClockRecord():
                at_ns = self._advance_to(record.at_ns)
                self.clocks.append(replace(record, at_ns=at_ns))
                if self.shift_ns == 0:
                    self._boot_offset_ns = record.utc_ns - record.at_ns
            case GapRecord():
                self._advance(record.to_ns)
                from_ns, to_ns = record.from_ns + self.shift_ns, record.to_ns + self.shift_ns
                self.gaps.append(Gap(record.track, from_ns, to_ns, record.reason, record.packets))
            case SessionRecord():
                before_ns = self.now_ns
                at_ns = self._advance_to(record.at_ns)
                for track in self._timelines.values():
                    track.mute(before_ns)  # their writer is gone: a new part has new tracks
                if before_ns:
                    self.gaps.append(Gap(0, before_ns, max(before_ns, at_ns), "part", 0))
            case _:
                self._advance(record.at_ns)

    def _advance_to(self, at_ns: int) -> int:
        """Let time go on to a record's; return the record's own time on the session's timeline."""
        self._advance(at_ns)
        return at_ns + self.shift_ns

    def _advance(self, at_ns: int) -> int:
        """Let time go on to a record's; return the latest time."""
        self.now_ns = max(self.now_ns, at_ns + self.shift_ns)
        if self._due_ns <= self.now_ns:
            due_ns = _FAR
            for track in self._timelines.values():
                track.advance(self.now_ns)
                if track.due_ns is not None and track.due_ns < due_ns:
                    due_ns = track.due_ns
            self._due_ns = due_ns
        return self.now_ns

    def _describe(self, info: TrackInfo) -> None:
        self.tracks[info.track] = info
        track = self._timelines.get(info.track)
        if track is None:
            track = self._timelines[info.track] = TrackTimeline(info, self.gaps.append)
            track.relation = self._relation
        else:
            track.describe(info)

    def _event(self, record: EventRecord) -> None:
        self.events.append(record)
        data = record.event.get("data")
        if not isinstance(data, dict):
            return
        number, kind = data.get("track"), record.event.get("type")
        for track in self._timelines.values():
            if kind in ("track.muted", "track.ended") and track.info.track == number:
                track.mute(record.at_ns)
            elif kind in ("track.unmuted", "track.started") and track.info.track == number:
                track.unmute(record.at_ns)
            elif kind == "recording.paused":
                track.mute(record.at_ns)
            elif kind == "recording.resumed":
                track.unmute(record.at_ns)
            elif kind == "participant.left" and track.info.identity == data.get("identity"):
                track.mute(record.at_ns)

    def _reports(self, record: RtcpRecord) -> None:
        source = self._timelines.get(record.track)
        if source is None:
            return
        try:
            packets = rtcp.parse(record.packet)
        except RtpError:
            self.malformed += 1
            return
        for report in rtcp.sender_reports(packets):
            wallclock_ns = rtcp.utc_ns_from_ntp(report.ntp)
            family = [track for track in self._timelines.values() if _related(track, source)]
            for track in family:
                if not track.report(report.ssrc, report.rtp_timestamp, wallclock_ns):
                    for other in family:
                        other.offset.forget()
                    track.report(report.ssrc, report.rtp_timestamp, wallclock_ns)

    def _relation(self, track: TrackTimeline) -> int | None:
        """Return what to add to the delay of a track so that its sender's pictures and sound lie together.

        Nothing may be placed after its arrival, so whichever comes later on its way moves earlier: pictures
        onto the sound, or sound by the little that it waits for its packet to fill.
        """
        for other in self._timelines.values():
            if other.sound != track.sound and _related(track, other):
                sound, pictures = (track, other) if track.sound else (other, track)
                wanted = _relation_of(sound, pictures)
                if wanted is not None:
                    return min(0, -wanted if track.sound else wanted)
        return None


def _related(one: TrackTimeline, other: TrackTimeline) -> bool:
    """Tell whether two tracks are of one sender, whose reports relate them."""
    return one is other or (bool(one.info.stream) and one.info.stream == other.info.stream)


def _relation_of(sound: TrackTimeline, pictures: TrackTimeline) -> int | None:
    sound_delay, sound_offset = sound.delay_ns, sound.offset.value()
    picture_delay, picture_offset = pictures.delay_ns, pictures.offset.value()
    if sound_delay is None or sound_offset is None or picture_delay is None or picture_offset is None:
        return None
    return relation(sound_delay, sound_offset, picture_delay, picture_offset)
