"""A server whose keys came in its environment: no child of it has them there."""

from __future__ import annotations

from pathlib import Path

import pytest

from recorder.keys import FileProvider
from recorder.manifest import read_manifest
from recorder.verify import verify
from tests.e2e.api import Api
from tests.e2e.stage import Stage


async def test_children_do_not_inherit_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FileProvider.create(tmp_path / "keys")
    secrets: list[bytes] = []
    for use in ("signing", "encryption"):
        for kind, name in (("key", "KEY"), ("cert", "CERTIFICATE")):
            text = (tmp_path / "keys" / f"{use}.{kind}.pem").read_text()
            monkeypatch.setenv(f"SHUANGLU_CRYPTO_{use.upper()}_{name}", text)
            if kind == "key":
                secrets.append(text.splitlines()[1].encode())
    settings = {"crypto.provider": "environment", "crypto.certificate_no": "SXH2026001"}
    with Stage(tmp_path / "data", settings) as stage:
        async with Api(stage.base, stage.key()) as api:
            await api.room("desk")
            one = await api.record("desk", "1")
            children = [process for process in stage.processes() if process.what in ("worker", "spare")]
            assert len(children) == 2
            for process in children:
                environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                assert b"STAGE_MARK=" in environment
                assert b"SHUANGLU_" not in environment
                assert not [secret for secret in secrets if secret in environment]
            ended = await api.stop(one["id"])
            assert ended["state"] == "sealed"
    (sidecar,) = (tmp_path / "data" / "recordings").rglob("keys.json")
    provider = read_manifest(sidecar.parent).page.fields["provider"]
    assert isinstance(provider, dict)
    assert (provider["name"], provider["certificate"]) == ("environment", "SXH2026001")
    assert verify(sidecar.parent).ok
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            assert not [secret for secret in secrets if secret in path.read_bytes()], path
