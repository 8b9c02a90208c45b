"""The capture manifest: what was captured, signed at stop, never changed afterwards.

``manifest.json`` is a signed page (``recorder.signed``): ids, times, digests, parts, gaps, tracks without
names. ``manifest.sealed`` is a sealed file with the rest: identities, names, metadata, the frozen template;
its digests are in the signed page. Everything later is a statement (``recorder.statements``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recorder import clock
from recorder.atomic import create_file, sync_directory
from recorder.canonical import JSON, CanonicalError, as_int, canonical
from recorder.gm.sm3 import named, sm3
from recorder.journal.summary import PartSummary
from recorder.keys import ProviderInfo
from recorder.records import TrackInfo
from recorder.sealed import DataKey, FileSummary, SealedReader, SealedWriter
from recorder.signed import SignedError, SignedPage, Signer, open_page, read_page, sign_page, signable
from recorder.storage import segments_directory

MANIFEST = "manifest.json"
SEALED_PART = "manifest.sealed"
MANIFEST_TYPE = "shuanglu.capture-manifest.v1"
SEALED_PART_MEDIA_TYPE = "application/vnd.shuanglu.manifest+json"
_TRACK_MEMBERS = ("track", "seat", "role", "kind", "source", "mime", "clock_rate", "payload_type", "ssrc")
"""What the public part says of a track; identity, name and CNAME are in the sealed part."""


class ManifestError(Exception):
    """There is no manifest, or it is not what it should be."""


@dataclass(frozen=True)
class Manifest:
    """A manifest whose signature fits its certificate."""

    page: SignedPage
    recording: str
    facts: Mapping[str, JSON]
    """Public facts as given at stop: tenant, room, mode, state, armed_at, stopped_at, …"""
    parts: tuple[Mapping[str, JSON], ...]
    segments: tuple[FileSummary, ...]
    """Of all parts, in the order of writing."""
    sealed: FileSummary
    key_id: str


def write_manifest(
    directory: Path,
    recording_id: str,
    *,
    facts: Mapping[str, object],
    sealed: Mapping[str, object],
    template: Mapping[str, object] | None,
    parts: Sequence[PartSummary],
    data_key: DataKey,
    provider: ProviderInfo,
    signer: Signer,
    utc_ns: int | None = None,
) -> Manifest:
    """Seal the private part, sign the public one, write both. Return what was written.

    ``facts`` must name nobody (ids, times as RFC 3339, counts; integers of ``…_ns`` members are strings);
    ``sealed`` may (identities, metadata). The parts' tracks are divided between the two here. Raise
    FileExistsError if the recording has a manifest: it never gets a second one. Raise CanonicalError for
    values that cannot be signed.
    """
    if (directory / MANIFEST).exists():
        raise FileExistsError(f"{directory / MANIFEST} is there; later facts are statements")
    template_bytes = canonical(signable(template)) if template is not None else None
    private = {
        **sealed,
        "tracks": [asdict(track) for part in parts for track in part.tracks],
        "template": template,
    }
    # What an attempt left that died before signing; its file id is never used again.
    (directory / SEALED_PART).unlink(missing_ok=True)
    with SealedWriter(
        directory / SEALED_PART,
        data_key,
        kind="original",
        media_type=SEALED_PART_MEDIA_TYPE,
        public={"recording": recording_id},
    ) as writer:
        writer.write(canonical(signable(private)))
        summary = writer.close()
    now = utc_ns if utc_ns is not None else clock.SystemClock().utc_ns()
    fields: dict[str, JSON] = {
        "type": MANIFEST_TYPE,
        "recording": recording_id,
        "written_at": clock.rfc3339(now),
        "facts": signable(facts),
        "key_id": data_key.key_id,
        "parts": [public_part(part) for part in parts],
        "sealed": summary.to_json(),
        "template_sm3": named(sm3(template_bytes)) if template_bytes is not None else None,
        "provider": provider.to_json(),
    }
    if segments_directory(directory).is_dir():
        sync_directory(segments_directory(directory))
    create_file(directory / MANIFEST, sign_page(fields, signer))
    return read_manifest(directory)


def public_part(part: PartSummary) -> JSON:
    """Return what the signed page says of a part: all of it but what names people."""
    value = dict(part.to_json())
    value["tracks"] = [_public_track(track) for track in part.tracks]
    return signable(value)


def _public_track(track: TrackInfo) -> dict[str, JSON]:
    return {name: getattr(track, name) for name in _TRACK_MEMBERS}


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json``, checking form and signature. Raise ManifestError, FileNotFoundError."""
    try:
        return parse_manifest(read_page(directory / MANIFEST))
    except (SignedError, CanonicalError) as error:
        raise ManifestError(f"{directory / MANIFEST} {error}") from None


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest's bytes. Raise SignedError or CanonicalError."""
    page = open_page(data, page_type=MANIFEST_TYPE)
    fields = page.fields
    parts, facts = fields.get("parts"), fields.get("facts")
    if not isinstance(parts, list) or not isinstance(facts, Mapping):
        raise CanonicalError("has no parts or facts")
    segments: list[FileSummary] = []
    checked: list[Mapping[str, JSON]] = []
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("segments"), list):
            raise CanonicalError("has a part without segments")
        as_int(part.get("part"))
        checked.append(part)
        listed = part["segments"]
        assert isinstance(listed, list)
        segments += [FileSummary.from_json(item) for item in listed]
    return Manifest(
        page=page,
        recording=str(fields.get("recording")),
        facts=facts,
        parts=tuple(checked),
        segments=tuple(segments),
        sealed=FileSummary.from_json(fields.get("sealed")),
        key_id=str(fields.get("key_id")),
    )


def read_sealed_part(directory: Path, data_key: DataKey) -> dict[str, JSON]:
    """Open ``manifest.sealed``: identities, names, metadata, template. Raise SealedError, ManifestError."""
    signed = read_manifest(directory).sealed
    with SealedReader(directory / SEALED_PART, data_key) as reader:
        if reader.header.file_id != signed.file_id or not reader.finished:
            raise ManifestError(f"{directory / SEALED_PART} is not the file that was signed")
        value = json.loads(b"".join(reader.chunks()))
    if not isinstance(value, dict):
        raise ManifestError(f"{directory / SEALED_PART} is no JSON object")
    return value
