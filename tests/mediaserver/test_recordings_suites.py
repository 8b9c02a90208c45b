"""The setting crypto.suite reaches what the control process, its worker and its compositor write."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mediaserver.settings import Settings
from recorder.sealed import read_header, suite_named
from tests.mediaserver import stand_in_compositor
from tests.mediaserver.running import make_keys, running, settings_in
from tests.mediaserver.test_recordings import start, stop, until


@pytest.mark.parametrize("name", ["sm4-gcm", "sm4-ctr-hmac-sm3", "aes-256-gcm"])
async def test_new_recordings_are_of_the_suite_that_was_set(name: str, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, crypto={"suite": name})
    make_keys(settings)
    async with running(settings) as api:
        api.control.finishing.command = [sys.executable, "-m", stand_in_compositor.__name__, "composes"]
        await api.ok("POST", "/v1/rooms", {"name": "desk"})
        one = await start(api, "B-1", metadata={"customer": "李伟"})
        await stop(api, one["id"])
        path = f"/v1/recordings/{one['id']}"
        await api.ask("GET", f"{path}/files/composite.mp4")
        await until(api, one["id"], lambda shown: shown["composing"]["state"] == "done", 30)
        status, body, _ = await api.ask("GET", f"{path}/files/composite.mp4?purpose=review")
        assert (status, body) == (200, stand_in_compositor.PLAIN)
        report = await api.ok("POST", f"{path}/verify")
        assert report["ok"], report
    (sidecar,) = settings.recordings_dir.rglob("keys.json")
    assert json.loads(sidecar.read_bytes())["suite"] == suite_named(name)
    sealed = [one for one in sidecar.parent.rglob("*") if one.suffix in (".seg", ".sealed")]
    assert {one.parent.name for one in sealed} == {"segments", "files", sidecar.parent.name}
    assert {read_header(one).suite for one in sealed} == {suite_named(name)}


def test_an_unknown_suite_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"crypto\.suite"):
        Settings.model_validate({"crypto": {"suite": "des"}})
