"""Destruction reaches the object stores: at once, or as soon as one that was out of reach is back."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from mediaserver.settings import Settings
from recorder.report import Verdict
from recorder.verify import verify
from tests.mediaserver import stand_in_compositor
from tests.mediaserver.running import Client, make_keys, running, settings_in
from tests.mediaserver.test_recordings_custody import SECOND, add_key, proposal


def settings_with_site(tmp_path: Path) -> tuple[Settings, Path]:
    site = tmp_path / "second-site"
    site.mkdir()
    settings = settings_in(tmp_path, storage={"sites": [{"name": "second", "url": f"file://{site}"}]})
    make_keys(settings)
    add_key(settings)
    return settings, site


async def uploaded(api: Client, site: Path) -> tuple[str, Path]:
    """Record something that is due at once; returns its path and where the site has it, all of it."""
    template = {"compose": "after_stop"}
    retention = {"basis": "contract", "until": "2020-01-01"}
    body = {"business_no": "due", "template": template, "retention": retention}
    made = await api.ok("POST", "/v1/rooms/desk/recordings", body)
    path = f"/v1/recordings/{made['id']}"
    await api.ok("POST", f"{path}/stop")
    async with asyncio.timeout(60):
        while True:
            there = list(site.glob(f"recordings/*/*/*/*/{made['id']}"))
            custody = await api.ok("GET", f"{path}/custody")
            if there and list(there[0].glob("files/composite.mp4.*")) and custody["until"]:
                return path, there[0]
            await asyncio.sleep(0.1)


def media(directory: Path) -> list[Path]:
    return [*directory.glob("segments/*"), *directory.glob("files/*"), *directory.glob("keys.json")]


async def test_a_site_that_is_away_is_cleared_when_it_is_back(tmp_path: Path) -> None:
    settings, site = settings_with_site(tmp_path)
    async with running(settings) as api:
        api.control.finishing.command = [sys.executable, "-m", stand_in_compositor.__name__, "composes"]
        await api.ok("POST", "/v1/rooms", {"name": "desk"})
        path, there = await uploaded(api, site)
        assert len(media(there)) >= 3
        away = tmp_path / "unplugged"
        shutil.move(site, away)
        site.write_text("no directory: whatever is asked of it fails")
        await api.ok("POST", f"{path}/destruction", {"reason": "expired"})
        done = await api.ok("POST", f"{path}/destruction/approve", await proposal(api, path), key=SECOND)
        assert done["custody"]["key_destroyed"] is True
        (here,) = settings.recordings_dir.glob(f"*/*/*/*/{there.name}")
        assert media(here) == []
        assert (await api.ok("GET", path))["state"] == "destroyed"
        site.unlink()
        shutil.move(away, site)
        async with asyncio.timeout(60):
            while media(there):
                await asyncio.sleep(0.2)
        assert (there / "manifest.json").exists()
        assert verify(here).verdict is Verdict.DESTROYED
