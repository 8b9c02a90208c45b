"""Who may import whom: media flows one way, downwards, and nothing below knows what is above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "recorder": {"mediaserver", "compositor", "bench", "tests", "aiohttp", "aiortc", "aioice", "av", "cv2"},
    "compositor": {"mediaserver", "bench", "tests", "aiohttp", "aiortc", "aioice", "dbos"},
    "mediaserver": {"compositor", "bench", "tests", "av", "cv2", "numpy"},
}


def imported_packages(source: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_package_imports_nothing_above_it(package: str) -> None:
    sources = sorted((ROOT / package).rglob("*.py"))
    assert sources
    wrong = [
        f"{source.relative_to(ROOT)}:{line} imports {name}"
        for source in sources
        for line, name in imported_packages(source)
        if name in FORBIDDEN[package]
    ]
    assert not wrong, "\n".join(wrong)
