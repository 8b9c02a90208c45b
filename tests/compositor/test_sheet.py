"""The contact sheet: evenly spaced moments whatever the length, each with its time."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from compositor.canvas import new_planes
from compositor.sheet import MOST, Sheet


def sheet_of(seconds: int, fps: int = 10, every: int = 1) -> Sheet:
    sheet = Sheet(1280, 720, fps)
    planes = new_planes(1280, 720)
    for number in range(0, seconds * fps, every):
        planes.fill((40 + number // fps % 180, 128, 128))
        sheet.offer(planes, number)
    return sheet


def decoded(data: bytes | None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    assert data is not None
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)


@pytest.mark.parametrize(
    ("seconds", "distance"), [(1, 1), (5, 1), (24, 1), (25, 2), (100, 8), (600, 32), (3600, 256)]
)
def test_moments_are_evenly_spaced(seconds: int, distance: int) -> None:
    sheet = sheet_of(seconds)
    numbers = [number for number, _ in sheet._moments]
    assert len(numbers) <= MOST
    assert len(numbers) >= min(seconds, MOST // 2)
    assert numbers == list(range(0, seconds * 10, distance * 10))


def test_frames_left_out_of_the_grid_move_a_moment_a_little() -> None:
    numbers = [number for number, _ in sheet_of(60, every=7)._moments]
    assert len(numbers) >= 12
    assert {0, 1} >= {(number % 40) // 7 for number in numbers}


def test_images() -> None:
    sheet = sheet_of(6)
    assert decoded(sheet.render()).shape == (2 * 276 + 6, 4 * 486 + 6, 3)
    thumbnail = decoded(sheet.thumbnail())
    assert thumbnail.shape == (270, 480, 3)
    grey = (43 - 16) * 255 / 219
    assert float(thumbnail.mean()) == pytest.approx(grey, abs=3)


def test_nothing_without_frames() -> None:
    assert Sheet(640, 360, 25).render() is None
    assert Sheet(640, 360, 25).thumbnail() is None
