"""Media leaves this disk when every site has it: read back first, and compared with its signed SM3.

A mark in ``{data}/uploaded`` for each recording and site says that all of it arrived; it outlives this
process. Keys, manifests and statements stay, so that the index, the pages and the search need no site.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from mediaserver.recordings.lifecycle import Recordings
from recorder.catalog import Entry
from recorder.destruction import destroyed_by
from recorder.elsewhere import names_at_sites, note_at_sites
from recorder.sites import Site, SiteError, fetch, signed_digests
from recorder.sites.contents import PAGE_PROBLEMS
from recorder.sites.site import sm3_of
from recorder.statements import read_statements

_log = logging.getLogger(__name__)
MARKS = "uploaded"
AGAIN_S = 3600.0
"""After a site gave other bytes than were signed, or none, it is asked again so much later."""


class Freeing:
    """Removes local media that is safe elsewhere, and brings it back for work that needs all of it."""

    def __init__(self, recordings: Recordings, sites: Sequence[Site]) -> None:
        self._recordings = recordings
        self._sites = tuple(sites)
        self._storage = recordings.settings.storage
        self._marks = recordings.settings.data_dir.absolute() / MARKS
        self._not_before: dict[str, float] = {}
        self._sweeping = asyncio.Lock()
        self._used: Counter[str] = Counter()
        self.removing = asyncio.Lock()
        """Held while media, and the note of what is at sites alone, is removed: by a destruction too."""

    @asynccontextmanager
    async def using(self, entry: Entry) -> AsyncIterator[None]:
        """Keep a recording's media here for as long as it is worked with, once ``restore`` has brought it."""
        self._used[entry.id] += 1
        try:
            async with self.removing:  # what is being removed just now is known to be away after that
                pass
            yield
        finally:
            self._used[entry.id] -= 1
            self._used += Counter()  # forgets what is at 0

    def forget_failures(self) -> None:
        """Ask every site again at the next sweep: somebody has repaired one."""
        self._not_before.clear()

    async def arrived(self, entry: Entry, site: Site) -> None:
        """Note that all of an ended recording is at a site."""
        if self._storage.local == "delete":
            await asyncio.to_thread(self._mark, entry.id, [site.name])

    def _mark(self, recording: str, sites: Sequence[str]) -> None:
        self._marks.mkdir(mode=0o700, exist_ok=True)
        for name in sites:
            (self._marks / f"{recording}.{name}").touch()

    def _ripe(self) -> list[str]:
        """List recordings whose media may go now, those that arrived first before others. Blocks."""
        marks: dict[str, dict[str, float]] = {}
        for mark in os.scandir(self._marks) if self._marks.is_dir() else ():
            recording, _, name = mark.name.rpartition(".")
            marks.setdefault(recording, {})[name] = mark.stat().st_mtime
        free = shutil.disk_usage(self._marks.parent).free
        short = free < 2 * self._recordings.settings.recording.min_free_bytes
        latest = time.time() if short else time.time() - self._storage.local_keep_s
        names = {site.name for site in self._sites}
        ripe = {one: max(held.values()) for one, held in marks.items() if names and names <= set(held)}
        return sorted((one for one, at in ripe.items() if at <= latest), key=ripe.__getitem__)

    async def sweep(self) -> int:
        """Free what is ripe; returns how many recordings. Called now and then; one sweep at a time."""
        if self._storage.local != "delete" or self._sweeping.locked():
            return 0
        freed = 0
        async with self._sweeping:
            for recording in await asyncio.to_thread(self._ripe):
                if self._used[recording] or self._not_before.get(recording, 0.0) > time.monotonic():
                    continue
                entry = await self._recordings.find(recording)
                if entry is None or await self._free(entry):
                    freed += entry is not None
                    await asyncio.to_thread(self._unmark, recording)
                elif not self._used[recording]:
                    self._not_before[recording] = time.monotonic() + AGAIN_S
        return freed

    def _unmark(self, recording: str) -> None:
        for mark in self._marks.glob(f"{recording}.*"):
            mark.unlink(missing_ok=True)

    async def _free(self, entry: Entry) -> bool:
        """Compare every site's bytes with the signed digests, then remove the media here."""
        directory = self._recordings.directory(entry)
        try:
            digests = await asyncio.to_thread(signed_digests, directory)
            gone = await asyncio.to_thread(_destroyed, directory)
            here = {
                name: digest
                for name, digest in digests.items()
                if name not in gone and (directory / name).exists()
            }
            for site in self._sites:
                for name, digest in here.items():
                    found = await site.sm3(f"{entry.directory}/{name}")
                    if found != digest:
                        detail = f"{name} is {found} there, {digest} was signed"
                        raise SiteError("changed", site.name, detail)
        except SiteError as error:
            _log.error("the media of recording %s stays here: %s", entry.id, error)
            self._recordings.metrics.upload_failures.labels(error.site, error.code).inc()
            kind = "storage.damaged" if error.code in ("changed", "missing") else "storage.delayed"
            data: dict[str, object] = {"site": error.site, "code": error.code, "detail": error.detail}
            await self._recordings.events.append_about(entry, kind, data)
            return False
        except PAGE_PROBLEMS as error:
            _log.error("the media of recording %s stays here: %s", entry.id, error)
            return False
        async with self.removing:
            if self._used[entry.id]:
                return False
            size = await asyncio.to_thread(_remove, directory, list(here))
        sites = [site.name for site in self._sites]
        data = {"files": len(here), "bytes": size, "sites": sites}
        await self._recordings.events.append_about(entry, "storage.local_deleted", data)
        return True

    async def restore(self, entry: Entry) -> None:
        """Bring back what is at the sites alone, its signed SM3 checked; it goes again as it came.

        Raise SiteError of the last site if none gives the signed bytes, and what ``signed_digests``
        raises.
        """
        directory = self._recordings.directory(entry)
        names = await asyncio.to_thread(names_at_sites, directory)
        if not names:
            return
        for site in self._sites:
            try:
                await site.in_thread(_bring_back, site, entry.directory, directory, names)
            except SiteError as problem:
                _log.warning("recording %s cannot be brought back: %s", entry.id, problem)
                if site is self._sites[-1]:
                    raise
                continue
            await asyncio.to_thread(self._mark, entry.id, [one.name for one in self._sites])
            return


def _destroyed(directory: Path) -> frozenset[str]:
    return frozenset(destroyed_by(read_statements(directory)).paths())


def _remove(directory: Path, names: Sequence[str]) -> int:
    """Remove files; they are noted before, so that no moment knows nothing of them. Blocks."""
    gone = _destroyed(directory)  # nowhere, and not at the sites
    names = [name for name in names if name not in gone]
    note_at_sites(directory, (names_at_sites(directory) | set(names)) - gone)
    size = 0
    for name in names:
        path = directory / name
        size += path.stat().st_size
        path.unlink()
    return size


def _bring_back(site: Site, key: str, directory: Path, names: frozenset[str]) -> None:
    digests = signed_digests(directory)
    fetch(site, key, directory, names=names)
    for name in names:
        path = directory / name
        if not path.exists():
            raise SiteError("missing", site.name, f"{key}/{name} is not there")
        found = sm3_of(path)
        if found != digests.get(name):
            path.unlink()
            raise SiteError(
                "changed", site.name, f"{key}/{name} is {found} there, {digests.get(name)} was signed"
            )
    note_at_sites(directory, ())
