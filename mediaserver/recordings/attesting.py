"""What others say of a recording, stored with it: the authority's revocation lists, its time-stamps.

Both are statements, added after the manifest and again after files were composed, by a durable task that is
tried for ``timestamp.retry_hours``. No call and no stop waits for an authority. Nothing is asked for twice:
the task looks first what is stamped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from mediaserver.attest_settings import CertificateStatus
from mediaserver.recordings import evidence
from mediaserver.recordings.jobs import Jobs
from mediaserver.recordings.lifecycle import Recordings
from recorder.catalog import Entry
from recorder.fetch import FetchError, fetch
from recorder.gm.sm2 import Sm2Error
from recorder.gm.x509 import RevocationList
from recorder.signers import CERTIFICATE_STATUS, status_body
from recorder.statements import Statement, append_statement
from recorder.timestamp import (
    TIMESTAMP,
    Authority,
    TimestampError,
    ask_digest,
    is_stamped,
    read_anchors,
    stamp,
)

_log = logging.getLogger(__name__)
TASK = "attest"
MAX_LIST_BYTES = 4 << 20
AT_ONCE = 4
"""Requests to the time-stamp authority at a time: a restart after a day without it has many."""


@dataclass
class RevocationLists:
    """Keeps the newest lists of the configured sources; those that cannot be got are tried again."""

    settings: CertificateStatus
    lists: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """By source: when it was got (Unix ns), its bytes."""
    missing: dict[str, str] = field(default_factory=dict)
    """Sources that have never been got, and why."""

    async def keep(self) -> None:
        """Get the lists now and every ``refresh_s``; never returns if there are any."""
        while self.settings.crl:
            await self.refresh()
            await asyncio.sleep(self.settings.refresh_s)

    async def refresh(self) -> None:
        """Get all lists once."""
        for source in self.settings.crl:
            try:
                data = await asyncio.to_thread(self._get, source)
            except (FetchError, OSError, Sm2Error) as error:
                _log.error("the revocation list %s was not got: %s", source, error)
                if source not in self.lists:
                    self.missing[source] = str(error)
                continue
            self.lists[source] = (time.time_ns(), data)
            self.missing.pop(source, None)

    def _get(self, source: str) -> bytes:
        if "://" in source:
            data, _ = fetch(source, timeout_s=self.settings.timeout_s, max_bytes=MAX_LIST_BYTES)
        else:
            with Path(source).open("rb") as file:
                data = file.read(MAX_LIST_BYTES + 1)
            if len(data) > MAX_LIST_BYTES:
                raise FetchError(f"{source} has more than {MAX_LIST_BYTES} bytes")
        RevocationList.from_bytes(data)
        return data


class Attesting:
    """Adds certificate status and time-stamps to recordings. ``start`` it before the jobs are launched."""

    def __init__(self, recordings: Recordings) -> None:
        """Read the authority's anchors. Raise TimestampError, OSError."""
        self._recordings = recordings
        self._settings = recordings.settings.timestamp
        self.lists = RevocationLists(recordings.settings.crypto.status)
        self._authority = self._configured()
        self._asking = asyncio.Semaphore(AT_ONCE)
        self._jobs: Jobs | None = None

    def _configured(self) -> Authority | None:
        settings = self._settings
        if settings.when == "off" or settings.url is None:
            return None
        anchors = read_anchors(settings.trust) if settings.trust is not None else None
        return Authority(settings.url, anchors, settings.policy, settings.timeout_s)

    @property
    def anchors(self) -> tuple[bytes, ...] | None:
        """Certificates of the configured authority, to verify time-stamps by."""
        return self._authority.anchors if self._authority is not None else None

    async def stamp_digest(self, digest: bytes) -> bytes | None:
        """Have an SM3 digest stamped; returns the authority's response, None if none is configured.

        Raises TimestampError.
        """
        if self._authority is None:
            return None
        async with self._asking:
            response, _, _ = await asyncio.to_thread(ask_digest, self._authority, digest)
        return response

    def start(self, jobs: Jobs) -> None:
        """Say what does the task."""
        jobs.handle(TASK, self.attest)
        self._jobs = jobs

    async def wanted(self, entry: Entry) -> None:
        """Have an ended recording's new pages attested in the background."""
        if self._jobs is not None and (self._authority is not None or self.lists.settings.crl):
            argument = json.dumps({"recording": entry.id, "since": time.time_ns()})
            self._recordings.later(self._jobs.task(TASK, argument))

    def lacks(self, statements: list[Statement]) -> bool:
        """Say whether something that is configured is missing among a recording's statements."""
        unstamped = self._authority is not None and not is_stamped(statements)
        listed = any(one.kind == CERTIFICATE_STATUS for one in statements)
        return unstamped or (bool(self.lists.settings.crl) and not listed)

    async def attest(self, argument: str) -> None:
        """Add what is missing (a durable task). Raises whatever keeps it from that, for the next try."""
        given = json.loads(argument)
        entry = await self._recordings.find(given["recording"])
        directory = self._recordings.directory(entry) if entry is not None else None
        if entry is None or directory is None or not directory.is_dir():
            return  # destroyed meanwhile
        try:
            await self._attest(entry, directory)
        except (TimestampError, evidence.EvidenceProblem, OSError) as error:
            if time.time_ns() - given["since"] < self._settings.retry_hours * 3600e9:
                raise
            _log.error("recording %s has no time-stamp: given up: %s", entry.id, error)
            await self._recordings.events.append_about(
                entry, "recording.timestamp_failed", {"reason": str(error)}
            )

    async def _attest(self, entry: Entry, directory: Path) -> None:
        statements = await asyncio.to_thread(self._statements, directory)
        if self.lists.settings.crl and all(one.kind != CERTIFICATE_STATUS for one in statements):
            if not self.lists.lists and not self.lists.missing:
                await self.lists.refresh()  # this process has just begun
            await asyncio.to_thread(self._state_status, directory)
            await self._recordings.uploads.changed(entry)
        if self._authority is None or is_stamped(statements):
            return
        async with self._asking:
            done = await asyncio.to_thread(
                stamp, directory, TIMESTAMP, self._authority, self._recordings.provider.signer()
            )
        await self._recordings.uploads.changed(entry)
        if done.state != "verified":
            _log.warning("the time-stamp of %s cannot be verified here", done.token.authority)
        await self._recordings.events.append_about(
            entry,
            "recording.timestamped",
            {
                "statement": done.statement.number,
                "time": done.token.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "authority": done.token.authority,
                "state": done.state,
            },
        )

    def _statements(self, directory: Path) -> list[Statement]:
        return evidence.our_statements(self._recordings.provider, directory)

    def _state_status(self, directory: Path) -> None:
        lists = [(source, at, data) for source, (at, data) in self.lists.lists.items()]
        provider = self._recordings.provider
        body = status_body(lists, provider.info().chain_pem, self.lists.missing)
        append_statement(directory, CERTIFICATE_STATUS, body, provider.signer())
