"""Certificates of an authority: chains, trust, what a key provider refuses, revocation lists."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from recorder.certificates import ChainError, Trust, check_chain, find_chain, status_of
from recorder.gm import der
from recorder.gm.sm2 import PrivateKey, Sm2Error
from recorder.gm.x509 import Certificate, RevocationList, extension, self_signed, signing_request
from recorder.keys import FileProvider, KeyProblem, read_sidecar, write_sidecar
from recorder.manifest import read_manifest
from recorder.report import Kind, Verdict
from recorder.signers import status_body
from recorder.statements import append_statement
from recorder.verify import verify
from tests.recorder import pki
from tests.recorder.small_recording import UTC_NS, SmallRecording, make_provider, make_recording

AT = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SIGNED_AT = datetime.fromtimestamp(UTC_NS / 1e9, UTC)


def parsed(*pems: str) -> list[Certificate]:
    return [Certificate.from_pem(pem) for pem in pems]


def test_a_chain_of_an_authority_holds(chain: pki.Chain, key: PrivateKey) -> None:
    leaf = pki.issue(chain.intermediate, key, "signer")
    check_chain(parsed(leaf, chain.intermediate.pem, chain.root.pem), AT, "sign")
    check_chain(parsed(leaf, chain.intermediate.pem), AT, "sign")
    found = find_chain(
        Certificate.from_pem(leaf), [chain.intermediate.certificate], [chain.root.certificate], AT, "sign"
    )
    assert [one.subject for one in found] == [
        "CN=signer,O=测试银行,C=CN",
        "CN=Test Signing CA,C=CN",
        "CN=Test Root CA,C=CN",
    ]
    encryption = pki.issue(chain.intermediate, key, "opener", "encrypt")
    check_chain(parsed(encryption, chain.intermediate.pem), AT, "encrypt")
    check_chain(
        parsed(pki.issue(chain.intermediate, key, "any use", None), chain.intermediate.pem), AT, "sign"
    )


@pytest.mark.parametrize("usage", ["sign", "encrypt"])
def test_a_leaf_is_for_its_usage_only(chain: pki.Chain, key: PrivateKey, usage: pki.KeyUsage) -> None:
    other: pki.KeyUsage = "encrypt" if usage == "sign" else "sign"
    for wrong in (other, "ca", "none"):
        leaf = pki.issue(chain.intermediate, key, "leaf", wrong)
        with pytest.raises(ChainError, match="keyUsage lacks"):
            check_chain(parsed(leaf, chain.intermediate.pem), AT, "sign" if usage == "sign" else "encrypt")


def test_dates_hold_for_every_certificate_to_the_second(chain: pki.Chain, key: PrivateKey) -> None:
    leaf = pki.issue(chain.intermediate, key, "leaf", not_before=AT, not_after=AT + DAY)
    old_ca = pki.make_ca("Old CA", chain.root, not_after=AT)
    for at in (AT, AT + DAY):
        check_chain(parsed(leaf, chain.intermediate.pem, chain.root.pem), at, "sign")
    for at in (AT - timedelta(seconds=1), AT + DAY + timedelta(seconds=1)):
        with pytest.raises(ChainError, match="leaf,O=测试银行,C=CN is valid from"):
            check_chain(parsed(leaf, chain.intermediate.pem), at, "sign")
    under_old = pki.issue(old_ca, key, "leaf")
    check_chain(parsed(under_old, old_ca.pem, chain.root.pem), AT, "sign")
    with pytest.raises(ChainError, match="Old CA,C=CN is valid from"):
        check_chain(parsed(under_old, old_ca.pem, chain.root.pem), AT + DAY, "sign")


def test_what_does_not_chain_is_refused(chain: pki.Chain, key: PrivateKey) -> None:
    impostor = pki.make_ca("Test Signing CA", chain.root)
    leaf = pki.issue(chain.intermediate, key, "leaf")
    cases = [
        ([leaf, impostor.pem], "did not sign"),
        ([leaf, chain.root.pem], "was issued by CN=Test Signing CA"),
        ([leaf, chain.root.pem, chain.intermediate.pem], "was issued by"),
        ([pki.issue(impostor, key, "leaf"), chain.intermediate.pem], "did not sign"),
    ]
    no_ca = pki.make_ca("No CA", chain.root, ca=False, usage="ca")
    cases.append(([pki.issue(no_ca, key, "leaf"), no_ca.pem], "is no CA"))
    signer = pki.make_ca("No key cert sign", chain.root, usage="sign")
    cases.append(([pki.issue(signer, key, "leaf"), signer.pem], "is no CA"))
    for pems, reason in cases:
        with pytest.raises(ChainError, match=reason):
            check_chain(parsed(*pems), AT, "sign")


def test_the_path_length_is_kept(chain: pki.Chain, key: PrivateKey) -> None:
    below = pki.make_ca("Below", chain.intermediate)  # its issuer may issue leaves only
    leaf = pki.issue(below, key, "leaf")
    with pytest.raises(ChainError, match="Test Signing CA,C=CN allows 0 CAs below it, not 1"):
        check_chain(parsed(leaf, below.pem, chain.intermediate.pem, chain.root.pem), AT, "sign")
    root = pki.make_ca("Root of one", path_length=1)
    middle = pki.make_ca("Middle", root)
    last = pki.make_ca("Last", middle)
    check_chain(parsed(pki.issue(middle, key, "leaf"), middle.pem, root.pem), AT, "sign")
    with pytest.raises(ChainError, match="Root of one,C=CN allows 1"):
        check_chain(parsed(pki.issue(last, key, "leaf"), last.pem, middle.pem, root.pem), AT, "sign")


def test_unknown_critical_extensions_are_refused_and_uncritical_ones_are_not(
    chain: pki.Chain, key: PrivateKey
) -> None:
    for critical in (False, True):
        extra = [extension("1.2.3.4.5", der.integer(1), critical=critical)]
        pair = parsed(pki.issue(chain.intermediate, key, "leaf", extra=extra), chain.intermediate.pem)
        if not critical:
            check_chain(pair, AT, "sign")
            continue
        with pytest.raises(ChainError, match=r"1\.2\.3\.4\.5"):
            check_chain(pair, AT, "sign")


def test_a_chain_is_found_among_many_of_one_name_and_not_where_there_is_none(
    chain: pki.Chain, key: PrivateKey
) -> None:
    decoys = [pki.make_ca("Test Signing CA", chain.root).certificate for _ in range(5)]
    leaf = Certificate.from_pem(pki.issue(chain.intermediate, key, "leaf"))
    root, intermediate = chain.root.certificate, chain.intermediate.certificate
    for hints in ([*decoys, intermediate], [intermediate, *decoys]):
        assert find_chain(leaf, hints, [root], AT, "sign")[1].fingerprint == intermediate.fingerprint
    with pytest.raises(ChainError, match="did not sign"):
        find_chain(leaf, decoys, [root], AT, "sign")
    with pytest.raises(ChainError, match="no chain leads"):
        find_chain(leaf, [intermediate], [pki.make_ca("Elsewhere").certificate], AT, "sign")
    # Two CAs that certify each other, and nobody trusted: it ends.
    one, other = PrivateKey.generate(), PrivateKey.generate()
    circle = [
        Certificate.from_pem(pki.issue(pki.Issuer(issuer, ""), subject, title, issuer_name=issuer_name))
        for issuer, subject, title, issuer_name in (
            (one, other, "B", decoys[0].subject_name),
            (other, one, "A", decoys[0].subject_name),
        )
    ]
    with pytest.raises(ChainError, match="no chain leads"):
        find_chain(leaf, [*circle, *decoys], [pki.make_ca("Elsewhere").certificate], AT, "sign")


def test_openssl_made_certificates_are_read_and_chained(tmp_path: Path) -> None:
    """Certificates of another program than ours, and our requests read by it."""

    def openssl(*arguments: str | Path) -> str:
        done = subprocess.run(
            ["openssl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr

    key = PrivateKey.generate()
    (tmp_path / "leaf.csr").write_text(
        signing_request(key, {"C": "CN", "O": "测试银行", "CN": "recorder"}, usage="sign")
    )
    identity = "distid:1234567812345678"
    assert "verify OK" in openssl("req", "-in", "leaf.csr", "-verify", "-noout", "-vfyopt", identity)
    shown = openssl("req", "-in", "leaf.csr", "-noout", "-text", "-nameopt", "utf8")
    assert "测试银行" in shown
    assert "Digital Signature, Non Repudiation" in shown
    (tmp_path / "ca.cnf").write_text(
        "[req]\ndistinguished_name=n\n[n]\n[ca]\nbasicConstraints=critical,CA:TRUE,pathlen:0\n"
        "keyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
        "[leaf]\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
    )
    openssl("ecparam", "-name", "SM2", "-genkey", "-noout", "-out", "ca.key")
    openssl(
        *("req", "-x509", "-new", "-key", "ca.key", "-sm3", "-sigopt", identity, "-subj", "/CN=OpenSSL CA"),
        *("-days", "30", "-config", "ca.cnf", "-extensions", "ca", "-out", "ca.pem"),
    )
    openssl(
        *("x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-sm3"),
        *(
            "-sigopt",
            identity,
            "-vfyopt",
            identity,
            "-days",
            "10",
            "-extfile",
            "ca.cnf",
            "-extensions",
            "leaf",
        ),
        *("-out", "leaf.pem"),
    )
    read = parsed((tmp_path / "leaf.pem").read_text(), (tmp_path / "ca.pem").read_text())
    check_chain(read, datetime.now(UTC), "sign")
    assert read[1].path_length == 0
    assert read[0].public_key.point == key.public.point


def test_a_request_needs_a_name_that_can_be() -> None:
    key = PrivateKey.generate()
    for subject in ({"CN": ""}, {"C": "CHN", "CN": "x"}, {"CN": "x" * 65}, {"X": "y"}):
        with pytest.raises(ValueError, match="name"):
            signing_request(key, subject, usage="encrypt")


# --- the key provider


def test_a_provider_with_an_authoritys_chain_says_so(certified: FileProvider, chain: pki.Chain) -> None:
    info = certified.info()
    assert info.assurance == "operator"
    assert [Certificate.from_pem(pem).subject for pem in info.chain_pem] == [
        "CN=Test Signing CA,C=CN",
        "CN=Test Root CA,C=CN",
    ]
    assert info.signing_certificate_pem.count("BEGIN CERTIFICATE") == 1
    assert certified.signer().certificate_pem == info.signing_certificate_pem


@pytest.mark.parametrize("half", ["signing", "encryption"])
def test_a_provider_refuses_certificates_that_do_not_fit_naming_the_file(
    tmp_path: Path, certified: FileProvider, chain: pki.Chain, half: str
) -> None:
    directory = tmp_path / "keys"
    shutil.copytree(certified.directory, directory)
    file = directory / f"{half}.cert.pem"
    key = PrivateKey.from_pem((directory / f"{half}.key.pem").read_bytes())
    right: pki.KeyUsage = "sign" if half == "signing" else "encrypt"
    wrong: pki.KeyUsage = "encrypt" if half == "signing" else "sign"
    now = datetime.now(UTC)
    other_root = pki.make_ca("Other Root")
    expired = pki.issue(chain.intermediate, key, "x", right, not_after=now - DAY)
    cases = {
        "keyUsage lacks": pki.issue(chain.intermediate, key, "x", wrong),
        "is valid from": expired + chain.intermediate.pem,
        "is valid from .* not on": pki.issue(chain.intermediate, key, "x", right, not_before=now + DAY),
        "was issued by CN=Test Signing CA": pki.issue(chain.intermediate, key, "x", right) + other_root.pem,
        "not readable PEM": "no certificate",
        "is not the certificate of": pki.issue(chain.intermediate, PrivateKey.generate(), "x", right),
    }
    for reason, text in cases.items():
        file.write_text(text)
        with pytest.raises(KeyProblem, match=reason) as caught:
            FileProvider.open(directory)
        assert str(directory) in str(caught.value)
        assert half in str(caught.value)
    file.write_text(expired + chain.intermediate.pem)
    assert FileProvider.open(directory, expired=True).info().assurance == "operator"


# --- recordings under an authority


def trust_file(tmp_path: Path, *pems: str) -> Path:
    path = tmp_path / f"trust-{len(list(tmp_path.iterdir()))}.pem"
    path.write_text("".join(pems))
    return path


def test_an_authority_vouches_for_a_recording(
    recording: SmallRecording, chain: pki.Chain, tmp_path: Path
) -> None:
    leaf = Certificate.from_pem(recording.provider.info().signing_certificate_pem)
    for pems in (
        [chain.root.pem],
        [chain.intermediate.pem],
        [leaf.pem],
        [leaf.pem, chain.intermediate.pem, chain.root.pem],
        [chain.root.pem, chain.intermediate.pem],
    ):
        report = verify(recording.path, trusted=Trust.from_files([trust_file(tmp_path, *pems)]))
        assert report.ok, [str(finding) for finding in report.findings]
        assert report.signers == {leaf.fingerprint: leaf.subject}
    assert verify(recording.path).ok
    assert verify(recording.path, trusted=[leaf.fingerprint]).ok


def test_others_do_not_vouch_for_it(recording: SmallRecording, chain: pki.Chain, tmp_path: Path) -> None:
    impostor = pki.make_ca("Test Root CA")
    other = pki.issue(chain.intermediate, PrivateKey.generate(), "another signer")
    for pems in ([impostor.pem], [other], [other, chain.intermediate.pem, chain.root.pem]):
        report = verify(recording.path, trusted=Trust.from_files([trust_file(tmp_path, *pems)]))
        assert report.verdict == Verdict.BROKEN
        assert {finding.file for finding in report.findings if finding.kind == Kind.OTHER_SIGNER} == {
            "manifest.json",
            "keys.json",
            "statements/000001.json",
            "statements/000002.json",
        }
    with pytest.raises(Sm2Error, match=r"trust-\d+\.pem"):
        Trust.from_files([trust_file(tmp_path, "nothing")])


def test_the_chain_lies_in_manifest_and_sidecar(
    recording: SmallRecording, chain: pki.Chain, tmp_path: Path
) -> None:
    """Without a manifest the sidecar's lets a verifier who has only the root accept the signer."""
    provider = read_manifest(recording.path).page.fields["provider"]
    assert isinstance(provider, dict)
    assert provider["chain"] == [chain.intermediate.pem, chain.root.pem]
    copy = tmp_path / "running"
    shutil.copytree(recording.path, copy)
    for gone in ("manifest.json", "manifest.sealed", "statements", "files"):
        path = copy / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    trusted = Trust.from_files([trust_file(tmp_path, chain.root.pem)])
    assert [one.kind for one in verify(copy, trusted=trusted).findings if one.kind == Kind.OTHER_SIGNER]
    sidecar = read_sidecar(copy)
    wraps = sidecar["wraps"]
    assert isinstance(wraps, list)
    info = recording.provider.info()
    write_sidecar(
        copy,
        recording.recording,
        str(sidecar["key_id"]),
        [dict(wrap) for wrap in wraps if isinstance(wrap, dict)],
        recording.provider.signer(),
        utc_ns=UTC_NS,
        chain=info.chain_pem,
    )
    report = verify(copy, trusted=trusted)
    assert {one.kind for one in report.findings} <= {Kind.UNPROVEN}, [str(one) for one in report.findings]


