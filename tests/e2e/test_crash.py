"""Kill -9 of every kind of process at random moments of a recording, and what is left of it.

Loss is measured against what the server had received: packets arrive every 20 ms or sooner, so the distance
from the last kept packet before a kill to the kill itself is what the kill cost.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import aiohttp
import pytest

from tests.e2e import peers
from tests.e2e.api import Api, Problem
from tests.e2e.conftest import LONG
from tests.e2e.evidence import NonceLedger, arrivals_ns, records_of
from tests.e2e.measure import look, parties_shown
from tests.e2e.stage import Stage
from tests.media.barcode import Box
from tests.media.film import Film, read_film
from tests.media.pictures import CUSTOMER
from tests.media.tracks import CameraTrack, MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300 if LONG else 150)]

KILLS = 5 if LONG else 1
LOST_NS = 1_000_000_000
REJOIN_S = 5.0
MOMENT_S = (2.0, 5.0)
AFTER_S = 4.0
TILE = {"right": Box(640, 0, 640, 720)}


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Run a server that may be broken."""
    with Stage(tmp_path_factory.mktemp("fragile") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def ledger(fragile: Stage) -> NonceLedger:
    """Return the ledger of all sealed files of the fragile server."""
    return NonceLedger(fragile.data)


@dataclass
class Caller:
    """A customer who publishes, and joins again whenever the server no longer knows of it."""

    api: Api
    room: str
    token: str
    session: peers.Session | None = None
    joined_at: list[float] = field(default_factory=list)
    """Monotonic times at which it was connected."""
    hold_s: float = 0.0
    """It waits so long before it joins again: a gap long enough for the card "signal lost"."""
    left: bool = False

    async def join(self) -> None:
        """Publish and wait until media flows."""
        tracks = [CameraTrack(CUSTOMER), MicrophoneTrack(CUSTOMER)]
        self.session = await peers.publish(self.api, self.room, self.token, tracks)
        await peers.connected(self.session)
        self.joined_at.append(time.monotonic())

    async def keep_joined(self) -> None:
        """Look every 200 ms whether the server still has us, as the page does by the event stream."""
        while not self.left:
            await asyncio.sleep(0.2)
            if await self._known() is not False:
                continue
            if self.session is not None:
                await self.session.connection.close()
                self.session = None
                await asyncio.sleep(self.hold_s)
            try:
                await self.join()
            except (Problem, AssertionError, aiohttp.ClientError):
                continue

    async def _known(self) -> bool | None:
        """Say whether the server has our session; None when nobody answers (the call itself goes on)."""
        if self.session is None:
            return False
        try:
            people = await self.api.participants(self.room)
        except (aiohttp.ClientError, TimeoutError):
            return None
        except Problem as problem:
            return None if problem.status >= 500 else False
        return any(one["identity"] == CUSTOMER.identity and one["connected"] for one in people)

    async def leave(self) -> None:
        """Leave for good."""
        self.left = True
        if self.session is not None:
            await self.session.close()


@asynccontextmanager
async def calling(api: Api, room: str) -> AsyncIterator[Caller]:
    """Run a call of one customer."""
    await api.room(room)
    caller = Caller(api, room, await api.token(room, CUSTOMER.identity, CUSTOMER.role))
    await caller.join()
    keeping = asyncio.create_task(caller.keep_joined())
    try:
        yield caller
    finally:
        caller.left = True
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await caller.leave()


def kill(stage: Stage, what: str) -> int:
    """Kill the newest process of a kind; returns the monotonic ns."""
    os.kill(stage.pids(what)[-1], signal.SIGKILL)
    return time.monotonic_ns()


async def finished(api: Api, recording: dict[str, Any]) -> tuple[dict[str, Any], Film]:
    """Stop, wait for the composite, verify; returns the recording object and the film."""
    stopped = await api.stop(recording["id"])
    shown, _ = await api.composed(recording["id"])
    report = await api.call("POST", f"/v1/recordings/{recording['id']}/verify")
    assert report["ok"] is True, report
    assert shown["id"] == recording["id"]
    film = read_film((await api.file(recording["id"], "composite.mp4")).body)
    wall_s = (when(stopped["stopped_at"]) - when(recording["armed_at"])).total_seconds()
    assert abs(film.duration_s - wall_s) <= 0.1
    # While the cards say that the signal is lost nothing but the clock moves.
    assert max(late - early for early, late in itertools.pairwise(film.frame_times_s)) < 0.2001
    assert all(abs(at_s * 25 - round(at_s * 25)) < 0.01 for at_s in film.frame_times_s)
    return shown, film


def when(text: str) -> datetime:
    """Parse an RFC 3339 time."""
    return datetime.fromisoformat(text)


@pytest.mark.parametrize("number", range(KILLS))
async def test_worker_killed(fragile: Stage, ledger: NonceLedger, seed: int, number: int) -> None:
    moment_s = random.Random(seed + number).uniform(*MOMENT_S)
    print(f"seed {seed + number}: kill after {moment_s:.2f} s")
    async with Api(fragile.base, fragile.key()) as api, calling(api, f"worker-{number}") as caller:
        recording = await api.record(caller.room, f"WORKER-{number}")
        armed_mono_ns = time.monotonic_ns() - (
            time.time_ns() - int(when(recording["armed_at"]).timestamp() * 1e9)
        )
        caller.hold_s = 3.0 if number % 2 == 0 else 0.0
        await asyncio.sleep(moment_s)
        killed_ns = kill(fragile, "worker")
        ledger.look(workers_are_dead=True)
        while len(caller.joined_at) < 2:
            assert time.monotonic_ns() - killed_ns < (REJOIN_S + 10) * 1e9, fragile.log_end()
            await asyncio.sleep(0.05)
        rejoined_s = caller.joined_at[1] - killed_ns / 1e9 - caller.hold_s
        await asyncio.sleep(AFTER_S)
        ledger.look()
        shown, film = await finished(api, recording)
    arrivals = arrivals_ns(await records_of(fragile, recording["id"]))
    kept = [arrival for arrival in arrivals if arrival <= killed_ns]
    again = [arrival for arrival in arrivals if arrival > killed_ns]
    lost_ns = killed_ns - kept[-1]
    print(f"lost {lost_ns / 1e6:.0f} ms, rejoined after {rejoined_s:.2f} s, gaps {shown['gaps']}")
    assert lost_ns <= LOST_NS
    assert rejoined_s <= REJOIN_S
    assert shown["parts"] == 2
    assert len(again) > 50 * (AFTER_S - 1)
    gap_ms = ((kept[-1] - armed_mono_ns) / 1e6, (again[0] - armed_mono_ns) / 1e6)
    assert any(
        gap["from_ms"] <= gap_ms[0] + 1000 and gap["to_ms"] >= gap_ms[0] + 100 for gap in shown["gaps"]
    ), (gap_ms, shown["gaps"])
    frames = look(film, when(recording["armed_at"]), TILE)
    # The last picture may stand for 2 s, then the card "signal lost" takes its place.
    inside = [frame for frame in frames if gap_ms[0] + 2100 < frame.at_s * 1000 < gap_ms[1] - 100]
    assert bool(inside) == bool(caller.hold_s)
    assert all(frame.codes["right"] is None for frame in inside), parties_shown(frames, "right")
    assert frames[-10].codes["right"] is not None, "the picture is back"
    ledger.look()
    print(f"{ledger.check_left()} files left by dead writers, {ledger.nonces:,} nonces in all looks")


@pytest.mark.parametrize("number", range(KILLS))
async def test_control_killed(fragile: Stage, ledger: NonceLedger, seed: int, number: int) -> None:
    moment_s = random.Random(seed + 100 + number).uniform(*MOMENT_S)
    print(f"seed {seed + 100 + number}: kill after {moment_s:.2f} s")
    async with Api(fragile.base, fragile.key()) as api, calling(api, f"control-{number}") as caller:
        recording = await api.record(caller.room, f"CONTROL-{number}")
        await asyncio.sleep(moment_s)
        workers = fragile.pids("worker")
        killed_ns = kill(fragile, "control")
        await asyncio.sleep(1)
        await asyncio.to_thread(fragile.start)
        assert fragile.pids("worker") == workers, "the worker lives on"
        await asyncio.sleep(AFTER_S)
        assert len(caller.joined_at) == 1, "the call was not cut"
        shown, film = await finished(api, recording)
    arrivals = [one for one in arrivals_ns(await records_of(fragile, recording["id"]))]
    around = [one for one in arrivals if abs(one - killed_ns) < 3_000_000_000]
    widest_ns = max(late - early for early, late in itertools.pairwise(around))
    print(f"widest distance of packets around the kill {widest_ns / 1e6:.0f} ms")
    assert widest_ns < 500_000_000, "no media is lost"
    assert shown["parts"] == 1
    assert shown["gaps"] == []
    frames = look(film, when(recording["armed_at"]), TILE)
    assert all(frame.codes["right"] is not None for frame in frames[25:-5]), parties_shown(frames, "right")
    ledger.look()
    ledger.check_left()


@pytest.mark.parametrize("number", range(KILLS))
async def test_compositor_killed(fragile: Stage, ledger: NonceLedger, seed: int, number: int) -> None:
    moment_s = random.Random(seed + 200 + number).uniform(*MOMENT_S)
    print(f"seed {seed + 200 + number}: kill after {moment_s:.2f} s")
    async with Api(fragile.base, fragile.key()) as api, calling(api, f"compositor-{number}") as caller:
        recording = await api.record(caller.room, f"COMPOSITOR-{number}")
        await asyncio.sleep(moment_s)
        kill(fragile, "compositor")
        ledger.look()
        await asyncio.sleep(AFTER_S)
        assert len(caller.joined_at) == 1
        shown, film = await finished(api, recording)
    arrivals = arrivals_ns(await records_of(fragile, recording["id"]))
    assert max(late - early for early, late in itertools.pairwise(arrivals)) < 500_000_000
    assert (shown["parts"], shown["gaps"]) == (1, [])
    frames = look(film, when(recording["armed_at"]), TILE)
    assert all(frame.codes["right"] is not None for frame in frames[25:-5]), parties_shown(frames, "right")
    ledger.look()
    ledger.check_left()
