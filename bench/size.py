"""From measured figures to machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Wanted:
    """What the operator plans for."""

    calls: int
    minutes: float
    per_day: int
    retain: str


def size(wanted: Wanted, measured: Sequence[Path]) -> dict[str, Any]:
    """Return cores, memory, disk and network."""
    raise NotImplementedError
