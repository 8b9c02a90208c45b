"""The seam: what a key provider does, what it says of itself, how a wrapped data key looks."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from recorder.canonical import JSON
from recorder.gm.kdf import kdf_sm3
from recorder.gm.x509 import Certificate
from recorder.sealed import SUITES, DataKey
from recorder.signed import Signer

WRAP_ALGORITHM = "sm2-gmt0009"
_KEY_ID_LABEL = b"shuanglu data key id v1"
FIRST_SUITE = 1
"""Of sidecars that name none."""


class KeyProblem(Exception):
    """A key is missing, unusable, readable by others, or not for this recording; says which and why."""


class KeysUnavailable(KeyProblem):
    """The key service does not answer just now; the same asked again later may succeed."""


class SealedOnly(KeyProblem):
    """This provider seals and cannot open: whoever holds the opening key can (docs/operations.md, Keys)."""


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
    chain_pem: tuple[str, ...] = ()
    """Issuers of both certificates, as far as they are known here."""
    former_signing_certificates: tuple[str, ...] = ()
    """PEM of earlier signing keys, whose signatures are still this provider's."""

    def to_json(self) -> dict[str, JSON]:
        """Return what a manifest's public part says of the provider."""
        return {
            "name": self.name,
            "version": self.version,
            "certificate": self.certificate,
            "assurance": self.assurance,
            "encryption_certificate": self.encryption_certificate_pem,
            "chain": list(self.chain_pem),
        }


class CryptoProvider(Protocol):
    """Makes and opens data keys and signs; asynchronous, because a device or KMS is across a wire.

    Shaped after GM/T 0018 devices: private keys never leave it, it draws the random numbers, makes wrapped
    keys and signs digests. docs/kms.md maps each method to the device's functions.
    """

    @property
    def can_open(self) -> bool:
        """False: it seals for an encryption certificate whose private key it has not (SealedOnly)."""

    def info(self) -> ProviderInfo:
        """Say what this is."""

    def signer(self) -> Signer:
        """Return a signer for worker threads; its ``sign`` may wait for the network."""

    async def random(self, size: int) -> bytes:
        """Return random bytes fit for keys. Raise KeyProblem."""

    async def new_data_key(
        self, recording_id: str, suite: int = FIRST_SUITE
    ) -> tuple[DataKey, dict[str, JSON]]:
        """Make a recording's data key for a cipher suite; return it and its wrap for ``write_sidecar``."""

    async def unwrap(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Open a recording's data key for a stated purpose. Raise KeyProblem."""

    def unwrap_now(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Do what ``unwrap`` does, blocking, for callers without an event loop."""

    async def sign(self, message: bytes) -> bytes:
        """Return the DER signature of the signing key over ``message``. Raise KeyProblem."""


class Opener(Protocol):
    """What only opens data keys: a compositor has nothing else."""

    def unwrap_now(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Open a recording's data key for a stated purpose, blocking. Raise KeyProblem."""


def data_key_id(secret: bytes, suite: int = FIRST_SUITE) -> str:
    """Return the id of a data key, derived from it and its suite.

    A wrap of another key, or a sidecar that states another suite, is noticed by it.
    """
    label = _KEY_ID_LABEL if suite == FIRST_SUITE else _KEY_ID_LABEL + b" suite %d" % suite
    return kdf_sm3(label + secret, 16).hex()


def wrap_for(recipient: Certificate, secret: bytes, provider: str) -> dict[str, JSON]:
    """Wrap a data key for a certificate's key: an entry for ``write_sidecar``. Needs no private key."""
    return wrap_entry(recipient, recipient.public_key.encrypt(secret), provider)


def wrap_entry(recipient: Certificate, ciphertext: bytes, provider: str) -> dict[str, JSON]:
    """Write down a wrap (GM/T 0009 SM2Cipher DER) that the provider made."""
    return {
        "algorithm": WRAP_ALGORITHM,
        "recipient": recipient.fingerprint,
        "provider": provider,
        "ciphertext": base64.b64encode(ciphertext).decode(),
    }


def is_wrapped_for(sidecar: Mapping[str, JSON], recipient: str) -> bool:
    """Tell whether a sidecar has a wrap for the certificate of this fingerprint."""
    return _find_wrap(sidecar, recipient) is not None


def wrap_of(sidecar: Mapping[str, JSON], recording_id: str, recipient: str) -> bytes:
    """Return the cipher text of a recording's data key for this certificate. Raise KeyProblem."""
    if sidecar.get("recording") != recording_id:
        raise KeyProblem(f"this sidecar is recording {sidecar.get('recording')!r}'s, not {recording_id}'s")
    found = _find_wrap(sidecar, recipient)
    if found is None:
        raise KeyProblem(f"the data key of recording {recording_id} is not wrapped for {recipient}")
    try:
        return base64.b64decode(str(found.get("ciphertext")), validate=True)
    except (binascii.Error, ValueError) as error:
        raise KeyProblem(f"the data key of recording {recording_id} does not unwrap: {error}") from None


def data_key_of(sidecar: Mapping[str, JSON], recording_id: str, secret: bytes) -> DataKey:
    """Check that an opened wrap holds the key its sidecar names, of the suite it states. Raise KeyProblem."""
    suite = sidecar.get("suite", FIRST_SUITE)
    if type(suite) is not int or suite not in SUITES:
        raise KeyProblem(f"recording {recording_id} is of suite {suite!r}, unknown to this version")
    if len(secret) != SUITES[suite].data_key_bytes or data_key_id(secret, suite) != sidecar.get("key_id"):
        raise KeyProblem(
            f"the wrap of recording {recording_id} holds another key than it names, or one of another suite"
        )
    return DataKey(str(sidecar["key_id"]), secret, suite)


def _find_wrap(sidecar: Mapping[str, JSON], recipient: str) -> Mapping[str, JSON] | None:
    wraps = sidecar.get("wraps")
    for wrap in wraps if isinstance(wraps, list) else []:
        if isinstance(wrap, Mapping) and (wrap.get("recipient"), wrap.get("algorithm")) == (
            recipient,
            WRAP_ALGORITHM,
        ):
            return wrap
    return None
