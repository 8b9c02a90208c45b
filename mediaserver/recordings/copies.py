"""Clips and viewers' copies over HTTP: asked for, made by a compositor process, stated, indexed.

What was asked for lies sealed in the index until it is made; the durable task names it by recording and file.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from mediaserver.errors import Refused
from mediaserver.recordings import evidence
from mediaserver.recordings.composing import ComposingFailed, Composition
from mediaserver.recordings.finishing import NICE
from mediaserver.recordings.lifecycle import Recordings
from recorder.catalog import Entry
from recorder.derived import NoParent, signed_file, state_derived
from recorder.keys import SealedOnly
from recorder.reindex import files_of
from recorder.sealed import FileSummary
from recorder.statements import StatementError, read_statements

COPY = "copy"
"""Kind of the durable task."""
COMMAND = (sys.executable, "-m", "compositor.copies")
PARENT = "composite.mp4"


class Copies:
    """Makes clips and copies of archive composites."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings
        self._running: dict[tuple[str, str], Composition] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        at_once = recordings.settings.composing.max_parallel or os.cpu_count() or 1
        self._turn = asyncio.Semaphore(at_once)
        self.command: Sequence[str] = COMMAND

    async def ask(self, entry: Entry, kind: str, actor: str, wanted: dict[str, Any]) -> str:
        """Begin a ``clip`` or ``copy``; returns the name of its file. Raises Refused.

        ``wanted``: from_ms, to_ms, viewer, reason, operator.
        """
        if entry.active or entry.state in ("failed", "destroyed"):
            raise Refused("recording_state", f"the recording is {entry.state}")
        if not self._recordings.provider.can_open:
            raise Refused("sealed_only", "clips and copies are made where recordings can be opened")
        if PARENT not in {file.name for file in entry.files}:
            raise Refused("file_not_found", f"there is no {PARENT} to make it from")
        if entry.composing["state"] in ("waiting", "running"):
            raise Refused("recording_state", "the recording is being composed; ask again when that is done")
        length = next(file.duration_ms for file in entry.files if file.name == PARENT)
        if length is not None and wanted.get("from_ms", 0) >= length:
            raise Refused("range_not_satisfiable", f"the composite ends at {length} ms")
        async with self._lock(entry):
            current = await self._recordings.find(entry.id) or entry
            listed = list(current.details.get("copies", []))
            number = 1 + sum(one["kind"] == kind for one in listed)
            taken = {file.name for file in current.files}
            while f"{kind}-{number}.mp4" in taken:
                number += 1
            name = f"{kind}-{number}.mp4"
            listed.append({**wanted, "name": name, "kind": kind, "actor": actor, "state": "waiting"})
            await self._put(replace(current, details={**current.details, "copies": listed}))
        jobs = self._recordings.finishing.jobs
        if jobs is None:
            raise Refused("draining", "the server is going down")
        await jobs.task(COPY, json.dumps({"recording": entry.id, "file": name}))
        return name

    def state(self, entry: Entry, name: str) -> dict[str, Any] | None:
        """Say how far a clip or copy is that was asked for; None if none of this name was."""
        asked = _asked(entry, name)
        if asked is None:
            return None
        running = self._running.get((entry.id, name))
        return {"state": asked["state"], "progress": running.progress if running is not None else None}

    async def make(self, argument: str) -> None:
        """Make one of those asked for (the durable task). May run twice."""
        named = json.loads(argument)
        recording, name = str(named["recording"]), str(named["file"])
        entry = await self._recordings.find(recording)
        asked = _asked(entry, name) if entry is not None else None
        if entry is None or asked is None or asked["state"] != "waiting":
            return
        async with self._turn, self._recordings.uploads.freeing.using(entry):
            try:
                await self._make(entry, asked)
            except (ComposingFailed, evidence.EvidenceProblem, SealedOnly, NoParent, StatementError) as error:
                default = "sealed_only" if isinstance(error, SealedOnly) else "compose_failed"
                code = getattr(error, "code", default)
                await self._ended(entry, name, "failed")
                data = {"code": code, "file": name}
                await self._recordings.events.append_about(entry, "recording.compose_failed", data)

    async def _make(self, entry: Entry, asked: dict[str, Any]) -> None:
        recordings, name = self._recordings, str(asked["name"])
        directory = recordings.directory(entry)
        stated = await asyncio.to_thread(evidence.stated_files, recordings.provider, directory)
        if not any(one.startswith(f"{name}.") for one in stated):
            key = await recordings.data_key(entry, purpose=str(asked["reason"]), actor=str(asked["actor"]))
            await recordings.uploads.freeing.restore(entry)
            parent = await asyncio.to_thread(signed_file, directory, PARENT)
            await recordings.uploads.freeing.restore(entry)
            request: dict[str, Any] = {
                "recording_dir": str(directory),
                "data_key_id": key.key_id,
                "data_key": base64.b64encode(key.secret).decode(),
                "suite": key.suite,
                "parent": parent.name,
                "parent_id": parent.file_id,
                "parent_sm3": parent.sm3,
                "name": name,
                "from_ms": asked.get("from_ms", 0),
                "to_ms": asked.get("to_ms"),
                "mark": _mark(str(asked.get("viewer") or "")),
                "live": False,
                "nice": NICE,
            }
            done = await self._composed(entry, name, request)
            await asyncio.to_thread(
                state_derived,
                directory,
                FileSummary.from_json(done["file"]),
                parent,
                operation={"kind": asked["kind"], "from_ms": done["from_ms"], "to_ms": done["to_ms"]},
                duration_ms=int(done["duration_ms"]),
                sealed={one: asked.get(one, "") for one in ("actor", "operator", "reason", "viewer")},
                data_key=key,
                signer=recordings.provider.signer(),
            )
        number = len(await asyncio.to_thread(read_statements, directory))
        entry = await self._ended(entry, name, "done")
        await recordings.uploads.changed(entry)
        data = {"file": name, "statement": number, "operator": asked.get("operator", "")}
        events = recordings.events
        await events.append_about(entry, f"audit.{asked['kind']}_made", data, str(asked["actor"]))
        listed = {"files": [file.to_json() for file in entry.files]}
        await events.append_about(entry, "recording.composed", listed)
        await recordings.uploads.changed(entry)

    async def _composed(self, entry: Entry, name: str, request: dict[str, Any]) -> dict[str, Any]:
        async def on_event(kind: str, data: dict[str, Any]) -> None:
            await self._recordings.events.append_about(entry, kind, data, "compositor")

        composition = Composition(
            entry.id,
            request,
            attempts=self._recordings.settings.composing.attempts,
            on_event=on_event,
            command=self.command,
        )
        self._running[entry.id, name] = composition
        try:
            return await composition.result()
        finally:
            self._running.pop((entry.id, name), None)
            await composition.close()

    async def _ended(self, entry: Entry, name: str, state: str) -> Entry:
        """Note how it ended, and the files as they are now."""
        async with self._lock(entry):
            current = await self._recordings.find(entry.id) or entry
            files = await asyncio.to_thread(files_of, self._recordings.directory(entry))
            listed = [
                {**one, "state": state} if one["name"] == name else one
                for one in current.details.get("copies", [])
            ]
            current = replace(current, files=files, details={**current.details, "copies": listed})
            await self._put(current)
            return current

    def _lock(self, entry: Entry) -> asyncio.Lock:
        return self._locks.setdefault(entry.id, asyncio.Lock())

    async def _put(self, entry: Entry) -> None:
        await self._recordings.database.run(self._recordings.catalog.put, entry)


def _asked(entry: Entry, name: str) -> dict[str, Any] | None:
    return next((one for one in entry.details.get("copies", []) if one["name"] == name), None)


def _mark(viewer: str) -> str:
    """Say what is tiled over the picture: who sees it and from which day."""
    return f"{viewer} {datetime.now(UTC):%Y-%m-%d}" if viewer else ""
