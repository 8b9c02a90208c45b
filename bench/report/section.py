"""A part of the page: what a scenario found, in words, in figures and in charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from bench.report.figures import Measure, label, number
from bench.report.terminal import flat

Mood = Literal["good", "fair", "bad"]


@dataclass(frozen=True)
class Tile:
    """One figure that matters."""

    title: str
    value: str
    below: str = ""
    mood: Mood | None = None


@dataclass(frozen=True)
class Chart:
    """One drawn chart, and how to read it."""

    title: str
    svg: str
    below: str = ""


@dataclass
class Section:
    """Everything about one scenario. Texts are plain, ``tables`` are HTML."""

    title: str
    about: str
    machine: Mapping[str, Any]
    verdicts: list[tuple[Mood, str]] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)

    def html(self, anchor: str) -> str:
        """Return the section's HTML."""
        words = {"good": "good", "fair": "note", "bad": "bad"}
        parts = [
            f'<section id="{anchor}"><h2>{escape(self.title)}</h2><p class="about">{escape(self.about)}</p>'
        ]
        if self.verdicts:
            lines = (
                f'<li class="{mood}"><b>{words[mood]}</b> {escape(text)}</li>' for mood, text in self.verdicts
            )
            parts.append(f'<ul class="verdicts">{"".join(lines)}</ul>')
        if self.tiles:
            parts.append(f'<div class="tiles">{"".join(map(_tile, self.tiles))}</div>')
        if self.charts:
            parts.append(f'<div class="charts">{"".join(map(_chart, self.charts))}</div>')
        parts += self.tables
        parts.append(f'<p class="made">{escape(" · ".join(self._made()))}</p></section>')
        return "".join(parts)

    def _made(self) -> Iterator[str]:
        yield from self.versions
        if at := self.machine.get("at"):
            yield str(at).replace("T", " ").replace("Z", " UTC")
        if commit := self.machine.get("commit"):
            yield f"commit {commit}"
        if load := self.machine.get("load_average"):
            yield f"load before: {load[0]:g}"


def checks(report: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Mood, str]]:
    """Yield what makes a run worth less than it looks: a busy machine, a hungry generator, wrong packets."""
    machine = report.get("machine") or {}
    load = machine.get("load_average")
    if load and load[0] > 0.5 * (machine.get("cores") or 1):
        yield "fair", f"The machine was busy before this began (load {load[0]:g}): figures may be too high."
    cores = report.get("cores") or {}
    if set(cores.get("servers", ())) & set(cores.get("generator", ())):
        yield "bad", "Server and load generator shared a core: this says little about the server."
    for peer, why in (report.get("left_out") or {}).items():
        rooms = f" at {report['rooms']} rooms" if "rooms" in report else ""
        yield "fair", f"{label(peer)} could not be measured{rooms}: {why}."
    for server, one in figures.items():
        wrong = one.get("bad", 0)
        count = wrong["max"] if isinstance(wrong, Mapping) else wrong
        if count:
            yield (
                "bad",
                f"{label(server)}: {number(count)} packets arrived with another content than was sent.",
            )


def spread_note(value: Measure) -> str:
    """Return the line under a tile's figure."""
    return value.spread()


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", folded: bool = False
) -> str:
    """Return an HTML table whose first column names things; ``folded``: behind a line one opens."""
    top = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in head)
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) for row in rows)
    body = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>{values}</tr>"
        for row, values in zip(rows, cells, strict=True)
    )
    made = f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    if folded:
        return f"<details><summary>{escape(title)}</summary>{made}</details>"
    return f"<h3>{escape(title)}</h3>{made}" if title else made


def all_figures(servers: Mapping[str, Mapping[str, Any]], title: str = "All figures") -> str:
    """Return every figure of every server as a folded table, medians with [least–greatest]."""
    lines: dict[str, dict[str, str]] = {}
    for server, figures in servers.items():
        for name, shown in flat(figures):
            lines.setdefault(name, {})[server] = shown
    rows = [[name, *(shown.get(server, "–") for server in servers)] for name, shown in lines.items()]
    return table(["figure", *map(label, servers)], rows, title=title, folded=True)


def _tile(tile: Tile) -> str:
    mood = f" {tile.mood}" if tile.mood else ""
    below = f"<small>{escape(tile.below)}</small>" if tile.below else ""
    return (
        f'<div class="tile{mood}"><span>{escape(tile.title)}</span><strong>{escape(tile.value)}</strong>'
        f"{below}</div>"
    )


def _chart(chart: Chart) -> str:
    below = f"<figcaption>{escape(chart.below)}</figcaption>" if chart.below else ""
    return f"<figure><h3>{escape(chart.title)}</h3>{chart.svg}{below}</figure>"
