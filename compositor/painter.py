"""Paint one frame: places with pictures or cards, then the overlays. Only what changed is scaled again.

The base holds background and places; a frame is a copy of it (a memory copy of 1.4 MB) with overlays blended
over. Whoever asks can tell from ``arrange`` whether anything but the clock would differ.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from compositor.canvas import Canvas, Planes, blend, new_planes, scale_into, yuv
from compositor.cards import Card, Shown, draw_card
from compositor.decode import Picture
from compositor.layout import Fitted, Place, arrange, fit_picture
from compositor.overlays import Named, OverlaySet, covering_stamp
from compositor.scene import Scene, Seat
from compositor.wallclock import WallClock
from recorder.template import SignOverlay, Template

LAST_PICTURE_NS = 2_000_000_000
"""A last picture stands at most so long; then the card says that the signal is lost."""


@dataclass(slots=True)
class _Drawn:
    """What the base shows in a place."""

    content: Card | None = None
    picture: Picture | None = None
    fitted: Fitted | None = None


@dataclass(frozen=True, slots=True)
class ShownChange:
    """From ``at_ns`` on a place shows this."""

    at_ns: int
    place: int
    box: tuple[int, int, int, int]
    seat: str | None
    source: str
    shown: str
    """``picture`` or the name of a card in small letters."""
    track: int | None


class Painter:
    """Turns the scene at a time, and the newest pictures, into pixels."""

    def __init__(self, scene: Scene, clock: WallClock, missing: Callable[[str], None]) -> None:
        self.scene = scene
        self.clock = clock
        self.missing = missing
        self.pictures: dict[int, Picture] = {}
        """Newest whole picture of each video track."""
        self.changes: list[ShownChange] = []
        self._revision = -1
        self._places: list[Place] = []
        self._drawn: list[_Drawn] = []
        self._above: list[list[int]] = []
        self._noted: dict[int, tuple[Any, ...]] = {}
        template = scene.template
        self._ground = ground(template)
        self._base = new_planes(template.width, template.height)
        self._base.copy_from(self._ground)
        self._overlays = OverlaySet(template.width, template.height, missing)

    def arrange(self, now_ns: int) -> bool:
        """Bring the base to time ``now_ns``, to which the scene was advanced; tell whether anything
        changed."""
        changed = self.scene.revision != self._revision
        if self.scene.revision != self._revision:
            self._revision = self.scene.revision
            self._set_up(now_ns)
        redraw: set[int] = set()
        for index, place in enumerate(self._places):
            card, picture, track = self._content(place, now_ns)
            drawn = self._drawn[index]
            if index in redraw or card != drawn.content or picture is not drawn.picture:
                self._draw(index, card, picture)
                changed = True
                redraw.update(self._above[index])
            self._note(index, place, card, track, now_ns)
        return changed

    def paint(self, canvas: Canvas, now_ns: int) -> None:
        """Paint the frame of time ``now_ns``, for which ``arrange`` was called."""
        canvas.planes.copy_from(self._base)
        self._overlays.draw(canvas.planes, self.clock.utc_ns(now_ns))

    def _set_up(self, now_ns: int) -> None:
        """Lay out places and overlays anew."""
        scene, template = self.scene, self.scene.template
        if scene.paused:
            places = [Place(0, 0, template.width, template.height, 0, "contain", None, "", "camera")]
        else:
            places = arrange(template.layout, scene.parties(), template.width, template.height)
        if places != self._places:
            self._places = places
            self._drawn = [_Drawn() for _ in places]
            self._above = [
                [j for j in range(i + 1, len(places)) if _overlap(places[i], places[j])]
                for i in range(len(places))
            ]
            self._base.copy_from(self._ground)
        named = []
        for place in [] if scene.paused else places:
            seat = scene.seats.get(place.seat) if place.seat is not None else None
            if seat is not None:
                muted = place.source == "camera" and scene.microphone_muted(seat.seat)
                named.append(Named(place, _seat_values(self._values(now_ns), [seat]), muted))
        for index in [index for index in self._noted if index >= len(places)]:
            del self._noted[index]
        overlays = [o for o in template.overlays if not (scene.paused and isinstance(o, SignOverlay))]
        self._overlays.arrange(overlays, self._values(now_ns), named)

    def _values(self, now_ns: int) -> dict[str, str]:
        info = self.scene.info
        keys = ("business_no", "room", "tenant", "recording", "attempt")
        values = {key: str(info[key]) for key in keys if info.get(key) is not None}
        metadata = info.get("metadata")
        for key, value in metadata.items() if isinstance(metadata, dict) else ():
            values[f"metadata.{key}"] = str(value)
        utc_ns = self.clock.utc_ns(int(info.get("armed_ns", now_ns)))
        if utc_ns is not None:
            zone = timezone(timedelta(hours=8))
            values["date"] = (
                datetime.fromtimestamp(utc_ns // 1_000_000_000, UTC).astimezone(zone).strftime("%Y-%m-%d")
            )
        step = self.scene.step
        values["step"] = step.name if step is not None else ""
        return _seat_values(values, [seat for seat in self.scene.seats.values() if seat.present])

    def _content(self, place: Place, now_ns: int) -> tuple[Card | None, Picture | None, int | None]:
        """Decide what a place shows: a picture, or the card that says why there is none."""
        scene = self.scene
        if scene.paused:
            return Card(Shown.PAUSED, "", ""), None, None
        if place.seat is None or place.seat not in scene.seats:
            gone = next((s for s in scene.seats.values() if s.role == place.role and not s.present), None)
            if gone is not None and place.source == "camera":
                return Card(Shown.LEFT, gone.name or gone.identity, gone.role), None, None
            shown = Shown.WAITING if place.source == "camera" else Shown.NO_SHARE
            return Card(shown, "", place.role), None, None
        seat = scene.seats[place.seat]
        name = seat.name or seat.identity
        if not seat.present:
            return Card(Shown.LEFT, name, seat.role), None, None
        track = scene.track_of(place.seat, place.source)
        if track is None:
            return (
                Card(Shown.NO_CAMERA if place.source == "camera" else Shown.NO_SHARE, name, seat.role),
                None,
                None,
            )
        number = track.info.track
        if track.state == "muted":
            return Card(Shown.MUTED, name, seat.role), None, number
        if track.state == "ended":
            return Card(Shown.ENDED, name, seat.role), None, number
        picture = self.pictures.get(number)
        if picture is not None and picture.at_ns >= track.since_ns - LAST_PICTURE_NS:
            if now_ns - picture.at_ns <= LAST_PICTURE_NS:
                return None, picture, number
            return Card(Shown.LOST, name, seat.role), None, number
        starting = now_ns - track.since_ns <= LAST_PICTURE_NS and track.state == "live"
        return Card(Shown.STARTING if starting else Shown.LOST, name, seat.role), None, number

    def _draw(self, index: int, card: Card | None, picture: Picture | None) -> None:
        place, drawn = self._places[index], self._drawn[index]
        view = self._base.box(place.x, place.y, place.w, place.h)
        if card is not None or picture is None:
            if card is not None:
                draw_card(view, card, self.scene.template.background, self.missing)
            drawn.content, drawn.picture, drawn.fitted = card, None, None
            return
        planes = picture.planes
        fitted = fit_picture(place.fit, planes.width, planes.height, place.w, place.h)
        if drawn.fitted is None or drawn.fitted.target != fitted.target or self._overlapped(index):
            view.copy_from(self._ground.box(place.x, place.y, place.w, place.h))
        scale_into(view.box(*fitted.target), planes.box(*fitted.source))
        drawn.content, drawn.picture, drawn.fitted = None, picture, fitted

    def _overlapped(self, index: int) -> bool:
        """Whether something below was painted into this place's margins."""
        return any(index in above for above in self._above[:index])

    def _note(self, index: int, place: Place, card: Card | None, track: int | None, now_ns: int) -> None:
        shown = "picture" if card is None else card.shown.name.lower()
        box = (place.x, place.y, place.w, place.h)
        key = (box, place.seat, place.source, shown, track)
        if self._noted.get(index) != key:
            self._noted[index] = key
            self.changes.append(ShownChange(now_ns, index, *key))


def ground(template: Template) -> Planes:
    """Return what lies behind all places: the background's colour, its picture over it."""
    planes = new_planes(template.width, template.height)
    planes.fill(yuv(template.background))
    if template.background_png is not None:
        png = base64.b64decode(template.background_png)
        blend(planes, covering_stamp(png, template.width, template.height), 0, 0)
    return planes


def _overlap(one: Place, other: Place) -> bool:
    across = one.x < other.x + other.w and other.x < one.x + one.w
    return across and one.y < other.y + other.h and other.y < one.y + one.h


def _seat_values(values: dict[str, str], seats: list[Seat]) -> dict[str, str]:
    joined = {
        key: " · ".join(filter(None, (getattr(seat, key) for seat in seats)))
        for key in ("identity", "role", "name", "seat")
    }
    return values | joined
