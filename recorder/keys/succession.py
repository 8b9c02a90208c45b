"""When the signing key is replaced: the old key vouches for the new one, recording by recording.

A sidecar that a new key signs carries ``succession``: a list of ``{certificate, by, signature}``, each saying
that the key ``by`` (a certificate's fingerprint) vouches for the one in ``certificate`` as its successor. It
is what lets a verifier who knows the manifest's signer alone accept the sidecar, and what the successor
states later. Who has no signing key of the chain cannot add to it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from recorder.canonical import JSON
from recorder.gm.sm2 import Sm2Error
from recorder.gm.x509 import Certificate
from recorder.signed import Signer

CONTEXT = b"shuanglu signer succession v1\n"
_MOST = 64


def endorse(old: Signer, new: Certificate) -> dict[str, JSON]:
    """Let the old key vouch for the new one: an item of ``succession``."""
    by = Certificate.from_pem(old.certificate_pem).fingerprint
    return {
        "certificate": new.pem,
        "by": by,
        "signature": base64.b64encode(old.sign(_message(new, by))).decode(),
    }


@dataclass(frozen=True)
class Succession:
    """One key's word for another."""

    successor: Certificate
    voucher: Certificate
    at: datetime | None = None
    """When the word was given, as far as it is known."""


def successors(fields: Mapping[str, JSON], known: Mapping[str, Certificate]) -> dict[str, Certificate]:
    """Return, by fingerprint, the certificates that a page's ``succession`` adds to the ``known`` ones.

    What does not verify adds nothing. Whether a voucher was revoked or out of date is not asked.
    """
    return {one.successor.fingerprint: one.successor for one in successions(fields, known)}


def successions(fields: Mapping[str, JSON], known: Mapping[str, Certificate]) -> list[Succession]:
    """Return what a page's ``succession`` holds that verifies and leads back to the ``known`` ones."""
    listed = fields.get("succession")
    given: list[Succession] = []
    found: dict[str, Certificate] = {}
    for item in listed[:_MOST] if isinstance(listed, list) else []:
        if not isinstance(item, Mapping):
            continue
        by = str(item.get("by"))
        voucher = found.get(by) or known.get(by)
        if voucher is None:
            continue
        try:
            certificate = Certificate.from_pem(str(item.get("certificate")))
            signature = base64.b64decode(str(item.get("signature")), validate=True)
        except (Sm2Error, binascii.Error, ValueError):
            continue
        if voucher.public_key.verify(_message(certificate, by), signature):
            found[certificate.fingerprint] = certificate
            given.append(Succession(certificate, voucher))
    return given


def _message(new: Certificate, by: str) -> bytes:
    return CONTEXT + f"{by}\n{new.fingerprint}\n".encode()
