"""Calls that are forwarded, recorded, sealed and composed while they go on: what all of that costs together.

``cpu_s_per_call_minute`` is the server's whole CPU for a minute of one two-party call, by process;
``lag_s`` how far composites fell behind their calls; ``ready_s`` how long after the stop they were ready.
Everybody sends a talking head of 640x360 at 25 fps and a voice, unstamped: what is composed is what a call
looks like.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load.clip import Clip, packetised
from bench.load.engine import Engine
from bench.processes import cpu_s
from bench.scenarios.calls import SETTLE_S, Calls, Progress, pin_generator
from bench.scenarios.material import VP8_360P, talking_head, voice
from bench.servers import Ours, ServerError

POLL_S = 2.0
START_GAP_S = 3.0
"""Calls do not begin in the same second: each composer has loaded what it needs before the next begins."""
KINDS = {"compositor.job": "composers", "mediaserver.media.worker": "worker"}
"""Processes by what their command line says; the rest is the control process."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    rooms: int = 4
    seconds: float = 60.0
    profile: str = "evidence"
    muted: bool = False
    """One camera of each room is off all the time."""
    when: str = "live"


async def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run the calls on one core. Raises ``ServerError``."""
    cores, ours = pin_generator()
    server = Ours(cores, record=True, composing={"WHEN": plan.when, "LIVE_CORES": "1024"})
    face = packetised(VP8_360P.mime, [data for data, _ in talking_head(1, VP8_360P)], stamped=False)
    speech = Clip("audio/opus", [[data] for data in voice(120.0)], 20, 960, stamped=False)
    with Engine(face, speech) as engine:
        async with server:
            calls = Calls(server, engine, "video/VP8")
            try:
                await asyncio.sleep(server.rest_s)
                await calls.open(plan.rooms)
                made = []
                for room in calls.rooms:
                    made.append(await server.start_recording(room, {"profile": plan.profile}))
                    await asyncio.sleep(START_GAP_S)
                if plan.muted:
                    for room in calls.rooms:
                        await server.mute_video(room, "party-1")
                await asyncio.sleep(SETTLE_S)
                figures = await _watch(plan, server, made, progress)
                stopped = time.monotonic()
                await asyncio.gather(*(server.stop_recording(one) for one in made))
                if plan.when == "live":
                    figures["ready_s"] = await _ready(server, made, stopped, progress)
                version = await server.version()
            finally:
                await calls.close()
    return {
        "scenario": "live",
        "rooms": plan.rooms,
        "seconds": plan.seconds,
        "profile": plan.profile,
        "one_camera_off": plan.muted,
        "when": plan.when,
        "cores": {"servers": sorted(cores), "generator": sorted(ours)},
        "servers": {"ours": {**figures, "version": version}},
    }


async def _watch(plan: Plan, server: Ours, made: list[str], progress: Progress) -> dict[str, Any]:
    before, began = _by_kind(server.processes()), time.monotonic()
    lags: list[float] = []
    while (gone := time.monotonic() - began) < plan.seconds:
        progress(f"{gone:.0f} of {plan.seconds:g} s")
        await asyncio.sleep(min(POLL_S, plan.seconds - gone))
        for one in made if plan.when == "live" else ():
            lag = (await server.get(f"/recordings/{one}"))["composing"]["lag_s"]
            lags += [] if lag is None else [lag]
    took = time.monotonic() - began
    spent = {kind: value - before.get(kind, 0.0) for kind, value in _by_kind(server.processes()).items()}
    per_minute = 60 / took / plan.rooms
    cost = {kind: round(value * per_minute, 2) for kind, value in sorted(spent.items())}
    return {
        "cpu_s_per_call_minute": {"all": round(sum(spent.values()) * per_minute, 2), **cost},
        "cpu_cores": round(sum(spent.values()) / took, 3),
        "lag_s": {"most": max(lags, default=None)},
    }


def _by_kind(processes: list[int]) -> dict[str, float]:
    spent = {"composers": 0.0, "worker": 0.0, "control": 0.0}
    for process in processes:
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
            seconds = cpu_s([process])
        except OSError:  # ended while we looked
            continue
        spent[next((kind for mark, kind in KINDS.items() if mark in command), "control")] += seconds
    return spent


async def _ready(server: Ours, made: list[str], stopped: float, progress: Progress) -> dict[str, float]:
    """Wait until all composites are ready; returns the seconds of the first and the last."""
    waiting, ready = set(made), []
    while waiting:
        progress(f"{len(waiting)} composites are being finished")
        for one in list(waiting):
            state: Mapping[str, Any] = (await server.get(f"/recordings/{one}"))["composing"]
            if state["state"] == "failed" or time.monotonic() - stopped > 300:
                raise ServerError(f"recording {one} has no composite: {state}")
            if state["state"] == "done":
                waiting.remove(one)
                ready.append(time.monotonic() - stopped)
        await asyncio.sleep(0.1)
    return {"first": round(ready[0], 2), "last": round(ready[-1], 2)}
