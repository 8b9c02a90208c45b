"""A report, or several, as one HTML page that needs nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.report.section import Section

Report = Mapping[str, Any]
ORDER = ("forward", "join", "capacity", "soak", "live", "floor", "compose", "seal", "crash", "tamper", "size")


def html(report: Report) -> str:
    """Return the page of a report, also of several (``reports``) or of several loads (``loads``).

    Forward reports that differ in load only become one section with lines by load. Raises ValueError for a
    report of a scenario that is not known.
    """
    sections = list(_sections(list(_single(report))))
    anchors = [f"part-{at}" for at in range(len(sections))]
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    links = "".join(
        f'<a href="#{anchor}">{escape(section.title)}</a>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    navigation = f"<nav>{links}</nav>" if len(sections) > 1 else ""
    machine = report.get("machine") or next((section.machine for section in sections if section.machine), {})
    body = "".join(section.html(anchor) for anchor, section in zip(anchors, sections, strict=True))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>Shuanglu benchmarks</title>'
        f"<style>{style}</style></head><body>"
        f"<header><h1>Shuanglu media server <span>benchmarks</span></h1>{_machine(machine)}</header>"
        f"{navigation}<main>{body}</main><footer>{_FOOT}</footer></body></html>\n"
    )


_FOOT = (
    "Whiskers and brackets are the least and the greatest of the runs; figures are medians. Everything ran on"
    " one machine over loopback: compare servers within a page, not across machines. How each figure is"
    " measured and what it does not say: docs/benchmarks.md."
)


def _single(report: Report) -> Iterator[Report]:
    """Yield the reports in it, each with its machine."""
    inner: Sequence[Report] = report.get("reports") or report.get("loads") or ()
    if not inner:
        yield report
    for one in inner:
        yield from _single({"machine": report.get("machine"), **one})


def _sections(reports: Sequence[Report]) -> Iterator[Section]:
    from bench.report import calls, evidence, parts  # matplotlib starts slowly; tables need none of it
    from bench.report.section import Section

    draw: Mapping[str, Callable[[Any], Section]] = {
        "join": calls.join,
        "capacity": calls.capacity,
        "soak": calls.soak,
        "floor": parts.floor,
        "compose": parts.compose,
        "live": parts.live,
        "seal": parts.seal,
        "crash": evidence.crash,
        "tamper": evidence.tamper,
        "size": parts.size,
    }
    for report in reports:
        if report.get("scenario") not in ORDER:
            raise ValueError(f"no scenario is called {report.get('scenario')!r}: {', '.join(ORDER)}")
    for scenario in ORDER:
        some = [report for report in reports if report["scenario"] == scenario]
        good = [report for report in some if "failed" not in report]
        for report in some:
            if "failed" in report:
                made = Section(f"{scenario}: failed", "", report.get("machine") or {})
                made.verdicts.append(("bad", report["failed"]))
                yield made
        if scenario == "forward":
            for loads in _alike(good):
                yield calls.forward(loads)
        else:
            for report in good:
                yield draw[scenario](report)


def _alike(reports: Sequence[Report]) -> list[list[Report]]:
    """Group forward reports that differ in nothing but the load; of a load measured twice, the later."""
    groups: dict[tuple[Any, ...], dict[int, Report]] = {}
    for report in reports:
        kind = tuple(report[name] for name in ("record", "parties", "codec", "bitrate_bps"))
        groups.setdefault(kind, {})[report["rooms"]] = report
    return [list(loads.values()) for loads in groups.values()]


def _machine(machine: Report) -> str:
    """Return what was measured on, as a line of pairs."""
    load = machine.get("load_average")
    pairs = {
        "processor": f"{machine.get('cpu')}, {machine.get('cores')} cores" if machine.get("cpu") else None,
        "commit": machine.get("commit"),
        "measured": re.sub(r"T(\d\d:\d\d).*", r" \1 UTC", str(machine.get("at") or "")),
        "kernel": machine.get("kernel"),
        "Python": machine.get("python"),
        "load before": " ".join(f"{value:g}" for value in load) if load else None,
    }
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in pairs.items() if value
    )
    return f"<dl>{shown}</dl>" if shown else ""
