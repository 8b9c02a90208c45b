"""What someone without keys does to a crashed recording before recovery signs it, and other hostile files."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recorder.cli import app
from recorder.gm.sm3 import sm3
from recorder.ids import uuid7
from recorder.journal import GroupCommit, JournalReader
from recorder.journal.encoding import decode, encode
from recorder.keys import FileProvider, write_sidecar
from recorder.records import EndRecord, RtpRecord, SessionRecord
from recorder.recovering import RecoveryError, recover_recording
from recorder.report import Kind, Report, Verdict
from recorder.sealed import DataKey, RecordType, SealedWriter, scan
from recorder.sealed.format import MAGIC
from recorder.storage import list_segments
from recorder.verify import verify
from tests.recorder.forging import Forgery, Piece
from tests.recorder.journal_tools import MS, SECOND, VirtualClock, packets
from tests.recorder.small_recording import make_provider, make_recording


@dataclass
class Crashed:
    """A recording of three parts of two segments each that nobody stopped."""

    path: Path
    data_key: DataKey
    provider: FileProvider

    def recovered(self) -> Report:
        """Recover and verify without the key: what an auditor sees."""
        recover_recording(
            self.path, self.data_key, provider=self.provider.info(), signer=self.provider.signer()
        )
        return verify(self.path)

    def segments(self, pattern: str = "*.seg") -> list[Path]:
        return sorted((self.path / "segments").glob(pattern))


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, provider: FileProvider) -> Crashed:
    path = tmp_path_factory.mktemp("crashed") / "r"
    path.mkdir()
    data_key, wrap = asyncio.run(provider.new_data_key("new"))
    recording = str(uuid7())
    write_sidecar(path, recording, data_key.key_id, [wrap], provider.signer())
    clock = VirtualClock()
    commit = GroupCommit(provider.signer(), clock, segment_ns=3 * SECOND, threads=False)
    about = {"recording": recording, "tenant": "default", "room": "r", "business_no": "B", "mode": "single"}
    for part in (1, 2, 3):
        info = {**about, "armed_ns": 5 * SECOND}
        writer = commit.open(path, data_key, SessionRecord(clock.now, part, info))
        for index in range(20):
            writer.write(packets(2, clock.now, seed=index, size=80, track_number=part))
            clock.now += 250 * MS
            commit.step(clock.now)
        writer.close(EndRecord(clock.now, False, "x"))
        clock.now += 250 * MS
        commit.step(clock.now)
    return Crashed(path, data_key, provider)


@pytest.fixture
def crashed(original: Crashed, tmp_path: Path) -> Crashed:
    shutil.copytree(original.path, tmp_path / "r")
    return Crashed(tmp_path / "r", original.data_key, original.provider)


def test_untouched_it_recovers_to_ok(crashed: Crashed) -> None:
    assert len(crashed.segments()) == 6
    report = crashed.recovered()
    assert report.ok, [str(finding) for finding in report.findings]


def test_a_change_behind_the_last_checkpoint_is_not_signed_away(crashed: Crashed) -> None:
    segment = crashed.segments()[-1]
    records = scan(segment).records
    victim = [record for record in records if record.type == RecordType.CHUNK][-1]
    raw, forged = segment.read_bytes(), bytearray(MAGIC)
    for record in records:
        body = bytearray(raw[record.offset : record.end - 32])
        body[-20] ^= record.number == victim.number
        forged += body
        forged += sm3(bytes(forged))
    segment.write_bytes(forged)
    report = crashed.recovered()
    assert report.verdict == Verdict.BROKEN
    assert {(f.kind, f.file) for f in report.findings} == {(Kind.CHANGED, f"segments/{segment.name}")}


def remove_part_1(crashed: Crashed) -> None:
    for path in crashed.segments("p0001-*"):
        path.unlink()


def remove_part_2(crashed: Crashed) -> None:
    for path in crashed.segments("p0002-*"):
        path.unlink()


def remove_first_of_part_2(crashed: Crashed) -> None:
    (crashed.path / "segments/p0002-000000.seg").unlink()


def empty_first_of_part_2(crashed: Crashed) -> None:
    os.truncate(crashed.path / "segments/p0002-000000.seg", 0)


def swap_parts_2_and_3(crashed: Crashed) -> None:
    for path in crashed.segments("p0002-*"):
        other = path.with_name(path.name.replace("p0002", "p0003"))
        aside = path.rename(path.with_suffix(".aside"))
        other.rename(path)
        aside.rename(other)


def plant_a_second_name(crashed: Crashed) -> None:
    shutil.copy(crashed.path / "segments/p0001-000001.seg", crashed.path / "segments/p00001-000000.seg")


@pytest.mark.parametrize(
    "attack",
    [
        remove_part_1,
        remove_part_2,
        remove_first_of_part_2,
        empty_first_of_part_2,
        swap_parts_2_and_3,
        plant_a_second_name,
    ],
)
def test_removed_and_moved_segments_are_not_signed_away(
    crashed: Crashed, attack: Callable[[Crashed], None]
) -> None:
    attack(crashed)
    assert crashed.recovered().verdict == Verdict.BROKEN


def test_swapped_parts_are_seen_before_recovery_too(crashed: Crashed) -> None:
    swap_parts_2_and_3(crashed)
    findings = verify(crashed.path).findings
    assert [f.file for f in findings if f.kind == Kind.REORDERED] == [
        f"segments/{path.name}" for path in crashed.segments("p000[23]-*")
    ]


def test_the_journal_reader_reads_no_segment_in_anothers_place(crashed: Crashed) -> None:
    swap_parts_2_and_3(crashed)
    reader = JournalReader(crashed.path, crashed.data_key)
    parts = {one.part for one in reader.records() if isinstance(one, SessionRecord)}
    assert parts == {1}
    assert [text.partition(":")[0] for text in reader.damage] == [
        path.name for path in crashed.segments("p000[23]-*")
    ]


def test_a_writer_that_died_before_its_first_chunk_is_no_damage(crashed: Crashed) -> None:
    SealedWriter(
        crashed.path / "segments/p0004-000000.seg",
        crashed.data_key,
        kind="original",
        media_type="application/vnd.shuanglu.journal",
        public={"part": 4, "index": 0},
    ).abandon()
    report = crashed.recovered()
    assert report.ok, [str(finding) for finding in report.findings]
    assert [finding.kind for finding in report.findings] == [Kind.LEFTOVER]


def test_recovery_does_not_replace_a_manifest_that_was_removed(
    provider: FileProvider, tmp_path: Path
) -> None:
    made = make_recording(tmp_path / "r", provider)
    private = (made.path / "manifest.sealed").read_bytes()
    (made.path / "manifest.json").unlink()
    with pytest.raises(RecoveryError, match="removed"):
        recover_recording(made.path, made.data_key, provider=provider.info(), signer=provider.signer())
    assert (made.path / "manifest.sealed").read_bytes() == private


@pytest.mark.parametrize("name", ["manifest.json", "keys.json", "statements/000001.json"])
def test_pages_that_break_parsers_are_findings(provider: FileProvider, tmp_path: Path, name: str) -> None:
    made = make_recording(tmp_path / "r", provider)
    digits = b'{"a":' + b"9" * 5000 + b"}"
    nested = [b'{"a":' + b"[" * depth + b"]" * depth + b"}" for depth in (*range(900, 1000, 4), 100_000)]
    for page in (digits, *nested):
        (made.path / name).write_bytes(page)
        report = verify(made.path)
        assert any(f.kind == Kind.CHANGED and f.file == name for f in report.findings)


def test_a_number_in_a_file_name_does_not_keep_verification_busy(
    provider: FileProvider, tmp_path: Path
) -> None:
    made = make_recording(tmp_path / "r", provider, stopped=False)
    for name in ("p0001-999999999999.seg", "p999999999999-000000.seg"):
        (made.path / "segments" / name).write_bytes(b"")
    (made.path / "statements").mkdir()
    (made.path / "statements/999999999999.json").write_bytes(b"{}")
    assert verify(made.path).verdict == Verdict.BROKEN


def test_file_names_do_not_command_the_terminal(provider: FileProvider, tmp_path: Path) -> None:
    made = make_recording(tmp_path / "r", provider)
    (made.path / "[conceal]").mkdir()
    (made.path / "[conceal]/x]\x1b[2J\x1b[1;1HOK").write_bytes(b"1")
    result = CliRunner().invoke(app, ["verify", str(made.path)], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    assert r"[conceal]/x]\x1b[2J" in result.stdout


def test_pipes_and_giants_in_place_of_files_are_findings(provider: FileProvider, tmp_path: Path) -> None:
    made = make_recording(tmp_path / "r", provider)
    with (made.path / "statements/000002.json").open("r+b") as page:
        page.truncate(1 << 40)  # sparse
    os.mkfifo(made.path / "statements/000003.json")
    os.mkfifo(made.path / "segments/p0002-000000.seg")
    found = {finding.file: finding.kind for finding in verify(made.path).findings}
    assert found == {
        "statements/000002.json": Kind.CHANGED,
        "statements/000003.json": Kind.CHANGED,
        "segments/p0002-000000.seg": Kind.ADDED,
        **{name: kind for name, kind in found.items() if kind == Kind.LEFTOVER},
    }
    (made.path / "keys.json").unlink()
    (made.path / "manifest.json").unlink()
    for name in ("keys.json", "manifest.json"):
        os.mkfifo(made.path / name)
    assert verify(made.path).verdict == Verdict.BROKEN


def test_a_pipe_in_place_of_a_segment_does_not_stop_the_recovery(crashed: Crashed) -> None:
    os.mkfifo(crashed.path / "segments/p0004-000000.seg")
    reader = JournalReader(crashed.path, crashed.data_key)
    assert {one.part for one in reader.records() if isinstance(one, SessionRecord)} == {1, 2, 3}
    assert "no file" in reader.damage[0]
    assert [(f.kind, f.file) for f in crashed.recovered().findings] == [
        (Kind.ADDED, "segments/p0004-000000.seg")
    ]


@pytest.mark.parametrize("recovered", [False, True])
def test_a_chunk_behind_the_head_that_the_next_segment_names_is_added(
    provider: FileProvider, tmp_path: Path, recovered: bool
) -> None:
    """The disk failed: the writer left a segment and began another; later someone with the data key came."""
    made = make_recording(tmp_path / "r", provider, stopped=False)
    whole = [Forgery.take_apart(path, made.data_key) for _, path in list_segments(made.path)]
    previous, packets_kept = None, 0
    for (_, path), segment in zip(list_segments(made.path), whole, strict=True):
        segment.finished, segment.header = False, replace(segment.header, previous=previous)
        segment.pieces = segment.chunks
        path.write_bytes(segment.to_bytes(made.data_key))
        previous = scan(path).head
        packets_kept += sum(len(list(decode(one.body))) for one in segment.chunks)
    assert len(list(JournalReader(made.path, made.data_key).records())) == packets_kept
    kinds = {finding.kind for finding in verify(made.path).findings}
    assert kinds == {Kind.UNPROVEN}
    path = list_segments(made.path)[1][1]
    size = path.stat().st_size
    whole[1].pieces.append(Piece(RecordType.CHUNK, whole[0].chunks[-1].body))
    path.write_bytes(whole[1].to_bytes(made.data_key))
    reader = JournalReader(made.path, made.data_key)
    assert len(list(reader.records())) == packets_kept
    assert [text.partition(":")[0] for text in reader.damage] == [path.name]
    if recovered:
        recover_recording(made.path, made.data_key, provider=provider.info(), signer=provider.signer())
    found = [one for one in verify(made.path).findings if one.kind not in (Kind.UNPROVEN, Kind.CHANGED)]
    assert [(one.kind, one.file, one.begin) for one in found] == [(Kind.ADDED, f"segments/{path.name}", size)]


@pytest.mark.parametrize("case", ["as it was left", "ended under a checkpoint", "no checkpoint", "long tail"])
def test_recovery_says_how_far_checkpoints_prove_a_part(
    provider: FileProvider, tmp_path: Path, case: str
) -> None:
    """Whoever holds the data key and no signing key can write a journal, but no checkpoints."""
    made = make_recording(tmp_path / "r", provider, segments=1, stopped=False)
    ((_, path),) = list_segments(made.path)
    segment = Forgery.take_apart(path, made.data_key)
    if case == "ended under a checkpoint":
        segment.pieces = segment.pieces[:-1]  # the end itself; now the last checkpoint is the last record
    elif case == "no checkpoint":
        segment.pieces = segment.chunks
    elif case == "long tail":
        forged = RtpRecord(1, 60 * SECOND, b"\x80\x60forged")
        segment.pieces[-1:] = [Piece(RecordType.CHUNK, encode([forged, EndRecord(60 * SECOND, True, "x")]))]
    path.write_bytes(segment.to_bytes(made.data_key))
    manifest = recover_recording(made.path, made.data_key, provider=provider.info(), signer=provider.signer())
    proven = manifest.parts[0]["proven"]
    assert isinstance(proven, dict)
    assert proven["end"] == (case == "ended under a checkpoint")
    assert manifest.facts["state"] == "recovered"
    report = verify(made.path, data_key=made.data_key)
    if case in ("as it was left", "ended under a checkpoint"):
        assert report.verdict == Verdict.OK, [str(one) for one in report.findings]
        assert report.unproven_tail_ms == proven["ms_behind"] == 0
        return
    assert report.verdict == Verdict.UNPROVEN, [str(one) for one in report.findings]
    (found,) = report.findings
    assert (found.kind, found.file, found.end) == (
        Kind.UNPROVEN,
        f"segments/{path.name}",
        path.stat().st_size,
    )
    if case == "no checkpoint":
        assert (found.begin, proven["until"], proven["ms_behind"]) == (0, "", None)
    else:
        assert report.unproven_tail_ms == proven["ms_behind"]
        assert proven["ms_behind"] > 50_000
        assert found.time == f"{proven['until']}/"
