"""The file provider: SM2 keys in PEM files of one directory."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from recorder.atomic import sync_directory, write_private
from recorder.gm import selftest
from recorder.gm.sm2 import PrivateKey, Sm2Error
from recorder.gm.x509 import Certificate, self_signed
from recorder.keys.local import USAGE, USES, LocalOpener, LocalProvider, check_pairs
from recorder.keys.provider import KeyProblem

_VALID_DAYS = 3650
_FILES = tuple(f"{name}.{kind}.pem" for name in USES for kind in ("key", "cert"))


class FileProvider(LocalProvider):
    """SM2 keys in PEM files of one directory: ``signing.key.pem``, ``encryption.key.pem`` and their
    ``….cert.pem``.

    All files are 0600 and belong to the running user, or ``open`` refuses. Made by ``create``, they are
    self-signed and recordings say ``assurance: development``; certificates of an authority in their place
    make it ``operator``. A certificate's file may go on with those of its issuers. Where only sealing is
    wanted ``encryption.key.pem`` is not needed.
    """

    NAME = "file"

    def __init__(
        self,
        directory: Path,
        signing: PrivateKey,
        encryption: PrivateKey | None,
        chains: Mapping[str, list[Certificate]],
        *,
        certificate_no: str = "none",
        former: tuple[str, ...] = (),
    ) -> None:
        """Use keys already loaded; see ``create`` and ``open``."""
        super().__init__(signing, encryption, chains, certificate_no=certificate_no, former=former)
        self.directory = directory

    @classmethod
    def create(cls, directory: Path, passphrase: str | None = None) -> FileProvider:
        """Make both keys and self-signed certificates (first start). Raise KeyProblem if any is there."""
        selftest.require()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        existing = [name for name in _FILES if (directory / name).exists()]
        if existing:
            raise KeyProblem(f"{directory} holds {', '.join(existing)} already; keys are never overwritten")
        for name, usage in USAGE.items():
            key = PrivateKey.generate()
            title = f"Shuanglu development {name} {secrets.token_hex(4)}"
            # An hour back: a certificate must not begin after the first thing it signs, whatever the clock
            # does.
            since = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
            certificate = self_signed(key, title, usage=usage, not_before=since, days=_VALID_DAYS)
            write_private(directory / f"{name}.key.pem", key.to_pem(passphrase))
            write_private(directory / f"{name}.cert.pem", certificate.encode())
        sync_directory(directory)
        return cls.open(directory, passphrase)

    @classmethod
    def open(
        cls,
        directory: Path,
        passphrase: str | None = None,
        *,
        opens: bool = True,
        expired: bool = False,
        certificate_no: str = "none",
        former: tuple[str, ...] = (),
    ) -> FileProvider:
        """Load both keys. Raise KeyProblem naming the file that is missing, open to others or wrong.

        ``opens`` False: ``encryption.key.pem`` is not read and need not be there. ``expired``: certificates
        may be out of date, to open old recordings.
        """
        selftest.require()
        keys: dict[str, PrivateKey] = {}
        chains: dict[str, list[Certificate]] = {}
        for name in USES:
            key_path, certificate_path = directory / f"{name}.key.pem", directory / f"{name}.cert.pem"
            try:
                if opens or name == "signing":
                    keys[name] = PrivateKey.from_pem(read_private(key_path), passphrase)
                chains[name] = Certificate.all_from_pem(certificate_path.read_text("ascii"))
            except FileNotFoundError as error:
                raise KeyProblem(f"{error.filename} is missing") from None
            except (Sm2Error, UnicodeDecodeError) as error:
                hint = "" if passphrase else " (is a passphrase needed?)"
                raise KeyProblem(f"{key_path} or its certificate does not load: {error}{hint}") from None
        places = {name: str(directory / f"{name}.cert.pem") for name in USES}
        check_pairs(keys, chains, places, expired=expired)
        return cls(
            directory,
            keys["signing"],
            keys.get("encryption"),
            chains,
            certificate_no=certificate_no,
            former=former,
        )

    def __repr__(self) -> str:
        return f"FileProvider({str(self.directory)!r})"


def open_opener(directory: Path, passphrase: str | None = None) -> LocalOpener:
    """Load the encryption key and its certificate alone. Raise KeyProblem."""
    selftest.require()
    key_path, certificate_path = directory / "encryption.key.pem", directory / "encryption.cert.pem"
    try:
        key = PrivateKey.from_pem(read_private(key_path), passphrase)
        certificate = Certificate.from_pem(certificate_path.read_text("ascii"))
    except OSError as error:
        raise KeyProblem(f"{error.filename}: {error.strerror}") from None
    except (Sm2Error, UnicodeDecodeError) as error:
        raise KeyProblem(f"{key_path} or its certificate does not load: {error}") from None
    if certificate.public_key.point != key.public.point:
        raise KeyProblem(f"{certificate_path} is not the certificate of {key_path.name}")
    return LocalOpener(key, certificate)


def read_private(path: Path) -> bytes:
    """Read a file that only its owner, who runs this, may read. Raise KeyProblem, OSError."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyProblem(
                f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o}); chmod 600 it"
            )
        if status.st_uid != os.geteuid():
            raise KeyProblem(f"{path} belongs to user {status.st_uid}, not to the one running this")
        return file.read()
