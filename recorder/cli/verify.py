"""``recorder verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from recorder.cli.base import (
    AsJson,
    Keys,
    PassphraseFile,
    app,
    err,
    file_provider,
    open_key,
    out,
    visible,
)
from recorder.cli.sites import KeepIn, Place, SiteFile, local
from recorder.gm.x509 import Certificate
from recorder.keys import KeyProblem
from recorder.report import Report, Verdict
from recorder.sealed import DataKey
from recorder.verify import verify as verify_recording


@app.command()
def verify(
    place: Place,
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
    site: SiteFile = None,
    keep_in: KeepIn = None,
    as_json: AsJson = False,
) -> None:
    """Check that nothing in a recording was changed, removed, reordered, cut off or added.

    Needs no key: certificates, signatures, the SM3 chain of every record, signed checkpoints and digests are
    enough. With --keys every chunk is opened as well. Each finding names file, record, byte range and, where
    signed checkpoints tell, the time of capture.

    Exit code 0 only if everything holds; 1 if anything is damaged; 3 if no damage was found, but the
    recording has no signed manifest yet (running, or left by a crash), so that its tail is not proven.

    With a URL the sealed bytes at that site are checked; they are fetched into a private temporary directory.
    """
    trusted = None
    if trust:
        trusted = [Certificate.from_pem(file.read_text("ascii")).fingerprint for file in trust]
    with local(place, site, keep_in) as path:
        data_key = _open_key_if_asked(keys, passphrase_file, path)
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
        return open_key(file_provider(keys, passphrase_file), path, "verify", "recorder verify")
    except KeyProblem as error:
        # A broken sidecar is a finding, not a reason to check nothing.
        err.print(f"recorder: goes on without the key: {error}", markup=False)
        return None


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
