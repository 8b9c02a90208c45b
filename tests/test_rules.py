"""The rules of tests/conftest.py, tried in a run of their own: no skipping in CI, SIGTERM tidies up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SKIPPING = """
import pytest

def test_skips():
    pytest.skip("no disk")

@pytest.mark.skipif(True, reason="no net")
def test_is_skipped():
    pass

@pytest.mark.xfail
def test_fails_as_expected():
    assert False

def test_passes():
    pass
"""
WAITING = """
import asyncio, pathlib, time, pytest

@pytest.fixture
def made():
    yield
    pathlib.Path("fixture").touch()

{kind} test_waits(made):
    try:
        pathlib.Path("began").touch()
        {wait}(60)
    finally:
        pathlib.Path("test").touch()
"""


def start(directory: Path, text: str, no_skip: str) -> subprocess.Popen[str]:
    """Run pytest on a file with our rules."""
    (directory / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    return subprocess.Popen(
        [*command, "-o", "asyncio_mode=auto", "test_it.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TESTS_NO_SKIP": no_skip},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("no_skip", "told"), [("1", "1 failed, 1 passed, 1 xfailed, 1 error"), ("0", "2 skipped")]
)
def test_where_nothing_may_be_skipped_a_skipped_test_fails(tmp_path: Path, no_skip: str, told: str) -> None:
    run = start(tmp_path, SKIPPING, no_skip)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == (1 if no_skip == "1" else 0), said
    assert told in said
    if no_skip == "1":
        assert "no disk: nothing may be skipped here" in said
        assert "no net: nothing may be skipped here" in said


@pytest.mark.parametrize(("kind", "wait"), [("def", "time.sleep"), ("async def", "await asyncio.sleep")])
def test_sigterm_unwinds_a_test_and_its_fixtures(tmp_path: Path, kind: str, wait: str) -> None:
    run = start(tmp_path, WAITING.format(kind=kind, wait=wait), "0")
    deadline = time.monotonic() + 60
    while not (tmp_path / "began").exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 2, "interrupted"
    assert (tmp_path / "test").exists()
    assert (tmp_path / "fixture").exists()
