"""A server whose keys are in a KMS: a whole recording with real worker and compositor; a failing KMS."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mediaserver import doctor
from mediaserver.recordings import finishing
from mediaserver.secrets import SecretsError, open_secrets
from mediaserver.settings import Settings
from recorder.gm.x509 import Certificate
from recorder.keys import FileProvider, read_sidecar
from recorder.manifest import read_manifest
from recorder.verify import verify
from tests.mediaserver.running import Client, make_keys, running, settings_in
from tests.recorder.kms_process import Kms, reference_kms

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kms]:
    with reference_kms(tmp_path_factory.mktemp("kms")) as running_kms:
        yield running_kms


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, kms: Kms) -> Settings:
    crypto = {"provider": "kms", "kms": kms.settings(timeout_s=1.0)}
    settings = settings_in(tmp_path_factory.mktemp("server"), crypto=crypto)
    make_keys(settings)
    return settings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(settings: Settings) -> AsyncIterator[Client]:
    async with running(settings) as client:
        await client.ok("POST", "/v1/rooms", {"name": "desk"})
        yield client


async def start(api: Client, number: str) -> dict[str, Any]:
    result: dict[str, Any] = await api.ok("POST", "/v1/rooms/desk/recordings", {"business_no": number})
    return result


async def until(api: Client, identifier: str, wanted: Any) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            shown: dict[str, Any] = await api.ok("GET", f"/v1/recordings/{identifier}")
            if wanted(shown):
                return shown
            await asyncio.sleep(0.1)


async def events(api: Client, recording: str, kind: str) -> list[dict[str, Any]]:
    seen = await api.control.events.after("one", 0, recording=recording)
    return [one for one in seen if one["type"] == kind]


async def test_a_whole_recording(api: Client, settings: Settings, kms: Kms) -> None:
    one = await start(api, "whole")
    path = f"/v1/recordings/{one['id']}"
    await asyncio.sleep(2.5)  # a checkpoint is signed every 2 s
    assert (await api.ok("POST", f"{path}/stop"))["state"] == "sealed"
    status, _, _ = await api.ask("GET", f"{path}/files/composite.mp4")
    assert status in (200, 202)
    await until(api, one["id"], lambda shown: shown["composing"]["state"] == "done")
    status, body, _ = await api.ask("GET", f"{path}/files/composite.mp4?purpose=check")
    assert status == 200
    assert body[4:8] == b"ftyp"
    report = await api.ok("POST", f"{path}/verify")
    assert (report["ok"], report["opened"]) == (True, True)
    assert report["checkpoints"] >= 1

    entry = await api.control.recordings.find(one["id"])
    assert entry is not None
    directory = api.control.recordings.directory(entry)
    provider = read_manifest(directory).page.fields["provider"]
    assert isinstance(provider, dict)
    shown = (provider["name"], provider["version"], provider["certificate"], provider["assurance"])
    assert shown == ("kms/reference", "1", "none", "development")
    wraps = read_sidecar(directory)["wraps"]
    assert isinstance(wraps, list)
    assert isinstance(wraps[0], dict)
    assert wraps[0]["provider"] == "kms/reference"
    lines = [line for line in kms.audit() if line.get("recording") == one["id"]]
    assert {line["operation"] for line in lines} == {"data-keys", "unwrap"}
    purposes = {line["purpose"] for line in lines if line["operation"] == "unwrap"}
    assert {"check", "compose", "verify"} <= purposes
    # Offline, with no KMS and no key, everything signed holds.
    assert verify(directory).ok
    # No private key is on this side.
    assert not list(settings.secrets_dir.rglob("*signing.key*"))


async def test_a_start_is_refused_clearly_while_it_is_down(api: Client, kms: Kms) -> None:
    for fault in ({"down": True}, {"delay_s": 2.5}):
        kms.fail(**fault)
        problem = await api.problem(
            "POST", "/v1/rooms/desk/recordings", {"business_no": f"down-{len(fault)}"}
        )
        assert (problem["status"], problem["code"]) == (503, "keys_unavailable")
        assert "KMS" in problem["detail"]
        kms.fail()
        number = f"again-{next(iter(fault))}"
        one = await start(api, number)
        await api.ok("POST", f"/v1/recordings/{one['id']}/stop")


async def test_down_in_a_call_and_the_manifest_is_signed_when_it_is_back(api: Client, kms: Kms) -> None:
    one = await start(api, "outage")
    path = f"/v1/recordings/{one['id']}"
    kms.stop()
    async with asyncio.timeout(30):
        while not await events(api, one["id"], "recording.unsigned"):
            await asyncio.sleep(0.1)
    # The recording goes on: what happens is in its journal.
    await api.ok("POST", f"{path}/markers", {"step": {"code": "risk"}, "action": "start"})
    ended = await api.ok("POST", f"{path}/stop")
    assert ended["state"] == "stopping"
    assert (await api.ok("POST", f"{path}/stop"))["state"] == "stopping"
    assert not await events(api, one["id"], "recording.stopped")
    file = await api.problem("GET", f"{path}/manifest")
    assert file["code"] == "file_not_found"
    kms.start()
    sealed = await until(api, one["id"], lambda shown: shown["state"] != "stopping")
    assert sealed["state"] == "sealed"
    assert len(await events(api, one["id"], "recording.stopped")) == 1
    assert {one["data"]["code"] for one in await events(api, one["id"], "recording.unsigned")} == {
        "signing",
        "keys_unavailable",
    }
    assert (await api.ok("POST", f"{path}/verify"))["ok"]
    journal = await api.ok("GET", f"{path}/timeline")
    assert "step.started" in {event["type"] for event in journal["events"]}


async def test_a_kms_that_signs_wrongly_at_the_stop_is_waited_for(api: Client, kms: Kms) -> None:
    one = await start(api, "wrong")
    path = f"/v1/recordings/{one['id']}"
    kms.fail(wrong_signature=True)
    assert (await api.ok("POST", f"{path}/stop"))["state"] == "stopping"
    kms.fail()
    assert (await until(api, one["id"], lambda shown: shown["state"] != "stopping"))["state"] == "sealed"
    assert (await api.ok("POST", f"{path}/verify"))["ok"]


async def test_files_and_composing_wait_for_it(
    api: Client, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finishing, "KEYS_AGAIN_S", 0.2)
    one = await start(api, "later")
    path = f"/v1/recordings/{one['id']}"
    assert (await api.ok("POST", f"{path}/stop"))["state"] == "sealed"
    kms.fail(down=True)
    assert (await api.ask("GET", f"{path}/files/composite.mp4"))[0] == 202
    await asyncio.sleep(1.0)
    assert (await until(api, one["id"], lambda shown: True))["composing"]["state"] != "failed"
    kms.fail()
    await until(api, one["id"], lambda shown: shown["composing"]["state"] == "done")
    kms.fail(down=True)
    problem = await api.problem("GET", f"{path}/files/composite.mp4")
    assert (problem["status"], problem["code"]) == (503, "keys_unavailable")
    kms.fail()
    assert (await api.ask("GET", f"{path}/files/composite.mp4"))[0] == 200


async def test_doctor_and_start_say_that_it_is_down(settings: Settings, kms: Kms) -> None:
    found = {finding.name: finding for finding in doctor.examine(settings)}["Keys"]
    assert found.level == "ok"
    assert "kms/reference 1, product certificate none" in found.text
    kms.fail(wrong_signature=True)
    assert {finding.name: finding for finding in doctor.examine(settings)}["Keys"].level == "failure"
    kms.fail(down=True)
    found = {finding.name: finding for finding in doctor.examine(settings)}["Keys"]
    assert (found.level, bool(found.advice)) == ("failure", True)
    with pytest.raises(SecretsError, match="down on purpose"):
        open_secrets(settings)
    kms.fail()


async def test_production_takes_no_development_kms(settings: Settings) -> None:
    production = settings.model_copy(update={"environment": "production"})
    with pytest.raises(SecretsError, match="development keys"):
        open_secrets(production)


async def test_keys_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FileProvider.create(tmp_path / "keys")
    for use in ("signing", "encryption"):
        for kind, name in (("key", "KEY"), ("cert", "CERTIFICATE")):
            text = (tmp_path / "keys" / f"{use}.{kind}.pem").read_text()
            monkeypatch.setenv(f"SHUANGLU_CRYPTO_{use.upper()}_{name}", text)
    settings = settings_in(tmp_path, crypto={"provider": "environment", "certificate_no": "SXH001"})
    make_keys(settings)
    secrets = open_secrets(settings)
    assert not [name for name in os.environ if name.startswith("SHUANGLU_CRYPTO_")]
    info = secrets.provider.info()
    assert (info.name, info.certificate) == ("environment", "SXH001")
    told = secrets.keys.for_sealing().model_dump_json()
    assert secrets.keys.pem is not None
    assert secrets.keys.pem.encryption_key.splitlines()[1] not in told
    assert Certificate.from_pem(info.signing_certificate_pem).self_signed
    assert not (settings.secrets_dir / "crypto").exists()
