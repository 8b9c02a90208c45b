"""Where keys are, as an operator sets it: the section ``crypto`` of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
from pydantic import Field, SecretStr

from mediaserver.attest_settings import CertificateStatus
from mediaserver.section import Section
from recorder.keys.kms import check_address


class Kms(Section):
    """A KMS that holds the keys, over HTTP (docs/kms.md)."""

    url: str = Field(
        default="",
        description="Its address, such as https://kms.example.com:8443. http:// is refused but for this "
        "machine: data keys travel in the answers.",
    )
    token_file: Path | None = Field(
        default=None, description="File (0600) with the bearer token, read at each call. null: client_cert."
    )
    ca: Path | None = Field(
        default=None, description="PEM file with the authority of its certificate. null: the machine's own."
    )
    client_cert: Path | None = Field(default=None, description="PEM certificate to show it (mutual TLS).")
    client_key: Path | None = Field(default=None, description="PEM file (0600) with the key of client_cert.")
    timeout_s: float = Field(
        default=3.0,
        gt=0,
        le=30,
        description="An answer slower than this counts as none: a start is refused, a checkpoint not signed. "
        "Longer: starts wait longer for a KMS that is down.",
    )

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Kms:
        given = (self.token_file, self.client_cert, self.client_key)
        if self.url:
            check_address(self.url, *given)
        elif any(one is not None for one in given):
            raise ValueError("url is missing")
        return self


class OtherKeys(Section):
    """Keys beside the server's own."""

    provider: Literal["none", "file", "kms"] = Field(default="none", description="Where they are.")
    directory: Path | None = Field(default=None, description="Directory of their files, for provider file.")
    passphrase_file: Path | None = Field(default=None, description="File with the files' passphrase.")
    kms: Kms = Kms()

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> OtherKeys:
        if (self.provider == "file") != (self.directory is not None):
            raise ValueError("provider file and directory belong together")
        if (self.provider == "kms") != bool(self.kms.url):
            raise ValueError("provider kms and kms.url belong together")
        return self


class Opening(OtherKeys):
    """Keys that open recordings for composing, where the server itself only seals (crypto.open: false). The
    path of key or credential is given to compositor processes alone; the control process never reads them."""


class Former(OtherKeys):
    """Keys that were replaced: recordings still wrapped for them go on opening, and POST /v1/keys/rewrap
    moves them to the current keys. Take this out when all are moved."""


class Crypto(Section):
    """Keys that sign recordings and wrap their data keys."""

    provider: Literal["file", "environment", "kms"] = Field(
        default="file",
        description="file: PEM files in directory. environment: PEM texts in SHUANGLU_CRYPTO_SIGNING_KEY, "
        "…_SIGNING_CERTIFICATE, …_ENCRYPTION_KEY, …_ENCRYPTION_CERTIFICATE. kms: behind crypto.kms; private "
        "keys are never in this machine's memory then, and nothing starts while it is down.",
    )
    open: bool = Field(
        default=True,
        description="false: the server seals and cannot open what it sealed; it has the encryption "
        "certificate without its key, serves no files, composes during calls or with crypto.opening only.",
    )
    certificate_no: str = Field(
        default="none",
        min_length=1,
        max_length=100,
        description="Number of the cryptography product's certificate, put into every manifest. Ours has "
        "none; name that of the device or KMS. A KMS that says its own is believed where this is none.",
    )
    former_signers: tuple[Path, ...] = Field(
        default=(),
        description="PEM certificates of signing keys that were replaced: what they signed stays ours. "
        "Without them recordings of those days do not verify here.",
    )
    directory: Path | None = Field(
        default=None,
        description="Directory of the key provider's files. null: secrets/crypto in the data directory, made "
        "at "
        "the first start with development keys.",
    )
    passphrase: SecretStr | None = Field(
        default=None,
        description="Encrypts the private key files. null: they lie open, protected by file modes only. "
        "Prefer passphrase_file. Losing it loses every recording.",
    )
    passphrase_file: Path | None = Field(default=None, description="File that holds the passphrase.")
    suite: Literal["sm4-gcm", "sm4-ctr-hmac-sm3", "aes-256-gcm"] = Field(
        default="sm4-gcm",
        description="Cipher of new recordings; those that exist keep theirs and stay readable. "
        "sm4-ctr-hmac-sm3 is for devices without GCM and costs half as much CPU again to write, twice as "
        "much to read; aes-256-gcm is no national algorithm. Digests and signatures are SM3 and SM2 in all "
        "three.",
    )
    status: CertificateStatus = CertificateStatus()
    kms: Kms = Kms()
    opening: Opening = Opening()
    former: Former = Former()

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Crypto:
        if (self.provider == "kms") != bool(self.kms.url):
            raise ValueError("provider kms and kms.url belong together")
        if self.provider != "file" and self.directory is not None:
            raise ValueError(f"directory is for provider file, not {self.provider}")
        if self.provider == "kms" and self.passphrase is not None:
            raise ValueError("passphrase is for keys in files or the environment, not a KMS's")
        if self.open and self.opening.provider != "none":
            raise ValueError("opening: needs open: false; else the server opens with its own keys")
        if not self.open and self.former.provider != "none":
            raise ValueError("former: the server opens nothing (open: false); rotate with recorder rewrap")
        return self
