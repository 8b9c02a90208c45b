"""Charts as inline SVG, drawn by matplotlib; colours and fonts are the page's, so they follow its theme."""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bench.report.figures import Measure, label, number

# Stand-ins that the page's variables replace: matplotlib knows no CSS.
INK, SOFT, LINE, PAPER, LIMIT = "#010101", "#010102", "#010103", "#010104", "#010105"
SERIES: Final = {name: f"#0102{at:02x}" for at, name in enumerate(("a", "b", "c", "d", "e", "f"))}
_VARIABLES: Final = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    LIMIT: "var(--bad)",
    **{stand_in: f"var(--series-{name})" for name, stand_in in SERIES.items()},
}
_FIXED: Final = {
    "ours": "a",
    "native": "a",
    "janus": "b",
    "ffmpeg": "b",
    "stock": "c",
    "aiortc": "c",
    "ours-python": "d",
    "python": "d",
    "native-libsrtp": "e",
    "floor": "f",
}
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "savefig.transparent": True,
}
WIDTH: Final = 5.0
"""Inches; 360 units of the picture: readable on a telephone, and not too large in two columns."""
WIDE: Final = 25.0
"""Bars that differ by more than this factor stand on a logarithmic scale."""
_BESIDE: Final[dict[str, Any]] = {
    "xytext": (5, 0),
    "textcoords": "offset points",
    "va": "center",
    "color": INK,
    "fontsize": 9.5,
}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Series:
    """One line: ``points`` are (x, measure)."""

    name: str
    points: Sequence[tuple[float, Measure]]
    title: str = ""


@dataclass(frozen=True)
class Bar:
    """One bar: ``key`` gives its colour."""

    title: str
    key: str
    value: Measure


