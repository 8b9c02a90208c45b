"""Write a finished file sealed: whole and read back, or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path

from recorder.canonical import JSON
from recorder.sealed import DataKey, FileSummary, SealedError, SealedReader, SealedWriter

Write = Callable[[bytes], object]


def seal_file(
    path: Path,
    key: DataKey,
    content: Callable[[Write], object],
    *,
    kind: str,
    media_type: str,
    public: Mapping[str, JSON] | None = None,
) -> FileSummary:
    """Seal what ``content`` writes, then open every chunk of the file again.

    What it was made from may be deleted afterwards. Nothing is left of a file that could not be written whole
    or does not read back: OSError, then of errno EIO.
    """
    writer = SealedWriter(path, key, kind=kind, media_type=media_type, public=public or {})
    try:
        content(writer.write)
        summary = writer.close()
        _read_back(writer.path, key, summary)
    except BaseException:
        writer.abandon()
        writer.path.unlink(missing_ok=True)
        raise
    return summary


def _read_back(path: Path, key: DataKey, summary: FileSummary) -> None:
    try:
        with SealedReader(path, key) as reader:
            size = sum(len(chunk) for chunk in reader.chunks())
            whole = reader.finished and size == summary.plain_bytes
    except SealedError as error:
        raise OSError(errno.EIO, f"{path.name} does not read back: {error}") from error
    if not whole:
        raise OSError(errno.EIO, f"{path.name} does not read back: {size} of {summary.plain_bytes} bytes")
