"""Statements: every fact after capture, signed and chained: composite made, verified, exported, quality,
hold.

``statements/NNNNNN.json`` are signed pages, numbered from 1. Each names the SM3 of the page before it, the
first that of ``manifest.json``. What names people in a statement lies sealed beside it in ``NNNNNN.sealed``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recorder import clock
from recorder.atomic import create_file, sync_directory
from recorder.canonical import JSON, CanonicalError, as_int, canonical
from recorder.gm.sm3 import named
from recorder.manifest import MANIFEST, Manifest, read_manifest
from recorder.sealed import DataKey, FileSummary, SealedReader, SealedWriter
from recorder.signed import (
    SignedError,
    SignedPage,
    Signer,
    digest_name,
    open_page,
    read_page,
    sign_page,
    signable,
)
from recorder.storage import files_directory

STATEMENTS = "statements"
STATEMENT_TYPE = "shuanglu.statement.v1"
SEALED_MEDIA_TYPE = "application/vnd.shuanglu.statement+json"
KINDS = (
    "composite",
    "derived",
    "quality",
    "review",
    "verify",
    "export",
    "hold",
    "retention",
    "destruction",
    "timestamp",
    "renewal",
    "certificate_status",
    "recovered",
)
_NAME = re.compile(r"^(\d{6,})\.json$")


class StatementError(Exception):
    """A statement is missing, changed or out of its chain; names it."""


@dataclass(frozen=True)
class Statement:
    """One statement whose signature fits its certificate and whose link to the page before holds."""

    number: int
    kind: str
    at: str
    body: Mapping[str, JSON]
    page: SignedPage
    sealed: FileSummary | None

    @property
    def files(self) -> tuple[FileSummary, ...]:
        """The sealed files in ``files/`` this statement speaks for: ``body.files`` or ``body.file``."""
        listed = self.body.get("files", [self.body["file"]] if "file" in self.body else [])
        if not isinstance(listed, list):
            raise CanonicalError("files is no list")
        return tuple(FileSummary.from_json(item) for item in listed)


def append_statement(
    directory: Path,
    kind: str,
    body: Mapping[str, object],
    signer: Signer,
    *,
    sealed: Mapping[str, object] | None = None,
    data_key: DataKey | None = None,
    utc_ns: int | None = None,
) -> Statement:
    """Sign a statement and append it. Of several processes at once each gets a number of its own.

    ``body`` must name nobody; what does goes to ``sealed`` and needs the data key. Files that lie in
    ``files/`` are told as ``body["files"]``: a list of ``FileSummary.to_json()``. Raise ManifestError or
    FileNotFoundError without a valid manifest, StatementError if the chain so far is broken, ValueError for
    an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"statement kind {kind!r}; known are {', '.join(KINDS)}")
    if (sealed is None) != (data_key is None):
        raise ValueError("a sealed part and the data key come together")
    folder = directory / STATEMENTS
    folder.mkdir(mode=0o700, exist_ok=True)
    # The files a statement speaks for, and the folders' own names, last as long as the statement.
    for place in (files_directory(directory), directory):
        if place.is_dir():
            sync_directory(place)
    now = utc_ns if utc_ns is not None else clock.SystemClock().utc_ns()
    while True:
        before = read_statements(directory)
        number = len(before) + 1
        previous = before[-1].page.digest if before else read_manifest(directory).page.digest
        summary = None
        if sealed is not None and data_key is not None:
            with SealedWriter(
                folder / f"{number:06d}.{{file_id}}.sealed",
                data_key,
                kind="derived",
                media_type=SEALED_MEDIA_TYPE,
                public={"statement": number},
            ) as writer:
                writer.write(canonical(signable(sealed)))
                summary = writer.close()
        fields: dict[str, JSON] = {
            "type": STATEMENT_TYPE,
            "number": number,
            "kind": kind,
            "at": clock.rfc3339(now),
            "recording": read_manifest(directory).recording,
            "previous": named(previous),
            "body": signable(body),
            "sealed": summary.to_json() if summary else None,
        }
        data = sign_page(fields, signer)
        try:
            create_file(folder / f"{number:06d}.json", data)
        except FileExistsError:
            if summary is not None:  # another process was faster; its number is taken
                (folder / summary.name).unlink()
            continue
        return parse_statement(data, number=number, previous=named(previous))


def parse_statement(data: bytes, *, number: int, previous: str | None) -> Statement:
    """Parse and check one statement. Raise StatementError; ``previous`` None leaves the link unchecked."""
    try:
        page = open_page(data, page_type=STATEMENT_TYPE)
        fields = page.fields
        body, sealed = fields.get("body"), fields.get("sealed")
        if not isinstance(body, Mapping):
            raise CanonicalError("has no body")
        if as_int(fields.get("number")) != number:
            raise CanonicalError(f"is number {fields.get('number')}")
        if previous is not None and fields.get("previous") != previous:
            raise CanonicalError("does not name the page before it: one was changed, removed or replaced")
        statement = Statement(
            number=number,
            kind=str(fields.get("kind")),
            at=str(fields.get("at")),
            body=body,
            page=page,
            sealed=None if sealed is None else FileSummary.from_json(sealed),
        )
        assert isinstance(statement.files, tuple)
        return statement
    except (SignedError, CanonicalError) as error:
        raise StatementError(f"statement {number:06d} {error}") from None


def is_first_of(data: bytes, manifest: Manifest) -> bool:
    """Tell whether a page is a whole first statement of this recording, if perhaps on another manifest."""
    try:
        return (
            parse_statement(data, number=1, previous=None).page.fields.get("recording") == manifest.recording
        )
    except StatementError:
        return False


def list_statements(directory: Path) -> list[tuple[int, Path]]:
    """Return numbers and paths of the statement files that are there, in order."""
    folder = directory / STATEMENTS
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.match(path.name))]
    return sorted((number, path) for number, path in found if path.name == f"{number:06d}.json")


def read_statements(directory: Path) -> list[Statement]:
    """Return all statements, the chain checked from the manifest on. Raise StatementError where it breaks."""
    statements: list[Statement] = []
    previous = None
    listed = list_statements(directory)
    if listed:
        previous = digest_name((directory / MANIFEST).read_bytes())
    for expected, (number, path) in enumerate(listed, 1):
        if number != expected:
            raise StatementError(f"statement {expected:06d} is missing")
        try:
            data = read_page(path)
        except SignedError as error:
            raise StatementError(f"statement {number:06d} {error}") from None
        statements.append(parse_statement(data, number=number, previous=previous))
        previous = digest_name(data)
    return statements


def read_sealed(directory: Path, statement: Statement, data_key: DataKey) -> dict[str, JSON]:
    """Open a statement's sealed part. Raise StatementError if it has none, SealedError if changed."""
    if statement.sealed is None:
        raise StatementError(f"statement {statement.number:06d} has no sealed part")
    with SealedReader(directory / STATEMENTS / statement.sealed.name, data_key) as reader:
        if reader.header.file_id != statement.sealed.file_id or not reader.finished:
            raise StatementError(f"the sealed part of statement {statement.number:06d} is not the signed one")
        value = json.loads(b"".join(reader.chunks()))
    if not isinstance(value, dict):
        raise StatementError(f"the sealed part of statement {statement.number:06d} is no JSON object")
    return value
