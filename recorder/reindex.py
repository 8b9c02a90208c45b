"""Between the index and the evidence: what the manifest says of a recording, and the index rebuilt from it.

``facts_of`` and ``private_of`` are what a capture manifest states of an index entry, in public and sealed;
``read_entry`` is their inverse, so that the database can be deleted and written again from the recordings.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recorder.canonical import CanonicalError
from recorder.catalog import Catalog, Entry, FileEntry
from recorder.clock import rfc3339
from recorder.custody import read_custody
from recorder.elsewhere import names_at_sites
from recorder.journal import JournalError, JournalReader
from recorder.keys import SIDECAR, CryptoProvider, KeyProblem, KeysUnavailable, own_sidecar
from recorder.manifest import MANIFEST, ManifestError, read_manifest, read_sealed_part
from recorder.records import SessionRecord
from recorder.sealed import DataKey, SealedError, plain_name
from recorder.statements import StatementError, read_statements
from recorder.storage import list_segments

_log = logging.getLogger(__name__)
KEYS_TRIES, KEYS_AGAIN_S = 20, 3.0

FACTS = ("tenant", "room", "mode", "state", "attempt", "supersedes", "assurance", "failure", "part")
PRIVATE_DETAILS = ("metadata", "participants", "actor", "reason")
OpenKey = Callable[[Path], DataKey | None]


def facts_of(entry: Entry) -> dict[str, object]:
    """Give the manifest's public facts of an entry. They name nobody and hold no floats."""
    facts: dict[str, object] = {name: getattr(entry, name) for name in FACTS}
    for name in ("created_ns", "armed_ns", "stopped_ns"):
        value = getattr(entry, name)
        facts[name] = None if value is None else str(value)
        facts[f"{name.removesuffix('_ns')}_at"] = None if value is None else rfc3339(value)
    if entry.armed_ns is not None and entry.stopped_ns is not None:
        facts["duration_ms"] = (entry.stopped_ns - entry.armed_ns) // 1_000_000
    facts["gaps"] = entry.details.get("gaps", [])
    facts["boot_id"] = entry.details.get("boot_id", "")
    facts["armed_mono_ns"] = str(entry.details.get("armed_mono_ns", 0))
    facts["composing"] = entry.composing["state"] != "none"
    return facts


def private_of(entry: Entry) -> dict[str, object]:
    """Give what is sealed beside the manifest: what may name people. Free JSON is kept as text, so that its
    numbers come back as they were (signed pages hold no floats).
    """
    details = {name: entry.details.get(name) for name in PRIVATE_DETAILS}
    return {
        # Once more here, where no one without the data key can write: whose recording it is.
        "recording": entry.id,
        "tenant": entry.tenant,
        "business_no": entry.business_no,
        "details_json": json.dumps(details, ensure_ascii=False, sort_keys=True),
    }


def template_text(template: Mapping[str, object]) -> dict[str, object]:
    """Give the frozen template as the manifest keeps it: its JSON text."""
    return {"json": json.dumps(template, ensure_ascii=False, sort_keys=True)}


def files_of(directory: Path) -> tuple[FileEntry, ...]:
    """List the fetchable files that the signed statements speak for; the first of a name holds.

    They lie here, or at the recording's sites alone. Raises StatementError where the chain of statements is
    broken.
    """
    found: dict[str, FileEntry] = {}
    elsewhere = names_at_sites(directory)
    for statement in read_statements(directory):
        durations = statement.body.get("durations_ms")
        for summary in statement.files:
            name = plain_name(summary.name)
            length = durations.get(summary.name) if isinstance(durations, Mapping) else None
            entry = FileEntry(
                name=name,
                kind=summary.kind,
                media_type=summary.media_type,
                path=f"files/{summary.name}",
                bytes=summary.bytes,
                plain_bytes=summary.plain_bytes,
                sm3=summary.sm3,
                plain_sm3=summary.plain_sm3,
                duration_ms=int(length) if isinstance(length, int | str) else None,
            )
            if name not in found and (entry.path in elsewhere or (directory / entry.path).exists()):
                found[name] = entry
    return tuple(found[name] for name in sorted(found))


