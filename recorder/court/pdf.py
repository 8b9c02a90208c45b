"""The report as PDF, its text selectable, its font inside: it prints on a machine without Chinese fonts."""

from __future__ import annotations

import io
import uuid
from typing import Any
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import (
    CondPageBreak,
    Flowable,
    Image,
    KeepTogether,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
    Table,
    TableStyle,
)

from recorder.court.content import Drawing, Grid, Item, Photo, Prose, Rows, Section, Text, clock
from recorder.court.glyphs import coverage, printable, truetype

_MARGIN = 16 * mm
_WIDTH = A4[0] - 2 * _MARGIN
_LATIN = "".join(map(chr, range(0x20, 0x7F))) + "–—…无 none"
_GREY = colors.HexColor("#5b6470")
_LINE = colors.HexColor("#d5d9e0")


def render(title: Text, subtitle: str, sections: list[Section], *, good: bool) -> bytes:
    """Return the PDF, A4. Characters the shipped font lacks are printed as 〓."""
    printer = _Printer(title, subtitle, sections)
    return printer.print(title, subtitle, sections, good)


class _Printer:
    def __init__(self, title: Text, subtitle: str, sections: list[Section]) -> None:
        self._have = coverage()
        words = "".join(_words(title)) + subtitle + "".join(map(_all_words, sections)) + _LATIN
        # Fonts are registered for the process; a name of its own keeps documents made at once apart.
        self._font = f"Report-{uuid.uuid4().hex}"
        pdfmetrics.registerFont(TTFont(self._font, io.BytesIO(truetype(printable(words, self._have)))))

    def print(self, title: Text, subtitle: str, sections: list[Section], good: bool) -> bytes:
        colour = colors.HexColor("#1b7f3b" if good else "#b3261e")
        story: list[Flowable] = [self._paragraph(title, 16), self._paragraph(subtitle, 10, colour)]
        for section in sections:
            first, *rest = [flowable for item in section.items for flowable in self._item(item)]
            heading: list[Flowable] = [Spacer(1, 4 * mm), self._paragraph(section.title, 12), Spacer(1, mm)]
            # A heading stays with what it heads; a long table is broken anyway, so its beginning is enough.
            if isinstance(first, Table):
                story += [CondPageBreak(40 * mm), *heading, first, *rest]
            else:
                story += [KeepTogether([*heading, first]), *rest]
        out = io.BytesIO()
        document = SimpleDocTemplate(
            out,
            pagesize=A4,
            leftMargin=_MARGIN,
            rightMargin=_MARGIN,
            topMargin=_MARGIN,
            bottomMargin=_MARGIN,
            title=subtitle,
            author="recorder export",
        )
        document.build(story, onFirstPage=self._foot(subtitle), onLaterPages=self._foot(subtitle))
        del pdfmetrics._fonts[self._font]
        return out.getvalue()

    def _foot(self, subtitle: str) -> Any:
        def draw(canvas: Any, document: Any) -> None:
            canvas.setFont(self._font, 7)
            canvas.setFillColor(_GREY)
            canvas.drawString(_MARGIN, 8 * mm, printable(subtitle, self._have))
            canvas.drawRightString(A4[0] - _MARGIN, 8 * mm, str(document.page))

        return draw

    def _paragraph(self, text: Text, size: float = 8.5, colour: colors.Color = colors.black) -> Paragraph:
        style = ParagraphStyle("p", fontName=self._font, fontSize=size, leading=size * 1.35, textColor=colour)
        style.wordWrap = "CJK"
        if isinstance(text, str):
            return Paragraph(escape(printable(text, self._have)), style)
        main, second = (escape(printable(one, self._have)) for one in text)
        return Paragraph(f'{main} <font size="{size * 0.85:.1f}" color="#5b6470">{second}</font>', style)

    def _item(self, item: Item) -> list[Flowable]:
        if isinstance(item, Rows):
            cells = [[self._paragraph(name), self._paragraph(value)] for name, value in item.rows]
            return [self._table(cells, (1, 2))]
        if isinstance(item, Grid):
            if not item.rows:
                return [self._paragraph(("无", "none"))]
            cells = [[self._paragraph(name, 7.5) for name in item.head]]
            cells += [[self._paragraph(cell, 7) for cell in row] for row in item.rows]
            return [self._table(cells, item.widths, head=1)]
        if isinstance(item, Prose):
            return [self._paragraph(one) for one in item.paragraphs]
        if isinstance(item, Photo):
            return [_photo(item.jpeg)]
        return [_Lanes(item, self._font, self._have)]

    def _table(self, cells: list[list[Paragraph]], shares: tuple[int, ...], head: int = 0) -> Table:
        table = Table(
            cells, [_WIDTH * share / sum(shares) for share in shares], repeatRows=head, hAlign="LEFT"
        )
        table.setStyle(
            TableStyle(
                [
                    ("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE),
                    ("VALIGN", (0, 0), (-1, -1), "TOP"),
                    ("LEFTPADDING", (0, 0), (-1, -1), 0),
                    ("RIGHTPADDING", (0, 0), (-1, -1), 4),
                    ("TOPPADDING", (0, 0), (-1, -1), 2),
                    ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
                ]
            )
        )
        return table


class _Lanes(Flowable):  # type: ignore[misc]  # reportlab has no types
    """The timeline: a lane for each kind of span, at least a hair wide each, so that no gap vanishes."""

    _LEFT, _LANE = 62.0, 17.0

    def __init__(self, drawing: Drawing, font: str, have: frozenset[int]) -> None:
        super().__init__()
        self._drawing = drawing
        self._font = font
        self._have = have
        self.width, self.height = _WIDTH, self._LANE * len(drawing.lanes) + 14

    def draw(self) -> None:
        """Draw on the page's canvas; the origin is the lower left corner."""
        canvas, span_width = self.canv, _WIDTH - self._LEFT
        scale = span_width / self._drawing.duration_ms
        canvas.setFont(self._font, 7)
        for row, (title, colour, spans) in enumerate(self._drawing.lanes):
            bottom = self.height - (row + 1) * self._LANE + 3
            canvas.setFillColor(colors.black)
            canvas.drawString(0, bottom + 3, printable(" ".join(_words(title)), self._have))
            canvas.setFillColor(colors.HexColor("#eef1f5"))
            canvas.rect(self._LEFT, bottom, span_width, 11, stroke=0, fill=1)
            for span in spans:
                left, width = self._LEFT + span.from_ms * scale, (span.to_ms - span.from_ms) * scale
                canvas.setFillColor(colors.HexColor(colour))
                canvas.rect(left, bottom, max(0.5, width), 11, stroke=0, fill=1)
                label = printable(span.name, self._have)
                if pdfmetrics.stringWidth(label, self._font, 7) < width - 4:
                    canvas.setFillColor(colors.white)
                    canvas.drawString(left + 2, bottom + 3, label)
        canvas.setFillColor(_GREY)
        for share in range(5):
            x = self._LEFT + span_width * share / 4
            draw = (canvas.drawString, *[canvas.drawCentredString] * 3, canvas.drawRightString)[share]
            draw(x, 2, clock(self._drawing.duration_ms * share // 4))


def _photo(jpeg: bytes) -> Image:
    width, height = ImageReader(io.BytesIO(jpeg)).getSize()
    scale = min(_WIDTH / width, 200 * mm / height)
    return Image(io.BytesIO(jpeg), width * scale, height * scale)


def _words(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _all_words(section: Section) -> str:
    """Collect every character a section prints."""
    words = list(_words(section.title))
    for item in section.items:
        if isinstance(item, Rows):
            words += [word for row in item.rows for cell in row for word in _words(cell)]
        elif isinstance(item, Grid):
            words += [word for cell in item.head for word in _words(cell)]
            words += [cell for row in item.rows for cell in row]
        elif isinstance(item, Prose):
            words += [word for paragraph in item.paragraphs for word in _words(paragraph)]
        elif isinstance(item, Drawing):
            words += [word for title, _, _ in item.lanes for word in _words(title)]
            words += [span.name for _, _, spans in item.lanes for span in spans]
    return "".join(words)
