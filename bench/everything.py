"""All scenarios one after the other, and several reports as one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.load.connection import JoinError
from bench.machine import machine
from bench.scenarios import capacity, compose, crash, floor, forward, join, seal, soak, tamper
from bench.scenarios.calls import Progress, pin
from bench.servers import ServerError
from bench.size import Wanted, size

Report = dict[str, Any]


@contextmanager
def own_cores() -> Iterator[None]:
    """Give this process its cores back at the end: scenarios pin it, and the next one asks what there is."""
    cores = os.sched_getaffinity(0)
    try:
        yield
    finally:
        pin(cores)


def forward_loads(plan: forward.Plan, rooms: Sequence[int], progress: Progress) -> Report:
    """Measure one load, or several: then ``loads`` has a report each and ``ratio`` the worst of them.

    A peer that cannot be measured under one load is spared the greater ones. Raises ``ServerError`` when ours
    cannot be measured.
    """
    reports: list[Report] = []
    for count in rooms:
        able = tuple(name for name in plan.peers if not any(name in report["left_out"] for report in reports))
        with own_cores():
            reports.append(asyncio.run(forward.run(replace(plan, rooms=count, peers=able), progress)))
    if len(reports) == 1:
        return reports[0]
    ratio = {name: max(report["ratio"][name] for report in reports) for name in reports[-1]["ratio"]}
    return {"scenario": "forward", "loads": reports, "ratio": ratio}


@dataclass(frozen=True)
class Length:
    """How long everything takes."""

    loads: tuple[int, ...]
    seconds: float
    runs: int
    capacity_step: int
    capacity_most: int
    soak_minutes: float
    floor_seconds: float
    crash_recordings: int
    tamperings: int
    until_s: float
    """No scenario begins later than this."""


QUICK = Length((5, 20, 40), 3.0, 1, 50, 150, 0.5, 0.5, 4, 200, 500.0)
FULL = Length((5, 20, 40), 10.0, 3, 20, 240, 60.0, 2.0, 100, 10_000, 4 * 3600.0)


def everything(
    peers: tuple[str, ...], length: Length, progress: Progress, keep: Callable[[Report], None]
) -> Report:
    """Run every scenario; one that fails is reported as ``{"scenario", "failed"}`` and the others go on.

    ``keep`` gets what there is after each, so that an ended run leaves something.
    """
    loads = forward.Plan(seconds=length.seconds, runs=length.runs, peers=peers)
    recorded = replace(loads, record=True, peers=())
    rooms = capacity.Plan(
        start=length.capacity_step,
        step=length.capacity_step,
        most=length.capacity_most,
        seconds=length.seconds,
    )
    joins = join.Plan(runs=length.runs, peers=peers)
    sealed = seal.Plan() if length.runs > 1 else seal.Plan(64, 1, 20)
    long = soak.Plan(minutes=length.soak_minutes, record=True)
    wanted = Wanted(calls=2000, minutes=4, per_day=300_000, retain="10y")
    reports: list[Report] = []
    work: list[tuple[str, Callable[[Progress], Report]]] = [
        ("forward", lambda told: forward_loads(loads, length.loads, told)),
        ("forward", lambda told: forward_loads(recorded, length.loads[-1:], told)),
        ("join", lambda told: asyncio.run(join.run(joins, told))),
        ("capacity", lambda told: asyncio.run(capacity.run(replace(rooms, record=True), told))),
        ("floor", lambda told: floor.run(floor.Plan(length.floor_seconds, length.runs), told)),
        ("seal", lambda told: seal.run(sealed, told)),
        ("compose", lambda told: {"scenario": "compose", **_composing(length, told)}),
        ("crash", lambda told: asyncio.run(crash.run(crash.Plan(length.crash_recordings), told))),
        ("tamper", lambda told: tamper.run(tamper.Plan(length.tamperings), told)),
        ("soak", lambda told: asyncio.run(soak.run(long, told))),
        ("capacity", lambda told: asyncio.run(capacity.run(replace(rooms, peers=peers), told))),
        ("size", lambda _: size(wanted, [("this run", report) for report in reports])),
    ]
    began = time.monotonic()
    for at, (name, run) in enumerate(work):
        before = f"{at + 1} of {len(work)}, {name}"
        progress(before)
        about = machine()
        if (gone_s := time.monotonic() - began) > length.until_s and name != "size":
            late = f"left out, because {gone_s / 60:.0f} minutes were over"
            reports.append({"machine": about, "scenario": name, "failed": late})
            continue
        try:
            with own_cores():
                reports.append({"machine": about, **run(_led(before, progress))})
        except (ServerError, JoinError, OSError, ValueError) as error:
            reports.append({"machine": about, "scenario": name, "failed": str(error)})
        keep({"scenario": "all", "reports": reports})
    return {"scenario": "all", "reports": reports}


def _composing(length: Length, progress: Progress) -> Report:
    """Compose everything, or in a quick run a third of a minute of a few kinds."""
    if length.runs > 1:
        return compose.run(length.runs, progress=progress)
    return compose.run(1, seconds=20, cases=compose.QUICK, progress=progress)


def _led(before: str, progress: Progress) -> Progress:
    """Return a progress that says before each line which scenario it is about."""
    return lambda line: progress(f"{before}: {line}")


def usual_peers() -> tuple[str, ...]:
    """Return the peers that are installed here."""
    return ("janus",) if shutil.which("janus") else ()


def read(paths: Sequence[Path]) -> list[Report]:
    """Read saved reports; one of several scenarios counts as those. Raises ValueError naming the file."""
    found: list[Report] = []
    for path in paths:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if not isinstance(report, dict) or not ({"scenario", "reports"} & report.keys()):
            raise ValueError(f"{path} is no report of this benchmark: it names no scenario")
        found += report.get("reports", [report])
    return found
