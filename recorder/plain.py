"""Tie an exported plain file to the signature, without any key.

Signed pages name the SM3 of the plain text of every file that can be exported. So whoever holds the manifest
and the statements can tell of any file which recording it is of, and that not a bit of it was changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from recorder.canonical import JSON, CanonicalError
from recorder.certificates import ChainError, Trust
from recorder.gm import selftest
from recorder.gm.sm3 import Sm3, named
from recorder.manifest import SEALED_PART, Manifest, parse_manifest
from recorder.pages import Pages, find_pages
from recorder.report import Finding, Kind
from recorder.sealed import FileSummary, plain_name
from recorder.signed import SignedError, SignedPage, digest_name
from recorder.signers import Signers
from recorder.statements import STATEMENTS, Statement, StatementError, parse_statement

_BLOCK = 1 << 20
_TIMES = ("state", "armed_at", "stopped_at", "duration_ms", "tenant", "room")


@dataclass(frozen=True)
class Naming:
    """A signed page that names the file."""

    page: str
    """``manifest.json`` or ``statements/NNNNNN.json``."""
    statement: str
    """The statement's kind: composite, derived …; empty for the manifest."""
    at: str
    """When the page was signed, RFC 3339."""
    name: str
    """The file's name as it was exported, such as ``composite.mp4``."""
    kind: str
    """original, archive or derived."""
    media_type: str
    plain_bytes: int


@dataclass
class PlainReport:
    """Which recording a plain file is of, and what does not hold."""

    file: str
    sm3: str
    bytes: int
    recording: str = ""
    facts: dict[str, JSON] = field(default_factory=dict)
    """State, times, tenant and room of the recording, as signed."""
    named_by: list[Naming] = field(default_factory=list)
    pages: int = 0
    signers: dict[str, str] = field(default_factory=dict)
    """Fingerprint to subject of the certificates whose signatures were accepted."""
    trusted: bool = False
    assurance: str = ""
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """A signed page names just these bytes, and all pages up to it hold."""
        return bool(self.named_by) and not self.findings

    def to_json(self) -> dict[str, JSON]:
        """Return the report as JSON, ``verdict`` and ``ok`` included."""
        value = asdict(self)
        value["findings"] = [{**asdict(finding), "kind": finding.kind.value} for finding in self.findings]
        return {"verdict": "ok" if self.ok else "broken", "ok": self.ok, **value}


def verify_plain(
    file: Path, places: Sequence[Path], *, trusted: Trust | Collection[str] | None = None
) -> PlainReport:
    """Look the plain ``file`` up in the signed pages found at ``places``.

    Checks every page's form and signature and the chain from the manifest over all statements. ``trusted``
    are authorities and signers (or fingerprints ``sm3:…`` of these alone); without them the manifest's signer
    is taken, and the report says so. What does not hold is in the report. Raise PagesError,
    FileNotFoundError, OSError.
    """
    selftest.require()
    pages = find_pages(places)
    digest, size = _digest(file)
    report = PlainReport(str(file), digest, size, trusted=trusted is not None)
    _Lookup(report, pages, Signers(trusted)).run()
    return report


def _digest(file: Path) -> tuple[str, int]:
    running, size = Sm3(), 0
    with file.open("rb") as source:
        while block := source.read(_BLOCK):
            running.update(block)
            size += len(block)
    return named(running.digest()), size


class _Lookup:
    def __init__(self, report: PlainReport, pages: Pages, signers: Signers) -> None:
        self._report = report
        self._pages = pages
        self._signers = signers

    def run(self) -> None:
        report = self._report
        manifest = self._manifest()
        statements = list(self._statements(manifest))
        report.pages = (manifest is not None) + len(statements)
        if manifest is not None:
            self._look(manifest.sealed, "manifest.json", "", str(manifest.page.fields.get("written_at")))
        for statement in statements:
            page = f"{STATEMENTS}/{statement.number:06d}.json"
            sealed = [statement.sealed] if statement.sealed is not None else []
            for summary in (*statement.files, *sealed):
                self._look(summary, page, statement.kind, statement.at)
        if not report.named_by:
            self._add(Kind.CHANGED, report.file, "no signed page names a file of these bytes", report.bytes)

    def _add(self, kind: Kind, file: str, detail: str, size: int) -> None:
        self._report.findings.append(Finding(kind, file, detail, 0, size))

    def _manifest(self) -> Manifest | None:
        page = self._pages.manifest
        try:
            manifest = parse_manifest(page.data)
        except (SignedError, CanonicalError) as error:
            self._add(Kind.CHANGED, page.name, str(error), len(page.data))
            return None
        provider = manifest.page.fields.get("provider")
        self._signers.learn(provider.get("chain") if isinstance(provider, dict) else None)
        if not self._accepted(manifest.page, page.name, len(page.data)):
            return None
        report = self._report
        report.recording = manifest.recording
        report.facts = {name: manifest.facts[name] for name in _TIMES if name in manifest.facts}
        report.assurance = str(provider.get("assurance", "")) if isinstance(provider, dict) else ""
        return manifest

    def _statements(self, manifest: Manifest | None) -> Iterator[Statement]:
        previous: str | None = digest_name(self._pages.manifest.data)
        expected = 1
        for number, page in sorted(self._pages.statements.items()):
            if number != expected:
                detail = f"statement {expected} is not there; the chain of pages has a hole"
                self._add(Kind.REMOVED, f"{STATEMENTS}/{expected:06d}.json", detail, 0)
                previous = None
            expected = number + 1
            try:
                statement = parse_statement(page.data, number=number, previous=previous)
            except StatementError as error:
                self._add(Kind.CHANGED, page.name, str(error), len(page.data))
                previous = None
                continue
            previous = digest_name(page.data)
            self._signers.learn_statement(statement)
            if manifest is not None and statement.page.fields.get("recording") != manifest.recording:
                self._add(Kind.CHANGED, page.name, "is about another recording", len(page.data))
            elif self._accepted(statement.page, page.name, len(page.data)):
                yield statement

    def _accepted(self, page: SignedPage, name: str, size: int) -> bool:
        try:
            self._signers.check(page, name)
        except ChainError as error:
            self._add(Kind.OTHER_SIGNER, name, f"its signer: {error}", size)
            return False
        self._report.signers[page.certificate.fingerprint] = page.certificate.subject
        return True

    def _look(self, summary: FileSummary, page: str, statement: str, at: str) -> None:
        report = self._report
        if not summary.plain_sm3 or (summary.plain_sm3, summary.plain_bytes) != (report.sm3, report.bytes):
            return
        name = "private part of the manifest" if summary.name == SEALED_PART else plain_name(summary.name)
        report.named_by.append(
            Naming(page, statement, at, name, summary.kind, summary.media_type, summary.plain_bytes)
        )
