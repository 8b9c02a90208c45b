"""``recorder show`` and ``recorder list``: what signed pages say."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from rich.table import Table

from recorder.canonical import CanonicalError
from recorder.cli.base import AsJson, Keys, PassphraseFile, RecordingPath, app, file_provider, open_key, out
from recorder.cli.sites import SiteFile, is_url, site_of
from recorder.keys import SIDECAR
from recorder.manifest import MANIFEST, Manifest, ManifestError, read_manifest, read_sealed_part
from recorder.sealed import plain_name
from recorder.sites import fetch, recordings_at
from recorder.sites.mirror import MEDIA
from recorder.statements import StatementError, read_statements
from recorder.storage import list_segments


@app.command()
def show(
    path: RecordingPath,
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what a recording's signed pages say; with --keys also names and metadata.

    Checks the pages' own signatures and the statements' chain, not the media: that is verify.
    """
    manifest = _manifest_or_none(path)
    statements = read_statements(path) if manifest else []
    private = None
    if keys is not None and manifest is not None:
        data_key = open_key(file_provider(keys, passphrase_file, expired=True), path, "show", "recorder show")
        private = read_sealed_part(path, data_key)
    if as_json:
        page = {
            "manifest": dict(manifest.page.fields) if manifest else None,
            "private": private,
            "statements": [dict(statement.page.fields) for statement in statements],
            "segments": len(list_segments(path)),
        }
        out.print_json(json.dumps(page, ensure_ascii=False))
        return
    if manifest is None:
        segments = len(list_segments(path))
        text = f"{path}: no manifest yet, {segments} segments (running, or left by a crash)"
        out.print(text, soft_wrap=True)
        return
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row("recording", manifest.recording)
    for name, value in manifest.facts.items():
        facts.add_row(name, json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value)
    for name, item in (private or {}).items():
        facts.add_row(f"{name} (sealed)", json.dumps(item, ensure_ascii=False))
    out.print(facts)
    table = Table("file", "kind", "plain bytes", "SM3 of the plain text")
    for part in manifest.parts:
        table.add_row(f"journal part {part['part']}", "original", "", f"{_count(part)} segments")
    for statement in statements:
        for file in statement.files:
            table.add_row(plain_name(file.name), file.kind, f"{file.plain_bytes:,}", file.plain_sm3)
    out.print(table)
    for statement in statements:
        out.print(f"{statement.at}  statement {statement.number}: {statement.kind}")


def _count(part: object) -> int:
    segments = part.get("segments") if isinstance(part, dict) else None
    return len(segments) if isinstance(segments, list) else 0


def _manifest_or_none(path: Path) -> Manifest | None:
    return read_manifest(path) if (path / MANIFEST).exists() else None


def _row(path: Path, place: str, segments: int) -> dict[str, object]:
    try:
        manifest = _manifest_or_none(path)
        files = [file for statement in read_statements(path) for file in statement.files] if manifest else []
        facts = manifest.facts if manifest else {}
        state = str(facts.get("state", "sealed")) if manifest else "unfinished"
    except (ManifestError, StatementError, CanonicalError) as error:
        facts, files, state = {}, [], f"broken: {error}"
    return {
        "path": place,
        "state": state,
        "armed_at": facts.get("armed_at") or "",
        "duration_ms": facts.get("duration_ms") or 0,
        "segments": segments,
        "files": [plain_name(file.name) for file in files],
    }


def _rows_at(url: str, site_file: Path | None) -> list[dict[str, object]]:
    """Describe what lies below a URL from its pages alone; no media is fetched."""
    site = site_of(url, site_file)
    found = recordings_at(site.listing())
    pages = {one.key for objects in found.values() for one in objects if not _is_media(one.key)}
    with tempfile.TemporaryDirectory(prefix="recorder-") as temporary:
        root = Path(temporary)
        if pages:
            fetch(site, "", root, names=pages)
        return [
            _row(
                root / place,
                f"{url.rstrip('/')}/{place}".rstrip("/"),
                sum(PurePosixPath(one.key).parent.name == "segments" for one in objects),
            )
            for place, objects in found.items()
        ]


def _is_media(key: str) -> bool:
    return PurePosixPath(key).parent.name in MEDIA


@app.command("list")
def list_recordings(
    root: Annotated[
        str, typer.Argument(metavar="PATH|URL", help="Directory or site to search for recordings.")
    ],
    site: SiteFile = None,
    as_json: AsJson = False,
) -> None:
    """List the recordings below a directory or a site's URL with state, length and number of files.

    Needs no key; of a site only keys, manifests and statements are read.
    """
    if is_url(root):
        rows = _rows_at(root, site)
    else:
        paths = [sidecar.parent for sidecar in sorted(Path(root).rglob(SIDECAR))]
        rows = [_row(path, str(path), len(list_segments(path))) for path in paths]
    if as_json:
        out.print_json(json.dumps(rows, ensure_ascii=False))
        return
    table = Table("recording", "state", "armed at", "ms", "segments", "files")
    for row in rows:
        files_text = ", ".join(str(name) for name in row["files"]) if isinstance(row["files"], list) else ""
        table.add_row(
            Path(str(row["path"])).name,
            str(row["state"]),
            str(row["armed_at"]),
            str(row["duration_ms"]),
            str(row["segments"]),
            files_text,
        )
    out.print(table)
