"""What joining costs: server CPU per participant, and the time to the first picture when many come."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.load import clip
from bench.load.engine import Engine
from bench.processes import cpu_s
from bench.scenarios.calls import SETTLE_S, Calls, Party, Progress, in_turn, pin_generator, ratios
from bench.servers import named


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    rooms: int = 20
    runs: int = 3
    over_s: float = 1.0
    """All rooms come within so long; 0: in one moment, where the generator's own handshakes are the queue."""
    codec: str = "video/VP8"
    peers: tuple[str, ...] = ()


async def once(name: str, plan: Plan, cores: set[int]) -> dict[str, Any]:
    """Let two parties join each of the rooms, publish and subscribe, on a fresh server."""
    server = named(name, cores)
    with Engine(clip.video(plan.codec), clip.audio()) as engine:
        async with server:
            calls = Calls(server, engine, plan.codec)
            try:
                for number in range(plan.rooms):
                    await server.open_room(f"room-{number}")
                    for at in range(2):
                        await server.admit(f"room-{number}", f"party-{at}")
                await asyncio.sleep(server.rest_s)
                processes, own = server.processes(), time.process_time()
                before, began = cpu_s(processes), time.monotonic()
                await asyncio.gather(*(_join(calls, number, plan) for number in range(plan.rooms)))
                took, cpu = time.monotonic() - began, cpu_s(processes) - before
                own = time.process_time() - own
                await asyncio.sleep(SETTLE_S)
                # The calls that run already forward media: that is not what joining costs.
                running = await calls.measure(4.0)
                cpu -= running.cpu_s / running.seconds * took / 2
                firsts = [ms for party in calls.parties for ms in party.first_frame_ms]
                seen = [ms for ms in firsts if not math.isnan(ms)]
                return {
                    "cpu_ms_per_participant": round(cpu * 1000 / len(calls.parties), 2),
                    "first_frame_ms": {
                        f"p{at}": round(float(np.percentile(seen, at)), 1) for at in (50, 95, 99)
                    },
                    "without_picture": len(firsts) - len(seen),
                    "joins_per_s": round(2 * len(calls.parties) / took, 1),
                    "generator_cpu_ms_per_participant": round(own * 1000 / len(calls.parties), 2),
                    "version": await server.version(),
                }
            finally:
                await calls.close()


async def _join(calls: Calls, number: int, plan: Plan) -> None:
    await asyncio.sleep(plan.over_s * number / plan.rooms)
    room = f"room-{number}"
    parties = list(await asyncio.gather(*(calls.publish(room, f"party-{at}") for at in range(2))))

    async def watch(party: Party, other: Party) -> None:
        await calls.watch(party, other)

    await asyncio.gather(watch(parties[0], parties[1]), watch(parties[1], parties[0]))


async def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Measure ours and every peer; ``ratio.<peer>`` is CPU per participant. Raises ``ServerError``."""
    cores, ours = pin_generator()
    servers, left_out = await in_turn(
        plan.peers, plan.runs, f"{plan.rooms} rooms join", progress, lambda name: once(name, plan, cores)
    )
    return {
        "scenario": "join",
        "rooms": plan.rooms,
        "over_s": plan.over_s,
        "codec": plan.codec,
        "cores": {"servers": sorted(cores), "generator": sorted(ours)},
        "servers": servers,
        "left_out": left_out,
        "ratio": ratios(servers, "cpu_ms_per_participant"),
    }
