"""Retention, holds, review and destruction of recordings: ``recorder.custody`` asked for over HTTP.

What is said here is said by signed statements; the index only finds what is due. An API key is one person:
what needs two needs two keys.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mediaserver.errors import Refused
from mediaserver.recordings import evidence
from mediaserver.recordings.lifecycle import Recordings
from mediaserver.recordings.retention import begin_until
from mediaserver.recordings.states import changed, require_ended, require_kept
from recorder.atomic import locked
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


@dataclass(frozen=True)
class Owed:
    """A certificate that is still to be handed out: who is in it cannot be opened once the key is gone."""

    proposal: int
    tombstone: Statement
    proposed_by: str
    approved_by: str
    reason: str


class RecordingCustody:
    """Acts on ended recordings, one after another each, and keeps the index in step."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings
        self._locks: dict[str, asyncio.Lock] = {}
        self._owed: dict[str, Owed] = {}

    def _lock(self, recording: str) -> asyncio.Lock:
        return self._locks.setdefault(recording, asyncio.Lock())

    async def show(self, entry: Entry) -> Custody:
        """Read a recording's state. Raises Refused, EvidenceProblem."""
        require_ended(entry)
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
            with locked(directory):  # else it could come after a longer one, and count
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
        require_ended(entry)
        keeper = await self._keeper(entry, actor, operator, purpose)
        statement = await _thread(lambda: act(keeper))
        await self._index(entry)
        return await self.show(entry), statement

    async def destroy(
        self, entry: Entry, proposal: int, actor: str, operator: str
    ) -> tuple[Custody, dict[str, Any]]:
        """Carry out what another person proposed: tombstone, then removal; returns the signed certificate.

        Should this process die, a durable task handed over before the tombstone removes what that names.
        Where the certificate could not be signed it is made by asking again, of this process. Raises Refused,
        EvidenceProblem, KeyProblem.
        """
        async with self._lock(entry.id):
            owed = self._owed.get(entry.id)
            if owed is None or owed.proposal != proposal:
                entry = await self._recordings.find(entry.id) or entry
                require_ended(entry)
                _at_rest(entry)
                owed = await self._tombstone(entry, proposal, actor, operator)
            page = await self._certificate(entry, owed)
            self._owed.pop(entry.id, None)
            await self._remove_here(entry)
        entry = await self._recordings.find(entry.id) or entry
        return await self.show(entry), json.loads(page)

    async def _tombstone(self, entry: Entry, proposal: int, actor: str, operator: str) -> Owed:
        keeper = await self._keeper(entry, actor, operator, "destruction")
        jobs = self._recordings.finishing.jobs
        if jobs is None:
            raise Refused("draining", "the server is going down")
        # Before the tombstone, and waiting for this lock: never is one signed that nothing carries out.
        await jobs.task(DESTROY, entry.id, run=f"{proposal}-{time.time_ns()}")
        tombstone = await _thread(lambda: keeper.approve_destruction(proposal, time.time_ns()))
        sealed = await _thread(lambda: keeper.sealed_part(tombstone.number))
        owed = Owed(
            proposal,
            tombstone,
            str(sealed.get("proposed_by")),
            f"{actor} {operator}".strip(),
            str(sealed.get("reason")),
        )
        self._owed[entry.id] = owed
        return owed

    async def _certificate(self, entry: Entry, owed: Owed) -> bytes:
        directory, signer = self._directory(entry), self._recordings.provider.signer()
        return await _thread(
            lambda: certificate(
                directory,
                owed.tombstone,
                signer,
                proposed_by=owed.proposed_by,
                approved_by=owed.approved_by,
                reason=owed.reason,
            )
        )

    async def remove(self, recording: str) -> None:
        """Remove what tombstones name, here and at every site (the durable task). May run twice.

        Raises SiteError where a site does not answer: it is tried again.
        """
        async with self._lock(recording):
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
        require_kept(entry)
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


def _at_rest(entry: Entry) -> None:
    """Refuse while something is made of a recording: it would end behind its destruction."""
    composing = entry.composing["state"]
    if composing == "running" or (composing == "waiting" and "run" in entry.composing):
        raise Refused("recording_state", "the recording is being composed; ask again when that is done")
    if any(one["state"] == "waiting" for one in entry.details.get("copies", [])):
        raise Refused("recording_state", "a clip or copy is being made; ask again when that is done")
