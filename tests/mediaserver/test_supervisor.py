"""Workers are started, adopted, replaced and ended: real processes, a stand-in for the media inside them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mediaserver import supervisor
from mediaserver.config import Settings, load
from mediaserver.ipc import JsonObject
from mediaserver.supervisor import AlreadyRunning, Death, NoWorker, Worker, Workers

COMMAND = (sys.executable, "-m", "tests.mediaserver.stand_in_worker")


def settings_for(tmp_path: Path, workers: int = 1) -> Settings:
    return load(
        None,
        {
            "SHUANGLU__DATA_DIR": str(tmp_path / "data"),
            "SHUANGLU__MEDIA__WORKERS": str(workers),
            "SHUANGLU__MEDIA__PORT": "0",
        },
    )


class Seen:
    """What the supervisor told."""

    def __init__(self) -> None:
        self.up: list[Worker] = []
        self.events: list[JsonObject] = []
        self.deaths: list[Death] = []
        self.order: list[str] = []
        self.changed = asyncio.Event()

    async def on_up(self, worker: Worker) -> None:
        self.up.append(worker)
        self._note("up")

    async def on_events(
        self, worker: Worker, events: list[JsonObject], acknowledge: Callable[[], None]
    ) -> None:
        self.events += events
        acknowledge()
        self._note("event")

    async def on_death(self, death: Death) -> None:
        self.deaths.append(death)
        self._note("death")

    def _note(self, what: str) -> None:
        self.order.append(what)
        self.changed.set()

    async def until(self, *, up: int = 0, events: int = 0, deaths: int = 0) -> None:
        async with asyncio.timeout(15):
            while len(self.up) < up or len(self.events) < events or len(self.deaths) < deaths:
                self.changed.clear()
                await self.changed.wait()


def workers_with(settings: Settings, seen: Seen) -> Workers:
    return Workers(
        settings, on_up=seen.on_up, on_events=seen.on_events, on_death=seen.on_death, command=COMMAND
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_rooms_go_to_the_least_loaded_worker_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    seen = Seen()
    workers = workers_with(settings_for(tmp_path, workers=2), seen)
    started = await workers.start()
    try:
        assert [worker.index for worker in started] == [0, 1]
        assert (tmp_path / "data/run").stat().st_mode & 0o777 == 0o700
        where = [await workers.worker_for_room("t", f"r{n}") for n in range(4)]
        assert sorted(where) == [0, 0, 1, 1]
        assert await workers.worker_for_room("t", "r0") == where[0]

        first = started[0]
        await first.client.call("say", {"type": "last words"})
        os.kill(first.pid, signal.SIGKILL)
        await seen.until(up=3, events=1, deaths=1)
        assert seen.events == [{"type": "last words"}]
        assert seen.order.index("event") < seen.order.index("death")
        death = seen.deaths[0]
        assert (death.index, death.pid, death.exit_status) == (0, first.pid, -signal.SIGKILL)
        assert set(death.rooms) == {("t", f"r{n}") for n in range(4) if where[n] == 0}
        assert workers.index_of("t", death.rooms[0][1]) is None
        assert workers.client(0) is not first.client
        assert (await workers.client(0).call("hello"))["index"] == 0
        assert workers.deaths == 1
    finally:
        await workers.close()
    assert not any(alive(worker.pid) for worker in seen.up)
    assert not list((tmp_path / "data/run").glob("*.sock"))


async def test_a_new_control_process_adopts_what_the_old_one_left(tmp_path: Path) -> None:
    settings, seen = settings_for(tmp_path), Seen()
    old = workers_with(settings, seen)
    worker = (await old.start())[0]
    assert await old.worker_for_room("bank", "room 1") == 0
    await worker.client.call("room.open", {"tenant": "bank", "room": "room 1"})
    with pytest.raises(AlreadyRunning):
        await workers_with(settings, Seen()).start()
    await old.close(leave_workers=True)
    assert alive(worker.pid)

    again = Seen()
    new = workers_with(settings, again)
    adopted = (await new.start())[0]
    try:
        assert (adopted.pid, adopted.adopted) == (worker.pid, True)
        assert new.index_of("bank", "room 1") == 0
        os.kill(adopted.pid, signal.SIGKILL)
        await again.until(up=2, deaths=1)
        assert again.deaths[0].rooms == (("bank", "room 1"),)
    finally:
        await new.close()


async def test_a_hung_worker_is_killed_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(supervisor, "HEARTBEAT_TIMEOUT_S", 0.3)
    seen = Seen()
    workers = workers_with(settings_for(tmp_path), seen)
    worker = (await workers.start())[0]
    try:
        hanging = asyncio.ensure_future(worker.client.call("hang", timeout_s=30))
        await seen.until(up=2, deaths=1)
        with pytest.raises(ConnectionError):
            await hanging
        assert not alive(worker.pid)
    finally:
        await workers.close()


async def test_the_spare_takes_over_and_is_replaced(tmp_path: Path) -> None:
    seen = Seen()
    workers = workers_with(settings_for(tmp_path), seen)
    worker = (await workers.start())[0]
    spare = workers._spare
    assert spare is not None
    try:
        os.kill(worker.pid, signal.SIGKILL)
        await seen.until(up=2, deaths=1)
        assert seen.up[1].pid == spare.pid
        await asyncio.sleep(0)
        assert workers._spare is not None
        assert workers._spare.pid != spare.pid
    finally:
        last = workers._spare
        await workers.close()
    assert last is not None
    assert not alive(last.pid)


async def test_while_draining_there_are_no_new_rooms(tmp_path: Path) -> None:
    workers = workers_with(settings_for(tmp_path), Seen())
    await workers.start()
    try:
        await workers.worker_for_room("t", "old")
        await workers.drain()
        assert await workers.worker_for_room("t", "old") == 0
        with pytest.raises(NoWorker, match="draining"):
            await workers.worker_for_room("t", "new")
    finally:
        await workers.close()


async def test_a_worker_that_cannot_start_is_told_at_once(tmp_path: Path) -> None:
    workers = Workers(settings_for(tmp_path), command=(sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(NoWorker):
        await workers.start()
    await workers.close()


def test_workers_are_told_their_port_and_addresses(tmp_path: Path) -> None:
    settings = load(
        None, {"SHUANGLU__MEDIA__ADVERTISED": "[203.0.113.7]", "SHUANGLU__DATA_DIR": str(tmp_path)}
    )
    config = Workers(settings).config_of(1)
    assert (config.port, config.advertised) == (7883, ("203.0.113.7",))
    assert config.socket == tmp_path / "run/worker-1.sock"
