"""The signed pages of a recording, wherever they are: a directory, an exported package, a zip, files.

Nothing is checked here but size; ``recorder.plain`` and ``recorder.verify`` check.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from recorder.canonical import CanonicalError, as_int, parse_canonical
from recorder.manifest import MANIFEST, MANIFEST_TYPE
from recorder.signed import MAX_PAGE_BYTES, SignedError, read_page
from recorder.statements import STATEMENT_TYPE, STATEMENTS

_STATEMENT = re.compile(r"^\d{6,}\.json$")


class PagesError(Exception):
    """There are no usable pages where they were looked for; says where and why."""


@dataclass(frozen=True)
class Page:
    """The bytes of one page and where they were found."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Pages:
    """A manifest and the statements beside it, by the number they say themselves."""

    manifest: Page
    statements: dict[int, Page]


def find_pages(places: Sequence[Path]) -> Pages:
    """Read the pages from directories, zip files or single page files; several places add up.

    Of a single ``manifest.json`` the folder ``statements`` beside it is read too. Other files of a package
    are not looked at. Raise PagesError when there is no manifest, two different ones, two statements of one
    number, or something unreadable; FileNotFoundError.
    """
    manifest: Page | None = None
    statements: dict[int, Page] = {}
    for page in (one for place in places for one in _pages_in(place)):
        try:
            fields = parse_canonical(page.data)
            number = as_int(fields.get("number")) if fields.get("type") == STATEMENT_TYPE else None
        except CanonicalError as error:
            raise PagesError(f"{page.name} {error}") from None
        if fields.get("type") == MANIFEST_TYPE:
            if manifest is not None and manifest.data != page.data:
                raise PagesError(f"{manifest.name} and {page.name} are two manifests")
            manifest = page
        elif number is not None:
            if statements.setdefault(number, page).data != page.data:
                raise PagesError(f"{statements[number].name} and {page.name} are both statement {number}")
        else:
            raise PagesError(f"{page.name} is neither a manifest nor a statement")
    if manifest is None:
        raise PagesError(f"no {MANIFEST} in {', '.join(str(place) for place in places)}")
    return Pages(manifest, statements)


def _pages_in(place: Path) -> Iterator[Page]:
    if place.is_dir():
        yield from _read(path for path in (place / MANIFEST, *_numbered(place / STATEMENTS)) if path.exists())
    elif zipfile.is_zipfile(place):
        yield from _zipped(place)
    else:
        beside = _numbered(place.parent / STATEMENTS) if place.name == MANIFEST else []
        yield from _read([place, *beside])


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _STATEMENT.match(path.name))


def _read(paths: Iterable[Path]) -> Iterator[Page]:
    for path in paths:
        try:
            yield Page(str(path), read_page(path))
        except SignedError as error:
            raise PagesError(f"{path} {error}") from None


def _zipped(place: Path) -> Iterator[Page]:
    """Read the pages of a package in a zip, at its top or in its one folder."""
    try:
        with zipfile.ZipFile(place) as archive:
            for info in archive.infolist():
                name = PurePosixPath(info.filename)
                is_statement = name.parent.name == STATEMENTS and _STATEMENT.match(name.name)
                if name.name != MANIFEST and not is_statement:
                    continue
                if info.file_size > MAX_PAGE_BYTES:
                    raise PagesError(f"{info.filename} in {place} is longer than {MAX_PAGE_BYTES >> 20} MiB")
                with archive.open(info) as file:
                    yield Page(f"{place}:{info.filename}", file.read(MAX_PAGE_BYTES))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise PagesError(f"{place} is no readable zip: {error}") from None
