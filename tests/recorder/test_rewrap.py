"""Rotating keys and erasing them: what verification says afterwards, and what cannot be forged."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recorder.canonical import JSON
from recorder.cli import app
from recorder.gm.x509 import Certificate
from recorder.keys import (
    SIDECAR,
    FileProvider,
    KeyProblem,
    erase_sidecar,
    open_sidecar,
    read_sidecar,
    write_sidecar,
)
from recorder.keys.provider import wrap_for
from recorder.keys.rewrap import Outcome, Rewrapped, Rewrapper
from recorder.keys.succession import endorse
from recorder.reindex import opener
from recorder.report import Kind, Verdict
from recorder.statements import append_statement
from recorder.verify import verify
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording


@pytest.fixture(scope="module")
def crypto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("crypto")
    for name in ("old", "new", "newest", "stranger"):
        make_provider(base / name)
    return base


@pytest.fixture
def recording(crypto: Path, tmp_path: Path) -> SmallRecording:
    return make_recording(tmp_path / "r", FileProvider.open(crypto / "old"))


def rewrapper(crypto: Path, old: str, new: str) -> Rewrapper:
    return Rewrapper(
        FileProvider.open(crypto / old), FileProvider.open(crypto / new, opens=False), actor="test"
    )


def media(directory: Path) -> dict[str, str]:
    """Give the digest of everything but the sidecar."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != SIDECAR
    }


def opens(crypto: Path, who: str, directory: Path) -> bool:
    sidecar = read_sidecar(directory)
    try:
        FileProvider.open(crypto / who).unwrap_now(
            sidecar, recording_id=str(sidecar["recording"]), purpose="test", actor="test"
        )
    except KeyProblem:
        return False
    return True


def fingerprint(crypto: Path, who: str) -> str:
    return Certificate.from_pem((crypto / who / "signing.cert.pem").read_text()).fingerprint


def test_a_rotation_moves_the_key_and_nothing_else(crypto: Path, recording: SmallRecording) -> None:
    before = media(recording.path)
    told: list[str] = []
    assert rewrapper(crypto, "old", "new").rewrap(recording.path, told.append) is Outcome.REWRAPPED
    assert told == [recording.recording]
    assert media(recording.path) == before
    assert (opens(crypto, "new", recording.path), opens(crypto, "old", recording.path)) == (True, False)
    page = open_sidecar(recording.path)
    assert page.fields["revision"] == 2
    assert page.certificate.fingerprint == fingerprint(crypto, "new")
    assert (recording.path / SIDECAR).stat().st_mode & 0o777 == 0o600
    assert rewrapper(crypto, "old", "new").rewrap(recording.path, told.append) is Outcome.ALREADY
    assert len(told) == 1


def test_verification_holds_over_rotations(crypto: Path, recording: SmallRecording) -> None:
    rewrapper(crypto, "old", "new").rewrap(recording.path)
    report = verify(recording.path)
    assert report.verdict == Verdict.OK, report.findings
    assert set(report.signers) == {fingerprint(crypto, "old"), fingerprint(crypto, "new")}
    # A statement of the successor is as good as one of the signer of the manifest.
    append_statement(recording.path, "hold", {"why": "test"}, FileProvider.open(crypto / "new").signer())
    rewrapper(crypto, "new", "newest").rewrap(recording.path)
    assert read_sidecar(recording.path)["revision"] == 3
    report = verify(recording.path, data_key=recording.data_key, trusted={fingerprint(crypto, "old")})
    assert report.verdict == Verdict.OK, report.findings
    assert len(report.signers) == 3


def test_a_stranger_cannot_succeed(crypto: Path, recording: SmallRecording) -> None:
    """He holds the data key and a signing key of his own, not the recording's."""
    stranger = FileProvider.open(crypto / "stranger")
    own = Certificate.from_pem(stranger.info().signing_certificate_pem)
    recipient = Certificate.from_pem(stranger.info().encryption_certificate_pem)
    wraps = [wrap_for(recipient, recording.data_key.secret, "file")]
    by_old = endorse(FileProvider.open(crypto / "old").signer(), Certificate.from_pem(_pem(crypto, "new")))
    by_himself = endorse(stranger.signer(), own)
    forged = {**by_old, "certificate": own.pem}
    renamed = {**by_himself, "by": fingerprint(crypto, "old")}
    lists: tuple[list[JSON], ...] = (
        [],
        [by_himself],
        [forged],
        [renamed],
        [by_old, by_himself],
        ["x", {}, None],
    )
    for succession in lists:
        write_sidecar(
            recording.path,
            recording.recording,
            recording.data_key.key_id,
            wraps,
            stranger.signer(),
            revision=2,
            succession=succession,
        )
        report = verify(recording.path)
        assert [(one.kind, one.file) for one in report.findings] == [(Kind.OTHER_SIGNER, SIDECAR)], succession
        # Nor does rotation take it over and sign it.
        with pytest.raises(KeyProblem, match="was signed by another"):
            rewrapper(crypto, "old", "new").rewrap(recording.path)


