"""Open a recording's file for reading: from this disk, else from the sites in their order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from recorder.catalog import Entry, FileEntry
from recorder.sealed import DataKey, SealedError, SealedReader
from recorder.sites import Site, SiteBytes, SiteError

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class FileGone(Exception):
    """The file is neither here nor at any site that answers; says what each said."""


async def open_file(
    directory: Path, sites: Sequence[Site], entry: Entry, file: FileEntry, key: DataKey, start: int, size: int
) -> tuple[SealedReader, bytes]:
    """Open a file and its first plain bytes, ``size`` from ``start``: then it is known to be the signed
    one there.

    A copy that is damaged or does not answer is passed over for the next; a damaged one is logged. Raise
    SealedError if only damaged copies are left, FileGone if none is.
    """
    return await beside(
        directory / file.path,
        sites,
        _open,
        directory / file.path,
        sites,
        f"{entry.directory}/{file.path}",
        file,
        key,
        start,
        size,
    )


async def beside(
    path: Path, sites: Sequence[Site], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run what reads a file beside the event loop; one that is not at ``path``, in a thread of the sites."""
    if sites and not path.exists():
        return await sites[0].in_thread(function, *args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


def _open(
    path: Path, sites: Sequence[Site], where: str, file: FileEntry, key: DataKey, start: int, size: int
) -> tuple[SealedReader, bytes]:
    damaged: SealedError | None = None
    said = []
    for name, source in _copies(path, sites, where):
        reader: SealedReader | None = None
        try:
            reader = SealedReader(source(), key)
            require_signed(reader, file)
            return reader, reader.read(start, size)
        except FileNotFoundError:
            said.append(f"{name}: not there")
        except SiteError as error:
            said.append(str(error))
        except SealedError as error:
            _log.error("%s is damaged at %s: %s", where, name, error)
            damaged = error
        if reader is not None:
            reader.close()
    try:
        if damaged is not None:
            raise damaged
        raise FileGone("; ".join(said))
    finally:
        # No loop of error, traceback and frame: CPython 3.11.7 crashes when it collects one with a memoryview
        # in it (gh-77894), and those frames hold some.
        del damaged


def _copies(
    path: Path, sites: Sequence[Site], where: str
) -> Iterator[tuple[str, Callable[[], Path | SiteBytes]]]:
    """Name every copy and how to open it; behind the first site come the others, should it fail on the
    way.
    """
    yield "this disk", lambda: path
    for number, site in enumerate(sites):
        order = [*sites[number:], *sites[:number]]
        yield f"site {site.name}", partial(SiteBytes, order, where)


def require_signed(reader: SealedReader, file: FileEntry) -> None:
    """Refuse another file of the recording, or part of this one, in its place: that would open as
    well.
    """
    if not file.path.endswith(f".{reader.header.file_id}.sealed") or reader.size != file.plain_bytes:
        raise SealedError("changed", 0, "it is not the file that was signed")
