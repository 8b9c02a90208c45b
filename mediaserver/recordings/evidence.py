"""What the control process asks of ``recorder``: keys, the capture manifest, statements. Blocking parts in
threads.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recorder.atomic import sync_directory
from recorder.canonical import CanonicalError
from recorder.catalog import Entry
from recorder.gm.x509 import Certificate
from recorder.journal import JournalError, PartSummary, recover
from recorder.keys import (
    SIDECAR,
    SIDECAR_TYPE,
    CryptoProvider,
    KeyProblem,
    KeysUnavailable,
    SealedOnly,
    read_sidecar,
    write_sidecar,
)
from recorder.manifest import MANIFEST, MANIFEST_TYPE, ManifestError, read_manifest, write_manifest
from recorder.proven import prove
from recorder.reindex import facts_of, private_of, template_text
from recorder.sealed import DataKey, FileSummary, SealedError
from recorder.signed import SignedError, open_page
from recorder.statements import (
    Statement,
    StatementError,
    append_statement,
    list_statements,
    read_statements,
)
from recorder.storage import list_segments


class EvidenceProblem(Exception):
    """The recording's keys, journal or signed pages do not let the work be done; says which and why."""


class WrongKey(EvidenceProblem):
    """The sidecar holds another key than the recording began with: no later try helps."""


_PROBLEMS = (KeyProblem, ManifestError, StatementError, SealedError, JournalError, CanonicalError)


async def new_key(provider: CryptoProvider, directory: Path, recording: str, suite: int) -> DataKey:
    """Make a recording's directory, data key and signed sidecar; raises KeyProblem, OSError."""
    key, wrap = await provider.new_data_key(recording, suite)

    def write() -> None:
        directory.mkdir(mode=0o700, parents=True)
        chain = provider.info().chain_pem
        write_sidecar(directory, recording, key.key_id, [wrap], provider.signer(), suite=suite, chain=chain)
        # The names of all folders above it, up to the data directory: tenant, year, month and day may be new.
        for above in directory.parents[:6]:
            sync_directory(above)

    await asyncio.to_thread(write)
    return key


async def unwrap(
    provider: CryptoProvider, directory: Path, entry: Entry, *, purpose: str, actor: str
) -> DataKey:
    """Open a recording's data key; raises EvidenceProblem, KeysUnavailable, SealedOnly, OSError.

    It must be the one the recording began with: anyone can wrap another for our certificate, and read what we
    then seal with it.
    """
    try:
        sidecar = await asyncio.to_thread(read_sidecar, directory)
        key = await provider.unwrap(sidecar, recording_id=entry.id, purpose=purpose, actor=actor)
    except (KeysUnavailable, SealedOnly):
        raise
    except KeyProblem as error:
        raise EvidenceProblem(str(error)) from error
    if key.key_id != entry.details.get("key_id", key.key_id):
        raise WrongKey(f"{directory / SIDECAR} holds another key than recording {entry.id} began with")
    return key


def own_signers(provider: CryptoProvider, directory: Path) -> set[str]:
    """Give the fingerprints of our certificates that a recording may be signed with. Blocks.

    Ours is today's certificate, those of keys it replaced, and any other over the same keys (before an
    authority's it was self-signed).
    """
    accepted = {certificate.fingerprint for certificate in _own(provider)}
    for name, page_type in ((MANIFEST, MANIFEST_TYPE), (SIDECAR, SIDECAR_TYPE)):
        try:
            page = open_page((directory / name).read_bytes(), page_type=page_type)
        except (OSError, SignedError):
            continue  # verification says what is wrong with it
        if _is_ours(provider, page.certificate):
            accepted.add(page.certificate.fingerprint)
    return accepted


def _own(provider: CryptoProvider) -> list[Certificate]:
    info = provider.info()
    pems = (info.signing_certificate_pem, *info.former_signing_certificates)
    return [Certificate.from_pem(pem) for pem in pems]


def own_points(provider: CryptoProvider) -> set[bytes]:
    """Give the public points of our signing keys, those replaced included."""
    return {own.public_key.point for own in _own(provider)}


def _is_ours(provider: CryptoProvider, certificate: Certificate) -> bool:
    return certificate.public_key.point in own_points(provider)


async def capture(
    provider: CryptoProvider,
    directory: Path,
    key: DataKey,
    entry: Entry,
    known: dict[int, PartSummary],
    *,
    lost: bool,
) -> Entry:
    """Sign the capture manifest; returns the ended entry. Raises EvidenceProblem, OSError, and KeyProblem
    where it cannot be signed.

    ``known`` are the summaries of parts that ended on purpose; the others are read from what their writers
    left. Run again after a death between manifest and index, it takes the manifest that is there.
    """
    try:
        return await asyncio.to_thread(_capture, provider, directory, key, entry, known, lost)
    except KeyProblem:  # no signature: that of the data key is here
        raise
    except _PROBLEMS as error:
        raise EvidenceProblem(str(error)) from error


