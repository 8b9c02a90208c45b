"""CPU per forwarded packet, delay, loss and memory of calls: this server beside others, in one run.

Every server gets the same cores and the same load, one after the other, ``runs`` times in turn.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

from bench.load import clip
from bench.load.engine import Engine
from bench.scenarios.calls import SETTLE_S, Calls, Progress, in_turn, pin_generator, ratios, spread
from bench.servers import Ours, Server, named


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    rooms: int = 5
    parties: int = 2
    seconds: float = 10.0
    runs: int = 3
    codec: str = "video/VP8"
    bitrate_bps: int = 1_000_000
    peers: tuple[str, ...] = ()
    record: bool = False
    workers: int = 1
    layered: bool = False
    """Publishers offer simulcast, so that subscribers' lines are measured; one layer is sent."""


FOUND_S = 10.0
"""Estimators that cannot probe (the generator knows no RTX) have found that the line has room by then."""
QUIET_S = 4.0
"""For what a participant costs who neither sends nor is sent media: consent checks and reports go on."""


async def once(name: str, plan: Plan, cores: set[int]) -> dict[str, Any]:
    """Measure one server once, from its start to its end."""
    server: Server = named(name, cores, record=plan.record, workers=plan.workers)
    with Engine(clip.video(plan.codec, plan.bitrate_bps), clip.audio()) as engine:
        async with server:
            calls = Calls(server, engine, plan.codec, plan.parties, layered=plan.layered)
            try:
                await asyncio.sleep(server.rest_s)
                idle = await calls.measure(SETTLE_S)
                before = calls.resident_bytes()
                await calls.open(plan.rooms)
                if plan.record and isinstance(server, Ours):
                    for room in calls.rooms:
                        await server.start_recording(room)
                await asyncio.sleep(FOUND_S if plan.layered else SETTLE_S)
                window = await calls.measure(plan.seconds)
                grown = calls.resident_bytes() - before
                engine.pause()
                await asyncio.sleep(SETTLE_S)
                quiet = await calls.measure(QUIET_S)
                silent_s = quiet.cpu_s / quiet.seconds - idle.cpu_s / idle.seconds
                firsts = [ms for party in calls.parties for ms in party.first_frame_ms if not math.isnan(ms)]
                return {
                    **window.figures(),
                    "idle_cpu_ms_per_s": round(idle.cpu_s / idle.seconds * 1000, 1),
                    "idle_cpu_ms_per_s_per_participant": round(silent_s * 1000 / len(calls.parties), 3),
                    "kib_per_participant": round(grown / 1024 / len(calls.parties), 1),
                    "first_frame_ms": spread([round(ms, 1) for ms in firsts])["median"] if firsts else None,
                    "srtp": calls.profiles(),
                    "version": await server.version(),
                }
            finally:
                await calls.close()


async def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Measure ours and every peer; returns the report with ``ratio.<peer>``. Raises ``ServerError`` when ours
    cannot be measured; a peer that cannot is in ``left_out``.
    """
    cores, ours = pin_generator(plan.workers)
    servers, left_out = await in_turn(
        plan.peers, plan.runs, f"{plan.rooms} rooms", progress, lambda name: once(name, plan, cores)
    )
    return {
        "scenario": "forward",
        "rooms": plan.rooms,
        "parties": plan.parties,
        "codec": plan.codec,
        "bitrate_bps": plan.bitrate_bps,
        "seconds": plan.seconds,
        "record": plan.record,
        "layered": plan.layered,
        "cores": {"servers": sorted(cores), "generator": sorted(ours)},
        "servers": servers,
        "left_out": left_out,
        "ratio": ratios(servers, "cpu_us_per_packet"),
    }
