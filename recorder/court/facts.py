"""What a recording's verification report says, gathered from its signed and sealed pages: no words yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recorder.canonical import JSON
from recorder.gm.x509 import Certificate
from recorder.manifest import Manifest, read_manifest, read_sealed_part
from recorder.report import Report
from recorder.sealed import DataKey, FileSummary, SealedError, SealedReader, plain_name
from recorder.statements import Statement, StatementError, read_sealed, read_statements
from recorder.storage import files_directory

TIMELINE = "timeline.json"
CONTACT_SHEET = "contact-sheet.jpg"


@dataclass(frozen=True)
class Span:
    """A stretch of the recording's time, in ms from its start."""

    from_ms: int
    to_ms: int
    name: str


@dataclass(frozen=True)
class Party:
    """Who took part."""

    seat: str
    role: str
    name: str
    identity: str


@dataclass
class Facts:
    """Everything the report says of one recording."""

    manifest: Manifest
    statements: list[Statement]
    report: Report
    operator: str
    reason: str
    exported_at: str
    business_no: str = ""
    parties: list[Party] = field(default_factory=list)
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    private: dict[int, Mapping[str, JSON]] = field(default_factory=dict)
    """Opened sealed parts of statements, by number: who did it and why."""
    duration_ms: int = 0
    steps: list[Span] = field(default_factory=list)
    gaps: list[Span] = field(default_factory=list)
    pauses: list[Span] = field(default_factory=list)
    clock: Mapping[str, JSON] = field(default_factory=dict)
    contact_sheet: bytes | None = None
    certificates: list[Certificate] = field(default_factory=list)

    @property
    def files(self) -> list[FileSummary]:
        """All files that statements speak for, in order."""
        return [file for statement in self.statements for file in statement.files]

    @property
    def provider(self) -> Mapping[str, JSON]:
        """What the manifest says of the key provider."""
        value = self.manifest.page.fields.get("provider")
        return value if isinstance(value, Mapping) else {}

    def fact(self, name: str) -> str:
        """Give one of the manifest's public facts as text; empty if it has none."""
        value = self.manifest.facts.get(name)
        return "" if value is None else str(value)


def gather(
    directory: Path, data_key: DataKey, report: Report, *, operator: str, reason: str, exported_at: str
) -> Facts:
    """Read the facts of a recording; ``report`` is what verifying it found.

    Timeline and contact sheet are left out where they are missing or damaged: the report says that by its
    findings. Raise ManifestError, StatementError, SealedError for the pages themselves.
    """
    manifest = read_manifest(directory)
    private = read_sealed_part(directory, data_key)
    statements = read_statements(directory)
    facts = Facts(manifest, statements, report, operator, reason, exported_at)
    facts.business_no = str(private.get("business_no", ""))
    details = _object(private.get("details_json"))
    people = details.get("participants", private.get("participants"))
    facts.parties = [
        Party(*(str(one.get(name, "")) for name in ("seat", "role", "name", "identity")))
        for one in (people if isinstance(people, list) else [])
        if isinstance(one, Mapping)
    ]
    metadata = details.get("metadata")
    facts.metadata = metadata if isinstance(metadata, Mapping) else {}
    for statement in statements:
        if statement.sealed is not None:
            facts.private[statement.number] = _sealed_part(directory, statement, data_key)
    facts.certificates = certificates_of(manifest, statements)
    facts.contact_sheet = read_plain(directory, facts.files, CONTACT_SHEET, data_key)
    facts.duration_ms = int(facts.fact("duration_ms") or 0)
    facts.gaps = _spans(manifest.facts.get("gaps"), "reason")
    _add_timeline(facts, _object(read_plain(directory, facts.files, TIMELINE, data_key)))
    return facts


def certificates_of(manifest: Manifest, statements: list[Statement]) -> list[Certificate]:
    """List the certificates that signed the pages, the manifest's first, each once."""
    found = {manifest.page.certificate.fingerprint: manifest.page.certificate}
    for statement in statements:
        found.setdefault(statement.page.certificate.fingerprint, statement.page.certificate)
    return list(found.values())


def read_plain(directory: Path, files: list[FileSummary], name: str, data_key: DataKey) -> bytes | None:
    """Open a small signed file by its plain name; None if there is none, or it is damaged."""
    summary = next((file for file in files if plain_name(file.name) == name), None)
    if summary is None:
        return None
    try:
        with SealedReader(files_directory(directory) / summary.name, data_key) as reader:
            return b"".join(reader.chunks())
    except (SealedError, OSError):
        return None


def _sealed_part(directory: Path, statement: Statement, data_key: DataKey) -> Mapping[str, JSON]:
    try:
        return read_sealed(directory, statement, data_key)
    except (SealedError, StatementError, OSError, ValueError):
        return {}


def _add_timeline(facts: Facts, timeline: Mapping[str, Any]) -> None:
    facts.duration_ms = facts.duration_ms or int(timeline.get("duration_ms") or 0)
    facts.steps = _spans(timeline.get("steps"), "name", "code")
    facts.gaps = facts.gaps or _spans(timeline.get("gaps"), "reason")
    pauses = [pause for pause in timeline.get("pauses") or [] if isinstance(pause, list) and pause]
    facts.pauses = [Span(int(one[0]), int(one[-1]), "paused") for one in pauses]
    facts.pauses += [gap for gap in facts.gaps if gap.name == "paused" and not pauses]
    facts.gaps = [gap for gap in facts.gaps if gap.name != "paused"]
    clock = timeline.get("clock")
    facts.clock = clock if isinstance(clock, Mapping) else {}
    ends = [span.to_ms for span in (*facts.steps, *facts.gaps, *facts.pauses)]
    facts.duration_ms = max([facts.duration_ms, *ends])


def _spans(value: object, *names: str) -> list[Span]:
    spans = []
    for one in value if isinstance(value, list) else []:
        begin, end = one.get("from_ms"), one.get("to_ms")
        if isinstance(begin, int | str):
            name = next((str(one[name]) for name in names if one.get(name)), "")
            spans.append(Span(int(begin), int(end if end is not None else begin), name))
    return spans


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, str | bytes):
        return {}
    try:
        read = json.loads(value)
    except ValueError:
        return {}
    return read if isinstance(read, Mapping) else {}
