"""Compose: records and a template in, frames and sound out. Pure of network, database and files.

The frame of time t shows for each place the newest source picture with ``at_ns`` ≤ t. It is made when the
records up to t + 2 s are known (the timeline's horizon), so a composite made during the call, after a restart
or later is the same, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any, Protocol

from compositor.canvas import Canvas, Floats
from compositor.decode import AudioDecoder, Damage, UnknownCodec, VideoDecoder
from compositor.mixer import JUMP_SAMPLES, Mixer
from compositor.mp4 import Chapter
from compositor.painter import Painter
from compositor.scene import Scene
from compositor.sheet import Sheet
from compositor.timeline import HORIZON_NS, VERSION, Frame, Timeline
from compositor.wallclock import WallClock
from recorder.clock import rfc3339
from recorder.records import (
    ClockRecord,
    EndRecord,
    GapRecord,
    Record,
    RtcpRecord,
    RtpRecord,
    SessionRecord,
)
from recorder.template import Template

SAMPLE_RATE = 48_000
REPORT_VERSION = 1
CANVASES = 3
"""Canvases painted in turn, so that the output may hold frames while the next are painted."""
BEFORE = "开始 start"
"""Chapter of what lies before the first step."""
STILL_NS = 500_000_000
"""Nothing has changed for so long: nothing moves. A camera of 3 fps moves."""


class Output(Protocol):
    """Where frames and sound go, in order."""

    def picture(self, canvas: Canvas, number: int) -> None:
        """Take the next frame, of this number on the grid of frame times, to be shown until the one after
        it.

        ``CANVASES`` frames later the canvas is painted over.
        """

    def sound(self, samples: Floats) -> None:
        """Take the next samples, (channels, n) float32 at 48 kHz."""


class NothingRecorded(Exception):
    """The journal has no session record: there is nothing to compose."""


class Composition:
    """One composite being made. Feed records in journal order, ``advance`` now and then, ``finish`` once."""

    def __init__(
        self,
        template: Template,
        output: Callable[[int], Output],
        missing_glyph: Callable[[str], None] = lambda character: None,
    ) -> None:
        """``output`` is called once with the number of sound channels, ``missing_glyph`` per glyph."""
        self.template = template
        self.start_ns: int | None = None
        self.final_ns: int | None = None
        """Time of the final end record, once it was fed."""
        self.frames = 0
        """Places on the grid of frame times decided so far."""
        self.pictures = 0
        """Frames made: fewer than ``frames`` if there were stretches in which only the clock moved."""
        self._stride = max(1, template.frame_rate // (template.static_fps or template.frame_rate))
        self._last_frame = -self._stride
        self._changed_ns = 0
        self._sound_every = max(1, template.frame_rate * 2 // 5)
        self.missing: dict[str, None] = {}
        self._tell_missing = missing_glyph
        self._timeline = Timeline()
        self._clock = WallClock()
        self._scene = Scene(template)
        self._painter = Painter(self._scene, self._clock, self._missing_glyph)
        canvases = CANVASES if template.video else 0
        self._canvases = [Canvas(template.width, template.height) for _ in range(canvases)]
        self.sheet = Sheet(template.width, template.height, template.frame_rate)
        self._video: dict[int, VideoDecoder | None] = {}
        self._audio: dict[int, AudioDecoder | None] = {}
        self._refused: dict[int, str] = {}
        self._output: Output | None = None
        self._make_output = output
        self._mixer: Mixer | None = None
        self._samples = 0
        self._total_samples: int | None = None
        self._held: list[Record] = []
        self._boot: object = None
        self._rebooted = False
        self._fps = template.frame_rate
        self.duration_s = Fraction(0)
        """Length of the recording, known after ``finish``."""

    @property
    def known_ns(self) -> int:
        """Time of the newest record fed, on the session's timeline."""
        return self._timeline.now_ns

    def feed(self, record: Record) -> None:
        """Take the next record of the journal."""
        if isinstance(record, SessionRecord):
            if self.start_ns is None:
                self.start_ns = int(record.info.get("armed_ns", record.at_ns))
                self._mixer = Mixer(self.start_ns, self.template.audio)
                self._output = self._make_output(self._mixer.channels)
            boot, self._boot = self._boot, record.info.get("boot_id")
            self._rebooted = boot is not None and boot != self._boot and self._clock.first is not None
        self._timeline.feed(record)
        if isinstance(record, RtpRecord | RtcpRecord):
            return
        self._held.append(record)
        if not self._rebooted or isinstance(record, ClockRecord):
            # after a restart of the machine the timeline knows with the first clock pair where it goes on
            self._rebooted = False
            held, self._held = self._held, []
            for one in held:
                self._release(one, self._timeline.shift_ns)

    def _release(self, record: Record, shift_ns: int) -> None:
        """Hand a record on whose place on the session's timeline is known."""
        if shift_ns and not isinstance(record, RtpRecord | RtcpRecord | GapRecord):
            record = replace(record, at_ns=record.at_ns + shift_ns)
        if isinstance(record, ClockRecord):
            self._clock.feed(record)
        elif isinstance(record, EndRecord) and record.final:
            self.final_ns = record.at_ns
        self._scene.feed(record)

    @property
    def armed_utc_ns(self) -> int | None:
        """UTC of the session's start; None while no clock pair is known."""
        return None if self.start_ns is None else self._clock.utc_ns(self.start_ns)

    @property
    def chapters(self) -> list[Chapter]:
        """The steps of the call as chapters; what lies before the first has one of its own."""
        steps = sorted(self._scene.steps, key=lambda step: step.began_ns)
        found = [Chapter(max(0, self._ms(step.began_ns)), step.name or step.code) for step in steps]
        return [Chapter(0, BEFORE), *found] if found and found[0].at_ms > 0 else found

    def frame_ns(self, number: int) -> int:
        """Return the time of a frame of the output grid."""
        return (self.start_ns or 0) + number * 1_000_000_000 // self._fps

    def advance(self) -> int:
        """Make all frames that are decided by what is known. Returns how many."""
        made = 0
        while self.start_ns is not None and self.frame_ns(self.frames) + HORIZON_NS <= self.known_ns:
            if self.final_ns is not None and self.frame_ns(self.frames) >= self.final_ns:
                break
            self._frame()
            made += 1
        return made

    def finish(self, end_ns: int | None = None, unreadable: Sequence[str] = ()) -> dict[str, Any]:
        """Make the rest up to the final end record, else ``end_ns``, else the last record. Returns the
        report.

        ``unreadable``: what of the journal could not be read, for the report.
        Raises NothingRecorded when no session record was fed.
        """
        if self.start_ns is None or self._mixer is None or self._output is None:
            raise NothingRecorded("the journal holds no session")
        end = self.known_ns if end_ns is None else end_ns + self._timeline.shift_ns
        end = end if self.final_ns is None else self.final_ns
        end = max(end, self.start_ns + 1_000_000_000 // self._fps)
        self._timeline.end()
        while self.frame_ns(self.frames) < end:
            self._frame()
        self._total_samples = self._mixer.sample_at(end)
        self._sound(self._total_samples + 240)
        self.duration_s = Fraction(end - self.start_ns, 1_000_000_000)
        return self._report(end) | {"unreadable": list(unreadable)}

    def _frame(self) -> None:
        assert self._output is not None
        now_ns = self.frame_ns(self.frames)
        self._scene.advance(now_ns)
        for frame in self._timeline.ready(now_ns + 1):
            self._decode(frame)
        if self._canvases:
            self._picture(self._output, now_ns)
        self.frames += 1
        if self._mixer is not None and self.frames % self._sound_every == 0:
            self._sound(self._mixer.sample_at(now_ns) - JUMP_SAMPLES)

    def _picture(self, output: Output, now_ns: int) -> None:
        """Make the frame of this time, unless nothing moves and the one before may stand longer."""
        if self._painter.arrange(now_ns):
            self._changed_ns = now_ns
        moves = now_ns - self._changed_ns < STILL_NS
        if not moves and self.frames - self._last_frame < self._stride:
            return
        canvas = self._canvases[self.pictures % CANVASES]
        self._painter.paint(canvas, now_ns)
        output.picture(canvas, self.frames)
        self.sheet.offer(canvas.planes, self.frames)
        self._last_frame = self.frames
        self.pictures += 1

    def _decode(self, frame: Frame) -> None:
        info = self._timeline.tracks.get(frame.track)
        if info is None or self._mixer is None or (info.kind == "video" and not self._canvases):
            return
        if info.kind == "video":
            if frame.track not in self._video:
                self._video[frame.track] = self._opened(frame.track, VideoDecoder)
            decoder = self._video[frame.track]
            picture = decoder.push(frame) if decoder is not None else None
            shown = self._painter.pictures.get(frame.track)
            if picture is not None and shown is not None and picture.planes.same_as(shown.planes):
                shown.at_ns = picture.at_ns
            elif picture is not None:
                self._painter.pictures[frame.track] = picture
            return
        if frame.track not in self._audio:
            self._audio[frame.track] = self._opened(frame.track, AudioDecoder)
        ears = self._audio[frame.track]
        samples = ears.push(frame) if ears is not None else None
        track = self._scene.tracks.get(frame.track)
        if samples is not None and not (track is not None and track.state == "muted"):
            self._mixer.add(info, frame, samples)

    def _opened(self, track: int, kind: Callable[[Any], Any]) -> Any:
        try:
            return kind(self._timeline.tracks[track])
        except UnknownCodec as error:
            self._refused[track] = str(error)
            return None

    def _sound(self, upto_sample: int) -> None:
        if self._mixer is None or self._output is None:
            return
        for pause in self._scene.pauses:
            self._mixer.silence(pause[0], pause[1] if len(pause) == 2 else self.known_ns + HORIZON_NS)
        samples = self._mixer.take(upto_sample)
        if self._total_samples is not None:
            samples = samples[:, : self._total_samples - self._samples]
        if samples.shape[1]:
            self._samples += samples.shape[1]
            self._output.sound(samples)

    def _missing_glyph(self, character: str) -> None:
        if character not in self.missing:
            self.missing[character] = None
            self._tell_missing(character)

    def _report(self, end_ns: int) -> dict[str, Any]:
        """Say what was shown when and what is missing; times in ms from the session's start."""
        scene, clock = self._scene, self._clock
        armed = clock.utc_ns(self.start_ns or 0)
        damage = {**self._video, **self._audio}
        return {
            "version": REPORT_VERSION,
            "timeline_version": VERSION,
            "armed_at": rfc3339(armed) if armed is not None else None,
            "duration_ms": self._ms(end_ns),
            "fps": self._fps,
            "frames": self.pictures,
            "shown": [
                {**asdict(change), "at_ms": self._ms(change.at_ns)} | {"box": list(change.box)}
                for change in self._painter.changes
            ],
            "gaps": [
                {
                    "track": gap.track,
                    "seat": self._seat_of(gap.track),
                    "from_ms": self._ms(gap.from_ns),
                    "to_ms": self._ms(gap.to_ns),
                    "reason": gap.reason,
                    "packets": gap.packets,
                }
                for gap in self._timeline.gaps
            ],
            "recovered": [
                {
                    "track": track,
                    "seat": self._seat_of(track),
                    "packets": seen["recovered"],
                    "in_band": seen["in_band"],
                }
                for track, seen in sorted(self._timeline.counts().items())
                if seen["recovered"]
            ],
            "damage": [
                self._damage(track, decoder.damage, end_ns)
                for track, decoder in sorted(damage.items())
                if decoder is not None and (decoder.damage.errors or decoder.damage.stretches)
            ],
            "refused_tracks": [{"track": t, "detail": text} for t, text in sorted(self._refused.items())],
            "layout_changes": [{"at_ms": self._ms(at), **data} for at, data in scene.changes],
            "refused_changes": [{"at_ms": self._ms(at), "detail": text} for at, text in scene.refused],
            "pauses": [[self._ms(at) for at in pause] for pause in scene.pauses],
            "steps": [
                {
                    "code": step.code,
                    "name": step.name,
                    "from_ms": self._ms(step.began_ns),
                    "to_ms": None if step.ended_ns is None else self._ms(step.ended_ns),
                    "result": step.result,
                }
                for step in scene.steps
            ],
            "clock": {
                "trusted": clock.trusted and clock.first is not None,
                "offset_ns": None if clock.first is None else clock.first.offset_ns,
                "source": None if clock.first is None else clock.first.source,
                "steps": [{"at_ms": self._ms(at), "by_ms": by // 1_000_000} for at, by in clock.steps],
            },
            "missing_glyphs": [f"U+{ord(character):04X}" for character in self.missing],
        }

    def _damage(self, track: int, damage: Damage, end_ns: int) -> dict[str, Any]:
        return {
            "track": track,
            "seat": self._seat_of(track),
            "errors": damage.errors,
            "held": damage.held,
            "stretches_ms": [
                [self._ms(part[0]), self._ms(part[1] if len(part) == 2 else end_ns)]
                for part in damage.stretches
            ],
        }

    def _seat_of(self, track: int) -> str | None:
        info = self._timeline.tracks.get(track)
        return None if info is None else info.seat

    def _ms(self, at_ns: int) -> int:
        return round((at_ns - (self.start_ns or 0)) / 1_000_000)
