"""While keys are being rotated: seal with the new ones, open what still is wrapped for the old ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from recorder.canonical import JSON
from recorder.gm.x509 import Certificate
from recorder.keys.provider import FIRST_SUITE, CryptoProvider, KeyProblem, ProviderInfo, is_wrapped_for
from recorder.sealed import DataKey
from recorder.signed import Signer


class RotatingProvider:
    """The current keys for everything, the former ones for sidecars not yet rewritten."""

    def __init__(self, current: CryptoProvider, former: CryptoProvider) -> None:
        """Raise KeyProblem if both wrap for the same certificate: nothing would be rotated."""
        self.current = current
        self.former = former
        self._info = current.info()
        old = former.info()
        if _fingerprint(self._info) == _fingerprint(old):
            raise KeyProblem("the former keys and the current ones have the same encryption certificate")
        signers = (*self._info.former_signing_certificates, old.signing_certificate_pem)
        self._info = replace(self._info, former_signing_certificates=signers)

    @property
    def can_open(self) -> bool:
        """Whether the current keys open."""
        return self.current.can_open

    def info(self) -> ProviderInfo:
        """Say what the current provider is; the former's signing key is among the former ones."""
        return self._info

    def signer(self) -> Signer:
        """Return the current keys' signer."""
        return self.current.signer()

    async def random(self, size: int) -> bytes:
        """Draw from the current provider."""
        return await self.current.random(size)

    async def new_data_key(
        self, recording_id: str, suite: int = FIRST_SUITE
    ) -> tuple[DataKey, dict[str, JSON]]:
        """Make a data key wrapped for the current keys."""
        return await self.current.new_data_key(recording_id, suite)

    async def unwrap(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Open with the keys that the sidecar is wrapped for. Raise KeyProblem."""
        holder = self._holder(sidecar)
        return await holder.unwrap(sidecar, recording_id=recording_id, purpose=purpose, actor=actor)

    def unwrap_now(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Do what ``unwrap`` does, blocking."""
        holder = self._holder(sidecar)
        return holder.unwrap_now(sidecar, recording_id=recording_id, purpose=purpose, actor=actor)

    async def sign(self, message: bytes) -> bytes:
        """Sign with the current key."""
        return await self.current.sign(message)

    def _holder(self, sidecar: Mapping[str, JSON]) -> CryptoProvider:
        return self.current if is_wrapped_for(sidecar, _fingerprint(self._info)) else self.former


def _fingerprint(info: ProviderInfo) -> str:
    return Certificate.from_pem(info.encryption_certificate_pem).fingerprint
