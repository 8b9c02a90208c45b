"""What a composite is measured by: the delay of every tile in every frame, and who is where."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tests.media.barcode import Box, read
from tests.media.clock import ClockReader
from tests.media.film import Film
from tests.media.pictures import FPS, HEIGHT, WIDTH, Party

FRAME_MS = 1000 / FPS


@dataclass(slots=True)
class Shown:
    """One frame of the composite: what its clock says and what each tile shows."""

    at_s: float
    clock_ms: int
    """UTC as burnt in."""
    codes: dict[str, tuple[int, int] | None]
    """Tile → (party, capture time in ms), None where there is no code."""


@dataclass(frozen=True, slots=True)
class Delay:
    """How late a tile shows its party's pictures, over some frames of the composite."""

    frames: int
    """With a picture of the party."""
    median_ms: float
    """Of clock - capture time."""
    early_ms: float
    """By how much the most hurried frame was ahead of the median delay."""
    stale_ms: float
    """For how long, after the median delay, a picture still stood though a newer one had been sent; the
    worst.
    """


def look(
    film: Film, about: datetime, tiles: Mapping[str, Box], fits: Mapping[str, str] | None = None
) -> list[Shown]:
    """Read clock and codes of every frame. ``tiles``: name → place in the canvas; ``fits``: contain by
    default.
    """
    reader = ClockReader()
    frames: list[Shown] = []
    boxes = {
        name: box.placed(WIDTH, HEIGHT, (fits or {}).get(name, "contain")) for name, box in tiles.items()
    }
    for at_s, luma in film.pictures():
        if not frames:
            reader.find(luma, about)
        codes: dict[str, tuple[int, int] | None] = {}
        for name, box in boxes.items():
            stamp = read(luma, box)
            codes[name] = (stamp.party, stamp.time_ms) if stamp else None
        frames.append(Shown(at_s, reader.read_ms(luma), codes))
    return frames


def delay(
    frames: list[Shown], tile: str, party: Party, sent: Sequence[tuple[int, float]], period_ms: int = 0
) -> Delay:
    """Measure a tile against what its party sent: (time in the bar code, UTC ms of its capture) in order.

    A picture captured at c, followed by one captured at n, is right in frames whose clock is in c + D … n +
    D, where D is the constant delay of the path. A source that pauses is thus no fault of the composite.
    A source that plays a film of ``period_ms`` in a loop has every code once a round; a busy browser does not
    note every picture it sends, so for those the capture in another round tells when, and staleness is judged
    by the noted ones.
    """
    captured = [utc_ms for _, utc_ms in sent]
    by_code: dict[int, list[int]] = {}
    for index, (code, _) in enumerate(sent):
        by_code.setdefault(code, []).append(index)
    shown: list[tuple[float, float, float | None]] = []
    """Clock, capture, capture of the next picture; all in ms."""
    frames_with_party = 0
    for frame in frames:
        stamp = frame.codes[tile]
        if stamp is None or stamp[0] != party.number:
            continue
        frames_with_party += 1
        indices = [index for index in by_code.get(stamp[1], []) if captured[index] <= frame.clock_ms]
        if not indices:
            continue
        index = indices[-1]  # the first picture of a film comes twice: as the last before it begins anew
        rounds = (frame.clock_ms - captured[index]) // period_ms if period_ms else 0
        noted = not rounds and index + 1 < len(sent)
        following = captured[index + 1] if noted else None
        shown.append((frame.clock_ms, captured[index] + rounds * period_ms, following))
    if not shown:
        return Delay(frames_with_party, 0.0, 0.0, 0.0)
    middle = statistics.median(clock_ms - capture_ms for clock_ms, capture_ms, _ in shown)
    return Delay(
        frames_with_party,
        middle,
        max(0.0, max(capture_ms + middle - clock_ms for clock_ms, capture_ms, _ in shown)),
        max(
            0.0, *(clock_ms - middle - next_ms for clock_ms, _, next_ms in shown if next_ms is not None), 0.0
        ),
    )


def parties_shown(frames: list[Shown], tile: str) -> list[tuple[float, float, int | None]]:
    """Return the stretches (from s, to s, party) a tile went through; party None is no code."""
    stretches: list[tuple[float, float, int | None]] = []
    for frame in frames:
        code = frame.codes[tile]
        party = code[0] if code else None
        if stretches and stretches[-1][2] == party:
            stretches[-1] = (stretches[-1][0], frame.at_s, party)
        else:
            stretches.append((frame.at_s, frame.at_s, party))
    return stretches
