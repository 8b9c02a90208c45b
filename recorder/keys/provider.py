"""The seam: what a key provider does, what it says of itself, how a wrapped data key looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from recorder.canonical import JSON
from recorder.gm.kdf import kdf_sm3
from recorder.sealed import SUITES, DataKey
from recorder.signed import Signer

WRAP_ALGORITHM = "sm2-gmt0009"
_KEY_ID_LABEL = b"shuanglu data key id v1"
FIRST_SUITE = 1
"""Of sidecars that name none."""


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

    async def new_data_key(
        self, recording_id: str, suite: int = FIRST_SUITE
    ) -> tuple[DataKey, dict[str, JSON]]:
        """Make a recording's data key for a cipher suite; return it and its wrap for ``write_sidecar``."""

    async def unwrap(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Open a recording's data key for a stated purpose. Raise KeyProblem."""

    async def sign(self, message: bytes) -> bytes:
        """Return the DER signature of the signing key over ``message``."""


def data_key_id(secret: bytes, suite: int = FIRST_SUITE) -> str:
    """Return the id of a data key, derived from it and its suite.

    A wrap of another key, or a sidecar that states another suite, is noticed by it.
    """
    label = _KEY_ID_LABEL if suite == FIRST_SUITE else _KEY_ID_LABEL + b" suite %d" % suite
    return kdf_sm3(label + secret, 16).hex()


def sidecar_key(sidecar: Mapping[str, JSON], secret: bytes) -> DataKey:
    """Return the data key an unwrapped secret is, of the suite its sidecar states. Raise KeyProblem."""
    suite = sidecar.get("suite", FIRST_SUITE)
    if type(suite) is not int or suite not in SUITES:
        raise KeyProblem(
            f"recording {sidecar.get('recording')} is of suite {suite!r}, unknown to this version"
        )
    if len(secret) != SUITES[suite].data_key_bytes or data_key_id(secret, suite) != sidecar.get("key_id"):
        raise KeyProblem(
            f"the wrap of recording {sidecar.get('recording')} holds another key than it names, or one of "
            "another suite"
        )
    return DataKey(str(sidecar["key_id"]), secret, suite)
