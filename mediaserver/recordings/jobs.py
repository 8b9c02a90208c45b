"""Background work that must not be lost, durable through DBOS: finishing recordings, events, tasks.

A task is any further kind of work: a coroutine function registered with ``handle`` and started with ``task``.
It is tried until it returns, so it looks first what of it is done.

Only the control process launches it, with a fixed executor id, so that a new process takes up what the old
one left, and with a version raised by hand: by default every changed workflow would orphan its pending runs
silently. Steps may run twice (the process may die between a step and its record), so each looks first whether
its work is done. Arguments and results are JSON without secrets and without names: recording ids and numbers.

DBOS polls its tables, which costs 4 % of a core for nothing. So it runs only while something is unfinished:
it is launched for the first job and taken down when all have ended.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from dbos import DBOS, DBOSConfig, Serializer, SetWorkflowID

_log = logging.getLogger(__name__)

WORKFLOW_VERSION = "1"
"""Raise it when the steps of a workflow change; runs of other versions are then started anew, loudly."""
QUEUE = "compose"
WEBHOOKS = "webhooks"
TASKS = "tasks"
"""Begins the names of the queues of tasks: one for each kind, and for each lane of a kind. A task holds its
place while it waits for its next try; what waits for one server or site must not hold up any other."""
TASKS_AT_ONCE = 512
"""Of one queue. Tasks mostly wait for a disk or a network; each bounds for itself what it does at once."""
TASKS_POLL_S = 1.0
"""Longer than of the others, because these queues are more."""
WEBHOOKS_AT_ONCE = 16
"""Deliveries under way, those that wait for their next try included; the others queue."""
POLL_S = 0.5
REST_S = 10.0
"""Without a new job for so long, and with none unfinished, DBOS is taken down until the next one, which then
waits 0.1 s for it."""
KEPT_DAYS = 7
FORGET_AT_ONCE = 1000
FIRST_RETRY_S = 5.0
LAST_RETRY_S = 3600.0
LAST_TASK_RETRY_S = 300.0
UNFINISHED = ("PENDING", "ENQUEUED", "DELAYED")

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[[str], Awaitable[dict[str, Any]]]
Deliver = Callable[[str, int], Awaitable[bool]]
Task = Callable[[str], Awaitable[None]]


class Closing(BaseException):
    """The process ends under a running step. No Exception: DBOS must not record it as an outcome."""


class PlainJson(Serializer):
    """JSON without pickle: nothing read from the database can run code."""

    def serialize(self, data: Any) -> str:
        """Write JSON; exceptions as their text."""
        return json.dumps(data, default=str)

    def deserialize(cls, serialized_data: str) -> Any:
        """Read JSON."""
        return json.loads(serialized_data)

    def name(self) -> str:
        """Name the format in the database."""
        return "plain_json"


class Jobs:
    """Starts durable work. There is one in a process, because DBOS is one."""

    def __init__(
        self,
        url: str,
        executor_id: str,
        *,
        compose: Work,
        conclude: Work,
        deliver: Deliver,
        retry_s: float,
        max_parallel: int,
    ) -> None:
        self._url = url
        self._executor_id = executor_id
        self._work = {"compose": compose, "conclude": conclude}
        self._tasks: dict[str, Task] = {}
        self._queues: set[str] = set()
        """Queues of tasks that DBOS was told of here. It keeps them in its tables, and serves all of them."""
        self.retry_s = retry_s
        """How long a delivery is tried."""
        self._deliver = deliver
        self._max_parallel = max_parallel
        self.loop = asyncio.get_running_loop()
        """The event loop that work runs in, for its threads."""
        self._closing = threading.Event()
        self._running: set[asyncio.Task[dict[str, Any]]] = set()
        self._turning = asyncio.Lock()
        self._is_up = False
        self._calls = 0
        self._called_s = 0.0
        self._watch: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """DBOS runs just now."""
        return self._is_up

    async def launch(self) -> list[str]:
        """Start DBOS; it takes up what an earlier process left. Returns ids of runs of other versions."""
        global _jobs
        if _jobs is not None:
            raise RuntimeError("another server runs in this process; DBOS is one for all")
        _jobs = self
        async with self._turning:
            await self._up()
        return await self._call(self._cancel_stale)

    async def _up(self) -> None:
        await asyncio.to_thread(self._launch)
        self._is_up = True
        self._watch = asyncio.create_task(self._rest_when_done(), name="jobs at rest")

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that needs DBOS in a thread, launching it first if it rests."""
        async with self._turning:
            if self._closing.is_set():
                raise RuntimeError("the server closes: no new jobs")
            if not self._is_up:
                await self._up()
            self._calls += 1
        try:
            # Not in a copy of this context: within a step DBOS would refuse to start anything.
            work = functools.partial(function, *args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(None, work)
        finally:
            self._calls -= 1
            self._called_s = time.monotonic()

    async def _rest_when_done(self) -> None:
        """Take DBOS down once nothing is left to do."""
        while self._is_up:
            await asyncio.sleep(max(REST_S / 2, self._called_s + REST_S - time.monotonic()))
            async with self._turning:
                if self._calls or self._running or time.monotonic() - self._called_s < REST_S:
                    continue
                try:
                    if not await asyncio.to_thread(_anything_unfinished):
                        await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
                        self._is_up = False
                except Exception:
                    _log.exception("the job runner could not be taken to rest; it is tried again")

    def _launch(self) -> None:
        logging.getLogger("dbos").setLevel(logging.WARNING)
        config: DBOSConfig = {
            "name": "shuanglu",
            "system_database_url": self._url,
            "application_version": WORKFLOW_VERSION,
            "executor_id": self._executor_id,
            "serializer": PlainJson(),
            "log_level": "WARNING",
            "max_executor_threads": 64,
            "notification_listener_polling_interval_sec": 0.5,  # also how long its end takes
            "scheduler_polling_interval_sec": 600.0,
        }
        DBOS(config=config)
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=self._max_parallel,
            polling_interval_sec=POLL_S,
            on_conflict="always_update",
        )
        DBOS.register_queue(
            WEBHOOKS,
            worker_concurrency=WEBHOOKS_AT_ONCE,
            polling_interval_sec=POLL_S,
            on_conflict="always_update",
        )

    def handle(self, kind: str, work: Task) -> None:
        """Say what does the tasks of a kind. Call it before ``launch``: it may take up old ones."""
        self._tasks[kind] = work

    def _cancel_stale(self) -> list[str]:
        stale = [
            run.workflow_id
            for run in DBOS.list_workflows(status=list(UNFINISHED))
            if run.app_version not in (None, WORKFLOW_VERSION)
        ]
        for workflow in stale:
            _log.error("job %s is of another version of this server: cancelled, to be started anew", workflow)
            DBOS.cancel_workflow(workflow)
        return stale

    async def finish(self, recording: str, run: int, *, at_once: bool) -> None:
        """Finish a recording in the background; the same ``run`` number never runs twice.

        ``at_once`` is for a composite that followed the call and only has its last seconds to do; all others
        wait in a queue, so that not more are made at once than the machine bears.
        """
        await self._call(self._start, f"finish-{recording}-{run}", recording, at_once)

    def _start(self, workflow: str, recording: str, at_once: bool) -> None:
        with SetWorkflowID(workflow):
            if at_once:
                DBOS.start_workflow(finish_recording, recording)
            else:
                DBOS.enqueue_workflow(QUEUE, finish_recording, recording)

    async def forget_old(self) -> int:
        """Delete what is kept of runs that ended over a week ago, a page at a time; returns how many.

        Only while DBOS runs anyway: at rest nothing is added to what is kept.
        """
        return await self._call(self._forget_old) if self._is_up else 0

    def _forget_old(self) -> int:
        before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=KEPT_DAYS)
        old = DBOS.list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED"],
            completed_before=before.isoformat(),
            limit=FORGET_AT_ONCE,
        )
        if old:
            DBOS.delete_workflows([run.workflow_id for run in old])
        return len(old)

    async def deliver(self, key_id: str, seq: int) -> None:
        """Deliver an event to an API key's URL in the background; handed over twice it is delivered once."""
        await self._call(self._start_delivery, key_id, seq)

    def _start_delivery(self, key_id: str, seq: int) -> None:
        with SetWorkflowID(f"deliver-{key_id}-{seq}"):
            DBOS.enqueue_workflow(WEBHOOKS, deliver_event, key_id, seq)

    async def task(self, kind: str, argument: str, run: int | str = 1, *, lane: str = "") -> None:
        """Do a task in the background; handed over twice with the same ``run`` it is done once.

        ``argument`` is an id or short JSON, without secrets and names. Whatever the task raises is logged,
        and it is tried again after 5 s, 10 s … 5 min until it returns. Tasks of one kind queue behind each
        other only within their ``lane``: the name of what they wait for.
        """
        if kind not in self._tasks:
            raise ValueError(f"no task of kind {kind!r} is known")
        queue = "-".join(filter(None, (TASKS, kind, lane)))
        await self._call(self._start_task, queue, kind, argument, f"{kind}-{argument}-{run}")

    def _start_task(self, queue: str, kind: str, argument: str, workflow: str) -> None:
        if queue not in self._queues:
            DBOS.register_queue(
                queue,
                worker_concurrency=TASKS_AT_ONCE,
                polling_interval_sec=TASKS_POLL_S,
                on_conflict="always_update",
            )
            self._queues.add(queue)
        with SetWorkflowID(workflow):
            DBOS.enqueue_workflow(queue, run_task, kind, argument)

    async def try_task(self, kind: str, argument: str) -> bool:
        """Try a task once, from the event loop of DBOS; True when it is done."""

        async def run() -> dict[str, Any]:
            await self._tasks[kind](argument)
            return {}

        try:
            await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(self._tracked(run(), f"{kind} {argument}"), self.loop)
            )
        except (asyncio.CancelledError, RuntimeError) as error:
            if self._closing.is_set():
                raise Closing from error
            _log.exception("task %s %s failed; it is tried again", kind, argument)
            return False
        except Exception:
            _log.exception("task %s %s failed; it is tried again", kind, argument)
            return False
        return True

    async def try_delivery(self, key_id: str, seq: int) -> bool:
        """Deliver once, from the event loop of DBOS."""

        async def run() -> bool:
            return await self._deliver(key_id, seq)

        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), self.loop))
        except (asyncio.CancelledError, RuntimeError) as error:
            if self._closing.is_set():
                raise Closing from error
            raise

    def perform(self, work: str, recording: str) -> dict[str, Any]:
        """Run one piece of work in the event loop and wait for it, from a thread of DBOS."""
        future = asyncio.run_coroutine_threadsafe(self._task(work, recording), self.loop)
        try:
            return future.result()
        except (asyncio.CancelledError, RuntimeError) as error:
            if self._closing.is_set():
                raise Closing from error
            raise

    async def _task(self, work: str, recording: str) -> dict[str, Any]:
        async def run() -> dict[str, Any]:
            return await self._work[work](recording)

        return await self._tracked(run(), f"{work} {recording}")

    async def _tracked(self, body: Coroutine[Any, Any, dict[str, Any]], name: str) -> dict[str, Any]:
        """Run something so that ``close`` can end it."""
        task = asyncio.create_task(body, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await task

    async def close(self) -> None:
        """Leave running work for the next process and stop."""
        global _jobs
        self._closing.set()
        for task in list(self._running):
            task.cancel()
        async with self._turning:
            if self._watch is not None:
                self._watch.cancel()
                await asyncio.gather(self._watch, return_exceptions=True)
            self._is_up = False
            await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
        _jobs = None


_jobs: Jobs | None = None


def _anything_unfinished() -> bool:
    return bool(DBOS.list_workflows(status=list(UNFINISHED), limit=1))


def _bound() -> Jobs:
    if _jobs is None:
        raise Closing("no server runs in this process")
    return _jobs


@DBOS.step(name="compose")
def _compose(recording: str) -> dict[str, Any]:
    return _bound().perform("compose", recording)


@DBOS.step(name="conclude")
def _conclude(recording: str) -> dict[str, Any]:
    return _bound().perform("conclude", recording)


@DBOS.workflow(name="finish_recording")
def finish_recording(recording: str) -> dict[str, Any]:
    """Compose what the recording asks for, then state and index it."""
    composed = _compose(recording)
    return _conclude(recording) if composed.get("ok") else composed


@DBOS.step(name="try_delivery")
async def _try_delivery(key_id: str, seq: int) -> bool:
    return await _bound().try_delivery(key_id, seq)


@DBOS.workflow(name="deliver_event")
async def deliver_event(key_id: str, seq: int) -> bool:
    """Deliver an event, trying after 5 s, 10 s, 20 s … 1 h, for as long as the settings say."""
    waited_s, pause_s = 0.0, FIRST_RETRY_S
    while not await _try_delivery(key_id, seq):
        if waited_s >= _bound().retry_s:
            _log.error("event %d was not taken by the webhook of key %s: given up", seq, key_id)
            return False
        await DBOS.sleep_async(pause_s)
        waited_s += pause_s
        pause_s = min(LAST_RETRY_S, pause_s * 2)
    return True


@DBOS.step(name="try_task")
async def _try_task(kind: str, argument: str) -> bool:
    return await _bound().try_task(kind, argument)


@DBOS.workflow(name="run_task")
async def run_task(kind: str, argument: str) -> None:
    """Try a task until it is done."""
    pause_s = FIRST_RETRY_S
    while not await _try_task(kind, argument):
        await DBOS.sleep_async(pause_s)
        pause_s = min(LAST_TASK_RETRY_S, pause_s * 2)