def test_a_signer_whose_certificate_was_not_valid_then_is_found(tmp_path: Path, chain: pki.Chain) -> None:
    keys = tmp_path / "keys"
    make_provider(keys)
    pki.certify(keys, chain, until=SIGNED_AT - DAY)
    made = make_recording(tmp_path / "r", FileProvider.open(keys, expired=True))
    for trusted in (None, Trust.from_files([trust_file(tmp_path, chain.root.pem)])):
        report = verify(made.path, trusted=trusted)
        assert report.verdict == Verdict.BROKEN
        details = [one.detail for one in report.findings if one.file == "manifest.json"]
        assert len(details) == 1
        assert "is valid from" in details[0]
        assert "2026-01-01" in details[0]


# --- revocation


def lists(*crls: bytes) -> list[RevocationList]:
    return [RevocationList.from_bytes(crl) for crl in crls]


def test_revocation_is_as_of_the_signature(chain: pki.Chain, key: PrivateKey) -> None:
    leaf = Certificate.from_pem(pki.issue(chain.intermediate, key, "leaf"))
    ca = chain.intermediate.certificate

    def status(*crls: bytes, at: datetime = AT) -> tuple[str, str]:
        found = status_of(leaf, ca, lists(*crls), at)
        return found.state, found.detail

    clean = pki.revocation_list(chain.intermediate, {}, this_update=AT - DAY, next_update=AT + DAY)
    revoked = pki.revocation_list(chain.intermediate, {leaf.serial: AT}, this_update=AT + DAY)
    forged = pki.revocation_list(chain.intermediate, {leaf.serial: AT}, this_update=AT, key=key)
    of_root = pki.revocation_list(chain.root, {leaf.serial: AT}, this_update=AT)
    delta = pki.revocation_list(
        chain.intermediate,
        {},
        this_update=AT,
        extra=[extension("2.5.29.27", der.integer(1), critical=True)],
    )
    assert status(clean) == ("good", "")
    assert status(clean, revoked)[0] == "revoked"
    assert status(revoked, clean, at=AT + DAY)[0] == "revoked"
    assert status(revoked, at=AT - DAY) == ("good", "revoked later, at 2026-06-01 00:00:00 UTC")
    assert status(clean, at=AT + 9 * DAY)[1].startswith("by a list that was out of date")
    assert status()[0] == "not_stated"
    assert status(forged) == ("not_stated", "a list in its issuer's name that it did not sign")
    assert status(of_root)[0] == "not_stated"
    assert status(delta)[1].startswith("its list has critical extensions")
    assert status(forged, clean) == ("good", "")
    # What a later list leaves out, having expired, was revoked all the same; the earliest time holds.
    later = pki.revocation_list(chain.intermediate, {leaf.serial: AT + DAY}, this_update=AT + 2 * DAY)
    emptied = pki.revocation_list(chain.intermediate, {}, this_update=pki.UNTIL + DAY)
    assert status(revoked, later, emptied)[0] == "revoked"
    assert status(emptied) == (
        "not_stated",
        "all lists are from after its end, when expired certificates are left out",
    )
    for size in range(0, len(clean), 7):
        with pytest.raises(Sm2Error):
            RevocationList.from_bytes(clean[:size])


