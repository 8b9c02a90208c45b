"""The command ``recorder``: look at, verify, recover, export and index recordings, offline."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from recorder.canonical import CanonicalError
from recorder.catalog import CatalogError, opened
from recorder.export import ExportError, export_recording
from recorder.fieldkey import FieldKey, FieldKeyError
from recorder.gm.selftest import SelfTestError
from recorder.gm.sm2 import Sm2Error
from recorder.gm.x509 import Certificate
from recorder.journal import JournalError
from recorder.keys import SIDECAR, FileProvider, KeyProblem, read_sidecar
from recorder.manifest import MANIFEST, Manifest, ManifestError, read_manifest, read_sealed_part
from recorder.recovering import RecoveryError, recover_recording
from recorder.reindex import opener, reindex
from recorder.report import Report, Verdict
from recorder.sealed import DataKey, SealedError, plain_name
from recorder.statements import StatementError, read_statements
from recorder.storage import list_segments
from recorder.verify import verify as verify_recording

app = typer.Typer(
    name="recorder",
    help=(
        "Work on sealed recordings without a server: look at them, verify, recover, export, index.\n\n"
        "PATH is a recording's directory (…/recordings/TENANT/YYYY/MM/DD/ID). verify, show and list need no "
        "key; what opens a recording needs --keys, the directory of the provider's key files (on a server: "
        "DATA/secrets/crypto). The bytes are described in docs/container.md."
    ),
    epilog="Exit codes: 0 done (verify: everything holds), 1 damage or failure, 2 wrong use, 3 not proven.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# No markup: file names and certificates of a hostile recording are shown as they are, never obeyed.
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

_FAILURES = (
    KeyProblem,
    ManifestError,
    StatementError,
    SealedError,
    JournalError,
    CanonicalError,
    RecoveryError,
    ExportError,
    CatalogError,
    FieldKeyError,
    SelfTestError,
    Sm2Error,
    OSError,
)

RecordingPath = Annotated[Path, typer.Argument(metavar="PATH", help="Directory of one recording.")]
Keys = Annotated[
    Path | None,
    typer.Option("--keys", help="Directory with signing.key.pem, encryption.key.pem and their certificates."),
]
NeededKeys = Annotated[
    Path,
    typer.Option("--keys", help="Directory with signing.key.pem, encryption.key.pem and their certificates."),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help="File with the keys' passphrase, or set SHUANGLU_CRYPTO_PASSPHRASE; never on the command line.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]


def main() -> None:
    """Run the command; failures that are no defect of ours become one line and exit code 1."""
    try:
        app()
    except _FAILURES as error:
        _fail(str(error))


def _fail(text: str) -> NoReturn:
    err.print(f"recorder: {text}", markup=False)
    sys.exit(1)


def _provider(keys: Path, passphrase_file: Path | None) -> FileProvider:
    if passphrase_file is not None:
        passphrase: str | None = passphrase_file.read_text().rstrip("\n")
    else:
        passphrase = os.environ.get("SHUANGLU_CRYPTO_PASSPHRASE")
    return FileProvider.open(keys, passphrase)


def _open_key(provider: FileProvider, path: Path, purpose: str, actor: str) -> DataKey:
    sidecar = read_sidecar(path)
    recording = str(sidecar["recording"])
    return provider.unwrap_now(sidecar, recording_id=recording, purpose=purpose, actor=actor)


@app.command()
def verify(
    path: RecordingPath,
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            "--trust",
            help="PEM certificate of a signer you trust, obtained another way; may be repeated. Without "
            "it the recording's own certificate is taken, and its fingerprint printed for you to compare.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that nothing in a recording was changed, removed, reordered, cut off or added.

    Needs no key: certificates, signatures, the SM3 chain of every record, signed checkpoints and digests are
    enough. With --keys every chunk is opened as well. Each finding names file, record, byte range and, where
    signed checkpoints tell, the time of capture.

    Exit code 0 only if everything holds; 1 if anything is damaged; 3 if no damage was found, but the
    recording has no signed manifest yet (running, or left by a crash), so that its tail is not proven.
    """
    data_key = _open_key_if_asked(keys, passphrase_file, path)
    trusted = None
    if trust:
        trusted = [Certificate.from_pem(file.read_text("ascii")).fingerprint for file in trust]
    report = verify_recording(path, data_key=data_key, trusted=trusted)
    if as_json:
        out.print_json(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print_report(report)
    raise typer.Exit({Verdict.OK: 0, Verdict.BROKEN: 1, Verdict.UNPROVEN: 3}[report.verdict])


def _open_key_if_asked(keys: Path | None, passphrase_file: Path | None, path: Path) -> DataKey | None:
    if keys is None:
        return None
    try:
        return _open_key(_provider(keys, passphrase_file), path, "verify", "recorder verify")
    except KeyProblem as error:
        # A broken sidecar is a finding, not a reason to check nothing.
        err.print(f"recorder: goes on without the key: {error}", markup=False)
        return None


def visible(text: str) -> str:
    """Write out what a terminal would obey: control and formatting characters, lone surrogates."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _print_report(report: Report) -> None:
    style = {Verdict.OK: "bold green", Verdict.BROKEN: "bold red", Verdict.UNPROVEN: "bold yellow"}
    words = {Verdict.OK: "OK", Verdict.BROKEN: "BROKEN", Verdict.UNPROVEN: "NOT PROVEN"}
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row("recording", visible(report.recording) or "unknown")
    facts.add_row(
        "checked",
        f"{report.files} sealed files, {report.records} records, {report.bytes:,} bytes, "
        f"{report.checkpoints} checkpoints, {report.statements} statements",
    )
    facts.add_row("opened", "every chunk, with the key" if report.opened else "no (no key given)")
    for fingerprint, subject in report.signers.items():
        vouched = "named by you" if report.trusted else "the recording's own: compare the fingerprint"
        facts.add_row("signed by", f"{visible(subject)}\n{fingerprint} ({vouched})")
    if report.assurance:
        facts.add_row("assurance", visible(report.assurance))
    out.print(facts)
    if report.findings:
        table = Table("what", "file", "record", "bytes", "time", "why")
        for finding in report.findings:
            table.add_row(
                finding.kind.value,
                visible(finding.file),
                "" if finding.record is None else str(finding.record),
                "" if finding.begin is None else f"{finding.begin}–{finding.end}",
                finding.time,
                visible(finding.detail),
            )
        out.print(table)
    out.print(words[report.verdict], style=style[report.verdict])


@app.command()
def show(
    path: RecordingPath,
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what a recording's signed pages say; with --keys also names and metadata.

    Checks the pages' own signatures and the statements' chain, not the media: that is verify.
    """
    manifest = _manifest_or_none(path)
    statements = read_statements(path) if manifest else []
    private = None
    if keys is not None and manifest is not None:
        data_key = _open_key(_provider(keys, passphrase_file), path, "show", "recorder show")
        private = read_sealed_part(path, data_key)
    if as_json:
        page = {
            "manifest": dict(manifest.page.fields) if manifest else None,
            "private": private,
            "statements": [dict(statement.page.fields) for statement in statements],
            "segments": len(list_segments(path)),
        }
        out.print_json(json.dumps(page, ensure_ascii=False))
        return
    if manifest is None:
        segments = len(list_segments(path))
        text = f"{path}: no manifest yet, {segments} segments (running, or left by a crash)"
        out.print(text, soft_wrap=True)
        return
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row("recording", manifest.recording)
    for name, value in manifest.facts.items():
        facts.add_row(name, json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value)
    for name, item in (private or {}).items():
        facts.add_row(f"{name} (sealed)", json.dumps(item, ensure_ascii=False))
    out.print(facts)
    table = Table("file", "kind", "plain bytes", "SM3 of the plain text")
    for part in manifest.parts:
        table.add_row(f"journal part {part['part']}", "original", "", f"{_count(part)} segments")
    for statement in statements:
        for file in statement.files:
            table.add_row(plain_name(file.name), file.kind, f"{file.plain_bytes:,}", file.plain_sm3)
    out.print(table)
    for statement in statements:
        out.print(f"{statement.at}  statement {statement.number}: {statement.kind}")


def _count(part: object) -> int:
    segments = part.get("segments") if isinstance(part, dict) else None
    return len(segments) if isinstance(segments, list) else 0


def _manifest_or_none(path: Path) -> Manifest | None:
    return read_manifest(path) if (path / MANIFEST).exists() else None


@app.command("list")
def list_recordings(
    root: Annotated[Path, typer.Argument(metavar="PATH", help="Directory to search for recordings.")],
    as_json: AsJson = False,
) -> None:
    """List the recordings below a directory with their state, length and number of files. Needs no key."""
    rows = []
    for sidecar in sorted(root.rglob(SIDECAR)):
        path = sidecar.parent
        try:
            manifest = _manifest_or_none(path)
            files = (
                [file for statement in read_statements(path) for file in statement.files] if manifest else []
            )
            facts = manifest.facts if manifest else {}
            state = str(facts.get("state", "sealed")) if manifest else "unfinished"
        except (ManifestError, StatementError, CanonicalError) as error:
            facts, files, state = {}, [], f"broken: {error}"
        rows.append(
            {
                "path": str(path),
                "state": state,
                "armed_at": facts.get("armed_at") or "",
                "duration_ms": facts.get("duration_ms") or 0,
                "segments": len(list_segments(path)),
                "files": [plain_name(file.name) for file in files],
            }
        )
    if as_json:
        out.print_json(json.dumps(rows, ensure_ascii=False))
        return
    table = Table("recording", "state", "armed at", "ms", "segments", "files")
    for row in rows:
        files_text = ", ".join(str(name) for name in row["files"]) if isinstance(row["files"], list) else ""
        table.add_row(
            Path(str(row["path"])).name,
            str(row["state"]),
            str(row["armed_at"]),
            str(row["duration_ms"]),
            str(row["segments"]),
            files_text,
        )
    out.print(table)


def _grows(path: Path) -> bool:
    """Watch a journal that was written just now: a live writer adds a clock pair every second."""

    def sizes() -> list[tuple[str, int]]:
        return [(file.name, file.stat().st_size) for _, file in list_segments(path)]

    newest = max((file.stat().st_mtime for _, file in list_segments(path)), default=0.0)
    before = sizes()
    if time.time() - newest < 5.0:
        time.sleep(1.5)
    return sizes() != before


@app.command()
def recover(path: RecordingPath, keys: NeededKeys, passphrase_file: PassphraseFile = None) -> None:
    """Sign a manifest for a recording that no writer ended, over every good record that is there.

    Changes no media file and may be stopped at any time. A server does this itself at its start; use it where
    there is only the directory. Refuses while the journal grows: a recording is signed once.
    """
    if _grows(path):
        _fail(f"{path} is being written: stop the recording instead")
    provider = _provider(keys, passphrase_file)
    data_key = _open_key(provider, path, "recover", "recorder recover")
    manifest = recover_recording(path, data_key, provider=provider.info(), signer=provider.signer())
    out.print(
        f"{manifest.recording}: {manifest.facts.get('state')}, {len(manifest.parts)} parts, "
        f"{len(manifest.segments)} segments, {manifest.facts.get('duration_ms')} ms"
    )


@app.command()
def export(
    path: RecordingPath,
    to: Annotated[Path, typer.Argument(metavar="OUT", help="New directory for the plain files.")],
    keys: NeededKeys,
    operator: Annotated[
        str, typer.Option("--operator", help="Who takes the files; sealed in the statement.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why, such as a case number; sealed likewise.")],
    file: Annotated[
        list[str] | None,
        typer.Option("--file", help="Only this file, such as composite.mp4; may be repeated."),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Write plain files out of a recording, for a person entitled to them.

    The only command that puts plain media on a disk. It is put on record first: a signed statement with
    operator and reason is added to the recording. Each file's plain text is compared with the signed SM3
    before it gets its name. Also written: private.json (names, metadata), the manifest and all statements.
    """
    provider = _provider(keys, passphrase_file)
    data_key = _open_key(provider, path, f"export: {reason}", operator)
    done = export_recording(
        path,
        to,
        data_key=data_key,
        signer=provider.signer(),
        operator=operator,
        reason=reason,
        names=file or None,
    )
    for written in done.files:
        out.print(str(written), markup=False, soft_wrap=True)
    out.print(f"statement {done.statement.number} of {path.name} records this export", soft_wrap=True)


@app.command("reindex")
def reindex_database(
    root: Annotated[Path, typer.Argument(metavar="DATA", help="The server's data directory.")],
    keys: Keys = None,
    database: Annotated[
        str | None, typer.Option("--database", help="SQLAlchemy URL; default: the server's own under DATA.")
    ] = None,
    index_key: Annotated[
        Path | None,
        typer.Option("--index-key", help="Key of sealed columns; default: DATA/secrets/index.key."),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Delete the index of recordings and write it again from what is on disk. Stop the server before.

    Recordings that cannot be read are left out and named (exit code 1); they stay on disk as they are.
    """
    provider = _provider(keys or root / "secrets" / "crypto", passphrase_file)
    key = FieldKey.open(index_key or root / "secrets" / "index.key")
    url = database or f"sqlite:///{(root / 'index.sqlite').absolute()}"
    with opened(url, key) as catalog:
        result = reindex(catalog, root, opener(provider, actor="recorder reindex"))
    out.print(f"{result.recordings} recordings indexed")
    for directory, why in result.refused.items():
        err.print(f"recorder: {directory} is not indexed: {why}", markup=False)
    if result.refused:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
