"""Overlays: the clock says the frame's time in pixels, images keep their alpha, tiles cover the picture."""

from __future__ import annotations

import base64
import io
from datetime import timedelta, timezone
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compositor.canvas import Planes, new_planes
from compositor.layout import Place
from compositor.overlays import ImageError, Named, OverlaySet, image_stamp
from compositor.wallclock import ClockText, WallClock, clock_text
from recorder.records import ClockRecord
from recorder.template import parse_template
from tests.compositor.calls import START_NS, UTC_NS


def drawn(
    overlays: list[dict[str, Any]], utc_ns: int = UTC_NS, ground: int = 60, named: list[Named] | None = None
) -> Planes:
    template = parse_template({"overlays": overlays})
    found: list[str] = []
    shown = OverlaySet(1280, 720, found.append)
    shown.arrange(template.overlays, {"business_no": "B-1", "step": "风险揭示"}, named or [])
    planes = new_planes(1280, 720)
    planes.fill((ground, 128, 128))
    shown.draw(planes, utc_ns)
    return planes


def test_clock_text() -> None:
    east = timezone(timedelta(hours=8))
    assert clock_text(UTC_NS + 123_999_999, "%Y-%m-%d %H:%M:%S.%L", east) == "2026-11-26 03:54:07.123 +08:00"
    assert clock_text(UTC_NS, "%H%%%M %z|%S", timezone(-timedelta(hours=3, minutes=30))) == "16%24 -03:30|07"
    assert clock_text(None, "%H", east) == "----"
    for pattern in ("%Y-%m-%d %H:%M:%S.%L", "%L%%L %S", "%H", "%z %L"):
        quick = ClockText(pattern, east)
        for at in (None, 0, 999_999, 1_000_000, 59_999_999_999, 60_000_000_000, UTC_NS, UTC_NS + 123_999_999):
            expected = clock_text(None if at is None else UTC_NS + at, pattern, east)
            assert quick.at(None if at is None else UTC_NS + at) == expected


def test_clock_pixels_depend_on_the_frame_only() -> None:
    first = drawn([{"kind": "clock"}], UTC_NS + 40_000_000)
    again = drawn([{"kind": "clock"}], UTC_NS + 40_999_999)
    later = drawn([{"kind": "clock"}], UTC_NS + 80_000_000)
    assert np.array_equal(first.y, again.y), "the same millisecond"
    differs = np.argwhere(first.y != later.y)
    assert len(differs)
    height, width = differs.max(axis=0) - differs.min(axis=0)
    assert width < 20, "only the digit of the hundredths changed"
    assert height < 40


def test_frozen_clock_does_not_follow_a_step() -> None:
    clock = WallClock()
    assert clock.utc_ns(START_NS) is None
    clock.feed(ClockRecord(START_NS, UTC_NS, 0, "ntp", 2, "trusted"))
    clock.feed(ClockRecord(START_NS + 10**9, UTC_NS + 10**9 - 3600 * 10**9, 0, "ntp", 2, "trusted"))
    clock.feed(
        ClockRecord(START_NS + 2 * 10**9, UTC_NS + 2 * 10**9 - 3600 * 10**9, 0, "free", 16, "degraded")
    )
    assert clock.utc_ns(START_NS + 2 * 10**9) == UTC_NS + 2 * 10**9
    assert clock.steps == [(START_NS + 10**9, -3600 * 10**9)]
    assert not clock.trusted


def png(pixels: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_image_alpha() -> None:
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[:, :20] = (255, 255, 255, 255)
    pixels[:, 20:] = (255, 0, 0, 0)
    overlay = {
        "kind": "image",
        "png": base64.b64encode(png(pixels)).decode(),
        "x": 0.5,
        "y": 0.5,
        "w": 40 / 1280,
    }
    planes = drawn([overlay])
    assert (planes.y[365:395, 645:655] == 235).all()
    assert (planes.y[365:395, 665:678] == 60).all(), "what is transparent leaves no trace"
    assert (planes.v[185:195, 335:338] == 128).all(), "nor colour"
    half = drawn([overlay | {"alpha": 0.5}])
    assert abs(int(half.y[380, 650]) - (235 + 60) / 2) <= 1


def test_image_that_is_none() -> None:
    with pytest.raises(ImageError):
        image_stamp(b"no image", 10, 1.0)


def test_tile_covers_all_quarters_and_stays_faint() -> None:
    planes = drawn([{"kind": "tile", "text": "机密 {business_no}", "alpha": 0.2}])
    for y in (0, 360):
        for x in (0, 640):
            part = planes.y[y : y + 360, x : x + 640]
            assert 0.01 < (part != 60).mean() < 0.3
    assert planes.y.max() <= 60 + 0.2 * (235 - 60) + 1
    assert planes.y.min() == 60


def test_caption_only_while_a_step_is_active() -> None:
    assert (drawn([{"kind": "caption"}]).y != 60).any()
    template = parse_template({"overlays": [{"kind": "caption"}]})
    shown = OverlaySet(1280, 720, lambda character: None)
    shown.arrange(template.overlays, {"step": ""}, [])
    planes = new_planes(1280, 720)
    planes.fill((60, 128, 128))
    shown.draw(planes, UTC_NS)
    assert (planes.y == 60).all()


def test_label_lies_in_its_place_however_long() -> None:
    place = Place(640, 360, 320, 180, 0, "crop", "customer#1", "customer", "camera")
    planes = drawn([{"kind": "label"}], named=[Named(place, {"name": "欧阳" * 30}, True)])
    changed = np.argwhere(planes.y != 60)
    assert changed.min(axis=0)[0] >= 360
    assert changed.min(axis=0)[1] >= 640
    assert changed.max(axis=0)[0] < 540
    assert changed.max(axis=0)[1] < 960


def test_the_sign_has_a_red_dot() -> None:
    shown = drawn([{"kind": "sign", "alpha": 1.0}])
    red = (shown.v > 200) & (shown.u < 120)
    rows, columns = np.nonzero(red)
    assert len(rows) > 20
    assert columns.max() - columns.min() <= rows.max() - rows.min() + 2, "round"
    assert columns.max() < np.argwhere(shown.y > 200)[:, 1].max() // 2, "before its words"
