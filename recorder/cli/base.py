"""What every command shares: the application, its options, keys, the console."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from recorder.keys import CryptoProvider, Opener, ProviderInfo, open_at, own_sidecar, read_sidecar
from recorder.sealed import DataKey

app = typer.Typer(
    name="recorder",
    help=(
        "Work on sealed recordings without a server: look at them, verify, recover, export, index.\n\n"
        "PATH is a recording's directory (…/recordings/TENANT/YYYY/MM/DD/ID). verify, show and list need no "
        "key; what opens a recording needs --keys, the directory of the provider's key files (on a server: "
        "DATA/secrets/crypto). The bytes are described in docs/container.md."
    ),
    epilog="Exit codes: 0 done (verify: everything holds), 1 damage or failure, 2 wrong use, 3 not proven.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# No markup: file names and certificates of a hostile recording are shown as they are, never obeyed.
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

RecordingPath = Annotated[Path, typer.Argument(metavar="PATH", help="Directory of one recording.")]
_KEYS_HELP = (
    "Directory with signing.key.pem, encryption.key.pem and their certificates, or a file that describes a "
    "KMS (docs/kms.md)."
)
Keys = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        help="Directory with signing.key.pem, encryption.key.pem and their certificates, or a file "
        "that describes a KMS (docs/kms.md).",
    ),
]
NeededKeys = Annotated[
    Path,
    typer.Option(
        "--keys",
        help="Directory with signing.key.pem, encryption.key.pem and their certificates, or a file "
        "that describes a KMS (docs/kms.md).",
    ),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help="File with the keys' passphrase, or set SHUANGLU_CRYPTO_PASSPHRASE; never on the command line.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]


def fail(text: str) -> NoReturn:
    err.print(f"recorder: {text}", markup=False)
    sys.exit(1)


def file_provider(
    keys: Path, passphrase_file: Path | None, *, opens: bool = True, expired: bool = False
) -> CryptoProvider:
    """Open the keys that a command names: a directory of key files, or a file that describes a KMS.

    ``expired``: for a command that opens old recordings and signs nothing.
    """
    return open_at(keys, passphrase(passphrase_file), opens=opens, expired=expired)


def passphrase(file: Path | None) -> str | None:
    if file is not None:
        return file.read_text().rstrip("\n")
    return os.environ.get("SHUANGLU_CRYPTO_PASSPHRASE")


def open_key(
    provider: Opener, path: Path, purpose: str, actor: str, *, own: ProviderInfo | None = None
) -> DataKey:
    """Open a recording's data key. With ``own`` only one whose sidecar that provider signed. Raise
    KeyProblem.
    """
    sidecar = read_sidecar(path) if own is None else own_sidecar(path, own)
    recording = str(sidecar["recording"])
    return provider.unwrap_now(sidecar, recording_id=recording, purpose=purpose, actor=actor)


def visible(text: str) -> str:
    """Write out what a terminal would obey: control and formatting characters, lone surrogates."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
