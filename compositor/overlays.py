"""Overlays as stamps on the canvas: made when the scene changes, blended on every frame."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from compositor.canvas import Floats, Planes, SparseStamp, Stamp, blend, make_stamp, over, rgb_to_yuv, yuv
from compositor.layout import Place
from compositor.text import GlyphRow, Style, masks, text_layers, text_stamp, text_width
from compositor.wallclock import ClockText
from recorder.template import (
    Anchor,
    CaptionOverlay,
    ClockOverlay,
    ImageOverlay,
    LabelOverlay,
    SignOverlay,
    TextOverlay,
    TileOverlay,
    fill_text,
    time_zone,
)

Values = Mapping[str, str]
Written = TextOverlay | CaptionOverlay | LabelOverlay | ClockOverlay | SignOverlay
RED = "#e53935"
SOURCE_NAMES = {"screen": " · 屏幕 screen", "document": " · 文档 document"}
"""What a label adds for a picture that is not the seat's face."""


class ImageError(Exception):
    """An overlay's image cannot be decoded."""


@dataclass(frozen=True, slots=True)
class _Still:
    stamp: Stamp
    x: int
    y: int

    def draw(self, canvas: Planes, utc_ns: int | None) -> None:
        blend(canvas, self.stamp, self.x, self.y)


@dataclass(frozen=True, slots=True)
class _Tiled:
    stamp: SparseStamp

    def draw(self, canvas: Planes, utc_ns: int | None) -> None:
        self.stamp.blend(canvas)


class _Clock:
    def __init__(self, overlay: ClockOverlay, width: int, height: int, row: GlyphRow) -> None:
        self._overlay = overlay
        self._text = ClockText(overlay.format, time_zone(overlay.zone))
        self._row = row
        self._size = (width, height)

    def draw(self, canvas: Planes, utc_ns: int | None) -> None:
        stamp = self._row.stamp(self._text.at(utc_ns))
        overlay = self._overlay
        x, y = _corner(overlay.anchor, overlay.x, overlay.y, *self._size, stamp.width, stamp.height)
        blend(canvas, stamp, x, y)


@dataclass(frozen=True, slots=True)
class Named:
    """What a label can say of the place it lies in."""

    place: Place
    values: Values
    muted: bool


def _corner(
    anchor: Anchor, x: float, y: float, width: int, height: int, stamp_w: int, stamp_h: int
) -> tuple[int, int]:
    """Return the top left pixel of a stamp whose ``anchor`` point lies at x, y of a width x height area."""
    left, top = x * width, y * height
    if anchor in ("top", "center", "bottom"):
        left -= stamp_w / 2
    elif anchor.endswith("right"):
        left -= stamp_w
    if anchor in ("left", "center", "right"):
        top -= stamp_h / 2
    elif anchor.startswith("bottom"):
        top -= stamp_h
    return round(left), round(top)


