"""What it costs to make journals durable each second (`recording.fsync`): the same journals with and without.

One worker's group commit writes journals of a two-party call each, in real time, on the disk of the temporary
directory. CPU is this process's; what it wrote and how often the disk was asked is the kernel's count.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.scenarios.calls import Progress, spread
from recorder.clock import SystemClock
from recorder.journal import GroupCommit
from recorder.keys import FileProvider
from recorder.records import EndRecord, RtpRecord, SessionRecord
from recorder.sealed import DataKey

PACKETS_PER_S = 360
"""Of a two-party call, some 2 Mbit/s."""
PACKET_BYTES = 700
TICK_S = 0.05


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    journals: int = 40
    seconds: float = 10.0
    runs: int = 3


def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Write with and without, in turn."""
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(prefix="bench-sync-") as scratch:
        provider = FileProvider.create(Path(scratch) / "keys")
        for number in range(plan.runs):
            for fsync in (True, False):
                progress(f"run {number + 1} of {plan.runs}, {'with' if fsync else 'without'} fsync")
                folder = Path(scratch) / f"{number}-{fsync}"
                found[fsync].append(_once(plan, folder, provider, fsync=fsync))
    sides = {
        "with" if fsync else "without": {name: spread([run[name] for run in runs]) for name in runs[0]}
        for fsync, runs in found.items()
    }
    ratio = {
        name: round(sides["with"][name]["median"] / sides["without"][name]["median"], 3)
        for name in ("cpu_ms_per_journal_s", "disk_mb", "disk_operations")
        if sides["without"][name]["median"]
    }
    return {
        "scenario": "sync",
        "journals": plan.journals,
        "seconds": plan.seconds,
        **sides,
        "ratio": ratio,
    }


def _once(plan: Plan, folder: Path, provider: FileProvider, *, fsync: bool) -> dict[str, float]:
    clock = SystemClock()
    source = random.Random(1)
    packets = [source.randbytes(PACKET_BYTES) for _ in range(256)]
    before, cpu_s, began = _disk(folder.parent), time.process_time(), time.monotonic()
    commit = GroupCommit(provider.signer(), clock, fsync=fsync)
    journals = []
    for number in range(plan.journals):
        key, now = DataKey(f"{number}", source.randbytes(16)), clock.now_ns()
        session = SessionRecord(now, 1, {"recording": str(number), "armed_ns": now})
        journals.append(commit.open(folder / str(number), key, session))
    each = int(PACKETS_PER_S * TICK_S)
    worst_ms, asked_s = 0.0, 0.0
    while (gone_s := time.monotonic() - began) < plan.seconds:
        now = clock.now_ns()
        for journal in journals:
            journal.write([RtpRecord(1, now, source.choice(packets)) for _ in range(each)])
        if gone_s >= asked_s + 1:  # somebody starts a recording: what must be on disk before the answer
            asked_s = gone_s
            asked = time.monotonic()
            journals[0].flushed().result(60)
            worst_ms = max(worst_ms, (time.monotonic() - asked) * 1000)
        time.sleep(max(0.0, began + gone_s + TICK_S - time.monotonic()))
    for journal in journals:
        journal.close(EndRecord(clock.now_ns(), True, "x")).result(60)
    commit.close()
    took, cpu_s = time.monotonic() - began, time.process_time() - cpu_s
    after = _disk(folder.parent)
    return {
        "cpu_ms_per_journal_s": round(cpu_s * 1000 / plan.journals / took, 3),
        "disk_mb": round((after[1] - before[1]) * 512 / 1e6, 1),
        "disk_operations": float(after[0] - before[0]),
        "slowest_start_ms": round(worst_ms, 1),
    }


def _disk(folder: Path) -> tuple[int, int]:
    """Return writes and flushes the folder's disk has done, and the sectors written (proc: block/stat)."""
    device = os.stat(folder).st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    if not name.exists():
        return 0, 0
    fields = [int(one) for one in name.read_text().split()]
    return fields[4] + (fields[15] if len(fields) > 15 else 0), fields[6]
