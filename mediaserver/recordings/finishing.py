"""From a signed manifest to fetchable files: composing, statements, index.

A composition that follows the call is started with it and has only its last seconds to do after the stop;
others are started by their job. The job (``jobs``) runs ``compose`` and ``conclude`` here, each of which
looks first whether its work is done, because either may run twice.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mediaserver.recordings import evidence
from mediaserver.recordings.composing import COMMAND, ComposingFailed, Composition
from mediaserver.recordings.jobs import Jobs
from mediaserver.recordings.lifecycle import Active, Recordings
from recorder.catalog import Entry
from recorder.keys import CryptoProvider
from recorder.reindex import files_of
from recorder.sealed import FileSummary
from recorder.storage import files_directory
from recorder.verify import verify

_log = logging.getLogger(__name__)
NICE = 10
COMPOSITE = "composite.mp4"
TIMELINE = "timeline.json"
SOURCES = ("camera", "screen", "document")


class Finishing:
    """Composes recordings and states what was composed."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings
        self._settings = recordings.settings
        self._compositions: dict[str, Composition] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        self.command: Sequence[str] = COMMAND
        """What is started to compose."""
        self.jobs: Jobs | None = None
        """Given once launched; until then nothing is finished in the background."""

    def composition(self, recording: str) -> Composition | None:
        """Give what composes a recording just now."""
        return self._compositions.get(recording)

    def will_make(self, entry: Entry, name: str) -> bool:
        """Say whether a recording's composing makes a file of this name."""
        if entry.composing["state"] == "none":
            return False
        if name in (COMPOSITE, TIMELINE):
            return entry.mode in ("composite", "both")
        return entry.mode in ("single", "both") and name in single_names(entry)

    async def started(self, active: Active) -> None:
        """Follow a recording that began (or was taken over), if its composite is to be made live."""
        entry = active.entry
        if self._settings.composing.when == "live" and entry.id not in self._compositions:
            active.entry = replace(entry, composing={"state": "running", "progress": None})
            await self._recordings.save(active)
            self._compose(active.entry, active.data_key.key_id, active.data_key.secret, live=True)

    async def stopped(self, active: Active) -> None:
        """Finish a recording that has ended, now or when its time comes."""
        entry = active.entry
        composition = self._compositions.get(entry.id)
        if entry.state == "failed":
            if composition is not None:
                self._compositions.pop(entry.id)
                await composition.close()
            return
        if composition is not None:
            composition.journal_ended()
        if composition is not None or self._settings.composing.when in ("live", "after_stop"):
            await self._enqueue(entry, at_once=composition is not None)

    async def want(self, entry: Entry) -> None:
        """Make a recording's files now, because somebody asks for them."""
        if entry.composing["state"] == "waiting" and "run" not in entry.composing:
            await self._enqueue(entry, at_once=False)

    async def take_over(self) -> None:
        """At the start of this process: finish what the last one did not."""
        waiting = await self._recordings.database.run(self._recordings.catalog.uncomposed)
        for entry in waiting:
            if entry.composing["state"] == "running" or "run" in entry.composing or self._due():
                await self._enqueue(entry, at_once=False)

    async def off_peak(self) -> None:
        """Start what waits for the quiet hours, if these are they."""
        if self._settings.composing.when == "off_peak" and self._due():
            for entry in await self._recordings.database.run(self._recordings.catalog.uncomposed):
                await self.want(entry)

    def _due(self) -> bool:
        composing = self._settings.composing
        if composing.when == "off_peak":
            return within(composing.off_peak, datetime.datetime.now().astimezone().time())
        return composing.when in ("live", "after_stop")

    async def _enqueue(self, entry: Entry, *, at_once: bool) -> None:
        """Start the job. Each run has its number, so that a run recorded as failed can be followed by
        another.
        """
        if self.jobs is None:
            return
        run = int(entry.composing.get("run", 0)) + 1
        state = "running" if at_once else "waiting"
        current = await self._recordings.find(entry.id) or entry
        await self._put(replace(current, composing={"state": state, "progress": None, "run": run}))
        # Nobody waits for the job runner to wake; should this process die first, ``take_over`` finds it.
        self._recordings.later(self.jobs.finish(entry.id, run, at_once=at_once))

    async def _put(self, entry: Entry) -> None:
        await self._recordings.database.run(self._recordings.catalog.put, entry)

    def _compose(self, entry: Entry, key_id: str, secret: bytes, *, live: bool) -> Composition:
        directory = self._recordings.directory(entry)
        request: dict[str, Any] = {
            "recording_dir": str(directory),
            "data_key_id": key_id,
            "data_key": base64.b64encode(secret).decode(),
            "template": entry.details["template"] if entry.mode in ("composite", "both") else None,
            "kind": "archive",
            "name": COMPOSITE,
            "live": live,
            "singles": [] if entry.mode in ("single", "both") else None,
            "nice": NICE,
        }

        async def on_event(kind: str, data: dict[str, Any]) -> None:
            active = self._recordings.active.get(entry.id)
            if active is not None and active.running:
                await self._recordings.publish(active, kind, data, "compositor")
                return
            await self._recordings.events.append(
                kind,
                tenant=entry.tenant,
                room=entry.room,
                recording=entry.id,
                actor="compositor",
                data=data,
            )

        composition = Composition(
            entry.id,
            request,
            attempts=self._settings.composing.attempts,
            on_event=on_event,
            command=self.command,
        )
        self._compositions[entry.id] = composition
        return composition

    async def compose(self, recording: str) -> dict[str, Any]:
        """Make a recording's files and sign statements for them (step of the job)."""
        recordings = self._recordings
        entry = await recordings.find(recording)
        if entry is None or entry.state == "failed":
            return {"ok": False, "code": "recording_not_found"}
        directory = recordings.directory(entry)
        lock = self._starting.setdefault(recording, asyncio.Lock())
        async with lock:
            try:
                if await asyncio.to_thread(evidence.stated_files, recordings.provider, directory):
                    return {"ok": True}
                composition = self._compositions.get(recording)
                if composition is None:
                    key = await recordings.data_key(entry, purpose="compose", actor="server")
                    composition = self._compose(entry, key.key_id, key.secret, live=False)
                done = await composition.result()
                facts = {"attempt": composition.attempt, "frames": int(done.get("frames") or 0)}
                await asyncio.to_thread(
                    evidence.state_files, recordings.provider, directory, made(done), facts
                )
            except (ComposingFailed, evidence.EvidenceProblem, OSError) as error:
                return await self._failed(entry, error)
            finally:
                self._starting.pop(recording, None)
        return {"ok": True}

    async def _failed(self, entry: Entry, error: Exception) -> dict[str, Any]:
        code = getattr(error, "code", "compose_failed")
        _log.error("recording %s has no composite: %s", entry.id, error)
        self._compositions.pop(entry.id, None)
        detail = f"{code}: {error}"
        await self._put(
            replace(
                entry, composing={**entry.composing, "state": "failed", "progress": None, "detail": detail}
            )
        )
        self._recordings.metrics.jobs.labels("compose", "failed").inc()
        await self._recordings.events.append(
            "recording.compose_failed",
            tenant=entry.tenant,
            room=entry.room,
            recording=entry.id,
            data={"code": code},
        )
        return {"ok": False, "code": code}

    async def conclude(self, recording: str) -> dict[str, Any]:
        """Put what was stated into the index and say so (step of the job)."""
        recordings = self._recordings
        entry = await recordings.find(recording)
        if entry is None:
            return {"ok": False, "code": "recording_not_found"}
        directory = recordings.directory(entry)
        files = await asyncio.to_thread(files_of, directory)
        again = entry.composing["state"] == "done"
        composing = {**entry.composing, "state": "done", "progress": 1.0}
        await self._put(replace(entry, files=files, composing=composing))
        self._compositions.pop(recording, None)
        await asyncio.to_thread(_remove_abandoned, recordings.provider, directory)
        if not again:
            if entry.stopped_ns is not None:
                recordings.metrics.compose_seconds.observe((time.time_ns() - entry.stopped_ns) / 1e9)
            recordings.metrics.jobs.labels("compose", "done").inc()
            await recordings.events.append(
                "recording.archived",
                tenant=entry.tenant,
                room=entry.room,
                recording=entry.id,
                data={"files": [file.to_json() for file in files]},
            )
        return {"ok": True}

    async def statements(self, entry: Entry) -> list[Any]:
        """Give the signed statements, first to last."""
        return await asyncio.to_thread(evidence.statement_pages, self._recordings.directory(entry))

    async def verify(self, entry: Entry, actor: str) -> dict[str, Any]:
        """Verify a recording with its key, beside the event loop; returns the report."""
        key = await self._recordings.data_key(entry, purpose="verify", actor=actor)
        directory = self._recordings.directory(entry)
        trusted = await asyncio.to_thread(evidence.own_signers, self._recordings.provider, directory)
        report = await asyncio.to_thread(verify, directory, data_key=key, trusted=trusted)
        return dict(report.to_json())

    async def close(self) -> None:
        """End the compositors without their work; the next process starts them again."""
        await asyncio.gather(*(one.close() for one in self._compositions.values()))
        self._compositions.clear()


