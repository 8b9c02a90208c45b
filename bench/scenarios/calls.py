"""Calls on a server under test: opened room by room, then measured over a window."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.load.connection import Connection, JoinError, Keeper
from bench.load.engine import Engine, percentiles_ms
from bench.processes import cpu_s, resident_bytes
from bench.servers import Server, ServerError

Progress = Callable[[str], None]
"""Takes one line that says what goes on."""
SETTLE_S = 2.0
"""Late keyframes, estimators and caches are at rest by then."""


@dataclass
class Party:
    """One participant: what it publishes and what it watches."""

    room: str
    identity: str
    publisher: Connection
    watching: list[Connection] = field(default_factory=list)
    first_frame_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Window:
    """What happened in a measured time."""

    seconds: float
    cpu_s: float
    delays: npt.NDArray[np.uint32]
    counted: dict[str, int]

    def figures(self) -> dict[str, Any]:
        """Return the window as JSON."""
        received, expected = self.counted["received_packets"], self.counted["expected_packets"]
        return {
            "packets_per_s": round(received / self.seconds, 1),
            "mbit_per_s": round(self.counted["received_bytes"] * 8 / self.seconds / 1e6, 2),
            "cpu_us_per_packet": round(self.cpu_s / received * 1e6, 2) if received else None,
            "cpu_cores": round(self.cpu_s / self.seconds, 3),
            "loss": round(max(expected - received, 0) / expected, 6) if expected else None,
            "delay_ms": percentiles_ms(self.delays),
            **{name: self.counted[name] for name in COUNTED},
        }


COUNTED = (
    "verified",
    "bad",
    "auth_failed",
    "out_of_order",
    "keyframe_requests",
    "nacked",
    "skipped_ticks",
    "send_failed",
)


class Calls:
    """All calls on one server, and the clock over them."""

    def __init__(
        self, server: Server, engine: Engine, mime: str, parties: int = 2, *, layered: bool = False
    ) -> None:
        self.server, self.engine, self.mime, self.parties_per_room = server, engine, mime, parties
        self.layered = layered
        self.parties: list[Party] = []
        self.connections: list[Connection] = []
        self.rooms: list[str] = []
        self._numbers = itertools.count(1)
        self._keeper = asyncio.create_task(Keeper(engine, self.connections).run(), name="consent")

    async def open(self, count: int, *, at_once: int = 4) -> None:
        """Open more rooms, ``at_once`` of them side by side, and wait for every first picture."""
        names = [f"room-{len(self.rooms) + at}" for at in range(count)]
        self.rooms += names
        gate = asyncio.Semaphore(at_once)

        async def one(room: str) -> None:
            async with gate:
                await self._open(room)

        await asyncio.gather(*(one(room) for room in names))

    async def _open(self, room: str) -> None:
        await self.server.open_room(room)
        parties = [await self.publish(room, f"party-{number}") for number in range(self.parties_per_room)]
        for party in parties:
            for other in parties:
                if other is not party:
                    await self.watch(party, other)

    async def publish(self, room: str, identity: str) -> Party:
        """Let a participant join and send."""
        connection = self._connection(publishes=True)
        await self.server.publish(room, identity, connection)
        await connection.connect()
        party = Party(room, identity, connection)
        self.parties.append(party)
        return party

    async def watch(self, party: Party, other: Party, *, patience_s: float = 10.0) -> float:
        """Let a participant watch another; returns ms from the request to its first picture, or NaN."""
        connection = self._connection(publishes=False, source=other.publisher.source)
        began_ns = time.time_ns()
        await self.server.subscribe(party.room, party.identity, other.identity, connection)
        await connection.connect()
        party.watching.append(connection)
        assert connection.number is not None
        deadline = time.monotonic() + patience_s
        while (at_ns := self.engine.first_frame_ns(connection.number)) is None:
            if time.monotonic() > deadline:
                return float("nan")
            await asyncio.sleep(0.005)
        took_ms = (at_ns - began_ns) / 1e6
        party.first_frame_ms.append(took_ms)
        return took_ms

    async def rejoin(self, room: str) -> None:
        """Let all parties of a room go and come again."""
        gone = [party for party in self.parties if party.room == room]
        for party in gone:
            self.parties.remove(party)
            for connection in (party.publisher, *party.watching):
                await self.server.leave(connection)
                connection.close()
                self.connections.remove(connection)
        parties = [await self.publish(room, party.identity) for party in gone]
        for party in parties:
            for other in parties:
                if other is not party:
                    await self.watch(party, other)

    def _connection(self, *, publishes: bool, source: int | None = None) -> Connection:
        number = next(self._numbers) if source is None else source
        made = Connection(
            self.engine,
            self.mime,
            number,
            publishes=publishes,
            local=self.server.local,
            layered=self.layered,
        )
        self.connections.append(made)
        return made

    async def measure(self, seconds: float) -> Window:
        """Count for a while: CPU of the server's processes, packets, delays."""
        self.engine.take_delays()
        processes = self.server.processes()
        before, cpu = self.engine.totals(), cpu_s(processes)
        began = time.monotonic()
        await asyncio.sleep(seconds)
        cpu = cpu_s(processes) - cpu
        counted, took = self.engine.totals() - before, time.monotonic() - began
        names = counted.__slots__
        return Window(took, cpu, self.engine.take_delays(), {name: getattr(counted, name) for name in names})

    def resident_bytes(self) -> int:
        """Return the resident memory of the server's processes."""
        return resident_bytes(self.server.processes())

    def profiles(self) -> list[str]:
        """Return the SRTP profiles that were agreed on."""
        return sorted({connection.profile for connection in self.connections if connection.profile})

    async def close(self) -> None:
        """Let go of all connections."""
        self._keeper.cancel()
        for connection in self.connections:
            connection.close()


