"""The seam: what a key provider does, what it says of itself, how a wrapped data key looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from recorder.canonical import JSON
from recorder.gm.kdf import kdf_sm3
from recorder.sealed import DataKey
from recorder.signed import Signer

WRAP_ALGORITHM = "sm2-gmt0009"
_KEY_ID_LABEL = b"shuanglu data key id v1"


class KeyProblem(Exception):
    """A key is missing, unusable, readable by others, or not for this recording; says which and why."""


@dataclass(frozen=True)
class ProviderInfo:
    """What a provider is, as every manifest states it."""

    name: str
    version: str
    certificate: str
    """Number of the product's cryptography certificate, or ``none``."""
    assurance: str
    """``development`` (self-signed keys in files) or ``operator`` (certificates of an authority)."""
    signing_certificate_pem: str
    encryption_certificate_pem: str

    def to_json(self) -> dict[str, JSON]:
        """Return what a manifest's public part says of the provider."""
        return {
            "name": self.name,
            "version": self.version,
            "certificate": self.certificate,
            "assurance": self.assurance,
            "encryption_certificate": self.encryption_certificate_pem,
        }


class CryptoProvider(Protocol):
    """Makes and opens data keys and signs; asynchronous, because a device or KMS is across a wire."""

    def info(self) -> ProviderInfo:
        """Say what this is."""

    def signer(self) -> Signer:
        """Return a signer for worker threads."""

    async def random(self, size: int) -> bytes:
        """Return random bytes fit for keys."""

    async def new_data_key(self, recording_id: str) -> tuple[DataKey, dict[str, JSON]]:
        """Make a recording's data key; return it and its wrap, an entry for ``write_sidecar``."""

    async def unwrap(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Open a recording's data key for a stated purpose. Raise KeyProblem."""

    async def sign(self, message: bytes) -> bytes:
        """Return the DER signature of the signing key over ``message``."""


def data_key_id(secret: bytes) -> str:
    """Return the id of a data key, derived from it: a wrap that opens to another key is noticed."""
    return kdf_sm3(_KEY_ID_LABEL + secret, 16).hex()
