"""Hold recordings against the audit log: what a recording alone cannot show.

A running or crashed recording cut back to an earlier checkpoint, also if it was recovered and signed after
that; another manifest than the one that was signed at stop; a statement removed from the end; a whole
recording removed.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from recorder.audit.anchors import Anchored, Item
from recorder.audit.format import integer
from recorder.audit.report import AuditReport
from recorder.audit.verify import read_log
from recorder.checkpoint import Checkpoint
from recorder.gm.sm3 import parse_named
from recorder.manifest import MANIFEST, ManifestError, read_manifest
from recorder.report import Finding, Kind, Report
from recorder.sealed import RecordType, SealedError
from recorder.sealed.source import RecordSource
from recorder.signed import SignedError, digest_name, read_page
from recorder.statements import STATEMENTS, list_statements
from recorder.storage import segment_path

_ID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$")
AUDIT_LOG = "audit log"


def compare(
    report: Report, path: Path, audit: Path, *, trusted: Collection[str] | None = None
) -> AuditReport:
    """Add to a recording's report what the audit log in ``audit`` knows better; return the log's own.

    Only the log's files since the recording's beginning are read. What does not hold in the log itself, or is
    not signed, becomes findings too: what such a log does not say proves nothing.
    """
    log = read_log(audit, trusted=trusted, since_ns=_began_ns(report.recording))
    for finding in log.findings:
        if finding.kind != Kind.LEFTOVER:
            report.findings.append(replace(finding, file=f"{AUDIT_LOG}: {finding.file}"))
    known = log.recordings.get(report.recording)
    if known is None:
        detail = "it does not know this recording: not of this server, or older than its log"
        report.findings.append(Finding(Kind.UNPROVEN, AUDIT_LOG, detail))
        return log
    if trusted is None and not set(log.signers) & set(report.signers):
        detail = "is signed by other certificates than the recording: compare their fingerprints"
        report.findings.append(Finding(Kind.UNPROVEN, AUDIT_LOG, detail))
    said = {(finding.kind, finding.file) for finding in report.findings}
    report.findings += [one for one in check(path, known) if (one.kind, one.file) not in said]
    return log


def check_all(
    root: Path, audit: Path, *, trusted: Collection[str] | None = None
) -> tuple[AuditReport, list[Finding]]:
    """Look for every recording the log knows in the directories below ``root``; return what is missing.

    Findings name the recording, then its file. The recordings' own bytes are not read: that is
    ``recorder verify``.
    """
    log = read_log(audit, trusted=trusted)
    present = {path.name: path for path in find_recordings(root)}
    findings: list[Finding] = []
    for recording, known in sorted(log.recordings.items()):
        path = present.get(recording)
        if path is None and known.failed and not known.begun:
            continue  # it could not even be started
        if path is None:
            findings.append(Finding(Kind.REMOVED, recording, _removed(known)))
            continue
        findings += [replace(one, file=f"{recording}/{one.file}") for one in check(path, known)]
    return log, findings


def find_recordings(root: Path) -> Iterable[Path]:
    """Yield the directories below ``root`` that bear a recording's id and hold something."""
    if _ID.match(root.resolve().name):
        yield root
        return
    for path in root.rglob("*-*-7*-*-*"):
        if _ID.match(path.name) and path.is_dir() and any(path.iterdir()):
            yield path


def _removed(known: Anchored) -> str:
    facts = [f"began {known.begun}"] if known.begun else []
    facts += [f"running until {known.last_at} at least"] if known.last_at and not known.manifest else []
    facts += [f"manifest {known.manifest}"] if known.manifest else []
    facts += [f"{len(known.statements)} statements"] if known.statements else []
    facts += [f"failed with {known.failed}"] if known.failed else []
    return f"the whole recording is missing ({', '.join(facts)})"


