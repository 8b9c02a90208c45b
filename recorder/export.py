"""Write plain files out of a recording for an entitled person: explicit, checked, on record beforehand.

The only place where plain media arises. The export is signed into the recording as a statement first
(operator and reason sealed in it), then each file is opened, its plain text's SM3 compared with the signed
one, and the package gets its name when all of it holds. ``recorder.court`` has the package's parts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recorder.canonical import JSON
from recorder.court import content, html, pdf
from recorder.court.archive import archive_metadata
from recorder.court.facts import CONTACT_SHEET, Facts, certificates_of, gather
from recorder.court.parcel import Parcel, parcel
from recorder.destruction import destroyed_by
from recorder.gm.sm3 import Sm3, named
from recorder.gm.x509 import Certificate
from recorder.keys import SIDECAR, read_sidecar
from recorder.manifest import MANIFEST, SEALED_PART, Manifest, read_manifest
from recorder.report import Verdict
from recorder.sealed import DataKey, FileSummary, SealedReader, plain_name
from recorder.signed import Signer, read_page, sign_page
from recorder.statements import STATEMENTS, Statement, append_statement, list_statements, read_statements
from recorder.storage import files_directory
from recorder.verify import verify

PACKAGE_TYPE = "shuanglu.package.v1"
PACKAGE = "package.json"
Sealed = Literal["archive", "all", "none"]
_COURT = Path(__file__).parent / "court"
_TITLE = ("双录录像核验报告", "Verification report of a dual recording")
_BLOCK = 1 << 20


class ExportError(Exception):
    """Nothing was exported; says why."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    statement: Statement
    target: Path
    files: tuple[Path, ...]
    """Of a directory, the paths of everything in it; of a zip, the names inside."""
    verdict: Verdict
    """What verifying the recording with its key said: also in the report."""


def export_recording(
    directory: Path,
    out: Path,
    *,
    data_key: DataKey,
    signer: Signer,
    operator: str,
    reason: str,
    names: list[str] | None = None,
    zipped: bool = False,
    sealed: Sealed = "archive",
    report: bool = True,
    key_handed_over: bool = False,
) -> Exported:
    """Write a recording's finished files in plain text, and all that proves them, into a new package ``out``.

    Files get mode 0600. See ``export_into``; besides, raise FileExistsError if ``out`` exists.
    """
    with parcel(out, zipped=zipped) as package:
        statement, verdict = export_into(
            package,
            directory,
            data_key=data_key,
            signer=signer,
            operator=operator,
            reason=reason,
            to=str(out.absolute()),
            names=names,
            sealed=sealed,
            report=report,
            key_handed_over=key_handed_over,
        )
    listed = [Path(str(file["name"])) for file in package.files]
    written = listed if zipped else [out / name for name in listed]
    return Exported(statement, out, tuple(written), verdict)


def export_into(
    package: Parcel,
    directory: Path,
    *,
    data_key: DataKey,
    signer: Signer,
    operator: str,
    reason: str,
    to: str,
    names: list[str] | None = None,
    sealed: Sealed = "archive",
    report: bool = True,
    key_handed_over: bool = False,
) -> tuple[Statement, Verdict]:
    """Fill a package; return the statement that records it, and what verifying with the key said.

    ``names`` restricts to files of these plain names (``composite.mp4``). ``sealed``: which of them go in as
    they lie on disk too, with the wrapped key, so that an expert opens them himself. ``report``: with the
    verification report (HTML and PDF, contact sheet in it). ``to`` and ``key_handed_over`` are put on record.
    Nothing is put into the package before the statement is signed. Raise ExportError if operator or reason is
    empty, a name is unknown, or a file is not what was signed; ManifestError, StatementError, SealedError
    where the recording is broken.
    """
    if not operator.strip() or not reason.strip():
        raise ExportError("an export names its operator and its reason")
    try:
        manifest = read_manifest(directory)
    except FileNotFoundError:
        raise ExportError(f"{directory} has no manifest: stop it, or run recorder recover first") from None
    _accept_signers(directory, manifest, signer)
    chosen = _choose(directory, names)
    pictured = [
        file for file in _choose(directory, None) if report and plain_name(file.name) == CONTACT_SHEET
    ]
    statement = append_statement(
        directory,
        "export",
        {
            "exported": [_named(summary) for summary in chosen],
            "in_report": [_named(summary) for summary in pictured],
            "private_part": True,
            "key_handed_over": key_handed_over,
        },
        signer,
        sealed={"operator": operator, "reason": reason, "to": to},
        data_key=data_key,
    )
    trusted = {certificate.fingerprint for certificate in certificates_of(manifest, [statement])}
    found = verify(directory, data_key=data_key, trusted=trusted)
    facts = gather(directory, data_key, found, operator=operator, reason=reason, exported_at=statement.at)
    _add_media(package, directory, chosen, data_key)
    _add_pages(package, directory)
    _add_private(package, directory, facts, data_key)
    _add_keys(package, directory, facts)
    for summary in chosen if sealed != "none" else ():
        if sealed == "all" or summary.kind == "archive":
            _copy(package, files_directory(directory) / summary.name, f"sealed/{summary.name}")
    for name in ("open.sh", "HOWTO.md"):
        package.add(name, (_COURT / name).read_bytes())
    package.add("archive-metadata.xml", archive_metadata(facts))
    if report:
        _add_report(package, facts)
    fields: dict[str, JSON] = {
        "type": PACKAGE_TYPE,
        "recording": manifest.recording,
        "statement": statement.number,
        "at": statement.at,
        "files": list(package.files),
    }
    package.add(PACKAGE, sign_page(fields, signer))
    return statement, found.verdict


