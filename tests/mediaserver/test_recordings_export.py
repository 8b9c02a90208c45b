"""The package for the court over HTTP: what arrives, what is on record, what is refused, what breaks off."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from mediaserver.recordings import exporting
from mediaserver.settings import Settings
from recorder.statements import read_sealed, read_statements
from recorder.verify import verify
from tests.compositor.real_recording import RealRecording
from tests.mediaserver.finished import lay_down
from tests.mediaserver.running import KEYS, Client, make_keys, running, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
WHY = {"reason": "(2026)沪0115民初1234号", "operator": "王芳"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_in(tmp_path_factory.mktemp("export"))
    make_keys(settings)
    return settings


@pytest.fixture(scope="module")
def recording(settings: Settings) -> RealRecording:
    return lay_down(settings)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(settings: Settings, recording: RealRecording) -> AsyncIterator[Client]:
    async with running(settings) as client:
        yield client


async def exported(api: Client) -> list[dict[str, object]]:
    events = (await api.ok("GET", "/v1/events?after=0&limit=500"))["events"]
    return [one for one in events if one["type"] == "audit.exported"]


async def test_the_package_is_whole_checked_by_openssl_and_on_record(
    api: Client, recording: RealRecording, settings: Settings, tmp_path: Path
) -> None:
    path = f"/v1/recordings/{recording.recording}/export"
    status, body, headers = await api.ask("POST", path, WHY)
    assert (status, headers["Content-Type"]) == (200, "application/zip")
    assert headers["Cache-Control"] == "private, no-store"
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    package = tmp_path / recording.recording
    assert (package / "media/composite.mp4").read_bytes() == recording.plain("composite.mp4")
    assert (package / "report.pdf").read_bytes().startswith(b"%PDF")
    opened = subprocess.run(["sh", "open.sh"], cwd=package, capture_output=True, text=True, check=False)
    assert opened.returncode == 0, opened.stdout + opened.stderr
    statement = read_statements(recording.path)[-1]
    assert statement.kind == "export"
    sealed = read_sealed(recording.path, statement, recording.data_key)
    assert (sealed["operator"], sealed["reason"]) == (WHY["operator"], WHY["reason"])
    assert sealed["to"] == "key:key-one, over HTTP"
    told = (await exported(api))[-1]
    assert told["actor"] == "key:key-one"
    assert told["data"] == {"files": None, "operator": "王芳"}
    assert verify(recording.path, data_key=recording.data_key).ok
    # Nothing plain lies on the server's disk: the package's films begin with a box that MP4 files have.
    plain = recording.plain("composite.mp4")[4:64]
    files = [one for one in settings.data_dir.rglob("*") if one.is_file()]
    assert not [one for one in files if plain in one.read_bytes()]


async def test_only_some_files_without_sealed_ones_and_report(api: Client, recording: RealRecording) -> None:
    path = f"/v1/recordings/{recording.recording}/export"
    wanted = {**WHY, "files": ["composite.mp4"], "sealed": "none", "report": False}
    _, body, _ = await api.ask("POST", path, wanted)
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
        listed = json.loads(archive.read(f"{recording.recording}/package.json"))["files"]
    assert {name for name in names if name.startswith(("media/", "sealed/", "report"))} == {
        "media/composite.mp4"
    }
    assert {one["name"] for one in listed} | {"package.json"} == names


async def test_what_may_not_be_exported_is_refused_before_anything_is_signed(
    api: Client, recording: RealRecording
) -> None:
    path = f"/v1/recordings/{recording.recording}/export"
    before = len(read_statements(recording.path))
    for body, code in (
        ({}, "body_invalid"),
        ({"reason": ""}, "body_invalid"),
        ({**WHY, "files": []}, "body_invalid"),
        ({**WHY, "sealed": "some"}, "body_invalid"),
        ({**WHY, "files": ["nothing.mp4"]}, "file_not_found"),
    ):
        assert (await api.problem("POST", path, body))["code"] == code
    assert (await api.problem("POST", path, WHY, key=KEYS[1]))["code"] == "recording_not_found"
    agent = api.participant("room-1", "agent-1", "agent")
    assert (await api.problem("POST", path, WHY, token=agent))["code"] == "forbidden"
    await api.ok("POST", "/v1/rooms", {"name": "hall"})
    running_one = await api.ok("POST", "/v1/rooms/hall/recordings", {"business_no": "EXPORT-2"})
    asked = f"/v1/recordings/{running_one['id']}/export"
    assert (await api.problem("POST", asked, WHY))["code"] == "recording_state"
    assert len(read_statements(recording.path)) == before


async def test_a_changed_file_is_refused_or_breaks_the_zip_off(
    api: Client, recording: RealRecording, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/recordings/{recording.recording}/export"
    file = recording.path / "files" / recording.file("composite.mp4").name
    whole = file.read_bytes()
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    before = len(await exported(api))
    try:
        assert (await api.problem("POST", path, WHY))["code"] == "internal"
        assert len(await exported(api)) == before
        monkeypatch.setattr(exporting, "BLOCK", 1)  # as with a longer file: its beginning has gone
        with pytest.raises(aiohttp.ClientPayloadError):
            await api.ask("POST", path, WHY)
    finally:
        file.write_bytes(whole)
    assert len(await exported(api)) == before + 1
    assert verify(recording.path, data_key=recording.data_key).ok


async def test_a_receiver_that_takes_nothing_is_left(
    api: Client, recording: RealRecording, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await api.control.recordings.find(recording.recording)
    assert entry is not None
    monkeypatch.setattr(exporting, "STALLED_S", 0.2)
    monkeypatch.setattr(exporting, "BLOCK", 1)
    asked: list[int] = []

    async def never(data: bytes) -> None:
        asked.append(len(data))
        await asyncio.Event().wait()

    with pytest.raises(exporting.ReceiverGone):
        await api.control.exporting.export(
            entry,
            never,
            actor="key:key-one",
            operator="",
            reason="x",
            names=None,
            sealed="none",
            report=False,
        )
    assert len(asked) == 1
