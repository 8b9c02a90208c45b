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
from dataclasses import replace
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
from recorder.keys.succession import Succession, successions
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
        self._successions: dict[str, Succession] = {}
        self._vouched: list[tuple[Certificate, datetime, str]] = []
        """Keys whose word for their successor was needed: when they gave it, and for which page's signer."""
        self._uses: dict[str, list[tuple[datetime, str]]] = {}
        self.accepted: dict[str, Certificate] = {}
        """By fingerprint."""

    def learn(self, chain: object) -> None:
        """Take a page's ``chain`` as hints."""
        self._issuers += parse_issuers(chain)

    def learn_succession(self, page: SignedPage) -> None:
        """Take a sidecar's ``succession``: after a rotation accepted signers vouch in it for the new one."""
        for one in successions(page.fields, self.accepted):
            # Of the page's own signer the page says when; of others, not before their certificate began.
            last = one.successor.fingerprint == page.certificate.fingerprint
            at = page_time(page) if last else None
            self._successions[one.successor.fingerprint] = replace(one, at=at or one.successor.not_before)

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
        succession = self._successions.get(certificate.fingerprint)
        if self._trust is not None and (succession is None or self._trust.authorities):
            self._trust.check(certificate, self._issuers, at)
        else:
            check_signer(certificate, at)
        if not self._belongs(certificate):
            if succession is None:
                raise ChainError(f"{certificate.subject} ({certificate.fingerprint}) is not accepted here")
            self._check_voucher(succession, name)
        self.accepted[certificate.fingerprint] = certificate
        self._uses.setdefault(certificate.fingerprint, []).append((at, name))

    def _belongs(self, certificate: Certificate) -> bool:
        """Whether it is the first signer, named by its fingerprint, or of the key or subject of one accepted.

        An authority vouches for many who have no business with this recording.
        """
        if not self.accepted or certificate.fingerprint in self.accepted:
            return True
        if self._trust is None:
            return False
        if certificate.fingerprint in self._trust.fingerprints:
            return True
        return bool(self._trust.authorities) and any(
            certificate.public_key.point == one.public_key.point
            or certificate.subject_name == one.subject_name
            for one in self.accepted.values()
        )

    def _check_voucher(self, succession: Succession, name: str) -> None:
        voucher, at = succession.voucher, succession.at
        assert at is not None
        try:
            check_signer(voucher, at)
        except ChainError as error:
            raise ChainError(
                f"{succession.successor.subject}: the key that vouches for it: {error}"
            ) from None
        self._vouched.append((voucher, at, name))

    def revoked(self) -> list[tuple[str, str]]:
        """List pages that were signed after a certificate of their signer's chain was revoked, and why."""
        found: list[tuple[str, str]] = []
        uses = [(self.accepted[one], *use) for one, listed in self._uses.items() for use in listed]
        for certificate, at, name in [*uses, *self._vouched]:
            for status in self._statuses(certificate, at):
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
            for one in issuers:  # pinned, or accepted without a chain: a revocation counts all the same
                if one.subject_name == certificate.issuer_name and certificate.signed_by(one.public_key):
                    status = status_of(certificate, one, self._lists, at)
                    if status.state == "revoked":
                        return [status]
            return [Status(certificate.subject, certificate.fingerprint, "not_stated", None, str(error))]
        return [status_of(one, chain[place + 1], self._lists, at) for place, one in enumerate(chain[:-1])]
