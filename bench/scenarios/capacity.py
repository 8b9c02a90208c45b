"""How many rooms one core carries: rooms are added until packets are lost or late."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from bench.load import clip
from bench.load.connection import JoinError
from bench.load.engine import Engine
from bench.scenarios.calls import SETTLE_S, Calls, Progress, pin_generator
from bench.servers import Ours, ServerError, named

MOST_LOSS = 0.001
MOST_DELAY_MS = 20.0


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    start: int = 20
    step: int = 20
    most: int = 200
    seconds: float = 6.0
    codec: str = "video/VP8"
    bitrate_bps: int = 1_000_000
    record: bool = False
    workers: int = 1
    peers: tuple[str, ...] = ()


async def once(name: str, plan: Plan, cores: set[int], progress: Progress) -> dict[str, Any]:
    """Load one server step by step until it, or the generator, is at its end."""
    server = named(name, cores, record=plan.record, workers=plan.workers)
    steps: list[dict[str, Any]] = []
    reason = f"the plan ended at {plan.most} rooms"
    with Engine(clip.video(plan.codec, plan.bitrate_bps), clip.audio()) as engine:
        async with server:
            calls = Calls(server, engine, plan.codec)
            empty = calls.resident_bytes()
            try:
                for rooms in range(plan.start, plan.most + 1, plan.step):
                    progress(f"{name}: {rooms} rooms")
                    first = len(calls.rooms)
                    try:
                        await calls.open(rooms - first)
                        if plan.record and isinstance(server, Ours):
                            for room in calls.rooms[first:]:
                                await server.start_recording(room)
                    except (JoinError, ServerError, TimeoutError) as error:
                        reason = f"joining or recording failed: {error}"
                        break
                    await asyncio.sleep(SETTLE_S)
                    figures = (await calls.measure(plan.seconds)).figures()
                    grown = (calls.resident_bytes() - empty) / 1024 / len(calls.parties)
                    steps.append({"rooms": rooms, **figures, "kib_per_participant": round(grown, 1)})
                    # A generator that could not send in time has not loaded the server.
                    if figures["skipped_ticks"] > plan.seconds * 1000 * 0.01:
                        reason = "the generator's core is full"
                        break
                    if figures["loss"] > MOST_LOSS:
                        reason = f"loss {figures['loss']:.2%}"
                        break
                    if figures["delay_ms"]["p99"] > MOST_DELAY_MS:
                        reason = f"delay p99 {figures['delay_ms']['p99']} ms"
                        break
            finally:
                await calls.close()
            good = [
                step["rooms"]
                for step in steps
                if step["loss"] <= MOST_LOSS
                and step["delay_ms"]["p99"] <= MOST_DELAY_MS
                and step["skipped_ticks"] <= plan.seconds * 10
            ]
            return {
                "rooms": max(good, default=0),
                "rooms_per_core": round(max(good, default=0) / max(plan.workers, 1), 1),
                "stopped": reason,
                "steps": steps,
                "version": await server.version(),
            }


async def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Measure ours and every peer; ``ratio.<peer>`` is our rooms over theirs. Raises ``ServerError``."""
    cores, ours = pin_generator(plan.workers)
    servers = {name: await once(name, plan, cores, progress) for name in ("ours", *plan.peers)}
    mine = servers["ours"]["rooms"]
    return {
        "scenario": "capacity",
        "record": plan.record,
        "codec": plan.codec,
        "bitrate_bps": plan.bitrate_bps,
        "limits": {"loss": MOST_LOSS, "delay_p99_ms": MOST_DELAY_MS},
        "cores": {"servers": sorted(cores), "generator": sorted(ours)},
        "servers": servers,
        "ratio": {name: round(mine / max(servers[name]["rooms"], 1), 3) for name in plan.peers},
    }
