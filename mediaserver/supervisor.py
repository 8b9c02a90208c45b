"""Keeps the media workers running: starts, adopts, watches, replaces and ends them.

A worker is a process of its own session, so that whatever ends the control process leaves its calls alone.
A control process that starts again finds the live ones by their sockets in ``{data}/run`` and adopts them.
Death is seen at once through a pidfd; a worker that stops answering is killed. This module knows processes
and where rooms are, nothing of what rooms mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mediaserver import addresses
from mediaserver.config import for_children
from mediaserver.ipc import IpcClient, IpcError, JsonObject
from mediaserver.keys import server_keys
from mediaserver.settings import Settings, WorkerConfig
from recorder.keys import ProviderConfig

START_TIMEOUT_S = 30.0
HEARTBEAT_S = 2.0
HEARTBEAT_TIMEOUT_S = 5.0
HEARTBEATS_MISSED = 2
"""A worker that left this many heartbeats in a row unanswered hangs: it is killed and replaced."""
READ_EVERY_S = 1.0

_log = logging.getLogger(__name__)

RoomKey = tuple[str, str]
"""Tenant and room name."""


class NoWorker(Exception):
    """No worker takes the room: all are down or draining (503)."""


class AlreadyRunning(Exception):
    """Another control process runs on this data directory."""


@dataclass
class Worker:
    """A live worker as control sees it."""

    index: int
    pid: int
    client: IpcClient
    hello: JsonObject
    """Its state when it was started or adopted; see the method ``hello``."""
    adopted: bool
    draining: bool = False
    stats: JsonObject = field(default_factory=dict)
    """Answers of the method ``stats``: the last heartbeat's over the last complete one."""
    process: subprocess.Popen[bytes] | None = None
    """None if it is not our child (adopted)."""


@dataclass(frozen=True)
class Death:
    """A worker died; its rooms and their sessions are gone."""

    index: int
    pid: int
    exit_status: int | None
    """As subprocess has it (negative: the signal); None for an adopted worker."""
    rooms: tuple[RoomKey, ...]
    at_ns: int


async def _nothing(*_: object) -> None:
    return None


async def _taken(worker: Worker, events: list[JsonObject], acknowledge: Callable[[], None]) -> None:
    acknowledge()


OnEvents = Callable[[Worker, list[JsonObject], Callable[[], None]], Awaitable[None]]


