"""Pages: every scenario is drawn from a real report, and nothing in it points outside."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.__main__ import app
from bench.report import html, tables
from bench.report.figures import Measure, at, measured, number

SAMPLE = Path(__file__).parent / "sample.json"
"""One report of each scenario as ``python -m bench`` wrote them, some on a busy machine."""
REPORTS: list[dict[str, Any]] = json.loads(SAMPLE.read_text(encoding="utf-8"))["reports"]
VOID = {"meta", "br", "link", "img", "input"}


class Outline(HTMLParser):
    """Ids, links and open elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "xlink:href", "src", "action", "data", "poster", "srcset"):
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


def look(page: str) -> Outline:
    """Return the page's outline, after what must hold for every page."""
    outline = Outline(page)
    assert not outline.open
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert not [one for one, count in Counter(outline.ids).items() if count > 1]
    assert not {"script", "link", "img", "iframe", "object", "image"} & outline.tags.keys()
    assert not re.search(r"https?://|@import|//cdn|url\((?!#)", page)
    assert "nan" not in re.sub(r"[a-zA-Z]+nan|nan[a-zA-Z]+", "", page)
    return outline


@pytest.mark.parametrize("at", range(len(REPORTS)), ids=[report["scenario"] for report in REPORTS])
def test_every_scenario_is_drawn(at: int) -> None:
    report = REPORTS[at]
    page = html(report)
    outline = look(page)
    assert outline.tags["svg"] >= 1
    assert outline.tags["section"] == 1
    machine = report["machine"]
    for part in (machine["cpu"], machine["commit"], machine["kernel"], machine["at"][:10]):
        assert part in page
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in tables(report):
        console.print(table)
    assert report["scenario"] in console.export_text()


def test_sample_has_every_scenario() -> None:
    found = {report["scenario"] for report in REPORTS}
    assert found == {
        *("forward", "join", "capacity", "soak", "live", "floor", "compose", "seal", "size"),
        *("crash", "tamper"),
    }


def test_all_of_them_on_one_page() -> None:
    page = html({"scenario": "all", "reports": REPORTS})
    outline = look(page)
    assert outline.tags["section"] == len(REPORTS)
    assert "prefers-color-scheme: dark" in page


def test_forward_reports_of_several_loads_become_lines() -> None:
    loads = next(report for report in REPORTS if "loads" in report)["loads"]
    machine = REPORTS[0]["machine"]
    together = html({"scenario": "all", "reports": [{"machine": machine, **load} for load in loads]})
    assert "by load" in together
    assert look(together).tags["section"] == 1
    one = html({"machine": machine, **loads[0]})
    assert "by load" not in one
    recorded = [{"machine": machine, **loads[0]}, {"machine": machine, **loads[1], "record": True}]
    assert look(html({"scenario": "all", "reports": recorded})).tags["section"] == 2


def test_the_worst_row_is_marked() -> None:
    report = next(report for report in REPORTS if report["scenario"] == "size")
    page = html(report)
    assert page.count('class="worst"') == len(report["policies"])
    assert report["worst"]["row"] in page


def test_a_failed_scenario_is_shown_as_such() -> None:
    page = html({"machine": {}, "scenario": "join", "failed": "janus did not <serve>"})
    look(page)
    assert "join: failed" in page
    assert "janus did not &lt;serve&gt;" in page


def test_a_starved_generator_and_wrong_packets_are_said() -> None:
    report = copy.deepcopy(
        next(report for report in REPORTS if report["scenario"] == "forward" and "rooms" in report)
    )
    ours = report["servers"]["ours"]
    ours["skipped_ticks"] = {"median": 900, "min": 0, "max": 900, "runs": [900]}
    ours["bad"] = {"median": 3, "min": 3, "max": 3, "runs": [3]}
    page = html(report)
    assert "the generator lacked CPU" in page
    assert "3 packets arrived with another content" in page


def test_a_server_whose_cpu_cannot_be_seen_has_no_bar() -> None:
    report = copy.deepcopy(
        next(report for report in REPORTS if report["scenario"] == "forward" and "rooms" in report)
    )
    report["servers"]["https://sfu.example/whip/{room}"] = {
        **report["servers"]["ours"],
        "cpu_us_per_packet": None,
        "version": "1",
    }
    page = html(report)
    assert "Not to be seen from here: sfu.example" in page
    look(page)


def test_unknown_scenarios_are_refused() -> None:
    with pytest.raises(ValueError, match="tea"):
        html({"scenario": "tea"})


def test_report_command_joins_saved_files(tmp_path: Path) -> None:
    paths = []
    for which, report in enumerate(REPORTS[:2]):
        paths.append(tmp_path / f"{which}.json")
        paths[-1].write_text(json.dumps(report))
    page, joined = tmp_path / "page.html", tmp_path / "joined.json"
    arguments = ["report", *map(str, paths), "--html", str(page), "--json", str(joined)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    look(page.read_text(encoding="utf-8"))
    assert json.loads(joined.read_text()) == {"scenario": "all", "reports": REPORTS[:2]}


def test_size_command_names_the_option_it_refuses(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["size", "--calls", "2000", "--retain", "10x"])
    assert done.exit_code == 1
    assert "--retain" in done.output
    path = tmp_path / "size.json"
    done = CliRunner().invoke(app, ["size", "--calls", "500", "--measured", str(SAMPLE), "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert json.loads(path.read_text())["wanted"]["calls"] == 500


@pytest.mark.parametrize("rooms", ["", "5,x", "0", "5,501"])
def test_forward_refuses_rooms_it_cannot_open(rooms: str) -> None:
    done = CliRunner().invoke(app, ["forward", "--rooms", rooms])
    assert done.exit_code == 2
    assert "--rooms" in done.output


def test_figures_are_three_digits() -> None:
    shown = [number(value) for value in (0, 0.04123, 1.5, 19.14, 106.18, 2600.4, 1234567.8)]
    assert shown == ["0", "0.0412", "1.5", "19.1", "106", "2,600", "1,234,568"]
    assert number(float("nan")) == "–"


def test_figures_that_were_not_measured_are_none() -> None:
    assert measured(None) is None
    assert measured("GCM") is None
    assert measured(float("nan")) is None
    assert measured({"median": 2, "min": 1, "max": 3, "runs": [1, 2, 3]}) == Measure(2, 1, 3, 3)
    assert at({"delay_ms": {"p50": 1.5}}, "delay_ms.p99") is None
    assert Measure(2, 1, 3, 3).spread() == "1–3 in 3 runs"
