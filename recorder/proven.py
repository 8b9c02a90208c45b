"""How far signed checkpoints prove a part that its writer did not end itself.

Recovery signs what lies there, and who holds the data key can seal anything. So the manifest says of each
recovered part where its last checkpoint is, and verification reports what has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from recorder.canonical import JSON
from recorder.checkpoint import Checkpoint
from recorder.clock import rfc3339
from recorder.gm.x509 import Certificate
from recorder.journal import PartSummary
from recorder.journal.summary import Proven
from recorder.keys import ProviderInfo
from recorder.placing import CheckedFile
from recorder.report import Finding, Kind, Report
from recorder.sealed import RecordInfo, RecordType, scan
from recorder.storage import segments_directory

TAIL_MS = 5000
"""A recovered part is proven if its last checkpoint, one every 2 s, is at the most so old at its end."""


def prove(directory: Path, part: PartSummary, own: ProviderInfo) -> PartSummary:
    """Return a recovered part with what checkpoints of our own keys, former ones included, prove of it.

    Raise OSError.
    """
    pems = (own.signing_certificate_pem, *own.former_signing_certificates)
    keys = [Certificate.from_pem(pem).public_key for pem in pems]
    bytes_behind, chunks_behind = 0, 0
    for segment in reversed(part.segments):
        checkpoints: list[tuple[RecordInfo, Checkpoint]] = []
        found = scan(segments_directory(directory) / segment.name, on_record=_gather(checkpoints))
        for record, checkpoint in reversed(checkpoints):
            message = checkpoint.signed_message()
            if any(key.verify(message, checkpoint.signature) for key in keys):
                behind = found.records[record.number + 1 :]
                chunks_behind += sum(one.type == RecordType.CHUNK for one in behind)
                ms = max(0, part.ended_ns - checkpoint.at_ns) // 1_000_000
                bytes_behind += found.size - record.end
                until = rfc3339(checkpoint.utc_ns)
                return replace(part, proven=Proven(until, ms, bytes_behind, chunks_behind == 0))
        bytes_behind += found.size
        chunks_behind += found.chunks
    return replace(part, proven=Proven("", None, bytes_behind, False))


def _gather(found: list[tuple[RecordInfo, Checkpoint]]) -> Callable[[RecordInfo], None]:
    def look(record: RecordInfo) -> None:
        if record.type != RecordType.CHECKPOINT:
            return
        try:
            checkpoint = Checkpoint.from_bytes(record.payload)
        except ValueError:
            return  # verification says so
        if checkpoint.proves(record.head_before):
            found.append((record, checkpoint))

    return look


def recovered_tail(
    part: Mapping[str, JSON], segments: Sequence[CheckedFile], report: Report
) -> list[Finding]:
    """Say what of a recovered part no checkpoint proves, if that is more than a crash leaves.

    The manifest says how long the tail is; that there is a checkpoint was seen here.
    """
    proven = part.get("proven")
    if not isinstance(proven, Mapping) or not segments:
        return []
    behind = proven.get("ms_behind")
    if isinstance(behind, int) and any(one.checkpoints for one in segments):
        report.unproven_tail_ms = max(report.unproven_tail_ms, behind)
        if behind <= TAIL_MS:
            return []
    return unproven_tail(segments)


def unproven_tail(segments: Sequence[CheckedFile]) -> list[Finding]:
    """Name what follows a part's last signed checkpoint. What precedes it is proven by the chain."""
    found: list[Finding] = []
    for checked in reversed(segments):
        size = checked.scan.size
        if checked.proven_bytes < size and not checked.findings:
            until = checked.proven_until
            tail = f"; {checked.scan.torn_bytes} of them a torn record" if checked.scan.torn_bytes else ""
            after = f"after {until} (see --audit)" if until else "at all"
            unsigned = f"the last {size - checked.proven_bytes} bytes are chained but not signed{tail}"
            detail = f"the tail is not provable {after}: {unsigned}"
            time = f"{until}/" if until else ""
            found.append(Finding(Kind.UNPROVEN, checked.name, detail, checked.proven_bytes, size, None, time))
        if checked.checkpoints:
            break
    return found
