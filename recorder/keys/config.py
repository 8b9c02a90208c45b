"""What tells a process where its keys are: handed to workers and compositors instead of keys.

It travels as JSON on a child's standard input, or lies in a 0600 file that a command's ``--keys`` names. A
file provider's is a path, a KMS's an address and the path of a credential; only the environment provider has
nothing to point at, and carries its PEM texts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recorder.gm.sm2 import Sm2Error
from recorder.gm.x509 import Certificate
from recorder.keys import file
from recorder.keys.environment import EnvironmentProvider, PemKeys, take_keys
from recorder.keys.file import FileProvider, read_private
from recorder.keys.kms import KmsAddress, KmsProvider
from recorder.keys.provider import CryptoProvider, KeyProblem, Opener


class ProviderConfig(BaseModel):
    """Where keys are, and what for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["file", "environment", "kms"] = "file"
    directory: Path | None = None
    passphrase: str | None = Field(default=None, repr=False)
    passphrase_file: Path | None = None
    """Read by whoever opens the provider, not by who hands this on."""
    pem: PemKeys | None = Field(default=None, repr=False)
    kms: KmsAddress | None = None
    opens: bool = True
    """False: data keys are made and wrapped, never opened; the key for that is not loaded."""
    expired: bool = False
    """Certificates may be out of date: of keys that only open old recordings."""
    certificate_no: str = "none"
    former_signers: tuple[Path, ...] = ()
    """Certificate files of earlier signing keys."""

    def for_sealing(self) -> ProviderConfig:
        """Return what a process needs that signs and never opens a data key."""
        pem = self.pem.for_sealing() if self.pem is not None else None
        return self.model_copy(update={"opens": False, "pem": pem})


def open_provider(config: ProviderConfig) -> CryptoProvider:
    """Open what ``config`` describes; a KMS is asked who it is. Raise KeyProblem."""
    former = tuple(_former(path) for path in config.former_signers)
    if config.provider == "kms":
        if config.kms is None:
            raise KeyProblem("the key provider is kms, but no kms.url is given")
        return KmsProvider.open(
            config.kms, opens=config.opens, certificate_no=config.certificate_no, former=former
        )
    passphrase = _passphrase(config)
    if config.provider == "environment":
        pem = config.pem or take_keys(os.environ)
        return EnvironmentProvider.open(
            pem,
            passphrase,
            opens=config.opens,
            expired=config.expired,
            certificate_no=config.certificate_no,
            former=former,
        )
    if config.directory is None:
        raise KeyProblem("the key provider is file, but no directory is given")
    return FileProvider.open(
        config.directory,
        passphrase,
        opens=config.opens,
        expired=config.expired,
        certificate_no=config.certificate_no,
        former=former,
    )


def open_opener(config: ProviderConfig) -> Opener:
    """Open what is needed to open data keys: of key files the encryption key alone. Raise KeyProblem."""
    if config.provider == "file" and config.directory is not None:
        return file.open_opener(config.directory, _passphrase(config))
    return open_provider(config)


def open_at(
    path: Path, passphrase: str | None = None, *, opens: bool = True, expired: bool = False
) -> CryptoProvider:
    """Open the provider that a command names: a directory of key files, or a JSON file (0600) that describes
    another. Raise KeyProblem.
    """
    config = config_at(path, passphrase)
    return open_provider(config.model_copy(update={"opens": opens and config.opens, "expired": expired}))


def open_opener_at(path: Path, passphrase: str | None = None) -> Opener:
    """Open what opens data keys, named as for ``open_at``. Raise KeyProblem."""
    return open_opener(config_at(path, passphrase))


def config_at(path: Path, passphrase: str | None = None) -> ProviderConfig:
    """Say what a path on a command line names, without opening it. Raise KeyProblem."""
    if not path.is_file():
        return ProviderConfig(directory=path, passphrase=passphrase)
    try:
        config = ProviderConfig.model_validate_json(_read(path))
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        ]
        raise KeyProblem(f"{path} describes no key provider: {'; '.join(faults)}") from None
    return config.model_copy(update={"passphrase": config.passphrase or passphrase})


def _passphrase(config: ProviderConfig) -> str | None:
    if config.passphrase_file is not None:
        return _read(config.passphrase_file).decode().rstrip("\r\n")
    return config.passphrase


def _read(path: Path) -> bytes:
    try:
        return read_private(path)
    except OSError as error:
        raise KeyProblem(f"{path} cannot be read: {error.strerror}") from None


def _former(path: Path) -> str:
    try:
        return Certificate.from_pem(path.read_text("ascii")).pem
    except (OSError, UnicodeDecodeError, Sm2Error) as error:
        raise KeyProblem(f"{path} is no certificate of an earlier signing key: {error}") from None
