"""What relaying costs: our server beside stock aiortc, the same clients and machine, one after the other.

Rooms of two parties send 1 Mbit/s VP8 and Opus and watch each other. Counted are CPU seconds of all server
processes per RTP packet that arrived at a subscriber, and resident memory per participant.
``python -m bench.relay [rooms] [seconds]`` prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import yaml

from bench.clients import Clip, Participant, encode_clip, trusting_session
from bench.processes import cpu_s, family, resident_bytes
from mediaserver.tokens import ApiKey, server_token

ROOMS = 2
SECONDS = 10.0
SETTLE_S = 4.0
"""Start-up, and later joins, first keyframes and the clients' bandwidth estimators, are over by then."""

Join = Callable[[aiohttp.ClientSession, str, str], Awaitable[tuple[Participant, str, str]]]
"""(http, room, identity) → participant, WHIP address, WHEP address of the other party."""


def free_port() -> int:
    """Find a TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_up(http: aiohttp.ClientSession, url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait up to 30 s for any HTTP answer; raise if the server ends or stays silent."""
    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.returncode}")
        try:
            async with http.get(url):
                return
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.1)
    raise RuntimeError(f"{url} did not answer within 30 s")


async def measure(
    server: subprocess.Popen[bytes],
    http: aiohttp.ClientSession,
    join: Join,
    clip: Clip,
    rooms: int,
    seconds: float,
) -> dict[str, float]:
    """Let ``rooms`` calls run. Returns packets/s, CPU µs per packet (idle CPU included), CPU ms/s before
    anybody joined, and KiB per participant.
    """
    await asyncio.sleep(SETTLE_S)
    idle = -cpu_s(family(server.pid))
    await asyncio.sleep(SETTLE_S)
    idle += cpu_s(family(server.pid))
    empty = resident_bytes(family(server.pid))
    parties = []
    try:
        for number in range(rooms):
            pair = [await join(http, f"room-{number}", identity) for identity in ("agent", "customer")]
            parties += [participant for participant, _, _ in pair]
            for participant, whip, _ in pair:
                await participant.publish(whip, clip)
            await asyncio.sleep(0.5)
            for participant, _, whep in pair:
                await participant.watch(whep)
        await asyncio.sleep(SETTLE_S)
        packets = -sum([await party.packets_received() for party in parties])
        busy = -cpu_s(family(server.pid))
        began = time.monotonic()
        await asyncio.sleep(seconds)
        busy += cpu_s(family(server.pid))
        packets += sum([await party.packets_received() for party in parties])
        took = time.monotonic() - began
        grown = resident_bytes(family(server.pid)) - empty
    finally:
        for party in parties:
            await party.leave()
    return {
        "packets_per_s": round(packets / took, 1),
        "cpu_us_per_packet": round(busy / packets * 1e6, 1),
        "idle_cpu_ms_per_s": round(idle / SETTLE_S * 1000, 1),
        "kib_per_participant": round(grown / 1024 / len(parties), 1),
    }


async def stock(clip: Clip, rooms: int, seconds: float) -> dict[str, float]:
    """Measure stock aiortc."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    other = {"agent": "customer", "customer": "agent"}

    async def join(http: aiohttp.ClientSession, room: str, identity: str) -> tuple[Participant, str, str]:
        names = f"{room}-{identity}", f"{room}-{other[identity]}"
        return Participant(http, ""), f"{url}/whip/{names[0]}", f"{url}/whep/{names[1]}"

    server = subprocess.Popen([sys.executable, "-m", "bench.stock", str(port)])
    try:
        async with trusting_session() as http:
            await until_up(http, url, server)
            return await measure(server, http, join, clip, rooms, seconds)
    finally:
        server.terminate()
        server.wait(30)


async def ours(clip: Clip, rooms: int, seconds: float, forwarder: str) -> dict[str, float]:
    """Measure this project's server with one worker and the forwarder of that name."""
    port = free_port()
    url = f"https://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="bench-relay-") as data:
        settings = {
            "SHUANGLU__DATA_DIR": data,
            "SHUANGLU__HTTP__HOST": "127.0.0.1",
            "SHUANGLU__HTTP__PORT": str(port),
            "SHUANGLU__MEDIA__PORT": "0",
            "SHUANGLU__MEDIA__WORKERS": "1",
            "SHUANGLU__MEDIA__FORWARDER": forwarder,
            "SHUANGLU__MEDIA__ADVERTISED": '["127.0.0.1"]',
        }
        command = [str(Path(sys.executable).with_name("mediaserver")), "serve"]
        with Path(data, "server.log").open("wb") as log:
            server = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        try:
            async with trusting_session() as http:
                await until_up(http, f"{url}/healthz", server)
                key = ApiKey(**yaml.safe_load(Path(data, "secrets", "api-keys.yaml").read_text())[0])

                async def post(path: str, body: dict[str, str]) -> dict[str, str]:
                    headers = {"Authorization": f"Bearer {server_token(key)}"}
                    async with http.post(f"{url}/v1{path}", json=body, headers=headers) as answer:
                        answer.raise_for_status()
                        result: dict[str, str] = await answer.json()
                        return result

                for number in range(rooms):
                    await post("/rooms", {"name": f"room-{number}"})

                async def join(
                    _: aiohttp.ClientSession, room: str, identity: str
                ) -> tuple[Participant, str, str]:
                    token = await post(f"/rooms/{room}/tokens", {"identity": identity, "role": identity})
                    other = "customer" if identity == "agent" else "agent"
                    whip, whep = f"{url}/v1/whip/{room}", f"{url}/v1/whep/{room}/{other}"
                    return Participant(http, token["token"]), whip, whep

                return await measure(server, http, join, clip, rooms, seconds)
        finally:
            server.terminate()
            server.wait(60)


def run(rooms: int = ROOMS, seconds: float = SECONDS) -> dict[str, object]:
    """Measure the native forwarder, its Python twin and stock aiortc one after the other."""
    clip = encode_clip()
    return {
        "rooms": rooms,
        "native": asyncio.run(ours(clip, rooms, seconds, "native")),
        "python": asyncio.run(ours(clip, rooms, seconds, "python")),
        "stock_aiortc": asyncio.run(stock(clip, rooms, seconds)),
    }


if __name__ == "__main__":
    arguments = sys.argv[1:]
    chosen_rooms = int(arguments[0]) if arguments else ROOMS
    print(json.dumps(run(chosen_rooms, float(arguments[1]) if arguments[1:] else SECONDS), indent=2))
