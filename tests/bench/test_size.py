"""Sizing is arithmetic: round figures in, figures out that can be checked in the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.size import NEEDED, POLICIES, Machine, Wanted, load, retention_days, size

MACHINE = {"at": "2026-01-02T03:04:05Z", "commit": "abc1234", "cpu": "A CPU", "cores": 2}
WANTED = Wanted(calls=1000, minutes=4, per_day=100_000, retain="10d", night_hours=10, busy=0.5)


def spread(value: float) -> dict[str, Any]:
    """Return a figure as the scenarios write it."""
    return {"median": value, "min": value * 0.9, "max": value * 1.1, "runs": [value] * 3}


def forward(rooms: int, cost_us: float, *, record: bool = False) -> dict[str, Any]:
    """Return a report of a room with 400 packets and 250,000 bytes a second."""
    ours = {
        "packets_per_s": spread(400.0 * rooms),
        "mbit_per_s": spread(2.0 * rooms),
        "cpu_us_per_packet": spread(cost_us),
        "kib_per_participant": spread(1024.0),
    }
    return {
        "machine": MACHINE,
        "scenario": "forward",
        "rooms": rooms,
        "parties": 2,
        "bitrate_bps": 1_000_000,
        "record": record,
        "servers": {"ours": ours},
    }


JOIN = {"machine": MACHINE, "scenario": "join", "servers": {"ours": {"cpu_ms_per_participant": spread(6.0)}}}
CAPACITY = {
    "machine": MACHINE,
    "scenario": "capacity",
    "record": True,
    "servers": {"ours": {"rooms": 100, "rooms_per_core": 100.0, "stopped": "loss 1 %"}},
}
COMPOSE = {
    "machine": MACHINE,
    "scenario": "compose",
    "seconds": 30,
    "call": {"ours_cpu_s_per_min": 24.0, "ours_bytes": 1_000_000},
    "call_evidence": {"ours_cpu_s_per_min": 12.0, "ours_bytes": 500_000},
}
SEAL = {"machine": MACHINE, "scenario": "seal", "seal_mb_per_cpu_s": 90.0}
MEASURED: list[tuple[str, Mapping[str, Any]]] = [
    ("f.json", forward(5, 60.0)),
    ("f.json", {"machine": MACHINE, "scenario": "forward", "loads": [forward(20, 30.0), forward(40, 20.0)]}),
    ("r.json", forward(20, 36.0, record=True)),
    ("j.json", JOIN),
    ("c.json", CAPACITY),
    ("m.json", COMPOSE),
    ("s.json", SEAL),
]


def rows(policy: str, wanted: Wanted = WANTED) -> dict[str, float]:
    """Return a policy's rows by name."""
    return {row["name"]: row["value"] for row in size(wanted, MEASURED)["policies"][policy]["rows"]}


@pytest.mark.parametrize(("text", "days"), [("90d", 90), ("1d", 1), ("12m", 366), ("10y", 3653), ("1y", 366)])
def test_retention(text: str, days: int) -> None:
    assert retention_days(text) == days


@pytest.mark.parametrize("text", ["", "10", "y", "10x", "0d", "-1d", "1.5y", "10 y", "10Y", "999999d"])
def test_retention_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="--retain"):
        retention_days(text)


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("--calls", {"calls": 0}),
        ("--minutes", {"minutes": 0.0}),
        ("--minutes", {"minutes": float("nan")}),
        ("--per-day", {"per_day": -5}),
        ("--per-day", {"per_day": 10_000_000}),
        ("--retain", {"retain": "soon"}),
        ("--bitrate", {"bitrate_kbps": 0}),
        ("--night-hours", {"night_hours": 25.0}),
        ("--busy", {"busy": 1.2}),
        ("--machine-cores", {"machine": Machine(cores=0)}),
        ("--machine-memory-gib", {"machine": Machine(memory_gib=0)}),
    ],
)
def test_nonsense_is_refused_by_name(option: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=option):
        replace(WANTED, **change)


def test_a_machine_too_small_for_its_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="--machine-memory-gib"):
        size(replace(WANTED, machine=Machine(cores=64, memory_gib=4)), MEASURED)


def test_cores() -> None:
    found = rows("live_standard")
    assert found["forwarding"] == pytest.approx(1000 * 400 * 20e-6)  # the heaviest load counts
    assert found["recording"] == pytest.approx(1000 * 400 * 6e-6)  # at 20 rooms, measured both ways
    assert found["joining"] == pytest.approx(2000 / 240 * 0.006)
    assert found["composing"] == pytest.approx(400)
    assert found["cores to buy"] == pytest.approx((8 + 2.4 + 0.05 + 400) / 0.5)
    assert found["rooms a core carries"] == pytest.approx(10 + 400)


