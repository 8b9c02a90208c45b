"""``recorder export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recorder.cli.base import NeededKeys, PassphraseFile, RecordingPath, app, file_provider, open_key, out
from recorder.export import export_recording


@app.command()
def export(
    path: RecordingPath,
    to: Annotated[Path, typer.Argument(metavar="OUT", help="New directory for the plain files.")],
    keys: NeededKeys,
    operator: Annotated[
        str, typer.Option("--operator", help="Who takes the files; sealed in the statement.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why, such as a case number; sealed likewise.")],
    file: Annotated[
        list[str] | None,
        typer.Option("--file", help="Only this file, such as composite.mp4; may be repeated."),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Write plain files out of a recording, for a person entitled to them.

    The only command that puts plain media on a disk. It is put on record first: a signed statement with
    operator and reason is added to the recording. Each file's plain text is compared with the signed SM3
    before it gets its name. Also written: private.json (names, metadata), the manifest and all statements.
    """
    provider = file_provider(keys, passphrase_file)
    data_key = open_key(provider, path, f"export: {reason}", operator)
    done = export_recording(
        path,
        to,
        data_key=data_key,
        signer=provider.signer(),
        operator=operator,
        reason=reason,
        names=file or None,
    )
    for written in done.files:
        out.print(str(written), markup=False, soft_wrap=True)
    out.print(f"statement {done.statement.number} of {path.name} records this export", soft_wrap=True)
