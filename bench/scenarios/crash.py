"""Kill -9 of worker, control, compositors or all of them, again and again, while recordings run.

A few two-party calls at a time are recorded and composed live. At random moments a random kind of process is
killed; control is started again as a service manager does, callers whose session is gone join again. In the
end every recording must be ended, signed, whole by ``recorder verify`` with its key, and composed. Loss is
measured as ``tests/e2e/test_crash.py`` does: from the last kept packet of a party that was sending to the
kill.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from bench.load.clip import Clip, packetised
from bench.load.connection import Connection, JoinError, Keeper
from bench.load.engine import Engine
from bench.processes import alive
from bench.scenarios.calls import Progress
from bench.scenarios.crash_checks import Joined, Kill, Ledger, Recorded, checked
from bench.scenarios.material import VP8_360P, talking_head, voice
from bench.servers import ServerError
from tests.e2e.api import Api, Problem
from tests.e2e.stage import Stage, StageError

CALL_S = (10.0, 16.0)
FIRST_KILL_S = 2.5
"""After the last call of a round began to be recorded: all of them send by then."""
POLL_S = 0.4
"""How often a caller asks whether the server still knows it, where a page has its event stream."""
JOIN_S = 4.0
"""A party whose worker died in the middle of its joining tries again after this."""
STOP_S = 60.0
COMPOSED_S = 240.0
CANARIES = {
    "name": "金丝雀客户司马相如",
    "id_number": "11010519491231002X",
    "address": "北京市东城区金丝雀胡同七十七号",
}
"""Given as a party's name, its identity and in the recording's metadata; never to be found on disk."""
TEMPLATE = {"profile": "evidence", "width": 640, "height": 360, "fps": 10}
"""Small: what is measured is what dies, not what a picture costs."""
MIME = "video/VP8"


@dataclass(frozen=True)
class Plan:
    """What is done."""

    recordings: int = 100
    rooms: int = 4
    """At a time."""
    minutes: float = 30.0
    """No round begins later than this."""
    seed: int = 1
    keep: Path | None = None
    """The server's data is left here; else it is removed."""


@dataclass
class Call:
    """One room with two parties that send, and its recording."""

    api: Api
    room: str
    engine: Engine
    connections: list[Connection]
    """Of all calls: what keeps consent alive."""
    numbers: list[int]
    recording: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    sending: dict[str, Connection] = field(default_factory=dict)
    joined: list[Joined] = field(default_factory=list)
    over: bool = False

    async def begin(self) -> None:
        """Open the room, let both parties send, record."""
        await self.api.room(self.room)
        people = ((CANARIES["id_number"], "customer", CANARIES["name"]), ("agent-7", "agent", "李经理"))
        for identity, role, name in people:
            self.tokens[identity] = await self.api.token(self.room, identity, role, name)
            await self._join(identity)
        metadata = {"customer": CANARIES["name"], "address": CANARIES["address"]}
        shown = await self.api.record(
            self.room,
            f"CRASH-{self.room}",
            metadata={**metadata, "id_number": CANARIES["id_number"]},
            template=TEMPLATE,
        )
        self.recording = str(shown["id"])

    async def _join(self, identity: str) -> None:
        self.numbers[0] += 1
        connection = Connection(self.engine, MIME, self.numbers[0], publishes=True, local="127.0.0.1")
        try:
            answer = await self.api.ask(
                "POST",
                f"/v1/whip/{self.room}",
                data=connection.offer(),
                headers={"Content-Type": "application/sdp"},
                bearer=self.tokens[identity],
            )
            if answer.status != 201:
                raise JoinError(f"{self.room}: {answer.status} {answer.body[:200]!r}")
            connection.answered(answer.body.decode())
            async with asyncio.timeout(JOIN_S):
                await connection.connect()
        except BaseException:
            connection.close()
            raise
        self.sending[identity] = connection
        self.connections.append(connection)
        self.joined.append(Joined(identity, time.monotonic_ns()))

    async def keep_joined(self) -> None:
        """Join again whoever the server does not know any more; end when the room is gone for good."""
        while not self.over:
            await asyncio.sleep(POLL_S)
            try:
                people = await self.api.participants(self.room)
            except Problem as problem:
                self.over = self.over or problem.status == 404
                continue
            except (aiohttp.ClientError, TimeoutError):
                continue  # control is being started again; the call goes on
            known = {one["identity"] for one in people if one["connected"]}
            for identity in self.tokens.keys() - known:
                self._let_go(identity)
                try:
                    await self._join(identity)
                except (JoinError, Problem, aiohttp.ClientError, TimeoutError):
                    continue

    def _let_go(self, identity: str) -> None:
        connection = self.sending.pop(identity, None)
        if connection is not None:
            self.connections.remove(connection)
            connection.close()
            self.joined.append(Joined(identity, time.monotonic_ns(), sends=False))

    def leave(self) -> None:
        """Hang up."""
        self.over = True
        for identity in list(self.sending):
            self._let_go(identity)

    async def close(self) -> None:
        """Close the room; one that went with its worker is as good."""
        await self.api.ask("DELETE", f"/v1/rooms/{self.room}")


