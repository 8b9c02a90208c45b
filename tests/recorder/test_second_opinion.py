"""The second opinion: gmssl agrees with what holds, and a first one that errs is found out."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gmssl.sm4
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder import second_opinion
from recorder.gm import sm3, sm4
from recorder.gm.sm2 import PrivateKey, PublicKey
from recorder.keys import FileProvider
from recorder.report import Kind, Report
from recorder.sealed import RecordType, scan
from recorder.sealed.format import RECORD
from recorder.storage import list_segments
from recorder.verify import verify
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording

FIXTURE = Path(__file__).parent / "fixtures" / "v1" / "recording"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, provider: FileProvider) -> SmallRecording:
    return make_recording(tmp_path_factory.mktemp("whole") / "r", provider)


@pytest.fixture
def copy(recording: SmallRecording, tmp_path: Path) -> Path:
    shutil.copytree(recording.path, tmp_path / "copy")
    return tmp_path / "copy"


def disagreements(report: Report) -> list[str]:
    return [finding.file for finding in report.findings if finding.kind == Kind.DISAGREEMENT]


def test_gmssl_agrees_with_a_good_recording(copy: Path) -> None:
    report = verify(copy)
    opinion = second_opinion.check(copy, report)
    assert report.ok, [str(finding) for finding in report.findings]
    assert (opinion.pages, opinion.pages_of) == (4, 4)
    assert (opinion.checkpoints, opinion.checkpoints_of) == (6, report.checkpoints)
    files = [path for path in copy.rglob("*") if path.is_file()]
    assert opinion.files == opinion.files_of == len(files)
    assert opinion.bytes == opinion.bytes_of == sum(path.stat().st_size for path in files)
    assert report.to_json()["second_opinion"] == opinion.to_json()


def test_what_is_left_out_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion, "CHECKPOINTS", 2)
    monkeypatch.setattr(second_opinion, "DIGEST_BYTES", 9000)
    opinion = second_opinion.check(copy, verify(copy))
    assert (opinion.checkpoints, opinion.checkpoints_of) == (2, 6)
    assert 0 < opinion.files < opinion.files_of
    assert 0 < opinion.bytes <= 9000 < opinion.bytes_of


def test_a_first_opinion_that_accepts_any_signature_is_found_out(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page and checkpoint is forged in turn, and a broken libcrypto lets it pass."""
    page = json.loads((copy / "statements/000002.json").read_bytes())
    page["body"]["verdict"] = "failed"
    text = json.dumps(page, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (copy / "statements/000002.json").write_text(text, encoding="utf-8")
    assert not verify(copy).ok
    monkeypatch.setattr(PublicKey, "verify", lambda key, message, signature: True)
    report = verify(copy)
    assert report.ok
    second_opinion.check(copy, report)
    assert disagreements(report) == ["statements/000002.json"]
    assert report.verdict.value == "broken"


def test_a_checkpoint_that_only_one_accepts_is_placed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = verify(copy)
    real = second_opinion.gmssl_verifies

    def wrong(point: bytes, message: bytes, signature: bytes) -> bool:
        return real(point, message[:-1] + bytes((message[-1] ^ message.startswith(b"shuanglu"),)), signature)

    monkeypatch.setattr(second_opinion, "gmssl_verifies", wrong)
    opinion = second_opinion.check(copy, report)
    assert (opinion.pages, opinion.checkpoints) == (4, 0)
    assert set(disagreements(report)) == {f"segments/p0001-{n:06d}.seg" for n in range(3)}
    for finding in report.findings:
        assert finding.record is not None
        assert finding.begin is not None
        assert (copy / finding.file).read_bytes()[finding.begin : finding.begin + 2] == b"\0\x10"


def test_another_digest_is_a_disagreement(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = verify(copy)
    monkeypatch.setattr(second_opinion, "sm3", lambda data: bytes(32))
    second_opinion.check(copy, report)
    assert len(disagreements(report)) == report.to_json()["second_opinion"]["files"]  # type: ignore[index, call-overload]


def test_what_the_first_refused_is_not_asked_about(copy: Path) -> None:
    segment = copy / "segments/p0001-000001.seg"
    data = bytearray(segment.read_bytes())
    data[-200] ^= 1
    segment.write_bytes(data)
    (copy / "manifest.json").write_bytes(b"rubbish")
    report = verify(copy)
    opinion = second_opinion.check(copy, report)
    assert not disagreements(report)
    assert opinion.pages_of == 3
    assert opinion.checkpoints_of == 4


def test_the_command_line_says_it(copy: Path) -> None:
    command = [sys.executable, "-c", "from recorder.cli import main; main()", "verify", "--second-opinion"]
    ran = subprocess.run([*command, str(copy)], capture_output=True, text=True, check=True)
    words = " ".join(ran.stdout.split())
    assert "by gmssl 3" in words
    assert "4 of 4 pages and of 6 of 6 checkpoints" in words
    ran = subprocess.run([*command, "--json", str(FIXTURE)], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["second_opinion"]["pages"] == 4


def test_gmssl_is_used_for_nothing_else() -> None:
    """It signs nothing, decrypts nothing, and sees no private key."""
    root = Path(__file__).resolve().parents[2]
    used: dict[str, set[str]] = {}
    for path in (
        one for package in ("recorder", "compositor", "mediaserver") for one in (root / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gmssl"):
                used.setdefault(path.name, set()).update(names)
            assert not (isinstance(node, ast.Import) and any(name.startswith("gmssl") for name in names)), (
                path
            )
    assert used == {"second_opinion.py": {"CryptSM2", "sm3_hash"}}
    source = (root / "recorder/second_opinion.py").read_text(encoding="utf-8")
    assert (
        source.count("CryptSM2(") == source.count('CryptSM2(private_key="", public_key="", asn1=True)') == 1
    )


@given(st.binary(max_size=100))
@settings(max_examples=10, deadline=None)
def test_both_say_the_same_of_signatures(message: bytes) -> None:
    key = PrivateKey.generate()
    signature = key.sign(message)
    other = signature[:-1] + bytes((signature[-1] ^ 1,))
    for text, signed in (
        (message, signature),
        (message + b"x", signature),
        (message, other),
        (message, b"no"),
    ):
        assert second_opinion.gmssl_verifies(key.public.point, text, signed) == key.public.verify(
            text, signed
        )


def test_a_public_key_that_begins_with_noughts_and_fours_is_taken_whole() -> None:
    """gmssl's constructor strips them all; one key in eight begins so."""
    seen = 0
    while seen < 3:
        key = PrivateKey.generate()
        if key.public.point[1:].hex()[0] in "04":
            seen += 1
            assert second_opinion.gmssl_verifies(key.public.point, b"m", key.sign(b"m"))


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
@settings(max_examples=20, deadline=None)
def test_both_encrypt_the_same_block(key: bytes, block: bytes) -> None:
    oracle = gmssl.sm4.CryptSM4()
    oracle.set_key(key, gmssl.sm4.SM4_ENCRYPT)
    expected = bytes(oracle.one_round(oracle.sk, list(block)))
    for make in sm4.ctr_implementations().values():
        out = bytearray(16)
        make(key).crypt_into(memoryview(out), block, bytes(16))  # the key stream is the block encrypted
        assert out == expected


@given(st.binary(max_size=300))
@settings(max_examples=20, deadline=None)
def test_both_digest_the_same(data: bytes) -> None:
    assert second_opinion.gmssl_sm3(data) == sm3.sm3(data)


def test_a_torn_checkpoint_is_not_asked_about(provider: FileProvider, tmp_path: Path) -> None:
    made = make_recording(tmp_path / "r", provider, stopped=False)
    last = list_segments(made.path)[-1][1]
    found = scan(last)
    torn = RECORD.pack(RecordType.CHECKPOINT, 0, len(found.records), 5) + b"abcde"
    last.write_bytes(last.read_bytes()[: found.good_bytes] + torn)
    report = verify(made.path)
    opinion = second_opinion.check(made.path, report)
    assert opinion.checkpoints == opinion.checkpoints_of == report.checkpoints > 0
    assert disagreements(report) == []
