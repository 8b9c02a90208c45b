"""Which certificates count: chains of an authority (RFC 5280, as far as GM/T 0015 uses it), whom a verifier
trusts, and what revocation lists say as of a time.

A chain is a list, leaf first. Checked are each signature (SM2), names, dates at the stated time,
basicConstraints and path length of every CA, keyUsage, and that no critical extension is unknown. Not
supported, and refused where critical: name and policy constraints, partitioned and delta CRLs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from recorder.canonical import JSON
from recorder.gm.sm2 import Sm2Error
from recorder.gm.x509 import Certificate, RevocationList, Usage

MAX_CHAIN = 8
"""Longer chains are refused; real ones have three certificates."""
ANY_PURPOSE = "2.5.29.37.0"
"""anyExtendedKeyUsage (RFC 5280 section 4.2.1.12)."""
_WANTED: dict[Usage, frozenset[str]] = {
    "sign": frozenset({"digital_signature"}),
    "encrypt": frozenset({"key_encipherment", "data_encipherment"}),
}
_WANTED_NAMES: dict[Usage, str] = {
    "sign": "digitalSignature",
    "encrypt": "keyEncipherment or dataEncipherment",
}


class ChainError(ValueError):
    """A certificate or chain may not be used so; says which and why."""


def check_leaf(certificate: Certificate, at: datetime, usage: Usage) -> None:
    """Check dates, usage and critical extensions of an end certificate. Raise ChainError."""
    _check_common(certificate, at)
    wanted = _WANTED[usage]
    if certificate.usages is not None and not certificate.usages & wanted:
        raise ChainError(f"{certificate.subject} is not for this: its keyUsage lacks {_WANTED_NAMES[usage]}")


def check_signer(certificate: Certificate, at: datetime) -> None:
    """Check a signer that is accepted by itself, without a chain, as ``check_leaf`` does. Raise ChainError.

    The dates of a self-signed certificate are nobody's word and not asked for: it is a development one, and
    recordings made under it say so.
    """
    if not certificate.not_before <= at <= certificate.not_after and certificate.self_signed:
        at = certificate.not_before
    check_leaf(certificate, at, "sign")


def check_chain(chain: Sequence[Certificate], at: datetime, usage: Usage) -> None:
    """Check a chain, leaf first, up to its last certificate, whoever that is. Raise ChainError."""
    if len(chain) > MAX_CHAIN:
        raise ChainError(f"{len(chain)} certificates are more than a chain may have ({MAX_CHAIN})")
    check_leaf(chain[0], at, usage)
    for below, issuer in enumerate(chain[1:]):
        subject = chain[below]
        if subject.issuer_name != issuer.subject_name:
            raise ChainError(f"{subject.subject} was issued by {subject.issuer}, not by {issuer.subject}")
        _check_common(issuer, at)
        if not issuer.is_ca or (issuer.usages is not None and "key_cert_sign" not in issuer.usages):
            raise ChainError(f"{issuer.subject} is no CA")
        # RFC 5280 section 4.2.1.9 counts the CAs between it and the leaf that are not self-issued.
        between = sum(one.subject_name != one.issuer_name for one in chain[1 : below + 1])
        if issuer.path_length is not None and between > issuer.path_length:
            raise ChainError(f"{issuer.subject} allows {issuer.path_length} CAs below it, not {between}")
        if not subject.signed_by(issuer.public_key):
            raise ChainError(f"{issuer.subject} did not sign {subject.subject}")


def _check_common(certificate: Certificate, at: datetime) -> None:
    if not certificate.not_before <= at <= certificate.not_after:
        raise ChainError(
            f"{certificate.subject} is valid from {_day(certificate.not_before)} to "
            f"{_day(certificate.not_after)}, not on {_day(at)}"
        )
    if certificate.unknown_critical:
        oids = ", ".join(certificate.unknown_critical)
        raise ChainError(f"{certificate.subject} has critical extensions unknown here: {oids}")


def _day(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def find_chain(
    leaf: Certificate,
    issuers: Iterable[Certificate],
    authorities: Iterable[Certificate],
    at: datetime,
    usage: Usage,
) -> list[Certificate]:
    """Return a valid chain from ``leaf`` to one of ``authorities``, by way of any of ``issuers``.

    Raise ChainError: with the reason of the chain that came nearest, or that there is none.
    """
    anchors = {one.fingerprint: one for one in authorities}
    pool = {**{one.fingerprint: one for one in issuers}, **anchors}
    reason = f"no chain leads from {leaf.subject} to a trusted authority"
    waiting = [[leaf]]
    tried = 0
    while waiting and tried < 1000:  # same-named CAs in a hostile file must not keep us busy
        chain = waiting.pop()
        tried += 1
        if chain[-1].fingerprint in anchors and len(chain) > 1:
            try:
                check_chain(chain, at, usage)
                return chain
            except ChainError as error:
                reason = str(error)
                continue
        if len(chain) < MAX_CHAIN:
            used = {one.fingerprint for one in chain}
            waiting += [
                [*chain, one]
                for one in pool.values()
                if one.subject_name == chain[-1].issuer_name and one.fingerprint not in used
            ]
    raise ChainError(reason)


@dataclass(frozen=True)
class Trust:
    """Whose signatures a verifier accepts: certain certificates, and any an authority vouches for."""

    fingerprints: frozenset[str] = frozenset()
    authorities: tuple[Certificate, ...] = ()
    issuers: tuple[Certificate, ...] = ()
    """Certificates that help to build chains; trusted for nothing."""
    purposes: frozenset[str] = frozenset()
    """OIDs of extendedKeyUsage that signers an authority vouches for may be restricted to."""

    @classmethod
    def from_files(cls, paths: Iterable[Path], purposes: Iterable[str] = ()) -> Trust:
        """Read PEM files.

        Of a file that begins with a CA certificate every certificate is an authority. Of any other the first
        is accepted as a signer, and the rest of its chain is not trusted with more. Raise Sm2Error naming the
        file, OSError.
        """
        fingerprints: set[str] = set()
        authorities: list[Certificate] = []
        issuers: list[Certificate] = []
        for path in paths:
            first, *rest = read_chain(path)
            if first.is_ca:
                authorities += [first, *rest]
            else:
                fingerprints.add(first.fingerprint)
                issuers += rest
        return cls(frozenset(fingerprints), tuple(authorities), tuple(issuers), frozenset(purposes))

    @classmethod
    def of(cls, trusted: Trust | Collection[str]) -> Trust:
        """Accept fingerprints for a Trust."""
        return trusted if isinstance(trusted, Trust) else cls(frozenset(trusted))

    def check(self, certificate: Certificate, issuers: Iterable[Certificate], at: datetime) -> None:
        """Check that a signature made at ``at`` with this certificate is to be accepted. Raise ChainError."""
        if certificate.fingerprint in self.fingerprints:
            check_signer(certificate, at)
            return
        if not self.authorities:
            raise ChainError(f"{certificate.subject} ({certificate.fingerprint}) is not accepted here")
        find_chain(certificate, [*issuers, *self.issuers], self.authorities, at, "sign")
        if certificate.purposes is not None and not certificate.purposes & {ANY_PURPOSE, *self.purposes}:
            oids = ", ".join(sorted(certificate.purposes))
            raise ChainError(f"{certificate.subject} was issued for other purposes: {oids}")


def read_chain(path: Path) -> list[Certificate]:
    """Read a PEM file's certificates, at least one. Raise Sm2Error naming the file, OSError."""
    try:
        return Certificate.all_from_pem(path.read_text("ascii"))
    except (Sm2Error, UnicodeDecodeError) as error:
        raise Sm2Error(f"{path}: {error}") from None


