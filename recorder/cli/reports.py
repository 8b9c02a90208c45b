"""Print what verification found, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from recorder.canonical import JSON
from recorder.cli.base import out, visible
from recorder.plain import PlainReport
from recorder.report import Finding, Report, Verdict

_WORDS = {
    Verdict.OK: ("OK", "bold green"),
    Verdict.DESTROYED: ("DESTROYED", "bold"),
    Verdict.UNPROVEN: ("NOT PROVEN", "bold yellow"),
    Verdict.BROKEN: ("BROKEN", "bold red"),
}


def print_report(report: Report) -> None:
    """Print the report on one recording."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row("recording", visible(report.recording) or "unknown")
    facts.add_row(
        "checked",
        f"{report.files} sealed files, {report.records} records, {report.bytes:,} bytes, "
        f"{report.checkpoints} checkpoints, {report.statements} statements",
    )
    facts.add_row("opened", "every chunk, with the key" if report.opened else "no (no key given)")
    if report.second_opinion is not None:
        facts.add_row("checked twice", _twice(report.second_opinion))
    _add_signers(facts, report)
    _add_attested(facts, report)
    out.print(facts)
    print_findings(report.findings)
    print_verdict(report.verdict)


def print_plain(report: PlainReport) -> None:
    """Print which recording a plain file is of."""
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
    print_findings(report.findings)
    out.print("OK" if report.ok else "BROKEN", style="bold green" if report.ok else "bold red")


def print_verdict(verdict: Verdict) -> None:
    """Print the verdict in one word."""
    word, style = _WORDS[verdict]
    out.print(word, style=style)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print findings as a table; nothing where there are none."""
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


def _twice(opinion: dict[str, JSON]) -> str:
    """Say what the second opinion is of, and of what it is not."""
    return (
        f"by {opinion['by']}: signatures of {opinion['pages']} of {opinion['pages_of']} pages and of "
        f"{opinion['checkpoints']} of {opinion['checkpoints_of']} checkpoints, SM3 of {opinion['files']} of "
        f"{opinion['files_of']} files ({opinion['bytes']:,} of {opinion['bytes_of']:,} bytes)"
    )


def _add_signers(facts: Table, report: Report | PlainReport) -> None:
    for fingerprint, subject in report.signers.items():
        vouched = "named by you" if report.trusted else "the recording's own: compare the fingerprint"
        facts.add_row("signed by", f"{visible(subject)}\n{fingerprint} ({vouched})")
    if report.assurance:
        facts.add_row("assurance", visible(report.assurance))


def _add_attested(facts: Table, report: Report) -> None:
    """Say what revocation lists and time-stamp authorities say."""
    for status in report.certificates:
        what = f"{status['state']} as of {status['as_of']}" if status["as_of"] else "not stated"
        detail = f" ({status['detail']})" if status["detail"] else ""
        facts.add_row("status", f"{visible(str(status['subject']))}\n{visible(what + detail)}")
    for token in report.timestamps:
        said = f"{token['time'] or 'unreadable'} by {token['authority'] or 'unknown'}"
        state = str(token["state"]).replace("_", " ")
        detail = f": {token['detail']}" if token["detail"] else ""
        facts.add_row(str(token["kind"]), f"{visible(said)}\n{state}{visible(detail)}")
