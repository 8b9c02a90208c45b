"""Verification: every change in any file of a recording is found and placed, with and without the key."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recorder.clock import rfc3339
from recorder.gm.sm3 import sm3
from recorder.gm.x509 import Certificate
from recorder.ids import uuid7
from recorder.journal import GroupCommit
from recorder.keys import FileProvider, data_key_id, read_sidecar, write_sidecar
from recorder.manifest import write_manifest
from recorder.records import EndRecord
from recorder.report import Finding, Kind, Report, Verdict
from recorder.sealed import DataKey, RecordType, SealedWriter, scan
from recorder.signed import sign_page
from recorder.statements import append_statement
from recorder.verify import verify
from tests.recorder.journal_tools import SECOND, VirtualClock, packets, session
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording
from tests.recorder.test_sealed import join, split

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, provider: FileProvider) -> SmallRecording:
    return make_recording(tmp_path_factory.mktemp("whole") / "r", provider)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, provider: FileProvider) -> SmallRecording:
    return make_recording(tmp_path_factory.mktemp("running") / "r", provider, stopped=False)


@pytest.fixture
def copy(stopped: SmallRecording, tmp_path: Path) -> Path:
    shutil.copytree(stopped.path, tmp_path / "copy")
    return tmp_path / "copy"


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def damage(report: Report) -> list[Finding]:
    return [f for f in report.findings if f.kind not in (Kind.UNPROVEN, Kind.LEFTOVER)]


def only(report: Report) -> Finding:
    assert report.verdict == Verdict.BROKEN
    assert len(damage(report)) == 1, [str(finding) for finding in report.findings]
    return damage(report)[0]


def test_a_whole_recording_is_ok_with_and_without_the_key(stopped: SmallRecording) -> None:
    for data_key in (None, stopped.data_key):
        report = verify(stopped.path, data_key=data_key)
        assert report.ok, [str(finding) for finding in report.findings]
        assert report.findings == []
        assert report.recording == stopped.recording
        assert (report.files, report.checkpoints, report.statements) == (6, 6, 2)
        assert report.opened == (data_key is not None)
        assert report.to_json()["verdict"] == "ok"
    assert report.assurance == "development"


def test_a_running_recording_says_from_where_on_it_is_not_proven(running: SmallRecording) -> None:
    for data_key in (None, running.data_key):
        report = verify(running.path, data_key=data_key)
        assert report.verdict == Verdict.UNPROVEN
        assert not damage(report)
        tail = report.findings[-1]
        assert tail.file == "segments/p0001-000002.seg"
        assert tail.time == "2026-01-01T00:00:09.400Z/"
        assert tail.begin == scan(running.path / tail.file).records[-2].offset


@pytest.mark.parametrize(("which", "count"), [("stopped", 80), ("running", 40)])
def test_one_changed_bit_anywhere_is_found_and_placed(
    which: str, count: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made: SmallRecording = request.getfixturevalue(which)
    path = tmp_path / "copy"
    shutil.copytree(made.path, path)
    source = random.Random(20260101)
    missed = []
    for number in range(count):
        file = source.choice(files_of(path))
        whole = file.read_bytes()
        position = source.randrange(len(whole))
        changed = bytearray(whole)
        changed[position] ^= 1 << source.randrange(8)
        file.write_bytes(changed)
        report = verify(path, data_key=made.data_key if number % 5 == 0 else None)
        file.write_bytes(whole)
        name = str(file.relative_to(path))
        here = [
            finding
            for finding in damage(report)
            if finding.file == name and (finding.begin or 0) <= position < (finding.end or 0)
        ]
        elsewhere = [finding for finding in damage(report) if finding.file != name]
        if not here or elsewhere or report.verdict != Verdict.BROKEN:
            missed.append((name, position, [str(finding) for finding in report.findings]))
    assert not missed


def test_each_file_removed_is_named(stopped: SmallRecording, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(stopped.path, path)
    for file in files_of(path):
        whole = file.read_bytes()
        name = str(file.relative_to(path))
        file.unlink()
        report = verify(path)
        file.write_bytes(whole)
        found = [finding for finding in damage(report) if finding.file == name]
        if name == "statements/000002.json":
            # The end of the chain: only what it spoke for is left over (docs/container.md section 7).
            assert [finding.kind for finding in report.findings] == [Kind.LEFTOVER]
            continue
        assert [finding.kind for finding in found] == [Kind.REMOVED], name
        assert damage(report) == found


def test_each_file_cut_off_is_named_with_what_is_missing(copy: Path) -> None:
    for file in files_of(copy):
        if file.suffix not in (".seg", ".sealed"):
            continue
        whole = file.read_bytes()
        records = scan(file).records
        for size in (0, 5, records[-2].offset, records[-1].offset, len(whole) - 1):
            file.write_bytes(whole[:size])
            finding = only(verify(copy))
            assert finding.kind == Kind.TRUNCATED, (file, size, str(finding))
            assert (finding.begin or 0) <= size < (finding.end or 0)
        file.write_bytes(whole + b"more")
        assert (only(verify(copy)).begin or 0) <= len(whole)
        file.write_bytes(whole)
    assert verify(copy).ok


def test_segments_put_in_each_others_place_are_reordered(copy: Path) -> None:
    first, second = copy / "segments/p0001-000000.seg", copy / "segments/p0001-000001.seg"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    found = damage(verify(copy))
    assert {(finding.kind, finding.file) for finding in found} == {
        (Kind.REORDERED, "segments/p0001-000000.seg"),
        (Kind.REORDERED, "segments/p0001-000001.seg"),
    }


def test_segments_of_a_running_recording_removed_or_exchanged(
    running: SmallRecording, tmp_path: Path, provider: FileProvider
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(running.path, path)
    middle = path / "segments/p0001-000001.seg"
    whole = middle.read_bytes()
    middle.unlink()
    assert only(verify(path)).kind == Kind.REMOVED
    other = make_recording(tmp_path / "other", provider, stopped=False, seed=9)
    shutil.copy(other.path / "segments/p0001-000001.seg", middle)
    assert {finding.file for finding in damage(verify(path))} >= {"segments/p0001-000001.seg"}
    middle.write_bytes(whole)
    first = path / "segments/p0001-000000.seg"
    data = first.read_bytes()
    first.unlink()
    assert only(verify(path)).file == "segments/p0001-000000.seg"
    first.write_bytes(data)
    assert not damage(verify(path))


def records_swapped(data: bytes) -> bytes:
    records = split(data)
    chunks = [place for place, record in enumerate(records) if record[0] == RecordType.CHUNK]
    records[chunks[0]], records[chunks[1]] = records[chunks[1]], records[chunks[0]]
    return join(records)


def test_a_rechained_segment_is_bounded_by_its_signed_checkpoints(copy: Path) -> None:
    """Someone who makes all SM3 trailers anew still cannot sign checkpoints."""
    file = copy / "segments/p0001-000001.seg"
    whole = file.read_bytes()
    before = scan(file).records
    records = split(whole)
    place = [n for n, record in enumerate(records) if record[0] == RecordType.CHUNK][1]
    body = records[place][2]
    records[place][2] = body[:5] + bytes((body[5] ^ 1,)) + body[6:]
    file.write_bytes(join(records))
    assert scan(file).problem is None
    finding = only(verify(copy))
    checkpoints = [record for record in before if record.type == RecordType.CHECKPOINT]
    assert (finding.begin, finding.end) == (checkpoints[0].offset, checkpoints[1].end)
    assert checkpoints[0].offset < before[place].offset < checkpoints[1].offset
    assert finding.time == "2026-01-01T00:00:05.200Z/2026-01-01T00:00:08.000Z"


def test_a_rechained_blob_without_checkpoints_is_found_and_placed_with_the_key(
    copy: Path, stopped: SmallRecording
) -> None:
    file = next((copy / "files").iterdir())
    records = split(file.read_bytes())
    place = next(n for n, record in enumerate(records) if record[0] == RecordType.CHUNK)
    records[place][2] = bytes(8) + records[place][2][8:]
    file.write_bytes(join(records))
    finding = only(verify(copy))
    assert (finding.file, finding.begin) == (f"files/{file.name}", 0)
    assert only(verify(copy, data_key=stopped.data_key)).file == f"files/{file.name}"


def test_records_exchanged_or_left_out_are_found(copy: Path) -> None:
    file = copy / "segments/p0001-000000.seg"
    whole = file.read_bytes()
    records = scan(file).records
    chunk = [record for record in records if record.type == RecordType.CHUNK]
    one, two = chunk[1], chunk[2]
    cut = {
        "removed": whole[: one.offset] + whole[one.end :],
        "reordered": whole[: one.offset]
        + whole[two.offset : two.end]
        + whole[one.end : two.offset]
        + whole[one.offset : one.end]
        + whole[two.end :],
        "repeated": whole[: one.end] + whole[one.offset :],
    }
    for what, data in cut.items():
        file.write_bytes(data)
        finding = only(verify(copy))
        assert finding.file == "segments/p0001-000000.seg", what
        place = one.end if what == "repeated" else one.offset
        assert (finding.begin or 0) <= place < (finding.end or 0), what
    file.write_bytes(records_swapped(whole))
    assert only(verify(copy)).file == "segments/p0001-000000.seg"


def test_an_end_removed_from_a_record_is_found_where_it_was(copy: Path) -> None:
    """Behind what is left of the record lies the next one's header, in the place of the missing bytes."""
    file = copy / "manifest.sealed"
    whole, chunk = file.read_bytes(), scan(file).records[2]
    at = chunk.end - 36
    file.write_bytes(whole[:at] + whole[chunk.end :])
    finding = only(verify(copy))
    assert (finding.begin, finding.record) == (chunk.offset, 2)
    assert at < (finding.end or 0)


