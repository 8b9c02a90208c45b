"""Sections of the scenarios that break things: crash, tamper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.report.charts import Bar, bars
from bench.report.figures import Measure, measured, number
from bench.report.section import Chart, Section, Tile, table

Report = Mapping[str, Any]


def crash(report: Report) -> Section:
    """Show what kill -9 cost, and whether everything that was recorded holds."""
    killed = ", ".join(f"{count} × {what}" for what, count in sorted(report["killed"].items()))
    made = Section(
        "Killed while recording",
        f"{report['recordings']} recordings of two-party calls; meanwhile kill -9 of {killed}, at random"
        f" (seed {report['seed']}). machine: all processes of the server at once.",
        report.get("machine") or {},
    )
    worst = max((one["max"] for one in report["lost_ms"].values()), default=0.0)
    made.tiles = [
        Tile("verified with the key", f"{report['verified']}", f"of {report['recordings']}"),
        Tile("composed", f"{report['composed']}", f"of {report['recordings']}"),
        Tile("most lost by a kill", f"{number(worst)} ms", "of what was received"),
        Tile("nonces used twice", f"{report['nonces_twice']}", f"of {report['nonces']:,}"),
        Tile("found readable", f"{report['searched']['found']}", f"in {report['searched']['bytes']:,} bytes"),
    ]
    made.verdicts = [("bad", text) for text in report["failures"]] or [("good", "Everything holds.")]
    losses = [(what, measured(one)) for what, one in report["lost_ms"].items()]
    drawn = [Bar(f"kill of {what}", "ours", one) for what, one in losses if one is not None]
    if drawn:
        made.charts = [Chart("Media lost by a kill", bars("Media lost by a kill", "ms", drawn))]
    rows = [
        [what, f"{len(one['runs'])}", number(one["median"]), number(one["max"])]
        for what, one in report["lost_ms"].items()
    ]
    made.tables = [table(["killed", "measured", "median ms lost", "worst ms lost"], rows, title="Losses")]
    return made


def tamper(report: Report) -> Section:
    """Show how many random changes verification found, by kind."""
    made = Section(
        "Random tamperings",
        "Each is done to a copy of a small recording and looked for by recorder verify; it is found if file"
        f" and byte range hold the first changed byte. Seed {report['seed']}.",
        report.get("machine") or {},
    )
    found, tampered = report["found"], report["tampered"]
    made.tiles = [
        Tile("found", f"{found:,}", f"of {tampered:,}", "good" if found == tampered else "bad"),
        Tile(
            "false alarms",
            f"{report['false_alarms']}",
            f"over {report['untouched']:,} untouched ones",
            "bad" if report["false_alarms"] else "good",
        ),
    ]
    made.verdicts = [("bad", f"missed: {one['kind']}, {one['places']}") for one in report["missed"]]
    made.verdicts = made.verdicts or [("good", "Every change was found where it is.")]
    counts = [(kind, float(one["found"])) for kind, one in report["by_kind"].items()]
    drawn = [Bar(kind, "ours", Measure(count, count, count)) for kind, count in counts]
    made.charts = [Chart("Found, by kind", bars("Found, by kind", "tamperings found", drawn))]
    rows = [[kind, f"{one['tampered']}", f"{one['found']}"] for kind, one in report["by_kind"].items()]
    made.tables = [table(["what was done", "times", "found"], rows, title="By kind")]
    return made
