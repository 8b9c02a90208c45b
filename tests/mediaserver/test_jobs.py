"""DBOS runs only while there is work, and takes work up again after a rest."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mediaserver.recordings import jobs
from mediaserver.recordings.jobs import Jobs


async def nothing(*_: Any) -> Any:
    return {}


def make_jobs(tmp_path: Path, **work: Any) -> Jobs:
    """Make the runner of one directory; what ``work`` does not name does nothing."""
    return Jobs(
        f"sqlite:///{tmp_path / 'jobs.sqlite'}",
        "node-1",
        **{"compose": nothing, "conclude": nothing, "deliver": nothing, **work},
        retry_s=1.0,
        max_parallel=1,
    )


async def test_it_rests_without_work_and_wakes_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "REST_S", 0.05)
    delivered: asyncio.Queue[int] = asyncio.Queue()
    finished: asyncio.Queue[str] = asyncio.Queue()
    may_end = asyncio.Event()

    async def compose(recording: str) -> dict[str, Any]:
        await may_end.wait()
        return {"ok": True}

    async def conclude(recording: str) -> dict[str, Any]:
        await finished.put(recording)
        return {}

    async def deliver(key_id: str, seq: int) -> bool:
        await delivered.put(seq)
        return True

    async def until(up: bool) -> None:
        while work.is_up is not up:
            await asyncio.sleep(0.01)

    work = make_jobs(tmp_path, compose=compose, conclude=conclude, deliver=deliver)
    async with asyncio.timeout(30):
        assert await work.launch() == []
        await until(False)
        assert await work.forget_old() == 0, "it does not wake for that"
        assert not work.is_up
        await asyncio.gather(*(work.deliver("key", seq) for seq in range(3)))
        assert {await delivered.get() for _ in range(3)} == {0, 1, 2}
        await until(False)
        await work.finish("one", 1, at_once=False)
        assert work.is_up
        await asyncio.sleep(0.2)  # several times REST_S: what runs or waits keeps it up
        assert work.is_up
        may_end.set()
        assert await finished.get() == "one"
        await until(False)
        await work.finish("two", 1, at_once=True)
        assert await finished.get() == "two"
        await work.close()
        assert not work.is_up


async def test_a_task_is_tried_until_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "FIRST_RETRY_S", 0.01)
    tries: list[str] = []
    done = asyncio.Event()

    async def moody(argument: str) -> None:
        tries.append(argument)
        if len(tries) < 3:
            raise OSError("not yet")
        done.set()

    work = make_jobs(tmp_path)
    work.handle("moody", moody)
    async with asyncio.timeout(30):
        await work.launch()
        with pytest.raises(ValueError, match="unknown_kind"):
            await work.task("unknown_kind", "one")
        await work.task("moody", "one")
        await work.task("moody", "one")
        await done.wait()
        await asyncio.sleep(0.3)
        await work.close()
    assert tries == ["one"] * 3


async def test_what_waits_for_one_server_holds_up_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-stamp authority and a site are down; other kinds and other sites go on, after a restart too."""
    monkeypatch.setattr(jobs, "TASKS_AT_ONCE", 2)
    done: asyncio.Queue[str] = asyncio.Queue()
    tried = asyncio.Event()

    async def attest(argument: str) -> None:
        tried.set()
        raise OSError("the time-stamp authority is down")

    async def upload(argument: str) -> None:
        if argument.startswith("silent"):
            await asyncio.Event().wait()
        await done.put(argument)

    for run in range(2):
        work = make_jobs(tmp_path)
        work.handle("attest", attest)
        work.handle("upload", upload)
        async with asyncio.timeout(30):
            await work.launch()
            for number in range(3):
                await work.task("attest", f"one-{run}-{number}")
                await work.task("upload", f"silent-{run}-{number}", lane="silent")
            await tried.wait()
            await asyncio.sleep(2 * jobs.TASKS_POLL_S)  # now they hold their places
            await work.task("upload", f"healthy-{run}", lane="healthy")
            while await done.get() != f"healthy-{run}":  # the last run's may not have been noted as done
                pass
            await work.close()