def parse_issuers(value: object) -> list[Certificate]:
    """Read a page's ``chain`` member, a list of PEM texts; what is no certificate is left out.

    They only help to build chains, and a chain that lacks one says so.
    """
    found: list[Certificate] = []
    for pem in value[: 4 * MAX_CHAIN] if isinstance(value, list) else []:
        try:
            found.append(Certificate.from_pem(pem if isinstance(pem, str) else ""))
        except Sm2Error:
            continue
    return found


@dataclass(frozen=True)
class Status:
    """What revocation lists say of one certificate."""

    subject: str
    fingerprint: str
    state: str
    """``good``, ``revoked`` or ``not_stated``."""
    as_of: datetime | None = None
    """When the list was made that says it; of a revoked one the time of revocation."""
    detail: str = ""

    def to_json(self) -> dict[str, JSON]:
        """Return it as reports show it."""
        as_of = self.as_of.strftime("%Y-%m-%dT%H:%M:%SZ") if self.as_of else ""
        return {
            "subject": self.subject,
            "fingerprint": self.fingerprint,
            "state": self.state,
            "as_of": as_of,
            "detail": self.detail,
        }


def status_of(
    certificate: Certificate, issuer: Certificate, lists: Iterable[RevocationList], at: datetime
) -> Status:
    """Say what the lists of ``issuer`` say of a certificate used at ``at``.

    One that names it decides, the earliest time of those that do: a later list may leave out what has expired
    since, and one made after the certificate's end clears nothing. A list that its issuer did not sign, or
    whose critical extensions are unknown, says nothing. Revoked means at or before ``at``: what was signed
    before a revocation stays signed (GM/T 0015 has no other rule), and the detail tells of a later one.
    """
    own: list[RevocationList] = []
    detail = "no revocation list of its issuer"
    for one in lists:
        if one.issuer_name != issuer.subject_name:
            continue
        if one.unknown_critical:
            detail = f"its list has critical extensions unknown here: {', '.join(one.unknown_critical)}"
        elif issuer.usages is not None and "crl_sign" not in issuer.usages:
            detail = f"{issuer.subject} may not sign revocation lists"
        elif not one.signed_by(issuer.public_key):
            detail = "a list in its issuer's name that it did not sign"
        else:
            own.append(one)
    if not own:
        return Status(certificate.subject, certificate.fingerprint, "not_stated", None, detail)
    times = [one.revoked[certificate.serial] for one in own if certificate.serial in one.revoked]
    revoked = min(times, default=None)
    own = [one for one in own if revoked is not None or one.this_update <= certificate.not_after]
    if not own:
        detail = "all lists are from after its end, when expired certificates are left out"
        return Status(certificate.subject, certificate.fingerprint, "not_stated", None, detail)
    newest = max(own, key=lambda one: one.this_update)
    if revoked is not None and revoked <= at:
        return Status(certificate.subject, certificate.fingerprint, "revoked", revoked)
    detail = f"revoked later, at {_day(revoked)}" if revoked is not None else ""
    if newest.next_update is not None and newest.next_update < at:
        detail = detail or f"by a list that was out of date since {_day(newest.next_update)}"
    return Status(certificate.subject, certificate.fingerprint, "good", newest.this_update, detail)