@pytest.mark.parametrize("when", ["before", "after", "intermediate", "never"])
def test_verification_tells_the_status_stored_with_the_recording(
    recording: SmallRecording, chain: pki.Chain, tmp_path: Path, when: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recording.path, copy)
    leaf = Certificate.from_pem(recording.provider.info().signing_certificate_pem)
    at = SIGNED_AT - DAY if when == "before" else SIGNED_AT + 30 * DAY
    crl = pki.revocation_list(
        chain.intermediate,
        {leaf.serial: at} if when in ("before", "after") else {},
        this_update=SIGNED_AT + 31 * DAY,
    )
    of_root = pki.revocation_list(
        chain.root,
        {chain.intermediate.certificate.serial: SIGNED_AT - DAY} if when == "intermediate" else {},
        this_update=SIGNED_AT,
    )
    body = status_body([("file:ca.crl", UTC_NS, crl), ("file:root.crl", UTC_NS, of_root)], [], {"x": "down"})
    append_statement(copy, "certificate_status", body, recording.provider.signer(), utc_ns=UTC_NS)
    report = verify(copy, trusted=Trust(authorities=(chain.root.certificate,)))
    states = {str(one["subject"]): one["state"] for one in report.certificates}
    assert list(states) == [leaf.subject, chain.intermediate.certificate.subject]
    assert states[leaf.subject] == ("revoked" if when == "before" else "good")
    assert (states["CN=Test Signing CA,C=CN"] == "revoked") == (when == "intermediate")
    assert report.ok == (when in ("after", "never")), [str(one) for one in report.findings]
    if not report.ok:
        assert {one.kind for one in report.findings} == {Kind.OTHER_SIGNER}
        assert "manifest.json" in {one.file for one in report.findings}
    assert verify(copy).ok == report.ok


def test_without_lists_the_status_is_not_stated(recording: SmallRecording, tmp_path: Path) -> None:
    assert {one["state"] for one in verify(recording.path).certificates} == {"not_stated"}
    development = make_recording(tmp_path / "r", make_provider(tmp_path / "keys"))
    assert verify(development.path).certificates == []


def test_a_self_signed_certificate_is_pinned_and_vouches_for_nobody_else(tmp_path: Path) -> None:
    made = make_recording(tmp_path / "r", make_provider(tmp_path / "keys"))
    own = made.provider.info().signing_certificate_pem
    assert verify(made.path, trusted=Trust.from_files([trust_file(tmp_path, own)])).ok
    other = self_signed(PrivateKey.generate(), "other", usage="sign", not_before=pki.SINCE, days=9)
    assert not verify(made.path, trusted=Trust.from_files([trust_file(tmp_path, other)])).ok
