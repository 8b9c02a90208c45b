"""A report as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

HIDDEN = ("runs", "samples", "steps", "rows")


def table(report: Mapping[str, Any]) -> Table:
    """Lay a report out: a column per server, a line per figure; spread in brackets."""
    servers: Mapping[str, Any] = report.get("servers") or {report["scenario"]: report}
    made = Table(title=f"{report['scenario']} · {report['machine']['cpu']} · {report['machine']['commit']}")
    made.add_column("figure")
    lines: dict[str, dict[str, str]] = {}
    for server, figures in servers.items():
        made.add_column(server, justify="right")
        for name, shown in flat(figures):
            lines.setdefault(name, {})[server] = shown
    for name, by_server in lines.items():
        made.add_row(name, *(by_server.get(server, "") for server in servers))
    if ratio := report.get("ratio"):
        made.add_section()
        for peer, value in ratio.items():
            made.add_row(f"ratio.{peer}", f"{value:g}")
    return made


def flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every figure; a measured one is its median with the ends of its spread."""
    for name, value in figures.items():
        if name in HIDDEN or name in ("machine", "scenario", "ratio", "cores"):
            continue
        if isinstance(value, Mapping) and "median" in value:
            text = f"{value['median']:g}"
            if value["min"] != value["max"]:
                text += f" [{value['min']:g}–{value['max']:g}]"
            yield prefix + name, text
        elif isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield prefix + name, f"{value:g}"
        else:
            yield prefix + name, str(value)
