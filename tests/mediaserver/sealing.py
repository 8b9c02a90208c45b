"""Servers that seal only, for tests: their keys, and what is asked of them again and again."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from mediaserver.settings import Settings
from recorder.keys import FileProvider
from tests.mediaserver.running import Client, make_keys, settings_in


def sealing_settings(base: Path, **crypto: Any) -> Settings:
    """Lay down what a sealing server has (``server``), and what opens, elsewhere (``opening``)."""
    made = base / "made"
    FileProvider.create(made)
    for place, names in (
        ("server", ("signing.key.pem", "signing.cert.pem", "encryption.cert.pem")),
        ("opening", ("encryption.key.pem", "encryption.cert.pem")),
    ):
        (base / place).mkdir(mode=0o700)
        for name in names:
            shutil.copy2(made / name, base / place / name)
    shutil.rmtree(made)
    given = {"directory": str(base / "server"), "open": False, **crypto}
    settings = settings_in(base, crypto=given, composing={"attempts": 2})
    make_keys(settings)
    return settings


async def start(api: Client, number: str) -> dict[str, Any]:
    result: dict[str, Any] = await api.ok("POST", "/v1/rooms/desk/recordings", {"business_no": number})
    return result


async def composed(api: Client, identifier: str) -> dict[str, Any]:
    async with asyncio.timeout(100):
        while True:
            shown: dict[str, Any] = await api.ok("GET", f"/v1/recordings/{identifier}")
            if shown["composing"]["state"] in ("done", "failed"):
                return shown
            await asyncio.sleep(0.1)


async def directory_of(api: Client, identifier: str) -> Path:
    entry = await api.control.recordings.find(identifier)
    assert entry is not None
    return api.control.recordings.directory(entry)
