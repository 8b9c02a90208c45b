"""The disk is full for the databases too: what SQLite says then is not an OSError."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from mediaserver import worker_news
from mediaserver.recordings import evidence, sealing
from recorder.keys import KeyProblem
from tests.mediaserver.running import Client, make_keys, running, settings_in
from tests.mediaserver.test_recordings import start, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
NO_LIMIT = 4294967294


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "AGAIN_S", 0.2)
    monkeypatch.setattr(sealing, "NOTICE_S", 0.2)
    monkeypatch.setattr(worker_news, "AGAIN_S", 0.2)


@pytest.fixture(scope="module")
def bounded() -> Iterator[set[str]]:
    """Names for ``full``; SQLAlchemy's listeners may only change while no thread of the server asks it."""
    names: set[str] = set()

    def grow(
        connection: sa.Connection, cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> tuple[str, Any]:
        name = str(connection.engine.url.database).rpartition("/")[2]
        cursor.execute(f"PRAGMA max_page_count = {1 if name in names else NO_LIMIT}")
        if name in names and statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            return "CREATE TABLE too_much AS SELECT zeroblob(4000000)", ()
        return statement, parameters

    sa.event.listen(sa.Engine, "before_cursor_execute", grow, retval=True)
    yield names
    sa.event.remove(sa.Engine, "before_cursor_execute", grow)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory, bounded: set[str]) -> AsyncIterator[Client]:
    settings = settings_in(tmp_path_factory.mktemp("full"))
    make_keys(settings)
    async with running(settings) as client:
        await client.ok("POST", "/v1/rooms", {"name": "desk"})
        yield client


@pytest.fixture
def full(bounded: set[str]) -> Iterator[set[str]]:
    """File names of databases that may not grow: what is written to them is too much for SQLite."""
    yield bounded
    bounded.clear()


async def types_of(api: Client, identifier: str) -> list[str]:
    events = (await api.ok("GET", "/v1/events?limit=1000"))["events"]
    return [event["type"] for event in events if event["recording"] == identifier]


async def test_a_stop_while_the_index_is_full_ends_the_media_and_is_made_good(
    api: Client, full: set[str]
) -> None:
    one = await start(api, "full-index")
    active = api.control.recordings.active[one["id"]]
    full.add("index.sqlite")
    path = f"/v1/recordings/{one['id']}/stop"
    assert (await api.problem("POST", path))["code"] == "disk_full"
    assert active.summaries, "the worker was told, and has ended its part"
    retry = active.retry
    for _ in range(5):
        assert (await api.problem("POST", path))["code"] == "disk_full"
    assert retry is not None
    assert active.retry is retry
    assert active.entry.state == "stopping", "nothing is sealed that the index does not know"
    full.clear()
    await until(api, one["id"], lambda shown: shown["state"] == "sealed")
    assert (await api.ok("POST", path))["state"] == "sealed"
    assert (await api.ok("POST", f"/v1/recordings/{one['id']}/verify"))["ok"]
    assert (await types_of(api, one["id"])).count("recording.stopped") == 1


async def test_the_end_is_logged_when_the_log_has_room_again(api: Client, full: set[str]) -> None:
    one = await start(api, "full-log")
    active = api.control.recordings.active[one["id"]]
    full.add("server.sqlite")
    ended = await api.control.recordings.stop(active.entry, "requested")
    assert ended.state == "sealed"
    full.clear()
    async with asyncio.timeout(15):
        while "recording.stopped" not in await types_of(api, one["id"]):
            await asyncio.sleep(0.05)


async def test_a_signature_that_came_late_waits_for_the_index(
    api: Client, full: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await start(api, "late-signature")
    real, refusals = evidence.capture, [KeyProblem("the KMS refuses (401)")]

    async def capture(*given: Any, **more: Any) -> Any:
        if refusals:
            raise refusals.pop()
        full.add("index.sqlite")
        return await real(*given, **more)

    monkeypatch.setattr(evidence, "capture", capture)
    stopped = await api.ok("POST", f"/v1/recordings/{one['id']}/stop")
    assert stopped["state"] == "stopping"
    async with asyncio.timeout(15):
        while "index.sqlite" not in full:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)  # some tries
    full.clear()
    await until(api, one["id"], lambda shown: shown["state"] == "sealed")


async def test_what_a_dead_writer_left_is_sealed_when_there_is_room(api: Client, full: set[str]) -> None:
    one = await start(api, "left-behind")
    active = api.control.recordings.active[one["id"]]
    full.add("index.sqlite")
    api.control.recordings.seal_later(active)
    await asyncio.sleep(0.5)
    assert one["id"] in api.control.recordings.active
    full.clear()
    await until(api, one["id"], lambda shown: shown["state"] in ("sealed", "recovered"))


async def test_a_workers_event_waits_for_room_in_the_log(api: Client, full: set[str]) -> None:
    news, worker = worker_news.WorkerNews(api.control), api.control.workers.all()[0]
    acknowledged: list[int] = []

    def event(number: int) -> dict[str, Any]:
        data = {"identity": f"late-{number}"}
        return {"type": "participant.left", "tenant": "one", "room": "desk", "data": data}

    full.update(("server.sqlite", "index.sqlite"))
    await news.take(worker, [event(1)], lambda: acknowledged.append(1))
    await asyncio.sleep(0.3)
    full.clear()
    await news.take(worker, [event(2)], lambda: acknowledged.append(2))
    async with asyncio.timeout(15):
        while len(acknowledged) < 2:
            await asyncio.sleep(0.05)
    assert acknowledged == [1, 2]
    events = (await api.ok("GET", "/v1/events?limit=1000"))["events"]
    assert {"late-1", "late-2"} <= {one["data"].get("identity") for one in events}


async def test_an_event_is_logged_whose_consequences_the_index_does_not_take(
    api: Client, full: set[str]
) -> None:
    one = await start(api, "stalled")
    news, worker = worker_news.WorkerNews(api.control), api.control.workers.all()[0]
    told = {"tenant": "one", "room": "desk", "recording": one["id"], "data": {"code": "disk_full"}}
    full.add("index.sqlite")
    await news.take(worker, [{"type": "recording.stalled", **told}], lambda: None)
    async with asyncio.timeout(15):
        while "recording.stalled" not in await types_of(api, one["id"]):
            await asyncio.sleep(0.05)
    full.clear()
    await api.ok("POST", f"/v1/recordings/{one['id']}/stop")


async def test_a_room_that_cannot_be_closed_keeps_nothing_else_from_being_done(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, looked, tried = api.control, asyncio.Event(), asyncio.Event()
    room = control.rooms.get("one", "desk")

    async def close_room(*_: Any) -> None:
        tried.set()
        raise OSError("the disk is full")

    async def look(free_bytes: int) -> None:
        if tried.is_set():
            looked.set()

    monkeypatch.setattr(control.rooms, "idle", lambda _: [room])
    monkeypatch.setattr(control, "close_room", close_room)
    monkeypatch.setattr(control.disk, "look", look)
    await asyncio.wait_for(looked.wait(), 15)
