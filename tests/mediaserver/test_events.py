"""The event log: one order, durable, read from any point, followed live."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mediaserver.errors import Refused
from mediaserver.events import FOLLOWER_QUEUE, EventLog, Follower
from mediaserver.invites import ATTEMPTS, Brake, Invitation, make, redeem
from mediaserver.store import Database, Store
from mediaserver.tokens import server_token
from recorder.fieldkey import FieldKey
from tests.mediaserver.running import KEYS, make_keys, running, settings_in


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EventLog]:
    store = Store(f"sqlite:///{tmp_path / 'server.sqlite'}", FieldKey(b"k" * 32))
    database = Database()
    yield EventLog(store, database)
    database.close()
    store.close()


async def test_one_order_for_all(log: EventLog) -> None:
    made = await asyncio.gather(
        *(log.append("step.started", tenant="one" if n % 2 else "two", data={"n": n}) for n in range(20))
    )
    assert sorted(event["seq"] for event in made) == list(range(1, 21))
    mine = await log.after("one", 0)
    assert [event["data"]["n"] for event in mine] == sorted(n for n in range(20) if n % 2)
    assert await log.after("one", mine[4]["seq"]) == mine[5:]
    assert len(await log.after("one", 0, limit=3)) == 3
    assert set(mine[0]) == {
        "id", "seq", "type", "time", "tenant", "room", "recording", "actor", "data",
    }  # fmt: skip


async def test_filters(log: EventLog) -> None:
    await log.append("room.opened", tenant="one", room="a")
    await log.append("recording.started", tenant="one", room="a", recording="r1")
    await log.append("audit.file_read", tenant="one", room="a", recording="r1")
    await log.append("room.opened", tenant="one", room="b")

    async def types(**wanted: Any) -> list[str]:
        return [event["type"] for event in await log.after("one", 0, **wanted)]

    assert await types(room="a") == ["room.opened", "recording.started", "audit.file_read"]
    assert await types(room="a", with_audit=False) == ["room.opened", "recording.started"]
    assert await types(recording="r1", with_audit=False) == ["recording.started"]


async def test_what_is_stored_names_nobody(log: EventLog, tmp_path: Path) -> None:
    await log.append("participant.joined", tenant="one", room="a", actor="li-lei", data={"name": "金丝雀"})
    written = b"".join(path.read_bytes() for path in tmp_path.glob("server.sqlite*"))
    assert b"li-lei" not in written
    assert "金丝雀".encode() not in written
    assert (await log.after("one", 0))[0]["data"] == {"name": "金丝雀"}


async def test_a_slow_follower_is_told_to_read_on() -> None:
    follower = Follower(lambda event: event["wanted"])
    follower.offer({"wanted": False})
    for number in range(FOLLOWER_QUEUE + 1):
        follower.offer({"wanted": True, "seq": number})
    seen = [await follower.next() for _ in range(FOLLOWER_QUEUE)]
    assert all(event is not None for event in seen)
    assert await follower.next() is None


async def test_an_invitation_works_once_and_dies_of_guesses(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'server.sqlite'}", FieldKey(b"k" * 32))
    invitation = Invitation("one", "hall", "agent", "chen", "陈", {"publish": True})
    code, _ = make(store, invitation, 60)
    assert redeem(store, f" {code.lower().replace('-', ' ')} ") == invitation
    with pytest.raises(Refused):
        redeem(store, code)
    code, _ = make(store, invitation, 60)
    wrong = code[:4] + "-2222-2222"
    for _ in range(ATTEMPTS):
        with pytest.raises(Refused):
            redeem(store, wrong)
    with pytest.raises(Refused):
        redeem(store, code)
    late, _ = make(store, invitation, -1)
    for bad in (late, "", "A" * 12, "é" * 12):
        with pytest.raises(Refused):
            redeem(store, bad)
    store.close()


def test_the_brake() -> None:
    brake = Brake(burst=3, period_s=10.0, limit=2)
    for _ in range(3):
        assert brake.wait_s("a", 100.0) == 0
        brake.failed("a", 100.0)
    assert brake.wait_s("a", 100.0) == 10.0
    assert brake.wait_s("a", 110.0) == 0
    assert brake.wait_s("b", 100.0) == 0
    for address in ("b", "c", "d"):
        brake.failed(address, 101.0)
    assert brake.wait_s("d", 101.0) == 0


async def test_streams_resume_and_follow(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    make_keys(settings)
    async with running(settings) as api:
        for name in ("a", "b"):
            await api.ok("POST", "/v1/rooms", {"name": name})
        first = (await api.ok("GET", "/v1/events"))["events"]
        assert [event["room"] for event in first] == ["a", "b"]
        page = await api.ok("GET", f"/v1/events?after={first[0]['seq']}&limit=1")
        assert (page["events"], page["next"]) == ([first[1]], first[1]["seq"])
        for query in ("after=x", "after=-1", "limit=0"):
            assert (await api.problem("GET", f"/v1/events?{query}"))["code"] == "bad_request"
        headers = {
            "Authorization": f"Bearer {server_token(KEYS[0])}",
            "Accept": "text/event-stream",
            "Last-Event-ID": str(first[0]["seq"]),
        }
        async with api.session.get(f"{api.base}/v1/events", headers=headers) as stream:
            assert stream.content_type == "text/event-stream"
            assert (await next_event(stream))["room"] == "b"
            token = api.participant("b", "chen", "agent")
            own = {**headers, "Authorization": f"Bearer {token}", "Last-Event-ID": "0"}
            async with api.session.get(f"{api.base}/v1/events", headers=own) as narrow:
                assert (await next_event(narrow))["room"] == "b"
                await api.ok("POST", "/v1/rooms", {"name": "c"})
                await api.ok("POST", "/v1/rooms", {"name": "theirs"}, key=KEYS[1])
                await api.ask("DELETE", "/v1/rooms/b")
                assert (await next_event(stream))["room"] == "c"
                closed = await next_event(stream)
                assert (closed["room"], closed["type"]) == ("b", "room.closed")
                assert (await next_event(narrow))["type"] == "room.closed"
        api.control.draining = True
        refused = await api.problem("POST", "/v1/rooms", {"name": "late"})
        assert (refused["status"], refused["code"]) == (503, "draining")
        assert (await api.ask("GET", "/readyz", key=None))[0] == 503


async def next_event(stream: aiohttp.ClientResponse) -> dict[str, Any]:
    """Read one event of a stream."""
    async with asyncio.timeout(10):
        while True:
            line = (await stream.content.readline()).decode()
            if line.startswith("data: "):
                event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return event