def single_names(entry: Entry) -> list[str]:
    """List the names that single-picture files of a recording can have (VP8 goes into WebM)."""
    return [
        f"single-{who['seat'].replace('#', '-')}-{source}.{ending}"
        for who in entry.details.get("participants", [])
        for source in SOURCES
        for ending in ("mp4", "webm")
    ]


def made(done: dict[str, Any]) -> list[evidence.Made]:
    """Read from the compositor's last word what it made."""
    files = [{"file": done["file"], "duration_ms": done.get("duration_ms")}] if done.get("file") else []
    files += done.get("singles") or []
    files += [{"file": done["timeline_file"]}] if done.get("timeline_file") else []
    return [
        evidence.Made(FileSummary.from_json(one["file"]), int(one.get("duration_ms") or 0)) for one in files
    ]


def within(hours: str, now: datetime.time) -> bool:
    """Say whether a time of day lies in ``HH:MM-HH:MM``, which may go over midnight."""
    begin, end = (datetime.time.fromisoformat(part) for part in hours.split("-"))
    return begin <= now < end if begin < end else now >= begin or now < end


def _remove_abandoned(provider: CryptoProvider, directory: Path) -> None:
    """Remove what compositors that died left half-written: derived bytes that no statement speaks for."""
    keep = evidence.stated_files(provider, directory)
    folder = files_directory(directory)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix == ".sealed" and path.name not in keep:
            path.unlink()
            _log.info("removed an abandoned composite: %s", path.name)