class OverlaySet:
    """All overlays of one moment's scene, ready to be drawn frame after frame in the template's order."""

    def __init__(self, width: int, height: int, missing: Callable[[str], None]) -> None:
        self._width = width
        self._height = height
        self._missing = missing
        self._items: list[_Still | _Tiled | _Clock] = []
        self._made: dict[Any, Any] = {}

    def draw(self, canvas: Planes, utc_ns: int | None) -> None:
        """Blend every overlay over ``canvas``; ``utc_ns`` is the frame's wall-clock time."""
        for item in self._items:
            item.draw(canvas, utc_ns)

    def arrange(self, overlays: Sequence[Any], values: Values, named: Sequence[Named]) -> None:
        """Make the stamps for a new scene. What did not change is taken over."""
        made, self._made = self._made, {}
        self._items = []

        def once(key: Any, make: Callable[[], Any]) -> Any:
            self._made[key] = made[key] if key in made else make()
            return self._made[key]

        key: tuple[str, ...]
        for overlay in overlays:
            if isinstance(overlay, ClockOverlay):
                key = ("clock", overlay.model_dump_json())
                self._items.append(once(key, partial(self._clock, overlay)))
            elif isinstance(overlay, ImageOverlay):
                key = ("image", overlay.model_dump_json())
                self._items.append(once(key, partial(self._image, overlay)))
            elif isinstance(overlay, TileOverlay):
                text = fill_text(overlay.text, values).strip()
                if text:
                    key = ("tile", overlay.model_dump_json(), text)
                    self._items.append(once(key, partial(self._tile, overlay, text)))
            elif isinstance(overlay, LabelOverlay):
                self._labels(overlay, named, once)
            elif isinstance(overlay, TextOverlay | CaptionOverlay | SignOverlay):
                if isinstance(overlay, CaptionOverlay) and not values.get("step"):
                    continue
                text = fill_text(overlay.text, values).strip()
                if text:
                    key = (overlay.model_dump_json(), text)
                    self._items.append(once(key, partial(self._line, overlay, text)))

    def _style(self, overlay: Written) -> Style:
        size_px = max(8, round(overlay.size * self._height))
        return Style(size_px, overlay.colour, overlay.alpha, overlay.shade)

    def _clock(self, overlay: ClockOverlay) -> _Clock:
        return _Clock(overlay, self._width, self._height, GlyphRow(self._style(overlay)))

    def _line(self, overlay: TextOverlay | CaptionOverlay | SignOverlay, text: str) -> _Still:
        text, style = _fitted(text, self._style(overlay), self._width)
        make = sign_stamp if isinstance(overlay, SignOverlay) else text_stamp
        stamp = make(text, style, self._missing)
        at = _corner(
            overlay.anchor, overlay.x, overlay.y, self._width, self._height, stamp.width, stamp.height
        )
        return _Still(stamp, *at)

    def _labels(
        self, overlay: LabelOverlay, named: Sequence[Named], once: Callable[[Any, Callable[[], Any]], Any]
    ) -> None:
        for name in named:
            text = fill_text(overlay.text, name.values).strip()
            text += SOURCE_NAMES.get(name.place.source, "")
            if name.muted:
                text += " (已静音 muted)"
            if text.strip():
                place = name.place
                key = (overlay.model_dump_json(), text, place)
                self._items.append(once(key, partial(self._label, overlay, text, place)))

    def _label(self, overlay: LabelOverlay, text: str, place: Place) -> _Still:
        text, style = _fitted(text, self._style(overlay), place.w)
        stamp = text_stamp(text, style, self._missing)
        x, y = _corner(overlay.anchor, overlay.x, overlay.y, place.w, place.h, stamp.width, stamp.height)
        return _Still(stamp, place.x + x, place.y + y)

    def _image(self, overlay: ImageOverlay) -> _Still:
        stamp = image_stamp(overlay.data(), max(2, round(overlay.w * self._width)), overlay.alpha)
        at = _corner(
            overlay.anchor, overlay.x, overlay.y, self._width, self._height, stamp.width, stamp.height
        )
        return _Still(stamp, *at)

    def _tile(self, overlay: TileOverlay, text: str) -> _Tiled:
        return _Tiled(SparseStamp(tile_stamp(overlay, text, self._width, self._height, self._missing)))


