"""From a signed manifest to fetchable files: composing, statements, index.

Compositions that follow the call are started with it, if the cores bear it (``admission``), and have only
their last seconds to do after the stop; others are started by their job. The job (``jobs``) runs ``compose``
and ``conclude`` here, each of which looks first whether its work is done, because either may run twice.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mediaserver.errors import Refused
from mediaserver.keys import opening_keys
from mediaserver.recordings import evidence
from mediaserver.recordings.admission import Admission
from mediaserver.recordings.attesting import Attesting
from mediaserver.recordings.composing import COMMAND, ComposingFailed, Composition
from mediaserver.recordings.jobs import Jobs
from mediaserver.recordings.lifecycle import Active, Recordings
from mediaserver.recordings.pieces import Piece, file_names, pieces
from recorder.canonical import canonical
from recorder.catalog import Entry
from recorder.gm.sm3 import named, sm3
from recorder.keys import CryptoProvider, KeyProblem, ProviderConfig
from recorder.reindex import files_of, template_text
from recorder.sealed import DataKey, FileSummary
from recorder.signed import signable
from recorder.sites import SiteError
from recorder.storage import files_directory
from recorder.template import Template, parse_template
from recorder.verify import verify

_log = logging.getLogger(__name__)
NICE = 10
KEYS_AGAIN_S = 5.0
CORES_FOR_LIVE = 0.9
"""Of the machine, where the settings say nothing: media workers go before, composers run at low priority."""


class Finishing:
    """Composes recordings and states what was composed."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings
        self._settings = recordings.settings
        self._compositions: dict[str, dict[str, Composition]] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        cores = self._settings.composing.live_cores or CORES_FOR_LIVE * len(os.sched_getaffinity(0))
        self.admission = Admission(cores)
        self.command: Sequence[str] = COMMAND
        """What is started to compose."""
        self.jobs: Jobs | None = None
        """Given once launched; until then nothing is finished in the background."""
        self.attesting = Attesting(recordings)

    def composition(self, recording: str) -> Composition | None:
        """Give what composes a recording just now, its composite of record before others."""
        return next(iter(self._compositions.get(recording, {}).values()), None)

    @property
    def _running(self) -> list[Composition]:
        return [one for some in self._compositions.values() for one in some.values()]

    @property
    def lag_s(self) -> float:
        """How far the slowest composite that follows its call is behind it."""
        return max((one.lag_s or 0.0 for one in self._running if one.live), default=0.0)

    def will_make(self, entry: Entry, name: str) -> bool:
        """Say whether a recording's composing makes a file of this name."""
        return entry.composing["state"] != "none" and name in file_names(entry)

    async def started(self, active: Active) -> None:
        """Follow a recording that began (or was taken over), if its composites are to be made live."""
        entry = active.entry
        if self._when(entry) != "live" or entry.id in self._compositions:
            return
        running = False
        for piece in pieces(entry):
            share = self._admitted(entry, piece)
            if share is not None:
                composition = self._compose(entry, piece, active.data_key, live=True)
                composition.at_end(partial(self.admission.release, share))
                running = True
        composing = {"state": "running" if running else "waiting", "progress": None}
        active.entry = replace(active.entry, composing=composing)
        await self._recordings.save(active)

    def _admitted(self, entry: Entry, piece: Piece) -> float | None:
        """Take the cores a live piece needs; None if it has to wait for the end of the call."""
        if piece.template is None:
            return 0.0
        share = self.admission.admit(parse_template(piece.template))
        if share is None:
            _log.warning(
                "%s of recording %s is composed after its end: %.1f of %.1f cores are taken",
                piece.name,
                entry.id,
                self.admission.taken,
                self.admission.cores,
            )
            self._recordings.metrics.jobs.labels("compose", "not_admitted").inc()
        return share

    async def stopped(self, active: Active) -> None:
        """Finish a recording that has ended, now or when its time comes."""
        entry = active.entry
        running = self._compositions.get(entry.id, {})
        if entry.state == "failed":
            self._compositions.pop(entry.id, None)
            await asyncio.gather(*(one.close() for one in running.values()))
            return
        for composition in running.values():
            composition.journal_ended()
        await self.attesting.wanted(entry)
        if running or self._when(entry) in ("live", "after_stop"):
            await self._enqueue(entry, at_once=len(running) == len(pieces(entry)))

    async def want(self, entry: Entry) -> None:
        """Make a recording's files now, because somebody asks for them."""
        if entry.composing["state"] == "waiting" and "run" not in entry.composing:
            await self._enqueue(entry, at_once=False)

    async def add(self, entry: Entry, name: str, template: Template) -> Entry:
        """Make one more composite of an ended recording. Raises Refused."""
        if entry.active or entry.state in ("failed", "destroyed"):
            raise Refused("recording_state", f"the recording is {entry.state}; ask after its end")
        if entry.composing["state"] in ("waiting", "running") and "run" in entry.composing:
            raise Refused("recording_state", "the recording is being composed; ask again when that is done")
        if any(one["state"] == "waiting" for one in entry.details.get("copies", [])):
            raise Refused("recording_state", "a clip or copy is being made; ask again when that is done")
        if name in file_names(entry) or name in {file.name for file in entry.files}:
            raise Refused("composite_exists", f"the recording has a file {name}")
        wanted = {"name": name, "template": template.model_dump(mode="json")}
        more = [*entry.details.get("composites", []), wanted]
        entry = replace(entry, details={**entry.details, "composites": more})
        await self._enqueue(entry, at_once=False)
        return await self._recordings.find(entry.id) or entry

    async def take_over(self) -> None:
        """At the start of this process: finish what the last one did not."""
        waiting = await self._recordings.database.run(self._recordings.catalog.uncomposed)
        for entry in waiting:
            if entry.composing["state"] == "running" or "run" in entry.composing or self._due(entry):
                await self._enqueue(entry, at_once=False)

    async def off_peak(self) -> None:
        """Start what waits for the quiet hours, if these are they."""
        if self._quiet():
            for entry in await self._recordings.database.run(self._recordings.catalog.uncomposed):
                if self._when(entry) == "off_peak":
                    await self.want(entry)

    def _when(self, entry: Entry) -> str:
        """Say when a recording's files are made: as its template says, else as the settings do."""
        template = entry.details.get("template") or {}
        return str(template.get("compose") or self._settings.composing.when)

    def _quiet(self) -> bool:
        return within(self._settings.composing.off_peak, datetime.datetime.now().astimezone().time())

    def _due(self, entry: Entry) -> bool:
        when = self._when(entry)
        return self._quiet() if when == "off_peak" else when in ("live", "after_stop")

    async def _enqueue(self, entry: Entry, *, at_once: bool) -> None:
        """Start the job. Each run has its number, so that a run recorded as failed can be followed by
        another.
        """
        if self.jobs is None:
            return
        run = int(entry.composing.get("run", 0)) + 1
        state = "running" if at_once else "waiting"
        current = await self._recordings.find(entry.id) or entry
        if current.state == "destroyed":
            return
        if "composites" in entry.details:  # what was just asked for is known here alone
            current = replace(current, details=entry.details)
        await self._put(replace(current, composing={"state": state, "progress": None, "run": run}))
        # Nobody waits for the job runner to wake; should this process die first, ``take_over`` finds it.
        self._recordings.later(self.jobs.finish(entry.id, run, at_once=at_once))

    async def _put(self, entry: Entry) -> None:
        await self._recordings.database.run(self._recordings.catalog.put, entry)

    def _compose(
        self, entry: Entry, piece: Piece, key: DataKey | ProviderConfig, *, live: bool
    ) -> Composition:
        """Start a compositor with the data key, or with where it finds the key that opens that."""
        request: dict[str, Any] = {
            "recording_dir": str(self._recordings.directory(entry)),
            **_told(entry, key),
            "template": piece.template,
            "kind": piece.kind,
            "live": live,
            "singles": [] if piece.singles else None,
            "nice": NICE,
        }
        if piece.name:
            request["name"] = piece.name

        async def on_event(kind: str, data: dict[str, Any]) -> None:
            active = self._recordings.active.get(entry.id)
            if active is not None and active.running:
                await self._recordings.publish(active, kind, data, "compositor")
                return
            await self._recordings.events.append_about(entry, kind, data, "compositor")

        composition = Composition(
            entry.id,
            request,
            attempts=self._settings.composing.attempts,
            on_event=on_event,
            command=self.command,
        )
        self._compositions.setdefault(entry.id, {})[piece.name] = composition
        return composition

    async def compose(self, recording: str) -> dict[str, Any]:
        """Make a recording's files and sign statements for them (step of the job)."""
        recordings = self._recordings
        entry = await recordings.find(recording)
        if entry is None or entry.state in ("failed", "destroyed"):
            return {"ok": False, "code": "recording_not_found"}
        directory = recordings.directory(entry)
        lock = self._starting.setdefault(recording, asyncio.Lock())
        async with lock, recordings.uploads.freeing.using(entry):
            try:
                stated = await asyncio.to_thread(evidence.stated_files, recordings.provider, directory)
                missing = [piece for piece in pieces(entry) if not piece.is_among(stated)]
                if missing:
                    await recordings.uploads.freeing.restore(entry)
                for piece in missing:
                    await self._make_at_last(entry, piece, directory)
            except (ComposingFailed, evidence.EvidenceProblem, SiteError, OSError) as error:
                return await self._failed(entry, error)
            finally:
                self._starting.pop(recording, None)
        return {"ok": True}

    async def _make_at_last(self, entry: Entry, piece: Piece, directory: Path) -> None:
        """Make a piece, waiting for the key service for as long as it is down."""
        while True:
            try:
                await self._make(entry, piece, directory)
                return
            except KeyProblem as error:
                why: Exception = error
            except ComposingFailed as error:
                if error.code != "keys_unavailable":
                    raise
                self._compositions.get(entry.id, {}).pop(piece.name, None)
                why = error
            _log.error("composing of %s waits for its keys: %s", entry.id, why)
            await asyncio.sleep(KEYS_AGAIN_S)

    async def _key(self, entry: Entry) -> DataKey | ProviderConfig:
        """Give the data key, or where this server only seals, what the compositor opens it with."""
        if self._recordings.provider.can_open:
            return await self._recordings.data_key(entry, purpose="compose", actor="server")
        opening = opening_keys(self._settings)
        if opening is None:
            raise ComposingFailed(
                "sealed_only", "crypto.open is false and crypto.opening names no keys: compositor render can"
            )
        return opening

    async def _make(self, entry: Entry, piece: Piece, directory: Path) -> None:
        """Wait for a piece, starting it if nothing does yet, and sign statements for it."""
        recordings = self._recordings
        composition = self._compositions.get(entry.id, {}).get(piece.name)
        if composition is None:
            composition = self._compose(entry, piece, await self._key(entry), live=False)
        done = await composition.result()
        if piece.template is not None:
            cpu_s, length_s = float(done.get("cpu_s") or 0), float(done.get("duration_ms") or 0) / 1000
            self.admission.learn(parse_template(piece.template), cpu_s, length_s)
        facts: dict[str, Any] = {"attempt": composition.attempt, "frames": int(done.get("frames") or 0)}
        if piece.kind == "derived" and piece.template is not None:
            facts["template_sm3"] = named(sm3(canonical(signable(template_text(piece.template)))))
        await asyncio.to_thread(evidence.state_files, recordings.provider, directory, made(done), facts)

    async def _failed(self, entry: Entry, error: Exception) -> dict[str, Any]:
        code = getattr(error, "code", "compose_failed")
        _log.error("recording %s has no composite: %s", entry.id, error)
        running = self._compositions.pop(entry.id, {})
        await asyncio.gather(*(one.close() for one in running.values()))
        detail = f"{code}: {error}"
        # As it is now: what was done with it meanwhile stays done.
        entry = await self._recordings.find(entry.id) or entry
        if entry.state == "destroyed":
            return {"ok": False, "code": code}
        await self._put(
            replace(
                entry, composing={**entry.composing, "state": "failed", "progress": None, "detail": detail}
            )
        )
        self._recordings.metrics.jobs.labels("compose", "failed").inc()
        await self._recordings.events.append_about(entry, "recording.compose_failed", {"code": code})
        return {"ok": False, "code": code}

    async def conclude(self, recording: str) -> dict[str, Any]:
        """Put what was stated into the index and say so (step of the job)."""
        recordings = self._recordings
        entry = await recordings.find(recording)
        if entry is None or entry.state == "destroyed":
            return {"ok": False, "code": "recording_not_found"}
        directory = recordings.directory(entry)
        files = await asyncio.to_thread(files_of, directory)
        again = entry.composing["state"] == "done"
        archived = bool(entry.files)
        composing = {**entry.composing, "state": "done", "progress": 1.0}
        await self._put(replace(entry, files=files, composing=composing))
        self._compositions.pop(recording, None)
        await asyncio.to_thread(_remove_abandoned, recordings.provider, directory)
        await recordings.uploads.changed(entry)
        if not again:
            if entry.stopped_ns is not None and not archived:
                recordings.metrics.compose_seconds.observe((time.time_ns() - entry.stopped_ns) / 1e9)
            recordings.metrics.jobs.labels("compose", "done").inc()
            kind = "recording.composed" if archived else "recording.archived"
            listed = {"files": [file.to_json() for file in files]}
            await recordings.events.append_about(entry, kind, listed)
        await self.attesting.wanted(entry)
        return {"ok": True}

    async def statements(self, entry: Entry) -> list[Any]:
        """Give the signed statements, first to last."""
        return await asyncio.to_thread(evidence.statement_pages, self._recordings.directory(entry))

    async def verify(self, entry: Entry, actor: str) -> dict[str, Any]:
        """Verify a recording, with its key where this server can open; returns the report.

        Beside the event loop. Raises EvidenceProblem, KeysUnavailable.
        """
        key = None
        if self._recordings.provider.can_open and entry.state != "destroyed":
            key = await self._recordings.data_key(entry, purpose="verify", actor=actor)
        directory = self._recordings.directory(entry)
        async with self._recordings.uploads.freeing.using(entry):
            await self._recordings.uploads.freeing.restore(entry)
            trusted = await asyncio.to_thread(evidence.own_signers, self._recordings.provider, directory)
            report = await asyncio.to_thread(
                verify, directory, data_key=key, trusted=trusted, time_authorities=self.attesting.anchors
            )
        return dict(report.to_json())

    async def close(self) -> None:
        """End the compositors without their work; the next process starts them again."""
        await asyncio.gather(*(one.close() for one in self._running))
        self._compositions.clear()


def _told(entry: Entry, key: DataKey | ProviderConfig) -> dict[str, Any]:
    if isinstance(key, DataKey):
        secret = base64.b64encode(key.secret).decode()
        return {"data_key_id": key.key_id, "data_key": secret, "suite": key.suite}
    return {"data_key_id": entry.details["key_id"], "opening": key.model_dump(mode="json")}


def made(done: dict[str, Any]) -> list[evidence.Made]:
    """Read from the compositor's last word what it made."""
    files = [{"file": done["file"], "duration_ms": done.get("duration_ms")}] if done.get("file") else []
    files += [{"file": image} for image in done.get("images") or []]
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
