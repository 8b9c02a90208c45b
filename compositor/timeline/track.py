"""One track: packets in, placed frames out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from compositor.timeline.delay import Mapping
from compositor.timeline.model import DECIDE_NS, HORIZON_NS, MS, RELEASE_NS, SECOND, STALL_NS, Frame, Gap
from compositor.timeline.redundancy import Piece, Redundancy
from compositor.timeline.reorder import Arrival, Reorder
from compositor.timeline.reports import ReportedOffset
from recorder.depacketise import Depacketiser, MediaFrame, depacketiser
from recorder.records import TrackInfo
from recorder.rtp import VIDEO_ORIENTATION, RtpError, RtpPacket, Unwrapper, sequence_after, video_rotation

_OVERLAP_NS = 60 * MS
"""After a jump of media time, sound that would lie over sound already placed by more than this is left
out."""
_STRAGGLER_NS = 500 * MS
"""A former SSRC is back only when the present one has been silent for so long; till then it is stragglers."""


@dataclass(slots=True)
class _Waiting:
    """A whole frame whose place is not settled yet."""

    frame: MediaFrame
    media_ns: int
    arrival_ns: int
    decide_ns: int
    mapping: Mapping
    rotation: int
    missing: int
    in_band: bool
    first: bool
    """It refers to nothing that was recorded, unless it is a keyframe."""
    paused_ns: int | None
    """When the silence began after which it is the first; None: there was none."""


@dataclass(slots=True)
class _Silence:
    """An interval in which nothing is expected of the track; open until ``to_ns`` is known."""

    from_ns: int
    to_ns: int | None = None


@dataclass(slots=True)
class _Parts:
    """When the packets of a frame being assembled arrived first."""

    media_ns: int
    arrival_ns: int
    mapping: Mapping
    missing: int = 0


@dataclass(slots=True)
class Counts:
    """What was seen of the track."""

    packets: int = 0
    malformed: int = 0
    lost: int = 0
    """Packets that did not come in time."""
    recovered: int = 0
    """Of these the ones whose frames later packets brought (RFC 2198, in-band FEC)."""
    in_band: int = 0
    """Of the recovered ones those by in-band FEC: coarser than what was sent."""
    frames: int = 0
    damaged: int = 0
    left_out: int = 0


class TrackTimeline:
    """Reorder, assemble and place one track. Times never come from a clock, only from records."""

    def __init__(self, info: TrackInfo, gap: Callable[[Gap], None]) -> None:
        self.info = info
        self.counts = Counts()
        self.offset = ReportedOffset()
        self.relation: Callable[[TrackTimeline], int | None] = lambda track: None
        """Asked, at each frame, for what to add to this track's delay."""
        self.placed: list[Frame] = []
        """Frames with their places, in order, for the session to take."""
        self._gap = gap
        self._reorder = Reorder()
        self._depacketiser: Depacketiser | None = None
        self._redundancy = Redundancy()
        self._waiting: deque[_Waiting] = deque()
        self._mapping = Mapping(sound=info.kind == "audio")
        self._unwrapper = Unwrapper(32)
        self._ssrc: int | None = None
        self._retired: set[int] = set()
        self._announced: int | None = None
        self._last_arrival_ns = 0
        self._last_timestamp: int | None = None
        self._last_media_ns = 0
        self._early_report: tuple[int, int, int] | None = None
        self._parts: dict[int, _Parts] = {}
        self._rotation = 0
        self._end_ns: int | None = None
        self._last_at_ns = 0
        self._last_decided_ns = 0
        self._last_placed_media_ns: int | None = None
        self._lost_since: tuple[int, int] | None = None
        self._silences: list[_Silence] = []
        self._taken_ns: int | None = None
        self._first = True
        self._paused_ns: int | None = None
        self._resync: tuple[int, int] | None = None
        self.describe(info)

    @property
    def sound(self) -> bool:
        """Whether this is an audio track."""
        return self.info.kind == "audio"

    @property
    def delay_ns(self) -> int | None:
        """Session time minus media time as seen now, without relation to other tracks; None before a
        packet."""
        return self._mapping.delay_ns if self._mapping.delay_ns is not None else self._mapping.delays.least()

    @property
    def due_ns(self) -> int | None:
        """When ``advance`` has something to do; None: nothing."""
        decide_ns = self._waiting[0].decide_ns if self._waiting else None
        release_ns = self._reorder.due_ns
        if decide_ns is None or release_ns is None:
            return release_ns if decide_ns is None else decide_ns
        return min(decide_ns, release_ns)

    def describe(self, info: TrackInfo) -> None:
        """Take a (new) description; another codec begins a new assembly."""
        if self._depacketiser is None or info.mime != self.info.mime:
            try:
                self._depacketiser = depacketiser(info.mime)
            except ValueError:
                self._depacketiser = None  # the compositor names codecs it cannot show
        if info.ssrc != self.info.ssrc:
            # The recording went over to another layer, at its keyframe: nothing is lost between, and one that
            # comes back is no straggler.
            self._announced = info.ssrc
            self._retired.discard(info.ssrc)
        self.info = info

    def report(self, ssrc: int, timestamp: int, wallclock_ns: int) -> bool:
        """Take a sender report; False if it contradicts those before it (then it is not taken).

        Reports of another SSRC are ignored; one that comes before the first packet waits for it.
        """
        if self._last_timestamp is None:
            if ssrc == self.info.ssrc:
                self._early_report = (ssrc, timestamp, wallclock_ns)
        elif ssrc == self._ssrc:
            ticks = sequence_after(self._last_timestamp, timestamp, 32)
            return self.offset.add(wallclock_ns, self._last_media_ns + ticks * SECOND // self.info.clock_rate)
        return True

    def packet(self, data: bytes, arrival_ns: int, now_ns: int) -> None:
        """Take a packet as recorded. ``now_ns``: the latest time of any record, at least ``arrival_ns``."""
        try:
            packet = RtpPacket.parse(data)
        except RtpError:
            self.counts.malformed += 1
            return
        self.counts.packets += 1
        if packet.ssrc != self._ssrc:
            if packet.ssrc in self._retired and arrival_ns - self._last_arrival_ns < _STRAGGLER_NS:
                self.counts.left_out += 1
                return
            if self._ssrc is not None:
                self._retired.add(self._ssrc)
                announced = packet.ssrc == self._announced
                self._begin_anew(now_ns, begins_at=packet.timestamp if announced else None)
                self._unwrapper = Unwrapper(32)
                self._new_epoch()
            self._ssrc, self._announced = packet.ssrc, None
            self._retired.discard(packet.ssrc)
        elif self._reorder.restarts(packet.sequence_number):
            self._begin_anew(now_ns)
        media_ns = self._unwrapper.unwrap(packet.timestamp) * SECOND // self.info.clock_rate
        self._last_timestamp, self._last_media_ns = packet.timestamp, media_ns
        self._last_arrival_ns = arrival_ns
        if self._early_report is not None:
            early, self._early_report = self._early_report, None
            self.report(*early)
        if self._mapping.is_jump(arrival_ns - media_ns):
            self._new_epoch()
        self._mapping.delays.add(now_ns, arrival_ns - media_ns)
        due_ns = max(now_ns, self._mapping.estimate(media_ns, arrival_ns) + RELEASE_NS)
        self._reorder.push(Arrival(packet, arrival_ns, media_ns, due_ns, self._mapping))
        self._release(now_ns)
        self._decide(now_ns)

    def advance(self, now_ns: int) -> None:
        """Do all that falls due until ``now_ns``, in order."""
        while (due_ns := self.due_ns) is not None and due_ns <= now_ns:
            self._release(due_ns)
            self._decide(due_ns)

    def mute(self, at_ns: int) -> None:
        """Nothing is expected from here on."""
        if not self._silences or self._silences[-1].to_ns is not None:
            self._silences.append(_Silence(at_ns))

    def unmute(self, at_ns: int) -> None:
        """Media is expected again."""
        if self._silences and self._silences[-1].to_ns is None:
            self._silences[-1].to_ns = at_ns

    def finish(self, now_ns: int) -> None:
        """The journal has ended: place what is left and close the last gap."""
        for arrival, missing in self._reorder.end():
            self._assemble(arrival, missing, now_ns)
        self._flush(now_ns)
        while self._waiting:
            self._decide(self._waiting[0].decide_ns)
        if not self._close_loss(now_ns) and self._end_ns is not None:
            self._list_stall(self._end_ns, now_ns)

    def _begin_anew(self, now_ns: int, begins_at: int | None = None) -> None:
        """Another run of sequence numbers: what waits is all there will be of the one before.

        ``begins_at``: time stamp of the keyframe at which the recording went over to it; None: it is the
        sender's doing, and something may be missing.
        """
        for arrival, missing in self._reorder.end():
            self._assemble(arrival, missing, now_ns)
        if begins_at is None:
            self._flush(now_ns)
            self._redundancy.begin()
            self._reorder = Reorder(missing=1)
        else:
            self._cut(now_ns)
            self._reorder = Reorder(begins_at=begins_at)

    def _cut(self, now_ns: int) -> None:
        """What comes next was begun with on purpose: the end of an unfinished picture is not lost."""
        if self._depacketiser is not None:
            if any(parts.missing for parts in self._parts.values()):
                self._flush(now_ns)
            self.counts.left_out += len(self._parts)
            self._parts.clear()
            self._depacketiser = depacketiser(self.info.mime)
        self._redundancy.begin()
        self._first = True

    def _new_epoch(self) -> None:
        """Another run of media time; what it has to do with the sender's wallclock must be reported anew."""
        self._mapping = Mapping(sound=self.sound, relation_ns=self._mapping.relation_ns)
        self.offset.forget()

    def _release(self, now_ns: int) -> None:
        for arrival, missing in self._reorder.release(now_ns):
            self._assemble(arrival, missing, now_ns)

    def _assemble(self, arrival: Arrival, missing: int, now_ns: int) -> None:
        packet = arrival.packet
        if missing or self._first:
            silence = self._silence_between(self._taken_ns, arrival.arrival_ns)
            if silence is not None:
                # Muted or paused: what was sent meanwhile was not to be recorded.
                self._cut(now_ns)
                missing, self._paused_ns = 0, silence.from_ns
        self._taken_ns = max(self._taken_ns or 0, arrival.arrival_ns)
        self.counts.lost += missing
        if self._depacketiser is None:
            return
        orientation = packet.extensions.get(self.info.extensions.get(VIDEO_ORIENTATION, -1))
        if orientation is not None:
            self._rotation = video_rotation(orientation)
        if self.sound:
            told = self._redundancy
            malformed = told.malformed
            pieces = told.take(packet, self.info, missing)
            self.counts.recovered, self.counts.in_band = told.recovered, told.in_band
            self.counts.malformed += told.malformed - malformed
        else:
            # Another payload type (comfort noise, telephone events) is no part of the pictures or the sound,
            # but its numbers count.
            payload = packet.payload if packet.payload_type == self.info.payload_type else b""
            pieces = [Piece(0, payload, missing)]
        for piece in pieces:
            self._push(piece, arrival, self._depacketiser, now_ns)

    def _push(self, piece: Piece, arrival: Arrival, to: Depacketiser, now_ns: int) -> None:
        media_ns, rate = arrival.media_ns, self.info.clock_rate
        if piece.before:
            ticks = -(-media_ns * rate // SECOND)  # exactly those that media_ns was rounded down from
            media_ns = (ticks - piece.before) * SECOND // rate
        timestamp = arrival.packet.timestamp - piece.before & 0xFFFFFFFF
        parts = self._parts.get(timestamp)
        if parts is None:
            parts = self._parts[timestamp] = _Parts(media_ns, arrival.arrival_ns, arrival.mapping)
        parts.arrival_ns = min(parts.arrival_ns, arrival.arrival_ns)
        parts.missing += piece.missing
        for frame in to.push(piece.payload, timestamp, arrival.packet.marker, piece.missing > 0):
            self._complete(frame, now_ns, piece.in_band)

    def _flush(self, now_ns: int) -> None:
        if self._depacketiser is not None:
            for frame in self._depacketiser.flush():
                self._complete(frame, now_ns)
        self._parts.clear()

    def _complete(self, frame: MediaFrame, now_ns: int, in_band: bool = False) -> None:
        missing = 0
        for timestamp in list(self._parts):
            parts = self._parts.pop(timestamp)
            missing += parts.missing
            if timestamp == frame.timestamp:
                break
        relation_ns = self.relation(self) if parts.mapping.relation_ns is None else None
        place_ns = parts.mapping.estimate(parts.media_ns, parts.arrival_ns, relation_ns)
        decide_ns = max(now_ns, place_ns + DECIDE_NS)
        self._waiting.append(
            _Waiting(
                frame,
                parts.media_ns,
                parts.arrival_ns,
                decide_ns,
                parts.mapping,
                self._rotation,
                missing,
                in_band,
                self._first,
                self._paused_ns,
            )
        )
        self._first, self._paused_ns = False, None

    def _decide(self, now_ns: int) -> None:
        while self._waiting and self._waiting[0].decide_ns <= now_ns:
            waiting = self._waiting.popleft()
            self._place(waiting, max(waiting.decide_ns, self._last_decided_ns))
            self._last_decided_ns = max(waiting.decide_ns, self._last_decided_ns)

    def _place(self, waiting: _Waiting, now_ns: int) -> None:
        frame = waiting.frame
        duration_ns = frame.duration * SECOND // self.info.clock_rate
        pause_ns = 0
        if self.sound and self._last_placed_media_ns is not None:
            pause_ns = max(0, waiting.media_ns - self._last_placed_media_ns)
        relation_ns = self.relation(self)
        at_ns = waiting.mapping.place(waiting.media_ns, waiting.arrival_ns, pause_ns, relation_ns)
        self._last_placed_media_ns = waiting.media_ns + duration_ns
        at_ns = max(at_ns, now_ns - HORIZON_NS + 1)
        if waiting.paused_ns is not None:
            self._close_loss(waiting.paused_ns)
            self._end_ns = None
        if frame.damaged:
            self.counts.damaged += 1
            self._note_loss(at_ns, waiting.missing)
            return
        if self.sound and self._end_ns is not None and at_ns < self._end_ns - _OVERLAP_NS:
            self.counts.left_out += 1
            from_ns, count = self._resync if self._resync is not None else (at_ns, 0)
            self._resync = (from_ns, count + 1)
            return
        at_ns = max(at_ns, self._last_at_ns)
        if self._resync is not None:
            (from_ns, count), self._resync = self._resync, None
            self._gap(Gap(self.info.track, from_ns, at_ns, "resync", count))
        if waiting.first and not frame.keyframe:
            frame = replace(frame, lost_before=True)  # what it refers to was not recorded
        self._list_gap(frame, at_ns, waiting.missing)
        self.counts.frames += 1
        self._last_at_ns = at_ns
        self._end_ns = at_ns + duration_ns
        self.placed.append(
            Frame(
                self.info.track,
                at_ns,
                duration_ns,
                frame.data,
                frame.keyframe,
                frame.lost_before,
                waiting.rotation,
                waiting.in_band,
            )
        )

    def _note_loss(self, at_ns: int, missing: int) -> None:
        from_ns = self._end_ns if self._end_ns is not None else at_ns
        if self._lost_since is not None:
            from_ns, missing = self._lost_since[0], self._lost_since[1] + missing
        self._lost_since = (from_ns, missing)

    def _list_gap(self, frame: MediaFrame, at_ns: int, missing: int) -> None:
        """List a loss that ends with this frame, or a pause that nothing explains."""
        if frame.lost_before:
            self._note_loss(at_ns, missing)
        if self._lost_since is None:
            if self._end_ns is not None:
                self._list_stall(self._end_ns, at_ns)
        elif self.sound or frame.keyframe:
            self._close_loss(at_ns)

    def _close_loss(self, to_ns: int) -> bool:
        """List the loss that is open, if there is one; tell whether it was listed."""
        if self._lost_since is None:
            return False
        (from_ns, packets), self._lost_since = self._lost_since, None
        if to_ns > from_ns:
            self._gap(Gap(self.info.track, from_ns, to_ns, "loss", packets))
        return to_ns > from_ns

    def _silence_between(self, from_ns: int | None, to_ns: int) -> _Silence | None:
        """Return a silence that is over and of which a part lies between two packets; None if there is
        none."""
        for silence in self._silences:
            if from_ns is None or silence.to_ns is None:
                continue
            if silence.from_ns <= to_ns and silence.to_ns >= from_ns:
                return silence
        return None

    def _list_stall(self, from_ns: int, to_ns: int) -> None:
        """List the parts of a pause in which media was expected: who vanished ends when that is noticed."""
        for silence in self._silences:
            until_ns = silence.to_ns if silence.to_ns is not None else to_ns
            if silence.from_ns < to_ns and until_ns + STALL_NS > from_ns:
                self._list_part(from_ns, silence.from_ns)
                from_ns = max(from_ns, until_ns)
        self._list_part(from_ns, to_ns)

    def _list_part(self, from_ns: int, to_ns: int) -> None:
        if to_ns - from_ns > STALL_NS:
            self._gap(Gap(self.info.track, from_ns, to_ns, "stalled", 0))
