"""The shipped font cut down to the characters of one page, as a CSS rule that carries it."""

from __future__ import annotations

import base64
import io

from fontTools import subset

from compositor.fonts import FONT_PATH

HAN_FROM = 0x2E80
"""From here on characters are taken from the carried font; Latin looks better in the reader's own."""


def font_face(text: str) -> str:
    """Return an ``@font-face`` rule named Evidence with the Chinese characters of ``text`` (WOFF, some
    KB).
    """
    wanted = sorted({ord(character) for character in text if ord(character) >= HAN_FROM})
    if not wanted:
        return ""
    options = subset.Options()
    options.flavor = "woff"
    options.layout_features = []
    options.notdef_outline = True
    options.desubroutinize = True
    font = subset.load_font(str(FONT_PATH), options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=wanted)
    cutter.subset(font)
    out = io.BytesIO()
    subset.save_font(font, out, options)
    data = base64.b64encode(out.getvalue()).decode()
    source = f"url(data:font/woff;base64,{data}) format('woff')"
    return f"@font-face {{ font-family:Evidence; src:{source}; unicode-range:U+{HAN_FROM:X}-10FFFF }}\n"
