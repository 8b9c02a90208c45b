"""``recorder verify --plain``: an exported file tied to the signature without any key."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recorder import cli
from recorder.canonical import canonical
from recorder.keys import FileProvider
from recorder.manifest import read_sealed_part
from recorder.pages import PagesError, find_pages
from recorder.plain import verify_plain
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, provider: FileProvider) -> SmallRecording:
    return make_recording(tmp_path_factory.mktemp("plain") / "r", provider)


@pytest.fixture
def handed(recording: SmallRecording, tmp_path: Path) -> Path:
    """What somebody gets: the plain file and the signed pages, nothing else."""
    pages = tmp_path / "pages"
    (pages / "statements").mkdir(parents=True)
    shutil.copy(recording.path / "manifest.json", pages)
    for path in (recording.path / "statements").glob("*.json"):
        shutil.copy(path, pages / "statements")
    (tmp_path / "call.mp4").write_bytes(recording.composite)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["verify", *(str(argument) for argument in arguments)])


def test_a_plain_file_is_named_by_a_signed_page(handed: Path, recording: SmallRecording) -> None:
    report = verify_plain(handed / "call.mp4", [handed / "pages"])
    assert report.ok
    assert report.recording == recording.recording
    assert report.facts["state"] == "sealed"
    (naming,) = report.named_by
    assert (naming.page, naming.statement, naming.name, naming.kind) == (
        "statements/000001.json",
        "composite",
        "composite.mp4",
        "archive",
    )
    assert (report.pages, report.trusted, report.assurance) == (3, False, "development")


def test_the_private_part_is_tied_too(handed: Path, recording: SmallRecording) -> None:
    private = handed / "private.json"
    private.write_bytes(canonical(read_sealed_part(recording.path, recording.data_key)))
    (naming,) = verify_plain(private, [handed / "pages"]).named_by
    assert naming.page == "manifest.json"


@pytest.mark.parametrize("form", ["directory", "manifest", "pages", "zip", "zip in a folder", "recording"])
def test_pages_come_in_many_forms(form: str, handed: Path, recording: SmallRecording) -> None:
    pages = handed / "pages"
    places = {
        "directory": [pages],
        "manifest": [pages / "manifest.json"],
        "pages": [pages / "statements/000001.json", pages / "manifest.json"],
        "recording": [recording.path],
    }.get(form, [handed / "package.zip"])
    if form.startswith("zip"):
        with zipfile.ZipFile(handed / "package.zip", "w") as archive:
            for path in pages.rglob("*.json"):
                inside = path.relative_to(handed if "folder" in form else pages)
                archive.write(path, inside)
            archive.writestr("media/other.json", b"[not a page")
    assert verify_plain(handed / "call.mp4", places).ok


def test_any_other_bit_is_not_the_file(handed: Path, recording: SmallRecording) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    for _ in range(40):
        data = bytearray(recording.composite)
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        (handed / "call.mp4").write_bytes(data)
        report = verify_plain(handed / "call.mp4", [handed / "pages"])
        assert not report.ok
        assert [finding.kind.value for finding in report.findings] == ["changed"]
    for other in (b"", recording.composite[:-1], recording.composite + b"\0"):
        (handed / "call.mp4").write_bytes(other)
        assert not verify_plain(handed / "call.mp4", [handed / "pages"]).ok


def test_any_changed_bit_of_a_page_is_found(handed: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    for path in sorted((handed / "pages").rglob("*.json")):
        whole = path.read_bytes()
        for _ in range(20):
            data = bytearray(whole)
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
            path.write_bytes(data)
            try:
                found = verify_plain(handed / "call.mp4", [handed / "pages"]).findings
            except PagesError as error:  # it no longer says what it is
                found = [str(error)]  # type: ignore[list-item]
            assert path.name in str(found[0])
        path.write_bytes(whole)


def test_a_hole_in_the_chain_and_another_manifest_are_found(
    handed: Path, recording: SmallRecording, provider: FileProvider, tmp_path: Path
) -> None:
    pages = handed / "pages"
    (pages / "statements/000001.json").rename(handed / "first.json")
    holed = verify_plain(handed / "call.mp4", [pages])
    assert [finding.kind.value for finding in holed.findings] == ["removed", "changed"]
    assert verify_plain(handed / "call.mp4", [pages, handed / "first.json"]).ok
    other = make_recording(tmp_path / "other", provider, seed=2)
    shutil.copy(other.path / "manifest.json", pages / "manifest.json")
    swapped = verify_plain(handed / "call.mp4", [pages, handed / "first.json"])
    assert not swapped.ok
    with pytest.raises(PagesError, match="two manifests"):
        find_pages([pages / "manifest.json", recording.path / "manifest.json"])


def test_only_trusted_signers_count(handed: Path, provider: FileProvider, tmp_path: Path) -> None:
    own = provider.directory / "signing.cert.pem"
    stranger = make_provider(tmp_path / "stranger").directory / "signing.cert.pem"
    good = run("--plain", handed / "call.mp4", handed / "pages", "--trust", own)
    assert (good.exit_code, "named by you" in good.output) == (0, True)
    bad = run("--plain", handed / "call.mp4", handed / "pages", "--trust", stranger, "--json")
    assert bad.exit_code == 1
    kinds = [finding["kind"] for finding in json.loads(bad.output)["findings"]]
    assert kinds == ["other_signer", "other_signer", "other_signer", "changed"]


def test_the_command(handed: Path, recording: SmallRecording) -> None:
    shown = run("--plain", handed / "call.mp4", handed / "pages")
    assert shown.exit_code == 0
    assert recording.recording in shown.output
    assert "statements/000001.json" in shown.output
    value = json.loads(run("--plain", handed / "call.mp4", handed / "pages", "--json").output)
    assert (value["verdict"], value["named_by"][0]["kind"]) == ("ok", "archive")
    (handed / "call.mp4").write_bytes(b"another film")
    broken = run("--plain", handed / "call.mp4", handed / "pages")
    assert (broken.exit_code, "no signed page" in broken.output) == (1, True)
