"""The control process is killed while recordings go to the object store: the next one goes on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recorder.sites import Site, SiteConfig
from tests.e2e.api import Api
from tests.e2e.evidence import directory_of
from tests.e2e.stage import Stage
from tests.e2e.test_crash import calling
from tests.recorder.faults import Faults, Request, faulty
from tests.recorder.s3 import S3Server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
KILLS = 3
PATIENCE_S = 90.0


@pytest.fixture
def faults(s3: S3Server) -> Iterator[Faults]:
    with faulty(s3) as proxy:
        yield proxy


def is_put(one: Request) -> bool:
    return one.method == "PUT"


async def test_kill_9_of_control_loses_no_upload(s3: S3Server, faults: Faults, tmp_path: Path) -> None:
    """Every put takes a while, so that each kill meets some half-way."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    credentials = s3.credentials(tmp_path)
    url = f"s3://{s3.bucket()}/evidence"
    site = Site(SiteConfig(url=url, endpoint=s3.endpoint, credentials_file=credentials))
    faults.set("slow", is_put, delay_s=0.7)
    settings = {
        "recording.segment_s": 1.0,
        "composing.when": "on_demand",
        "storage.sites": [
            {"name": "store", "url": url, "endpoint": faults.endpoint, "credentials_file": str(credentials)}
        ],
    }
    with Stage(tmp_path / "data", settings) as stage:
        async with Api(stage.base, stage.key()) as api, calling(api, "hall"):
            made = await api.record("hall", "UP-KILL")
            directory = directory_of(stage, made["id"])
            key = str(directory.relative_to(stage.data))
            for _ in range(KILLS):
                await asyncio.sleep(moments.uniform(1.5, 4.0))
                os.kill(stage.pids("control")[-1], signal.SIGKILL)
                await asyncio.to_thread(stage.restart)
            faults.clear()
            await api.stop(made["id"])
            deadline = time.monotonic() + PATIENCE_S
            while (different := await asyncio.to_thread(differences, directory, site, key)) and (
                time.monotonic() < deadline
            ):
                await asyncio.sleep(0.5)
            assert different == [], f"seed {seed}"
            report = await api.call("POST", f"/v1/recordings/{made['id']}/verify")
            assert report["ok"] is True, report


def differences(directory: Path, site: Site, key: str) -> list[str]:
    """Name files that are not at the site byte by byte, and objects that are not here."""
    here = {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    there = {one.key.removeprefix(f"{key}/"): site.read(one.key) for one in site.listing(key)}
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
