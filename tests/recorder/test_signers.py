"""Who may sign pages of a recording: under an authority, as a successor, after a revocation."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from recorder.certificates import ChainError, Trust
from recorder.gm import der
from recorder.gm.sm2 import PrivateKey
from recorder.gm.x509 import Certificate, extension, self_signed
from recorder.keys import read_sidecar, write_sidecar
from recorder.keys.local import LocalSigner
from recorder.keys.succession import endorse
from recorder.report import Kind
from recorder.signers import status_body
from recorder.statements import append_statement
from recorder.verify import verify
from tests.recorder import pki
from tests.recorder.small_recording import UTC_NS, SmallRecording

AT = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SIGNED_AT = datetime.fromtimestamp(UTC_NS / 1e9, UTC)


def authority(chain: pki.Chain) -> Trust:
    return Trust(authorities=(chain.root.certificate,))


@pytest.mark.parametrize("critical", [True, False])
def test_a_certificate_for_another_purpose_is_no_signer_unless_named(
    chain: pki.Chain, key: PrivateKey, critical: bool
) -> None:
    def issued(oid: str) -> Certificate:
        extra = extension("2.5.29.37", der.sequence(der.oid(oid)), critical=critical)
        return Certificate.from_pem(pki.issue(chain.intermediate, key, "www.bank.cn", extra=[extra]))

    tls, everything = issued("1.3.6.1.5.5.7.3.1"), issued("2.5.29.37.0")
    issuers = [chain.intermediate.certificate]
    with pytest.raises(ChainError, match=r"other purposes: 1\.3\.6\.1\.5\.5\.7\.3\.1"):
        authority(chain).check(tls, issuers, AT)
    authority(chain).check(everything, issuers, AT)
    replace(authority(chain), purposes=tls.purposes or frozenset()).check(tls, issuers, AT)
    Trust(frozenset({tls.fingerprint})).check(tls, issuers, AT)


def test_another_customer_of_the_authority_states_nothing(
    recording: SmallRecording, chain: pki.Chain, key: PrivateKey, tmp_path: Path
) -> None:
    """Unless he is of the same name (the certificate was renewed over another key), or named by whom asks."""
    for title, accepted in (("recorder signing", True), ("another customer", False)):
        copy = tmp_path / title
        shutil.copytree(recording.path, copy)
        pem = pki.issue(chain.intermediate, key, title)
        append_statement(copy, "composite", {"files": []}, LocalSigner(pem, key), utc_ns=UTC_NS)
        report = verify(copy, trusted=authority(chain))
        assert report.ok == accepted, [str(one) for one in report.findings]
        if not accepted:
            assert [(one.kind, one.file) for one in report.findings] == [
                (Kind.OTHER_SIGNER, "statements/000003.json")
            ]
        named = replace(authority(chain), fingerprints=frozenset({Certificate.from_pem(pem).fingerprint}))
        assert verify(copy, trusted=named).ok


def succeeded(recording: SmallRecording, copy: Path, successor: LocalSigner, at: datetime) -> None:
    """Let the recording's key vouch in the sidecar for another, which signs it at ``at``."""
    shutil.copytree(recording.path, copy)
    wraps = read_sidecar(copy)["wraps"]
    assert isinstance(wraps, list)
    write_sidecar(
        copy,
        recording.recording,
        recording.data_key.key_id,
        [dict(one) for one in wraps if isinstance(one, dict)],
        successor,
        revision=2,
        utc_ns=int(at.timestamp()) * 10**9,
        succession=[endorse(recording.provider.signer(), Certificate.from_pem(successor.certificate_pem))],
    )


def test_under_an_authority_a_successor_needs_its_word_too(
    recording: SmallRecording, chain: pki.Chain, key: PrivateKey, tmp_path: Path
) -> None:
    stranger = LocalSigner(self_signed(key, "stranger", usage="sign", not_before=pki.SINCE, days=3650), key)
    succeeded(recording, tmp_path / "stranger", stranger, AT)
    report = verify(tmp_path / "stranger", trusted=authority(chain))
    assert [(one.kind, one.file) for one in report.findings] == [(Kind.OTHER_SIGNER, "keys.json")]
    # Who trusts the old key alone has its word.
    own = Certificate.from_pem(recording.provider.info().signing_certificate_pem)
    assert verify(tmp_path / "stranger", trusted=[own.fingerprint]).ok
    certified_too = LocalSigner(pki.issue(chain.intermediate, key, "another room"), key)
    succeeded(recording, tmp_path / "certified", certified_too, AT)
    assert verify(tmp_path / "certified", trusted=authority(chain)).ok


@pytest.mark.parametrize("ca", [True, False])
def test_a_revoked_or_expired_key_vouches_for_nobody(
    recording: SmallRecording, chain: pki.Chain, key: PrivateKey, tmp_path: Path, ca: bool
) -> None:
    own = Certificate.from_pem(recording.provider.info().signing_certificate_pem)
    trusted = authority(chain) if ca else Trust(frozenset({own.fingerprint}))
    pem = pki.issue(chain.intermediate, key, "another room", not_after=pki.UNTIL + 99 * DAY)
    pems = pem if ca else self_signed(key, "x", usage="sign", not_before=AT, days=9000)
    crl = pki.revocation_list(chain.intermediate, {own.serial: AT - DAY}, this_update=AT)
    for name, at, lists_ in (("revoked", AT, [("x", UTC_NS, crl)]), ("expired", pki.UNTIL + DAY, [])):
        copy = tmp_path / name
        succeeded(recording, copy, LocalSigner(pems, key), at)
        append_statement(
            copy,
            "certificate_status",
            status_body(lists_, [], {}),
            recording.provider.signer(),
            utc_ns=UTC_NS,
        )
        report = verify(copy, trusted=trusted)
        assert [(one.kind, one.file) for one in report.findings] == [(Kind.OTHER_SIGNER, "keys.json")], name


def test_a_pinned_signer_without_its_whole_chain_is_revoked_all_the_same(
    recording: SmallRecording, chain: pki.Chain, tmp_path: Path
) -> None:
    own = Certificate.from_pem(recording.provider.info().signing_certificate_pem)
    copy = tmp_path / "copy"
    shutil.copytree(recording.path, copy)
    crl = pki.revocation_list(chain.intermediate, {own.serial: SIGNED_AT - DAY}, this_update=AT)
    body = status_body([("x", UTC_NS, crl)], [], {})
    append_statement(copy, "certificate_status", body, recording.provider.signer(), utc_ns=UTC_NS)
    stranger = pki.make_chain().root.certificate
    pinned = Trust(frozenset({own.fingerprint}), authorities=(stranger,))
    report = verify(copy, trusted=pinned)
    assert {one["state"] for one in report.certificates} == {"revoked"}
    assert {one.kind for one in report.findings} == {Kind.OTHER_SIGNER}
