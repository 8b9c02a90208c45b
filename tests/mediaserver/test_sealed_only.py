"""A server that seals and cannot open: what it refuses, and who composes."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mediaserver import doctor
from mediaserver.recordings.composing import ComposingFailed
from mediaserver.secrets import SecretsError, open_secrets
from mediaserver.settings import Settings
from recorder.keys import open_opener_at, read_sidecar
from recorder.sealed import SealedReader
from recorder.verify import verify
from tests.mediaserver.running import Client, make_keys, running, settings_in
from tests.mediaserver.sealing import composed, directory_of, sealing_settings, start

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sealed")


@pytest.fixture(scope="module")
def settings(base: Path) -> Settings:
    return sealing_settings(base, opening={"provider": "file", "directory": str(base / "opening")})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(settings: Settings) -> AsyncIterator[Client]:
    async with running(settings) as client:
        await client.ok("POST", "/v1/rooms", {"name": "desk"})
        yield client


async def test_it_seals_and_composes_and_opens_nothing(api: Client, base: Path) -> None:
    one = await start(api, "sealed")
    path = f"/v1/recordings/{one['id']}"
    assert (await api.ok("POST", f"{path}/stop"))["state"] == "sealed"
    assert (await api.ask("GET", f"{path}/files/composite.mp4"))[0] == 202
    shown = await composed(api, one["id"])
    assert shown["composing"]["state"] == "done", shown
    for asked, body in (("clips", {"from_ms": 0, "to_ms": 1, "reason": "r"}), ("copies", {"reason": "r"})):
        refused = await api.problem("POST", f"{path}/{asked}", {"viewer": "v", **body})
        assert refused["code"] == "sealed_only"
    for name in ("composite.mp4", "timeline.json"):
        problem = await api.problem("GET", f"{path}/files/{name}")
        assert (problem["status"], problem["code"]) == (403, "sealed_only")
    assert (await api.ok("GET", f"{path}/timeline"))["composite"] is None
    report = await api.ok("POST", f"{path}/verify")
    assert (report["ok"], report["opened"]) == (True, False)
    # Whoever has the opening key opens it.
    directory = await directory_of(api, one["id"])
    key = open_opener_at(base / "opening").unwrap_now(
        read_sidecar(directory), recording_id=one["id"], purpose="test", actor="test"
    )
    (composite,) = directory.glob("files/composite.mp4.*.sealed")
    with SealedReader(composite, key) as reader:
        assert reader.read(4, 4) == b"ftyp"
    assert verify(directory, data_key=key).ok


async def test_a_live_composite_needs_no_opening_key(api: Client, base: Path) -> None:
    template = {"compose": "live"}
    hidden = base / "opening.hidden"
    (base / "opening").rename(hidden)
    try:
        body = {"business_no": "live", "template": template}
        one = await api.ok("POST", "/v1/rooms/desk/recordings", body)
        assert (await api.ok("POST", f"/v1/recordings/{one['id']}/stop"))["state"] == "sealed"
        assert (await composed(api, one["id"]))["composing"]["state"] == "done"
        late = await start(api, "late")
        await api.ok("POST", f"/v1/recordings/{late['id']}/stop")
        await api.ask("GET", f"/v1/recordings/{late['id']}/files/composite.mp4")
        shown = await composed(api, late["id"])
        assert shown["composing"]["state"] == "failed"
        assert "key_unavailable" in shown["composing"]["detail"]
    finally:
        hidden.rename(base / "opening")


async def test_the_compositor_alone_is_told_where_the_opening_key_is(
    api: Client, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mediaserver.recordings import finishing

    told: list[dict[str, Any]] = []

    class Spy:
        def __init__(self, recording: str, request: dict[str, Any], **more: Any) -> None:
            told.append(request)
            raise ComposingFailed("spied", "enough seen")

    monkeypatch.setattr(finishing, "Composition", Spy)
    one = await start(api, "told")
    await api.ok("POST", f"/v1/recordings/{one['id']}/stop")
    await api.ask("GET", f"/v1/recordings/{one['id']}/files/composite.mp4")
    await composed(api, one["id"])
    (request,) = told
    assert "data_key" not in request
    assert request["opening"]["directory"] == str(base / "opening")
    assert "PRIVATE" not in json.dumps(request)
    worker = api.control.workers.config_of(0).model_dump_json()
    assert str(base / "opening") not in worker
    assert '"opens":false' in worker


async def test_no_keys_are_made_for_a_server_that_only_seals(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, crypto={"open": False})
    make_keys(settings)
    with pytest.raises(SecretsError, match=r"put signing\.key\.pem"):
        open_secrets(settings)


async def test_doctor_warns_of_a_key_that_should_be_elsewhere(tmp_path: Path) -> None:
    settings = sealing_settings(tmp_path)
    found = {finding.name: finding for finding in doctor.examine(settings)}["Keys"]
    assert found.level == "ok"
    assert "seals only" in found.text
    shutil.copy2(tmp_path / "opening" / "encryption.key.pem", tmp_path / "server")
    found = {finding.name: finding for finding in doctor.examine(settings)}["Keys"]
    assert found.level == "warning"


async def test_the_retention_of_the_start_is_signed_and_no_more_is(api: Client) -> None:
    body = {"business_no": "kept", "retention": {"basis": "contract", "until": "2037-01-01"}}
    one = await api.ok("POST", "/v1/rooms/desk/recordings", body)
    path = f"/v1/recordings/{one['id']}"
    await api.ok("POST", f"{path}/stop")
    async with asyncio.timeout(30):
        while not (custody := await api.ok("GET", f"{path}/custody"))["until"]:
            await asyncio.sleep(0.05)
    assert custody["basis"] == "contract"
    # Who acts is sealed in a statement: that needs the recording's key.
    problem = await api.problem("POST", f"{path}/hold", {"reason": "court"})
    assert (problem["status"], problem["code"]) == (403, "sealed_only")
