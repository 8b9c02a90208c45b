"""A report as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def html(report: Mapping[str, Any]) -> str:
    """Return the page."""
    raise NotImplementedError
