"""What of a recording's directory may go to a site now: what no writer will touch again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recorder.canonical import CanonicalError
from recorder.keys import SIDECAR
from recorder.manifest import MANIFEST, SEALED_PART, ManifestError, read_manifest
from recorder.sealed.source import RecordSource
from recorder.statements import STATEMENTS, StatementError, list_statements, read_statements
from recorder.storage import files_directory, list_segments, segments_directory


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One file that may go: ``name`` is its path below the recording's directory."""

    name: str
    path: Path
    revised: bool = False
    """It has revisions (``keys.json``); everything else never changes."""


def closed_files(directory: Path) -> list[Outgoing]:
    """List what may go, in the order it should: keys, segments, manifest, statements, each
    after the files it speaks for.

    A segment is closed when its END is there, when a later one exists (its writer is dead or left it
    after an error of the disk), or when the manifest names it. Of ``files/`` goes what a statement
    speaks for, because a composer's half-made files are removed. Files whose names begin with a dot are
    temporary. Reads a few bytes of the last segment and the statements only. Raise OSError.
    """
    found: list[Outgoing] = []
    if (directory / SIDECAR).exists():
        found.append(Outgoing(SIDECAR, directory / SIDECAR, revised=True))
    found += _segments(directory)
    if (directory / MANIFEST).exists():  # until then its sealed part may be written anew
        found += [Outgoing(name, directory / name) for name in (SEALED_PART, MANIFEST)]
    pages: list[Outgoing] = []
    for _, path in list_statements(directory):
        for name in _spoken_for(path):
            if (directory / name).exists():
                pages.append(Outgoing(name, directory / name))
        pages.append(Outgoing(f"{STATEMENTS}/{path.name}", path))
    found += dict.fromkeys(pages)
    return found + list(_others(directory))


def _segments(directory: Path) -> Iterator[Outgoing]:
    listed = list_segments(directory)
    folder = segments_directory(directory).name
    for _, path in listed[:-1]:
        yield Outgoing(f"{folder}/{path.name}", path)
    if listed and ((directory / MANIFEST).exists() or has_end(listed[-1][1])):
        yield Outgoing(f"{folder}/{listed[-1][1].name}", listed[-1][1])


def _others(directory: Path) -> Iterator[Outgoing]:
    """Find what other pages lie beside these, such as certificates."""
    known = {SIDECAR, MANIFEST, SEALED_PART, STATEMENTS}
    known |= {segments_directory(directory).name, files_directory(directory).name}
    for top in sorted(directory.iterdir()):
        if top.name in known or top.name.startswith("."):
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else (top,):
            if path.is_file() and not path.name.startswith("."):
                yield Outgoing(path.relative_to(directory).as_posix(), path)


def has_end(path: Path) -> bool:
    """Tell whether a sealed file's writer closed it. Raise OSError."""
    source = RecordSource(path)
    try:
        return source.end_record() is not None
    finally:
        source.close()


def _spoken_for(statement: Path) -> Iterator[str]:
    """Name what a statement speaks for; a broken one speaks for nothing here (verification says why)."""
    try:
        page = json.loads(statement.read_bytes())
        body, sealed = page["body"], page["sealed"]
        listed = body.get("files", [body["file"]] if "file" in body else [])
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    named = [(STATEMENTS, sealed)] + [
        ("files", file) for file in (listed if isinstance(listed, list) else [])
    ]
    for folder, file in named:
        name = file.get("name") if isinstance(file, dict) else None
        if isinstance(name, str) and name and "/" not in name and not name.startswith("."):
            yield f"{folder}/{name}"


def signed_digests(directory: Path) -> dict[str, str]:
    """Return ``sm3:…`` of every segment and file that the signed pages name, by path below
    ``directory``.

    Raise ManifestError, StatementError, CanonicalError where a page does not hold, OSError where one is
    missing.
    """
    segments, files = segments_directory(directory).name, files_directory(directory).name
    found = {f"{segments}/{one.name}": one.sm3 for one in read_manifest(directory).segments}
    for statement in read_statements(directory):
        found.update({f"{files}/{one.name}": one.sm3 for one in statement.files})
    return found


PAGE_PROBLEMS = (ManifestError, StatementError, CanonicalError, OSError)
"""What ``signed_digests`` raises."""