class Killer:
    """Kills what it is told to, and starts control again."""

    def __init__(self, stage: Stage, ledger: Ledger, source: random.Random) -> None:
        self._stage, self._ledger, self._source = stage, ledger, source
        self.kills: list[Kill] = []

    async def kill(self, what: str, calls: Sequence[Call]) -> None:
        """Kill the process of a kind (``machine``: all); wait until it is gone; look at what it left."""
        processes = self._stage.processes()
        victims = [one for one in processes if what in ("machine", one.what)]
        if what == "compositor" and victims:
            victims = [self._source.choice(victims)]
        if not victims:
            return
        at_ns = time.monotonic_ns()
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        while any(alive(victim.pid) for victim in victims):
            await asyncio.sleep(0.002)
        gone_ns = time.time_ns()
        self.kills.append(Kill(what, at_ns, tuple(call.recording for call in calls)))
        if what in ("worker", "machine"):
            await asyncio.to_thread(self._ledger.left_by_dead, "*.seg", gone_ns)
        if what == "machine":
            await asyncio.to_thread(self._ledger.left_by_dead, "*.sealed", gone_ns)
        await asyncio.to_thread(self._ledger.look)
        if what in ("control", "machine"):
            await asyncio.sleep(self._source.uniform(0.1, 1.5))
            await asyncio.to_thread(self._stage.restart)


async def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run the rounds and check everything. Raises ``ServerError`` if the server does not start or answer."""
    scratch = plan.keep or Path(tempfile.mkdtemp(prefix="bench-crash-"))
    stage = Stage(scratch / "data", {"media.advertised": ["127.0.0.1"]})
    try:
        with stage:
            ledger = Ledger(stage.data)
            recorded, kills = await _rounds(plan, stage, ledger, progress)
            progress("checks")
            figures = await checked(stage, ledger, recorded, kills, _clips(), CANARIES)
    except (StageError, Problem) as error:
        raise ServerError(str(error)) from error
    finally:
        if plan.keep is None:
            await asyncio.to_thread(shutil.rmtree, scratch, True)
    return {"scenario": "crash", "seed": plan.seed, "wanted": plan.recordings, **figures}


async def _rounds(
    plan: Plan, stage: Stage, ledger: Ledger, progress: Progress
) -> tuple[list[Recorded], list[Kill]]:
    source = random.Random(plan.seed)
    killer = Killer(stage, ledger, source)
    recorded: list[Recorded] = []
    began = time.monotonic()
    numbers, connections = [0], list[Connection]()
    with Engine(*_clips()) as engine:
        keeper = asyncio.create_task(Keeper(engine, connections).run(), name="consent")
        try:
            async with Api(stage.base, stage.key()) as api:
                while len(recorded) < plan.recordings and time.monotonic() - began < plan.minutes * 60:
                    count = min(plan.rooms, plan.recordings - len(recorded))
                    names = [f"counter-{len(recorded) + at}" for at in range(count)]
                    calls = [Call(api, name, engine, connections, numbers) for name in names]
                    gone = (time.monotonic() - began) / 60
                    progress(f"{len(recorded)} of {plan.recordings} recordings, {gone:.1f} min")
                    recorded += await _round(calls, killer, source, stage)
        finally:
            keeper.cancel()
            for connection in connections:
                connection.close()
    return recorded, killer.kills


async def _round(calls: list[Call], killer: Killer, source: random.Random, stage: Stage) -> list[Recorded]:
    """Record some calls side by side, kill meanwhile, stop, and wait for what is made of them."""
    plan = kills_of_a_round(source)
    length_s = source.uniform(*CALL_S)
    moments = sorted(source.uniform(FIRST_KILL_S, length_s - 1.0) for _ in plan)
    await asyncio.gather(*(call.begin() for call in calls))
    began = time.monotonic()
    keeping = [asyncio.create_task(call.keep_joined()) for call in calls]
    try:
        for what, moment_s in zip(plan, moments, strict=True):
            await asyncio.sleep(max(0.0, began + moment_s - time.monotonic()))
            await killer.kill(what, calls)
        await asyncio.sleep(max(0.0, began + length_s - time.monotonic()))
        ended = [await _ended(call) for call in calls]
    finally:
        for call, task in zip(calls, keeping, strict=True):
            call.over = True
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        for call in calls:
            call.leave()
    for call in calls:
        await call.close()
    return [await _composed(call, stopped_at) for call, stopped_at in zip(calls, ended, strict=True)]


def kills_of_a_round(source: random.Random) -> list[str]:
    """Draw what dies in a round: worker or control, then anything; in one of five everything at the end."""
    kinds = [source.choice(("worker", "control")), source.choice(("compositor", "worker", "control"))]
    source.shuffle(kinds)
    return [*kinds, "machine"] if source.random() < 0.2 else kinds


async def _ended(call: Call) -> str:
    """Stop a recording; returns when it ended (empty if it had ended by itself)."""
    deadline = time.monotonic() + STOP_S
    while True:
        try:
            shown = await call.api.stop(call.recording)
            return str(shown["stopped_at"])
        except (Problem, aiohttp.ClientError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise ServerError(f"recording {call.recording} cannot be stopped: {error}") from None
        await asyncio.sleep(0.3)


async def _composed(call: Call, stopped_at: str) -> Recorded:
    """Wait until a recording is composed, or that failed."""
    deadline = time.monotonic() + COMPOSED_S
    while True:
        shown = await call.api.recording(call.recording)
        if shown["composing"]["state"] in ("done", "failed", "none") or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.3)
    began, ended = (datetime.fromisoformat(shown[name] or stopped_at) for name in ("armed_at", "stopped_at"))
    return Recorded(call.recording, shown, (ended - began).total_seconds(), tuple(call.joined))


def _clips() -> tuple[Clip, Clip]:
    """Make what every party sends: a talking head and a voice, unstamped, so that they can be composed."""
    face = packetised(MIME, [data for data, _ in talking_head(1, VP8_360P)], stamped=False)
    return face, Clip("audio/opus", [[data] for data in voice(120.0)], 20, 960, stamped=False)
