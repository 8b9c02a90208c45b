"""Write a package as a directory or a zip, whole or not at all, with a digest of every file in it."""

from __future__ import annotations

import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, cast

from recorder.atomic import sync_directory
from recorder.canonical import JSON
from recorder.gm.sm3 import Sm3, named

Write = Callable[[bytes], None]
_STORED = (".mp4", ".m4a", ".webm", ".jpg", ".sealed", ".pdf")
"""Compressed or random already: deflating them costs time and gains nothing."""


@dataclass
class Parcel:
    """A package being written; ``files`` are what is in it so far, in order."""

    _store: _Store
    files: list[dict[str, JSON]] = field(default_factory=list)

    @contextmanager
    def file(self, name: str) -> Iterator[Write]:
        """Write one file of the package front to back; ``name`` is relative, with ``/``."""
        running, size = Sm3(), 0

        def write(data: bytes) -> None:
            nonlocal size
            running.update(data)
            size += len(data)
            put(data)

        with self._store.file(name) as put:
            yield write
        self.files.append({"name": name, "bytes": size, "sm3": named(running.digest())})

    def add(self, name: str, data: bytes) -> None:
        """Write one file whose bytes are there."""
        with self.file(name) as write:
            write(data)


class _Store(Protocol):
    @contextmanager
    def file(self, name: str) -> Iterator[Write]: ...


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def file(self, name: str) -> Iterator[Write]:
        path = self._root / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
        ) as file:
            yield lambda data: _all(file.write(data))
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        for folder in (*(path for path in self._root.iterdir() if path.is_dir()), self._root):
            sync_directory(folder)


class _Zip:
    def __init__(self, archive: zipfile.ZipFile, top: str) -> None:
        self._archive = archive
        self._top = top

    @contextmanager
    def file(self, name: str) -> Iterator[Write]:
        info = zipfile.ZipInfo(f"{self._top}/{name}", time.gmtime()[:6])
        info.external_attr = 0o600 << 16
        info.compress_type = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
        with self._archive.open(info, "w", force_zip64=True) as file:
            yield lambda data: _all(file.write(data))


def _all(_written: int) -> None:
    return


class _Sink:
    """What a zip is written to front to back; it cannot be gone back in."""

    def __init__(self, put: Write) -> None:
        self._put = put

    def write(self, data: bytes) -> int:
        self._put(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


@contextmanager
def streamed(put: Write, top: str) -> Iterator[Parcel]:
    """Give a package away as a zip while it is written, all in a folder ``top``; nothing touches a disk.

    Of a failure the receiver has the beginning of a zip, which no program takes for a whole one.
    """
    with zipfile.ZipFile(cast(IO[bytes], _Sink(put)), "w") as archive:
        try:
            yield Parcel(_Zip(archive, top))
        except BaseException:
            archive.fp = None  # else its end would be written: a whole zip with files missing
            raise


@contextmanager
def parcel(target: Path, *, zipped: bool) -> Iterator[Parcel]:
    """Write a package to ``target``, which must not exist: a directory (0700) or a zip (0600).

    It gets its name when all of it is written; of a failure nothing is left. Raise FileExistsError, OSError.
    """
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists; a package is written anew")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        if zipped:
            with (
                os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
                zipfile.ZipFile(file, "w") as archive,
            ):
                yield Parcel(_Zip(archive, target.stem))
                archive.close()
                file.flush()
                os.fsync(file.fileno())
        else:
            temporary.mkdir(mode=0o700)
            folder = _Folder(temporary)
            yield Parcel(folder)
            folder.finish()
        temporary.rename(target)
        sync_directory(target.parent)
    finally:
        if zipped:
            temporary.unlink(missing_ok=True)
        else:
            shutil.rmtree(temporary, ignore_errors=True)
