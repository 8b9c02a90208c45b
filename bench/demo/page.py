"""The evidence page: one self-contained HTML file in Chinese and English, for someone who was not there.

``Evidence`` holds what is shown, already found out; this module only writes it down. Everything from outside
is escaped here and nowhere else.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from bench.demo.glyphs import font_face

STYLE = Path(__file__).with_suffix(".css")


@dataclass(frozen=True, slots=True)
class Words:
    """One thing said in both languages."""

    chinese: str
    english: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A labelled value; ``good`` colours it (None: neither)."""

    label: Words
    value: str
    good: bool | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame of the strip."""

    caption: str
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the timeline, in s from the recording's begin."""

    from_s: float
    to_s: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of the timeline."""

    name: str
    spans: tuple[Span, ...]
    gaps: tuple[Span, ...] = ()
    colour: str = "#1f5fa8"


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A file of the recording."""

    name: str
    kind: str
    sealed_bytes: int
    plain_bytes: int
    sm3: str
    broken_at: int | None = None
    """Byte that was changed in the copy."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What verification said about the broken copy."""

    what: str
    file: str
    record: str
    byte_range: str
    time: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tampering:
    """What was done to the copy."""

    seed: int
    file: str
    offset: int
    before: int
    after: int
    findings: tuple[Finding, ...]


@dataclass(slots=True)
class Evidence:
    """Everything the page says."""

    intact: bool
    facts: list[Fact]
    pictures: list[Picture]
    duration_s: float
    lanes: list[Lane]
    clock: list[Fact]
    gaps: list[str]
    signatures: list[Fact]
    statements: list[tuple[str, str, str]]
    """(number, kind, time)"""
    files: list[SealedFile]
    tampering: Tampering
    commands: str
    credits: list[str] = field(default_factory=list)


def render(evidence: Evidence) -> str:
    """Return the page, with the glyphs of its Chinese in it: a court's machine may have no such font."""
    text = _page(evidence)
    return text.replace("/*FONT*/", font_face(text), 1)


