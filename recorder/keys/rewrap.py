"""Rotation: open each recording's data key with the old keys, wrap it for the new ones; media is not touched.

Each sidecar is replaced in one step, with the next revision, signed by the new signing key. Stopped anywhere
and run again it goes on where it was: what is wrapped for the new keys already is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from recorder.atomic import locked
from recorder.canonical import JSON, CanonicalError, as_int
from recorder.gm.x509 import Certificate
from recorder.keys.provider import CryptoProvider, KeyProblem, KeysUnavailable, is_wrapped_for, wrap_for
from recorder.keys.sidecar import SIDECAR, open_sidecar, write_sidecar
from recorder.keys.succession import endorse
from recorder.manifest import MANIFEST, ManifestError, read_manifest


class Outcome(Enum):
    """What became of one sidecar."""

    REWRAPPED = "rewrapped"
    ALREADY = "already"


@dataclass
class Rewrapped:
    """Counts of a run."""

    rewrapped: int = 0
    already: int = 0
    """Were wrapped for the new keys before."""
    failed: dict[str, str] = field(default_factory=dict)
    """Directory and why; they stay as they were."""


class Rewrapper:
    """Moves sidecars from the old keys to the new ones."""

    def __init__(
        self,
        old: CryptoProvider,
        new: CryptoProvider,
        *,
        actor: str,
        trusted: tuple[Certificate, ...] = (),
    ) -> None:
        """``trusted`` are further signers that sidecars may have been signed by: of keys before ``old``."""
        self._old, self._new, self._actor = old, new, actor
        info, before = new.info(), old.info()
        self.recipient = Certificate.from_pem(info.encryption_certificate_pem)
        self._provider = info.name
        self._signing = Certificate.from_pem(info.signing_certificate_pem)
        self._chain = info.chain_pem
        pems = (before.signing_certificate_pem, *before.former_signing_certificates)
        certificates = (self._signing, *(Certificate.from_pem(pem) for pem in pems), *trusted)
        self._accepted = {certificate.public_key.point for certificate in certificates}
        old_signing = certificates[1]
        same = old_signing.public_key.point == self._signing.public_key.point
        self._endorsement = None if same else endorse(old.signer(), self._signing)

    def rewrap(
        self, directory: Path, before_write: Callable[[str], None] = lambda recording: None
    ) -> Outcome:
        """Rewrap one recording. ``before_write`` hears its id when the key was opened, before the new sidecar
        takes the old one's place.

        A sidecar is believed only if one of the keys' own signatures is on it: we would sign it anew. Raise
        KeyProblem, ManifestError, OSError.
        """
        page = open_sidecar(directory)
        fields = page.fields
        recording = str(fields.get("recording"))
        if is_wrapped_for(fields, self.recipient.fingerprint):
            return Outcome.ALREADY
        if page.certificate.public_key.point not in self._accepted:
            raise KeyProblem(f"{directory / SIDECAR} was signed by another ({page.certificate.subject})")
        if (directory / MANIFEST).exists() and read_manifest(directory).key_id != fields.get("key_id"):
            raise KeyProblem(f"{directory / SIDECAR} names another key than the manifest")
        key = self._old.unwrap_now(fields, recording_id=recording, purpose="rewrap", actor=self._actor)
        try:
            revision = as_int(fields.get("revision"))
        except CanonicalError as error:
            raise KeyProblem(f"{directory / SIDECAR} has no usable revision: {error}") from None
        listed = fields.get("succession")
        succession = list(listed) if isinstance(listed, list) else []
        if self._endorsement is not None:
            succession.append(self._endorsement)
        wrap, signer = wrap_for(self.recipient, key.secret, self._provider), self._new.signer()
        before_write(recording)
        with locked(directory):  # as an erasure does: what was erased meanwhile does not come back
            if not (directory / SIDECAR).exists():
                raise KeyProblem(f"{directory / SIDECAR} was erased meanwhile")
            write_sidecar(
                directory,
                recording,
                key.key_id,
                [wrap],
                signer,
                suite=key.suite,
                revision=revision + 1,
                succession=succession,
                chain=list(dict.fromkeys([*_texts(fields.get("chain")), *self._chain])),
            )
        return Outcome.REWRAPPED

    def rewrap_all(self, directories: Iterable[Path], counts: Rewrapped) -> Iterator[Path]:
        """Rewrap one after the other, giving each directory when ``counts`` has it.

        One that fails is counted and named. Raise KeysUnavailable when the key service goes: run it again.
        """
        for directory in directories:
            try:
                outcome = self.rewrap(directory)
            except KeysUnavailable:
                raise
            except (KeyProblem, ManifestError, OSError) as error:
                counts.failed[str(directory)] = str(error)
            else:
                if outcome is Outcome.REWRAPPED:
                    counts.rewrapped += 1
                else:
                    counts.already += 1
            yield directory


def _texts(value: JSON) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
