"""``recorder rewrap`` and ``recorder erase``: what is done to the keys of recordings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recorder.cli.base import NeededKeys, PassphraseFile, RecordingPath, app, err, fail, file_provider, out
from recorder.gm.x509 import Certificate
from recorder.keys import SIDECAR, erase_key
from recorder.keys.rewrap import Rewrapped, Rewrapper
from recorder.manifest import ManifestError
from recorder.statements import StatementError, append_statement, read_statements


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
        file_provider(old, old_passphrase_file),
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


@app.command()
def erase(
    path: RecordingPath,
    keys: NeededKeys,
    operator: Annotated[
        str, typer.Option("--operator", help="Who does it: a staff number, since it stays readable for ever.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why; stays readable for ever. Name nobody.")],
    site: Annotated[
        list[Path] | None,
        typer.Option("--site", help="Directory of the same recording on another site; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. It cannot be undone.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Destroy a recording's key, so that nothing of it opens any more. Digests and signatures stay.

    A signed statement says so first; then keys.json is overwritten and removed on every site. On SSDs and in
    backups old bytes outlive this: they hold a wrap, which opens with the encryption key alone.
    """
    if not operator.strip() or not reason.strip():
        fail("--operator and --reason must say something")
    places = site or []
    for place in places:
        if not place.is_dir() or place.resolve().name != path.resolve().name:
            fail(f"{place} is no directory of recording {path.resolve().name}")
    if not yes:
        typer.confirm(f"Destroy the key of {path.resolve().name} for ever?", abort=True)
    provider = file_provider(keys, passphrase_file, opens=False)
    body: Mapping[str, object] = {"key_erased": True, "operator": operator, "reason": reason}
    try:
        if not any(one.body.get("key_erased") is True for one in read_statements(path)):
            append_statement(path, "destruction", body, provider.signer())
    except FileNotFoundError:
        fail(f"{path} has no manifest: recover it first, so that what is destroyed is named")
    except (ManifestError, StatementError) as error:
        fail(str(error))
    erased = erase_key(path, places)
    out.print(f"{path.resolve().name}: key erased in {len(erased)} places")
