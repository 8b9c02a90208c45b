"""One conformance suite over every implementation of the forwarder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.forwarder.ends import World

KINDS = ("python", "native", "native-libsrtp")


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Give a forwarder of each kind, with loopback sockets."""
    made = World(request.param)
    try:
        yield made
    finally:
        made.close()
