"""The shipped font covers what the field needs; what it lacks is drawn as its code point and reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compositor.fonts import FONT_PATH, FontError, coverage, missing_glyphs
from compositor.text import GlyphRow, Style, masks, text_stamp, text_width


def gb2312() -> str:
    out = []
    for row in range(0xB0, 0xF8):
        for cell in range(0xA1, 0xFF):
            try:
                out.append(bytes([row, cell]).decode("gb2312"))
            except UnicodeDecodeError:
                continue
    return "".join(out)


def test_covers_gb2312_the_basic_block_and_rare_names() -> None:
    assert len(gb2312()) == 6763
    assert missing_glyphs(gb2312()) == []
    assert missing_glyphs("".join(map(chr, range(0x4E00, 0x9FA6)))) == []
    assert missing_glyphs("㛃䶮𠮷𬎆𫖯𫘝䥽喆堃犇骉羴〇·。,:()¥") == []
    assert FONT_PATH.stat().st_size < 8 << 20
    assert (FONT_PATH.parent / "OFL.txt").read_text().count("SIL OPEN FONT LICENSE") == 1


def test_no_font_is_refused(tmp_path: Path) -> None:
    data = FONT_PATH.read_bytes()
    for index, content in enumerate((b"", b"GIF89a" * 9, data[:100], b"OTTO" + bytes(300))):
        path = tmp_path / f"{index}.otf"
        path.write_bytes(content)
        with pytest.raises(FontError):
            coverage(path)


def test_missing_glyph_is_drawn_as_its_code_point_and_reported() -> None:
    found: list[str] = []
    style = Style(32)
    letters, outlined = masks("王\U0002fffe", style, found.append)
    assert found == ["\U0002fffe"]
    box = letters[:, text_width("王", 32) + style.padding_px :]
    other, _ = masks("王\U0002fffd", style, found.append)
    assert not np.array_equal(letters, other), "another code point looks different"
    assert box.max() == 1.0
    assert 0.1 < box.mean() < 0.6, "neither empty nor filled"
    assert (outlined >= letters).all()


def test_text_is_legible_on_dark_and_light() -> None:
    stamp = text_stamp("双录 REC 123", Style(28, shade=0.45))
    alpha = 255 - stamp.keep
    luma = stamp.y / np.maximum(alpha, 1)
    for ground in (16, 235):
        shown = (ground * stamp.keep + stamp.y) / 255
        assert shown.max() - shown.min() > 90, ground
    assert luma[alpha == 255].max() > 230


def test_clock_row_changed_in_place_equals_a_new_one() -> None:
    row = GlyphRow(Style(25, shade=0.45))
    assert row.height % 2 == 0
    width = row.stamp("2026-11-25 19:54:07.123 +08:00").width
    for text in ("2026-11-25 19:54:07.163 +08:00", "2026-11-25 19:54:08.003 +08:00", "----", "2026-11-25"):
        changed, new = row.stamp(text), GlyphRow(Style(25, shade=0.45)).stamp(text)
        for name in ("y", "u", "v", "keep", "keep_half"):
            assert np.array_equal(getattr(changed, name), getattr(new, name)), text
        assert changed.width % 2 == 0
        assert len(text) < 30 or changed.width == width
