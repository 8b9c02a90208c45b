"""Give a recording that no writer ended its signed manifest, from what lies in its directory alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from recorder.catalog import Entry
from recorder.journal import PartSummary, recover
from recorder.keys import ProviderInfo
from recorder.manifest import MANIFEST, Manifest, write_manifest
from recorder.proven import prove
from recorder.reindex import facts_of, private_of, read_entry, template_text
from recorder.sealed import DataKey
from recorder.signed import Signer
from recorder.statements import list_statements


class RecoveryError(Exception):
    """There is nothing to recover: ended already, or not one good record; says which."""


def recover_recording(
    directory: Path, data_key: DataKey, *, provider: ProviderInfo, signer: Signer
) -> Manifest:
    """Sign a capture manifest over every good record that is there; no media file is changed.

    The state is ``recovered`` unless the last part ended on purpose, by a record that a checkpoint of the
    provider's keys covers; how far checkpoints prove each part is in its ``proven``. What a dead writer left
    torn is in the parts' digests as it lies there. Must not run while a writer is at work: the server does
    this itself at its start. Raise RecoveryError, JournalError, SealedError.
    """
    if (directory / MANIFEST).exists():
        raise RecoveryError(f"{directory} was ended and signed already")
    if list_statements(directory):
        raise RecoveryError(
            f"{directory} was ended and signed; its {MANIFEST} was removed, nothing can replace it"
        )
    parts = [prove(directory, part, provider) for part in recover(directory, data_key) if part.records]
    if not parts:
        raise RecoveryError(f"{directory} has not one good record")
    try:
        entry = _ended(read_entry(directory.parent, directory, data_key), parts, provider)
    except KeyError as error:
        raise RecoveryError(f"{directory}: its first record does not say {error}") from None
    return write_manifest(
        directory,
        entry.id,
        facts=facts_of(entry),
        sealed=private_of(entry),
        template=template_text(entry.details["template"]),
        parts=parts,
        data_key=data_key,
        provider=provider,
        signer=signer,
    )


def _ended(entry: Entry, parts: Sequence[PartSummary], provider: ProviderInfo) -> Entry:
    armed_mono_ns = int(entry.details["armed_mono_ns"]) or parts[0].began_ns
    armed_ns = entry.armed_ns or entry.created_ns
    clocks = [pair for part in parts for pair in part.clocks]
    if clocks:
        # UTC of the start, by the pair of both times nearest to it.
        armed_ns = clocks[0].utc_ns - (clocks[0].at_ns - armed_mono_ns)
    details = {**entry.details, "gaps": _gaps(parts, armed_mono_ns), "armed_mono_ns": armed_mono_ns}
    return replace(
        entry,
        state="sealed" if parts[-1].final and parts[-1].proven_end else "recovered",
        part=parts[-1].part,
        assurance=provider.assurance,
        armed_ns=armed_ns,
        stopped_ns=armed_ns + max(0, parts[-1].ended_ns - armed_mono_ns),
        details=details,
    )


def _gaps(parts: Sequence[PartSummary], armed_ns: int) -> list[dict[str, object]]:
    """List the time between parts, and packets received that could not be kept; ms since the start."""
    spans: list[tuple[int, int, str, int | None]] = [
        (before.ended_ns, after.began_ns, "part_ended" if before.ended else "worker_lost", None)
        for before, after in pairwise(parts)
    ]
    spans += [(gap.from_ns, gap.to_ns, gap.reason, gap.track) for part in parts for gap in part.gaps]
    return [
        {
            "from_ms": max(0, (begin - armed_ns) // 1_000_000),
            "to_ms": max(0, (end - armed_ns) // 1_000_000),
            "reason": reason,
            "track": track,
        }
        for begin, end, reason, track in sorted(spans, key=lambda span: span[:2])
    ]
