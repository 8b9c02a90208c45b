"""``recorder recover``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from recorder.cli.base import (
    NeededKeys,
    PassphraseFile,
    app,
    fail,
    file_provider,
    open_key,
    out,
    passphrase,
)
from recorder.cli.sites import KeepIn, Place, SiteFile, is_url, local
from recorder.keys import open_opener_at
from recorder.recovering import recover_recording
from recorder.storage import list_segments


def _grows(path: Path) -> bool:
    """Watch a journal that was written just now: a live writer adds a clock pair every second."""

    def sizes() -> list[tuple[str, int]]:
        return [(file.name, file.stat().st_size) for _, file in list_segments(path)]

    newest = max((file.stat().st_mtime for _, file in list_segments(path)), default=0.0)
    before = sizes()
    if time.time() - newest < 5.0:
        time.sleep(1.5)
    return sizes() != before


@app.command()
def recover(
    place: Place,
    keys: NeededKeys,
    passphrase_file: PassphraseFile = None,
    opening: Annotated[
        Path | None,
        typer.Option(
            "--opening",
            help="Directory with encryption.key.pem, or a file that describes a KMS, where --keys is of a "
            "server that only seals: --keys signs, this one opens.",
        ),
    ] = None,
    site: SiteFile = None,
    keep_in: KeepIn = None,
    gone: Annotated[
        bool,
        typer.Option(
            "--gone", help="The node that recorded is known to be dead: do not watch whether it goes on."
        ),
    ] = False,
) -> None:
    """Sign a manifest for a recording that no writer ended, over every good record that is there.

    Changes no media file and may be stopped at any time. A server does this itself at its start; use it where
    there is only the directory. Refuses while the journal grows: a recording is signed once.

    With a URL it works from the object store alone: the sealed bytes are fetched, the manifest is signed over
    them, and put there. What the lost machine had not sent is gone, and listed as such by its absence: the
    recording ends where its last segment there ends.
    """
    provider = file_provider(keys, passphrase_file, opens=opening is None)
    opener = provider if opening is None else open_opener_at(opening, passphrase(passphrase_file))
    if not gone and not is_url(place) and _grows(Path(place)):
        fail(f"{place} is being written: stop the recording instead")
    with local(place, site, keep_in, send_back=True, watch=not gone) as path:
        data_key = open_key(opener, path, "recover", "recorder recover", own=provider.info())
        manifest = recover_recording(path, data_key, provider=provider.info(), signer=provider.signer())
    out.print(
        f"{manifest.recording}: {manifest.facts.get('state')}, {len(manifest.parts)} parts, "
        f"{len(manifest.segments)} segments, {manifest.facts.get('duration_ms')} ms"
    )
