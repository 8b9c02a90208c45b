"""What the end-to-end tests share: one server, the device files, and how long a call is."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.e2e.api import Api
from tests.e2e.stage import Stage
from tests.media.files import camera_file, microphone_file
from tests.media.pictures import AGENT, CUSTOMER, Party

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
    """Run one server for every test that does not break it."""
    with Stage(tmp_path_factory.mktemp("stage") / "data") as running:
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
