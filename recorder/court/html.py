"""The report as one HTML file: no script, no link, pictures inside; offline it looks the same for ever."""

from __future__ import annotations

import base64
from html import escape

from recorder.court.content import Drawing, Grid, Item, Photo, Prose, Rows, Section, Text, clock

_STYLE = """
body{font:15px/1.5 "Noto Sans CJK SC","Source Han Sans SC","Microsoft YaHei","PingFang SC",sans-serif;
max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1a1d21}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem;border-bottom:1px solid #c9ced6}
small{color:#5b6470;font-weight:400}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #e6e9ee;
overflow-wrap:anywhere}th{font-weight:600}.name{width:16rem}.ok{color:#1b7f3b}.bad{color:#b3261e}
img,svg{max-width:100%;height:auto}@media print{body{margin:0}}
"""
_WIDTH, _LEFT, _LANE = 960, 110, 30


def render(title: Text, subtitle: str, sections: list[Section], *, good: bool) -> bytes:
    """Return the page, UTF-8."""
    parts = [
        "<!doctype html><html lang=zh-CN><head><meta charset=utf-8>",
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{escape(subtitle)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1><p class={'ok' if good else 'bad'}>{escape(subtitle)}</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{_text(section.title)}</h2>")
        parts += [_item(item) for item in section.items]
    parts.append("</body></html>\n")
    return "".join(parts).encode()


def _text(text: Text) -> str:
    if isinstance(text, str):
        return escape(text)
    return f"{escape(text[0])} <small>{escape(text[1])}</small>"


def _item(item: Item) -> str:
    if isinstance(item, Rows):
        rows = "".join(
            f"<tr><th class=name>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in item.rows
        )
        return f"<table>{rows}</table>"
    if isinstance(item, Grid):
        head = "".join(f"<th>{_text(name)}</th>" for name in item.head)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in item.rows
        )
        return f"<table><tr>{head}</tr>{body}</table>" if item.rows else f"<p>{_text(('无', 'none'))}</p>"
    if isinstance(item, Prose):
        return "".join(f"<p>{_text(paragraph)}</p>" for paragraph in item.paragraphs)
    if isinstance(item, Photo):
        return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(item.jpeg).decode()}">'
    return _drawing(item)


def _drawing(drawing: Drawing) -> str:
    """Draw the lanes as SVG; a span is at least a pixel wide, so that no gap vanishes."""
    height = _LANE * len(drawing.lanes) + 26
    scale = (_WIDTH - _LEFT - 10) / drawing.duration_ms
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-size="12">']
    for row, (title, colour, spans) in enumerate(drawing.lanes):
        top = row * _LANE
        parts.append(f'<text x="0" y="{top + 17}">{escape(" ".join(title))}</text>')
        parts.append(
            f'<rect x="{_LEFT}" y="{top + 4}" width="{_WIDTH - _LEFT - 10}" height="18" fill="#eef1f5"/>'
        )
        for span in spans:
            left, width = _LEFT + span.from_ms * scale, max(1.0, (span.to_ms - span.from_ms) * scale)
            label = f"{span.name} {clock(span.from_ms)}–{clock(span.to_ms)}"
            parts.append(
                f'<rect x="{left:.1f}" y="{top + 4}" width="{width:.1f}" height="18" fill="{colour}">'
                f"<title>{escape(label)}</title></rect>"
            )
            if width > 14 * len(span.name):
                parts.append(
                    f'<text x="{left + 4:.1f}" y="{top + 17}" fill="#fff">{escape(span.name)}</text>'
                )
    bottom = _LANE * len(drawing.lanes) + 14
    for share in range(5):
        x = _LEFT + (_WIDTH - _LEFT - 10) * share / 4
        anchor = ("start", "middle", "middle", "middle", "end")[share]
        at = clock(drawing.duration_ms * share // 4)
        parts.append(f'<text x="{x:.1f}" y="{bottom}" text-anchor="{anchor}">{at}</text>')
    parts.append("</svg>")
    return "".join(parts)
