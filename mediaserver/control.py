"""The control process: everything that decides, put together, from its start to its end.

It starts (or adopts) the media workers, takes up the recordings of the last control process, answers the API,
and drains at SIGTERM. Its own death costs no media: workers and their calls live on, and the next one takes
over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets as random
import shutil
import signal
import ssl
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from mediaserver import addresses, tls
from mediaserver.anchoring import Outbox, read_anchor_secret
from mediaserver.api.app import build
from mediaserver.api.models import AutoRecording
from mediaserver.audit import AuditLog
from mediaserver.disk_watch import DiskWatch
from mediaserver.errors import Refused
from mediaserver.events import EventLog
from mediaserver.invites import Brake
from mediaserver.ipc import IpcError, JsonObject
from mediaserver.memory import keep_tidy, settle_memory
from mediaserver.metrics import Metrics
from mediaserver.recordings import continuity, uploads
from mediaserver.recordings.copies import COPY, Copies
from mediaserver.recordings.custody import DESTROY, RETENTION, RecordingCustody
from mediaserver.recordings.exporting import Exporting
from mediaserver.recordings.finishing import Finishing
from mediaserver.recordings.jobs import Jobs
from mediaserver.recordings.lifecycle import Recordings
from mediaserver.recordings.rewrapping import Rewrapping
from mediaserver.recordings.uploads import Uploads
from mediaserver.rooms import CALL_TIMEOUT_S, Room, Rooms
from mediaserver.secrets import Secrets
from mediaserver.settings import Settings
from mediaserver.sign_ins import FailedSignIns
from mediaserver.store import Database, Store
from mediaserver.supervisor import Workers
from mediaserver.tokens import Principal, Tokens
from mediaserver.webhooks import Webhooks
from mediaserver.worker_news import WorkerNews
from recorder.catalog import Catalog
from recorder.fieldkey import FieldKey
from recorder.reindex import opener, reindex
from recorder.template import Template

_log = logging.getLogger(__name__)
TICK_S = 1.0
OFF_PEAK_S = 60.0
GOODBYE_S = 1.0
"""While draining: who has just ended a recording hangs up next, and wants an answer to that."""
EXECUTOR_ID = "node-1"
"""Of DBOS: fixed, so that a new process takes up what the old one of this node left."""


class Control:
    """One control process. ``start`` it, wait on ``serve`` or ``drain``, ``close`` it."""

    def __init__(self, settings: Settings, secrets: Secrets) -> None:
        self.settings = settings
        self.draining = False
        self.closing = asyncio.Event()
        self.metrics = Metrics()
        self.code_brake = Brake()
        self.database = Database()
        self._revoked: set[tuple[str, str]] = set()
        self._noted: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None
        self._port = settings.http.port
        data = settings.data_dir.absolute()
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._news = WorkerNews(self)
        self.workers = Workers(
            settings,
            on_up=self._news.up,
            on_events=self._news.take,
            on_death=self._news.died,
            keys=secrets.keys,
        )
        self.workers.claim()  # before anything of a running server's is opened or migrated
        key = FieldKey.open(settings.secrets_dir.absolute() / "index.key")
        configured = settings.database.url
        self._provider = secrets.provider
        index = data / "index.sqlite"
        self._index_is_new = configured is None and not index.exists()
        url = configured.get_secret_value() if configured is not None else None
        self.catalog = Catalog(url or f"sqlite:///{index}", key)
        self.store = Store(url or f"sqlite:///{data / 'server.sqlite'}", key)
        self._jobs_url = url or f"sqlite:///{data / 'jobs.sqlite'}"
        self.events = EventLog(self.store, self.database)
        self.tokens = Tokens(
            secrets.api_keys,
            secrets.session_key,
            leeway_s=settings.tokens.leeway_s,
            server_max_s=settings.tokens.server_max_s,
            client_max_s=settings.tokens.client_max_s,
            is_revoked=lambda tenant, token_id: (tenant, token_id) in self._revoked,
        )
        self.rooms = Rooms(self.workers, self.store, self.database)
        self.recordings = Recordings(
            settings,
            self.workers,
            self.rooms,
            secrets.provider,
            self.catalog,
            self.database,
            self.events,
            self.metrics,
        )
        self.disk = DiskWatch(
            settings.recording, (key.tenant for key in secrets.api_keys), self.events, self.metrics
        )
        self.audit = AuditLog(
            settings,
            secrets.provider,
            EXECUTOR_ID,
            self.store,
            self.database,
            self.events,
            self.metrics,
            self._ended_recording,
        )
        self.recordings.may_start = self.audit.require
        self.sign_ins = FailedSignIns(self.events)
        self.finishing = Finishing(self.recordings)
        self.recordings.finishing = self.finishing
        self.audit.stamp = self.finishing.attesting.stamp_digest
        self.uploads = self.recordings.uploads = Uploads(self.recordings)
        self.custody = RecordingCustody(self.recordings)
        self.recordings.custody = self.custody
        self.copies = Copies(self.recordings)
        self.exporting = Exporting(self.recordings)
        self.webhooks = Webhooks(
            self.tokens.keys, settings.webhook, self.events, self.store, self.database, self.metrics
        )
        # A database for many nodes names the node too; one machine needs one name.
        self._jobs = Jobs(
            self._jobs_url,
            EXECUTOR_ID,
            compose=self.finishing.compose,
            conclude=self.finishing.conclude,
            deliver=self.webhooks.deliver,
            retry_s=settings.webhook.retry_hours * 3600,
            max_parallel=settings.composing.max_parallel or os.cpu_count() or 1,
        )

        self.rewrapping = Rewrapping(self.recordings, self._jobs)
        self._jobs.handle(uploads.KIND, self.uploads.upload)
        self._jobs.handle(RETENTION, self.custody.sign_retention)
        self._jobs.handle(DESTROY, self.custody.remove)
        self._jobs.handle(COPY, self.copies.make)
        if settings.audit.anchor_webhook:
            self.audit.outbox = Outbox(
                self.audit.root / "outbox",
                settings.audit.anchor_webhook,
                read_anchor_secret(settings),
                self._jobs,
            )

    @property
    def is_https(self) -> bool:
        """Browsers reach this server over HTTPS, by itself or through the trusted proxy."""
        return self.settings.tls.enabled or self.settings.http.public_url.startswith("https:")

    @property
    def port(self) -> int:
        """The TCP port that was bound."""
        return self._port

    def public_url(self) -> str:
        """Where people find the page."""
        return addresses.public_url(self.settings, self._port)

    def short_id(self) -> str:
        """Make up the end of a name that is unique enough in a room."""
        return random.token_hex(3)

    async def start(self) -> None:
        """Bring everything up; returns when the API answers."""
        if self._index_is_new:
            await self._reindex()
        await self.audit.start(self.settings)
        await self.database.run(self.store.drop_unfinished_answers)
        self._revoked = await self.database.run(self.store.revoked_tokens)
        await self.rooms.restore()
        workers = await self.workers.start()
        self.finishing.attesting.start(self._jobs)
        stale = await self._jobs.launch()
        self.finishing.jobs = self.uploads.jobs = self._jobs
        if self.audit.outbox is not None:
            await self.audit.outbox.start()
        for workflow in stale:
            _log.error("job %s is started anew", workflow)
        self.webhooks.start(self._jobs)
        await continuity.take_over(self.recordings, workers)
        await self.finishing.take_over()
        self.recordings.later(continuity.catch_up(self.recordings))
        for room in self.rooms.orphans():
            self.spawn(self._news.rescue(room, time.monotonic_ns()))
        self.spawn(self._tick())
        self.spawn(self.finishing.attesting.lists.keep())
        self.spawn(keep_tidy())
        await self._listen()

    async def _ended_recording(self, recording: str) -> Path | None:
        """Give the directory of a recording that has ended."""
        if recording in self.recordings.active:
            return None
        entry = await self.recordings.find(recording)
        return self.recordings.directory(entry) if entry is not None and not entry.active else None

    async def _reindex(self) -> None:
        """Build the index anew when it is missing and recordings are there."""
        open_key = opener(self._provider, actor="server")
        done = await self.database.run(reindex, self.catalog, self.settings.data_dir.absolute(), open_key)
        if done.recordings or done.refused:
            _log.warning("index rebuilt: %d recordings, %d refused", done.recordings, len(done.refused))

    async def _listen(self) -> None:
        context: ssl.SSLContext | None = None
        if self.settings.tls.enabled:
            names = tls.names_to_cover(addresses.advertised(self.settings))
            made = tls.certificate(self.settings, names, datetime.now(UTC))
            context = tls.context(made.cert, made.key)
        self._runner = web.AppRunner(
            build(self), access_log=None, handle_signals=False, shutdown_timeout=2.0, auto_decompress=False
        )
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, self.settings.http.host, self.settings.http.port, ssl_context=context
        )
        await site.start()
        self._port = int(self._runner.addresses[0][1])
        _log.info("ready, the API answers on %s", self.public_url())

    async def drain(self) -> None:
        """Take nothing new; let running recordings end, at most ``drain_s``, then end them cleanly."""
        self.draining = True
        self.metrics.draining.set(1)
        _log.info("draining: %d recordings run", len(self.recordings.active))
        await self.workers.drain()
        deadline = time.monotonic() + self.settings.drain_s
        recorded = bool(self.recordings.active)
        while self.recordings.active and time.monotonic() < deadline and not self.closing.is_set():
            await self._pause(0.1)
        until = min(deadline, time.monotonic() + GOODBYE_S) if recorded else 0.0
        while time.monotonic() < until and not self.closing.is_set() and self.rooms.any_session():
            await self._pause(0.1)
        await self.stop_recordings("server_stopped")

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closing.wait(), seconds)

    async def stop_recordings(self, reason: str) -> None:
        """End all recordings."""
        running = list(self.recordings.active.values())
        results = await asyncio.gather(
            *(self.recordings.stop(active.entry, reason) for active in running), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                _log.error("a recording could not be ended: %s", result)

    async def close(self, *, leave_workers: bool = False) -> None:
        """Take everything down; with ``leave_workers`` calls and recordings go on for the next process."""
        self.closing.set()
        await self.recordings.settle(5.0)
        await self.events.settle()
        await asyncio.sleep(0)  # what was waiting for the log goes on
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        await self.workers.close(leave_workers=leave_workers, release=False)
        self.finishing.jobs = self.uploads.jobs = None
        await self.webhooks.close()
        await self._jobs.close()
        await self.finishing.close()
        await self.events.settle()
        await self.audit.close()
        await self.database.run(self.catalog.close)
        await self.database.run(self.store.close)
        self.database.close()
        self.workers.release()  # now, that the log and the databases are closed

    def refuse_when_draining(self) -> None:
        """Raise Refused while nothing new is taken."""
        if self.draining:
            raise Refused("draining", "the server takes no new rooms; use another one")

    def default_auto(self, room: str) -> JsonObject | None:
        """Give the automatic recording that the settings want for a room."""
        if not self.settings.recording.auto:
            return None
        picture = Template(profile=self.settings.composing.profile)
        wanted = AutoRecording(business_no=room, mode=self.settings.recording.auto_mode, template=picture)
        return {**wanted.model_dump(mode="json"), "attempt": None, "any_attempt": True}

    async def call_worker(
        self, room: Room, method: str, params: JsonObject, *, with_room: bool = True
    ) -> JsonObject:
        """Ask the room's worker."""
        place = {"tenant": room.tenant, "room": room.name} if with_room else {}
        return await self.workers.client(room.worker).call(method, {**place, **params}, CALL_TIMEOUT_S)

    async def note_token(self, principal: Principal) -> None:
        """Remember a participant's token, so that it can be revoked with the participant."""
        if principal.token_id in self._noted:
            return
        await self.database.run(
            self.store.note_token,
            principal.tenant,
            principal.token_id,
            principal.room,
            principal.identity,
            int(principal.expires_at),
        )
        self._noted.add(principal.token_id)
        if len(self._noted) > 100_000:
            self._noted.clear()

    async def revoke(self, principal: Principal) -> None:
        """Revoke every token of a participant."""
        await self.note_token(principal)
        ids = await self.database.run(
            self.store.revoke_participant, principal.tenant, principal.room, principal.identity
        )
        self._revoked.update((principal.tenant, one) for one in ids)

    async def remove_participant(self, room: Room, identity: str, actor: str) -> None:
        """Revoke a participant's tokens, then end its sessions."""
        ids = await self.database.run(self.store.revoke_participant, room.tenant, room.name, identity)
        self._revoked.update((room.tenant, one) for one in ids)
        with contextlib.suppress(IpcError):  # not connected: there is nothing to end
            await self.call_worker(room, "participant.remove", {"identity": identity})
        await self.events.append(
            "participant.removed",
            tenant=room.tenant,
            room=room.name,
            actor=actor,
            data={"identity": identity},
        )

    async def close_room(self, room: Room, reason: str, actor: str = "server") -> None:
        """End a room's recordings, then the room."""
        await self.recordings.stop_room(room, reason)
        await self.rooms.close(room)
        await self.events.append(
            "room.closed", tenant=room.tenant, room=room.name, actor=actor, data={"reason": reason}
        )

    async def checks(self) -> dict[str, bool]:
        """Say what is needed to take calls and whether it is there."""
        free = shutil.disk_usage(self.settings.data_dir).free
        return {
            "workers": bool(self.workers.all()),
            "database": await self._database_answers(),
            "disk": free >= self.settings.recording.min_free_bytes,
            "audit": not self.audit.failing,
        }

    async def _database_answers(self) -> bool:
        try:
            await asyncio.wait_for(self.database.run(self.store.revoked_tokens), 5.0)
        except Exception as error:
            _log.error("the database does not answer: %s", error)
            return False
        return True

    async def metrics_text(self) -> bytes:
        """Give the metrics as they are now."""
        await self.workers.read_stats()
        self.metrics.workers_up.set(len(self.workers.all()))
        self.metrics.composite_lag.set(self.finishing.lag_s)
        self.metrics.disk_free_bytes.set(shutil.disk_usage(self.settings.data_dir).free)
        for site, waiting in self.uploads.pending_bytes().items():
            self.metrics.upload_pending_bytes.labels(site).set(waiting)
        for worker in self.workers.all():
            self.metrics.from_worker(worker.index, worker.pid, worker.stats)
        return self.metrics.text()

    async def _tick(self) -> None:
        """Close rooms that stand empty; start what waits for the quiet hours; tidy up."""
        asked_ns = 0
        while True:
            await asyncio.sleep(TICK_S)
            try:
                for room in self.rooms.idle(self.settings.media.idle_room_s):
                    await self._close_idle(room)
                await self.disk.look(shutil.disk_usage(self.settings.data_dir).free)
                if time.monotonic_ns() - asked_ns > OFF_PEAK_S * 1e9:
                    asked_ns = time.monotonic_ns()
                    await self.finishing.off_peak()
                    await self._jobs.forget_old()
                    self.recordings.later(self.uploads.freeing.sweep())
                    self.sign_ins.flush(time.monotonic())
            except Exception:
                _log.exception("the regular work failed; it is tried again")

    async def _close_idle(self, room: Room) -> None:
        """Close a room; one that cannot be closed yet keeps nothing else from being done."""
        try:
            await self.close_room(room, "idle")
        except Exception as error:
            _log.error("the idle room %s is closed later: %s", room.name, error)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something go on that nobody waits for; its failure is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("background work failed", exc_info=task.exception())


async def serve(settings: Settings, secrets: Secrets) -> None:
    """Run the server until SIGTERM or SIGINT: the first drains, the second closes at once."""
    control = Control(settings, secrets)
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            control.closing.set()
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await control.start()
    except BaseException:
        await control.close()
        raise
    settle_memory()
    print(f"ready {control.public_url()}", file=sys.stderr, flush=True)
    await asked.wait()
    await control.drain()
    await control.close()
