"""Rotation in the background: a tenant's sidecars, one after the other, from the former keys to the current.

The run is a durable task; where it is stands in ``{data}/rewrap/{tenant}.json``. Killed anywhere it goes on,
because what is wrapped for the current keys is passed over. The audit hears of each recording before its
sidecar is replaced: killed in between, it hears twice, never not at all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mediaserver.errors import Refused
from recorder.atomic import replace_file
from recorder.audit import list_files
from recorder.clock import SystemClock, rfc3339
from recorder.gm.x509 import Certificate
from recorder.keys import KeyProblem, KeysUnavailable
from recorder.keys.rewrap import Outcome, Rewrapper
from recorder.keys.rotating import RotatingProvider
from recorder.manifest import ManifestError
from recorder.reindex import recording_directories
from recorder.storage import tenant_directory

if TYPE_CHECKING:
    from mediaserver.recordings.jobs import Jobs
    from mediaserver.recordings.lifecycle import Recordings

TASK = "rewrap"
SAVE_EVERY = 50
NAMED = 100
"""Failures named in the state; more are only counted."""
AUDIT_S = 10.0

_log = logging.getLogger(__name__)
State = dict[str, Any]


class Rewrapping:
    """Moves recordings to the current keys, tenant by tenant."""

    def __init__(self, recordings: Recordings, jobs: Jobs) -> None:
        self._recordings = recordings
        self._jobs = jobs
        self._data = recordings.settings.data_dir.absolute()
        self._states: dict[str, State] = {}
        self._starting = asyncio.Lock()
        self._locks: dict[str, asyncio.Lock] = {}
        jobs.handle(TASK, self.work)

    async def start(self, tenant: str, actor: str) -> State:
        """Start a run, or return the one that goes on. Raises Refused where there is nothing to move from."""
        provider = self._provider()
        async with self._starting:
            state = await self.state(tenant)
            if state["state"] != "running":
                state = await self._begin(tenant, provider, actor)
            if not self._lock(tenant).locked():  # also if the task was lost: a second one does no harm
                await self._jobs.task(TASK, tenant, run=str(uuid.uuid4()))
        return state

    async def _begin(self, tenant: str, provider: RotatingProvider, actor: str) -> State:
        state = {
            "state": "running",
            "run": str(uuid.uuid4()),
            "recipient": Certificate.from_pem(provider.info().encryption_certificate_pem).fingerprint,
            "actor": actor,
            "total": 0,
            "done": 0,
            "failed": 0,
            "failures": {},
            "started_at": _now(),
            "ended_at": None,
        }
        await self._save(tenant, state)
        return state

    async def state(self, tenant: str) -> State:
        """Say how far a tenant's last run is; ``{"state": "none"}`` if there was none."""
        if tenant not in self._states:
            try:
                text = await asyncio.to_thread(self._path(tenant).read_text)
            except FileNotFoundError:
                return {"state": "none"}
            self._states[tenant] = json.loads(text)
        return dict(self._states[tenant])

    async def work(self, tenant: str) -> None:
        """Do a tenant's run from its beginning (the task). Raises KeysUnavailable: tried again then."""
        async with self._lock(tenant):
            state = await self.state(tenant)
            if state["state"] != "running":
                return
            provider = self._recordings.provider
            if isinstance(provider, RotatingProvider):
                await self._run(tenant, state, provider)
            else:
                _log.error("the keys of tenant %s are not all moved, and crypto.former is gone", tenant)
                await self._save(tenant, {**state, "state": "abandoned", "ended_at": _now()})

    def _lock(self, tenant: str) -> asyncio.Lock:
        return self._locks.setdefault(tenant, asyncio.Lock())

    async def _run(self, tenant: str, state: State, provider: RotatingProvider) -> None:
        rewrapper = await asyncio.to_thread(
            Rewrapper, provider.former, provider.current, actor=str(state["actor"])
        )
        found = await asyncio.to_thread(self._directories, tenant)
        state = {**state, "total": len(found), "done": 0, "failed": 0, "failures": {}}
        # The audit log is of all tenants and in no count: whoever rotates first takes it along.
        logs = [file.directory for file in await asyncio.to_thread(list_files, self._data / "audit")]
        for number, directory in enumerate([*logs, *found], 1):
            try:
                await asyncio.to_thread(self._one, rewrapper, directory, state)
                state["done"] += directory not in logs
                await self._send(directory.name)
            except KeysUnavailable:
                await self._save(tenant, state)
                raise
            except (KeyProblem, ManifestError, OSError) as error:
                _log.error("the key of %s is not rewrapped: %s", directory, error)
                state["failed"] += 1
                if len(state["failures"]) < NAMED:
                    state["failures"][directory.name] = str(error)
            self._states[tenant] = state
            if number % SAVE_EVERY == 0:
                await self._save(tenant, state)
        await self._save(tenant, {**state, "state": "done", "ended_at": _now()})

    def _one(self, rewrapper: Rewrapper, directory: Path, state: State) -> Outcome:
        """Rewrap one recording, in a thread; the event loop takes its audit event."""

        def audit(recording: str) -> None:
            event = self._audit(recording, str(state["recipient"]), str(state["actor"]))
            asyncio.run_coroutine_threadsafe(event, self._jobs.loop).result(AUDIT_S)

        return rewrapper.rewrap(directory, audit)

    async def _send(self, recording: str) -> None:
        """Let the sites have the new sidecar."""
        entry = await self._recordings.find(recording) if self._recordings.uploads.sites else None
        if entry is not None:
            await self._recordings.uploads.changed(entry)

    async def _audit(self, recording: str, recipient: str, actor: str) -> None:
        entry = await self._recordings.find(recording)
        if entry is None and recording.startswith("audit-"):
            data = {"log": recording, "recipient": recipient}
            await self._recordings.events.append("audit.rewrapped", tenant="", actor=actor, data=data)
            return
        if entry is None:
            _log.warning("recording %s is not in the index; its key is rewrapped", recording)
            return
        data = {"recipient": recipient}
        await self._recordings.events.append_about(entry, "audit.rewrapped", data, actor)

    def _provider(self) -> RotatingProvider:
        provider = self._recordings.provider
        if not isinstance(provider, RotatingProvider):
            raise Refused("former_keys_missing", "crypto.former names no keys to move recordings from")
        return provider

    def _directories(self, tenant: str) -> list[Path]:
        root = tenant_directory(self._data, tenant)
        return [one for one in recording_directories(self._data) if one.is_relative_to(root)]

    def _path(self, tenant: str) -> Path:
        return self._data / "rewrap" / f"{tenant_directory(self._data, tenant).name}.json"

    async def _save(self, tenant: str, state: State) -> None:
        self._states[tenant] = state
        path = self._path(tenant)

        def write() -> None:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            replace_file(path, json.dumps(state, ensure_ascii=False).encode())

        await asyncio.to_thread(write)


def _now() -> str:
    return rfc3339(SystemClock().utc_ns())
