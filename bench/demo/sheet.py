"""Pictures out of the composite: the contact sheet and the strip of the evidence page, and what its clock
shows.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import av
from PIL import Image, ImageDraw

from compositor.fonts import font
from tests.media.clock import ClockError, ClockReader
from tests.media.film import read_film

COLUMNS, ROWS, SHOT_WIDTH, MARGIN = 4, 3, 400, 12


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame and its time in the file."""

    at_s: float
    image: Image.Image

    def jpeg(self, width: int = 520) -> bytes:
        """Return it as JPEG of a width."""
        small = self.image.resize(
            (width, self.image.height * width // self.image.width), Image.Resampling.LANCZOS
        )
        out = io.BytesIO()
        small.save(out, "JPEG", quality=82)
        return out.getvalue()


@dataclass(frozen=True, slots=True)
class ClockCheck:
    """The burnt-in clock of every frame against the frame's place in the file."""

    frames: int
    unread: int
    worst_ms: float
    """Largest distance of clock - (begin + time in the file) from its median."""
    begin_error_ms: float
    """Median of that difference: 0 if the file's time 0 is when the recording was armed."""


def shots(path: Path, count: int) -> list[Shot]:
    """Return ``count`` frames spread over the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "FRAME"
        duration_s = (
            float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        )
        wanted = [duration_s * (index + 0.5) / count for index in range(count)]
        got: list[Shot] = []
        for frame in container.decode(stream):
            at_s = float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base else 0.0
            while wanted and at_s >= wanted[0]:
                wanted.pop(0)
                got.append(Shot(at_s, Image.fromarray(frame.to_ndarray(format="rgb24"))))
            if not wanted:
                break
    return got


def contact_sheet(path: Path, title: str, lines: list[str], into: Path) -> None:
    """Write the contact sheet of an MP4 as PNG."""
    pictures = shots(path, COLUMNS * ROWS)
    high = SHOT_WIDTH * pictures[0].image.height // pictures[0].image.width
    cell = high + 26
    head = 56 + 26 * len(lines)
    width = COLUMNS * (SHOT_WIDTH + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, head + ROWS * (cell + 4) + MARGIN), "#f4f6f8")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 10), title, "#16202c", font(28))
    for index, line in enumerate(lines):
        draw.text((MARGIN, 50 + 26 * index), line, "#4a5866", font(17))
    for index, shot in enumerate(pictures):
        row, column = divmod(index, COLUMNS)
        x, y = MARGIN + column * (SHOT_WIDTH + MARGIN), head + row * (cell + 4)
        sheet.paste(shot.image.resize((SHOT_WIDTH, high), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + high + 3), f"{shot.at_s:.2f} s", "#4a5866", font(15))
    sheet.save(into)


def check_clock(path: Path, armed_at: datetime) -> ClockCheck:
    """Read the burnt-in clock of every frame."""
    reader, differences, unread, frames = ClockReader(), [], 0, 0
    for at_s, luma in read_film(path).pictures():
        if not frames:
            reader.find(luma, armed_at)
        frames += 1
        try:
            shown_ms = reader.read_ms(luma)
        except ClockError:
            unread += 1
            continue
        differences.append(shown_ms - armed_at.timestamp() * 1000 - at_s * 1000)
    differences.sort()
    middle = differences[len(differences) // 2]
    worst = max(abs(differences[0] - middle), abs(differences[-1] - middle))
    return ClockCheck(frames, unread, worst, middle)
