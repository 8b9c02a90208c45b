"""Keys in this process's memory: what the file and the environment provider share."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from recorder.canonical import JSON
from recorder.certificates import ChainError, check_chain
from recorder.gm import selftest
from recorder.gm.sm2 import PrivateKey, Sm2Error
from recorder.gm.x509 import Certificate, Usage, signing_request
from recorder.keys.provider import (
    FIRST_SUITE,
    KeyProblem,
    ProviderInfo,
    SealedOnly,
    data_key_id,
    data_key_of,
    wrap_for,
    wrap_of,
)
from recorder.sealed import SUITES, DataKey

USAGE: Mapping[str, Usage] = {"signing": "sign", "encryption": "encrypt"}
USES = tuple(USAGE)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalSigner:
    """Signs with a private key in memory; for any thread."""

    certificate_pem: str
    _key: PrivateKey

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature over ``message``."""
        return self._key.sign(message)


class LocalOpener:
    """An encryption key that opens data keys and does nothing else."""

    def __init__(self, key: PrivateKey, certificate: Certificate) -> None:
        self._key = key
        self._recipient = certificate.fingerprint

    def unwrap_now(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Open a recording's data key (1 ms); purpose and actor go to the log. Raise KeyProblem."""
        ciphertext = wrap_of(sidecar, recording_id, self._recipient)
        try:
            secret = self._key.decrypt(ciphertext)
        except Sm2Error as error:
            raise KeyProblem(f"the data key of recording {recording_id} does not unwrap: {error}") from None
        key = data_key_of(sidecar, recording_id, secret)
        _log.info("opened the data key of recording %s for %s by %s", recording_id, purpose, actor)
        return key


class LocalProvider:
    """A signing key, an encryption certificate and, unless this side only seals, its key."""

    NAME = "local"
    VERSION = "1"

    def __init__(
        self,
        signing: PrivateKey,
        encryption: PrivateKey | None,
        chains: Mapping[str, list[Certificate]],
        *,
        certificate_no: str = "none",
        former: tuple[str, ...] = (),
    ) -> None:
        """Use keys already loaded. ``chains`` has ``signing`` and ``encryption``, each its certificate and
        then its issuers'; ``encryption`` None: data keys can be wrapped and not opened. ``former`` are PEM
        certificates of earlier signing keys.
        """
        self._signing = signing
        self._encryption = encryption
        self._certificates = {name: chain[0] for name, chain in chains.items()}
        issuers = {one.fingerprint: one.pem for chain in chains.values() for one in chain[1:]}
        self._chain_pem = tuple(issuers.values())
        self._opener = LocalOpener(encryption, self._certificates["encryption"]) if encryption else None
        self._certificate_no = certificate_no
        self._former = former

    @property
    def can_open(self) -> bool:
        """Whether the encryption key is here."""
        return self._opener is not None

    def info(self) -> ProviderInfo:
        """Say what this is; ``development`` if a certificate is self-signed."""
        development = any(certificate.self_signed for certificate in self._certificates.values())
        return ProviderInfo(
            name=self.NAME,
            version=self.VERSION,
            certificate=self._certificate_no,
            assurance="development" if development else "operator",
            signing_certificate_pem=self._certificates["signing"].pem,
            encryption_certificate_pem=self._certificates["encryption"].pem,
            chain_pem=self._chain_pem,
            former_signing_certificates=self._former,
        )

    def signing_requests(self, subject: Mapping[str, str]) -> dict[str, str]:
        """Return PEM requests for certificates of the keys that are here, by ``signing`` and ``encryption``.

        ``subject`` as for ``gm.x509.name``. Raise ValueError for a name that cannot be.
        """
        keys = {"signing": self._signing, "encryption": self._encryption}
        return {name: signing_request(key, subject, usage=USAGE[name]) for name, key in keys.items() if key}

    def signer(self) -> LocalSigner:
        """Return a signer for worker threads."""
        return LocalSigner(self._certificates["signing"].pem, self._signing)

    async def random(self, size: int) -> bytes:
        """Return bytes of the kernel's generator."""
        return secrets.token_bytes(size)

    async def new_data_key(
        self, recording_id: str, suite: int = FIRST_SUITE
    ) -> tuple[DataKey, dict[str, JSON]]:
        """Make a recording's data key; return it and its wrap for this provider's encryption certificate."""
        secret = secrets.token_bytes(SUITES[suite].data_key_bytes)
        wrap = wrap_for(self._certificates["encryption"], secret, self.NAME)
        _log.info("made the data key of recording %s", recording_id)
        return DataKey(data_key_id(secret, suite), secret, suite), wrap

    async def unwrap(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Open a recording's data key; purpose and actor go to the log. Raise KeyProblem."""
        return self.unwrap_now(sidecar, recording_id=recording_id, purpose=purpose, actor=actor)

    def unwrap_now(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Do what ``unwrap`` does (1 ms) for callers without an event loop."""
        if self._opener is None:
            raise SealedOnly(
                f"the data key of recording {recording_id} cannot be opened here: only the encryption "
                "certificate is present, not its key"
            )
        return self._opener.unwrap_now(sidecar, recording_id=recording_id, purpose=purpose, actor=actor)

    async def sign(self, message: bytes) -> bytes:
        """Return the DER signature of the signing key over ``message``."""
        return self._signing.sign(message)


def check_pairs(
    keys: Mapping[str, PrivateKey],
    chains: Mapping[str, list[Certificate]],
    places: Mapping[str, str],
    *,
    expired: bool = False,
) -> None:
    """Require that certificates belong to their keys, signing and encryption are two keys, and each chain
    holds now and is for its use.

    ``places`` names for a message where each certificate came from. With ``expired`` certificates may be out
    of date: to open old recordings. Raise KeyProblem.
    """
    selftest.require()
    for name, key in keys.items():
        if chains[name][0].public_key.point != key.public.point:
            raise KeyProblem(f"{places[name]} is not the certificate of the {name} key")
    if chains["signing"][0].public_key.point == chains["encryption"][0].public_key.point:
        raise KeyProblem(f"{places['signing']}: signing and encryption key must be two keys")
    now = datetime.now(UTC)
    for name, usage in USAGE.items():
        at = min(now, *(one.not_after for one in chains[name])) if expired else now
        try:
            check_chain(chains[name], at, usage)
        except ChainError as error:
            raise KeyProblem(f"{places[name]}: {error}") from None