def test_another_files_header_before_a_file_names_whose_it_is(copy: Path) -> None:
    """Whole by itself, it makes the file's own header the record that does not hold."""
    names = ("segments/p0001-000000.seg", "segments/p0001-000001.seg")
    whole, other = (copy / name for name in names)
    first, own = scan(other).records[0], scan(whole).records[0]
    data = whole.read_bytes()
    stranger = other.read_bytes()[first.offset : first.end]
    whole.write_bytes(data[: own.offset] + stranger + data[own.offset :])
    finding = only(verify(copy))
    assert (finding.file, finding.begin) == (names[0], 0)
    assert finding.detail == f"holds the bytes of {other.name}"


def test_what_was_added_is_named(copy: Path, provider: FileProvider, stopped: SmallRecording) -> None:
    (copy / "note.txt").write_text("hello")
    assert only(verify(copy)).kind == Kind.ADDED
    (copy / "note.txt").unlink()
    writer = SealedWriter(
        copy / "segments/p0001-000003.seg", stopped.data_key, kind="original", media_type="x/y"
    )
    writer.append(b"x")
    writer.close()
    finding = only(verify(copy))
    assert (finding.kind, finding.file) == (Kind.ADDED, "segments/p0001-000003.seg")


def test_remains_of_a_crash_are_named_and_no_damage(copy: Path, stopped: SmallRecording) -> None:
    (copy / ".keys.json.1234").write_bytes(b"half")
    writer = SealedWriter(
        copy / "files/composite.mp4.{file_id}.sealed",
        stopped.data_key,
        kind="archive",
        media_type="video/mp4",
    )
    writer.write(b"x" * 300_000)
    writer.abandon()
    report = verify(copy)
    assert report.ok
    assert [finding.kind for finding in report.findings] == [Kind.LEFTOVER, Kind.LEFTOVER]