def read_entry(root: Path, directory: Path, data_key: DataKey) -> Entry:
    """Read an index entry from a recording's directory below the data directory ``root``.

    Without a manifest the entry is that of a running recording, from its journal; who finds no writer for it
    recovers it. Raises ManifestError, StatementError, SealedError, JournalError, KeyError, ValueError.
    """
    place = str(directory.resolve().relative_to(root.resolve()))
    if not (directory / MANIFEST).exists():
        return _running_entry(directory, place, data_key)
    manifest = read_manifest(directory)
    facts = manifest.facts
    private = read_sealed_part(directory, data_key)
    whose = {"recording": manifest.recording, "tenant": facts["tenant"]}
    if {name: private.get(name, value) for name, value in whose.items()} != whose:
        raise ManifestError(
            f"{directory / MANIFEST} gives the recording to {whose}, its sealed part does not"
        )
    details: dict[str, Any] = json.loads(str(private["details_json"]))
    template = private.get("template")
    details["template"] = json.loads(str(template["json"])) if isinstance(template, Mapping) else {}
    details["gaps"] = facts.get("gaps", [])
    details["losses"] = []
    details["key_id"] = manifest.key_id
    details["boot_id"] = facts.get("boot_id", "")
    details["armed_mono_ns"] = int(str(facts.get("armed_mono_ns", 0)))
    files = files_of(directory)
    state = "done" if files else ("waiting" if facts.get("composing") else "none")
    columns: dict[str, Any] = {name: facts[name] for name in FACTS}
    for name in ("created_ns", "armed_ns", "stopped_ns"):
        columns[name] = None if facts[name] is None else int(str(facts[name]))
    return Entry(
        id=manifest.recording,
        business_no=str(private["business_no"]),
        directory=place,
        details=details,
        files=files,
        composing={"state": state, "progress": 1.0 if files else None},
        **columns,
    )


def _running_entry(directory: Path, place: str, data_key: DataKey) -> Entry:
    parts = {name.part for name, _ in list_segments(directory)}
    first = next((one for one in JournalReader(directory, data_key).records()), None)
    if not isinstance(first, SessionRecord):
        raise JournalError(f"{directory} has no session record")
    info = first.info
    created_ns = (int(str(info["recording"]).replace("-", "")[:12], 16)) * 1_000_000
    return Entry(
        id=str(info["recording"]),
        tenant=str(info["tenant"]),
        room=str(info["room"]),
        business_no=str(info["business_no"]),
        mode=str(info["mode"]),
        directory=place,
        created_ns=created_ns,
        armed_ns=created_ns,
        attempt=int(info.get("attempt", 1)),
        state="recording",
        part=max(parts),
        details={
            "template": info.get("template", {}),
            "metadata": info.get("metadata", {}),
            "participants": [],
            "gaps": [],
            "losses": [],
            "key_id": data_key.key_id,
            "actor": "server",
            "boot_id": info.get("boot_id", ""),
            "armed_mono_ns": int(info["armed_ns"]),
        },
    )


@dataclass
class Reindexed:
    """What rebuilding the index did."""

    recordings: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    """Directory and why it could not be read."""


def recording_directories(root: Path) -> Iterator[Path]:
    """Find recordings below a data directory: ``recordings/{tenant}/{yyyy}/{mm}/{dd}/{id}``."""
    for sidecar in sorted((root / "recordings").glob(f"*/*/*/*/*/{SIDECAR}")):
        yield sidecar.parent


def reindex(catalog: Catalog, root: Path, open_key: OpenKey) -> Reindexed:
    """Empty the index and write it again from the recordings below ``root``.

    ``open_key`` gives the data key of a recording's directory, or None where there is none. A recording that
    cannot be read is left out and named; it stays on disk as it is.
    """
    result = Reindexed()
    catalog.forget_all()
    for directory in recording_directories(root):
        try:
            key = open_key(directory)
            if key is None:
                raise KeyProblem("its data key cannot be opened")
            entry = read_entry(root, directory, key)
            catalog.put(entry)
            if (directory / MANIFEST).exists():
                own = read_manifest(directory).page.certificate.public_key.point
                catalog.put_due(entry.id, read_custody(directory, {own}).first_due_ns())
        except (
            KeyProblem,
            ManifestError,
            StatementError,
            SealedError,
            JournalError,
            CanonicalError,
            KeyError,
            ValueError,
            OSError,
        ) as error:
            result.refused[str(directory)] = str(error)
            _log.error("%s is not indexed: %s", directory, error)
        else:
            result.recordings += 1
    return result


def opener(provider: CryptoProvider, *, actor: str) -> OpenKey:
    """Give a function that opens data keys, waiting a minute for a key service that is down.

    Of sidecars that the provider signed alone: what is indexed as left unfinished is signed next.
    """

    def unwrap(directory: Path) -> DataKey:
        sidecar = own_sidecar(directory, provider.info())
        recording = str(sidecar["recording"])
        return provider.unwrap_now(sidecar, recording_id=recording, purpose="reindex", actor=actor)

    def open_key(directory: Path) -> DataKey | None:
        for _ in range(KEYS_TRIES):  # left out of the index a recording would be lost to sight
            try:
                return unwrap(directory)
            except KeysUnavailable as error:
                _log.warning("reindexing waits for its keys: %s", error)
                time.sleep(KEYS_AGAIN_S)
        return unwrap(directory)

    return open_key
