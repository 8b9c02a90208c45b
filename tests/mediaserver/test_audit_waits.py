"""Who writes events waits for no key service, no time-stamp authority and no second server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from mediaserver.audit import AuditLog
from mediaserver.control import Control
from mediaserver.events import EventLog
from mediaserver.metrics import Metrics
from mediaserver.patience import PatientSigner
from mediaserver.secrets import open_secrets
from mediaserver.settings import Settings
from mediaserver.store import Database, Store
from mediaserver.supervisor import AlreadyRunning
from recorder.audit import list_files, read_log
from recorder.fieldkey import FieldKey
from recorder.journal.commit import SIGN_PATIENCE_S
from recorder.keys import CryptoProvider, FileProvider
from recorder.report import Verdict
from recorder.signed import Signer
from tests.mediaserver.running import make_keys, running, settings_in


class Stuck:
    """A signer that does not answer while ``answers`` is not set."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.certificate_pem = signer.certificate_pem
        self.answers = threading.Event()
        self.answers.set()
        self.asked = 0

    def sign(self, message: bytes) -> bytes:
        self.asked += 1
        if not self.answers.wait(60):
            raise RuntimeError("nobody let it answer")
        return self._signer.sign(message)


class Keys:
    """A provider whose checkpoints are signed by ``stuck``."""

    def __init__(self, provider: FileProvider) -> None:
        self._provider = provider
        self.stuck = Stuck(provider.signer())
        self._main = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def signer(self) -> Signer:
        if self._main:  # the log's own; those after it sign sidecars
            self._main = False
            return self.stuck
        return self._provider.signer()


class Bench:
    def __init__(self, settings: Settings, directory: Path) -> None:
        self.keys = Keys(FileProvider.create(directory / "keys", None))
        self.database = Database()
        store = Store(f"sqlite:///{directory}/server.sqlite", FieldKey.open(directory / "index.key"))
        self.events = EventLog(store, self.database)
        self.metrics = Metrics()
        self.log = AuditLog(
            settings,
            cast(CryptoProvider, self.keys),
            "node-1",
            store,
            self.database,
            self.events,
            self.metrics,
            self._nowhere,
        )
        self.root = self.log.root

    async def _nowhere(self, recording: str) -> Path | None:
        return None

    def failures(self) -> float:
        return float(self.metrics.audit_failures._value.get())

    async def append(self, count: int) -> float:
        """Write events; returns the longest time that one took, in seconds."""
        longest = 0.0
        for _ in range(count):
            began = time.monotonic()
            await self.events.append("test.said", tenant="one")
            longest = max(longest, time.monotonic() - began)
        return longest


@asynccontextmanager
async def bench_in(tmp_path: Path) -> AsyncIterator[Bench]:
    settings = settings_in(tmp_path)
    settings.data_dir.mkdir()
    bench = Bench(settings, tmp_path)
    await bench.log.start(settings)
    try:
        yield bench
    finally:
        bench.keys.stuck.answers.set()
        await bench.log.close()
        bench.database.close()


async def until(true: Any) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.02)


async def test_nobody_waits_for_a_key_service_that_does_not_answer(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        stuck = bench.keys.stuck
        await bench.append(1)
        stuck.answers.clear()
        asked = stuck.asked
        await bench.append(1)
        await until(lambda: stuck.asked > asked)
        async with asyncio.timeout(20):
            first = await bench.append(1)
            await until(lambda: bench.failures() > 0)
            print(f"first {first:.3f} s, then {await bench.append(50):.3f} s at most")
            await until(lambda: bench.failures() > 1)
            await bench.append(50)
        assert stuck.asked == asked + 1
        assert not stuck.answers.is_set()
        assert not bench.log.failing
        assert read_log(bench.root).verdict == Verdict.UNPROVEN
        stuck.answers.set()
        async with asyncio.timeout(30):
            while (await asyncio.to_thread(read_log, bench.root)).verdict != Verdict.OK:
                await asyncio.sleep(0.2)
    report = read_log(bench.root)
    assert (report.verdict, report.findings, report.entries) == (Verdict.OK, [], 104)


async def test_nobody_waits_for_an_authority_that_does_not_answer(tmp_path: Path) -> None:
    called, never = asyncio.Event(), asyncio.Event()

    async def stamp(digest: bytes) -> bytes | None:
        called.set()
        await never.wait()
        return None

    async with bench_in(tmp_path) as bench:
        await bench.append(1)
        bench.log.stamp = stamp
        bench.log._anchored_s = -1e9
        async with asyncio.timeout(30):
            await called.wait()
            print(f"{await bench.append(50):.3f} s at most")
            while (report := await asyncio.to_thread(read_log, bench.root)).entries < 52:
                await asyncio.sleep(0.1)  # what is counted is signed: the checkpoints go on too
            assert report.anchors
            await bench.log.close()
    assert not never.is_set()
    assert read_log(bench.root).verdict == Verdict.OK


def test_a_slow_signer_is_asked_again_when_it_has_become_fast(tmp_path: Path) -> None:
    stuck = Stuck(FileProvider.create(tmp_path / "keys", None).signer())
    signer = PatientSigner(stuck)
    stuck.answers.clear()
    with pytest.raises(TimeoutError, match="no signature within"):
        signer.sign(b"one")
    with pytest.raises(TimeoutError, match="still awaited"):
        signer.sign(b"two")
    assert signer._late is not None
    stuck.answers.set()
    signer._late.result(10)
    # It took longer than anyone may wait: the next is asked for, but not waited for.
    assert signer._late.result()[1] > SIGN_PATIENCE_S
    with pytest.raises(TimeoutError, match="too late"):
        signer.sign(b"three")
    signer._late.result(10)
    assert signer.sign(b"four")
    signer.close()


async def test_a_second_server_touches_nothing(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    make_keys(settings)
    audit = settings.data_dir / "audit"
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        before = sorted(settings.data_dir.rglob("*"))
        with pytest.raises(AlreadyRunning):
            Control(settings, open_secrets(settings))
        assert sorted(settings.data_dir.rglob("*")) == before
        await api.ok("POST", "/v1/rooms", {"name": "desk"})
    assert len(list_files(audit)) == 1
    assert read_log(audit).verdict == Verdict.OK
    async with running(settings):  # the first has let go of it
        pass
    assert len(list_files(audit)) == 2
