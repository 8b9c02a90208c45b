"""What the laboratory's tests share. Without namespaces or TUN they fail: a skipped one proves nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.call import Devices
from tests.lab.network import Laboratory
from tests.lab.table import Table
from tests.media.files import camera_file, microphone_file
from tests.media.pictures import CUSTOMER

if "LAB" not in os.environ:
    # `make lab` runs these, minutes long; the decisions of test_impairment.py belong to every run.
    collect_ignore = [
        f"test_{name}.py" for name in ("heavy", "layers", "link", "load", "only_tcp", "scenarios", "soak")
    ]


@pytest.fixture(scope="session")
def lab_seed() -> int:
    """Return the seed of all lines: SHUANGLU_SEED or a fresh one; printed, so that a run can be repeated."""
    seed = int(os.environ.get("SHUANGLU_SEED") or random.SystemRandom().randrange(2**32))
    print(f"SHUANGLU_SEED={seed}")
    return seed


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Devices:
    """Return what Chromium's camera and microphone play."""
    directory = tmp_path_factory.mktemp("devices")
    return (
        camera_file(directory / "camera.y4m", CUSTOMER),
        microphone_file(directory / "microphone.wav", CUSTOMER),
    )


@pytest.fixture(scope="session")
def busy_camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a camera with more to tell than a narrow line takes."""
    return camera_file(tmp_path_factory.mktemp("busy") / "camera.y4m", CUSTOMER, seconds=6, grain=12)


@pytest.fixture
def lab(lab_seed: int) -> Iterator[Laboratory]:
    """Return a laboratory of its own for each test. Fails with what is missing where there can be none."""
    with Laboratory(lab_seed) as made:
        yield made


_table = Table()
_seed: list[int] = []


@pytest.fixture(scope="session")
def table(lab_seed: int) -> Table:
    """Return the table of this run's figures."""
    _seed.append(lab_seed)
    return _table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table and say where its JSON is."""
    if _table.rows:
        terminalreporter.section("network laboratory")
        terminalreporter.write_line(_table.text())
        terminalreporter.write_line(f"SHUANGLU_SEED={_seed[0]}; rows in {_table.write(_seed[0])}")
