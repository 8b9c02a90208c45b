"""The control process's audit log: every event goes in, in order, before whoever caused it is told.

The database comes first, the log at once after it. What a crash leaves between the two is written by the next
start, which compares the last ``seq`` of both; so it is after a full disk. Nothing is lost either way, and
what may come twice is told by its ``seq``. Beside the events the log holds what ties recordings to it (heads
of running journals, manifests, statements), and each hour an anchor for every tenant (``recorder.audit``).

While the log cannot be written no recording starts (``audit_unavailable``); running ones go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mediaserver.errors import Refused
from mediaserver.events import EventLog, Kept
from mediaserver.ipc import JsonObject
from mediaserver.metrics import Metrics
from mediaserver.patience import PatientSigner
from mediaserver.recordings import evidence
from mediaserver.settings import Settings
from mediaserver.store import Database, Store
from recorder.audit import AuditWriter, SigningError, anchors, entry_of, frames, read_log
from recorder.audit.anchors import Item
from recorder.audit.writer import AnchorPage
from recorder.canonical import JSON, canonical
from recorder.clock import SystemClock, rfc3339
from recorder.gm.sm3 import named, parse_named, sm3
from recorder.gm.x509 import Certificate
from recorder.keys import CryptoProvider
from recorder.manifest import MANIFEST
from recorder.report import Finding, Kind
from recorder.sealed import suite_named
from recorder.signed import SignedError, read_page
from recorder.statements import list_statements

if TYPE_CHECKING:
    from mediaserver.anchoring import Outbox

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
STARTED = "audit.server_started"
TICK_S = 0.5
RETRY_S = 1.0
RETRY_ANCHOR_S = 10.0
ROTATE_AGAIN_S = 60.0
PAGE = 500
NOTED_KEPT = 10_000
ROOM_NEEDED = 1 << 20
DAY_S = 86_400.0

Locate = Callable[[str], Awaitable[Path | None]]
Stamp = Callable[[bytes], Awaitable[bytes | None]]
"""Takes the SM3 of an anchor page, gives an authority's response over it (RFC 3161, DER), if there is one."""


@dataclass(frozen=True, slots=True)
class _Noted:
    """Which signed pages of a recording the log has since our start."""

    manifest: bool = False
    statements: int = 0