def _page(evidence: Evidence) -> str:
    verdict = (
        '<div class="seal good">完整未改动<small>Intact, unaltered</small></div>'
        if evidence.intact
        else '<div class="seal bad">校验未通过<small>Verification failed</small></div>'
    )
    body = [
        f"<header><h1>双录证据报告<small>Dual-recording evidence report</small></h1>{verdict}</header>",
        _facts(evidence.facts),
        _title("画面", "Pictures, every one with the server's clock burnt in"),
        _strip(evidence.pictures),
        _title("时间线", "Timeline"),
        _timeline(evidence.lanes, evidence.duration_s),
        _title("缺口", "Gaps"),
        _gaps(evidence.gaps),
        _title("时钟可信度", "Clock trust"),
        _facts(evidence.clock),
        _title("签名与校验", "Signatures and verification"),
        _facts(evidence.signatures),
        _statements(evidence.statements),
        _title("密封文件", "Sealed files"),
        _files(evidence.files),
        _title("篡改试验", "What happens when one byte of a copy is changed"),
        _tampering(evidence.tampering, evidence.files),
        _title("自行校验", "Check it yourself"),
        f"<pre>{escape(evidence.commands)}</pre>",
        f"<footer>{'<br>'.join(escape(line) for line in evidence.credits)}</footer>",
    ]
    return (
        '<!doctype html><html lang="zh-CN"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>双录证据报告 · Evidence</title>'
        f"<style>/*FONT*/{STYLE.read_text(encoding='utf-8')}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _title(chinese: str, english: str) -> str:
    return f"<h2>{escape(chinese)}<small>{escape(english)}</small></h2>"


def _both(words: Words) -> str:
    return f"{escape(words.chinese)} · {escape(words.english)}"


def _facts(facts: Iterable[Fact]) -> str:
    rows = []
    for fact in facts:
        mark = {True: ' class="good"', False: ' class="bad"', None: ""}[fact.good]
        rows.append(f"<div><dt>{_both(fact.label)}</dt><dd{mark}>{escape(fact.value)}</dd></div>")
    return f'<dl class="facts">{"".join(rows)}</dl>'


def _strip(pictures: Iterable[Picture]) -> str:
    shown = [
        f'<figure><img alt="{escape(picture.caption)}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in pictures
    ]
    return f'<div class="strip">{"".join(shown)}</div>'


def _timeline(lanes: Sequence[Lane], duration_s: float) -> str:
    left, width, row = 190, 820, 30
    scale = width / max(duration_s, 0.001)
    height = row * len(lanes) + 34
    out = [f'<svg viewBox="0 0 {left + width + 10} {height}" font-size="12" font-family="inherit">']
    step = 1 if duration_s <= 12 else 5 if duration_s <= 90 else 30
    for second in range(0, int(duration_s) + 1, step):
        x = left + second * scale
        out.append(f'<line x1="{x:.1f}" y1="6" x2="{x:.1f}" y2="{height - 24}" stroke="#d9dfe6"/>')
        out.append(
            f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle" fill="#5d6b7a">{second} s</text>'
        )
    for index, lane in enumerate(lanes):
        y = 8 + index * row
        out.append(f'<text x="0" y="{y + 15}" fill="#16202c">{escape(lane.name)}</text>')
        for span in lane.spans:
            out.append(
                _bar(left + span.from_s * scale, y, (span.to_s - span.from_s) * scale, lane.colour, span)
            )
        for gap in lane.gaps:
            out.append(
                _bar(left + gap.from_s * scale, y, max((gap.to_s - gap.from_s) * scale, 3), "#c3222b", gap)
            )
    return "".join([*out, "</svg>"])


def _bar(x: float, y: float, width: float, colour: str, span: Span) -> str:
    width = max(width, 1.5)
    bar = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="21" rx="2" fill="{colour}"/>'
    if not span.label or width < 14 * len(span.label) * 0.8:
        return bar
    return f'{bar}<text x="{x + 6:.1f}" y="{y + 15}" fill="#fff">{escape(span.label)}</text>'


def _gaps(gaps: Sequence[str]) -> str:
    if not gaps:
        none = "没有缺口:收到的媒体全部在案。 · None: all media that was received is kept."
        return f'<div class="box good">{none}</div>'
    return f'<div class="box bad"><ul>{"".join(f"<li>{escape(gap)}</li>" for gap in gaps)}</ul></div>'


def _statements(statements: Sequence[tuple[str, str, str]]) -> str:
    rows = "".join(
        f'<tr><td class="mono">{escape(number)}</td><td>{escape(kind)}</td>'
        f'<td class="mono">{escape(time)}</td></tr>'
        for number, kind, time in statements
    )
    return (
        '<table style="margin-top:16px"><tr><th style="width:90px">声明<small>statement</small></th>'
        f"<th>内容<small>what it states</small></th><th>时间<small>time (UTC)</small></th></tr>{rows}</table>"
    )


def _files(files: Iterable[SealedFile]) -> str:
    rows = "".join(
        f'<tr><td class="mono file">{escape(file.name)}</td><td>{escape(file.kind)}</td>'
        f'<td class="n">{file.sealed_bytes:,}</td><td class="n">{_count(file.plain_bytes)}</td>'
        f'<td class="mono">{escape(file.sm3)}</td></tr>'
        for file in files
    )
    return (
        "<table><tr><th>文件<small>file</small></th><th>类别<small>kind</small></th>"
        '<th class="n">字节<small>bytes</small></th><th class="n">明文字节<small>plain bytes</small></th>'
        f"<th>文件摘要<small>SM3 of the file as it lies there</small></th></tr>{rows}</table>"
    )


def _count(number: int) -> str:
    return f"{number:,}" if number else "–"


def _tampering(tampering: Tampering, files: Sequence[SealedFile]) -> str:
    head = (
        "<p><b>在副本中改动了一个字节</b> · one byte of a copy was changed: "
        f'<span class="mono">{escape(tampering.file)} @ {tampering.offset:,}</span>, '
        f'<span class="mono">0x{tampering.before:02x} → 0x{tampering.after:02x}</span> '
        f'(seed <span class="mono">{tampering.seed}</span>)</p>'
    )
    rows = "".join(
        f'<tr><td class="k"><b>{escape(one.what)}</b></td><td class="mono k">{escape(one.file)}</td>'
        f'<td class="mono k">{escape(one.record or "–")}</td><td class="mono k">{escape(one.byte_range)}</td>'
        f'<td class="mono k">{escape(one.time or "–")}</td><td>{escape(one.detail)}</td></tr>'
        for one in tampering.findings
    )
    table = (
        "<table><tr><th>发现<small>finding</small></th><th>文件<small>file</small></th>"
        "<th>记录<small>record</small></th><th>字节<small>bytes</small></th>"
        f"<th>时间<small>time</small></th><th>说明<small>detail</small></th></tr>{rows}</table>"
    )
    return f'<div class="alarm">{head}{_byte_map(tampering, files)}{table}</div>'


def _byte_map(tampering: Tampering, files: Sequence[SealedFile]) -> str:
    """Draw every file as a bar as long as its bytes, the changed place in red."""
    width, between, total = 1000, 3.0, max(sum(file.sealed_bytes for file in files), 1)
    # A page of 1 KB beside segments of 3 MB would not be seen: each file gets a sliver, the rest is shared.
    sliver = 5.0
    room = width - (sliver + between) * len(files)
    x, out = 0.0, [f'<svg viewBox="0 0 {width} 54" font-size="11" style="margin:4px 0 8px">']
    for file in files:
        wide = sliver + file.sealed_bytes / total * room
        hit = file.name == tampering.file
        colour = "#edb9bc" if hit else "#9fb0c3"
        out.append(f'<rect x="{x:.1f}" y="18" width="{wide:.1f}" height="18" fill="{colour}"/>')
        if hit:
            at = x + wide * min(tampering.offset / max(file.sealed_bytes, 1), 1)
            side = "start" if at < width / 2 else "end"
            out.append(f'<rect x="{at - 1.5:.1f}" y="12" width="3" height="30" fill="#c3222b"/>')
            out.append(
                f'<text x="{at:.1f}" y="9" text-anchor="{side}" fill="#c3222b">'
                f"{escape(file.name)} @ {tampering.offset:,}</text>"
            )
        x += wide + between
    out.append(f'<text x="0" y="51" fill="#5d6b7a">{len(files)} 个文件 files, {total:,} 字节 bytes</text>')
    return "".join([*out, "</svg>"])
