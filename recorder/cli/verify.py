"""``recorder verify``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from recorder.cli.base import (
    AsJson,
    Keys,
    PassphraseFile,
    RecordingPath,
    app,
    err,
    file_provider,
    open_key,
    out,
    visible,
)
from recorder.gm.x509 import Certificate
from recorder.keys import KeyProblem
from recorder.plain import PlainReport, verify_plain
from recorder.report import Finding, Report, Verdict
from recorder.sealed import DataKey
from recorder.verify import verify as verify_recording


@app.command()
def verify(
    path: RecordingPath,
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    plain: Annotated[
        Path | None,
        typer.Option(
            "--plain",
            help="An exported plain file, such as composite.mp4. PATH is then an exported package (directory "
            "or zip) or a manifest.json with statements beside it; MORE are further pages.",
        ),
    ] = None,
    pages: Annotated[
        list[Path] | None, typer.Argument(metavar="[MORE]...", help="With --plain: further pages.")
    ] = None,
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

    With --plain FILE it answers without any key which signed page names just these bytes, and so which
    recording the file is of.

    Exit code 0 only if everything that should be there holds (also of a recording destroyed by rule); 1 if
    anything is damaged; 3 if no damage was found, but the recording has no signed manifest yet (running, or
    left by a crash), so that its tail is not proven.
    """
    trusted = None
    if trust:
        trusted = [Certificate.from_pem(file.read_text("ascii")).fingerprint for file in trust]
    if plain is not None:
        _plain(verify_plain(plain, [path, *(pages or [])], trusted=trusted), as_json)
    if pages:
        raise typer.BadParameter("one recording at a time; further pages go with --plain")
    data_key = _open_key_if_asked(keys, passphrase_file, path)
    report = verify_recording(path, data_key=data_key, trusted=trusted)
    if as_json:
        out.print_json(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print_report(report)
    raise typer.Exit(
        {Verdict.OK: 0, Verdict.DESTROYED: 0, Verdict.BROKEN: 1, Verdict.UNPROVEN: 3}[report.verdict]
    )


def _plain(report: PlainReport, as_json: bool) -> NoReturn:
    if as_json:
        out.print_json(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        facts = Table(show_header=False, box=None, pad_edge=False)
        facts.add_row("file", visible(report.file))
        facts.add_row("its SM3", report.sm3)
        facts.add_row("recording", visible(report.recording) or "unknown")
        for name, value in report.facts.items():
            facts.add_row(name.replace("_", " "), visible(str(value)))
        for naming in report.named_by:
            what = f"{naming.statement} " if naming.statement else ""
            facts.add_row("named by", visible(f"{naming.page} ({what}{naming.at})"))
            facts.add_row("as", visible(f"{naming.name}, {naming.kind}, {naming.media_type}"))
        _add_signers(facts, report)
        out.print(facts)
        _print_findings(report.findings)
        out.print("OK" if report.ok else "BROKEN", style="bold green" if report.ok else "bold red")
    raise typer.Exit(0 if report.ok else 1)


def _open_key_if_asked(keys: Path | None, passphrase_file: Path | None, path: Path) -> DataKey | None:
    if keys is None:
        return None
    try:
        return open_key(file_provider(keys, passphrase_file), path, "verify", "recorder verify")
    except KeyProblem as error:
        # A broken sidecar is a finding, not a reason to check nothing.
        err.print(f"recorder: goes on without the key: {error}", markup=False)
        return None


def _print_report(report: Report) -> None:
    style = {Verdict.OK: "bold green", Verdict.BROKEN: "bold red", Verdict.UNPROVEN: "bold yellow"}
    style[Verdict.DESTROYED] = "bold"
    words = {Verdict.OK: "OK", Verdict.BROKEN: "BROKEN", Verdict.UNPROVEN: "NOT PROVEN"}
    words[Verdict.DESTROYED] = "DESTROYED"
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row("recording", visible(report.recording) or "unknown")
    facts.add_row(
        "checked",
        f"{report.files} sealed files, {report.records} records, {report.bytes:,} bytes, "
        f"{report.checkpoints} checkpoints, {report.statements} statements",
    )
    facts.add_row("opened", "every chunk, with the key" if report.opened else "no (no key given)")
    _add_signers(facts, report)
    out.print(facts)
    _print_findings(report.findings)
    out.print(words[report.verdict], style=style[report.verdict])


def _add_signers(facts: Table, report: Report | PlainReport) -> None:
    for fingerprint, subject in report.signers.items():
        vouched = "named by you" if report.trusted else "the recording's own: compare the fingerprint"
        facts.add_row("signed by", f"{visible(subject)}\n{fingerprint} ({vouched})")
    if report.assurance:
        facts.add_row("assurance", visible(report.assurance))


def _print_findings(findings: Sequence[Finding]) -> None:
    if not findings:
        return
    table = Table("what", "file", "record", "bytes", "time", "why")
    for finding in findings:
        table.add_row(
            finding.kind.value,
            visible(finding.file),
            "" if finding.record is None else str(finding.record),
            "" if finding.begin is None else f"{finding.begin}–{finding.end}",
            finding.time,
            visible(finding.detail),
        )
    out.print(table)
