"""The file provider: SM2 keys in PEM files of one directory."""

from __future__ import annotations

import base64
import binascii
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from recorder.atomic import sync_directory, write_private
from recorder.canonical import JSON
from recorder.gm import selftest
from recorder.gm.sm2 import PrivateKey, Sm2Error
from recorder.gm.sm4 import KEY_BYTES
from recorder.gm.x509 import Certificate, self_signed
from recorder.keys.provider import WRAP_ALGORITHM, KeyProblem, ProviderInfo, data_key_id
from recorder.sealed import DataKey

_VALID_DAYS = 3650

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileSigner:
    """Signs with a private key in memory; for any thread."""

    certificate_pem: str
    _key: PrivateKey

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature over ``message``."""
        return self._key.sign(message)


class FileProvider:
    """SM2 keys in PEM files of one directory: ``signing.key.pem``, ``encryption.key.pem`` and their
    ``….cert.pem``.

    All files are 0600 and belong to the running user, or ``open`` refuses. Made by ``create``, they are
    self-signed and recordings say ``assurance: development``; certificates of an authority in their place
    make it ``operator``.
    """

    NAME = "file"
    VERSION = "1"

    def __init__(
        self,
        directory: Path,
        signing: PrivateKey,
        encryption: PrivateKey,
        certificates: Mapping[str, Certificate],
    ) -> None:
        """Use keys already loaded; see ``create`` and ``open``."""
        self.directory = directory
        self._signing = signing
        self._encryption = encryption
        self._certificates = certificates

    @classmethod
    def create(cls, directory: Path, passphrase: str | None = None) -> FileProvider:
        """Make both keys and self-signed certificates (first start). Raise KeyProblem if any is there."""
        selftest.require()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        existing = [name for name in _FILES if (directory / name).exists()]
        if existing:
            raise KeyProblem(f"{directory} holds {', '.join(existing)} already; keys are never overwritten")
        usages: tuple[tuple[str, Literal["sign", "encrypt"]], ...] = (
            ("signing", "sign"),
            ("encryption", "encrypt"),
        )
        for name, usage in usages:
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
    def open(cls, directory: Path, passphrase: str | None = None) -> FileProvider:
        """Load both keys. Raise KeyProblem naming the file that is missing, open to others or wrong."""
        selftest.require()
        keys: dict[str, PrivateKey] = {}
        certificates: dict[str, Certificate] = {}
        for name in ("signing", "encryption"):
            key_path, certificate_path = directory / f"{name}.key.pem", directory / f"{name}.cert.pem"
            try:
                keys[name] = PrivateKey.from_pem(_read_private(key_path), passphrase)
                certificates[name] = Certificate.from_pem(certificate_path.read_text("ascii"))
            except FileNotFoundError as error:
                raise KeyProblem(f"{error.filename} is missing") from None
            except (Sm2Error, UnicodeDecodeError) as error:
                hint = "" if passphrase else " (is a passphrase needed?)"
                raise KeyProblem(f"{key_path} or its certificate does not load: {error}{hint}") from None
            if certificates[name].public_key.point != keys[name].public.point:
                raise KeyProblem(f"{certificate_path} is not the certificate of {key_path.name}")
        if keys["signing"].public.point == keys["encryption"].public.point:
            raise KeyProblem(f"{directory}: signing and encryption key must be two keys")
        return cls(directory, keys["signing"], keys["encryption"], certificates)

    def __repr__(self) -> str:
        return f"FileProvider({str(self.directory)!r})"

    def info(self) -> ProviderInfo:
        """Say what this is; ``development`` if the signing certificate is self-signed."""
        development = any(certificate.self_signed for certificate in self._certificates.values())
        return ProviderInfo(
            name=self.NAME,
            version=self.VERSION,
            certificate="none",
            assurance="development" if development else "operator",
            signing_certificate_pem=self._certificates["signing"].pem,
            encryption_certificate_pem=self._certificates["encryption"].pem,
        )

    def signer(self) -> FileSigner:
        """Return a signer for worker threads."""
        return FileSigner(self._certificates["signing"].pem, self._signing)

    async def random(self, size: int) -> bytes:
        """Return bytes of the kernel's generator."""
        return secrets.token_bytes(size)

    async def new_data_key(self, recording_id: str) -> tuple[DataKey, dict[str, JSON]]:
        """Make a recording's data key; return it and its wrap for this provider's encryption key."""
        secret = secrets.token_bytes(KEY_BYTES)
        wrap: dict[str, JSON] = {
            "algorithm": WRAP_ALGORITHM,
            "recipient": self._certificates["encryption"].fingerprint,
            "provider": self.NAME,
            "ciphertext": base64.b64encode(self._encryption.public.encrypt(secret)).decode(),
        }
        _log.info("made the data key of recording %s", recording_id)
        return DataKey(data_key_id(secret), secret), wrap

    async def unwrap(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Open a recording's data key; purpose and actor go to the log. Raise KeyProblem."""
        return self.unwrap_now(sidecar, recording_id=recording_id, purpose=purpose, actor=actor)

    def unwrap_now(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Do what ``unwrap`` does (1 ms) for callers without an event loop."""
        if sidecar.get("recording") != recording_id:
            raise KeyProblem(
                f"this sidecar is recording {sidecar.get('recording')!r}'s, not {recording_id}'s"
            )
        wraps = sidecar.get("wraps")
        own = self._certificates["encryption"].fingerprint
        found = [
            wrap
            for wrap in (wraps if isinstance(wraps, list) else [])
            if isinstance(wrap, Mapping)
            and (wrap.get("recipient"), wrap.get("algorithm")) == (own, WRAP_ALGORITHM)
        ]
        if not found:
            raise KeyProblem(f"the data key of recording {recording_id} is not wrapped for {own}")
        try:
            secret = self._encryption.decrypt(
                base64.b64decode(str(found[0].get("ciphertext")), validate=True)
            )
        except (Sm2Error, binascii.Error) as error:
            raise KeyProblem(f"the data key of recording {recording_id} does not unwrap: {error}") from None
        if len(secret) != KEY_BYTES or data_key_id(secret) != sidecar.get("key_id"):
            raise KeyProblem(f"the wrap of recording {recording_id} holds another key than it names")
        _log.info("opened the data key of recording %s for %s by %s", recording_id, purpose, actor)
        return DataKey(str(sidecar["key_id"]), secret)

    async def sign(self, message: bytes) -> bytes:
        """Return the DER signature of the signing key over ``message``."""
        return self._signing.sign(message)


_FILES = tuple(f"{name}.{kind}.pem" for name in ("signing", "encryption") for kind in ("key", "cert"))


def _read_private(path: Path) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyProblem(
                f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o}); chmod 600 it"
            )
        if status.st_uid != os.geteuid():
            raise KeyProblem(f"{path} belongs to user {status.st_uid}, not to the one running this")
        return file.read()
