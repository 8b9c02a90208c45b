"""Remove what a tombstone says was destroyed, and tell verification what therefore is not there.

The signed tombstone comes first (``recorder.custody``), then the removal. A process that dies in between
leaves files that verification names, and that the next run removes. Manifest, statements and their digests
stay for ever; once all kinds are destroyed the data key goes too, and whatever copy is left somewhere cannot
be opened any more (crypto-erase).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recorder.atomic import sync_directory
from recorder.canonical import JSON
from recorder.elsewhere import names_at_sites, note_at_sites
from recorder.keys import SIDECAR, erase_sidecar
from recorder.signed import Signer, digest_name, sign_page
from recorder.statements import STATEMENTS, Statement, StatementError, read_statements
from recorder.storage import SegmentName, files_directory, segments_directory

CERTIFICATE_TYPE = "shuanglu.destruction-certificate.v1"


@dataclass
class Destroyed:
    """What the tombstones of a recording speak of."""

    files: dict[str, int] = field(default_factory=dict)
    """File id to number of the tombstone."""
    names: dict[str, int] = field(default_factory=dict)
    """Name on disk likewise."""
    key: int | None = None

    def paths(self) -> list[str]:
        """List where they lay, below the recording's directory: what object stores are to remove as well."""
        listed = [
            f"{folder}/{name}"
            for name in self.names
            if Path(name).name == name
            for folder in ("segments" if SegmentName.parse(name) else "files",)
        ]
        return [*listed, *([SIDECAR] if self.key is not None else [])]


def destroyed_by(statements: Iterable[Statement]) -> Destroyed:
    """Read the tombstones among statements, all of them by accepted signers."""
    found = Destroyed()
    for statement in statements:
        if statement.kind != "destruction" or statement.body.get("action") != "carried_out":
            continue
        listed = statement.body.get("destroyed")
        for file in listed if isinstance(listed, list) else []:
            if isinstance(file, Mapping):
                found.files[str(file.get("file_id"))] = statement.number
                found.names[str(file.get("name"))] = statement.number
        if statement.body.get("key") is True:
            found.key = statement.number
    return found


def carry_out(directory: Path, accepted: Collection[bytes]) -> int:
    """Remove what tombstones name and is still there; return how many files that were. May run twice.

    ``accepted``: public points of the signers whose tombstones count. Raise StatementError for any other's,
    OSError.
    """
    statements = read_statements(directory)
    for statement in statements:
        if statement.page.certificate.public_key.point not in accepted:
            raise StatementError(f"statement {statement.number:06d} is a stranger's: nothing is removed")
    destroyed = destroyed_by(statements)
    removed = 0
    away = names_at_sites(directory)
    if away & set(destroyed.paths()):
        note_at_sites(directory, away - set(destroyed.paths()))
    if destroyed.key is not None:
        removed += (directory / SIDECAR).exists()
        erase_sidecar(directory)
    for folder in (segments_directory(directory), files_directory(directory)):
        removed += _remove(folder, destroyed.names)
    return removed


def _remove(folder: Path, names: Iterable[str]) -> int:
    found = [folder / name for name in names if Path(name).name == name and (folder / name).is_file()]
    for path in found:
        path.unlink()
    if found:
        sync_directory(folder)
    return len(found)


def certificate(
    directory: Path, tombstone: Statement, signer: Signer, *, proposed_by: str, approved_by: str, reason: str
) -> bytes:
    """Return a certificate of destruction for the institution's own records: a signed page that names people.

    It lies nowhere in the recording, whose sealed parts nobody can open any more.
    """
    page = directory / STATEMENTS / f"{tombstone.number:06d}.json"
    fields: dict[str, JSON] = {
        "type": CERTIFICATE_TYPE,
        "recording": str(tombstone.page.fields["recording"]),
        "statement": tombstone.number,
        "statement_sm3": digest_name(page.read_bytes()),
        "at": tombstone.at,
        "body": tombstone.body,
        "proposed_by": proposed_by,
        "approved_by": approved_by,
        "reason": reason,
    }
    return sign_page(fields, signer)