def test_pages_by_another_signer_are_not_accepted(
    copy: Path, tmp_path: Path, stopped: SmallRecording
) -> None:
    stranger = FileProvider.create(tmp_path / "stranger")
    append_statement(copy, "review", {"verdict": "failed"}, stranger.signer())
    finding = only(verify(copy))
    assert (finding.kind, finding.file) == (Kind.OTHER_SIGNER, "statements/000003.json")
    (copy / "statements/000003.json").unlink()
    sidecar = read_sidecar(copy)
    wraps = [dict(wrap) for wrap in sidecar["wraps"]]  # type: ignore[union-attr, arg-type]
    write_sidecar(copy, stopped.recording, str(sidecar["key_id"]), wraps, stranger.signer())
    assert only(verify(copy)).file == "keys.json"


def test_only_named_signers_are_trusted(copy: Path, tmp_path: Path, provider: FileProvider) -> None:
    own = Certificate.from_pem(provider.info().signing_certificate_pem).fingerprint
    report = verify(copy, trusted=[own])
    assert report.ok
    assert report.trusted
    stranger = Certificate.from_pem(FileProvider.create(tmp_path / "s").info().signing_certificate_pem)
    found = damage(verify(copy, trusted=[stranger.fingerprint]))
    assert {finding.kind for finding in found} == {Kind.OTHER_SIGNER}
    assert {finding.file for finding in found} >= {"manifest.json", "keys.json"}


