"""What the end-to-end tests share: one server, the device files, and how long a call is."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import peers
from tests.e2e.api import Api
from tests.e2e.stage import Stage
from tests.media.files import camera_file, microphone_file
from tests.media.pictures import AGENT, CUSTOMER, Party
from tests.media.tracks import CameraTrack, MicrophoneTrack

LONG = os.environ.get("SHUANGLU_LONG") == "1"
"""Full length: calls of 60 s, five kills of each kind. Without it the same is done shorter, for CI."""
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def call_s() -> float:
    """Return the length of a measured call in s."""
    return 60.0 if LONG else 15.0


@pytest.fixture(scope="session")
def seed() -> int:
    """Return the seed of everything random, from SHUANGLU_SEED or fresh; always printed by who uses it."""
    return int(os.environ.get("SHUANGLU_SEED") or random.SystemRandom().randrange(2**32))


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Return identity → (camera file, microphone file) for Chromium's fake devices."""
    directory = tmp_path_factory.mktemp("devices")

    def made(party: Party) -> tuple[Path, Path]:
        return (
            camera_file(directory / f"{party.identity}.y4m", party),
            microphone_file(directory / f"{party.identity}.wav", party),
        )

    return {party.identity: made(party) for party in (AGENT, CUSTOMER)}


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Run one server with two tenants for every test that does not break it."""
    data = tmp_path_factory.mktemp("stage") / "data"
    with Stage(data, tenants=("default", "other")) as running:
        yield running


@pytest.fixture
async def api(stage: Stage) -> AsyncIterator[Api]:
    """Return the shared server's API with its first key."""
    async with Api(stage.base, stage.key()) as client:
        yield client


@pytest.fixture
def room() -> str:
    """Return a room name that no other test uses."""
    return f"counter-{next(_numbers)}"


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished recording of a customer's 6 s, and a copy of everything the server had written half-way."""

    recording: dict[str, Any]
    composite: bytes
    halfway: Path
    canary: str
    """The customer's name."""
    ready_s: float
    """From stop to the finished composite."""


@pytest.fixture(scope="session")
def kept(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Record once for all tests that only read."""
    return asyncio.run(_record(stage, tmp_path_factory.mktemp("halfway") / "copy"))


async def _record(stage: Stage, halfway: Path) -> Kept:
    canary = "金丝雀客户司马相如"
    room = "counter-kept"
    async with Api(stage.base, stage.key()) as api:
        await api.room(room)
        token = await api.token(room, CUSTOMER.identity, CUSTOMER.role, canary)
        tracks = [CameraTrack(CUSTOMER), MicrophoneTrack(CUSTOMER)]
        session = await peers.publish(api, room, token, tracks)
        await peers.connected(session)
        recording = await api.record(room, "KEPT-1", "both", metadata={"customer": canary, "scene": "wealth"})
        await asyncio.sleep(4)
        shutil.copytree(
            stage.data,
            halfway,
            ignore=lambda folder, names: [name for name in names if name.endswith(".sock")],
        )
        await asyncio.sleep(2)
        await api.stop(recording["id"])
        await session.close()
        shown, ready_s = await api.composed(recording["id"])
        answer = await api.file(recording["id"], "composite.mp4")
    assert answer.status == 200, answer.body[:300]
    return Kept(shown, answer.body, halfway, canary, ready_s)
