"""X.509 certificates and revocation lists over SM2 with SM3 (GM/T 0015, RFC 5280): make, read, check a
signature.

What a chain of them must fulfil is in ``recorder.certificates``.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from recorder.gm import der
from recorder.gm.sm2 import PrivateKey, PublicKey, Sm2Error
from recorder.gm.sm3 import named, sm3

SM2_WITH_SM3_OID = "1.2.156.10197.1.501"
Usage = Literal["sign", "encrypt"]
_USAGE_BITS: Mapping[Usage, bytes] = {
    "sign": der.bit_string(b"\xc0", 6),  # digitalSignature, contentCommitment
    "encrypt": der.bit_string(b"\x30", 4),  # keyEncipherment, dataEncipherment
}
_NAME_OIDS = {"C": "2.5.4.6", "O": "2.5.4.10", "OU": "2.5.4.11", "CN": "2.5.4.3"}
_EXTENSION_REQUEST_OID = "1.2.840.113549.1.9.14"
_UNDERSTOOD = (
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.CERTIFICATE_POLICIES,
)
"""Extensions that may be critical: they restrict a chain by what is checked, or name further subjects."""


@dataclass(frozen=True)
class Certificate:
    """A parsed certificate; nothing about it is believed before ``signed_by`` or a trust list says so."""

    pem: str
    """The certificate alone, without what stood around it in a file."""
    fingerprint: str
    """``sm3:…`` of its DER."""
    subject: str
    issuer: str
    serial: str
    not_before: datetime
    not_after: datetime
    is_ca: bool
    path_length: int | None
    """Of a CA: how many CA certificates may stand between it and the leaf; None: any number."""
    usages: frozenset[str] | None
    """Names of RFC 5280's KeyUsage bits as cryptography spells them; None: it does not restrict them."""
    purposes: frozenset[str] | None
    """OIDs of its extendedKeyUsage; None: it does not restrict them."""
    unknown_critical: tuple[str, ...]
    """OIDs of critical extensions this program does not know: RFC 5280 section 4.2 wants them refused."""
    public_key: PublicKey = field(repr=False)
    subject_name: bytes = field(repr=False)
    issuer_name: bytes = field(repr=False)
    _tbs: bytes = field(repr=False)
    _signature: bytes = field(repr=False)

    @classmethod
    def from_pem(cls, pem: str) -> Certificate:
        """Parse the first certificate of a PEM text, over an SM2 key. Raise Sm2Error."""
        try:
            return cls._from(x509.load_pem_x509_certificate(pem.encode("ascii")))
        except Sm2Error:
            raise
        except Exception:
            # Of hostile bytes cryptography raises ValueError, InvalidVersion and more of no common base; its
            # texts speak of its FAQ, not of what is wrong.
            raise Sm2Error("not a readable PEM certificate") from None

    @classmethod
    def all_from_pem(cls, pem: str) -> list[Certificate]:
        """Parse every certificate of a PEM text, at least one, in their order. Raise Sm2Error."""
        try:
            return [cls._from(one) for one in x509.load_pem_x509_certificates(pem.encode("ascii"))]
        except Sm2Error:
            raise
        except Exception:
            raise Sm2Error("not readable PEM certificates") from None

    @classmethod
    def _from(cls, parsed: x509.Certificate) -> Certificate:
        der_bytes = parsed.public_bytes(Encoding.DER)
        extensions = {extension.oid: extension for extension in parsed.extensions}
        basic = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
        usage = extensions.get(ExtensionOID.KEY_USAGE)
        extended = extensions.get(ExtensionOID.EXTENDED_KEY_USAGE)
        is_ca, path_length = False, None
        if basic is not None and isinstance(basic.value, x509.BasicConstraints):
            is_ca, path_length = basic.value.ca, basic.value.path_length
        return cls(
            pem=parsed.public_bytes(Encoding.PEM).decode(),
            fingerprint=named(sm3(der_bytes)),
            subject=parsed.subject.rfc4514_string(),
            issuer=parsed.issuer.rfc4514_string(),
            serial=f"{parsed.serial_number:x}",
            not_before=parsed.not_valid_before_utc,
            not_after=parsed.not_valid_after_utc,
            is_ca=is_ca,
            path_length=path_length,
            usages=_usages(usage.value) if usage and isinstance(usage.value, x509.KeyUsage) else None,
            purposes=frozenset(oid.dotted_string for oid in extended.value)
            if extended and isinstance(extended.value, x509.ExtendedKeyUsage)
            else None,
            unknown_critical=tuple(
                oid.dotted_string
                for oid, extension in extensions.items()
                if extension.critical and oid not in _UNDERSTOOD
            ),
            public_key=PublicKey.from_certificate_der(der_bytes),
            subject_name=parsed.subject.public_bytes(),
            issuer_name=parsed.issuer.public_bytes(),
            _tbs=parsed.tbs_certificate_bytes,
            _signature=parsed.signature,
        )

    def signed_by(self, issuer: PublicKey) -> bool:
        """Tell whether ``issuer`` signed this certificate (its own key: self-signed)."""
        return issuer.verify(self._tbs, self._signature)

    @property
    def self_signed(self) -> bool:
        """Whether its own key signed it."""
        return self.signed_by(self.public_key)


def _usages(usage: x509.KeyUsage) -> frozenset[str]:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
    )
    return frozenset(name for name in names if getattr(usage, name))