def bars(title: str, unit: str, rows: Sequence[Bar], *, mark: tuple[float, str] | None = None) -> str:
    """Draw horizontal bars, the spread as a whisker, the value at its end; ``mark``: an upright line."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(0.62 + 0.36 * len(rows) + (0.2 if mark else 0))
        values = [row.value for row in rows]
        least = min((value.low for value in values if value.low > 0), default=1.0)
        most = max((value.high for value in values), default=1.0)
        wide = most / least > WIDE
        for at, row in enumerate(rows):
            place = len(rows) - 1 - at
            colour = colour_of(row.key, at)
            axes.barh(place, row.value.median, height=0.62, color=colour, zorder=2)
            _whisker(axes, row.value, place)
            axes.annotate(
                number(row.value.median),
                (max(row.value.high, row.value.median), place),
                **_BESIDE,
            )
        axes.set_yticks(range(len(rows)), [_wrapped(row.title) for row in reversed(rows)])
        for text in axes.get_yticklabels():
            text.set_color(INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        if wide:
            axes.set_xscale("log")
            axes.set_xlim(least / 2, most * 4)
            _decades(axes.xaxis)
            unit += ", logarithmic"
        else:
            axes.set_xlim(0, max(most, mark[0] if mark else 0) * 1.22 or 1)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        _plain(axes.xaxis)
        axes.set_xlabel(unit)
        if mark:
            axes.axvline(mark[0], color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(mark[1], (mark[0], len(rows) - 0.45), **{**_BESIDE, "color": LIMIT, "va": "bottom"})
            axes.set_ylim(-0.55, len(rows) - 0.1)
        return _svg(figure, title)


def grouped(title: str, unit: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Draw groups of horizontal bars (percentiles of every server, say) with one legend."""
    rows = [Bar("", bar.key, bar.value) for _, some in groups for bar in some]
    keys = list(dict.fromkeys(row.key for row in rows))
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(0.95 + 0.28 * len(rows) + 0.16 * len(groups))
        most = max((row.value.high for row in rows), default=1.0) or 1.0
        least = min((row.value.low for row in rows if row.value.low > 0), default=1.0)
        wide = most / least > WIDE
        place, ticks = 0.0, []
        for name, some in groups:
            first = place
            for bar in some:
                colour = colour_of(bar.key, keys.index(bar.key))
                axes.barh(-place, bar.value.median, height=0.8, color=colour, zorder=2)
                _whisker(axes, bar.value, -place)
                at = (max(bar.value.high, bar.value.median, least / 2 if wide else 0), -place)
                axes.annotate(number(bar.value.median), at, **_BESIDE)
                place += 1
            ticks.append((-(first + place - 1) / 2, name))
            place += 0.55
        axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
        for text in axes.get_yticklabels():
            text.set_color(INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        if wide:
            axes.set_xscale("log")
            axes.set_xlim(least / 2, most * 5)
            _decades(axes.xaxis)
            unit += ", logarithmic"
        else:
            axes.set_xlim(0, most * 1.22)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        _plain(axes.xaxis)
        axes.set_xlabel(unit)
        if len(keys) > 1:
            titles = {bar.key: bar.title or label(bar.key) for _, some in groups for bar in some}
            handles = [mpl.patches.Patch(color=colour_of(key, at)) for at, key in enumerate(keys)]
            _legend(figure, handles, [titles[key] for key in keys])
        return _svg(figure, title)


def stacked(title: str, unit: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Draw a bar per row made of named parts (cores of each policy, say)."""
    names = list(dict.fromkeys(name for _, parts in rows for name, value in parts if value))
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(0.95 + 0.4 * len(rows))
        most = max((sum(value for _, value in parts) for _, parts in rows), default=1.0) or 1.0
        for at, (_, parts) in enumerate(rows):
            left = 0.0
            for name, value in parts:
                if value:
                    colour = colour_of("", names.index(name))
                    axes.barh(len(rows) - 1 - at, value, left=left, height=0.62, color=colour, zorder=2)
                    left += value
            axes.annotate(number(left), (left, len(rows) - 1 - at), **_BESIDE)
        axes.set_yticks(range(len(rows)), [_wrapped(name) for name, _ in reversed(rows)])
        for text in axes.get_yticklabels():
            text.set_color(INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, most * 1.2)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _plain(axes.xaxis)
        axes.set_xlabel(unit)
        handles = [mpl.patches.Patch(color=colour_of("", at)) for at, _ in enumerate(names)]
        _legend(figure, handles, names)
        return _svg(figure, title)


def lines(
    title: str,
    across: str,
    unit: str,
    series: Sequence[Series],
    *,
    limit: tuple[float, str] | None = None,
    logarithmic: bool = False,
    from_zero: bool = True,
) -> str:
    """Draw lines with the spread as whiskers; ``limit``: a level line with its name."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(2.75)
        dense = max((len(one.points) for one in series), default=0) > 14
        for at, one in enumerate(series):
            colour = colour_of(one.name, at)
            across_values = [x for x, _ in one.points]
            middles = [value.median for _, value in one.points]
            below = [max(value.median - value.low, 0) for _, value in one.points]
            above = [max(value.high - value.median, 0) for _, value in one.points]
            style: dict[str, Any] = {
                "marker": "" if dense else "o",
                "markersize": 5,
                "linewidth": 2,
                "color": colour,
            }
            if any(below) or any(above):
                axes.errorbar(
                    across_values, middles, yerr=(below, above), capsize=3, elinewidth=1.2, zorder=3, **style
                )
            else:
                axes.plot(across_values, middles, zorder=3, **style)
        if logarithmic:
            axes.set_yscale("log")
            _decades(axes.yaxis, (1.0, 2.0, 5.0))
        elif from_zero:
            most = max((value.high for one in series for _, value in one.points), default=0.0)
            axes.set_ylim(0, max(most, limit[0] if limit else 0) * 1.12 or 1)
        if limit:
            axes.axhline(limit[0], color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
            axes.annotate(
                limit[1],
                (0.01, limit[0]),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                color=LIMIT,
                fontsize=9,
            )
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="x")
        points = sorted({x for one in series for x, _ in one.points})
        if len(points) <= 8 and all(float(x).is_integer() for x in points):
            axes.set_xticks(points)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(7))
        _plain(axes.xaxis)
        _plain(axes.yaxis)
        axes.set_xlabel(across)
        axes.set_ylabel(unit)
        if len(series) > 1:
            handles = [
                mpl.lines.Line2D([], [], color=colour_of(one.name, at), linewidth=2)
                for at, one in enumerate(series)
            ]
            _legend(figure, handles, [one.title or label(one.name) for one in series])
        return _svg(figure, title)


def colour_of(key: str, at: int) -> str:
    """Return a known name's own colour, else the next one."""
    letters = list(SERIES)
    return SERIES[_FIXED.get(key) or letters[at % len(letters)]]


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _whisker(axes: Axes, value: Measure, place: float) -> None:
    if value.high > value.low:
        reach = ([max(value.median - value.low, 0)], [max(value.high - value.median, 0)])
        axes.errorbar(
            [value.median], [place], xerr=reach, color=INK, capsize=3, elinewidth=1.2, fmt="none", zorder=4
        )


def _legend(figure: Figure, handles: Sequence[Any], titles: Sequence[str]) -> None:
    figure.legend(
        handles,
        titles,
        loc="outside upper left",
        ncols=3,
        handlelength=1.0,
        columnspacing=1.2,
        labelcolor=INK,
    )


def _plain(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(float(value))))


def _decades(axis: Any, steps: Sequence[float] = (1.0,)) -> None:
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 18))


def _svg(figure: Figure, title: str) -> str:
    """Return the figure without anything that points outside the page, its ids unlike any other's."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = written.getvalue()
    inside = re.sub(r"<(metadata|style).*?</\1>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, body = inside.split(">", 1)
    view = re.search(r'viewBox="[^"]+"', head)
    assert view is not None
    prefix = f"c{next(_numbers)}-"
    body = re.sub(r' id="', f' id="{prefix}', body)
    body = re.sub(r"url\(#", f"url(#{prefix}", body)
    body = re.sub(r'xlink:href="#', f'href="#{prefix}', body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", body)
    body = re.sub("|".join(_VARIABLES), lambda found: _VARIABLES[found.group()], body)
    spoken = escape(title, quote=True)
    return f'<svg {view.group()} role="img" aria-label="{spoken}">{body.strip()}'