def test_another_recordings_keys_statements_and_files_are_refused(
    copy: Path, tmp_path: Path, provider: FileProvider
) -> None:
    other = make_recording(tmp_path / "other", provider, seed=2).path
    whole = (copy / "keys.json").read_bytes()
    shutil.copy(other / "keys.json", copy / "keys.json")
    assert {finding.file for finding in damage(verify(copy))} == {"keys.json"}
    (copy / "keys.json").write_bytes(whole)
    whole = (copy / "statements/000001.json").read_bytes()
    shutil.copy(other / "statements/000001.json", copy / "statements/000001.json")
    assert "statements/000001.json" in {finding.file for finding in damage(verify(copy))}
    (copy / "statements/000001.json").write_bytes(whole)
    shutil.copy(other / "segments/p0001-000000.seg", copy / "segments/p0001-000000.seg")
    finding = only(verify(copy))
    assert finding.file == "segments/p0001-000000.seg"
    assert "another sealed file" in finding.detail


def test_a_signed_page_cannot_name_files_outside(copy: Path, provider: FileProvider) -> None:
    summary = scan(copy / "manifest.sealed")
    assert summary.header is not None
    body = {
        "name": "../manifest.sealed",
        "file_id": summary.header.file_id,
        "kind": "derived",
        "media_type": "x/y",
        "bytes": 1,
        "plain_bytes": 1,
        "chunks": 1,
        "sm3": f"sm3:{sm3(b'').hex()}",
        "plain_sm3": "",
        "head": "",
    }
    append_statement(copy, "derived", {"files": [body]}, provider.signer())
    assert only(verify(copy)).kind == Kind.REMOVED


def test_a_whole_recording_in_anothers_directory_is_found(stopped: SmallRecording, tmp_path: Path) -> None:
    """Each page and file of it holds; only its place is wrong."""
    shutil.copytree(stopped.path, tmp_path / stopped.recording)
    assert verify(tmp_path / stopped.recording).ok
    other = str(uuid7())
    shutil.copytree(stopped.path, tmp_path / other)
    assert only(verify(tmp_path / other)).kind == Kind.REORDERED


def test_the_wrong_key_is_said_to_be_wrong(copy: Path, tmp_path: Path, provider: FileProvider) -> None:
    other = make_recording(tmp_path / "other", provider, seed=3)
    kinds = {finding.kind for finding in damage(verify(copy, data_key=other.data_key))}
    assert kinds == {Kind.WRONG_KEY}


def test_a_journal_of_the_real_writer_verifies(tmp_path: Path, provider: FileProvider) -> None:
    """Two parts by ``GroupCommit``, SM2-signed checkpoints; verified running, then with its manifest."""
    path = tmp_path / "r"
    path.mkdir()
    data_key, wrap = asyncio.run(provider.new_data_key("r"))
    write_sidecar(path, "r", data_key.key_id, [wrap], provider.signer())
    clock = VirtualClock()
    parts = []
    for number in (1, 2):
        commit = GroupCommit(provider.signer(), clock, threads=False)
        writer = commit.open(path, data_key, session(number, clock.now))
        for _ in range(60):
            writer.write(packets(5, clock.now, seed=clock.now))
            clock.now += SECOND // 4
            commit.step(clock.now)
        if number == 2:
            report = verify(path, data_key=data_key)
            assert report.verdict == Verdict.UNPROVEN
            assert report.findings[-1].time >= rfc3339(clock.utc_ns() - 3 * SECOND)
        ended = writer.close(EndRecord(clock.now, number == 2, "stopped"))
        commit.step(clock.now)
        parts.append(ended.result(timeout=5))
        commit.close()
    assert len(list((path / "segments").iterdir())) == 4
    write_manifest(
        path,
        "r",
        facts={"state": "sealed"},
        sealed={},
        template=None,
        parts=parts,
        data_key=data_key,
        provider=provider.info(),
        signer=provider.signer(),
    )
    report = verify(path, data_key=data_key)
    assert report.ok, [str(finding) for finding in report.findings]
    assert report.checkpoints >= 12


