"""A report as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from bench.report.figures import number

HIDDEN = ("runs", "samples", "steps", "rows", "machine", "scenario", "ratio", "cores")


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table for each measured report: one scenario, its loads, or all of them."""
    about = report.get("machine")
    for one in report.get("reports") or report.get("loads") or [report]:
        whole = {"machine": about, **one}
        if "loads" in one:
            yield from tables(whole)
        else:
            yield table(whole)


def table(report: Mapping[str, Any]) -> Table:
    """Lay a report out: a column per server, a line per figure; spread in brackets."""
    about = report.get("machine") or {}
    load = f", {report['rooms']} rooms" if "rooms" in report and "servers" in report else ""
    recorded = ", recorded" if report.get("record") else ""
    names = (f"{report['scenario']}{load}{recorded}", about.get("cpu"), about.get("commit"))
    made = Table(title=" · ".join(str(name) for name in names if name))
    if "failed" in report:
        made.add_column("failed")
        made.add_row(report["failed"])
        return made
    if report["scenario"] == "size":
        return _sized(made, report)
    if report["scenario"] == "floor":
        return _floor(made, report)
    servers: Mapping[str, Any] = report.get("servers") or {report["scenario"]: report}
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
    for peer, why in (report.get("left_out") or {}).items():
        made.add_row(f"{peer} left out", why)
    return made


def _sized(made: Table, report: Mapping[str, Any]) -> Table:
    columns = {
        "cores to buy": "cores",
        "memory": "GiB",
        "journals a day": "journals TB/day",
        "composed files a day": "files TB/day",
        f"kept for {report['wanted']['retain']}": f"TB in {report['wanted']['retain']}",
        "written to disk": "MB/s",
        "disk operations": "IOPS",
        "network out": "Mbit/s out",
    }
    made.add_column("policy")
    for title in (*columns.values(), "machines", "decided by"):
        made.add_column(title, justify="right")
    for policy in report["policies"].values():
        values = {row["name"]: number(row["value"]) for row in policy["rows"]}
        machines = f"{policy['machines']} + 1"
        made.add_row(policy["title"], *(values[name] for name in columns), machines, policy["worst"])
    return made


def _floor(made: Table, report: Mapping[str, Any]) -> Table:
    for name in ("loop", "fan-out", "µs a packet sent", "times the floor", "lost"):
        made.add_column(name, justify="right")
    for row in report["rows"]:
        low, high = row["spread_us"]
        cost = f"{row['us_per_packet_sent']:g} \\[{low:g}–{high:g}]"
        made.add_row(
            row["kind"], str(row["fan_out"]), cost, str(row.get("times_floor", "")), f"{row['lost']:g}"
        )
    return made


def flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every figure; a measured one is its median with the ends of its spread."""
    for name, value in figures.items():
        if name in HIDDEN:
            continue
        if isinstance(value, Mapping) and "median" in value:
            text = number(value["median"])
            if value["min"] != value["max"]:
                text += f" [{number(value['min'])}–{number(value['max'])}]"
            yield prefix + name, text
        elif isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, number(value)
        else:
            yield prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
