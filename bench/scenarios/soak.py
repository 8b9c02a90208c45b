"""Calls for a long time: does memory grow, is anything lost inside the server?"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.load import clip
from bench.load.engine import Engine
from bench.scenarios.calls import SETTLE_S, Calls, Progress, pin_generator
from bench.servers import Ours, named

SAMPLE_S = 10.0
WARM_S = 300.0
"""Caches, pools and journals' buffers have their size after five minutes (half of a shorter soak)."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    rooms: int = 40
    minutes: float = 60.0
    codec: str = "video/VP8"
    record: bool = False
    churn: bool = True
    """Every sample one room's parties leave and join again, as in a day's business."""


async def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run the calls, sample every 10 s, and fit a line through memory after the warm-up."""
    cores, ours = pin_generator()
    server = named("ours", cores, record=plan.record)
    samples: list[dict[str, Any]] = []
    with Engine(clip.video(plan.codec), clip.audio()) as engine:
        async with server:
            calls = Calls(server, engine, plan.codec)
            try:
                await calls.open(plan.rooms)
                if plan.record and isinstance(server, Ours):
                    for room in calls.rooms:
                        await server.start_recording(room)
                await asyncio.sleep(SETTLE_S)
                began, total_s = time.monotonic(), plan.minutes * 60
                churned = 0
                while (at_s := time.monotonic() - began) < total_s:
                    window = await calls.measure(SAMPLE_S)
                    samples.append(
                        {"at_s": round(at_s, 1), **window.figures(), "rss_bytes": calls.resident_bytes()}
                    )
                    progress(f"{at_s / 60:.1f} of {plan.minutes:g} min, {samples[-1]['rss_bytes'] >> 20} MiB")
                    if plan.churn:
                        await calls.rejoin(calls.rooms[churned % len(calls.rooms)])
                        churned += 1
                version = await server.version()
            finally:
                await calls.close()
    warm = [sample for sample in samples if sample["at_s"] >= min(WARM_S, total_s / 2)]
    times = np.array([sample["at_s"] for sample in warm])
    memory = np.array([sample["rss_bytes"] for sample in warm])
    slope = float(np.polyfit(times, memory, 1)[0]) if len(warm) > 2 else float("nan")
    return {
        "scenario": "soak",
        "rooms": plan.rooms,
        "minutes": plan.minutes,
        "record": plan.record,
        "rejoins": churned,
        "cores": {"servers": sorted(cores), "generator": sorted(ours)},
        "servers": {
            "ours": {
                "version": version,
                "rss_bytes": {"warm": int(memory[0]), "end": int(memory[-1]), "most": int(memory.max())},
                "growth_kib_per_hour": round(slope * 3600 / 1024, 1),
                "lost_packets": round(sum(s["loss"] * s["packets_per_s"] * SAMPLE_S for s in samples)),
                "packets": round(sum(s["packets_per_s"] * SAMPLE_S for s in samples)),
                "bad": sum(s["bad"] for s in samples),
                "samples": samples,
            }
        },
    }
