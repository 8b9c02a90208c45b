"""The shipped font and which characters it has.

Noto Sans CJK SC (SIL Open Font License 1.1), cut down at development time to the characters that names and
texts of the field need: Latin, Greek, Cyrillic, kana, signs, and every Han character the original has (all
20,976 of the basic block, extension A, 2,365 of the later extensions, so all of GB 18030 level 2 and the list
of standard characters). A machine without any font renders the same pixels.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

import recorder

FONT_PATH = Path(recorder.__file__).parent / "font" / "NotoSansCJKsc-Subset.otf"


class FontError(Exception):
    """The file is no font that can be used here."""


@lru_cache(maxsize=64)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Return the shipped font at ``size_px`` pixels per em."""
    return ImageFont.truetype(FONT_PATH, size_px, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4)
def coverage(path: Path = FONT_PATH) -> frozenset[int]:
    """Return the code points a font has, from its format 12 character map (OpenType, 'cmap').

    Raises FontError when the file is no font or has no such map.
    """
    data = path.read_bytes()
    try:
        return _coverage(data)
    except struct.error as error:
        raise FontError(f"{path.name} is cut off or no font") from error


def _coverage(data: bytes) -> frozenset[int]:
    version, tables = struct.unpack_from(">4sH", data, 0)
    if version not in (b"OTTO", b"\x00\x01\x00\x00", b"true"):
        raise FontError("not a TrueType or OpenType font")
    cmap = None
    for index in range(tables):
        tag, _, offset, _ = struct.unpack_from(">4sIII", data, 12 + 16 * index)
        if tag == b"cmap":
            cmap = offset
    if cmap is None:
        raise FontError("the font has no character map")
    (count,) = struct.unpack_from(">H", data, cmap + 2)
    for index in range(count):
        _, _, offset = struct.unpack_from(">HHI", data, cmap + 4 + 8 * index)
        (kind,) = struct.unpack_from(">H", data, cmap + offset)
        if kind == 12:
            return _groups(data, cmap + offset)
    raise FontError("the font's character map is not of format 12")


def _groups(data: bytes, offset: int) -> frozenset[int]:
    points: set[int] = set()
    (count,) = struct.unpack_from(">I", data, offset + 12)
    for index in range(count):
        first, last, glyph = struct.unpack_from(">III", data, offset + 16 + 12 * index)
        if first > last or last > 0x10FFFF:
            raise FontError("the font's character map is damaged")
        points.update(range(first + (glyph == 0), last + 1))
    return frozenset(points)


def missing_glyphs(text: str) -> list[str]:
    """Return the characters of ``text`` that the shipped font lacks, each once, in order."""
    have = coverage()
    lacking: dict[str, None] = {}
    for character in text:
        if ord(character) not in have and not _invisible(character):
            lacking[character] = None
    return list(lacking)


def _invisible(character: str) -> bool:
    """Joiners, direction marks and variation selectors take no place when the font lacks them."""
    point = ord(character)
    return (
        0x200B <= point <= 0x200F
        or 0x202A <= point <= 0x202E
        or 0xFE00 <= point <= 0xFE0F
        or 0xE0100 <= point <= 0xE01EF
        or point in (0xFEFF, 0x2060)
    )
