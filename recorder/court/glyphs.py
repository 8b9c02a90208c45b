"""The shipped font cut to the characters of one document, as TrueType: what PDF writers can embed.

The font (Noto Sans CJK SC) has cubic CFF outlines, reportlab embeds quadratic ones only.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from pathlib import Path

from fontTools import subset
from fontTools.pens.cu2quPen import Cu2QuPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont, newTable

FONT_PATH = Path(__file__).parent.parent / "font" / "NotoSansCJKsc-Subset.otf"
_MAX_ERROR = 1.0
"""Of 1000 units per em: a quarter of a pixel at 300 dpi and 10 pt is 6."""
_MISSING = "〓"
"""Stands for a character the font lacks (GB/T 15835 calls it 代字号), so that it is never left out unseen."""


def printable(text: str, have: frozenset[int]) -> str:
    """Replace what the font lacks and what is not to be printed."""
    return "".join(one if ord(one) in have else " " if one.isspace() else _MISSING for one in text)


def coverage() -> frozenset[int]:
    """Return the code points of the shipped font."""
    with TTFont(FONT_PATH, lazy=True) as font:
        return frozenset(font.getBestCmap())


def truetype(characters: Iterable[str]) -> bytes:
    """Return a TrueType font with these characters' glyphs; what the font lacks is not in it."""
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    options = subset.Options()
    options.layout_features = []
    options.notdef_outline = True
    options.hinting = False
    options.drop_tables += ["VORG", "vhea", "vmtx", "GSUB", "GPOS", "GDEF", "BASE", "DSIG"]
    font = TTFont(FONT_PATH, lazy=True)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes={ord(one) for one in (*characters, _MISSING, " ")})
    cutter.subset(font)
    names = font.getGlyphOrder()
    outlines = font.getGlyphSet()
    glyphs = {}
    for name in names:
        pen = TTGlyphPen(outlines)
        outlines[name].draw(Cu2QuPen(pen, _MAX_ERROR, reverse_direction=True))
        glyphs[name] = pen.glyph()
    font["loca"], font["glyf"] = newTable("loca"), newTable("glyf")
    font["glyf"].glyphOrder, font["glyf"].glyphs = names, glyphs
    font["hmtx"].metrics = {name: (font["hmtx"][name][0], _left(glyphs[name])) for name in names}
    font["maxp"].tableVersion = 0x00010000
    for name in ("maxZones", "maxTwilightPoints", "maxStorage", "maxFunctionDefs", "maxInstructionDefs"):
        setattr(font["maxp"], name, 1 if name == "maxZones" else 0)
    for name in ("maxStackElements", "maxSizeOfInstructions"):
        setattr(font["maxp"], name, 0)
    font["post"].formatType = 3.0
    del font["CFF "]
    font.sfntVersion = "\000\001\000\000"
    out = io.BytesIO()
    font.save(out)
    return out.getvalue()


def _left(glyph: object) -> int:
    return int(getattr(glyph, "xMin", 0) or 0)