def pin_generator(server_cores: int = 1) -> tuple[set[int], set[int]]:
    """Keep this process on the cores the servers do not get; returns (the servers' cores, ours)."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < server_cores + 1:
        return set(cores), set(cores)
    servers, ours = set(cores[:server_cores]), set(cores[server_cores:])
    pin(ours)
    return servers, ours


def pin(cores: set[int]) -> None:
    """Keep all threads of this process on some cores."""
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # a thread that ended meanwhile
            os.sched_setaffinity(int(task), cores)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, the ends and all values of some runs."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {"median": round(median, 3), "min": ordered[0], "max": ordered[-1], "runs": list(values)}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Fold the runs of one server: every figure with its median and spread."""
    folded: dict[str, Any] = {}
    for name, first in runs[0].items():
        values = [run[name] for run in runs]
        if isinstance(first, dict):
            folded[name] = {
                key: spread([value[key] for value in values])
                for key in first
                if all(key in value for value in values)
            }
        elif isinstance(first, (int, float)) and all(isinstance(value, (int, float)) for value in values):
            folded[name] = spread(values)
        else:
            folded[name] = first
    return folded


async def in_turn(
    peers: Sequence[str],
    runs: int,
    what: str,
    progress: Progress,
    once: Callable[[str], Awaitable[dict[str, Any]]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure ours and every peer ``runs`` times, one after the other.

    Returns each server's summary, and why peers were left out: one that cannot carry the load, or is not
    there, costs the others nothing. What ours raises is raised.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", *peers)}
    left_out: dict[str, str] = {}
    for number in range(runs):
        for name in list(found):
            progress(f"{name}: {what}, run {number + 1} of {runs}")
            try:
                found[name].append(await once(name))
            except (ServerError, JoinError, OSError) as error:
                if name == "ours":
                    raise
                left_out[name] = str(error) or type(error).__name__
                del found[name]
    return {name: summary(results) for name, results in found.items()}, left_out


def ratios(servers: Mapping[str, Any], figure: str) -> dict[str, float]:
    """Return our figure over each peer's; none for a server whose processes cannot be seen.

    Raises ``ServerError`` for one that was sent to and from which nothing came.
    """
    ratio = {}
    for name in servers.keys() - {"ours"}:
        theirs = servers[name][figure]
        if theirs is None:
            raise ServerError(f"{name}: no packet arrived: no ratio")
        if theirs["median"] > 0:
            ratio[name] = round(servers["ours"][figure]["median"] / theirs["median"], 4)
    return ratio