class AuditLog:
    """Writes the log of this node. Everything that blocks runs in one thread of its own, in order."""

    def __init__(
        self,
        settings: Settings,
        provider: CryptoProvider,
        node: str,
        store: Store,
        database: Database,
        events: EventLog,
        metrics: Metrics,
        locate: Locate,
    ) -> None:
        """``locate`` gives the directory of a recording that has ended, None for others."""
        self.root = settings.data_dir.absolute() / "audit"
        self.stamp: Stamp | None = None
        """Time-stamps anchors, if an authority is configured."""
        self.outbox: Outbox | None = None
        self._settings = settings.audit
        self._provider = provider
        self._suite = suite_named(settings.crypto.suite)
        self._node = node
        self._store = store
        self._database = database
        self._events = events
        self._metrics = metrics
        self._locate = locate
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")
        self._lock = asyncio.Lock()
        self._writer: AuditWriter | None = None
        self._noted: dict[str, _Noted] = {}
        self._signer: PatientSigner | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._failed_s = -RETRY_S
        self._anchored_s = self._expired_s = self._rotate_s = 0.0
        self.failing = True
        """It cannot be written just now."""

    def require(self) -> None:
        """Raise Refused while the log cannot be written: evidence first."""
        if self.failing:
            raise Refused("audit_unavailable", "the audit log cannot be written; see the server's log")

    async def start(self, settings: Settings) -> None:
        """Take up the log where it ends, write into it what the database has more, and that we start.

        If the database was lost or set back its numbers go on behind the log's, and the log says so.
        """
        set_back: JsonObject = {}
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._signer = PatientSigner(await self._run(self._provider.signer))  # which may ask a KMS
        writer = await self._run(AuditWriter, self.root, self._node, self._signer, SystemClock())
        self._writer = writer
        known = await self._database.run(self._store.last_seq)
        if known < writer.last_seq:
            _log.error(
                "the events of the database end at %d, those of the audit log at %d", known, writer.last_seq
            )
            await self._database.run(self._store.raise_seq, writer.last_seq)
            set_back = {"database_seq": known, "log_seq": writer.last_seq}
        self._events.keep = self.keep
        await self._recover()
        self._anchored_s = time.monotonic()
        self._ticking = asyncio.create_task(self._tick(), name="audit log")
        await self._say_started(settings, set_back)

    async def _say_started(self, settings: Settings, set_back: JsonObject) -> None:
        """Log under which settings we start and what differs from before."""
        last = await self._events.newest("", STARTED)
        facts = start_facts(settings, last["data"] if last else None)
        await self._events.append(STARTED, tenant="", data={**facts, **set_back})

    async def close(self) -> None:
        """Anchor, sign to the end and close the file."""
        for task in (self._ticking, self._sending):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        async with self._lock:
            self._events.keep = None
            if self._writer is not None:
                try:
                    await self._run(self._writer.finish)
                    await self._send_made(self._writer, stamp=False)
                except Exception as error:
                    _log.error("the audit log is left unfinished: %s", error)
                    await self._run(self._writer.leave)
                self._writer = None
        self.failing = True
        self._thread.shutdown(wait=True)
        if self._signer is not None:
            self._signer.close()

    async def keep(self, batch: list[Kept]) -> None:
        """Write events that are in the database. While failing they wait there."""
        if self.failing:
            return
        async with self._lock:
            await self._guarded(self._write, batch)

    async def heads(self, told: Sequence[Sequence[Any]]) -> None:
        """Note how a worker's running journals stand: (recording, tenant, part, index, record, …)."""
        items: dict[str, list[Item]] = {}
        for recording, tenant, part, index, record, offset, head, at in told:
            item = anchors.head(
                str(recording),
                part=int(part),
                index=int(index),
                record=int(record),
                offset=int(offset),
                digest=parse_named(str(head)),
                at=str(at),
            )
            items.setdefault(str(tenant), []).append(item)
        if self.failing:
            return
        async with self._lock:
            await self._guarded(self._put, [], items)

    async def verify(self) -> dict[str, JSON]:
        """Check the whole log without its keys, and that it is signed by this server; returns the report."""
        async with self._lock:
            if self._writer is not None and not self.failing:
                await self._guarded(self._sign)
        report = await asyncio.to_thread(read_log, self.root)
        own = Certificate.from_pem(self._provider.info().signing_certificate_pem)
        if own.fingerprint not in report.signers:
            detail = f"no file is signed by this server ({own.fingerprint})"
            report.findings.append(Finding(Kind.OTHER_SIGNER, "", detail))
        return {**report.to_json(), "database_seq": await self._database.run(self._store.last_seq)}

    async def frames(
        self, tenant: str, *, begin: str, end: str, recording: str, limit: int
    ) -> list[dict[str, JSON]]:
        """Give a tenant's anchor frames of a time, newest last, at most ``limit`` of the newest."""
        found = await asyncio.to_thread(frames, self.root, tenant, begin=begin, end=end, recording=recording)
        return found[-limit:]

    # --- writing; the lock is held

    async def _guarded(self, work: Callable[P, Awaitable[None]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do something; what the disk or the key provider refuses is said, counted and tried again."""
        try:
            await work(*args, **kwargs)
        except SigningError as error:  # it goes on unsigned, and is signed as soon as that is possible
            _log.error("%s", error)
            self._metrics.audit_failures.inc()
        except Exception as error:
            if not self.failing:
                _log.error("the audit log cannot be written, no recording starts: %s", error)
            self.failing = True
            self._failed_s = time.monotonic()
            self._metrics.audit_failures.inc()

    async def _write(self, batch: Sequence[Kept]) -> None:
        writer = self._require()
        new = [one for one in batch if one.event["seq"] > writer.last_seq]
        entries = [entry_of(one.event, address=one.origin.address, purpose=one.origin.purpose) for one in new]
        items, noted = await self._items(new)
        await self._put(entries, items)
        self._noted.update(noted)
        while len(self._noted) > NOTED_KEPT:
            del self._noted[next(iter(self._noted))]

    async def _put(self, entries: Sequence[dict[str, JSON]], items: dict[str, list[Item]]) -> None:
        writer = self._require()
        if writer.due and (not writer.open or time.monotonic() >= self._rotate_s):
            self._rotate_s = time.monotonic() + ROTATE_AGAIN_S
            try:
                await self._next_file(writer)
            except Exception as error:
                if not writer.open:
                    raise
                _log.error("the audit log goes on in its old file: %s", error)
        if entries or items:
            await self._run(writer.put, entries, items)
            self._metrics.audit_entries.inc(len(entries))

    async def _next_file(self, writer: AuditWriter) -> None:
        """Begin another file under a key of its own; a full disk gets no trail of attempts."""
        free = shutil.disk_usage(self.root).free
        if free < ROOM_NEEDED:
            raise OSError(f"{free} bytes of disk space are free")
        file = writer.next_file()
        try:
            key = await evidence.new_key(self._provider, file.directory, file.series, self._suite)
            await self._run(writer.begin, file, key)
        except Exception:
            if not file.path.exists():
                await self._run(shutil.rmtree, file.directory, True)
            raise

    async def _items(self, batch: Sequence[Kept]) -> tuple[dict[str, list[Item]], dict[str, _Noted]]:
        """Tell from events which recordings began, ended or got a statement, and read the digests.

        Returns the items by tenant, and what is noted of each recording once they are written.
        """
        items: dict[str, list[Item]] = {}
        noted: dict[str, _Noted] = {}
        ended: dict[str, tuple[str, str]] = {}
        for one in batch:
            event = one.event
            recording, tenant = event["recording"], event["tenant"]
            if not recording:
                continue
            if event["type"] == "recording.started":
                items.setdefault(tenant, []).append(anchors.begun(recording, event["time"]))
            code = str(event["data"].get("code", "")) if event["type"] == "recording.failed" else ""
            ended[recording] = (tenant, code)
        for recording, (tenant, code) in ended.items():
            directory = await self._locate(recording)
            if directory is not None:
                known = self._noted.get(recording, _Noted())
                found, noted[recording] = await self._run(_look, recording, directory, known)
                if code and not noted[recording].manifest:
                    found.append(anchors.failed(recording, code))
                if found:
                    items.setdefault(tenant, []).extend(found)
        return items, noted

    async def _sign(self) -> None:
        writer = self._require()
        await self._run(writer.checkpoint, time.monotonic_ns(), now=True)

    # --- what comes regularly

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if self.failing:
                if now - self._failed_s >= RETRY_S:
                    await self._recover()
                continue
            async with self._lock:
                await self._guarded(self._upkeep, now)
            # Those outside take their time: nobody who writes waits for them, nor the next checkpoint.
            writer = self._writer
            if writer is not None and writer.made and (self._sending is None or self._sending.done()):
                self._sending = asyncio.create_task(self._guarded(self._send_made, writer), name="anchors")

    async def _upkeep(self, now: float) -> None:
        writer = self._require()
        if writer.unsettled:  # an idle server does not wake the thread
            await self._run(writer.checkpoint, time.monotonic_ns())
            await self._run(writer.sync)
        if now - self._anchored_s >= self._settings.anchor_s:
            self._anchored_s = now - self._settings.anchor_s + RETRY_ANCHOR_S  # unless it succeeds
            await self._put([], {})  # another day: another file
            await self._run(writer.anchor)
            self._anchored_s = now
        if now - self._expired_s >= DAY_S:
            self._expired_s = now
            before_ns = time.time_ns() - self._settings.keep_days * int(DAY_S) * 10**9
            for file in await self._run(writer.expire, before_ns):
                _log.warning("removed %s of the audit log: its time had come", file.name)

    async def _send_made(self, writer: AuditWriter, *, stamp: bool = True) -> None:
        while writer.made:
            await self._send(writer, writer.made[0], stamp=stamp)
            writer.made.popleft()  # now, so that whoever is cut off leaves it to the next

    async def _send(self, writer: AuditWriter, page: AnchorPage, *, stamp: bool = True) -> None:
        """Give an anchor to those outside that keep it. What they refuse costs nothing here."""
        if self.outbox is not None:
            await self.outbox.post(page.digest.hex(), page.data)
        if self.stamp is not None and stamp:
            try:
                response = await self.stamp(page.digest)
            except Exception as error:
                _log.error("anchor %d of tenant %s has no time-stamp: %s", page.number, page.tenant, error)
                return
            if response is not None:
                async with self._lock:
                    await self._run(writer.timestamp, page, response)

    async def _recover(self) -> None:
        """Write what the database has more than the log; then the log is whole again."""
        was_failing, self._failed_s = self._failed_s >= 0, time.monotonic()
        async with self._lock:
            await self._guarded(self._catch_up)
        if not self.failing and was_failing:
            _log.warning("the audit log is written again")

    async def _catch_up(self) -> None:
        writer = self._require()
        if not writer.open:
            await self._put([], {})
        while True:
            page = await self._events.everything_after(writer.last_seq, PAGE)
            await self._write(page)
            if len(page) < PAGE:
                # From here on events come by themselves; one more look for those that came meanwhile.
                self.failing = False
                await self._write(await self._events.everything_after(writer.last_seq, PAGE))
                return

    def _require(self) -> AuditWriter:
        if self._writer is None:
            raise OSError("the audit log is closed")
        return self._writer

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._thread.submit(call, *args, **kwargs))


def _look(recording: str, directory: Path, known: _Noted) -> tuple[list[Item], _Noted]:
    """Give the digests of the signed pages that are not noted yet."""
    manifest, statements = known.manifest, known.statements
    items: list[Item] = []
    try:
        if not manifest and (directory / MANIFEST).exists():
            items.append(anchors.manifest(recording, sm3(read_page(directory / MANIFEST))))
            manifest = True
        for number, path in list_statements(directory):
            if number == statements + 1:
                items.append(anchors.statement(recording, number, sm3(read_page(path))))
                statements = number
    except (OSError, SignedError) as error:
        _log.error("recording %s has a page that cannot be noted in the audit log: %s", recording, error)
    return items, _Noted(manifest, statements)


def start_facts(settings: Settings, before: dict[str, Any] | None) -> JsonObject:
    """Say under which settings the server starts, and what differs from the start before; no secrets.

    ``before`` are the facts of the start before.
    """
    shown: dict[str, Any] = settings.model_dump(mode="json")
    flat = dict(_flat(shown))
    earlier = dict((before or {}).get("settings", {}))
    changed = {
        name: {"from": earlier.get(name), "to": flat.get(name)}
        for name in sorted(set(flat) | set(earlier))
        if earlier and earlier.get(name) != flat.get(name)
    }
    return {
        "settings_sm3": named(sm3(canonical({name: str(value) for name, value in flat.items()}))),
        "settings": flat,
        "changed": changed,
        "user": os.getuid(),
        "at": rfc3339(time.time_ns()),
    }


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, item in value.items():
        pairs += _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else [(f"{prefix}{name}", item)]
    return pairs
