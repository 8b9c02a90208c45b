"""A media worker dies under a recording: it goes on as its next part, and each part has one writer."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from mediaserver.ipc import IpcError
from mediaserver.recordings import continuity
from mediaserver.recordings.lifecycle import Active
from tests.mediaserver.running import Client, make_keys, running, settings_in
from tests.mediaserver.test_recordings import start, stop, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    settings = settings_in(tmp_path_factory.mktemp("recordings"))
    make_keys(settings)
    async with running(settings) as client:
        await client.ok("POST", "/v1/rooms", {"name": "desk"})
        yield client


async def test_a_workers_death_makes_a_second_part(api: Client) -> None:
    await api.ok("POST", "/v1/rooms", {"name": "fragile"})
    one = await start(api, "death", "fragile")
    await api.ok("POST", f"/v1/recordings/{one['id']}/markers", {"step": {"code": "a"}, "action": "start"})
    pid = api.control.workers.all()[0].pid
    os.kill(pid, signal.SIGKILL)
    gone_on = await until(api, one["id"], lambda shown: shown["parts"] == 2 and shown["gaps"])
    assert gone_on["state"] == "recording"
    await api.ok("POST", f"/v1/recordings/{one['id']}/markers", {"step": {"code": "b"}, "action": "start"})
    ended = await stop(api, one["id"])
    assert (ended["state"], ended["parts"]) == ("sealed", 2)
    assert [gap["reason"] for gap in ended["gaps"]] == ["worker_lost"]
    assert 0 < ended["gaps"][0]["to_ms"] - ended["gaps"][0]["from_ms"] < 15_000
    report = await api.ok("POST", f"/v1/recordings/{one['id']}/verify")
    assert report["ok"], report
    events = (await api.ok("GET", "/v1/events?limit=1000"))["events"]
    types = [event["type"] for event in events if event["recording"] == one["id"]]
    assert "recording.failover" in types


async def test_a_part_that_another_writer_began_is_left_to_it(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await start(api, "begun")
    recordings = api.control.recordings
    active = recordings.active[one["id"]]
    tried: list[int] = []

    async def start_part(active: Active) -> tuple[int, int]:
        tried.append(active.entry.part)
        if len(tried) == 1:
            raise IpcError("part_exists", "part 2 was begun before", 409)
        return 1, 1

    monkeypatch.setattr(recordings, "start_part", start_part)
    room = api.control.rooms.get("one", "desk")
    assert room is not None
    await continuity.go_on(recordings, room, time.monotonic_ns())
    assert tried == [2, 3]
    assert active.entry.part == 3
    await stop(api, one["id"])


async def test_a_part_that_began_after_a_death_is_not_followed_by_another(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers die one after the other: the rescue from the first begins the part on the third."""
    one = await start(api, "twice")
    recordings = api.control.recordings
    active, room = recordings.active[one["id"]], api.control.rooms.get("one", "desk")
    assert room is not None
    died_ns = active.began_ns - 1
    assert died_ns > 0
    await continuity.go_on(recordings, room, died_ns)
    assert (active.entry.part, active.entry.state) == (1, "recording")
    assert (await stop(api, one["id"]))["state"] == "sealed"


async def test_a_part_that_nobody_answered_for_is_ended_before_its_recording_is_sealed(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker writes, though control gave up asking it to: it must not write on after the manifest."""
    one = await start(api, "unanswered")
    recordings = api.control.recordings

    async def start_part(active: Active) -> tuple[int, int]:
        raise IpcError("recording_active", active.entry.id, 409)

    monkeypatch.setattr(recordings, "start_part", start_part)
    monkeypatch.setattr(continuity, "GO_ON_PAUSE_S", 0)
    room = api.control.rooms.get("one", "desk")
    assert room is not None
    await continuity.go_on(recordings, room, time.monotonic_ns())
    ended = await until(api, one["id"], lambda shown: shown["state"] in ("sealed", "recovered"))
    await asyncio.sleep(1.5)  # a writer would have put down a clock pair
    report = await api.ok("POST", f"/v1/recordings/{one['id']}/verify")
    assert (report["ok"], ended["parts"]) == (True, 1), report


async def test_a_recording_that_no_worker_can_go_on_with_is_sealed(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await start(api, "nobody")
    recordings = api.control.recordings

    async def start_part(active: Active) -> tuple[int, int]:
        raise ConnectionError("no worker")

    monkeypatch.setattr(recordings, "start_part", start_part)
    monkeypatch.setattr(continuity, "GO_ON_PAUSE_S", 0)
    worker = recordings.active[one["id"]].entry.worker
    assert worker is not None
    ended_part = {"recording": one["id"], "final": False, "reason": "x"}  # as dead as a killed one's
    await recordings.workers.client(worker).call("recording.stop", ended_part, 10)
    room = api.control.rooms.get("one", "desk")
    assert room is not None
    await continuity.go_on(recordings, room, time.monotonic_ns())
    ended = await until(api, one["id"], lambda shown: shown["state"] == "recovered")
    assert (await api.ok("POST", f"/v1/recordings/{one['id']}/verify"))["verdict"] != "broken", ended


async def test_stop_right_after_a_death_seals_what_there_is(api: Client) -> None:
    await api.ok("POST", "/v1/rooms", {"name": "unlucky"})
    one = await start(api, "stop after death", "unlucky")
    os.kill(api.control.workers.all()[0].pid, signal.SIGKILL)
    ended = await stop(api, one["id"])
    assert ended["state"] in ("recovered", "sealed")
    assert (await api.ok("POST", f"/v1/recordings/{one['id']}/verify"))["ok"]
