"""``recorder export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recorder.atomic import write_private
from recorder.cli.base import NeededKeys, PassphraseFile, RecordingPath, app, file_provider, open_key, out
from recorder.export import ExportError, Sealed, export_recording


@app.command()
def export(
    path: RecordingPath,
    to: Annotated[
        Path, typer.Argument(metavar="OUT", help="New directory for the package; with --zip a new file.")
    ],
    keys: NeededKeys,
    operator: Annotated[
        str, typer.Option("--operator", help="Who takes the files; sealed in the statement.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why, such as a case number; sealed likewise.")],
    file: Annotated[
        list[str] | None,
        typer.Option("--file", help="Only this file, such as composite.mp4; may be repeated."),
    ] = None,
    zipped: Annotated[bool, typer.Option("--zip", help="Write one zip instead of a directory.")] = False,
    sealed: Annotated[
        str,
        typer.Option("--sealed", help="Sealed files to add, for opening with openssl: archive, all or none."),
    ] = "archive",
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            help="Also write this recording's data key, in hex, into a new file outside the package. It "
            "opens all of this recording and nothing else.",
        ),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Write plain files out of a recording, with all that proves them, for a person entitled to them.

    The only command that puts plain media on a disk. It is put on record first: a signed statement with
    operator and reason is added to the recording. Each file's plain text is compared with the signed SM3.
    The package: media/ (plain), manifest.json and statements/ (signed), private/ (names, metadata, who and
    why), certificates/, sealed/ and keys/ (to open it independently), report.html and report.pdf, and
    HOWTO.md with open.sh, which check and open it with OpenSSL alone.
    """
    modes: dict[str, Sealed] = {"archive": "archive", "all": "all", "none": "none"}
    if sealed not in modes:
        raise typer.BadParameter("must be archive, all or none", param_hint="--sealed")
    if key_file is not None and key_file.exists():
        raise ExportError(f"{key_file} exists")
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
        zipped=zipped,
        sealed=modes[sealed],
        key_handed_over=key_file is not None,
    )
    if key_file is not None:
        write_private(key_file, data_key.secret.hex().encode() + b"\n")
    for written in done.files:
        out.print(str(written), markup=False, soft_wrap=True)
    out.print(f"statement {done.statement.number} of {path.name} records this export", soft_wrap=True)
    out.print(f"verification says: {done.verdict.value}", soft_wrap=True)
