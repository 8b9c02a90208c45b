"""``recorder audit``: verify and search the audit log, look for what it knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from recorder.audit.format import LogFile
from recorder.audit.proof import check_all
from recorder.audit.report import AuditReport
from recorder.audit.search import Wanted
from recorder.audit.search import search as search_log
from recorder.audit.verify import read_log
from recorder.cli.base import (
    AsJson,
    Keys,
    NeededKeys,
    PassphraseFile,
    app,
    err,
    fail,
    file_provider,
    out,
    visible,
)
from recorder.cli.reports import print_findings, print_verdict
from recorder.gm.x509 import Certificate
from recorder.keys import KeyProblem, read_sidecar
from recorder.report import Finding, Verdict
from recorder.sealed import DataKey
from recorder.timestamp import read_anchors

audit = typer.Typer(
    help="Check and search a server's audit log (DATA/audit), and look for what it knows of recordings.",
    no_args_is_help=True,
)
app.add_typer(audit, name="audit")

LogPath = Annotated[Path, typer.Argument(metavar="PATH", help="Directory of the audit log: DATA/audit.")]
Trust = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust", help="PEM certificate of a signer you trust, obtained another way; may be repeated."
    ),
]
_CODES = {Verdict.OK: 0, Verdict.BROKEN: 1, Verdict.UNPROVEN: 3}


@audit.command()
def verify(
    path: LogPath,
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    trust: Trust = None,
    kept: Annotated[
        list[Path] | None,
        typer.Option(
            "--kept",
            help="An anchor page kept elsewhere (as posted to audit.anchor_webhook); the log must hold it. "
            "May be repeated.",
        ),
    ] = None,
    tsa_trust: Annotated[
        Path | None,
        typer.Option("--tsa-trust", help="PEM file with the root certificates of time-stamp authorities."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a log's chain, signatures, the links from file to file and the order of its entries.

    Needs no key; with --keys every entry is opened as well. The end of the log itself is proven only up to
    its last checkpoint, and against removal of its newest files only by what was kept elsewhere: --kept.

    Exit code 0 if all holds, 1 if anything is damaged, 3 if its newest bytes are not signed yet.
    """
    key_of = _opener(keys, passphrase_file, "verify the audit log") if keys is not None else None
    pages = [file.read_bytes() for file in kept or ()]
    authorities = read_anchors(tsa_trust) if tsa_trust is not None else None
    report = read_log(
        path, key_of=key_of, trusted=trusted_in(trust), kept=pages, time_authorities=authorities
    )
    if as_json:
        out.print_json(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print(report, report.findings)
    raise typer.Exit(_CODES[report.verdict])


@audit.command()
def search(
    path: LogPath,
    keys: NeededKeys,
    passphrase_file: PassphraseFile = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Of this tenant.")] = "",
    type_: Annotated[
        str, typer.Option("--type", help="Of this type, or beginning so: 'audit.*', 'recording.*'.")
    ] = "",
    recording: Annotated[str, typer.Option("--recording", help="About this recording.")] = "",
    actor: Annotated[str, typer.Option("--actor", help="By this identity or key.")] = "",
    begin: Annotated[str, typer.Option("--from", help="From this time on: 2026-01-31 or RFC 3339.")] = "",
    end: Annotated[str, typer.Option("--to", help="Before this time.")] = "",
) -> None:
    """Print the entries that fit, one JSON object a line.

    Whatever does not open is named on standard error, and the exit code is then 1.
    """
    broken: list[LogFile] = []

    def damaged(file: LogFile, error: Exception) -> None:
        broken.append(file)
        err.print(f"recorder: {file.name}: {error}", markup=False)

    wanted = Wanted(tenant, type_, recording, actor, begin, end)
    key_of = _opener(keys, passphrase_file, "search the audit log")
    for entry in search_log(path, key_of, wanted, damaged=damaged):
        print(json.dumps(entry, ensure_ascii=False, sort_keys=True))
    raise typer.Exit(1 if broken else 0)


@audit.command()
def check(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Where the recordings lie: DATA/recordings.")],
    log: Annotated[Path, typer.Option("--audit", help="Directory of the audit log: DATA/audit.")],
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Look for every recording the log knows: whole recordings, manifests, statements and tails removed.

    What is there is held against the log, not read through: `recorder verify` does that. Exit codes as there.
    """
    if not root.is_dir():
        fail(f"{root} is no directory")
    report, missing = check_all(root, log, trusted=trusted_in(trust))
    verdict = Verdict.BROKEN if missing else report.verdict
    if as_json:
        found = [_json(one) for one in missing]
        whole = {**report.to_json(), "verdict": verdict.value, "ok": verdict == Verdict.OK, "missing": found}
        out.print_json(json.dumps(whole, ensure_ascii=False))
    else:
        _print(report, [*report.findings, *missing], verdict)
    raise typer.Exit(_CODES[verdict])


def trusted_in(trust: list[Path] | None) -> list[str] | None:
    """Return the fingerprints of certificates given as files; None if none were."""
    return [Certificate.from_pem(file.read_text("ascii")).fingerprint for file in trust] if trust else None


def _json(finding: Finding) -> dict[str, object]:
    return {**asdict(finding), "kind": finding.kind.value}


def _opener(keys: Path, passphrase_file: Path | None, purpose: str) -> Callable[[LogFile], DataKey]:
    provider = file_provider(keys, passphrase_file)

    def key_of(file: LogFile) -> DataKey:
        try:
            sidecar = read_sidecar(file.directory)
            return provider.unwrap_now(
                sidecar, recording_id=file.series, purpose=purpose, actor="recorder audit"
            )
        except KeyProblem as error:
            raise KeyProblem(f"{file.name}: {error}") from None

    return key_of


def _print(report: AuditReport, findings: list[Finding], verdict: Verdict | None = None) -> None:
    verdict = verdict or report.verdict
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row(
        "checked",
        f"{report.files} files, {report.records} records, {report.bytes:,} bytes, "
        f"{report.checkpoints} checkpoints",
    )
    facts.add_row(
        "holds", f"{report.entries} entries, {report.anchors} anchors, {len(report.timestamps)} time-stamps"
    )
    for state in sorted({str(one["state"]) for one in report.timestamps}):
        alike = [one for one in report.timestamps if one["state"] == state]
        facts.add_row(
            "time-stamps", f"{len(alike)} {state.replace('_', ' ')}, the last of {alike[-1]['time']}"
        )
    facts.add_row("knows", f"{len(report.recordings)} recordings")
    facts.add_row("opened", "every entry, with the key" if report.opened else "no (no key given)")
    for fingerprint, subject in report.signers.items():
        vouched = "named by you" if report.trusted else "the log's own: compare the fingerprint"
        facts.add_row("signed by", f"{visible(subject)}\n{fingerprint} ({vouched})")
    if report.expired:
        facts.add_row("expired", f"{report.expired} files were removed when their time had come")
    until = report.proven_until or "nothing"
    facts.add_row(
        "proven until", f"{until}; what came later, removed, would leave no trace in the log itself"
    )
    out.print(facts)
    print_findings(findings)
    print_verdict(verdict)
