"""State that a file was made from another one: which parent, which stretch, by whom, for whom, why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recorder.canonical import JSON
from recorder.sealed import DataKey, FileSummary, plain_name
from recorder.signed import Signer
from recorder.statements import Statement, append_statement, read_statements


class NoParent(Exception):
    """The recording has no signed file of this name."""


def signed_file(directory: Path, name: str) -> FileSummary:
    """Find the file that statements speak for by its plain name, the first of it. Raise NoParent."""
    files = [file for statement in read_statements(directory) for file in statement.files]
    found = next((file for file in files if plain_name(file.name) == name), None)
    if found is None:
        have = ", ".join(sorted({plain_name(file.name) for file in files})) or "none"
        raise NoParent(f"no file {name}; there is: {have}")
    return found


def state_derived(
    directory: Path,
    made: FileSummary,
    parent: FileSummary,
    *,
    operation: Mapping[str, JSON],
    duration_ms: int,
    sealed: Mapping[str, object],
    data_key: DataKey,
    signer: Signer,
) -> Statement:
    """Sign the statement of a clip or copy. ``operation`` names nobody; ``sealed`` says who, for whom, why.

    The parent is named by its digests of cipher and plain text, so that the derived file stays tied to it
    when the parent is long destroyed.
    """
    return append_statement(
        directory,
        "derived",
        {
            "files": [made.to_json()],
            "durations_ms": {made.name: duration_ms},
            "parent": {
                "name": plain_name(parent.name),
                "file_id": parent.file_id,
                "sm3": parent.sm3,
                "plain_sm3": parent.plain_sm3,
            },
            "operation": operation,
        },
        signer,
        sealed=sealed,
        data_key=data_key,
    )
