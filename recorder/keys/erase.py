"""Crypto-erase: without its sidecar a recording's data key is gone, and with it everything sealed.

What is honest about it: the bytes are overwritten and synced before the file is removed, which is of no use
on SSDs, copy-on-write file systems, snapshots and backups, where old blocks stay until they are reused. What
remains there is a wrap that only the encryption key opens: after erasing a recording for good reason, rotate
that key and destroy the old one (docs/operations.md, Keys). Digests, signatures and statements stay.
"""

from __future__ import annotations

import os
from pathlib import Path

from recorder.atomic import locked, sync_directory
from recorder.keys.sidecar import SIDECAR


def erase_sidecar(directory: Path) -> None:
    """Overwrite, sync and remove a recording's ``keys.json`` and what a killed write left of it.

    Done again it changes nothing. Nobody writes another meanwhile (``locked``). Raise OSError;
    FileNotFoundError only if the directory itself is missing.
    """
    with locked(directory):
        _erase(directory)


def _erase(directory: Path) -> None:
    for path in (directory / SIDECAR, *sorted(directory.glob(f".{SIDECAR}.*"))):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        with os.fdopen(fd, "wb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            file.write(os.urandom(size))
            os.fsync(file.fileno())
        path.unlink()
    sync_directory(directory)
