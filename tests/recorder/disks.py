"""Disks of the tests' own: an ext4 file system in a file. Needs root and a free loop device."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def make_image(image: Path, size: int) -> None:
    """Make an empty ext4 file system of ``size`` bytes in a sparse file."""
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=20)


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Mount an image at ``folder``. Skip the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a disk image")
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-o", "loop", str(image), str(folder)], capture_output=True, check=False, timeout=20
    )
    if made.returncode:
        pytest.skip(f"no disk image can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        # Lazily: a child that a failed test left there must not keep the disk for ever.
        subprocess.run(["umount", "--lazy", str(folder)], check=False, timeout=60, capture_output=True)
