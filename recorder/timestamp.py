"""Time-stamps of an authority (RFC 3161) over a recording: ask for them, state them.

Stamped is the SM3 of a small page in canonical form, which the statement repeats, so that anyone can check
the token with ``openssl ts -verify``. Of a ``timestamp`` the page names the manifest and the last statement,
of a ``renewal`` every file and page there is, earlier tokens included. Checking is in ``recorder.tokens``.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from recorder.canonical import JSON, canonical
from recorder.fetch import FetchError, fetch
from recorder.gm import tsp
from recorder.gm.sm3 import named, sm3
from recorder.manifest import MANIFEST, SEALED_PART, Manifest, read_manifest
from recorder.signed import Signer
from recorder.statements import STATEMENTS, Statement, append_statement, read_statements
from recorder.storage import files_directory, segments_directory

TIMESTAMP, RENEWAL = "timestamp", "renewal"
PAGE_TYPES = {TIMESTAMP: "shuanglu.timestamp.v1", RENEWAL: "shuanglu.renewal.v1"}
DEFAULT_TIMEOUT_S = 20.0
_TIMELESS = frozenset({TIMESTAMP, RENEWAL, "certificate_status"})


class TimestampError(Exception):
    """No time-stamp was got, or it is not to be used; says which authority and why."""


@dataclass(frozen=True)
class Authority:
    """A time-stamp authority, as configured."""

    url: str
    anchors: tuple[bytes, ...] | None = None
    """DER certificates its chain must lead to; None: its chain is not checked when it answers."""
    policy: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S


@dataclass(frozen=True)
class Stamped:
    """A statement with a token, just made."""

    statement: Statement
    token: tsp.Token
    state: str
    """``verified``, or ``not_verified_here`` if this library cannot check the authority's algorithm."""


def read_anchors(path: Path) -> tuple[bytes, ...]:
    """Read the certificates of a PEM file as DER. Raise TimestampError naming the file, OSError."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
        return tuple(one.public_bytes(Encoding.DER) for one in found)
    except ValueError:
        raise TimestampError(f"{path} holds no readable PEM certificates") from None


def ask(authority: Authority, page: Mapping[str, JSON]) -> tuple[bytes, tsp.Token, str]:
    """Have a page stamped by its SM3, as ``ask_digest`` does."""
    return ask_digest(authority, sm3(canonical(page)))


def ask_digest(authority: Authority, imprint: bytes) -> tuple[bytes, tsp.Token, str]:
    """Have an SM3 digest stamped. Return the response (DER), what its token says, ``Stamped.state``. Blocks.

    Raise TimestampError if the authority is not reached, refuses, or its token is not over this digest, not
    the answer to this request, of another policy, or does not hold.
    """
    nonce = secrets.randbits(63) | 1 << 63
    query = tsp.request(imprint, nonce=nonce, policy=authority.policy)
    try:
        response, kind = fetch(
            authority.url,
            timeout_s=authority.timeout_s,
            max_bytes=tsp.MAX_RESPONSE_BYTES,
            body=query,
            body_type="application/timestamp-query",
        )
        if kind != "application/timestamp-reply":
            raise TimestampError(f"{authority.url} answered {kind}, not application/timestamp-reply")
        token = tsp.parse(response)
        if (token.imprint_algorithm, token.imprint) != (tsp.SM3_OID, imprint):
            raise TimestampError(f"{authority.url} stamped something else than was asked for")
        if token.nonce != nonce:
            raise TimestampError(f"{authority.url} answered with another request's token (wrong nonce)")
        if authority.policy is not None and token.policy != authority.policy:
            raise TimestampError(f"{authority.url} stamped under policy {token.policy}")
        try:
            tsp.check(response, token, authority.anchors)
        except tsp.TokenUnsupported:
            return response, token, "not_verified_here"
        return response, token, "verified"
    except FetchError as error:
        raise TimestampError(str(error)) from None
    except tsp.TokenError as error:
        raise TimestampError(f"the time-stamp of {authority.url} is not to be used: {error}") from None


def timestamp_page(manifest: Manifest, statements: Sequence[Statement]) -> dict[str, JSON]:
    """Return what a ``timestamp`` stamps: the manifest and, by the last one's digest, all statements."""
    return {
        "type": PAGE_TYPES[TIMESTAMP],
        "recording": manifest.recording,
        "manifest": named(manifest.page.digest),
        "number": len(statements),
        "statement": named(statements[-1].page.digest) if statements else None,
    }


def renewal_page(manifest: Manifest, statements: Sequence[Statement]) -> dict[str, JSON]:
    """Return what a ``renewal`` stamps: every file and page of the recording but ``keys.json``, by digest."""
    digests = digests_of(manifest, statements)
    return {
        "type": PAGE_TYPES[RENEWAL],
        "recording": manifest.recording,
        "number": len(statements),
        "files": [{"name": name, "sm3": digests[name]} for name in sorted(digests)],
    }


def digests_of(manifest: Manifest, statements: Sequence[Statement]) -> dict[str, str]:
    """Return ``sm3:…`` of every page and of every sealed file they name, by name in the directory."""
    digests = {MANIFEST: named(manifest.page.digest), SEALED_PART: manifest.sealed.sm3}
    digests.update({f"{segments_directory(Path()).name}/{one.name}": one.sm3 for one in manifest.segments})
    for statement in statements:
        digests[f"{STATEMENTS}/{statement.number:06d}.json"] = named(statement.page.digest)
        if statement.sealed is not None:
            digests[f"{STATEMENTS}/{statement.sealed.name}"] = statement.sealed.sm3
        digests.update({f"{files_directory(Path()).name}/{one.name}": one.sm3 for one in statement.files})
    return digests


def stamp(directory: Path, kind: str, authority: Authority, signer: Signer) -> Stamped:
    """Have a recording stamped and append the statement. Blocks for the authority.

    ``kind`` is ``timestamp`` or ``renewal``; before a renewal the recording should have been verified, as it
    vouches for every file as signed. Statements appended meanwhile are not covered. Raise TimestampError,
    ManifestError, FileNotFoundError, StatementError.
    """
    manifest, statements = read_manifest(directory), read_statements(directory)
    make = {TIMESTAMP: timestamp_page, RENEWAL: renewal_page}[kind]
    page = make(manifest, statements)
    response, token, state = ask(authority, page)
    body = {"stamped": page, "response": base64.b64encode(response).decode()}
    return Stamped(append_statement(directory, kind, body, signer), token, state)


def is_stamped(statements: Sequence[Statement]) -> bool:
    """Tell whether a token covers the manifest and every statement but tokens themselves."""
    covered = -1
    for statement in statements:
        stamped = statement.body.get("stamped")
        if statement.kind in PAGE_TYPES and isinstance(stamped, Mapping):
            number = stamped.get("number")
            covered = max(covered, number if isinstance(number, int) else -1)
    last = max((one.number for one in statements if one.kind not in _TIMELESS), default=0)
    return covered >= last
