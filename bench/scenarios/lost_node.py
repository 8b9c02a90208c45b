"""A node and its disk destroyed in mid-call, with uploads on: what is lost, recovered from the store alone.

Each round a whole server (control, worker) records a two-party call while a real S3 server on this machine
takes its segments. At a random moment every process of the node is killed and its data directory deleted;
only the keys survive, as they do in an operator's safe. Then ``recorder recover URL`` runs with nothing but
the store and the keys. Loss is counted against what the node had received: packets of each track come every
40 ms or sooner, so from the last kept one to the kill is what the kill cost; the worst track counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load.clip import Clip, packetised
from bench.load.engine import Engine
from bench.processes import alive
from bench.scenarios.calls import Calls, Progress, pin_generator
from bench.scenarios.material import VP8_360P, talking_head, voice
from bench.servers import ServerError
from bench.servers.ours import Ours
from recorder.journal import JournalReader
from recorder.keys import FileProvider, read_sidecar
from recorder.records import RtpRecord
from tests.recorder.s3 import S3Server, serving

LONGEST_LOSS_S = 12.0
PATIENCE_S = 180.0
"""For a start on a busy machine, which is not what is measured."""
EARLIEST_S, LATEST_S = 12.0, 34.0
"""After the recording's start; what is younger than a segment and its upload is lost whole."""


@dataclass(frozen=True)
class Plan:
    """What is done."""

    rounds: int = 20
    seed: int = 0
    """0: a new one, printed in the report."""


async def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run all rounds. Raises ``ServerError`` where a server or a recovery fails."""
    seed = plan.seed or random.SystemRandom().randrange(1, 1 << 31)
    moments = random.Random(seed)
    cores, ours = pin_generator()
    face = packetised(VP8_360P.mime, [data for data, _ in talking_head(1, VP8_360P)], stamped=False)
    speech = Clip("audio/opus", [[data] for data in voice(120.0)], 20, 960, stamped=False)
    rounds: list[dict[str, Any]] = []
    with serving() as s3:
        for number in range(plan.rounds):
            after_s = moments.uniform(EARLIEST_S, LATEST_S)
            progress(f"round {number + 1} of {plan.rounds}: the node dies {after_s:.1f} s into the call")
            with tempfile.TemporaryDirectory(prefix="lost-node-") as safe, Engine(face, speech) as engine:
                rounds.append(await _round(s3, engine, cores, Path(safe), after_s))
            progress(f"round {number + 1}: {json.dumps(rounds[-1])}")
    losses = sorted(one["lost_s"] for one in rounds)
    return {
        "scenario": "lost-node",
        "seed": seed,
        "rounds": rounds,
        "store": "OpenStack Swift with its S3 API, on this machine",
        "cores": {"servers": sorted(cores), "generator": sorted(ours)},
        "lost_s": {"median": losses[len(losses) // 2], "min": losses[0], "max": losses[-1]},
        "goal_s": LONGEST_LOSS_S,
        "recovered": sum(one["recovered"] for one in rounds),
        "within_goal": sum(one["recovered"] and one["lost_s"] <= LONGEST_LOSS_S for one in rounds),
    }


async def _round(s3: S3Server, engine: Engine, cores: set[int], safe: Path, after_s: float) -> dict[str, Any]:
    site = {"endpoint": s3.endpoint, "credentials_file": str(s3.credentials(safe))}
    site_file = safe / "site.yaml"
    site_file.write_text(json.dumps(site))
    url = f"s3://{s3.bucket()}/evidence"
    listed = json.dumps([{"name": "store", "url": url, **site}])
    server = Ours(cores, record=True, settings={"SHUANGLU__STORAGE__SITES": listed})
    server.start_s = PATIENCE_S
    calls: Calls | None = None
    try:
        await server.start()
        calls = Calls(server, engine, VP8_360P.mime)
        await calls.open(1)
        recording = await server.start_recording(calls.rooms[0])
        began = time.monotonic()
        await asyncio.sleep(max(0.0, began + after_s - time.monotonic()))
        data = server.directory / "data"
        shutil.copytree(data / "secrets" / "crypto", safe / "crypto")
        (directory,) = (data / "recordings").glob(f"*/*/*/*/{recording}")
        place = directory.relative_to(data)
        killed_ns = _destroy(server)
    finally:
        if calls is not None:
            await calls.close()
        await server.end()
    await asyncio.sleep(1.0)  # what was on its way when the node died has arrived or never will
    where = f"{url}/{place}"
    common = ["--site", str(site_file), "--keys", str(safe / "crypto")]
    took = time.monotonic()
    await asyncio.to_thread(_recorder, "recover", where, *common, "--gone")
    took = time.monotonic() - took
    copy = safe / recording
    report = json.loads(
        await asyncio.to_thread(_recorder, "verify", where, *common, "--in", str(copy), "--json")
    )
    last = await asyncio.to_thread(_last_arrivals, copy, safe / "crypto")
    return {
        "killed_after_s": round(after_s, 2),
        "lost_s": round((killed_ns - min(last.values())) / 1e9, 3),
        "tracks": len(last),
        "segments": len(list((copy / "segments").iterdir())),
        "recover_s": round(took, 2),
        "recovered": report["verdict"] == "ok",
    }


def _destroy(server: Ours) -> int:
    """Kill every process of a node at once and delete its disk; returns when, on the monotonic clock."""
    processes = server.processes()
    killed_ns = time.monotonic_ns()
    for process in processes:
        os.kill(process, signal.SIGKILL)
    while any(alive(process) for process in processes):
        time.sleep(0.001)
    shutil.rmtree(server.directory / "data")
    return killed_ns


def _recorder(*arguments: str) -> str:
    """Run the public command. Raises ``ServerError`` with its last words."""
    command = [sys.executable, "-c", "from recorder.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise ServerError(f"recorder {arguments[0]}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def _last_arrivals(directory: Path, keys: Path) -> Mapping[int, int]:
    """Return when the last kept packet of each track arrived."""
    sidecar = read_sidecar(directory)
    recording = str(sidecar["recording"])
    provider = FileProvider.open(keys)
    key = provider.unwrap_now(sidecar, recording_id=recording, purpose="measure", actor="bench")
    last: dict[int, int] = {}
    for record in JournalReader(directory, key).records():
        if isinstance(record, RtpRecord):
            last[record.track] = max(last.get(record.track, 0), record.arrival_ns)
    if not last:
        raise ServerError(f"{directory} holds no packet")
    return last
