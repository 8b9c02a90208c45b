"""X.509 certificates over SM2 with SM3 (GM/T 0015, RFC 5280): make self-signed ones, read and check any."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from recorder.gm import der
from recorder.gm.sm2 import PrivateKey, PublicKey, Sm2Error
from recorder.gm.sm3 import named, sm3

SM2_WITH_SM3_OID = "1.2.156.10197.1.501"
_DIGITAL_SIGNATURE_AND_COMMITMENT = b"\xc0"  # bits 0 and 1 of KeyUsage
_KEY_ENCIPHERMENT = b"\x30"  # bits 2 and 3: key and data encipherment


@dataclass(frozen=True)
class Certificate:
    """A parsed certificate; nothing about it is believed before ``signed_by`` or a trust list says so."""

    pem: str
    fingerprint: str
    """``sm3:…`` of its DER."""
    subject: str
    serial: str
    not_before: datetime
    not_after: datetime
    public_key: PublicKey = field(repr=False)
    _tbs: bytes = field(repr=False)
    _signature: bytes = field(repr=False)

    @classmethod
    def from_pem(cls, pem: str) -> Certificate:
        """Parse one PEM certificate over an SM2 key. Raise Sm2Error."""
        try:
            parsed = x509.load_pem_x509_certificate(pem.encode("ascii"))
            der_bytes = parsed.public_bytes(Encoding.DER)
            return cls(
                pem=pem,
                fingerprint=named(sm3(der_bytes)),
                subject=parsed.subject.rfc4514_string(),
                serial=f"{parsed.serial_number:x}",
                not_before=parsed.not_valid_before_utc,
                not_after=parsed.not_valid_after_utc,
                public_key=PublicKey.from_certificate_der(der_bytes),
                _tbs=parsed.tbs_certificate_bytes,
                _signature=parsed.signature,
            )
        except Sm2Error:
            raise
        except Exception:
            # Of hostile bytes cryptography raises ValueError, InvalidVersion and more of no common base; its
            # texts speak of its FAQ, not of what is wrong.
            raise Sm2Error("not a readable PEM certificate") from None

    def signed_by(self, issuer: PublicKey) -> bool:
        """Tell whether ``issuer`` signed this certificate (its own key: self-signed)."""
        return issuer.verify(self._tbs, self._signature)

    @property
    def self_signed(self) -> bool:
        """Whether its own key signed it."""
        return self.signed_by(self.public_key)


def self_signed(
    key: PrivateKey, common_name: str, *, usage: Literal["sign", "encrypt"], not_before: datetime, days: int
) -> str:
    """Make a self-signed certificate for ``key`` with the one key usage; return PEM."""
    algorithm = der.sequence(der.oid(SM2_WITH_SM3_OID))
    name_part = der.sequence(der.oid("2.5.4.3"), der.tlv(der.UTF8_STRING, common_name.encode()))
    name = der.sequence(der.tlv(der.SET, name_part))
    usage_bits = (
        der.bit_string(_DIGITAL_SIGNATURE_AND_COMMITMENT, 6)
        if usage == "sign"
        else der.bit_string(_KEY_ENCIPHERMENT, 4)
    )
    key_id = der.tlv(der.OCTET_STRING, sm3(key.public.point)[:20])
    critical = der.tlv(der.BOOLEAN, b"\xff")
    extensions = der.sequence(
        der.sequence(der.oid("2.5.29.19"), critical, der.tlv(der.OCTET_STRING, der.sequence())),
        der.sequence(der.oid("2.5.29.15"), critical, der.tlv(der.OCTET_STRING, usage_bits)),
        der.sequence(der.oid("2.5.29.14"), der.tlv(der.OCTET_STRING, key_id)),
    )
    to_be_signed = der.sequence(
        der.tlv(0xA0, der.integer(2)),
        der.integer(secrets.randbits(127) | 1 << 126),
        algorithm,
        name,
        der.sequence(der.time(not_before), der.time(not_before + timedelta(days=days))),
        name,
        key.public.to_der(),
        der.tlv(0xA3, extensions),
    )
    certificate = der.sequence(to_be_signed, algorithm, der.bit_string(key.sign(to_be_signed)))
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM).decode()
