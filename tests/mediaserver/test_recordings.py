"""Recordings over HTTP with a real worker: their life, their evidence, deaths in between."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from mediaserver.errors import Refused
from mediaserver.recordings.states import TRANSITIONS, changed, next_attempt
from mediaserver.settings import Settings
from recorder.catalog import Entry
from tests.mediaserver import stand_in_compositor
from tests.mediaserver.running import Client, make_keys, running, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_in(tmp_path_factory.mktemp("recordings"))
    make_keys(settings)
    return settings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(settings: Settings) -> AsyncIterator[Client]:
    async with running(settings) as client:
        await client.ok("POST", "/v1/rooms", {"name": "desk"})
        yield client


async def start(api: Client, number: str, room: str = "desk", **more: Any) -> dict[str, Any]:
    result: dict[str, Any] = await api.ok(
        "POST", f"/v1/rooms/{room}/recordings", {"business_no": number, **more}
    )
    return result


async def stop(api: Client, identifier: str) -> dict[str, Any]:
    result: dict[str, Any] = await api.ok("POST", f"/v1/recordings/{identifier}/stop")
    return result


async def until(api: Client, identifier: str, wanted: Any, timeout_s: float = 15.0) -> dict[str, Any]:
    """Ask for a recording until ``wanted(recording)`` holds."""
    async with asyncio.timeout(timeout_s):
        while True:
            shown: dict[str, Any] = await api.ok("GET", f"/v1/recordings/{identifier}")
            if wanted(shown):
                return shown
            await asyncio.sleep(0.05)


async def test_a_whole_life(api: Client, settings: Settings) -> None:
    one = await start(api, "GZ-2026-0001", metadata={"customer": "金丝雀", "amount": 12.5})
    assert (one["state"], one["parts"], one["attempt"]) == ("recording", 1, 1)
    assert one["armed_at"] is not None
    assert one["assurance"] == "development"
    path = f"/v1/recordings/{one['id']}"
    marker = await api.ok(
        "POST", f"{path}/markers", {"step": {"code": "risk", "name": "风险揭示"}, "action": "start"}
    )
    assert (marker["type"], marker["data"]["code"]) == ("step.started", "risk")
    paused = await api.ok("POST", f"{path}/pause")
    assert paused["state"] == "paused"
    assert (await api.ok("POST", f"{path}/pause"))["state"] == "paused"
    assert (await api.ok("POST", f"{path}/resume"))["state"] == "recording"
    changed_one = await api.ok("PATCH", path, {"layout": "pip"})
    assert changed_one["template"]["layout"]["name"] == "side_by_side"
    verify_early = await api.problem("POST", f"{path}/verify")
    assert verify_early["code"] == "recording_state"
    ended = await stop(api, one["id"])
    assert ended["state"] == "sealed"
    assert ended["stopped_at"] > ended["armed_at"]
    assert [gap["reason"] for gap in ended["gaps"]] == ["paused"]
    assert ended["metadata"] == {"customer": "金丝雀", "amount": 12.5}
    again = await stop(api, one["id"])
    assert again == ended
    report = await api.ok("POST", f"{path}/verify")
    assert report["ok"], report
    manifest = await api.ok("GET", f"{path}/manifest")
    assert manifest["recording"] == one["id"]
    assert "金丝雀" not in str(manifest)
    assert (await api.ok("GET", f"{path}/statements"))["statements"] == []
    timeline = await api.ok("GET", f"{path}/timeline")
    types = [event["type"] for event in timeline["events"]]
    assert types == [
        "recording.started",
        "step.started",
        "recording.paused",
        "recording.resumed",
        "recording.layout_changed",
        "recording.stopped",
    ]
    for refused in ("pause", "resume"):
        assert (await api.problem("POST", f"{path}/{refused}"))["code"] == "recording_state"


async def test_a_business_number_is_recorded_once(api: Client) -> None:
    first = await start(api, "once")
    refused = await api.problem("POST", "/v1/rooms/desk/recordings", {"business_no": "once"})
    assert (refused["status"], refused["code"]) == (409, "recording_active")
    assert refused["recording"] == first["id"]
    await stop(api, first["id"])
    refused = await api.problem("POST", "/v1/rooms/desk/recordings", {"business_no": "once"})
    assert (refused["code"], refused["attempt"]) == ("attempt_required", 2)
    second = await start(api, "once", attempt=2, supersedes=first["id"])
    assert (second["attempt"], second["supersedes"]) == (2, first["id"])
    await stop(api, second["id"])
    found = await api.ok("GET", "/v1/recordings?business_no=once")
    assert [one["attempt"] for one in found["recordings"]] == [2, 1]


async def test_lists_go_on_by_cursor(api: Client) -> None:
    await api.ok("POST", "/v1/rooms", {"name": "pages"})
    made = []
    for number in range(3):
        one = await start(api, f"page-{number}", "pages")
        await stop(api, one["id"])
        made.append(one["id"])
    seen: list[str] = []
    cursor = ""
    while True:
        page = await api.ok("GET", f"/v1/recordings?room=pages&limit=2{cursor}")
        seen += [one["id"] for one in page["recordings"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == made[::-1]
    for query in ("cursor=nonsense", "limit=0", "limit=x", "state=odd", "color=red"):
        assert (await api.problem("GET", f"/v1/recordings?{query}"))["code"] == "bad_request", query


async def test_a_file_that_nobody_makes(api: Client) -> None:
    one = await start(api, "files")
    path = f"/v1/recordings/{one['id']}/files"
    status, body, headers = await api.ask("GET", f"{path}/composite.mp4")
    assert (status, body["state"]) == (202, "waiting")
    assert headers["Retry-After"] == "1"
    for name in ("other.mp4", "..%2fkeys.json", "single-agent-1-camera.mp4"):
        assert (await api.problem("GET", f"{path}/{name}"))["code"] == "file_not_found"
    await stop(api, one["id"])


async def test_a_composite_is_made_when_asked_for_and_fetched(api: Client, settings: Settings) -> None:
    api.control.finishing.command = [sys.executable, "-m", stand_in_compositor.__name__, "composes"]
    one = await start(api, "composite")
    await stop(api, one["id"])
    path = f"/v1/recordings/{one['id']}/files/composite.mp4"
    assert (await api.ask("GET", path))[0] == 202
    done = await until(api, one["id"], lambda shown: shown["composing"]["state"] == "done", 30)
    file = done["files"][0]
    assert (file["name"], file["kind"], file["duration_ms"]) == ("composite.mp4", "archive", 1234)
    plain = stand_in_compositor.PLAIN
    status, body, headers = await api.ask("GET", f"{path}?purpose=review")
    assert (status, body) == (200, plain)
    etag = headers["ETag"]
    assert etag == f'"{file["plain_sm3"]}"'
    assert headers["Content-Type"] == "video/mp4"
    assert headers["Cache-Control"] == "private, no-store"

    size = len(plain)
    for asked, expected in [
        ("bytes=0-0", plain[:1]),
        ("bytes=262140-262150", plain[262140:262151]),
        (f"bytes={size - 5}-", plain[-5:]),
        ("bytes=-7", plain[-7:]),
    ]:
        status, body, headers = await api.ask("GET", path, headers={"Range": asked})
        assert (status, body) == (206, expected), asked
        assert headers["Content-Range"].endswith(f"/{size}")
    for condition, status in [
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": f'W/{etag}, "x"'}, 304),
        ({"If-Match": '"x"'}, 412),
        ({"Range": f"bytes={size}-"}, 416),
        ({"Range": "bytes=0-1", "If-Range": '"x"'}, 200),
        ({"Range": "bytes=0-1", "If-Range": etag}, 206),
        ({"Range": "bytes=0-1,4-5"}, 200),
    ]:
        assert (await api.ask("GET", path, headers=condition))[0] == status, condition
    status, body, headers = await api.ask("HEAD", path)
    assert (status, body, headers["Content-Length"]) == (200, b"", str(size))
    assert (await api.problem("GET", f"{path}?purpose=%01"))["code"] == "bad_request"

    events = (await api.ok("GET", "/v1/events?limit=1000"))["events"]
    mine = [event for event in events if event["recording"] == one["id"]]
    assert [event["type"] for event in mine if not event["type"].startswith("audit.")] == [
        "recording.started",
        "recording.stopped",
        "recording.archived",
    ]
    reads = [event["data"] for event in mine if event["type"] == "audit.file_read"]
    assert (reads[0]["purpose"], reads[0]["from"], reads[0]["to"]) == ("review", 0, size)
    statements = (await api.ok("GET", f"/v1/recordings/{one['id']}/statements"))["statements"]
    assert [statement["kind"] for statement in statements] == ["composite"]
    assert (await api.ok("POST", f"/v1/recordings/{one['id']}/verify"))["ok"]
    # Run again, as after a death between the work and its record, both steps change nothing.
    assert (await api.control.finishing.compose(one["id"]))["ok"]
    assert (await api.control.finishing.conclude(one["id"]))["ok"]
    again = await api.ok("GET", f"/v1/recordings/{one['id']}")
    assert again["files"] == done["files"]
    directory = settings.data_dir / api.control.catalog.get(one["id"]).directory  # type: ignore[union-attr]
    assert len(list((directory / "files").iterdir())) == 1

    # A damaged file is said, not served.
    sealed = next((directory / "files").iterdir())
    damaged = bytearray(sealed.read_bytes())
    damaged[5000] ^= 1
    sealed.write_bytes(damaged)
    assert (await api.problem("GET", path))["code"] == "internal"
    report = await api.ok("POST", f"/v1/recordings/{one['id']}/verify")
    assert not report["ok"]
    assert sealed.name in str(report["findings"])


async def test_further_composites_at_the_start_and_later(api: Client) -> None:
    api.control.finishing.command = [sys.executable, "-m", stand_in_compositor.__name__, "composes"]
    customer = {"name": "customer.mp4", "template": {"layout": "single"}}
    one = await start(api, "several", composites=[customer], template={"compose": "after_stop"})
    path = f"/v1/recordings/{one['id']}/composites"
    later = {"name": "evidence.mp4", "template": {"profile": "evidence", "static_fps": None}}
    assert (await api.problem("POST", path, later))["code"] == "recording_state"
    await stop(api, one["id"])
    done = await until(api, one["id"], lambda shown: shown["composing"]["state"] == "done", 30)
    assert [(file["name"], file["kind"]) for file in done["files"]] == [
        ("composite.mp4", "archive"),
        ("customer.mp4", "derived"),
    ]
    for taken in ("customer.mp4", "composite.m4a", "single-a.mp4", "evidence.m4a", "../x.mp4"):
        code = (await api.problem("POST", path, {**later, "name": taken}))["code"]
        assert code == ("composite_exists" if taken == "customer.mp4" else "body_invalid"), taken
    asked = await api.ok("POST", path, later)
    assert asked["composing"]["state"] == "waiting"
    assert (await api.ask("GET", f"/v1/recordings/{one['id']}/files/evidence.mp4"))[0] in (200, 202)
    done = await until(api, one["id"], lambda shown: shown["composing"]["state"] == "done", 30)
    assert {file["name"] for file in done["files"]} == {"composite.mp4", "customer.mp4", "evidence.mp4"}
    statements = (await api.ok("GET", f"/v1/recordings/{one['id']}/statements"))["statements"]
    assert [statement["kind"] for statement in statements] == ["composite", "derived", "derived"]
    digests = [statement["body"].get("template_sm3") for statement in statements]
    assert digests[0] is None
    assert len(set(digests)) == 3
    told: list[str] = []
    async with asyncio.timeout(10):  # the events follow the state
        while len(told) < 2:
            await asyncio.sleep(0.05)
            events = (await api.ok("GET", "/v1/events?limit=1000"))["events"]
            mine = [event["type"] for event in events if event["recording"] == one["id"]]
            told = [kind for kind in mine if kind in ("recording.archived", "recording.composed")]
    assert told == ["recording.archived", "recording.composed"]
    assert (await api.ok("POST", f"/v1/recordings/{one['id']}/verify"))["ok"]
    twice = {"business_no": "twice", "composites": [customer, customer]}
    assert (await api.problem("POST", "/v1/rooms/desk/recordings", twice))["code"] == "body_invalid"


async def test_the_settings_profile_gives_its_size(api: Client) -> None:
    settings = api.control.recordings.settings
    hd = settings.composing.model_copy(update={"profile": "hd"})
    api.control.recordings.settings = settings.model_copy(update={"composing": hd})
    one = await start(api, "high", template={"crf": 24})
    api.control.recordings.settings = settings
    assert (one["template"]["width"], one["template"]["height"], one["template"]["crf"]) == (1920, 1080, 24)
    await stop(api, one["id"])


async def test_composing_that_fails_is_said(api: Client) -> None:
    api.control.finishing.command = [sys.executable, "-m", stand_in_compositor.__name__, "fails"]
    few = api.control.settings.composing.model_copy(update={"attempts": 1})
    changed_settings = api.control.settings.model_copy(update={"composing": few})
    api.control.finishing._settings = changed_settings
    one = await start(api, "uncomposable")
    await stop(api, one["id"])
    path = f"/v1/recordings/{one['id']}/files/composite.mp4"
    assert (await api.ask("GET", path))[0] == 202
    failed = await until(api, one["id"], lambda shown: shown["composing"]["state"] == "failed", 30)
    assert "disk_full" in failed["composing"]["detail"]
    problem = await api.problem("GET", path)
    assert (problem["code"], problem["composing"]["state"]) == ("file_not_found", "failed")
    assert failed["state"] == "sealed"


async def test_a_recording_starts_with_its_room_and_ends_with_it(api: Client) -> None:
    auto = {"auto": True, "business_no": "automatic", "roles": ["agent", "customer"]}
    await api.ok("POST", "/v1/rooms", {"name": "auto", "recording": auto})
    worker = api.control.workers.all()[0]

    async def joins(kind: str, identity: str, role: str) -> None:
        data = {"identity": identity, "role": role, "seat": f"{role}#1", "name": ""}
        event = {"type": kind, "tenant": "one", "room": "auto", "recording": None, "data": data}
        await api.control._news.take(worker, [event], lambda: None)

    async def found() -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = (await api.ok("GET", "/v1/recordings?room=auto"))["recordings"]
        return result

    await joins("participant.joined", "chen", "agent")
    assert await found() == []
    await joins("participant.joined", "li", "customer")
    async with asyncio.timeout(10):
        while not await found():
            await asyncio.sleep(0.05)
    identifier = (await found())[0]["id"]
    running_one = await until(api, identifier, lambda shown: shown["state"] == "recording")
    assert {one["identity"] for one in running_one["participants"]} == {"chen", "li"}
    for identity, role in (("chen", "agent"), ("li", "customer")):
        await joins("participant.left", identity, role)
    room = api.control.rooms.get("one", "auto")
    assert room is not None
    assert api.control.rooms.idle(3600) == []
    assert api.control.rooms.idle(0) == [room]
    await api.control.close_room(room, "idle")
    ended = await api.ok("GET", f"/v1/recordings/{identifier}")
    assert ended["state"] == "sealed"


async def test_a_room_takes_its_recordings_with_it(api: Client) -> None:
    await api.ok("POST", "/v1/rooms", {"name": "short"})
    one = await start(api, "short-lived", "short")
    assert (await api.ask("DELETE", "/v1/rooms/short"))[0] == 204
    ended = await api.ok("GET", f"/v1/recordings/{one['id']}")
    assert ended["state"] == "sealed"
    missing = await api.problem("POST", "/v1/rooms/short/recordings", {"business_no": "x"})
    assert missing["code"] == "room_not_found"


async def test_no_disk_space_refuses_new_recordings(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    full = api.control.settings.recording.model_copy(update={"min_free_bytes": 1 << 60})
    changed_settings = api.control.settings.model_copy(update={"recording": full})
    monkeypatch.setattr(api.control.recordings, "settings", changed_settings)
    refused = await api.problem("POST", "/v1/rooms/desk/recordings", {"business_no": "no space"})
    assert (refused["status"], refused["code"]) == (507, "disk_full")


async def test_what_is_written_names_nobody(api: Client, settings: Settings) -> None:
    """Business numbers, metadata and names are in no file of the data directory in clear text."""
    await api.ok("POST", "/v1/rooms", {"name": "canary"})
    await api.ok(
        "POST",
        "/v1/rooms/canary/tokens",
        {"identity": "canary-identity", "role": "customer", "name": "金丝雀-姓名"},
        headers={"Idempotency-Key": "canary"},
    )
    one = await start(api, "canary-number", "canary", metadata={"customer": "金丝雀-客户"})
    await stop(api, one["id"])
    needles = [text.encode() for text in ("canary-identity", "金丝雀", "canary-number")]
    needles += [text.encode("unicode_escape") for text in ("金丝雀",)]
    found = []
    for path in settings.data_dir.rglob("*"):
        if path.is_file() and not path.is_socket():
            content = path.read_bytes()
            found += [(path.name, needle) for needle in needles if needle in content]
    assert found == []


def entry(state: str, attempt: int = 1, armed: bool = True) -> Entry:
    return Entry(
        id=f"id-{attempt}",
        tenant="t",
        room="r",
        business_no="b",
        mode="composite",
        directory="d",
        created_ns=1,
        attempt=attempt,
        state=state,
        armed_ns=2 if armed else None,
    )


async def test_states_follow_the_table() -> None:
    for state, following in TRANSITIONS.items():
        for target in TRANSITIONS:
            if target in following:
                assert changed(entry(state), target).state == target
            else:
                with pytest.raises(Refused):
                    changed(entry(state), target)


async def test_attempts() -> None:
    assert next_attempt([], None, None) == 1
    assert next_attempt([entry("failed", armed=False)], None, None) == 2
    assert next_attempt([entry("sealed")], 2, "id-1") == 2
    for earlier, attempt, supersedes, code in [
        ([entry("recording")], 2, None, "recording_active"),
        ([entry("sealed")], None, None, "attempt_required"),
        ([entry("sealed")], 3, None, "attempt_required"),
        ([entry("sealed")], 2, "another", "attempt_required"),
        ([], 2, None, "attempt_required"),
    ]:
        with pytest.raises(Refused) as caught:
            next_attempt(earlier, attempt, supersedes)
        assert caught.value.code == code
