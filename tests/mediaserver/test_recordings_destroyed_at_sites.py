"""Destruction reaches the object stores: at once, or as soon as one that was out of reach is back."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mediaserver.settings import Settings
from recorder.elsewhere import names_at_sites
from recorder.report import Verdict
from recorder.sites import Site, signed_digests
from recorder.verify import verify
from tests.mediaserver import stand_in_compositor
from tests.mediaserver.running import Client, make_keys, running, settings_in
from tests.mediaserver.test_recordings_custody import SECOND, add_key, proposal


def settings_with_site(tmp_path: Path, **storage: Any) -> tuple[Settings, Path]:
    site = tmp_path / "second-site"
    site.mkdir()
    sites = [{"name": "second", "url": f"file://{site}"}]
    settings = settings_in(tmp_path, storage={"sites": sites, **storage})
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


async def test_what_is_destroyed_while_it_leaves_this_disk_is_noted_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The destruction comes between the comparison with the site and the removal here."""
    settings, site = settings_with_site(tmp_path, local="delete", local_keep_s=0)
    async with running(settings) as api:
        api.control.finishing.command = [sys.executable, "-m", stand_in_compositor.__name__, "composes"]
        await api.ok("POST", "/v1/rooms", {"name": "desk"})
        path, there = await uploaded(api, site)
        (here,) = settings.recordings_dir.glob(f"*/*/*/*/{there.name}")
        async with asyncio.timeout(60):
            while not (settings.data_dir / "uploaded" / f"{there.name}.second").exists():
                await asyncio.sleep(0.1)
        await api.ok("POST", f"{path}/destruction", {"reason": "expired"})
        left = len(signed_digests(here))
        compare, sweeping = Site.sm3, asyncio.current_task()

        async def destroyed_after_the_last(self: Site, key: str) -> str:
            nonlocal left
            found = await compare(self, key)
            if asyncio.current_task() is not sweeping:  # an upload compares as well
                return found
            left -= 1
            if left == 0:
                await api.ok("POST", f"{path}/destruction/approve", await proposal(api, path), key=SECOND)
            return found

        with monkeypatch.context() as patched:
            patched.setattr(Site, "sm3", destroyed_after_the_last)
            await api.control.uploads.freeing.sweep()
        assert left == 0
        assert media(here) == []
        assert names_at_sites(here) == frozenset()
