"""Many calls over lines whose weather changes all the time; what they leave behind is what is asked.

Clients are the load generator's, with sockets in the clients' networks; they come, are recorded, and go as
people go: properly, without a word, by the room's end, or with the recording still running.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from yarl import URL

from bench.load.connection import Connection, JoinError, Keeper
from bench.load.engine import Engine
from tests.e2e.api import Api
from tests.e2e.stage import Stage
from tests.lab.network import Network
from tests.lab.traffic import socket_in

CODEC: Final = "video/VP8"
ENDS: Final = ("stopped", "vanished", "room deleted", "left running")
CALL_S: Final = (4.0, 20.0)
WEATHER_S: Final = (1.0, 8.0)
IDLE_ROOM_S: Final = 4.0
CONSENT_S: Final = 8.0


def weather(chance: random.Random) -> dict[str, Any]:
    """Return settings of a direction of a line: often fair, sometimes foul, all of them set anew."""
    fair = {
        "loss": 0.0,
        "burst_enter": 0.0,
        "burst_leave": 1.0,
        "outage_every_ms": 0,
        "outage_ms": 0,
        "delay_ms": chance.uniform(0, 80),
        "jitter_ms": chance.uniform(0, 60),
        "reorder": chance.choice((0.0, 0.0, 0.05)),
        "rate_bps": 0,
    }
    foul: Sequence[dict[str, Any]] = (
        {},
        {"loss": chance.uniform(0, 0.3)},
        {"burst_enter": 0.005, "burst_leave": 0.1},
        {"outage_every_ms": 3000, "outage_ms": chance.uniform(100, 900)},
        {"rate_bps": chance.randrange(200_000, 4_000_000)},
    )
    return {**fair, **chance.choice(foul)}


@dataclass
class Recorded:
    """One recording of the soak, with the bounds of its length as its owner saw them."""

    id: str
    end: str
    at_least_s: float
    at_most_s: float


@dataclass
class Rest:
    """What the server holds when nobody is there."""

    resident_bytes: int
    descriptors: int


@dataclass
class Soak:
    """A server, three clients' networks and everything that happens to them."""

    stage: Stage
    api: Api
    engine: Engine
    networks: Sequence[Network]
    seed: int
    recorded: list[Recorded] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    """Calls by their end, and what went wrong on the way in."""
    connections: list[Connection] = field(default_factory=list)
    _number: int = 0

    async def run(self, seconds: float, at_once: int) -> None:
        """Let calls come and go for a time under changing weather; ends with fair weather."""
        until_s = time.monotonic() + seconds
        keeper = asyncio.create_task(Keeper(self.engine, self.connections).run())
        sky = [asyncio.create_task(self._weather(network)) for network in self.networks]
        try:
            async with asyncio.TaskGroup() as calls:  # what ends one of them ends them all
                for _ in range(at_once):
                    calls.create_task(self._line_of_calls(until_s))
        finally:
            for task in (keeper, *sky):
                task.cancel()
            await asyncio.gather(keeper, *sky, return_exceptions=True)
            for network in self.networks:
                network.line.set(**weather(random.Random(0)), cut=False)

    async def _weather(self, network: Network) -> None:
        chance = random.Random(f"{self.seed} {network.namespace.partition('-')[2]} {self._number}")
        while True:
            network.line.set(up=weather(chance), down=weather(chance))
            await asyncio.sleep(chance.uniform(*WEATHER_S))
            if chance.random() < 0.1:
                network.line.set(cut=True)
                await asyncio.sleep(chance.uniform(0.2, 5))
                network.line.set(cut=False)
            if chance.random() < 0.05:
                network.change_address()
                self.counted["addresses changed"] += 1

    async def _line_of_calls(self, until_s: float) -> None:
        while time.monotonic() < until_s:
            self._number += 1
            await self._call(self._number)

    async def _call(self, number: int) -> None:
        """Hold one call of two, from the room to its end."""
        chance = random.Random(f"{self.seed} call {number}")
        room, end = f"soak-{number}", chance.choice(ENDS)
        mine: list[Connection] = []
        await self.api.room(room, codecs=[CODEC, "audio/opus"])
        try:
            for side, network in enumerate(chance.sample(list(self.networks), 2)):
                mine.append(await self._join(network, room, side, number * 2 + side, None))
            before_s = time.monotonic()
            recording = await self.api.record(room, f"SOAK-{number}", "single")
            armed_s = time.monotonic()
            for side, network in enumerate(chance.sample(list(self.networks), 2)):
                mine.append(await self._join(network, room, side, number * 2 + 1 - side, 1 - side))
            await asyncio.sleep(chance.uniform(*CALL_S))
            await self._end(end, room, recording["id"], mine, before_s, armed_s)
            self.counted[end] += 1
        except JoinError as error:
            # A line may be so bad that nobody gets through: as on the telephone, one tries again.
            self.counted["did not get through"] += 1
            print(f"call {number}: {error}")
            await self.api.ask("DELETE", f"/v1/rooms/{room}")  # it may have closed by itself meanwhile
        finally:
            for connection in mine:
                self._leave(connection)

    async def _join(
        self, network: Network, room: str, side: int, source: int, watched: int | None
    ) -> Connection:
        """Let a party publish, or watch another one. Raises JoinError."""
        identity = f"party-{side}"
        token = await self.api.token(room, identity, "agent")
        bound = socket_in(network.namespace, socket.AF_INET, network.address)
        publishes = watched is None
        connection = Connection(
            self.engine, CODEC, source, publishes=publishes, local=network.address, bound=bound
        )
        path = f"/v1/whip/{room}" if publishes else f"/v1/whep/{room}/party-{watched}"
        try:
            kind = {"Content-Type": "application/sdp"}
            answer = await self.api.ask("POST", path, data=connection.offer(), bearer=token, headers=kind)
            if answer.status != 201:
                raise JoinError(f"{path}: {answer.status} {answer.body[:200]!r}")
            connection.answered(answer.body.decode())
            connection.resource = str(URL(self.api.base).join(URL(answer.headers["Location"])))
            connection.credentials = {"Authorization": f"Bearer {token}"}
            await connection.connect()
        except BaseException:
            connection.close()
            raise
        self.connections.append(connection)
        return connection

    def _leave(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
        connection.close()

    async def _end(
        self, end: str, room: str, recording: str, mine: list[Connection], before_s: float, armed_s: float
    ) -> None:
        if end == "vanished":
            for connection in mine:
                self._leave(connection)
            await asyncio.sleep(1)
        elif end == "left running":
            for connection in mine:
                await self.api.ask("DELETE", connection.resource, headers=connection.credentials)
                self._leave(connection)
        ending_s = time.monotonic()
        if end == "left running":
            # The room closes by itself, and with it the recording.
            while (await self.api.recording(recording))["state"] == "recording":
                if time.monotonic() - ending_s > 60:
                    raise AssertionError(f"{room} has been empty for a minute, and is still recorded")
                await asyncio.sleep(0.2)
        elif end == "room deleted":
            await self.api.call("DELETE", f"/v1/rooms/{room}")
        else:
            await self.api.stop(recording)
        ended_s = time.monotonic()
        self.recorded.append(Recorded(recording, end, ending_s - armed_s, ended_s - before_s))

    async def at_rest(self, timeout_s: float = 90.0) -> Rest:
        """Wait until the server says that nobody is there; returns what it holds. Raises AssertionError."""
        deadline = time.monotonic() + timeout_s
        while left := await self._left():
            assert time.monotonic() < deadline, f"after {timeout_s:.0f} s without calls there is still {left}"
            await asyncio.sleep(0.5)
        pids = [pid for what in ("control", "worker") for pid in self.stage.pids(what)]
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        return Rest(pages * 4096, sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids))

    async def _left(self) -> dict[str, Any]:
        """Return rooms still open, and what the metrics count that is not zero."""
        rooms = [room["name"] for room in (await self.api.call("GET", "/v1/rooms"))["rooms"]]
        left: dict[str, Any] = {"open rooms": rooms} if rooms else {}
        wanted = ("rooms", "participants", "recordings", "journal_queue_bytes")
        for line in (await self.api.ask("GET", "/metrics")).body.decode().splitlines():
            name = line.partition("{")[0].removeprefix("shuanglu_")
            if name in wanted and float(line.rpartition(" ")[2]):
                left[name] = line.rpartition(" ")[2]
        return left

    async def wrong(self, slack_s: float) -> list[str]:
        """Return what is wrong with the recordings: not sealed, or of another length than was seen."""
        found = []
        for one in self.recorded:
            shown = await self._sealed(one.id)
            length_s = (shown["duration_ms"] or 0) / 1000
            if shown["state"] != "sealed":
                found.append(f"{one.id} ({one.end}) is {shown['state']}")
            elif not one.at_least_s - slack_s <= length_s <= one.at_most_s + slack_s:
                found.append(
                    f"{one.id} ({one.end}) lasts {length_s:.3f} s,"
                    f" not {one.at_least_s:.3f} … {one.at_most_s:.3f} s"
                )
        return found

    async def _sealed(self, recording: str, timeout_s: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while True:
            shown = await self.api.recording(recording)
            if shown["state"] not in ("recording", "stopping") or time.monotonic() > deadline:
                return shown
            await asyncio.sleep(0.2)