def _fitted(text: str, style: Style, width: int) -> tuple[str, Style]:
    """Shrink letters, at most to 60 %, then cut, so that a line is no wider than 96 % of ``width``."""
    room = width * 0.96 - 2 * style.padding_px
    wide = text_width(text, style.size_px)
    if wide <= room:
        return text, style
    size_px = max(8, round(style.size_px * 0.6), int(style.size_px * room / wide))
    smaller = replace(style, size_px=size_px)
    while len(text) > 1 and text_width(text, size_px) > room:
        text = text[: -max(2, len(text) // 16)].rstrip("…") + "…"
    return text, smaller


def sign_stamp(text: str, style: Style, missing: Callable[[str], None]) -> Stamp:
    """Return one line of text with a red dot before it."""
    letters, outlined = masks("\u3000" + text, style, missing)
    middle, radius = style.padding_px + style.size_px / 2, style.size_px * 0.3
    rows, columns = np.mgrid[0 : letters.shape[0], 0 : letters.shape[1]].astype(np.float32)
    away = np.hypot(columns + 0.5 - middle, rows + 0.5 - middle - style.size_px * 0.06)
    dot = np.clip(radius + 0.5 - away, 0.0, 1.0) * np.float32(style.alpha)
    return make_stamp(*over(text_layers(letters, outlined, style), dot, yuv(RED)))


def image_stamp(png: bytes, width: int, alpha: float) -> Stamp:
    """Decode a PNG, scale it to ``width`` pixels, keep its alpha. Raises ImageError."""

    def scaled(image: Image.Image) -> Image.Image:
        height = max(2, round(image.height * width / image.width))
        return image.resize((width, height), Image.Resampling.LANCZOS)

    return _decoded_stamp(png, scaled, alpha)


def covering_stamp(png: bytes, width: int, height: int) -> Stamp:
    """Decode a PNG and let its middle cover a width x height area, keep its alpha. Raises ImageError."""
    return _decoded_stamp(
        png, lambda image: ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS), 1.0
    )


def _decoded_stamp(png: bytes, scale: Callable[[Image.Image], Image.Image], alpha: float) -> Stamp:
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            # premultiplied while scaling: transparent pixels must not bleed their colour over the edge
            scaled = scale(image.convert("RGBa"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"the image of an overlay cannot be read: {error}") from error
    rgba = np.asarray(scaled, np.float32)
    opacity = rgba[..., 3] / np.float32(255.0)
    zero = rgb_to_yuv(np.zeros((1, 1, 3), np.float32))
    # the conversion is affine: convert the premultiplied colour, weight only the constant part by alpha
    converted = rgb_to_yuv(rgba[..., :3])
    layers = [
        (plane - base[0, 0] + base[0, 0] * opacity) for plane, base in zip(converted, zero, strict=True)
    ]
    factor = np.float32(alpha)
    return make_stamp(opacity * factor, *(layer.astype(np.float32) * factor for layer in layers))


def tile_stamp(
    overlay: TileOverlay, text: str, width: int, height: int, missing: Callable[[str], None]
) -> Stamp:
    """Repeat a turned line of text over the whole canvas, every second row moved by half a step."""
    style = Style(max(8, round(overlay.size * height)), overlay.colour)
    letters, _ = masks(text, style, missing)
    row = max(round(overlay.gap * height), letters.shape[0])
    column = letters.shape[1] + round(overlay.gap * height)
    side = math.ceil(math.hypot(width, height)) + 2
    pattern = np.zeros((side, side), np.float32)
    for index in range(side // row + 1):
        start = -(index % 2) * (column // 2)
        for x in range(start, side, column):
            _lay(pattern, letters, x, index * row)
    turned = Image.fromarray((pattern * 255).astype(np.uint8)).rotate(
        -overlay.angle, resample=Image.Resampling.BICUBIC
    )
    left, top = (side - width) // 2, (side - height) // 2
    alpha = np.asarray(turned, np.float32)[top : top + height, left : left + width]
    alpha = alpha * np.float32(overlay.alpha / 255.0)
    y, u, v = yuv(overlay.colour)
    return make_stamp(alpha, alpha * np.float32(y), alpha * np.float32(u), alpha * np.float32(v))


def _lay(pattern: Floats, mark: Floats, x: int, y: int) -> None:
    """Put a mask into a larger one, clipped."""
    left, top = max(0, x), max(0, y)
    right, bottom = min(pattern.shape[1], x + mark.shape[1]), min(pattern.shape[0], y + mark.shape[0])
    if left < right and top < bottom:
        pattern[top:bottom, left:right] = mark[top - y : bottom - y, left - x : right - x]