def test_what_is_no_recording_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        verify(tmp_path / "file")
    assert verify(tmp_path).verdict == Verdict.BROKEN


@pytest.mark.parametrize(("name", "suite"), [("v1", 1), ("v1-sm4-ctr-hmac-sm3", 2), ("v1-aes-256-gcm", 3)])
def test_recordings_of_every_released_version_still_verify(name: str, suite: int) -> None:
    secret = bytes.fromhex((FIXTURES / name / "data-key.hex").read_text())
    for key in (None, DataKey(data_key_id(secret, suite), secret, suite)):
        report = verify(FIXTURES / name / "recording", data_key=key)
        assert report.ok, [str(finding) for finding in report.findings]
        assert report.files == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "shuanglu.capture-manifest.v1"},
        {"type": "shuanglu.capture-manifest.v1", "parts": [1], "facts": {}},
        {"type": "shuanglu.capture-manifest.v1", "parts": [], "facts": {}, "sealed": 3},
        {"type": "shuanglu.statement.v1"},
    ],
)
def test_signed_rubbish_is_a_finding_not_a_crash(
    fields: dict[str, object], copy: Path, provider: FileProvider
) -> None:
    path = copy
    (path / "manifest.json").write_bytes(sign_page(fields, provider.signer()))  # type: ignore[arg-type]
    (path / "statements/000001.json").write_bytes(sign_page(fields, provider.signer()))  # type: ignore[arg-type]
    files = {finding.file for finding in damage(verify(path))}
    assert {"manifest.json", "statements/000001.json"} <= files


def _directory_for(name: str) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        (path / name).mkdir()

    return replace


def _link(name: str, target: str) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(target)

    return replace


POISONS: dict[str, Callable[[Path], None]] = {
    "keys.json": _directory_for("keys.json"),
    "manifest.json": _directory_for("manifest.json"),
    "statements/000003.json": _directory_for("statements/000003.json"),
    "statements/000002.json": _link("statements/000002.json", "000002.json"),
    "statements/000001.json": _link("statements/000001.json", "/nonexistent"),
    "files/x": _link("files/x", "/nonexistent"),
    "files/.x": _link("files/.x", "/nonexistent"),
    "files/loop.sealed": _link("files/loop.sealed", "loop.sealed"),
    "files/pipe": lambda path: os.mkfifo(path / "files/pipe"),
}


@pytest.mark.parametrize("name", POISONS)
def test_what_is_no_regular_file_is_a_finding_not_a_crash(copy: Path, name: str) -> None:
    POISONS[name](copy)
    assert name in {finding.file for finding in damage(verify(copy))}


@pytest.mark.parametrize("name", ["x" * 300, "x\0y"])
def test_a_signed_name_that_no_file_can_have_is_a_finding(
    stopped: SmallRecording, copy: Path, provider: FileProvider, name: str
) -> None:
    listed = {**stopped.segments[0].to_json(), "name": name}
    append_statement(copy, "composite", {"files": [listed]}, provider.signer())
    assert [(one.kind, one.file) for one in verify(copy).findings] == [(Kind.REMOVED, f"files/{name}")]


def test_a_recording_that_cannot_be_read_hides_no_other(copy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from recorder.cli import main; main()", "verify", "--json"]
    ran = subprocess.run(
        [*command, str(tmp_path / "gone"), str(copy)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1, ran.stderr
    assert [report["verdict"] for report in json.loads(ran.stdout)] == ["broken", "ok"]
