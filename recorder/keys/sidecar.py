"""The sidecar ``keys.json``: a recording's wrapped data key, signed, outside every digest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recorder import clock
from recorder.atomic import replace_file
from recorder.canonical import JSON
from recorder.gm.x509 import Certificate
from recorder.keys.provider import FIRST_SUITE, KeyProblem, ProviderInfo
from recorder.keys.succession import successors
from recorder.signed import SignedError, SignedPage, Signer, open_page, read_page, sign_page

SIDECAR = "keys.json"
SIDECAR_TYPE = "shuanglu.keys.v1"


def write_sidecar(
    directory: Path,
    recording_id: str,
    key_id: str,
    wraps: list[dict[str, JSON]],
    signer: Signer,
    *,
    suite: int = FIRST_SUITE,
    revision: int = 1,
    utc_ns: int | None = None,
    succession: Sequence[JSON] = (),
    chain: Sequence[str] = (),
) -> dict[str, JSON]:
    """Write ``keys.json`` (signed, 0600), replacing an older revision in one step. Return its members.

    ``suite`` is the data key's; a rewrap keeps it, or the key is refused when it is opened.
    ``succession``: see ``recorder.keys.succession``; left out of the page if empty. ``chain`` are PEM
    certificates of the signer's issuers: while there is no manifest, they lie here.
    """
    fields: dict[str, JSON] = {
        "type": SIDECAR_TYPE,
        "recording": recording_id,
        "key_id": key_id,
        "suite": suite,
        "revision": revision,
        "written_at": clock.rfc3339(utc_ns if utc_ns is not None else clock.SystemClock().utc_ns()),
        "wraps": list(wraps),
    }
    if succession:
        fields["succession"] = list(succession)
    if chain:
        fields["chain"] = list(chain)
    replace_file(directory / SIDECAR, sign_page(fields, signer))
    return fields


def read_sidecar(directory: Path) -> dict[str, JSON]:
    """Return the members of ``keys.json``, its signature checked. Raise KeyProblem, also if it is missing."""
    return dict(open_sidecar(directory).fields)


def own_sidecar(directory: Path, own: ProviderInfo) -> dict[str, JSON]:
    """Return the members of ``keys.json`` if its signature is our own: of the provider's signing key, a
    former one, or one that these vouch for in its ``succession``. Raise KeyProblem.

    For whoever signs what the key opens: anybody can wrap a key of his for our certificate, and seal with it
    what we never recorded.
    """
    page = open_sidecar(directory)
    pems = (own.signing_certificate_pem, *own.former_signing_certificates)
    known = {one.fingerprint: one for one in map(Certificate.from_pem, pems)}
    accepted = [*known.values(), *successors(page.fields, known).values()]
    if page.certificate.public_key.point not in {one.public_key.point for one in accepted}:
        raise KeyProblem(
            f"{directory / SIDECAR} was signed by another ({page.certificate.subject}), neither these "
            "keys nor one of former_signers: its key is not taken"
        )
    return dict(page.fields)


def open_sidecar(directory: Path) -> SignedPage:
    """Return ``keys.json`` with its signer's certificate. Raise KeyProblem."""
    path = directory / SIDECAR
    try:
        return open_page(read_page(path), page_type=SIDECAR_TYPE)
    except FileNotFoundError:
        raise KeyProblem(f"{path} is missing: erased, or the recording has not begun") from None
    except SignedError as error:
        raise KeyProblem(f"{path} {error}") from None
