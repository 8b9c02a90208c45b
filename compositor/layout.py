"""Where each picture goes: pure geometry from a layout, the parties and what they share.

Seats keep their place: agents first, then in the order in which seats first joined, whoever reconnects or
switches a camera off. Layouts made for two keep two places while only one party is there, so that nothing
moves when the other joins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from recorder.template import Fit, Layout, Slot, Source

GRID_LIMIT = 16
COLUMN = {"1+2": 2, "1+3": 3}
"""Layouts of one large picture at the left and so many at its right."""


@dataclass(frozen=True, slots=True)
class Party:
    """A seat of the recording. ``shared``: the sources it shows besides its camera, such as screen."""

    seat: str
    role: str
    shared: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A rectangle of the canvas in even pixels and whose picture it shows; seat None: nobody yet."""

    x: int
    y: int
    w: int
    h: int
    z: int
    fit: Fit
    seat: str | None
    role: str
    source: Source


@dataclass(frozen=True, slots=True)
class _Subject:
    seat: str | None
    role: str
    source: Source


_Box = tuple[float, float, float, float]


def arrange(layout: Layout, parties: Sequence[Party], width: int, height: int) -> list[Place]:
    """Place everyone, lowest z first. ``parties`` are in order of first joining, the absent left away."""
    ordered = sorted(parties, key=lambda party: party.role != "agent")  # stable: agents first
    if layout.name == "custom":
        return _custom(layout, ordered, width, height)
    subjects = _from_slots(layout.slots, ordered) if layout.slots else _by_role(layout, ordered)
    boxes, fits = _geometry(layout, subjects)
    places = []
    for index, (subject, box) in enumerate(zip(subjects, boxes, strict=False)):
        slot_fit = layout.slots[index].fit if index < len(layout.slots) else None
        fit = slot_fit or layout.fit or ("contain" if subject.source != "camera" else fits[index])
        places.append(_place(box, index, fit, subject, width, height))
    return places


def _by_role(layout: Layout, ordered: Sequence[Party]) -> list[_Subject]:
    cameras = [_Subject(party.seat, party.role, "camera") for party in ordered]
    shared = [
        _Subject(party.seat, party.role, source)
        for source in ("screen", "document")
        for party in ordered
        if source in party.shared
    ]
    if layout.name == "single":
        others = [c for c in cameras if c.role != "agent"]
        return [*shared, *others, *cameras, _Subject(None, "customer", "camera")][:1]
    if layout.name in ("side_by_side", "top_bottom", "pip"):
        cameras = _two_at_least(cameras)
    if layout.name == "pip":
        # the customer is what the record is about: large; whatever is shared is larger still
        cameras = [*[c for c in cameras if c.role != "agent"], *[c for c in cameras if c.role == "agent"]]
        return [*shared, *cameras][:9]
    if layout.name == "document":
        documents = sorted(shared, key=lambda subject: subject.source != "document")
        documents = documents or [_Subject(None, "", "document")]
        return [documents[0], *_two_at_least(cameras)[:2]]
    if layout.name in COLUMN:
        places = 1 + COLUMN[layout.name]
        wanted = [*shared[:1], *_customer_first(cameras)]
        return [*wanted, *[_Subject(None, "", "camera")] * places][:places]
    if layout.name == "screen_main":
        if shared:
            return [shared[0], *cameras, *shared[1:]][:9]
        return _customer_first(cameras)[:9]
    return [*cameras, *shared][:GRID_LIMIT] or [_Subject(None, "customer", "camera")]


def _two_at_least(cameras: list[_Subject]) -> list[_Subject]:
    """Keep places for an agent (first) and one other party, whoever has come so far."""
    agents = [c for c in cameras if c.role == "agent"]
    others = [c for c in cameras if c.role != "agent"]
    if len(cameras) >= 2:
        return cameras
    agents = agents or [_Subject(None, "agent", "camera")]
    others = others or [_Subject(None, "customer", "camera")]
    return [*agents, *others]


def _customer_first(cameras: list[_Subject]) -> list[_Subject]:
    """Put who is large before the others: the first that is no agent, with places for both kept."""
    cameras = _two_at_least(cameras)
    main = next((c for c in cameras if c.role != "agent"), cameras[0])
    return [main, *[c for c in cameras if c is not main]]


def _from_slots(slots: Sequence[Slot], ordered: Sequence[Party]) -> list[_Subject]:
    """Bind slots to parties: by seat, else by role in order, else to whoever is not bound yet."""
    taken: set[tuple[str, Source]] = {(slot.seat, slot.source) for slot in slots if slot.seat is not None}
    roles = {slot.role for slot in slots if slot.role is not None}
    bound: list[_Subject] = []
    for slot in slots:
        if slot.seat is not None:
            role = next((party.role for party in ordered if party.seat == slot.seat), slot.role or "")
            bound.append(_Subject(slot.seat, role, slot.source))
            continue
        found = None
        for party in ordered:
            free = (party.seat, slot.source) not in taken
            shows = slot.source == "camera" or slot.source in party.shared
            fits = party.role == slot.role if slot.role is not None else party.role not in roles
            if free and shows and fits:
                found = party
                break
        if found is None:
            bound.append(_Subject(None, slot.role or "", slot.source))
        else:
            taken.add((found.seat, slot.source))
            bound.append(_Subject(found.seat, found.role, slot.source))
    return bound


