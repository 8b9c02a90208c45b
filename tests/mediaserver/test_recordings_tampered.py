"""Someone can write where the recordings lie, and has no key of ours: what the server then believes."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mediaserver.recordings import evidence
from mediaserver.settings import Settings
from recorder.gm.x509 import Certificate
from recorder.keys import FileProvider, data_key_id, write_sidecar
from recorder.manifest import ManifestError
from recorder.reindex import read_entry
from recorder.sealed import SealedWriter
from recorder.signed import Signer, sign_page
from recorder.statements import append_statement
from tests.mediaserver import stand_in_compositor
from tests.mediaserver.running import Client, make_keys, running, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_in(tmp_path_factory.mktemp("tampered"))
    make_keys(settings)
    return settings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(settings: Settings) -> AsyncIterator[Client]:
    async with running(settings) as client:
        await client.ok("POST", "/v1/rooms", {"name": "desk"})
        yield client


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return FileProvider.create(tmp_path_factory.mktemp("foreign") / "keys")


async def recorded(api: Client, number: str) -> tuple[str, Path]:
    """Record; returns id and directory."""
    one = await api.ok("POST", "/v1/rooms/desk/recordings", {"business_no": number})
    await api.ok("POST", f"/v1/recordings/{one['id']}/stop")
    entry = api.control.catalog.get(one["id"])
    assert entry is not None
    return one["id"], api.control.recordings.directory(entry)


def sign_anew(directory: Path, signer: Signer, **facts: str) -> None:
    """Change the manifest's facts and sign it and the sidecar with another key."""
    for name in ("keys.json", "manifest.json"):
        fields = json.loads((directory / name).read_bytes())
        del fields["signature"], fields["certificate"]
        if name == "manifest.json":
            fields["facts"].update(facts)
        (directory / name).write_bytes(sign_page(fields, signer))


async def test_pages_signed_anew_with_another_key_do_not_verify(api: Client, foreign: FileProvider) -> None:
    identifier, directory = await recorded(api, "signed-anew")
    assert (await api.ok("POST", f"/v1/recordings/{identifier}/verify"))["ok"]
    sign_anew(directory, foreign.signer(), room="elsewhere")
    report = await api.ok("POST", f"/v1/recordings/{identifier}/verify")
    assert not report["ok"]
    assert {finding["kind"] for finding in report["findings"]} >= {"other_signer"}


async def test_another_file_of_the_recording_is_not_served_as_its_composite(api: Client) -> None:
    api.control.finishing.command = [sys.executable, "-m", stand_in_compositor.__name__, "composes"]
    identifier, directory = await recorded(api, "swapped")
    path = f"/v1/recordings/{identifier}/files/composite.mp4"
    async with asyncio.timeout(30):
        while (await api.ask("GET", path))[0] == 202:
            await asyncio.sleep(0.05)
    (sealed,) = (directory / "files").iterdir()
    entry = api.control.catalog.get(identifier)
    assert entry is not None
    key = await api.control.recordings.data_key(entry, purpose="test", actor="test")
    other = SealedWriter(directory / "other", key, kind="derived", media_type="video/mp4")
    other.write(bytes(len(stand_in_compositor.PLAIN)))
    other.close()
    (directory / "other").rename(sealed)
    status, answer, _ = await api.ask("GET", path)
    assert (status, len(answer) < 1000) == (500, True)


async def test_a_data_key_put_in_place_of_the_recordings_is_not_taken(
    api: Client, foreign: FileProvider
) -> None:
    """Anyone can wrap a key for our certificate: what is sealed afterwards would be theirs to read."""
    one = await api.ok("POST", "/v1/rooms/desk/recordings", {"business_no": "other-key"})
    active = api.control.recordings.active[one["id"]]
    directory = api.control.recordings.directory(active.entry)
    secret = bytes(16)
    own = json.loads((directory / "keys.json").read_bytes())
    provider = api.control.recordings.provider
    assert isinstance(provider, FileProvider)
    wrap = {**own["wraps"][0], "ciphertext": wrapped(provider, secret)}
    write_sidecar(directory, one["id"], data_key_id(secret), [wrap], foreign.signer())
    entry = api.control.catalog.get(one["id"])
    assert entry is not None
    api.control.recordings.active.pop(one["id"])  # as in a process that takes over
    with pytest.raises(evidence.EvidenceProblem, match="another key"):
        await api.control.recordings.data_key(entry, purpose="take over", actor="server")
    api.control.recordings.active[one["id"]] = active
    await api.ok("POST", f"/v1/recordings/{one['id']}/stop")


async def test_a_manifest_that_was_there_before_the_stop_is_not_taken(
    api: Client, foreign: FileProvider
) -> None:
    _, whole = await recorded(api, "planted-from")
    one = await api.ok("POST", "/v1/rooms/desk/recordings", {"business_no": "planted"})
    directory = api.control.recordings.directory(api.control.recordings.active[one["id"]].entry)
    fields = json.loads((whole / "manifest.json").read_bytes())
    del fields["signature"], fields["certificate"]
    (directory / "manifest.json").write_bytes(sign_page(fields, foreign.signer()))
    stopped = await api.ok("POST", f"/v1/recordings/{one['id']}/stop")
    assert stopped["state"] == "failed"


async def test_reindexing_gives_no_recording_to_another_tenant(api: Client, foreign: FileProvider) -> None:
    identifier, directory = await recorded(api, "others")
    entry = api.control.catalog.get(identifier)
    assert entry is not None
    key = await api.control.recordings.data_key(entry, purpose="test", actor="test")
    root = api.control.settings.data_dir
    assert read_entry(root, directory, key).tenant == "one"
    sign_anew(directory, foreign.signer(), tenant="two")
    with pytest.raises(ManifestError, match="two"):
        read_entry(root, directory, key)


async def test_a_strangers_statement_is_not_taken_for_the_composite(
    api: Client, foreign: FileProvider
) -> None:
    identifier, directory = await recorded(api, "stated")
    append_statement(directory, "composite", {"files": []}, foreign.signer())
    done = await api.control.finishing.compose(identifier)
    assert not done["ok"]
    shown = await api.ok("GET", f"/v1/recordings/{identifier}")
    assert shown["composing"]["state"] == "failed"


def wrapped(provider: FileProvider, secret: bytes) -> str:
    """Wrap as anyone can who has the encryption certificate."""
    certificate = Certificate.from_pem(provider.info().encryption_certificate_pem)
    return base64.b64encode(certificate.public_key.encrypt(secret)).decode()
