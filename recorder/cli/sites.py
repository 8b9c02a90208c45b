"""Recordings at object stores: ``recorder fetch``, and what lets other commands take a URL for a
PATH.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from recorder.cli.base import app, err, out
from recorder.manifest import MANIFEST
from recorder.sites import Site, SiteError, Stored, fetch, push, recordings_at
from recorder.sites.config import read_site

QUIET_S = 60.0
WATCH_S = 15.0
"""Longer than a segment of the default length and its upload."""

Place = Annotated[
    str,
    typer.Argument(
        metavar="PATH|URL",
        help="Directory of one recording, or its address at a site: s3://bucket/prefix/… or file:///…",
    ),
]
SiteFile = Annotated[
    Path | None,
    typer.Option(
        "--site",
        help="With a URL: YAML or JSON with endpoint, region, credentials_file (0600), ca_file, path_style, "
        "checksum, timeout_s, as in the server's storage.sites. Without it AWS and its AWS_… environment "
        "variables.",
    ),
]
KeepIn = Annotated[
    Path | None,
    typer.Option("--in", help="With a URL: keep the sealed copy in this new directory."),
]


def is_url(place: str) -> bool:
    """Tell a site's address from a path."""
    return "://" in place


def site_of(url: str, site_file: Path | None) -> Site:
    """Open the site a URL names; what is no address or no site's file is wrong use."""
    try:
        return Site(read_site(url.rstrip("/"), site_file))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="URL or --site") from None


@contextmanager
def local(
    place: str,
    site_file: Path | None,
    keep_in: Path | None = None,
    *,
    send_back: bool = False,
    watch: bool = False,
) -> Iterator[Path]:
    """Give the directory of one recording: itself, or a private copy of the sealed bytes at a site.

    The copy is removed afterwards unless ``keep_in`` names its directory. ``send_back``: what was added
    to the copy goes to the site at the end, unless the work failed. ``watch``: refuse what still grows there.
    Raise SiteError, OSError.
    """
    if not is_url(place):
        yield Path(place)
        return
    site = site_of(place, site_file)
    listed = site.listing()
    if "" not in recordings_at(listed):
        raise SiteError(
            "missing", site.name, f"{place} is no recording; recorder list {place} shows what is there"
        )
    if watch and _grows(site, listed):
        raise SiteError("refused", site.name, f"{place} still grows: stop the recording instead")
    with tempfile.TemporaryDirectory(prefix="recorder-") as temporary:
        # Under its own name: whoever verifies compares it with the recording's id.
        target = keep_in or Path(temporary) / PurePosixPath(place.rstrip("/")).name
        bring(site, target)
        yield target
        if send_back:
            for name in push(site, target, ""):
                err.print(f"put {name} to {place}", markup=False)


def _grows(site: Site, listed: list[Stored]) -> bool:
    """Watch a recording that got something in the last minute: a living node sends a segment every 10
    s.
    """
    if time.time() - max(one.modified for one in listed) > QUIET_S:
        return False
    err.print(
        f"its last object is younger than {QUIET_S:.0f} s: watching for {WATCH_S:.0f} s whether it grows"
    )
    time.sleep(WATCH_S)
    return [(one.key, one.size) for one in site.listing()] != [(one.key, one.size) for one in listed]


def bring(
    site: Site, target: Path, *, pages_only: bool = False, refused: list[str] | None = None
) -> list[Path]:
    """Fetch the recordings of a site's URL behind a progress bar on standard error. What is not taken is
    named there, and added to ``refused``.
    """

    def refuse(name: str, why: str) -> None:
        err.print(f"not taken: {name!r}: {why}", markup=False, soft_wrap=True)
        if refused is not None:
            refused.append(name)

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("fetching", total=None)
        return fetch(
            site,
            "",
            target,
            pages_only=pages_only,
            refused=refuse,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


@app.command("fetch")
def fetch_recordings(
    url: Annotated[str, typer.Argument(metavar="URL", help="A recording's address, or anything above it.")],
    to: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where it goes; may hold part of it from before.")
    ],
    site: SiteFile = None,
    pages: Annotated[
        bool,
        typer.Option(
            "--pages",
            help="Of finished recordings only keys, manifest and statements: a server with the same site in "
            "its settings finds, shows and plays them, reading media from the site.",
        ),
    ] = False,
) -> None:
    """Bring the sealed bytes of one or all recordings from a site. Nothing is decrypted; no key is
    needed.

    The layout stays: with the whole site DIR is a data directory, and a server started on it (with its
    secrets) builds its index anew and recovers recordings that nobody ended. Goes on where it was
    broken off. Only recordings' own files come; what is here already is not replaced. What is not taken is
    named, and the command ends with 1.
    """
    refused: list[str] = []
    new = bring(site_of(url, site), to, pages_only=pages, refused=refused)
    recordings = {path.parent for path in to.rglob(MANIFEST)}
    out.print(
        f"{len(new)} files fetched to {to}; {len(recordings)} finished recordings there", soft_wrap=True
    )
    if refused:
        out.print(f"{len(refused)} objects were not taken, see above", soft_wrap=True)
        raise typer.Exit(1)
