"""``recorder reindex``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recorder.catalog import opened
from recorder.cli.base import Keys, PassphraseFile, app, err, file_provider, out
from recorder.fieldkey import FieldKey
from recorder.reindex import opener, reindex


@app.command("reindex")
def reindex_database(
    root: Annotated[Path, typer.Argument(metavar="DATA", help="The server's data directory.")],
    keys: Keys = None,
    database: Annotated[
        str | None, typer.Option("--database", help="SQLAlchemy URL; default: the server's own under DATA.")
    ] = None,
    index_key: Annotated[
        Path | None,
        typer.Option("--index-key", help="Key of sealed columns; default: DATA/secrets/index.key."),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Delete the index of recordings and write it again from what is on disk. Stop the server before.

    Recordings that cannot be read are left out and named (exit code 1); they stay on disk as they are.
    """
    provider = file_provider(keys or root / "secrets" / "crypto", passphrase_file, expired=True)
    key = FieldKey.open(index_key or root / "secrets" / "index.key")
    url = database or f"sqlite:///{(root / 'index.sqlite').absolute()}"
    with opened(url, key) as catalog:
        result = reindex(catalog, root, opener(provider, actor="recorder reindex"))
    out.print(f"{result.recordings} recordings indexed")
    for directory, why in result.refused.items():
        err.print(f"recorder: {directory} is not indexed: {why}", markup=False)
    if result.refused:
        raise typer.Exit(1)
