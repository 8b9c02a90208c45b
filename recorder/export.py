"""Write plain files out of a recording for an entitled person: explicit, checked, on record beforehand.

The only place where plain media arises. The export is signed into the recording as a statement first
(operator and reason sealed in it), then each file is opened, its plain text's SM3 compared with the signed
one, and only then given its name.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from recorder.atomic import sync_directory
from recorder.canonical import canonical
from recorder.gm.sm3 import Sm3, named
from recorder.gm.x509 import Certificate
from recorder.manifest import MANIFEST, read_manifest, read_sealed_part
from recorder.sealed import DataKey, FileSummary, SealedReader, plain_name
from recorder.signed import Signer
from recorder.statements import Statement, append_statement, list_statements, read_statements
from recorder.storage import files_directory


class ExportError(Exception):
    """Nothing, or no further file, was exported; says why."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    statement: Statement
    files: tuple[Path, ...]


def export_recording(
    directory: Path,
    out: Path,
    *,
    data_key: DataKey,
    signer: Signer,
    operator: str,
    reason: str,
    names: list[str] | None = None,
) -> Exported:
    """Write a recording's finished files in plain text, and its signed pages, into the new directory ``out``.

    ``names`` restricts to files of these plain names (``composite.mp4``). Also written: ``manifest.json``,
    the statements, and ``private.json`` (identities, metadata). Files get mode 0600. Raise ExportError if
    operator or reason is empty, a name is unknown, ``out`` exists, or a file is not what was signed;
    ManifestError, StatementError, SealedError where the recording is broken.
    """
    if not operator.strip() or not reason.strip():
        raise ExportError("an export names its operator and its reason")
    try:
        manifest = read_manifest(directory)
    except FileNotFoundError:
        raise ExportError(f"{directory} has no manifest: stop it, or run recorder recover first") from None
    accepted = {manifest.page.certificate.public_key.point}
    accepted.add(Certificate.from_pem(signer.certificate_pem).public_key.point)
    for known in read_statements(directory):
        if known.page.certificate.public_key.point not in accepted:
            who = known.page.certificate.subject
            raise ExportError(
                f"statement {known.number:06d} was signed by {who}, not by who signed the manifest"
            )
    chosen = _choose(directory, names)
    private = read_sealed_part(directory, data_key)
    try:
        out.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise ExportError(f"{out} exists; an export goes into a directory of its own") from None
    listed = [
        {"name": plain_name(summary.name), "file_id": summary.file_id, "plain_sm3": summary.plain_sm3}
        for summary in chosen
    ]
    statement = append_statement(
        directory,
        "export",
        {"exported": listed, "private_part": True},
        signer,
        sealed={"operator": operator, "reason": reason, "to": str(out.absolute())},
        data_key=data_key,
    )
    written = [_write_plain(files_directory(directory), summary, out, data_key) for summary in chosen]
    written.append(_write(out / "private.json", canonical(private)))
    written.append(_write(out / MANIFEST, (directory / MANIFEST).read_bytes()))
    for number, path in list_statements(directory):
        written.append(_write(out / f"statement-{number:06d}.json", path.read_bytes()))
    sync_directory(out)
    return Exported(statement, tuple(written))


def _choose(directory: Path, names: list[str] | None) -> list[FileSummary]:
    files = [summary for statement in read_statements(directory) for summary in statement.files]
    if names is None:
        return files
    chosen = [summary for summary in files if plain_name(summary.name) in names]
    missing = set(names) - {plain_name(summary.name) for summary in chosen}
    if missing:
        have = ", ".join(sorted({plain_name(summary.name) for summary in files})) or "none"
        raise ExportError(f"no file {', '.join(sorted(missing))}; there is: {have}")
    return chosen


def _write_plain(folder: Path, summary: FileSummary, out: Path, data_key: DataKey) -> Path:
    """Write one file's plain text under its plain name, or under name and id where that is taken."""
    target = out / Path(plain_name(summary.name)).name
    if target.exists():
        target = out / f"{target.stem}.{summary.file_id[:8]}{target.suffix}"
    temporary = out / f".{target.name}.{secrets.token_hex(4)}"
    running = Sm3()
    try:
        with SealedReader(folder / summary.name, data_key) as reader, _create(temporary) as file:
            for chunk in reader.chunks():
                running.update(chunk)
                file.write(chunk)
            finished = reader.finished
            file.flush()
            os.fsync(file.fileno())
        if not finished or named(running.digest()) != summary.plain_sm3:
            raise ExportError(f"{summary.name} is not the file that was signed; it was not exported")
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _write(path: Path, data: bytes) -> Path:
    with _create(path) as file:
        file.write(data)
    return path