def _accept_signers(directory: Path, manifest: Manifest, signer: Signer) -> None:
    accepted = {manifest.page.certificate.public_key.point}
    accepted.add(Certificate.from_pem(signer.certificate_pem).public_key.point)
    for known in read_statements(directory):
        if known.page.certificate.public_key.point not in accepted:
            who = known.page.certificate.subject
            raise ExportError(
                f"statement {known.number:06d} was signed by {who}, not by who signed the manifest"
            )


def _choose(directory: Path, names: list[str] | None) -> list[FileSummary]:
    files = [summary for statement in read_statements(directory) for summary in statement.files]
    gone = destroyed_by(read_statements(directory)).files
    files = [summary for summary in files if summary.file_id not in gone]
    away = [one for one in files if not (files_directory(directory) / one.name).exists()]
    if names is None:
        if away:
            listed = ", ".join(plain_name(one.name) for one in away)
            raise ExportError(f"not here: {listed}; bring it from its site first, or name others")
        return files
    chosen = [summary for summary in files if plain_name(summary.name) in names]
    missing = set(names) - {plain_name(summary.name) for summary in chosen}
    if missing:
        have = ", ".join(sorted({plain_name(summary.name) for summary in files})) or "none"
        raise ExportError(f"no file {', '.join(sorted(missing))}; there is: {have}")
    return chosen


def _named(summary: FileSummary) -> Mapping[str, JSON]:
    return {"name": plain_name(summary.name), "file_id": summary.file_id, "plain_sm3": summary.plain_sm3}


def _add_media(package: Parcel, directory: Path, chosen: list[FileSummary], data_key: DataKey) -> None:
    """Write plain files under their plain names, or under name and id where that is taken."""
    taken: set[str] = set()
    for summary in chosen:
        name = Path(plain_name(summary.name)).name
        if name in taken:
            name = f"{Path(name).stem}.{summary.file_id[:8]}{Path(name).suffix}"
        taken.add(name)
        _open_into(package, f"media/{name}", files_directory(directory) / summary.name, summary, data_key)


def _open_into(package: Parcel, name: str, path: Path, summary: FileSummary, data_key: DataKey) -> None:
    running = Sm3()
    with SealedReader(path, data_key) as reader, package.file(name) as write:
        for chunk in reader.chunks():
            running.update(chunk)
            write(chunk)
        finished = reader.finished
    if not finished or named(running.digest()) != summary.plain_sm3:
        raise ExportError(f"{summary.name} is not the file that was signed; nothing was exported")


def _add_pages(package: Parcel, directory: Path) -> None:
    package.add(MANIFEST, read_page(directory / MANIFEST))
    for number, path in list_statements(directory):
        package.add(f"{STATEMENTS}/{number:06d}.json", read_page(path))


def _add_private(package: Parcel, directory: Path, facts: Facts, data_key: DataKey) -> None:
    """Write the private halves of the pages in plain text: names and metadata; who did what, and why."""
    sealed = facts.manifest.sealed
    _open_into(package, "private/recording.json", directory / SEALED_PART, sealed, data_key)
    for statement in facts.statements:
        if statement.sealed is not None:
            path = directory / STATEMENTS / statement.sealed.name
            name = f"private/{statement.number:06d}.json"
            _open_into(package, name, path, statement.sealed, data_key)


def _add_keys(package: Parcel, directory: Path, facts: Facts) -> None:
    """Write the signers' certificates, the wrapped data key, and whose private key unwraps it."""
    for number, certificate in enumerate(facts.certificates, 1):
        package.add(f"certificates/signing-{number}.pem", certificate.pem.encode())
    encryption = facts.provider.get("encryption_certificate")
    if isinstance(encryption, str) and encryption:
        package.add("certificates/encryption.pem", encryption.encode())
    chain = facts.provider.get("chain")
    if isinstance(chain, list) and chain:
        package.add("certificates/chain.pem", "".join(str(one) for one in chain).encode())
    package.add(f"keys/{SIDECAR}", read_page(directory / SIDECAR))
    for number, wrap in enumerate(_wraps(read_sidecar(directory)), 1):
        package.add(f"keys/wrap-{number}.der", wrap)


def _wraps(sidecar: Mapping[str, JSON]) -> Iterator[bytes]:
    wraps = sidecar.get("wraps")
    for wrap in wraps if isinstance(wraps, list) else []:
        if isinstance(wrap, Mapping) and isinstance(wrap.get("ciphertext"), str):
            try:
                yield base64.b64decode(str(wrap["ciphertext"]), validate=True)
            except binascii.Error:
                continue


def _copy(package: Parcel, path: Path, name: str) -> None:
    with path.open("rb") as source, package.file(name) as write:
        while block := source.read(_BLOCK):
            write(block)


def _add_report(package: Parcel, facts: Facts) -> None:
    made = content.sections(facts)
    subtitle = f"{facts.manifest.recording} | {facts.report.verdict.value} | {facts.exported_at}"
    good = facts.report.ok
    package.add("report.html", html.render(_TITLE, subtitle, made, good=good))
    package.add("report.pdf", pdf.render(_TITLE, subtitle, made, good=good))
