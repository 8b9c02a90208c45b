"""How fast recordings are sealed, opened, verified and signed, on one core, with libgcrypt and without."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.scenarios.calls import Progress

CHUNK = 256 * 1024
MEMORY = Path("/dev/shm")
SPARE = 3
"""Room wanted in the file system, in sizes of the file."""


@dataclass(frozen=True)
class Plan:
    """How much of it."""

    mebibytes: int = 1024
    runs: int = 3
    """Of which the least CPU counts."""
    call_s: int = 120
    """Length of the recorded call that is verified."""
    directory: Path | None = None
    """Where the files lie. None: in memory (/dev/shm), where there is room."""


@dataclass(frozen=True)
class Goal:
    """One figure to reach, and where it stands in the report of a library."""

    what: str
    path: tuple[str, ...]
    at_least: dict[str, float] | None = None
    at_most: dict[str, float] | None = None


_SM4 = ("suites", "sm4-gcm")
GOALS = (
    Goal(
        "seal: SM4-GCM and SM3 chain, MB per CPU-s",
        (*_SM4, "journal_mb_per_cpu_s"),
        {"with": 170, "without": 60},
    ),
    Goal("open, MB per CPU-s", (*_SM4, "open_mb_per_cpu_s"), {"with": 400, "without": 95}),
    Goal(
        "1,000-byte range, reader opened for it, ms",
        (*_SM4, "range_ms", "cold", "wall_ms"),
        None,
        {"with": 2.0},
    ),
    Goal("1,000-byte range, reader open, ms", (*_SM4, "range_ms", "warm", "wall_ms"), None, {"with": 2.0}),
    Goal("open, times openssl's SM4-CTR", ("open_times_openssl",), {"with": 4.0}),
    Goal(
        "verify without the key, times SM3 alone",
        ("verify", "times_sm3"),
        None,
        {"with": 1.3, "without": 1.3},
    ),
    Goal("checkpoints of 150 rooms, share of a core", ("signing", "share_of_core"), None, {"with": 0.005}),
)


def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Measure in child processes. Raises ValueError where a child fails, or there is no room."""
    directory = plan.directory or MEMORY
    needed = plan.mebibytes * SPARE << 20
    if plan.directory is None and (not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < needed):
        directory = Path("/var/tmp")
    if shutil.disk_usage(directory).free < needed:
        raise ValueError(f"{directory}: {needed >> 20} MiB of room are needed")
    found: dict[str, Any] = {}
    for name, off in (("with", ""), ("without", "1")):
        progress(f"{name} libgcrypt: {plan.mebibytes} MiB, {plan.runs} runs")
        found[name] = _child(plan, directory, off)
    progress("openssl speed")
    openssl = _openssl_mb_per_s()
    for one in found.values():
        one["open_times_openssl"] = round(one["suites"]["sm4-gcm"]["open_mb_per_cpu_s"] / openssl, 2)
    used = found["with"]
    return {
        "scenario": "seal",
        "mebibytes": plan.mebibytes,
        "runs": plan.runs,
        "directory": str(directory),
        "file_system": _file_system(directory),
        "openssl_sm4_ctr_mb_per_cpu_s": openssl,
        "libgcrypt": found,
        "goals": [row for goal in GOALS for row in _rows(goal, found)],
        # As a server on this machine does it; the sizing reads these.
        "seal_mb_per_cpu_s": used["suites"]["sm4-gcm"]["media_mb_per_cpu_s"],
        "open_mb_per_cpu_s": used["suites"]["sm4-gcm"]["open_mb_per_cpu_s"],
        "sm3_mb_per_cpu_s": used["sm3_mb_per_cpu_s"],
    }


def _child(plan: Plan, directory: Path, off: str) -> dict[str, Any]:
    order = {
        "chunks": (plan.mebibytes << 20) // CHUNK,
        "runs": plan.runs,
        "call_s": plan.call_s,
        "directory": str(directory),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "bench.scenarios.sealing"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        env={**os.environ, "SHUANGLU_NO_LIBGCRYPT": off},
        check=False,
    )
    if ran.returncode:
        raise ValueError(f"sealing: {ran.stderr.strip().splitlines()[-1:]}")
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


def _openssl_mb_per_s() -> float:
    """Return what ``openssl speed`` says of SM4-CTR on 256 KiB, in CPU time."""
    command = ["openssl", "speed", "-evp", "sm4-ctr", "-bytes", str(CHUNK), "-seconds", "2"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    line = ran.stdout.strip().splitlines()[-1:] or [""]
    if ran.returncode or not line[0].endswith("k"):
        raise ValueError(f"openssl speed: {(ran.stderr.strip() or line[0])[-200:]}")
    return round(float(line[0].split()[-1].removesuffix("k")) * 1000 / 1e6, 1)


def _file_system(directory: Path) -> str:
    """Return the type of the file system ``directory`` is on."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    under = [one for one in mounts if directory.is_relative_to(one[1])]
    return max(under, key=lambda one: len(one[1]))[2]


def _rows(goal: Goal, found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for bounds, word in ((goal.at_least, "at least"), (goal.at_most, "at most")):
        for name, bound in (bounds or {}).items():
            value: Any = found[name]
            for step in goal.path:
                value = value[step]
            reached = value >= bound if word == "at least" else value <= bound
            what = f"{goal.what}, {name} libgcrypt"
            rows.append({"what": what, "goal": f"{word} {bound:g}", "measured": value, "reached": reached})
    return rows