def test_what_a_stranger_wrapped_for_us_is_neither_recovered_nor_indexed(
    crypto: Path, tmp_path: Path
) -> None:
    """He writes the disk: a journal of his own making, its key wrapped for our certificate."""
    own, stranger = FileProvider.open(crypto / "old"), FileProvider.open(crypto / "stranger")
    directory = tmp_path / "recordings/default/2026/01/01"
    left = {}
    for who, provider in (
        ("own", own),
        ("stranger", stranger),
        ("endorsed", FileProvider.open(crypto / "new")),
    ):
        made = make_recording(directory / who, provider, stopped=False)
        recipient = Certificate.from_pem(own.info().encryption_certificate_pem)
        voucher = own if who == "endorsed" else stranger
        write_sidecar(
            made.path,
            made.recording,
            made.data_key.key_id,
            [wrap_for(recipient, made.data_key.secret, "file")],
            provider.signer(),
            succession=[
                endorse(voucher.signer(), Certificate.from_pem(provider.info().signing_certificate_pem))
            ],
        )
        left[who] = made.path
    open_key = opener(own, actor="test")
    for who, path in left.items():
        done = CliRunner().invoke(app, ["recover", "--gone", str(path), "--keys", str(crypto / "old")])
        if who != "stranger":
            assert done.exit_code == 0, done.output
            assert open_key(path) is not None
            continue
        assert done.exit_code == 1
        assert "was signed by another" in str(done.exception)
        assert not (path / "manifest.json").exists()
        with pytest.raises(KeyProblem, match="was signed by another"):
            open_key(path)


def test_a_sidecar_for_another_key_than_the_manifests_is_not_rewrapped(
    crypto: Path, recording: SmallRecording, tmp_path: Path
) -> None:
    other = make_recording(tmp_path / "other", FileProvider.open(crypto / "old"), seed=2)
    shutil.copy(other.path / SIDECAR, recording.path / SIDECAR)
    with pytest.raises(KeyProblem, match="another key than the manifest"):
        rewrapper(crypto, "old", "new").rewrap(recording.path)


def test_one_that_fails_stops_no_other(crypto: Path, tmp_path: Path) -> None:
    old = FileProvider.open(crypto / "old")
    made = [make_recording(tmp_path / f"r{n}", old, seed=n, segments=1) for n in range(3)]
    (made[1].path / SIDECAR).write_bytes(b"{}")
    counts = Rewrapped()
    done = list(rewrapper(crypto, "old", "new").rewrap_all([one.path for one in made], counts))
    assert done == [one.path for one in made]
    assert (counts.rewrapped, counts.already, list(counts.failed)) == (2, 0, [str(made[1].path)])


def test_the_command_killed_goes_on_where_it_was(crypto: Path, tmp_path: Path) -> None:
    count = 40
    old = FileProvider.open(crypto / "old")
    template = make_recording(tmp_path / "template", old, segments=1, checkpoints=1)
    root = tmp_path / "recordings"
    for number in range(count):
        shutil.copytree(template.path, root / f"r{number:03d}")
    before = media(root)
    command = [
        *(sys.executable, "-c", "from recorder.cli import main; main()", "rewrap", str(root)),
        *("--keys", str(crypto / "new"), "--old", str(crypto / "old")),
    ]

    def moved() -> int:
        return sum(read_sidecar(path.parent)["revision"] == 2 for path in root.rglob(SIDECAR))

    kills = 0
    for target in (1, 10, 25):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and moved() < target:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        assert len(list(root.rglob(SIDECAR))) == count
    killed_at = moved()
    assert kills >= 1
    assert killed_at >= 1
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert f"{count - killed_at} rewrapped, {killed_at} were already, 0 failed" in last.stdout
    assert all(opens(crypto, "new", path.parent) for path in root.rglob(SIDECAR))
    assert {name: one for name, one in media(root).items() if SIDECAR not in name} == before
    again = CliRunner().invoke(app, command[3:])
    assert f"0 rewrapped, {count} were already" in again.stdout


def test_the_same_keys_are_no_rotation(crypto: Path, recording: SmallRecording) -> None:
    assert rewrapper(crypto, "old", "old").rewrap(recording.path) is Outcome.ALREADY


def test_erasing_overwrites_and_takes_leftovers_with_it(recording: SmallRecording) -> None:
    sidecar = recording.path / SIDECAR
    left = recording.path / f".{SIDECAR}.0badcafe"
    left.write_bytes(sidecar.read_bytes())
    linked = recording.path.parent / "same-bytes"
    os.link(sidecar, linked)  # what a block on disk would still hold
    before = linked.read_bytes()
    erase_sidecar(recording.path)
    assert not sidecar.exists()
    assert not left.exists()
    assert len(linked.read_bytes()) == len(before)
    assert b"ciphertext" not in linked.read_bytes()
    erase_sidecar(recording.path)
    with pytest.raises(FileNotFoundError):
        erase_sidecar(recording.path / "nowhere")


def _pem(crypto: Path, who: str) -> str:
    return (crypto / who / "signing.cert.pem").read_text()


def test_what_was_erased_while_it_was_rewrapped_does_not_come_back(
    crypto: Path, recording: SmallRecording
) -> None:
    with pytest.raises(KeyProblem, match="erased meanwhile"):
        rewrapper(crypto, "old", "new").rewrap(recording.path, lambda _: erase_sidecar(recording.path))
    assert not (recording.path / SIDECAR).exists()
