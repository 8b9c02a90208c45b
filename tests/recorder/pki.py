"""An SM2 authority for tests: roots, intermediates, leaves with anything wrong, revocation lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from recorder.gm import der
from recorder.gm.sm2 import PrivateKey
from recorder.gm.x509 import SM2_WITH_SM3_OID, Certificate, extension, name, sign_certificate

KeyUsage = Literal["sign", "encrypt", "ca", "none"]
_BITS = {"sign": b"\xc0", "encrypt": b"\x30", "ca": b"\x06", "none": b"\x08"}  # none: keyAgreement alone
SINCE = datetime(2025, 12, 1, tzinfo=UTC)
UNTIL = datetime(2040, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Issuer:
    """A CA's key and certificate."""

    key: PrivateKey
    pem: str

    @property
    def certificate(self) -> Certificate:
        return Certificate.from_pem(self.pem)


def extensions(
    usage: KeyUsage | None, *, ca: bool = False, path_length: int | None = None, extra: Sequence[bytes] = ()
) -> list[bytes]:
    """Encode basicConstraints, keyUsage (unless None) and whatever else."""
    constraints = (der.tlv(der.BOOLEAN, b"\xff") if ca else b"") + (
        der.integer(path_length) if path_length is not None else b""
    )
    found = [extension("2.5.29.19", der.sequence(constraints), critical=True)]
    if usage is not None:
        unused = (_BITS[usage][0] & -_BITS[usage][0]).bit_length() - 1
        found.append(extension("2.5.29.15", der.bit_string(_BITS[usage], unused), critical=True))
    return [*found, *extra]


def make_ca(
    title: str,
    issuer: Issuer | None = None,
    *,
    path_length: int | None = None,
    ca: bool = True,
    usage: KeyUsage | None = "ca",
    not_before: datetime = SINCE,
    not_after: datetime = UNTIL,
) -> Issuer:
    """Make a CA, a root without ``issuer``."""
    key = PrivateKey.generate()
    pem = sign_certificate(
        key.public,
        name({"C": "CN", "CN": title}),
        issuer.key if issuer else key,
        issuer.certificate.subject_name if issuer else name({"C": "CN", "CN": title}),
        not_before=not_before,
        not_after=not_after,
        extensions=extensions(usage, ca=ca, path_length=path_length),
    )
    return Issuer(key, pem)


def issue(
    issuer: Issuer,
    key: PrivateKey,
    title: str,
    usage: KeyUsage | None = "sign",
    *,
    not_before: datetime = SINCE,
    not_after: datetime = UNTIL,
    extra: Sequence[bytes] = (),
    issuer_name: bytes | None = None,
) -> str:
    """Issue a leaf certificate, PEM."""
    return sign_certificate(
        key.public,
        name({"C": "CN", "O": "测试银行", "CN": title}),
        issuer.key,
        issuer_name or issuer.certificate.subject_name,
        not_before=not_before,
        not_after=not_after,
        extensions=extensions(usage, extra=extra),
    )


def revocation_list(
    issuer: Issuer,
    revoked: Mapping[str, datetime],
    *,
    this_update: datetime,
    next_update: datetime | None = None,
    key: PrivateKey | None = None,
    extra: Sequence[bytes] = (),
) -> bytes:
    """Return a CRL, DER; ``revoked`` by serial number in hex. Signed by ``key`` instead, if given."""
    algorithm = der.sequence(der.oid(SM2_WITH_SM3_OID))
    entries = [der.sequence(der.integer(int(serial, 16)), der.time(when)) for serial, when in revoked.items()]
    number = extension("2.5.29.20", der.integer(1))
    body = der.sequence(
        der.integer(1),
        algorithm,
        issuer.certificate.subject_name,
        der.time(this_update),
        der.time(next_update) if next_update else b"",
        der.sequence(*entries) if entries else b"",
        der.tlv(0xA0, der.sequence(number, *extra)),
    )
    signed = der.sequence(body, algorithm, der.bit_string((key or issuer.key).sign(body)))
    return x509.load_der_x509_crl(signed).public_bytes(Encoding.DER)


@dataclass(frozen=True)
class Chain:
    """A root, an intermediate and what they vouch for."""

    root: Issuer
    intermediate: Issuer


def make_chain() -> Chain:
    """Make a root and an intermediate that may issue leaves only."""
    root = make_ca("Test Root CA")
    return Chain(root, make_ca("Test Signing CA", root, path_length=0))


def certify(directory: Path, chain: Chain, *, with_root: bool = True, until: datetime = UNTIL) -> None:
    """Put the authority's certificates in place of a provider's self-signed ones, issuers behind them."""
    since = SINCE if until > SINCE else until - timedelta(days=365)
    for half, usage in (("signing", "sign"), ("encryption", "encrypt")):
        key = PrivateKey.from_pem((directory / f"{half}.key.pem").read_bytes())
        wanted: KeyUsage = "sign" if usage == "sign" else "encrypt"
        pem = issue(chain.intermediate, key, f"recorder {half}", wanted, not_before=since, not_after=until)
        text = pem + chain.intermediate.pem + (chain.root.pem if with_root else "")
        (directory / f"{half}.cert.pem").write_text(text)
