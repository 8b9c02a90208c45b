"""Bring sealed bytes from a site to a directory, and back. Nothing here opens or decrypts anything."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from recorder.atomic import sync_directory
from recorder.elsewhere import note_at_sites
from recorder.keys import SIDECAR
from recorder.manifest import MANIFEST, SEALED_PART
from recorder.sites.belonging import belongs, why_kept, why_not_instead
from recorder.sites.contents import Outgoing, closed_files
from recorder.sites.site import Site, SiteError, Stored, Throttle

_log = logging.getLogger(__name__)
AT_ONCE = 4
Progress = Callable[[int, int], None]
"""Told bytes done and bytes in all."""
Refused = Callable[[str, str], None]
"""Told the name of an object that was not taken, below the prefix, and why."""
MEDIA = ("segments", "files")


def recordings_at(listed: Sequence[Stored], prefix: str = "") -> dict[str, list[Stored]]:
    """Sort objects below ``prefix`` by the recording they belong to: the path that holds keys, manifest
    or segments.

    Keys of the answer are paths below ``prefix``; ``""`` when the prefix is itself a recording.
    """
    found: dict[str, list[Stored]] = {}
    for one in listed:
        path = PurePosixPath(_below(one.key, prefix))
        holder = path.parent
        if holder.name in (*MEDIA, "statements"):
            holder = holder.parent
        found.setdefault("" if str(holder) == "." else str(holder), []).append(one)
    return {
        place: objects
        for place, objects in sorted(found.items())
        if any(
            PurePosixPath(one.key).name in (SIDECAR, MANIFEST) or "/segments/" in f"/{one.key}"
            for one in objects
        )
    }


def fetch(
    site: Site,
    prefix: str,
    target: Path,
    *,
    pages_only: bool = False,
    names: Collection[str] | None = None,
    progress: Progress | None = None,
    refused: Refused | None = None,
) -> list[Path]:
    """Bring the recordings below ``prefix`` to the directory ``target``, which may hold part of them. Return
    new files.

    Only what belongs to a recording comes, and nothing that is here is replaced but a segment without END
    that grew and ``keys.json`` by a later revision (``recorder.sites.belonging``); ``refused`` is told of
    all else (without it the log is).

    Files are 0600 and get their names when they are whole; one that is there with the right size is
    left alone, so a fetch that was broken off goes on. ``pages_only``: of recordings that have a
    manifest only keys, manifest and statements; a note says what is at the site. ``names``: only these,
    below ``prefix``. Raise SiteError (``missing``: nothing is there; ``changed``: a name that leads out
    of the directory), OSError.
    """
    listed = [one for one in site.listing(prefix) if not one.key.rpartition("/")[2].startswith(".")]
    if names is not None:
        listed = [one for one in listed if _below(one.key, prefix) in names]
    if not listed:
        raise SiteError("missing", site.name, f"nothing is below {prefix or site.config.url}")
    refuse = refused or (lambda name, why: _log.error("site %s: %s is not taken: %s", site.name, name, why))
    places = {one.key: _place(site, target, _below(one.key, prefix)) for one in listed}
    for one in listed:
        if not belongs(_below(one.key, prefix)):
            refuse(_below(one.key, prefix), "it is none of a recording's files")
    listed = [one for one in listed if belongs(_below(one.key, prefix))]
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = listed
    if pages_only:
        wanted = []
        for place, objects in recordings_at(listed, prefix).items():
            finished = any(PurePosixPath(one.key).name == MANIFEST for one in objects)
            media = [one for one in objects if finished and PurePosixPath(one.key).parent.name in MEDIA]
            wanted += [one for one in objects if one not in media]
            if media:
                root = _place(site, target, place) if place else target
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
                note_at_sites(
                    root,
                    {f"{PurePosixPath(one.key).parent.name}/{PurePosixPath(one.key).name}" for one in media},
                )
    missing = []
    for one in wanted:
        path = places[one.key]
        if path.exists():
            if path.stat().st_size == one.size:
                continue
            if (why := why_kept(path, one.size)) is not None:
                refuse(_below(one.key, prefix), why)
                continue
        missing.append((one, path))
    total, done, new = sum(one.size for one, _ in missing), 0, []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _, path in missing:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for (one, path), why in zip(missing, pool.map(lambda job: _bring(site, *job), missing), strict=True):
            done += one.size
            if why is None:
                new.append(path)
            else:
                refuse(_below(one.key, prefix), why)
            if progress is not None:
                progress(done, total)
    for folder in {path.parent for path in new}:
        sync_directory(folder)
    return new


async def send(
    site: Site,
    prefix: str,
    one: Outgoing,
    *,
    throttle: Throttle | None = None,
    known: Stored | None = None,
) -> bool:
    """Put one file of the recording at ``prefix``; False if it is there already. See ``Site.put_new``.

    A sealed part of a manifest that never came is replaced: its node died between the two.
    """
    place = f"{prefix}/" if prefix else ""
    key = f"{place}{one.name}"
    if one.revised:
        return await site.put_page(key, one.path)
    try:
        return await site.put_new(key, one.path, throttle=throttle, known=known)
    except SiteError as error:
        if error.code != "conflict" or one.name != SEALED_PART:
            raise
        if await site.in_thread(site.head, f"{place}{MANIFEST}") is not None:
            raise
    return await site.put_page(key, one.path)


def push(site: Site, directory: Path, prefix: str) -> list[str]:
    """Put what is closed of a recording's directory to a site, at ``prefix``. Return the names that
    were new.

    Raise SiteError (``conflict`` where other bytes are there: nothing is overwritten), OSError.
    """

    async def go() -> list[str]:
        new = []
        for one in closed_files(directory):
            if await send(site, prefix, one):
                new.append(one.name)
        return new

    return asyncio.run(go())


def _below(key: str, prefix: str) -> str:
    return key[len(prefix) :].strip("/") if prefix else key


def _place(site: Site, target: Path, name: str) -> Path:
    """Return where an object goes; a name from a store that is not ours may say anything."""
    parts = PurePosixPath(name).parts
    if not parts or any(part in (".", "..") or "\0" in part or part.startswith("/") for part in parts):
        raise SiteError("changed", site.name, f"an object's name {name!r} is none of a recording's")
    return target.joinpath(*parts)


def _bring(site: Site, one: Stored, path: Path) -> str | None:
    """Bring one file; returns why it may not replace the one that is here."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    size = 0
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            for chunk in site.chunks(one.key):
                file.write(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        if size != one.size:
            raise SiteError("unreachable", site.name, f"{one.key} came with {size} of {one.size} bytes")
        if path.exists() and (why := why_not_instead(path, temporary)) is not None:
            return why
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return None