@dataclass(frozen=True)
class RevocationList:
    """A parsed CRL (RFC 5280 section 5); not believed before ``signed_by`` says so."""

    issuer: str
    issuer_name: bytes = field(repr=False)
    this_update: datetime
    """As of when it speaks."""
    next_update: datetime | None
    """When a newer one is there at the latest."""
    unknown_critical: tuple[str, ...]
    revoked: Mapping[str, datetime] = field(repr=False)
    """Serial number in hex (as ``Certificate.serial``) to the time of revocation."""
    _tbs: bytes = field(repr=False)
    _signature: bytes = field(repr=False)

    @classmethod
    def from_bytes(cls, data: bytes) -> RevocationList:
        """Parse DER or PEM. Raise Sm2Error."""
        pem = data.lstrip().startswith(b"-----BEGIN")
        try:
            parsed = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
            return cls(
                issuer=parsed.issuer.rfc4514_string(),
                issuer_name=parsed.issuer.public_bytes(),
                this_update=parsed.last_update_utc,
                next_update=parsed.next_update_utc,
                unknown_critical=tuple(one.oid.dotted_string for one in parsed.extensions if one.critical),
                revoked={f"{one.serial_number:x}": one.revocation_date_utc for one in parsed},
                _tbs=parsed.tbs_certlist_bytes,
                _signature=parsed.signature,
            )
        except Exception:
            raise Sm2Error("not a readable certificate revocation list") from None

    def signed_by(self, issuer: PublicKey) -> bool:
        """Tell whether ``issuer`` signed this list."""
        return issuer.verify(self._tbs, self._signature)


def name(parts: Mapping[str, str]) -> bytes:
    """Return the DER of a distinguished name of ``C``, ``O``, ``OU``, ``CN``, in the order given.

    Raise ValueError for another attribute, an empty value, a country not of two letters.
    """
    encoded = []
    for attribute, value in parts.items():
        if attribute not in _NAME_OIDS:
            raise ValueError(f"{attribute} in a name; known are {', '.join(_NAME_OIDS)}")
        if not value or len(value) > 64 or (attribute == "C" and not (len(value) == 2 and value.isascii())):
            raise ValueError(f"{attribute} of a name cannot be {value!r}")
        tag = der.PRINTABLE_STRING if attribute == "C" else der.UTF8_STRING
        pair = der.sequence(der.oid(_NAME_OIDS[attribute]), der.tlv(tag, value.encode()))
        encoded.append(der.tlv(der.SET, pair))
    return der.sequence(*encoded)


def extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    """Return the DER of one extension."""
    flag = der.tlv(der.BOOLEAN, b"\xff") if critical else b""
    return der.sequence(der.oid(oid), flag, der.tlv(der.OCTET_STRING, value))


def sign_certificate(
    subject: PublicKey,
    subject_name: bytes,
    issuer: PrivateKey,
    issuer_name: bytes,
    *,
    not_before: datetime,
    not_after: datetime,
    extensions: Sequence[bytes],
) -> str:
    """Make a certificate with a random serial number, signed by ``issuer``; return PEM."""
    algorithm = der.sequence(der.oid(SM2_WITH_SM3_OID))
    to_be_signed = der.sequence(
        der.tlv(0xA0, der.integer(2)),
        der.integer(secrets.randbits(127) | 1 << 126),
        algorithm,
        issuer_name,
        der.sequence(der.time(not_before), der.time(not_after)),
        subject_name,
        subject.to_der(),
        der.tlv(0xA3, der.sequence(*extensions)),
    )
    certificate = der.sequence(to_be_signed, algorithm, der.bit_string(issuer.sign(to_be_signed)))
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM).decode()


def self_signed(key: PrivateKey, common_name: str, *, usage: Usage, not_before: datetime, days: int) -> str:
    """Make a self-signed certificate for ``key`` with the one key usage; return PEM."""
    own_name = name({"CN": common_name})
    key_id = der.tlv(der.OCTET_STRING, sm3(key.public.point)[:20])
    return sign_certificate(
        key.public,
        own_name,
        key,
        own_name,
        not_before=not_before,
        not_after=not_before + timedelta(days=days),
        extensions=[
            extension("2.5.29.19", der.sequence(), critical=True),
            extension("2.5.29.15", _USAGE_BITS[usage], critical=True),
            extension("2.5.29.14", key_id),
        ],
    )


def signing_request(key: PrivateKey, subject: Mapping[str, str], *, usage: Usage) -> str:
    """Make a request for a certificate (PKCS #10, RFC 2986) with the one key usage; return PEM.

    ``subject`` as for ``name``. Raise ValueError for a name that cannot be.
    """
    wanted = der.sequence(extension("2.5.29.15", _USAGE_BITS[usage], critical=True))
    attribute = der.sequence(der.oid(_EXTENSION_REQUEST_OID), der.tlv(der.SET, wanted))
    to_be_signed = der.sequence(der.integer(0), name(subject), key.public.to_der(), der.tlv(0xA0, attribute))
    algorithm = der.sequence(der.oid(SM2_WITH_SM3_OID))
    request = der.sequence(to_be_signed, algorithm, der.bit_string(key.sign(to_be_signed)))
    return x509.load_der_x509_csr(request).public_bytes(Encoding.PEM).decode()
