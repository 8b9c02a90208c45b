"""Clips and viewers' copies over HTTP, made by real compositor processes of a real call's composite."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import av
import pytest
import pytest_asyncio

from mediaserver.recordings import copies
from mediaserver.settings import Settings
from recorder.derived import NoParent
from recorder.statements import read_sealed, read_statements
from recorder.verify import verify
from tests.compositor.real_recording import RealRecording
from tests.mediaserver.finished import lay_down
from tests.mediaserver.running import KEYS, Client, make_keys, running, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_in(tmp_path_factory.mktemp("copies"), composing={"attempts": 2})
    make_keys(settings)
    return settings


@pytest.fixture(scope="module")
def recording(settings: Settings) -> RealRecording:
    return lay_down(settings)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(settings: Settings, recording: RealRecording) -> AsyncIterator[Client]:
    async with running(settings) as client:
        yield client


async def fetched(api: Client, path: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            status, body, _ = await api.ask("GET", path)
            if status != 202:
                assert status == 200, body
                return av.open(io.BytesIO(body))
            await asyncio.sleep(0.1)


async def test_a_clip_and_a_copy_are_made_stated_and_fetched(api: Client, recording: RealRecording) -> None:
    path = f"/v1/recordings/{recording.recording}"
    before = recording.plain("composite.mp4")
    why = {"reason": "case 7", "operator": "王芳"}
    clip = await api.ok("POST", f"{path}/clips", {"from_ms": 1000, "to_ms": 2000, **why})
    copy = await api.ok("POST", f"{path}/copies", {"viewer": "赵磊", **why})
    assert (clip["file"], copy["file"]) == ("clip-1.mp4", "copy-1.mp4")
    with await fetched(api, f"{path}/files/clip-1.mp4") as film:
        assert film.duration == 1_000_000
    with await fetched(api, f"{path}/files/copy-1.mp4") as film:
        assert film.duration == 4_000_000
    statements = read_statements(recording.path)
    made = {str(one.body["operation"]["kind"]): one for one in statements if "operation" in one.body}  # type: ignore[index,call-overload]
    assert set(made) == {"clip", "copy"}
    private = read_sealed(recording.path, made["copy"], recording.data_key)
    assert private == {"actor": "key:key-one", "operator": "王芳", "reason": "case 7", "viewer": "赵磊"}
    assert recording.plain("composite.mp4") == before
    assert verify(recording.path, data_key=recording.data_key).ok
    shown = await api.ok("GET", path)
    kinds = {file["name"]: (file["kind"], file["duration_ms"]) for file in shown["files"]}
    assert kinds["clip-1.mp4"] == ("derived", 1000)
    assert kinds["copy-1.mp4"] == ("derived", 4000)
    events = (await api.ok("GET", "/v1/events?after=0&limit=500"))["events"]
    told = [(one["type"], one["actor"]) for one in events if one["type"].endswith("_made")]
    assert sorted(told) == [("audit.clip_made", "key:key-one"), ("audit.copy_made", "key:key-one")]
    assert "赵磊" not in str(events)


async def test_what_cannot_be_made_is_refused_or_said(api: Client, recording: RealRecording) -> None:
    path = f"/v1/recordings/{recording.recording}"
    clips: tuple[tuple[dict[str, Any], str], ...] = (
        ({"from_ms": 5, "to_ms": 5, "reason": "x"}, "body_invalid"),
        ({"from_ms": 0, "to_ms": 5}, "body_invalid"),
        ({"from_ms": 4000, "to_ms": 5000, "reason": "x"}, "range_not_satisfiable"),
    )
    for clip, code in clips:
        assert (await api.problem("POST", f"{path}/clips", clip))["code"] == code
    body = {"viewer": "x", "reason": "x"}
    assert (await api.problem("POST", f"{path}/copies", body, key=KEYS[1]))["code"] == "recording_not_found"
    agent = api.participant("room-1", "agent-1", "agent")
    assert (await api.problem("POST", f"{path}/copies", body, token=agent))["code"] == "forbidden"
    file = recording.path / "files" / recording.file("composite.mp4").name
    whole = file.read_bytes()
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    try:
        begun = await api.ok("POST", f"{path}/copies", body)
        async with asyncio.timeout(60):
            while (await api.ask("GET", f"{path}/files/{begun['file']}"))[0] == 202:
                await asyncio.sleep(0.1)
    finally:
        file.write_bytes(whole)
    assert (await api.problem("GET", f"{path}/files/{begun['file']}"))["code"] == "file_not_found"
    events = (await api.ok("GET", "/v1/events?after=0&limit=500"))["events"]
    failed = [one["data"] for one in events if one["type"] == "recording.compose_failed"]
    assert failed == [{"code": "parent_unreadable", "file": begun["file"]}]
    assert verify(recording.path, data_key=recording.data_key).ok


async def test_a_copy_whose_parent_is_gone_ends_as_failed(
    api: Client, recording: RealRecording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise NoParent("no file composite.mp4")

    monkeypatch.setattr(copies, "signed_file", gone)
    path = f"/v1/recordings/{recording.recording}"
    begun = await api.ok("POST", f"{path}/copies", {"viewer": "x", "reason": "x"})
    async with asyncio.timeout(60):
        while (await api.ask("GET", f"{path}/files/{begun['file']}"))[0] == 202:
            await asyncio.sleep(0.1)
    assert (await api.problem("GET", f"{path}/files/{begun['file']}"))["code"] == "file_not_found"
