"""What tests of several packages share: the S3 server is started once, by the first test that wants it.

Two rules for all of them: where ``TESTS_NO_SKIP`` is 1, as in CI, a skipped test is a failed one, since it
proves nothing; and SIGTERM ends a run as Ctrl-C does, so that no server, browser or namespace is left.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from types import FrameType
from typing import Any

import pytest

from tests.recorder.s3 import S3Server, serving


def _end(number: int, frame: FrameType | None) -> None:
    # Not an exception of our own: asyncio's runner turns this one into a cancelled test, which tidies up.
    signal.raise_signal(signal.SIGINT)


def pytest_sessionstart() -> None:
    """Let SIGTERM, with which `timeout` and CI end a run, unwind the tests."""
    signal.signal(signal.SIGTERM, _end)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a failure of a skipped test where none may be; expected failures stay what they are."""
    report = yield
    if report.skipped and os.environ.get("TESTS_NO_SKIP") == "1" and not hasattr(report, "wasxfail"):
        reason: Any = report.longrepr
        words = reason[2] if isinstance(reason, tuple) else str(reason)
        report.outcome = "failed"
        report.longrepr = f"{words}: nothing may be skipped here (TESTS_NO_SKIP=1)"
    return report


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """Run OpenStack Swift with its S3 API on loopback."""
    with serving() as server:
        yield server
