"""Export, recovery and the command ``recorder``, on real recordings."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recorder import cli
from recorder.catalog import opened
from recorder.export import ExportError, export_recording
from recorder.fieldkey import FieldKey
from recorder.keys import FileProvider
from recorder.manifest import read_manifest
from recorder.plain import verify_plain
from recorder.recovering import RecoveryError, recover_recording
from recorder.sealed import SealedError
from recorder.statements import append_statement, read_sealed, read_statements
from recorder.verify import verify
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording
from tests.recorder.test_sealed import join, split


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture
def recording(tmp_path: Path, provider: FileProvider) -> SmallRecording:
    return make_recording(tmp_path / "r", provider)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_an_export_writes_the_plain_files_and_puts_itself_on_record(
    recording: SmallRecording, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = export_recording(
        recording.path,
        out,
        data_key=recording.data_key,
        signer=recording.provider.signer(),
        operator="王芳",
        reason="case 7",
    )
    assert (out / "media/composite.mp4").read_bytes() == recording.composite
    assert {str(path) for path in done.files} == {str(path) for path in out.rglob("*") if path.is_file()}
    assert {path.stat().st_mode & 0o777 for path in done.files} == {0o600}
    assert verify_plain(out / "media/composite.mp4", [out]).ok
    assert done.verdict == "ok"
    statement = read_statements(recording.path)[-1]
    assert statement.kind == "export"
    assert statement.page.digest == done.statement.page.digest
    private = read_sealed(recording.path, statement, recording.data_key)
    assert (private["operator"], private["reason"]) == ("王芳", "case 7")
    assert "王芳".encode() not in (recording.path / "statements/000003.json").read_bytes()
    assert verify(recording.path, data_key=recording.data_key).ok


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"operator": " "}, "operator"),
        ({"reason": ""}, "reason"),
        ({"names": ["other.mp4"]}, "no file other.mp4"),
    ],
)
def test_an_export_without_a_reason_or_a_file_is_refused_and_leaves_nothing(
    change: dict[str, object], match: str, recording: SmallRecording, tmp_path: Path
) -> None:
    arguments: dict[str, object] = {"operator": "o", "reason": "r", **change}
    with pytest.raises(ExportError, match=match):
        export_recording(
            recording.path,
            tmp_path / "out",
            data_key=recording.data_key,
            signer=recording.provider.signer(),
            **arguments,  # type: ignore[arg-type]
        )
    assert not (tmp_path / "out").exists()
    assert len(read_statements(recording.path)) == 2


def test_a_statement_of_a_stranger_exports_nothing(recording: SmallRecording, tmp_path: Path) -> None:
    stranger = make_provider(tmp_path / "stranger")
    body = {"files": [read_statements(recording.path)[0].files[0].to_json()]}
    append_statement(recording.path, "derived", body, stranger.signer())
    with pytest.raises(ExportError, match="statement 000003 was signed by"):
        export_recording(
            recording.path,
            tmp_path / "out",
            data_key=recording.data_key,
            signer=recording.provider.signer(),
            operator="王芳",
            reason="case 7",
        )
    assert not (tmp_path / "out").exists()


def test_a_changed_file_is_not_exported(recording: SmallRecording, tmp_path: Path) -> None:
    file = next((recording.path / "files").iterdir())
    records = split(file.read_bytes())
    records[2][2] = bytes(8) + records[2][2][8:]
    file.write_bytes(join(records))
    with pytest.raises(SealedError):
        export_recording(
            recording.path,
            tmp_path / "out",
            data_key=recording.data_key,
            signer=recording.provider.signer(),
            operator="o",
            reason="r",
        )
    assert not list(tmp_path.glob("*out*")), "all of it or nothing"


def test_a_recording_left_by_a_crash_is_recovered_and_verifies(
    tmp_path: Path, provider: FileProvider
) -> None:
    left = make_recording(tmp_path / "left", provider, stopped=False)
    segments = {path: path.read_bytes() for path in (left.path / "segments").iterdir()}
    last = max(segments)
    torn = segments[last][:-30]
    last.write_bytes(torn)
    manifest = recover_recording(left.path, left.data_key, provider=provider.info(), signer=provider.signer())
    assert manifest.facts["state"] == "recovered"
    assert manifest.recording == left.recording
    assert last.read_bytes() == torn
    assert verify(left.path, data_key=left.data_key).ok
    last.write_bytes(torn[:-1] + bytes((torn[-1] ^ 1,)))
    assert [finding.file for finding in verify(left.path).findings] == [f"segments/{last.name}"]
    with pytest.raises(RecoveryError, match="signed already"):
        recover_recording(left.path, left.data_key, provider=provider.info(), signer=provider.signer())


def test_nothing_to_recover_is_said(tmp_path: Path, provider: FileProvider) -> None:
    left = make_recording(tmp_path / "left", provider, stopped=False)
    shutil.rmtree(left.path / "segments")
    with pytest.raises(RecoveryError, match="not one good record"):
        recover_recording(left.path, left.data_key, provider=provider.info(), signer=provider.signer())


def test_verify_command_says_ok_broken_or_not_proven(
    recording: SmallRecording, tmp_path: Path, provider: FileProvider
) -> None:
    whole = run("verify", recording.path)
    assert whole.exit_code == 0
    assert "OK" in whole.output
    keyed = run("verify", recording.path, "--keys", provider.directory, "--json")
    assert keyed.exit_code == 0
    assert json.loads(keyed.output)["opened"] is True
    trust = run("verify", recording.path, "--trust", provider.directory / "signing.cert.pem")
    assert (trust.exit_code, "named by you" in trust.output) == (0, True)
    file = recording.path / "segments/p0001-000001.seg"
    data = bytearray(file.read_bytes())
    data[900] ^= 1
    file.write_bytes(data)
    broken = run("verify", recording.path, "--json")
    assert broken.exit_code == 1
    report = json.loads(broken.output)
    (finding,) = report["findings"]
    assert finding["file"] == "segments/p0001-000001.seg"
    assert finding["begin"] <= 900 < finding["end"]
    assert "BROKEN" in run("verify", recording.path).output
    running = make_recording(tmp_path / "running", provider, stopped=False)
    assert run("verify", running.path).exit_code == 3


def test_verify_command_goes_on_without_a_broken_sidecar(
    recording: SmallRecording, provider: FileProvider
) -> None:
    (recording.path / "keys.json").write_bytes(b"{}")
    result = run("verify", recording.path, "--keys", provider.directory, "--json")
    assert result.exit_code == 1
    assert "keys.json" in result.output


def test_show_and_list_name_people_only_with_the_key(
    recording: SmallRecording, provider: FileProvider, tmp_path: Path
) -> None:
    shown = run("show", recording.path)
    assert shown.exit_code == 0
    assert "李伟" not in shown.output
    assert "statement 1: composite" in shown.output
    opened = run("show", recording.path, "--keys", provider.directory, "--json")
    assert "李伟" in opened.output
    assert json.loads(opened.output)["segments"] == 3
    make_recording(tmp_path / "running", provider, stopped=False)
    assert "no manifest yet" in run("show", tmp_path / "running").output
    rows = json.loads(run("list", tmp_path, "--json").output)
    assert [(row["state"], row["files"]) for row in rows] == [
        ("sealed", ["composite.mp4"]),
        ("unfinished", []),
    ]
    assert "composite.mp4" in run("list", tmp_path).output


def long_ago(path: Path) -> None:
    """Let the journal look as if nobody had written it just now, so that recover need not watch it."""
    for segment in (path / "segments").iterdir():
        os.utime(segment, (0, 0))


def test_a_journal_that_grows_is_not_recovered(tmp_path: Path, provider: FileProvider) -> None:
    left = make_recording(tmp_path / "left", provider, stopped=False)
    last = sorted((left.path / "segments").iterdir())[-1]
    done = threading.Event()

    def write() -> None:
        while not done.wait(0.05):
            with last.open("ab") as file:
                file.write(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert run("recover", left.path, "--keys", provider.directory).exit_code == 1
    finally:
        done.set()
        writer.join()
    assert not (left.path / "manifest.json").exists()


def test_recover_and_export_commands(tmp_path: Path, provider: FileProvider) -> None:
    left = make_recording(tmp_path / "left", provider, stopped=False)
    long_ago(left.path)
    recovered = run("recover", left.path, "--keys", provider.directory)
    assert recovered.exit_code == 0
    assert read_manifest(left.path).facts["state"] == "recovered"  # no checkpoint covers its end
    whole = make_recording(tmp_path / "whole", provider)
    options = ["--keys", provider.directory, "--operator", "o", "--reason", "r"]
    exported = run("export", whole.path, tmp_path / "out", *options, "--file", "composite.mp4")
    assert exported.exit_code == 0
    assert (tmp_path / "out/media/composite.mp4").read_bytes() == whole.composite
    assert run("export", whole.path, tmp_path / "x", "--keys", provider.directory).exit_code == 2


def test_the_index_is_rebuilt_from_the_recordings(tmp_path: Path, provider: FileProvider) -> None:
    made = make_recording(tmp_path / "made", provider, stopped=False)
    place = tmp_path / "data/recordings/default/2026/01/01" / made.recording
    place.parent.mkdir(parents=True)
    made.path.rename(place)
    long_ago(place)
    assert run("recover", place, "--keys", provider.directory).exit_code == 0
    broken = place.with_name("broken")
    shutil.copytree(place, broken)
    (broken / "keys.json").write_bytes(b"{}")
    (tmp_path / "data/secrets").mkdir()
    result = run("reindex", tmp_path / "data", "--keys", provider.directory)
    assert (result.exit_code, "1 recordings indexed" in result.output) == (1, True)
    shutil.rmtree(broken)
    assert run("reindex", tmp_path / "data", "--keys", provider.directory).exit_code == 0
    with opened(
        f"sqlite:///{tmp_path / 'data/index.sqlite'}", FieldKey.open(tmp_path / "data/secrets/index.key")
    ) as catalog:
        entry = catalog.get(made.recording)
    assert entry is not None
    assert (entry.business_no, entry.state) == ("B-1", "recovered")


def test_failures_are_one_line_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["recorder", "verify", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert capsys.readouterr().err == f"recorder: {tmp_path / 'nothing'} does not exist\n"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "verify",
        "show",
        "list",
        "recover",
        "export",
        "reindex",
        "retention",
        "hold",
        "review",
        "destroy",
        "due",
        "timestamp",
        "renew",
        "csr",
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    result = run(*([command] if command else []), "--help")
    assert result.exit_code == 0
    assert len(result.output) > 300
