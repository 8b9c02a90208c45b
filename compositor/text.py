"""Text as stamps: letters with an outline and, where asked, a shade behind: legible on any ground.

A character that the shipped font lacks is drawn as its code point in a small box (never as an empty box), and
reported to ``missing``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from compositor.canvas import Floats, Stamp, clear_layers, join_stamps, make_stamp, over, yuv
from compositor.fonts import coverage, font, missing_glyphs

BLACK = (16, 128, 128)
OUTLINE_ALPHA = 0.75


@dataclass(frozen=True, slots=True)
class Style:
    """How letters look: em size in pixels, ``#rrggbb``, alpha and shade 0–1."""

    size_px: int
    colour: str = "#ffffff"
    alpha: float = 1.0
    shade: float = 0.0

    @property
    def outline_px(self) -> int:
        return max(1, round(self.size_px / 16))

    @property
    def padding_px(self) -> int:
        return self.outline_px + (max(2, round(self.size_px / 5)) if self.shade else 0)


@dataclass(frozen=True, slots=True)
class _Run:
    text: str
    lacking: bool


def _runs(text: str) -> list[_Run]:
    """Cut text where the font lacks a character."""
    lacking = set(missing_glyphs(text))
    have = coverage()
    runs: list[_Run] = []
    for character in text:
        if character in lacking:
            runs.append(_Run(character, True))
        elif ord(character) not in have:
            continue
        elif runs and not runs[-1].lacking:
            runs[-1] = _Run(runs[-1].text + character, False)
        else:
            runs.append(_Run(character, False))
    return runs


def _run_width(run: _Run, size_px: int) -> int:
    if run.lacking:
        return max(8, round(size_px * 1.1))
    return int(np.ceil(font(size_px).getlength(run.text)))


def text_width(text: str, size_px: int) -> int:
    """Return the advance of one line in pixels."""
    return sum(_run_width(run, size_px) for run in _runs(text))


def line_height(size_px: int) -> int:
    """Return the height of one line in pixels: what the tallest Han character and descenders need."""
    ascent, descent = 0.9, 0.22  # of the em; the font's own line gap is generous
    return int(np.ceil(size_px * (ascent + descent)))


def masks(text: str, style: Style, missing: Callable[[str], None] | None = None) -> tuple[Floats, Floats]:
    """Draw one line. Returns (letters, letters with outline), (H, W) float32 0–1, padded."""
    pad = style.padding_px
    size = style.size_px
    width = max(1, text_width(text, size)) + 2 * pad
    height = line_height(size) + 2 * pad
    images = [Image.new("L", (width, height)), Image.new("L", (width, height))]
    baseline = pad + round(size * 0.9)
    x = pad
    for run in _runs(text):
        for image, stroke in zip(images, (0, style.outline_px), strict=True):
            draw = ImageDraw.Draw(image)
            if run.lacking:
                _draw_code_point(draw, ord(run.text), x, pad, size, stroke)
            else:
                draw.text((x, baseline), run.text, 255, font(size), anchor="ls", stroke_width=stroke)
        if run.lacking and missing is not None:
            missing(run.text)
        x += _run_width(run, size)
    letters, outlined = (np.asarray(image, np.float32) / np.float32(255.0) for image in images)
    return letters, np.maximum(letters, outlined)


def _draw_code_point(draw: ImageDraw.ImageDraw, point: int, x: int, top: int, size: int, stroke: int) -> None:
    """Draw the hexadecimal code point in two rows inside a thin frame."""
    digits = f"{point:04X}" if point <= 0xFFFF else f"{point:06X}"
    half = len(digits) // 2
    w, h = max(8, round(size * 1.1)), line_height(size)
    line = max(1, size // 20)
    draw.rectangle(
        (x + 1 - stroke, top - stroke, x + w - 2 + stroke, top + h - 1 + stroke), outline=255, width=line
    )
    small = max(5, round(size * (0.44 if half == 2 else 0.36)))
    for row, part in enumerate((digits[:half], digits[half:])):
        y = top + round(h * (0.27 + 0.45 * row))
        draw.text((x + w / 2, y), part, 255, font(small), anchor="mm", stroke_width=min(stroke, 1))


def text_layers(letters: Floats, outlined: Floats, style: Style) -> tuple[Floats, ...]:
    """Colour masks: shade, outline, letters, as premultiplied (alpha, y, u, v)."""
    layers = clear_layers(*letters.shape)
    if style.shade:
        layers = over(layers, np.full_like(letters, style.shade), BLACK)
    layers = over(layers, outlined * np.float32(OUTLINE_ALPHA), BLACK)
    layers = over(layers, letters, yuv(style.colour))
    return tuple(layer * np.float32(style.alpha) for layer in layers)


def text_stamp(text: str, style: Style, missing: Callable[[str], None] | None = None) -> Stamp:
    """Return one line of text as a stamp."""
    return make_stamp(*text_layers(*masks(text, style, missing), style))


class GlyphRow:
    """A line that changes every frame (the clock): cells of equal, even width from an atlas made once."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self._atlas: dict[str, Stamp] = {}
        self._text = ""
        self._lefts: list[int] = []
        self._cell = (int(np.ceil(font(style.size_px).getlength("0"))) + 1) & ~1
        pad = style.padding_px
        self.height = (line_height(style.size_px) + 2 * pad + 1) & ~1

    def _stamp(self, character: str, left: int, right: int) -> Stamp:
        key = f"{character}{left}{right}"
        if key not in self._atlas:
            style = self.style
            pad = style.padding_px
            wide = max(self._cell, int(np.ceil(font(style.size_px).getlength(character))))
            width = (wide + left * pad + right * pad + 1) & ~1
            layers = []
            for stroke in (0, style.outline_px):
                image = Image.new("L", (width, self.height))
                draw = ImageDraw.Draw(image)
                centre = left * pad + wide / 2
                at = (centre, pad + round(style.size_px * 0.9))
                draw.text(at, character, 255, font(style.size_px), anchor="ms", stroke_width=stroke)
                layers.append(np.asarray(image, np.float32) / np.float32(255.0))
            letters, outlined = layers
            self._atlas[key] = make_stamp(*text_layers(letters, np.maximum(letters, outlined), style))
        return self._atlas[key]

    def stamp(self, text: str) -> Stamp:
        """Return ``text`` as one stamp, valid until the next call: only the cells that changed are copied."""
        if len(text) != len(self._text):
            self._row = join_stamps([self._cell_of(text, index) for index in range(len(text))])
            self._lefts = [0]
            for index in range(len(text)):
                self._lefts.append(self._lefts[-1] + self._cell_of(text, index).width)
        elif text != self._text:
            for index, (new, old) in enumerate(zip(text, self._text, strict=True)):
                if new == old:
                    continue
                cell = self._cell_of(text, index)
                left, right = self._lefts[index], self._lefts[index + 1]
                if cell.width != right - left:
                    self._text = ""
                    return self.stamp(text)
                half = np.s_[:, left // 2 : right // 2]
                self._row.y[:, left:right], self._row.keep[:, left:right] = cell.y, cell.keep
                self._row.u[half], self._row.v[half] = cell.u, cell.v
                self._row.keep_half[half] = cell.keep_half
        self._text = text
        return self._row

    def _cell_of(self, text: str, index: int) -> Stamp:
        return self._stamp(text[index], int(index == 0), int(index == len(text) - 1))