def _capture(
    provider: CryptoProvider,
    directory: Path,
    key: DataKey,
    entry: Entry,
    known: dict[int, PartSummary],
    lost: bool,
) -> Entry:
    numbers = {name.part for name, _ in list_segments(directory)} | set(known)
    if numbers - set(known):
        left = {
            summary.part: prove(directory, summary, provider.info()) for summary in recover(directory, key)
        }
        known = {**left, **known}
    parts = [known[number] for number in sorted(numbers) if number in known and known[number].records]
    if not parts:
        raise EvidenceProblem(f"{directory} has no record of any part")
    ended = _ended(entry, parts, lost)
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory)
        if not _is_ours(provider, manifest.page.certificate):
            raise ManifestError(
                f"{directory / MANIFEST} is there, but was signed by another than this server"
            )
        facts = manifest.facts
        if isinstance(facts["stopped_ns"], str):
            ended = replace(ended, stopped_ns=int(facts["stopped_ns"]), state=str(facts["state"]))
        return ended
    write_manifest(
        directory,
        entry.id,
        facts=facts_of(ended),
        sealed=private_of(ended),
        template=template_text(entry.details["template"]),
        parts=parts,
        data_key=key,
        provider=provider.info(),
        signer=provider.signer(),
    )
    return ended


def _ended(entry: Entry, parts: Sequence[PartSummary], lost: bool) -> Entry:
    """Give the entry as it is after its end: state, times on the server's clock, gaps."""
    details = dict(entry.details)
    armed_mono = int(details["armed_mono_ns"])
    if not armed_mono:  # died between the first record and the answer
        armed_mono = parts[0].began_ns
        details["armed_mono_ns"] = armed_mono
    armed = entry.armed_ns if entry.armed_ns is not None else entry.created_ns
    details["gaps"] = sorted(
        [*details.get("gaps", []), *_gaps(parts, armed_mono)],
        key=lambda gap: (gap["from_ms"], gap["to_ms"]),
    )
    details["losses"] = []
    length_ns = max(0, parts[-1].ended_ns - armed_mono)
    return replace(
        entry,
        state="recovered" if lost or not parts[-1].proven_end else "sealed",
        part=parts[-1].part,
        worker=None,
        armed_ns=armed,
        stopped_ns=armed + length_ns,
        details=details,
    )


def _gaps(parts: Sequence[PartSummary], armed_ns: int) -> list[dict[str, Any]]:
    """List what is missing: the time between parts, and packets that were received and could not be kept."""

    def milliseconds(at_ns: int) -> int:
        return max(0, (at_ns - armed_ns) // 1_000_000)

    gaps: list[dict[str, Any]] = [
        {
            "from_ms": milliseconds(before.ended_ns),
            "to_ms": milliseconds(after.began_ns),
            "reason": "worker_lost" if not before.ended else "part_ended",
            "track": None,
        }
        for before, after in itertools.pairwise(parts)
    ]
    gaps += [
        {
            "from_ms": milliseconds(gap.from_ns),
            "to_ms": milliseconds(gap.to_ns),
            "reason": gap.reason,
            "track": gap.track,
        }
        for part in parts
        for gap in part.gaps
    ]
    return gaps


@dataclass(frozen=True)
class Made:
    """A file the compositor made."""

    summary: FileSummary
    duration_ms: int


def state_files(
    provider: CryptoProvider, directory: Path, made: Sequence[Made], facts: dict[str, Any]
) -> None:
    """Sign statements for what was composed: one for the archive, one for the derived files. Blocks.

    What a statement speaks for already is not stated again. Raises EvidenceProblem, OSError, and KeyProblem
    where it cannot be signed.
    """
    try:
        stated = {file.file_id for one in _our_statements(provider, directory) for file in one.files}
        for kind, statement in (("archive", "composite"), ("derived", "derived")):
            files = [one for one in made if one.summary.kind == kind and one.summary.file_id not in stated]
            if files:
                body = {
                    **facts,
                    "files": [one.summary.to_json() for one in files],
                    "durations_ms": {one.summary.name: one.duration_ms for one in files},
                }
                append_statement(directory, statement, body, provider.signer())
    except KeyProblem:
        raise
    except _PROBLEMS as error:
        raise EvidenceProblem(str(error)) from error


def stated_files(provider: CryptoProvider, directory: Path) -> set[str]:
    """Give the names on disk of the files that statements speak for. Raises EvidenceProblem."""
    try:
        return {file.name for one in _our_statements(provider, directory) for file in one.files}
    except _PROBLEMS as error:
        raise EvidenceProblem(str(error)) from error


def our_statements(provider: CryptoProvider, directory: Path) -> list[Statement]:
    """Read the statements. Blocks. Raises EvidenceProblem, also for a stranger's among them."""
    try:
        return _our_statements(provider, directory)
    except _PROBLEMS as error:
        raise EvidenceProblem(str(error)) from error


def _our_statements(provider: CryptoProvider, directory: Path) -> list[Statement]:
    """Read the statements; a stranger's among them is not built upon."""
    statements = read_statements(directory)
    for one in statements:
        if not _is_ours(provider, one.page.certificate):
            raise StatementError(f"statement {one.number:06d} was signed by {one.page.certificate.subject}")
    return statements


def statement_pages(directory: Path) -> list[Any]:
    """Give the signed statements as they are on disk, first to last."""
    return [json.loads(path.read_bytes()) for _, path in list_statements(directory)]