class Workers:
    """All workers of this machine.

    ``on_up(worker)`` is awaited when one was started or adopted, before its first event;
    ``on_events(worker, events, acknowledge)`` for the events that have come, in order per worker; it calls
    ``acknowledge`` when they are in safe hands, before or after it returns;
    ``on_death(death)`` once all events of a dead worker are processed, while its replacement starts. An
    exception in one of them is logged and changes nothing.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_up: Callable[[Worker], Awaitable[None]] = _nothing,
        on_events: OnEvents = _taken,
        on_death: Callable[[Death], Awaitable[None]] = _nothing,
        command: Sequence[str] = (sys.executable, "-m", "mediaserver.media.worker"),
        keys: ProviderConfig | None = None,
    ) -> None:
        """``keys``: where the workers' signing key is; None: as the settings say."""
        self._settings = settings
        self._keys = (keys or server_keys(settings)).for_sealing()
        self._on_up, self._on_events, self._on_death = on_up, on_events, on_death
        self._command = list(command)
        self._count = settings.media.workers or len(os.sched_getaffinity(0))
        self._workers: dict[int, Worker] = {}
        self._rooms: dict[RoomKey, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._draining = False
        self._ending = False
        self._lock = -1
        self._spare: subprocess.Popen[bytes] | None = None
        self._read_s = -READ_EVERY_S
        self.deaths = 0
        """Workers that died since this control process started."""

    async def start(self) -> list[Worker]:
        """Adopt the live workers and start the missing ones; returns all, by index.

        Raises AlreadyRunning, or NoWorker if not one worker could be started.
        """
        self.claim()
        run_dir = self._settings.run_dir
        left = {int(path.stem.removeprefix("worker-")) for path in run_dir.glob("worker-[0-9]*.sock")}
        indices = sorted(left | set(range(self._count)))
        await asyncio.gather(*(self._bring_up(index) for index in indices))
        if not self._workers:
            raise NoWorker("no media worker could be started; the log says why")
        for index in set(range(self._count)) - set(self._workers):
            self._task(self._replace(index), f"replacement of worker {index}")
        self._keep_spare()
        return self.all()

    def claim(self) -> None:
        """Make the data directory ours until ``close``. Raises AlreadyRunning if another process has it."""
        if self._lock >= 0:
            return
        run_dir = self._settings.run_dir
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        run_dir.chmod(0o700)
        lock = os.open(run_dir / "control.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise AlreadyRunning(f"another server runs on {self._settings.data_dir}") from None
        self._lock = lock

    def all(self) -> list[Worker]:
        """Return the live workers by index."""
        return [self._workers[index] for index in sorted(self._workers)]

    def client(self, index: int) -> IpcClient:
        """Return the line to a worker; NoWorker if it is down."""
        worker = self._workers.get(index)
        if worker is None:
            raise NoWorker(f"worker {index} is down")
        return worker.client

    def index_of(self, tenant: str, room: str) -> int | None:
        """Return where a room is, None if nowhere."""
        return self._rooms.get((tenant, room))

    def rooms_on(self, index: int) -> list[RoomKey]:
        return [key for key, where in self._rooms.items() if where == index]

    async def worker_for_room(self, tenant: str, room: str, timeout_s: float = 10.0) -> int:
        """Return the worker of a room, assigning the least loaded one to a new room.

        While no worker is up (the only one has just died) waits for one. Raises NoWorker after ``timeout_s``,
        and at once for a new room while draining.
        """
        key = (tenant, room)
        deadline = time.monotonic() + timeout_s
        async with self._changed:
            while True:
                if key in self._rooms:
                    return self._rooms[key]
                if self._draining:
                    raise NoWorker("the server is draining: no new rooms")
                free = [worker for worker in self._workers.values() if not worker.draining]
                if free:
                    index = min(free, key=self._load).index
                    self._rooms[key] = index
                    return index
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        await self._changed.wait()
                except TimeoutError:
                    raise NoWorker("no media worker is up") from None

    def release_room(self, tenant: str, room: str) -> None:
        """Forget where a room was: it closed."""
        self._rooms.pop((tenant, room), None)

    async def drain(self) -> None:
        """Assign no more rooms and tell every worker."""
        self._draining = True
        for worker in self.all():
            worker.draining = True
            with contextlib.suppress(ConnectionError, TimeoutError, IpcError):  # it is dying anyway
                await worker.client.call("drain", timeout_s=2.0)

    async def close(
        self, *, leave_workers: bool = False, release: bool = True, timeout_s: float = 10.0
    ) -> None:
        """End all workers (asked, then SIGTERM, then SIGKILL), or leave them for the next control process.

        Without ``release`` the data directory stays ours until that is called.
        """
        self._ending = True
        if not leave_workers:
            await asyncio.gather(*(self._end(worker, timeout_s) for worker in self.all()))
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self.all():
            await worker.client.close()
        self._workers.clear()
        if self._spare is not None:
            self._spare.kill()
            self._spare.wait()
            self._spare = None
        if release:
            self.release()

    def release(self) -> None:
        """Let another control process have the data directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def read_stats(self, timeout_s: float = 2.0) -> None:
        """Bring every worker's ``stats`` up to date; one that does not answer keeps the former ones.

        Once a second at most, because anybody may ask for metrics.
        """
        now = time.monotonic()
        if now - self._read_s < READ_EVERY_S:
            return
        self._read_s = now

        async def read(worker: Worker) -> None:
            with contextlib.suppress(ConnectionError, TimeoutError, IpcError):  # heartbeats judge it
                worker.stats = await worker.client.call("stats", timeout_s=timeout_s)

        await asyncio.gather(*(read(worker) for worker in self.all()))

    def _load(self, worker: Worker) -> tuple[int, int, int]:
        participants = worker.stats.get("participants", 0)
        return (
            len(self.rooms_on(worker.index)),
            participants if isinstance(participants, int) else 0,
            worker.index,
        )

    def _socket(self, index: int) -> Path:
        return self._settings.run_dir.absolute() / f"worker-{index}.sock"

    async def _bring_up(self, index: int) -> None:
        worker = await self._adopt(index)
        if worker is None and index < self._count:
            worker = await self._spawn(index)
        if worker is None:
            return
        if index >= self._count:
            worker.draining = True  # left by a configuration with more workers: its calls end in peace
        self._workers[index] = worker
        for room in worker.hello.get("rooms", []):
            self._rooms[room["tenant"], room["room"]] = index
        await self._tell(self._on_up(worker), "on_up")
        events = self._task(self._follow(worker), f"events of worker {index}")
        self._task(self._watch(worker, events), f"watch of worker {index}")
        self._task(self._heartbeats(worker), f"heartbeats of worker {index}")
        async with self._changed:
            self._changed.notify_all()

    async def _adopt(self, index: int) -> Worker | None:
        path = self._socket(index)
        if not path.exists():
            return None
        client = IpcClient(path)
        try:
            await client.connect(timeout_s=1.0)
            hello = await client.call("hello", timeout_s=HEARTBEAT_TIMEOUT_S)
        except ConnectionError:
            _log.info("worker %d left a socket but is gone", index)
            path.unlink(missing_ok=True)
        except (TimeoutError, IpcError) as error:
            _log.error("worker %d (pid %d) does not answer, killing it: %s", index, client.peer_pid, error)
            with contextlib.suppress(ProcessLookupError):
                os.kill(client.peer_pid, signal.SIGKILL)
        else:
            _log.info("adopted worker %d (pid %d)", index, client.peer_pid)
            return Worker(index, client.peer_pid, client, hello, adopted=True)
        await client.close()
        return None

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start a worker process, which then waits for its settings."""
        # Standard output goes where our log goes. No pipe of ours may be involved: it would break with us.
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=2,
            start_new_session=True,
            env=for_children(os.environ),
        )

    def _keep_spare(self) -> None:
        """Have one process loaded that only lacks its settings: loading takes seconds on a busy machine."""
        if self._settings.media.spare and self._spare is None and not self._ending:
            self._spare = self._launch()

    async def _spawn(self, index: int) -> Worker | None:
        config = self.config_of(index)
        process, self._spare = self._spare or self._launch(), None
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died already: the connection below fails
            process.stdin.write(config.model_dump_json().encode() + b"\n")
            process.stdin.close()
        client = IpcClient(config.socket)
        connecting = asyncio.create_task(client.connect(START_TIMEOUT_S))
        exited = asyncio.create_task(_exit_of(process.pid))
        try:
            await asyncio.wait({connecting, exited}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                _log.error("worker %d ended at its start with status %s", index, process.wait())
                await client.close()
                return None
            await connecting
            hello = await client.call("hello", timeout_s=START_TIMEOUT_S)
        except (ConnectionError, TimeoutError, IpcError) as error:
            _log.error("worker %d did not come up: %s", index, error)
            process.kill()
            process.wait()
            await client.close()
            return None
        finally:
            connecting.cancel()
            exited.cancel()
            await asyncio.gather(connecting, exited, return_exceptions=True)
        _log.info("started worker %d (pid %d)", index, process.pid)
        return Worker(index, process.pid, client, hello, adopted=False, process=process)

    def config_of(self, index: int) -> WorkerConfig:
        """Return what worker ``index`` is told at its start."""
        settings = self._settings
        return WorkerConfig(
            index=index,
            socket=self._socket(index),
            bind=settings.media.bind,
            port=settings.media.port + index if settings.media.port else 0,
            tcp_port=settings.media.tcp_port,
            advertised=addresses.advertised(settings),
            media=settings.media,
            recording=settings.recording,
            keys=self._keys,
            log=settings.log,
            heads_s=settings.audit.heads_s,
        )

    async def _follow(self, worker: Worker) -> None:
        async for events, acknowledge in worker.client.batches():
            await self._tell(self._on_events(worker, events, acknowledge), "on_events")

    async def _watch(self, worker: Worker, events: asyncio.Task[None]) -> None:
        """Wait for a worker's death, tell it, and start its replacement."""
        await _exit_of(worker.pid)
        at_ns = time.monotonic_ns()
        status = worker.process.wait() if worker.process else None  # it has ended
        rooms = tuple(self.rooms_on(worker.index))
        for room in rooms:
            del self._rooms[room]
        del self._workers[worker.index]
        await worker.client.close()
        self._socket(worker.index).unlink(missing_ok=True)  # else its replacement tries to adopt it, 1 s
        if self._ending:
            return
        self.deaths += 1
        _log.error(
            "worker %d (pid %d) died, status %s, with %d rooms", worker.index, worker.pid, status, len(rooms)
        )
        self._task(self._replace(worker.index), f"replacement of worker {worker.index}")
        await asyncio.wait({events}, timeout=5.0)  # what it said before it died comes first
        await self._tell(self._on_death(Death(worker.index, worker.pid, status, rooms, at_ns)), "on_death")

    async def _replace(self, index: int) -> None:
        """Start a worker again until one stays: at once, then ever more seldom, 5 s at most."""
        delay_s = 0.25
        while index < self._count and not self._ending and index not in self._workers:
            await self._bring_up(index)
            if index not in self._workers:
                await asyncio.sleep(delay_s)
                delay_s = min(5.0, delay_s * 2)
        self._keep_spare()

    async def _heartbeats(self, worker: Worker) -> None:
        missed = 0
        while self._workers.get(worker.index) is worker and not self._ending:
            await asyncio.sleep(HEARTBEAT_S)
            if self._ending:
                return  # it closes, in its own time
            try:
                stats = await worker.client.call("stats", {"brief": True}, timeout_s=HEARTBEAT_TIMEOUT_S)
                worker.stats = {**worker.stats, **stats}
                missed = 0
            except (ConnectionError, TimeoutError, IpcError) as error:
                if self._ending or self._workers.get(worker.index) is not worker:
                    return
                missed += 1
                _log.warning("worker %d left a heartbeat unanswered: %s", worker.index, error)
            if missed >= HEARTBEATS_MISSED and self._workers.get(worker.index) is worker:
                _log.error("worker %d hangs, killing pid %d", worker.index, worker.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                return

    async def _end(self, worker: Worker, timeout_s: float) -> None:
        exited = asyncio.create_task(_exit_of(worker.pid))
        with contextlib.suppress(ConnectionError, TimeoutError, IpcError):  # the signals below reach it
            await worker.client.call("quit", timeout_s=min(5.0, timeout_s))
        for deadly in (signal.SIGTERM, signal.SIGKILL, None):
            done, _ = await asyncio.wait({exited}, timeout=timeout_s)
            if done or deadly is None:
                break
            _log.warning("worker %d does not end, sending %s", worker.index, deadly.name)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, deadly)
        exited.cancel()
        await asyncio.gather(exited, return_exceptions=True)

    async def _tell(self, callback: Awaitable[None], name: str) -> None:
        try:
            await callback
        except Exception:
            _log.exception("%s failed", name)

    def _task(self, body: Awaitable[None], name: str) -> asyncio.Task[None]:
        task = asyncio.ensure_future(body)
        assert isinstance(task, asyncio.Task)
        task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _exit_of(pid: int) -> None:
    """Wait until a process, child or not, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
