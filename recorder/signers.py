"""Whose pages a verification accepts, each at the time the page states, and what revocation lists say of
them.

The issuers' certificates come with the recording (``provider.chain`` of the manifest, ``chain`` of
``keys.json`` and of ``certificate_status`` statements); they only help to build chains and are trusted for
nothing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from recorder import clock
from recorder.canonical import JSON
from recorder.certificates import (
    ChainError,
    Status,
    Trust,
    check_signer,
    find_chain,
    parse_issuers,
    status_of,
)
from recorder.gm.sm2 import Sm2Error
from recorder.gm.x509 import Certificate, RevocationList
from recorder.keys.succession import successors
from recorder.signed import SignedPage
from recorder.statements import Statement

CERTIFICATE_STATUS = "certificate_status"
MAX_LISTS = 64


def status_body(
    lists: Iterable[tuple[str, int, bytes]], chain: Sequence[str], missing: Mapping[str, str]
) -> dict[str, JSON]:
    """Return the body of a ``certificate_status`` statement.

    ``lists`` are where each revocation list came from, when (Unix ns) and its bytes (DER or PEM), ``chain``
    the signer's issuers (PEM), ``missing`` says of sources that were not got why.
    """
    return {
        "chain": list(chain),
        "lists": [
            {"source": source, "fetched_at": clock.rfc3339(at), "crl": base64.b64encode(data).decode()}
            for source, at, data in lists
        ],
        "missing": [{"source": source, "reason": reason} for source, reason in missing.items()],
    }


def page_time(page: SignedPage) -> datetime | None:
    """Return when a page says it was signed (``at`` or ``written_at``); None if it says nothing readable."""
    stated = page.fields.get("at", page.fields.get("written_at"))
    try:
        when = datetime.fromisoformat(stated if isinstance(stated, str) else "")
    except ValueError:
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


class Signers:
    """Accepts or refuses signers and remembers whom."""

    def __init__(self, trusted: Trust | Collection[str] | None) -> None:
        """Accept whom ``trusted`` says; without it, whose certificate the first page carries."""
        self._trust = Trust.of(trusted) if trusted is not None else None
        self._issuers: list[Certificate] = []
        self._lists: list[RevocationList] = []
        self._successors: dict[str, Certificate] = {}
        self._uses: dict[str, list[tuple[datetime, str]]] = {}
        self.accepted: dict[str, Certificate] = {}
        """By fingerprint."""

    def learn(self, chain: object) -> None:
        """Take a page's ``chain`` as hints."""
        self._issuers += parse_issuers(chain)

    def learn_succession(self, page: SignedPage) -> None:
        """Take a sidecar's ``succession``: after a rotation accepted signers vouch in it for the new one."""
        self._successors |= successors(page.fields, self.accepted)

    def learn_statement(self, statement: Statement) -> None:
        """Take chain and revocation lists out of a ``certificate_status`` statement.

        What is no list is passed over: the certificate is then ``not_stated``.
        """
        if statement.kind != CERTIFICATE_STATUS:
            return
        self.learn(statement.body.get("chain"))
        lists = statement.body.get("lists")
        for one in lists[:MAX_LISTS] if isinstance(lists, list) else []:
            crl = one.get("crl") if isinstance(one, Mapping) else None
            try:
                data = base64.b64decode(crl if isinstance(crl, str) else "", validate=True)
                self._lists.append(RevocationList.from_bytes(data))
            except (binascii.Error, Sm2Error):
                continue

    def check(self, page: SignedPage, name: str) -> None:
        """Accept a page's signer, at the page's time, or raise ChainError."""
        certificate = page.certificate
        at = page_time(page)
        if at is None:
            raise ChainError("the page does not say when it was signed")
        if certificate.fingerprint in self._successors:
            check_signer(certificate, at)
        elif self._trust is not None:
            self._trust.check(certificate, self._issuers, at)
        elif self.accepted and certificate.fingerprint not in self.accepted:
            raise ChainError(f"{certificate.subject} ({certificate.fingerprint}) is not accepted here")
        else:
            check_signer(certificate, at)
        self.accepted[certificate.fingerprint] = certificate
        self._uses.setdefault(certificate.fingerprint, []).append((at, name))

    def revoked(self) -> list[tuple[str, str]]:
        """List pages that were signed after a certificate of their signer's chain was revoked, and why."""
        found: list[tuple[str, str]] = []
        for fingerprint, uses in self._uses.items():
            for at, name in uses:
                for status in self._statuses(self.accepted[fingerprint], at):
                    if status.state == "revoked" and status.as_of is not None:
                        found.append(
                            (name, f"{status.subject} was revoked at {status.as_of:%Y-%m-%d %H:%M:%S} UTC")
                        )
        return found

    def statuses(self) -> list[Status]:
        """Say of each accepted certificate and its issuers what was their status at its last signature."""
        found: dict[str, Status] = {}
        for fingerprint, uses in self._uses.items():
            for status in self._statuses(self.accepted[fingerprint], max(uses)[0]):
                found[status.fingerprint] = status
        return list(found.values())

    def _statuses(self, certificate: Certificate, at: datetime) -> list[Status]:
        """Of a chain's certificates but its end, for which nobody issues a list; none if self-signed."""
        if certificate.issuer_name == certificate.subject_name:
            return []
        trust = self._trust or Trust()
        issuers = [*self._issuers, *trust.issuers, *trust.authorities]
        roots = [one for one in issuers if one.issuer_name == one.subject_name]
        ends = trust.authorities or roots or issuers
        try:
            chain = find_chain(certificate, issuers, ends, at, "sign")
        except ChainError as error:
            return [Status(certificate.subject, certificate.fingerprint, "not_stated", None, str(error))]
        return [status_of(one, chain[place + 1], self._lists, at) for place, one in enumerate(chain[:-1])]
