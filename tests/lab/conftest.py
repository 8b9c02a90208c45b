"""What the laboratory's tests share. Where a network cannot be built they fail: a skipped one proves nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.lab.network import Laboratory


@pytest.fixture(scope="session")
def lab_seed() -> int:
    """Return the seed of all lines: SHUANGLU_SEED or a fresh one; printed, so that a run can be repeated."""
    seed = int(os.environ.get("SHUANGLU_SEED") or random.SystemRandom().randrange(2**32))
    print(f"SHUANGLU_SEED={seed}")
    return seed


@pytest.fixture
def lab(lab_seed: int) -> Iterator[Laboratory]:
    """Return a laboratory of its own for each test. Fails with what is missing where there can be none."""
    with Laboratory(lab_seed) as made:
        yield made
