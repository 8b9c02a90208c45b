"""Retention, holds, review and destruction of recordings: ``recorder.custody`` asked for over HTTP.

What is said here is said by signed statements; the index only finds what is due. An API key is one person:
what needs two needs two keys.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mediaserver.errors import Refused
from mediaserver.recordings import evidence
from mediaserver.recordings.lifecycle import Recordings
from mediaserver.recordings.retention import begin_until
from mediaserver.recordings.states import changed
from recorder.catalog import Entry
from recorder.clock import rfc3339
from recorder.custody import Custody, CustodyError, Keeper, read_custody
from recorder.destruction import carry_out, certificate, destroyed_by
from recorder.elsewhere import names_at_sites, note_at_sites
from recorder.gm.sm2 import Sm2Error
from recorder.manifest import ManifestError
from recorder.reindex import files_of
from recorder.statements import Statement, StatementError, append_statement, read_statements

RETENTION = "retention"
"""Kind of the durable task that signs what retention a recording began with."""
DESTROY = "destroy"
"""Kind of the durable task that removes what a signed tombstone names."""
Act = Callable[[Keeper], Statement]
Result = TypeVar("Result")


class RecordingCustody:
    """Acts on ended recordings, one after another each, and keeps the index in step."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings

    async def show(self, entry: Entry) -> Custody:
        """Read a recording's state. Raises Refused, EvidenceProblem."""
        _ended(entry)
        return await _thread(lambda: read_custody(self._directory(entry), self._accepted()))

    async def begin(self, entry: Entry) -> None:
        """Sign the retention a recording began with, once; nothing without one. Raises EvidenceProblem."""
        until = begin_until(entry, self._recordings.settings.retention.policies)
        if not until:
            return
        directory, signer = self._directory(entry), self._recordings.provider.signer()
        body = {
            "action": "set",
            "basis": str(entry.details["retention"]["basis"]),
            "until": {kind: rfc3339(at) for kind, at in until.items()},
        }

        def sign() -> None:  # no sealed part: nobody did this, and a server that cannot open signs it too
            if not any(one.kind == "retention" for one in read_statements(directory)):
                append_statement(directory, "retention", body, signer)

        await _thread(sign)
        await self._index(entry)

    async def ended(self, entry: Entry) -> None:
        """Have the retention signed that an ended recording began with: a durable task, if there is one."""
        jobs = self._recordings.finishing.jobs
        if jobs is not None and entry.details.get("retention") and entry.state != "failed":
            await jobs.task(RETENTION, entry.id)

    async def sign_retention(self, recording: str) -> None:
        """Do ``begin`` for a recording by its id (the durable task). May run twice."""
        entry = await self._recordings.find(recording)
        if entry is not None:
            await self.begin(entry)

    async def act(
        self, entry: Entry, actor: str, operator: str, purpose: str, act: Act
    ) -> tuple[Custody, Statement]:
        """Let somebody act on a recording. Raises Refused, EvidenceProblem."""
        _ended(entry)
        keeper = await self._keeper(entry, actor, operator, purpose)
        statement = await _thread(lambda: act(keeper))
        await self._index(entry)
        return await self.show(entry), statement

    async def destroy(self, entry: Entry, actor: str, operator: str) -> tuple[Custody, dict[str, Any]]:
        """Carry out what another person proposed: tombstone, then removal; returns the signed certificate.

        Should this process die in between, a durable task removes the rest. Raises Refused, EvidenceProblem.
        """
        _ended(entry)
        keeper = await self._keeper(entry, actor, operator, "destruction")
        tombstone = await _thread(lambda: keeper.approve_destruction(time.time_ns()))
        sealed = await _thread(lambda: keeper.sealed_part(tombstone.number))
        page = await _thread(
            lambda: certificate(
                keeper.directory,
                tombstone,
                keeper.signer,
                proposed_by=str(sealed.get("proposed_by")),
                approved_by=f"{actor} {operator}".strip(),
                reason=str(sealed.get("reason")),
            )
        )
        jobs = self._recordings.finishing.jobs
        if jobs is not None:
            await jobs.task(DESTROY, entry.id, run=tombstone.number)
        await self._remove_here(entry)
        return await self.show(entry), json.loads(page)

    async def remove(self, recording: str) -> None:
        """Remove what tombstones name, here and at every site (the durable task). May run twice.

        Raises SiteError where a site does not answer: it is tried again.
        """
        entry = await self._recordings.find(recording)
        if entry is None:
            return
        await self._remove_here(entry)
        destroyed = destroyed_by(await _thread(lambda: read_statements(self._directory(entry))))
        await self._recordings.uploads.destroyed(entry, destroyed.paths())

    async def _remove_here(self, entry: Entry) -> None:
        """Remove what tombstones name from this disk, and what the index knows of it."""
        directory = self._directory(entry)
        async with self._recordings.uploads.freeing.removing:
            await _thread(lambda: carry_out(directory, self._accepted()))
            await _thread(lambda: forget_destroyed(directory))
        custody = await _thread(lambda: read_custody(directory, self._accepted()))
        entry = replace(entry, files=await _thread(lambda: files_of(directory)))
        if custody.key_destroyed:
            kept = {name: entry.details[name] for name in ("template", "gaps", "armed_mono_ns")}
            gone: dict[str, Any] = {"metadata": {}, "participants": [], "losses": []}
            composing = {"state": "none", "progress": None}
            details = {**kept, **gone}
            if entry.state != "destroyed":
                entry = changed(entry, "destroyed", composing=composing, details=details)
        await self._recordings.database.run(self._recordings.catalog.put, entry)
        await self._index(entry)

    async def _index(self, entry: Entry) -> None:
        custody = await self.show(entry)
        catalog, database = self._recordings.catalog, self._recordings.database
        await database.run(catalog.put_due, entry.id, custody.first_due_ns())
        await self._recordings.uploads.changed(entry)

    def _directory(self, entry: Entry) -> Path:
        return self._recordings.directory(entry)

    def _accepted(self) -> set[bytes]:
        return evidence.own_points(self._recordings.provider)

    async def _keeper(self, entry: Entry, actor: str, operator: str, purpose: str) -> Keeper:
        if entry.state == "destroyed":
            raise Refused("destroyed", "the recording was destroyed")
        key = await self._recordings.data_key(entry, purpose=purpose, actor=actor)
        signer = self._recordings.provider.signer()
        return Keeper(self._directory(entry), key, signer, self._accepted(), actor, operator)


def forget_destroyed(directory: Path) -> None:
    """Take from the note of what lies at sites alone what was destroyed. Blocks."""
    elsewhere = names_at_sites(directory)
    gone = set(destroyed_by(read_statements(directory)).paths())
    if elsewhere & gone:
        note_at_sites(directory, elsewhere - gone)


async def _thread(work: Callable[[], Result]) -> Result:
    """Do blocking work beside the event loop, its refusals translated."""
    try:
        return await asyncio.to_thread(work)
    except CustodyError as error:
        raise Refused(error.code, error.detail) from error
    except (StatementError, ManifestError, Sm2Error, FileNotFoundError) as error:
        raise evidence.EvidenceProblem(str(error)) from error


def _ended(entry: Entry) -> None:
    if entry.active or entry.state == "failed":
        raise Refused("recording_state", f"the recording is {entry.state}: there is no signed manifest")