def check(path: Path, known: Anchored) -> list[Finding]:
    """Hold one recording's directory against what the log says of it."""
    return [*_manifest(path, known), *_statements(path, known), *_heads(path, known)]


def _manifest(path: Path, known: Anchored) -> list[Finding]:
    if not known.manifest:
        return []
    try:
        digest = digest_name(read_page(path / MANIFEST))
    except FileNotFoundError:
        return [Finding(Kind.REMOVED, MANIFEST, f"the log names {known.manifest}")]
    except SignedError as error:
        return [Finding(Kind.CHANGED, MANIFEST, str(error))]
    if digest != known.manifest:
        detail = f"is another than the one signed at its stop ({known.manifest}): of another attempt"
        return [Finding(Kind.CHANGED, MANIFEST, detail, 0, (path / MANIFEST).stat().st_size)]
    return []


def _statements(path: Path, known: Anchored) -> list[Finding]:
    present = dict(list_statements(path))
    findings = []
    for number, digest in sorted(known.statements.items()):
        name = f"{STATEMENTS}/{number:06d}.json"
        if number not in present:
            findings.append(Finding(Kind.REMOVED, name, f"statement {number} ({digest}) is missing"))
            continue
        try:
            found = digest_name(read_page(present[number]))
        except SignedError as error:
            findings.append(Finding(Kind.CHANGED, name, str(error)))
            continue
        if found != digest:
            detail = f"is another than statement {number} was ({digest})"
            findings.append(Finding(Kind.CHANGED, name, detail, 0, present[number].stat().st_size))
    return findings


def _heads(path: Path, known: Anchored) -> list[Finding]:
    if not known.heads:
        return []
    signed = _signed_segments(path)
    return [finding for item in known.heads.values() if (finding := _head(path, item, signed)) is not None]


def _signed_segments(path: Path) -> dict[str, int]:
    """Return name and size of the segments that the manifest speaks for."""
    try:
        return {one.name: one.bytes for one in read_manifest(path).segments}
    except (ManifestError, FileNotFoundError):
        return {}


def _head(path: Path, item: Item, signed: Mapping[str, int]) -> Finding | None:
    """Look whether a journal still holds the checkpoint the log saw.

    A segment that is not here but in the manifest may have gone to another site, or been destroyed by a
    statement: that is for `recorder verify` to say.
    """
    part, index, record, offset = (integer(item, name) for name in ("part", "index", "record", "offset"))
    segment = segment_path(path, part, index)
    name, at = f"segments/{segment.name}", str(item.get("at", ""))
    try:
        source = RecordSource(segment)
    except FileNotFoundError:
        if signed.get(segment.name, 0) > offset:
            return None
        detail = f"was there when the log saw it: {offset} bytes, record {record}"
        return Finding(Kind.REMOVED, name, detail, 0, offset, record, f"/{at}")
    try:
        size = source.size()
        try:
            found = source.record(offset) if size > offset else None
        except SealedError as error:
            return Finding(Kind.CHANGED, name, error.detail, offset, size, record, f"{at}/")
        if found is None:
            detail = f"was cut back: it had {offset} bytes and a checkpoint (record {record}) at {at}"
            return Finding(Kind.TRUNCATED, name, detail, min(size, offset), offset, record, f"/{at}")
        try:
            holds = found.type == RecordType.CHECKPOINT and Checkpoint.from_bytes(bytes(found.body)).proves(
                parse_named(str(item["head"]))
            )
        except ValueError:
            holds = False
        if not holds:
            detail = (
                f"is another than the log saw at {at}: its checkpoint (record {record}) is of other bytes"
            )
            return Finding(Kind.CHANGED, name, detail, 0, offset, record, f"/{at}")
        return None
    finally:
        source.close()


def _began_ns(recording: str) -> int | None:
    """Return when a recording began, from its id (a UUIDv7 holds its time); None if it says nothing."""
    return (uuid.UUID(recording).int >> 80) * 1_000_000 if _ID.match(recording) else None
