"""A sheet of a film's frames around its changes, to be looked at: the change is in the second picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import av
from PIL import Image, ImageDraw

AROUND = (-1, 0, 1, 3, 12)
"""Frames shown of each change, counted from its first frame."""
TILE = (384, 216)
TITLE_PX = 22


def draw_sheet(film: bytes, changes: Mapping[str, float], path: Path) -> None:
    """Draw the frames around each change (title → s in the file) into a JPEG."""
    with av.open(io.BytesIO(film), "r") as container:
        stream = container.streams.video[0]
        times = sorted(
            float(packet.pts * packet.time_base)
            for packet in container.demux(stream)
            if packet.pts is not None and packet.time_base is not None
        )
    wanted: dict[int, list[tuple[int, int]]] = {}
    for row, at_s in enumerate(changes.values()):
        first = next((index for index, time in enumerate(times) if time >= at_s - 0.001), len(times) - 1)
        for column, after in enumerate(AROUND):
            wanted.setdefault(min(max(first + after, 0), len(times) - 1), []).append((row, column))
    height = TILE[1] + TITLE_PX
    sheet = Image.new("RGB", (TILE[0] * len(AROUND), height * len(changes)), "white")
    pen = ImageDraw.Draw(sheet)
    with av.open(io.BytesIO(film), "r") as container:
        for index, frame in enumerate(container.decode(container.streams.video[0])):
            for row, column in wanted.get(index, []):
                picture = Image.fromarray(frame.to_ndarray(format="rgb24")).resize(TILE)
                sheet.paste(picture, (column * TILE[0], row * height + TITLE_PX))
                pen.text(
                    (column * TILE[0] + 4, row * height + 5),
                    f"{AROUND[column]:+d}   {times[index]:.3f} s",
                    fill="black",
                )
    for row, title in enumerate(changes):
        pen.text((130, row * height + 5), title, fill="black")
    sheet.save(path, quality=88)
