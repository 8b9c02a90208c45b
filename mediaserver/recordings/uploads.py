"""Recordings go to their sites while they are made: a durable task for each recording and site.

The task looks every half second for what was closed, and ends when the recording has ended, its
composing is done and all of it is at the site. It may begin again at any time (the process died, a
statement was added): what is there already is not sent again. A site that fails only delays: nothing is
lost here, and tries go on for ever.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from mediaserver.recordings.freeing import Freeing
from mediaserver.recordings.jobs import Jobs
from mediaserver.recordings.lifecycle import Recordings
from recorder.catalog import Entry
from recorder.sites import Outgoing, Removal, Site, SiteError, Stored, closed_files, remove_from_sites, send
from recorder.statements import STATEMENTS
from recorder.storage import files_directory, segments_directory

_log = logging.getLogger(__name__)
KIND = "upload"
POLL_S = 0.5
ENDED_POLL_S = 2.0
"""While an ended recording is composed."""
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0
SETTLED_NS = 100_000_000
DELAYED_S = 30.0
"""A site that fails for longer is told as an event, once for each recording it holds up."""


KEPT_NAMED = 20


@dataclass
class _Upload:
    """One recording on its way to one site."""

    site: Site
    recording: str
    known: dict[str, Stored] | None = None
    """What the site had when the task began; None until it was asked."""
    done: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Names at the site, and which revision of them: inode and mtime."""
    refused: set[str] = field(default_factory=set)
    """Names with other bytes at the site: told once, never overwritten."""
    seen: tuple[int, ...] = ()
    """Times of the last change of the recording's folders, if all of that was sent."""
    putting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while something is put: who removes from the site waits for it."""
    pending: int = 0
    failing_since: float | None = None
    told: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Uploads:
    """All uploads of this process."""

    def __init__(self, recordings: Recordings) -> None:
        storage = recordings.settings.storage
        self.sites: Sequence[Site] = tuple(Site(config) for config in storage.sites)
        self._recordings = recordings
        self._by_name = {site.name: site for site in self.sites}
        self._running: dict[str, _Upload] = {}
        self._gates = {site.name: asyncio.Semaphore(storage.parallel) for site in self.sites}
        self._pace = {site.name: Pace(storage.max_bytes_per_s) for site in self.sites}
        self.freeing = Freeing(recordings, self.sites)
        self.jobs: Jobs | None = None
        """Given once launched."""

    async def changed(self, entry: Entry) -> None:
        """Bring to the sites what is new of a recording: it began, or something was added to it."""
        for site in self.sites:
            argument = json.dumps([site.name, entry.id])
            running = self._running.get(argument)
            if running is not None:
                running.wake.set()
            elif self.jobs is not None:
                # Nobody waits for the job runner to wake.
                self._recordings.later(self.jobs.task(KIND, argument, time.time_ns(), lane=site.name))

    def pending_bytes(self) -> dict[str, int]:
        """Say how many closed bytes each site does not have yet."""
        waiting = dict.fromkeys(self._by_name, 0)
        for upload in self._running.values():
            waiting[upload.site.name] += upload.pending
        return waiting

    async def remove(self, entry: Entry, names: Sequence[str]) -> Removal:
        """Remove files of a recording from every site; see ``recorder.sites.remove_from_sites``.

        Remove them here before: a put under way ends first, and none begins anew.
        """
        async with AsyncExitStack() as puts:
            for upload in list(self._running.values()):
                if upload.recording == entry.id:
                    await puts.enter_async_context(upload.putting)
            parts = await asyncio.gather(
                *(site.in_thread(remove_from_sites, [site], entry.directory, names) for site in self.sites)
            )
        done = Removal()
        for part in parts:
            done.removed += part.removed
            done.kept |= part.kept
        return done

    async def destroyed(self, entry: Entry, names: Sequence[str]) -> None:
        """Remove from every site what was destroyed here, and say which site keeps it and why.

        Raises SiteError where a site does not answer; what a lock or kept versions hold is told, and not
        tried again.
        """
        if not self.sites or not names:
            return
        done = await self.remove(entry, names)
        away = [why for why in done.kept.values() if why.startswith("unreachable")]
        if away:
            raise SiteError("unreachable", "of a destroyed recording", away[0])
        kind = "storage.removed" if done.complete else "storage.not_removed"
        kept = dict(list(done.kept.items())[:KEPT_NAMED])
        data = {"removed": len(done.removed), "kept": len(done.kept), "why": kept}
        await self._recordings.events.append_about(entry, kind, data)

    async def upload(self, argument: str) -> None:
        """Do the task: ``argument`` is the JSON list of site and recording."""
        name, recording = json.loads(argument)
        site = self._by_name.get(name)
        if site is None:
            _log.error("site %s is not configured any more: recording %s is not sent there", name, recording)
            return
        already = self._running.get(argument)
        if already is not None:
            already.wake.set()
            await already.over.wait()
            return
        upload = self._running[argument] = _Upload(site, recording)
        try:
            await self._until_all_is_there(upload)
        finally:
            upload.over.set()
            self._running.pop(argument, None)

    async def _until_all_is_there(self, upload: _Upload) -> None:
        while True:
            upload.wake.clear()
            entry = await self._recordings.find(upload.recording)
            if entry is None:
                return
            ended = _has_ended(entry)  # asked before looking: what comes later is found the next time
            failed = await self._pass(upload, entry)
            if failed is None and ended and not upload.wake.is_set():
                await self._arrived(upload, entry)
                if not upload.wake.is_set():
                    return  # and nothing waits from here to ``upload``'s end: a later wake begins a task
                continue
            pause_s = failed if failed is not None else POLL_S if entry.active else ENDED_POLL_S
            try:
                await asyncio.wait_for(upload.wake.wait(), pause_s)
            except TimeoutError:
                continue

    async def _pass(self, upload: _Upload, entry: Entry) -> float | None:
        """Send what is new. Returns None when all of it is there, else how long to wait."""
        directory = self._recordings.directory(entry)
        try:
            changed_at, now_ns = _changed_at(directory), time.time_ns()
            if changed_at == upload.seen:
                return None
            waiting = await asyncio.to_thread(_waiting, directory, upload.done, upload.refused)
            upload.pending = sum(size for _, _, size in waiting)
            if upload.known is None and waiting:
                async with self._gates[upload.site.name]:
                    listed = await upload.site.in_thread(upload.site.listing, entry.directory)
                upload.known = {one.key: one for one in listed}
            for one, revision, size in waiting:
                await self._send(upload, entry, one, size)
                upload.done[one.name] = revision
                upload.pending -= size
                upload.failing_since = (
                    None  # a bad line that lets some through is not waited for as a dead one
                )
        except FileNotFoundError:
            return POLL_S  # removed meanwhile (erased, destroyed): look again
        except (SiteError, OSError) as error:
            return await self._failed(upload, entry, error)
        if upload.told:
            await self._tell(entry, "storage.restored", upload, {})
        upload.failing_since, upload.told = None, False
        # The clock of file times ticks in some milliseconds: what changed just now may change unseen.
        upload.seen = changed_at if now_ns - max(changed_at) > SETTLED_NS else ()
        return None

    async def _send(self, upload: _Upload, entry: Entry, one: Outgoing, size: int) -> None:
        site, key = upload.site, f"{entry.directory}/{one.name}"
        assert upload.known is not None
        try:
            async with self._gates[site.name], upload.putting:
                if not one.path.exists():
                    raise FileNotFoundError(one.path)
                known = upload.known.get(key)
                new = await send(site, entry.directory, one, throttle=self._pace[site.name].wait, known=known)
        except SiteError as error:
            if error.code != "conflict":
                raise
            _log.error("recording %s: %s", entry.id, error)
            upload.refused.add(one.name)
            self._recordings.metrics.upload_failures.labels(site.name, error.code).inc()
            await self._tell(entry, "storage.conflict", upload, {"file": one.name, "detail": error.detail})
            return
        if new:
            self._recordings.metrics.uploaded_bytes.labels(site.name).inc(size)

    async def _failed(self, upload: _Upload, entry: Entry, error: Exception) -> float:
        now = time.monotonic()
        code = error.code if isinstance(error, SiteError) else "local"
        self._recordings.metrics.upload_failures.labels(upload.site.name, code).inc()
        if upload.failing_since is None:
            upload.failing_since = now
            _log.warning("recording %s waits for site %s: %s", entry.id, upload.site.name, error)
        failing_s = now - upload.failing_since
        if failing_s >= DELAYED_S and not upload.told:
            upload.told = True
            await self._tell(
                entry, "storage.delayed", upload, {"code": code, "pending_bytes": upload.pending}
            )
        return min(LAST_RETRY_S, max(FIRST_RETRY_S, failing_s / 2))

    async def _arrived(self, upload: _Upload, entry: Entry) -> None:
        upload.pending = 0
        if upload.refused:
            return  # told already; the copy here stays
        await self.freeing.arrived(entry, upload.site)
        await self._tell(entry, "storage.complete", upload, {"files": len(upload.done)})

    async def _tell(self, entry: Entry, kind: str, upload: _Upload, data: dict[str, object]) -> None:
        await self._recordings.events.append_about(entry, kind, {"site": upload.site.name, **data})


class Pace:
    """Keeps to a rate in bytes a second; 0 is none."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._free_at = 0.0

    async def wait(self, size: int) -> None:
        """Wait until ``size`` bytes may be sent."""
        if self._rate:
            begin = max(time.monotonic(), self._free_at)
            self._free_at = begin + size / self._rate
            await asyncio.sleep(begin - time.monotonic())


def _has_ended(entry: Entry) -> bool:
    """Nothing is being added to it: not by a writer, and not by a composer that has begun."""
    composing = entry.composing["state"]
    return not entry.active and (composing in ("none", "done", "failed") or "run" not in entry.composing)


def _changed_at(directory: Path) -> tuple[int, ...]:
    """Give the times at which files were last added to a recording's folders (a new segment closes one)."""
    folders = (directory, segments_directory(directory), files_directory(directory), directory / STATEMENTS)
    return tuple(folder.stat().st_mtime_ns if folder.exists() else 0 for folder in folders)


def _waiting(
    directory: Path, done: dict[str, tuple[int, int]], refused: set[str]
) -> list[tuple[Outgoing, tuple[int, int], int]]:
    """List what is closed and not at the site yet, with its revision and size. Blocks."""
    found = []
    for one in closed_files(directory):
        if one.name in refused or (one.name in done and not one.revised):
            continue
        status = one.path.stat()
        revision = (status.st_ino, status.st_mtime_ns)
        if done.get(one.name) != revision:
            found.append((one, revision, status.st_size))
    return found
