"""What tests of several packages share: the S3 server is started once, by the first test that wants it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.recorder.s3 import S3Server, serving


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """Run OpenStack Swift with its S3 API on loopback."""
    with serving() as server:
        yield server