def test_composing_at_night_competes_with_the_day() -> None:
    found = rows("night_evidence")
    assert found["composing"] == 0
    assert found["composing at night"] == pytest.approx(100_000 * 4 * 12 / 36_000, abs=0.01)
    assert found["cores to buy"] == pytest.approx(100_000 * 4 * 12 / 36_000 / 0.5, abs=0.01)
    assert rows("none")["cores to buy"] == pytest.approx((8 + 2.4 + 0.05) / 0.5)


def test_disk_and_network() -> None:
    journal = (250_000 - 400 * 16 + 400 * 8) * 1.01
    seconds = 100_000 * 4 * 60
    live, none = rows("live_standard"), rows("none")
    assert none["journals a day"] == pytest.approx(seconds * journal / 1e12, abs=1e-3)
    assert none["composed files a day"] == 0
    assert live["composed files a day"] == pytest.approx(100_000 * 4 * 2_000_000 / 1e12)
    assert none["kept for 10d"] == pytest.approx(10 * seconds * journal / 1e12, abs=1e-2)
    assert none["written to disk"] == pytest.approx(1000 * journal / 1e6, abs=1e-3)
    assert none["write calls"] == 4500  # a chunk each 250 ms, a checkpoint each 2 s
    assert none["disk operations"] == 2000
    assert none["network out"] == none["network in"] == pytest.approx(1000 * (250_000 + 400 * 46) * 8e-6)


def test_large_chunks_close_by_their_size() -> None:
    found = rows("none", replace(WANTED, bitrate_kbps=8000))
    assert found["write calls"] > 4500 + 1000


def test_bitrate_scales_video_only() -> None:
    half = rows("none", replace(WANTED, bitrate_kbps=500))
    whole = rows("none")
    assert half["network out"] > whole["network out"] / 2
    assert half["forwarding"] == pytest.approx(1000 * (100 + 150) * 20e-6)


def test_memory_has_participants_composers_and_the_server() -> None:
    assert rows("none")["memory"] < rows("singles")["memory"] < rows("live_standard")["memory"]
    assert rows("none")["memory"] > 2000 / 1024


def test_machines_and_what_decides() -> None:
    report = size(WANTED, MEASURED)
    live = report["policies"]["live_standard"]
    assert (live["machines"], live["with_spare"], live["worst"]) == (26, 27, "composing")
    assert report["worst"] == {"policy": "live_standard", "row": "composing", "machines": 26}
    deciding = {row["name"]: row["machines"] for row in live["rows"]}
    assert deciding["cores to buy"] == 26
    slow = replace(WANTED, machine=Machine(iops=10))
    assert size(slow, MEASURED)["policies"]["none"]["worst"] == "disk operations"


def test_every_figure_says_where_it_was_measured() -> None:
    report = size(WANTED, MEASURED)
    assert list(report["figures"]) == list(NEEDED)
    assert report["figures"]["forward_us_per_packet"] == {
        "value": 20.0,
        "unit": "µs of CPU",
        "where": "f.json (40 rooms, commit abc1234, 2026-01-02, A CPU)",
    }
    for figure in report["figures"].values():
        assert figure["where"]
    for policy in report["policies"].values():
        assert {name for row in policy["rows"] for name in row["figures"]} <= set(NEEDED)


def test_without_reports_the_baseline_answers() -> None:
    report = size(Wanted(2000, 4, 300_000, "10y"), [])
    assert list(report["policies"]) == list(POLICIES)
    assert all(one["where"] for one in report["figures"].values())
    assert all(policy["machines"] >= 1 for policy in report["policies"].values())


def test_a_failed_scenario_gives_no_figures() -> None:
    failed = {"scenario": "join", "failed": "it did not start"}
    report = size(WANTED, [("x.json", failed)])
    assert "x.json" not in report["figures"]["join_ms_per_participant"]["where"]


def test_files_that_are_no_reports_are_named(tmp_path: Path) -> None:
    for name, text in (("no.json", "{"), ("list.json", "[]"), ("other.json", '{"a": 1}')):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ValueError, match=name):
            load([path])
    with pytest.raises(ValueError, match=r"absent\.json"):
        load([tmp_path / "absent.json"])
