"""``recorder rewrap``: what is done to the keys of recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recorder.cli.base import NeededKeys, PassphraseFile, app, err, file_provider, out
from recorder.gm.x509 import Certificate
from recorder.keys import SIDECAR
from recorder.keys.rewrap import Rewrapped, Rewrapper


@app.command()
def rewrap(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="A data directory, or any directory with recordings below.")
    ],
    keys: NeededKeys,
    old: Annotated[
        Path, typer.Option("--old", help="The keys the recordings are wrapped for now, named like --keys.")
    ],
    passphrase_file: PassphraseFile = None,
    old_passphrase_file: Annotated[
        Path | None, typer.Option("--old-passphrase-file", help="File with the old keys' passphrase.")
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option("--trust", help="PEM certificate of a still earlier signing key; may be repeated."),
    ] = None,
) -> None:
    """Rotate keys: wrap every recording's data key for the new keys. No media is read or written.

    May be stopped at any time and run again: recordings that are done are passed over. Each new sidecar is
    signed by the new signing key, for which the old one vouches. What fails is named and stays as it was
    (exit code 1).
    """
    trusted = tuple(Certificate.from_pem(file.read_text("ascii")) for file in trust or ())
    rewrapper = Rewrapper(
        file_provider(old, old_passphrase_file, expired=True),
        file_provider(keys, passphrase_file, opens=False),
        actor="recorder rewrap",
        trusted=trusted,
    )
    directories = sorted(path.parent for path in root.rglob(SIDECAR))
    counts = Rewrapped()
    columns = (TextColumn("rewrap"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("rewrap", total=len(directories))
        for _ in rewrapper.rewrap_all(directories, counts):
            progress.advance(task)
    for directory, why in counts.failed.items():
        err.print(f"recorder: {directory} is not rewrapped: {why}")
    out.print(f"{counts.rewrapped} rewrapped, {counts.already} were already, {len(counts.failed)} failed")
    if counts.failed:
        raise typer.Exit(1)
