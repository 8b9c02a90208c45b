"""The package for the court: all of it in it, checked and opened with OpenSSL and a POSIX shell alone."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from recorder import cli
from recorder.court import archive, glyphs, pdf
from recorder.court.content import Prose, Section
from recorder.export import PACKAGE_TYPE, export_recording
from recorder.gm import der
from recorder.gm.sm2 import PrivateKey
from recorder.gm.sm3 import named, sm3
from recorder.gm.x509 import Certificate, extension
from recorder.keys import FileProvider
from recorder.plain import verify_plain
from recorder.signed import open_page
from tests.recorder import pki
from tests.recorder.pki import certify, make_chain
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording

COMPOSITE_BYTES = 600_001
"""Three chunks of a sealed file, the last of them short."""


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, provider: FileProvider) -> SmallRecording:
    return make_recording(tmp_path_factory.mktemp("court") / "r", provider, composite_bytes=COMPOSITE_BYTES)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, recording: SmallRecording) -> Path:
    out = tmp_path_factory.mktemp("package") / "court"
    export(recording, out)
    return out


def export(recording: SmallRecording, out: Path, *, zipped: bool = False) -> None:
    export_recording(
        recording.path,
        out,
        data_key=recording.data_key,
        signer=recording.provider.signer(),
        operator="王芳",
        reason="(2026)沪0115民初1234号",
        zipped=zipped,
    )


def key_file(recording: SmallRecording, folder: Path) -> Path:
    path = folder / "data-key.hex"
    path.write_text(recording.data_key.secret.hex() + "\n")
    return path


def open_sh(package: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the how-to's script as Debian's sh does, without Python or our program in reach."""
    command = ["dash", str(package / "open.sh"), *(str(argument) for argument in arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin"}, check=False
    )


def test_the_package_holds_what_the_court_asks_for(package: Path, recording: SmallRecording) -> None:
    names = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    (sealed,) = (name for name in names if name.startswith("sealed/"))
    assert names == {
        "media/composite.mp4",
        "manifest.json",
        "statements/000001.json",
        "statements/000002.json",
        "statements/000003.json",
        "private/recording.json",
        "private/000002.json",
        "private/000003.json",
        "certificates/signing-1.pem",
        "certificates/encryption.pem",
        "keys/keys.json",
        "keys/wrap-1.der",
        sealed,
        "open.sh",
        "HOWTO.md",
        "archive-metadata.xml",
        "report.html",
        "report.pdf",
        "package.json",
    }
    page = open_page((package / "package.json").read_bytes(), page_type=PACKAGE_TYPE)
    files = page.fields["files"]
    assert isinstance(files, list)
    listed = {str(file["name"]): file["sm3"] for file in files if isinstance(file, dict)}
    assert set(listed) == names - {"package.json"}
    assert all(named(sm3((package / name).read_bytes())) == digest for name, digest in listed.items())
    assert json.loads((package / "private/000003.json").read_bytes())["operator"] == "王芳"
    for file in ("media/composite.mp4", "private/recording.json", "private/000002.json"):
        assert verify_plain(package / file, [package]).ok


def test_a_zip_is_the_same_package(package: Path, recording: SmallRecording, tmp_path: Path) -> None:
    target = tmp_path / "court.zip"
    export(recording, target, zipped=True)
    assert target.stat().st_mode & 0o777 == 0o600
    plain = tmp_path / "call.mp4"
    plain.write_bytes(recording.composite)
    assert verify_plain(plain, [target]).ok
    with zipfile.ZipFile(target) as zipped:
        zipped.extractall(tmp_path / "there")
    there = tmp_path / "there/court"
    kinds = {path.relative_to(there).parts[0] for path in there.rglob("*")}
    assert kinds == {path.relative_to(package).parts[0] for path in package.rglob("*")}
    assert open_sh(there).returncode == 0
    with pytest.raises(FileExistsError):
        export(recording, target, zipped=True)


def test_the_how_to_opens_byte_for_byte(package: Path, recording: SmallRecording, tmp_path: Path) -> None:
    fingerprint = re.search(r"sm3:[0-9a-f]{64}", open_sh(package).stdout)
    assert fingerprint is not None
    own = recording.provider.directory
    for number, key in enumerate((["-p", own / "encryption.key.pem"], ["-k", key_file(recording, tmp_path)])):
        out = tmp_path / f"out-{number}"
        authority = ["-a", own / "signing.cert.pem"]
        done = open_sh(package, "-t", fingerprint[0], *authority, *key, "-o", out)
        assert done.returncode == 0, done.stderr
        assert (out / "composite.mp4").read_bytes() == recording.composite


@pytest.mark.parametrize("suite", [2, 3])
def test_every_suite_opens(suite: int, provider: FileProvider, tmp_path: Path) -> None:
    made = make_recording(tmp_path / "r", provider, suite=suite, composite_bytes=COMPOSITE_BYTES)
    export(made, tmp_path / "court")
    done = open_sh(
        tmp_path / "court", "-p", provider.directory / "encryption.key.pem", "-o", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/composite.mp4").read_bytes() == made.composite


@pytest.mark.parametrize("with_root", [True, False])
def test_certificates_of_an_authority_are_checked_to_its_root(with_root: bool, tmp_path: Path) -> None:
    chain, stranger = make_chain(), make_chain()
    FileProvider.create(tmp_path / "keys")
    certify(tmp_path / "keys", chain, with_root=with_root)
    made = make_recording(tmp_path / "r", FileProvider.open(tmp_path / "keys"))
    export(made, tmp_path / "court")
    assert (tmp_path / "court/certificates/chain.pem").exists()
    for name, one, expected in (("root", chain, 0), ("stranger", stranger, 1)):
        authority = tmp_path / f"{name}.pem"
        authority.write_text(one.root.pem)
        done = open_sh(tmp_path / "court", "-a", authority)
        assert done.returncode == expected, done.stdout + done.stderr


def test_a_private_key_under_a_passphrase_opens_too(tmp_path: Path) -> None:
    provider = FileProvider.create(tmp_path / "keys", "correct horse")
    made = make_recording(tmp_path / "r", provider)
    export(made, tmp_path / "court")
    (tmp_path / "pass").write_text("correct horse\n")
    arguments = ["-p", tmp_path / "keys/encryption.key.pem", "-w", tmp_path / "pass"]
    done = open_sh(tmp_path / "court", *arguments, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/composite.mp4").read_bytes() == made.composite


@pytest.mark.parametrize(
    "what",
    [
        "sealed/*.sealed",
        "manifest.json",
        "statements/000001.json",
        "statements/000003.json",
        "certificates/signing-1.pem",
        "package.json",
        "media/composite.mp4",
        "keys/keys.json",
        "private/000003.json",
        "report.pdf",
    ],
)
def test_one_altered_byte_anywhere_stops_it(
    what: str, package: Path, recording: SmallRecording, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    copy = tmp_path / "court"
    shutil.copytree(package, copy)
    (path,) = copy.glob(what)
    whole = path.read_bytes()
    at = [source.randrange(len(whole))]
    signature = whole.find(b'"sm2-sm3:')
    if signature >= 0:  # in the signature itself, its last bits and the base64 around it included
        end = whole.index(b'"', signature + 1)
        at += [source.randrange(signature, end), end - 1]
    key = key_file(recording, tmp_path)
    for place in at:
        data = bytearray(whole)
        data[place] ^= 1 << source.randrange(8)
        path.write_bytes(data)
        done = open_sh(copy, "-k", key, "-o", tmp_path / "out")
        assert done.returncode == 1, f"byte {place} of {what}: {done.stdout}"
        assert not list((tmp_path / "out").glob("*")), "nothing is opened before all of it was checked"
    path.unlink()
    assert open_sh(copy, "-k", key, "-o", tmp_path / "out").returncode == 1


@pytest.mark.parametrize("name", ["report2.pdf", "media/other.mp4", "statements/note.txt", ".hidden", "a b"])
def test_a_file_that_is_not_listed_stops_it(package: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "court"
    shutil.copytree(package, copy)
    (copy / name).write_bytes(b"not of this package")
    done = open_sh(copy)
    assert done.returncode == 1, done.stdout
    assert "清单外文件" in done.stderr or "非所签明文" in done.stderr
    (copy / name).unlink()
    (copy / name).symlink_to("report.pdf")
    assert open_sh(copy).returncode == 1


@pytest.mark.parametrize(
    ("usage", "purpose", "code"),
    [
        ("encrypt", None, 1),
        ("sign", "1.3.6.1.5.5.7.3.1", 1),
        ("sign", "2.5.29.37.0", 0),
        (None, None, 0),
    ],
)
def test_a_certificate_for_something_else_does_not_sign(
    usage: pki.KeyUsage | None, purpose: str | None, code: int, provider: FileProvider, tmp_path: Path
) -> None:
    """One of the same authority, such as a TLS server's, or the encryption key's that others hold too."""
    chain, key = make_chain(), PrivateKey.generate()
    extra = [extension("2.5.29.37", der.sequence(der.oid(purpose)))] if purpose else []
    leaf = Certificate.from_pem(pki.issue(chain.intermediate, key, "other", usage, extra=extra))
    encryption = Certificate.from_pem(provider.info().encryption_certificate_pem)
    chains = {"signing": [leaf, chain.intermediate.certificate], "encryption": [encryption]}
    export(make_recording(tmp_path / "r", FileProvider(tmp_path, key, None, chains)), tmp_path / "court")
    (tmp_path / "root.pem").write_text(chain.root.pem)
    done = open_sh(tmp_path / "court", "-a", tmp_path / "root.pem")
    assert done.returncode == code, done.stdout + done.stderr
    named_itself = open_sh(tmp_path / "court", "-a", tmp_path / "root.pem", "-t", leaf.fingerprint)
    assert named_itself.returncode == (1 if usage == "encrypt" else 0), named_itself.stderr


def test_what_opens_to_something_else_stops_it(
    package: Path, recording: SmallRecording, provider: FileProvider, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "other.hex").write_text("00" * 16)
    assert "not the data key" in open_sh(package, "-k", tmp_path / "other.hex", "-o", out).stderr
    stranger = make_provider(tmp_path / "stranger")
    wrong = open_sh(package, "-p", stranger.directory / "encryption.key.pem", "-o", out)
    assert (wrong.returncode, "no wrap" in wrong.stderr) == (1, True)
    assert open_sh(package, "-t", "sm3:" + "0" * 64).returncode == 1
    assert open_sh(package, "-a", stranger.directory / "signing.cert.pem").returncode == 1
    other = make_recording(tmp_path / "other", provider, seed=9, composite_bytes=COMPOSITE_BYTES)
    export(other, tmp_path / "others")
    copy = tmp_path / "mixed"
    shutil.copytree(package, copy)
    shutil.copy(tmp_path / "others/manifest.json", copy)
    assert open_sh(copy, "-k", key_file(recording, tmp_path), "-o", out).returncode == 1
    assert not out.exists()


def test_the_report_says_who_what_and_what_is_not_proven(package: Path, recording: SmallRecording) -> None:
    page = (package / "report.html").read_text()
    for said in (
        recording.recording,
        "李伟",
        "王芳",
        "(2026)沪0115民初1234号",
        "whole: every signature",
        "development keys",
        "Not proven",
        named(sm3(recording.composite)),
        "<svg",
    ):
        assert said in page
    assert "<script" not in page
    assert not re.search(r"(href|src)=\"?(?!data:)", page.replace("http-equiv", ""))
    document = (package / "report.pdf").read_bytes()
    assert document.startswith(b"%PDF-")
    assert b"/FontFile2" in document, "the font is inside"


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> & \x00\u202e\U0010ffff 𠮷"
    section = Section(hostile, [Prose([hostile, (hostile, hostile)])])
    assert pdf.render(hostile, "x", [section], good=True).startswith(b"%PDF-")
    have = glyphs.coverage()
    assert glyphs.printable("a\x00\U0010ffff", have) == "a〓〓"


def test_the_archive_gets_its_metadata_by_the_documented_map(
    package: Path, recording: SmallRecording
) -> None:
    root = ElementTree.parse(package / "archive-metadata.xml").getroot()
    space = f"{{{archive.NAMESPACE}}}"
    values = {one.get("name"): one.text for one in root.findall(f"{space}element")}
    assert set(values) == {field.name for field in archive.FIELDS}
    assert values["录像标识符"] == recording.recording
    files = [
        {one.get("name"): one.text for one in file.findall(f"{space}element")}
        for file in root.findall(f"{space}file")
    ]
    assert files[0]["数字摘要 (明文 SM3)"] == named(sm3(recording.composite))
    table = (Path(__file__).parents[2] / "docs/archive-map.md").read_text()
    for field in archive.FIELDS:
        seen = "yes" if field.confirmed else "no"
        assert f"| {field.name} | {field.number} | {seen} | {field.source} |" in table
    for each in archive.FILE_FIELDS:
        assert f"| {each.name} | {each.source} |" in table


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["export", *(str(argument) for argument in arguments)])


def test_the_command_writes_a_zip_and_hands_over_the_key(recording: SmallRecording, tmp_path: Path) -> None:
    options = ["--keys", recording.provider.directory, "--operator", "王芳", "--reason", "case 7"]
    target, key = tmp_path / "court.zip", tmp_path / "key.hex"
    done = run(recording.path, target, *options, "--zip", "--key-file", key, "--sealed", "none")
    assert done.exit_code == 0, done.output
    assert bytes.fromhex(key.read_text()) == recording.data_key.secret
    assert key.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(target) as zipped:
        assert not [name for name in zipped.namelist() if "/sealed/" in name]
    last = sorted((recording.path / "statements").glob("*.json"))[-1]
    assert json.loads(last.read_bytes())["body"]["key_handed_over"] is True
    assert run(recording.path, tmp_path / "x", *options, "--sealed", "some").exit_code == 2