def _geometry(layout: Layout, subjects: Sequence[_Subject]) -> tuple[list[_Box], list[Fit]]:
    count = len(subjects)
    contain: list[Fit] = ["contain"] * count
    small: list[Fit] = ["contain"]  # the first is large, the others small
    small += ["crop"] * (count - 1)
    if layout.name == "single":
        return [(0.0, 0.0, 1.0, 1.0)], contain
    if layout.name == "side_by_side" and count <= 2:
        return [(index / count, 0.0, 1.0 / count, 1.0) for index in range(count)], contain
    if layout.name == "top_bottom" and count <= 2:
        return [(0.0, index / count, 1.0, 1.0 / count) for index in range(count)], contain
    if layout.name == "pip":
        return _pip(layout, count), small
    if layout.name in ("document", *COLUMN):
        return _beside(count, 1.0), small
    if layout.name == "screen_main":
        return _beside(count, 0.25), small
    return _grid(count), contain


def _grid(count: int) -> list[_Box]:
    """Cut the canvas into equal cells; a last row with fewer is centred."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    boxes = []
    for index in range(count):
        row, column = divmod(index, columns)
        in_row = min(columns, count - row * columns)
        left = (columns - in_row) / 2
        boxes.append(((left + column) / columns, row / rows, 1 / columns, 1 / rows))
    return boxes


def _pip(layout: Layout, count: int) -> list[_Box]:
    """One over the whole canvas, the others small, stacked away from the chosen corner."""
    boxes: list[_Box] = [(0.0, 0.0, 1.0, 1.0)]
    small, margin = 0.25, 0.02
    for index in range(count - 1):
        column, row = divmod(index, 3)
        x = margin + column * (small + margin)
        y = margin + row * (small + margin)
        if layout.corner.endswith("right"):
            x = 1.0 - x - small
        if layout.corner.startswith("bottom"):
            y = 1.0 - y - small
        boxes.append((x, y, small, small))
    return boxes


def _beside(count: int, highest: float) -> list[_Box]:
    """One large at the left, the others, none higher than ``highest``, in a column at the right."""
    faces = count - 1
    if faces == 0:
        return [(0.0, 0.0, 1.0, 1.0)]
    small = min(highest, 1.0 / faces)
    top = (1.0 - small * faces) / 2
    return [(0.0, 0.0, 0.75, 1.0), *((0.75, top + index * small, 0.25, small) for index in range(faces))]


def _custom(layout: Layout, ordered: Sequence[Party], width: int, height: int) -> list[Place]:
    places = []
    for slot, subject in zip(layout.slots, _from_slots(layout.slots, ordered), strict=True):
        if slot.x is None or slot.y is None or slot.w is None or slot.h is None:
            raise ValueError("a slot of a custom layout has no box")
        default: Fit = "crop" if slot.source == "camera" else "contain"
        box = (slot.x, slot.y, slot.w, slot.h)
        places.append(_place(box, slot.z, slot.fit or layout.fit or default, subject, width, height))
    return sorted(places, key=lambda place: place.z)


def _place(box: _Box, z: int, fit: Fit, subject: _Subject, width: int, height: int) -> Place:
    """Round to even pixels by the edges, so that neighbours meet without a seam."""
    left, top = _even(box[0] * width), _even(box[1] * height)
    right, bottom = _even((box[0] + box[2]) * width), _even((box[1] + box[3]) * height)
    w, h = max(2, right - left), max(2, bottom - top)
    x, y = min(left, width - w), min(top, height - h)
    return Place(x, y, w, h, z, fit, subject.seat, subject.role, subject.source)


def _even(pixels: float) -> int:
    return 2 * round(pixels / 2)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Which part of the source goes to which part of the place (relative to it), x y w h in even pixels."""

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]


def fit_picture(fit: Fit, width: int, height: int, place_w: int, place_h: int) -> Fitted:
    """Fit a ``width`` x ``height`` picture into a place: crop its middle, contain it whole, or stretch it."""
    if fit == "crop":
        scale = max(place_w / width, place_h / height)
        w, h = min(width, _even(place_w / scale)), min(height, _even(place_h / scale))
        w, h = max(2, w & ~1), max(2, h & ~1)
        return Fitted((((width - w) // 2) & ~1, ((height - h) // 2) & ~1, w, h), (0, 0, place_w, place_h))
    if fit == "contain":
        scale = min(place_w / width, place_h / height)
        w = min(place_w, max(2, _even(width * scale)))
        h = min(place_h, max(2, _even(height * scale)))
        return Fitted(
            (0, 0, width & ~1, height & ~1), (((place_w - w) // 2) & ~1, ((place_h - h) // 2) & ~1, w, h)
        )
    return Fitted((0, 0, width & ~1, height & ~1), (0, 0, place_w, place_h))
