"""Signed pages: a JSON object in canonical form that carries its signer's certificate and signature.

    {…members…, "certificate": PEM, "signature": "sm2-sm3:" + base64(DER of r, s)}

The signature (GM/T 0003.2, signer id 1234567812345678) is over the canonical bytes (RFC 8785) of the object
without ``signature``. The file's bytes are exactly the canonical bytes of the whole object, so no byte of it
can change unnoticed.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from recorder.canonical import JSON, CanonicalError, canonical, parse_canonical
from recorder.gm.sm2 import Sm2Error
from recorder.gm.sm3 import named, sm3
from recorder.gm.x509 import Certificate

SIGNATURE_PREFIX = "sm2-sm3:"
MAX_PAGE_BYTES = 64 << 20
"""A manifest of a day has some 5 MiB; longer pages are refused before they are read."""


class Signer(Protocol):
    """Signs from any thread; the private key may be anywhere."""

    @property
    def certificate_pem(self) -> str:
        """Certificate of the signing key."""

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature over ``message``."""


class SignedError(ValueError):
    """A signed page is not canonical, has no valid signature, or is of another type than expected."""


@dataclass(frozen=True)
class SignedPage:
    """A page whose signature fits the certificate it carries (whether to trust that one is not said)."""

    fields: Mapping[str, JSON]
    """All members but certificate and signature."""
    certificate: Certificate
    digest: bytes
    """SM3 of the page's bytes: what the next page of a chain names."""

    def member(self, *names: str) -> JSON:
        """Return the member at a path of names; an empty text where there is none."""
        value: JSON = dict(self.fields)
        for name in names:
            value = value.get(name, "") if isinstance(value, dict) else ""
        return value


def sign_page(fields: Mapping[str, JSON], signer: Signer) -> bytes:
    """Return the bytes of the signed page. Raise CanonicalError for values without canonical form."""
    if {"certificate", "signature"} & set(fields):
        raise ValueError("certificate and signature are added by signing")
    body: dict[str, JSON] = {**fields, "certificate": signer.certificate_pem}
    signature = base64.b64encode(signer.sign(canonical(body))).decode()
    return canonical({**body, "signature": SIGNATURE_PREFIX + signature})


def open_page(data: bytes, *, page_type: str) -> SignedPage:
    """Parse a signed page and check form, signature and ``type``. Raise SignedError saying what is wrong."""
    try:
        value = parse_canonical(data)
    except CanonicalError as error:
        raise SignedError(str(error)) from None
    signature, pem = value.pop("signature", None), value.get("certificate")
    if not isinstance(signature, str) or not isinstance(pem, str):
        raise SignedError("has no signature or certificate")
    try:
        if not signature.startswith(SIGNATURE_PREFIX):
            raise ValueError("unknown signature algorithm")
        encoded = signature.removeprefix(SIGNATURE_PREFIX)
        raw = base64.b64decode(encoded, validate=True)
        if base64.b64encode(raw).decode() != encoded:
            raise ValueError("not the one way to write it in base64")
        certificate = Certificate.from_pem(pem)
    except (binascii.Error, ValueError, Sm2Error) as error:
        raise SignedError(f"has an unusable signature or certificate: {error}") from None
    if not certificate.public_key.verify(canonical(value), raw):
        raise SignedError("the signature does not fit: the page was changed, or signed by another key")
    if value.get("type") != page_type:
        raise SignedError(f"is a {value.get('type')!r}, not a {page_type!r}")
    del value["certificate"]
    return SignedPage(value, certificate, sm3(data))


def read_page(path: Path) -> bytes:
    """Read a page's bytes. Raise SignedError for what is no file or too long to be a page, OSError."""
    try:
        # Without O_NONBLOCK opening a named pipe waits for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink() or error.errno == errno.ENXIO:  # leads nowhere or in circles; a socket
            raise SignedError(f"is no file: {error.strerror}") from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_PAGE_BYTES:
            raise SignedError(f"is no file, or longer than {MAX_PAGE_BYTES >> 20} MiB")
        with open(descriptor, "rb", closefd=False) as file:  # which refuses a directory's descriptor
            return file.read(MAX_PAGE_BYTES)
    finally:
        os.close(descriptor)


def digest_name(data: bytes) -> str:
    """Return ``sm3:…`` of a page's bytes."""
    return named(sm3(data))


def signable(value: object) -> JSON:
    """Make a value fit to be signed: integers of ``…_ns`` members become strings, floats are refused."""
    if isinstance(value, Mapping):
        return {
            str(name): str(item)
            if str(name).endswith("_ns") and isinstance(item, int) and not isinstance(item, bool)
            else signable(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [signable(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    raise CanonicalError(f"{type(value).__name__} cannot be signed")
