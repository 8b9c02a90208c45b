"""The certificate of the HTTPS port: the operator's, or a self-signed one for all advertised addresses.

A browser gives camera and microphone to HTTPS pages and to localhost only, so a phone in the same network
needs TLS from the first minute. The self-signed certificate makes it warn once; its fingerprint is printed
to compare.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mediaserver.settings import Settings

VALID_DAYS = 397
"""Browsers accept no longer life (CA/Browser Forum ballot SC31)."""
RENEW_DAYS = 30


class TlsError(Exception):
    """The configured certificate cannot be used; says which file and why."""


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key on disk."""

    cert: Path
    key: Path
    fingerprint: str
    """SHA-256 of the DER form, ``AB:CD:…``, as browsers show it."""
    names: tuple[str, ...]
    """DNS names and addresses it is valid for."""
    self_signed: bool
    expires: datetime


def certificate(settings: Settings, names: tuple[str, ...], now: datetime) -> Certificate:
    """Return the configured certificate, or the self-signed one, made anew if it lacks a name or ends soon.

    ``names``: addresses and host names the certificate must cover. Raises TlsError.
    """
    if settings.tls.cert is not None and settings.tls.key is not None:
        return read(settings.tls.cert, settings.tls.key, self_signed=False)
    directory = settings.secrets_dir / "tls"
    cert, key = directory / "cert.pem", directory / "key.pem"
    if cert.exists() and key.exists():
        present = read(cert, key, self_signed=True)
        if set(names) <= set(present.names) and present.expires - now > timedelta(days=RENEW_DAYS):
            return present
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    _make(cert, key, names, now)
    return read(cert, key, self_signed=True)


def names_to_cover(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Return what a self-signed certificate is for: the advertised addresses, loopback, this host's name."""
    names = dict.fromkeys((*addresses, "127.0.0.1", "::1", "localhost", socket.gethostname().lower()))
    return tuple(name for name in names if name and name.isascii())


def read(cert: Path, key: Path, *, self_signed: bool) -> Certificate:
    """Read a PEM certificate and see that its key fits; TlsError if not."""
    try:
        leaf = x509.load_pem_x509_certificate(cert.read_bytes())
        context(cert, key)
    except (OSError, ValueError, ssl.SSLError) as error:
        raise TlsError(f"{cert}, {key}: {error}") from error
    names: list[str] = []
    try:
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += alternatives.get_values_for_type(x509.DNSName)
        names += [str(address) for address in alternatives.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        names = []  # browsers ignore the subject's common name; doctor says that nothing is covered
    digest = hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest().upper()
    return Certificate(
        cert=cert,
        key=key,
        fingerprint=":".join(digest[at : at + 2] for at in range(0, len(digest), 2)),
        names=tuple(names),
        self_signed=self_signed,
        expires=leaf.not_valid_after_utc,
    )


def context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return a server context, TLS 1.2 or newer."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(cert, key)
    return made


def _make(cert: Path, key: Path, names: tuple[str, ...], now: datetime) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Shuanglu media server")])
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # a phone's clock may be a little behind
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(key, pem)
    _replace(cert, made.public_bytes(serialization.Encoding.PEM))


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)


def utc_now() -> datetime:
    return datetime.now(UTC)
