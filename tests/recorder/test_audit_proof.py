"""Recordings held against the audit log: tails cut back, statements, manifests and recordings removed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recorder.audit import AuditWriter, anchors
from recorder.audit.anchors import Item
from recorder.audit.proof import check_all, compare
from recorder.checkpoint import Checkpoint
from recorder.cli import app
from recorder.clock import SystemClock
from recorder.journal import recover
from recorder.keys import FileProvider
from recorder.manifest import write_manifest
from recorder.report import Finding, Kind, Report, Verdict
from recorder.sealed import RecordType, scan
from recorder.signed import digest_name
from recorder.statements import append_statement, list_statements
from recorder.storage import SegmentName, list_segments
from recorder.verify import verify
from tests.recorder.audit_tools import entry, open_next
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording


@dataclass
class Site:
    """Recordings and the log that saw them being made."""

    data: Path
    provider: FileProvider
    crashed: SmallRecording
    stopped: SmallRecording

    @property
    def audit(self) -> Path:
        return self.data / "audit"

    @property
    def recordings(self) -> Path:
        return self.data / "recordings"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    data = tmp_path_factory.mktemp("site") / "data"
    provider = make_provider(data.parent / "keys")
    both = []
    for number, stopped in enumerate((False, True)):
        draft = make_recording(data / "draft", provider, seed=number, stopped=stopped)
        place = data / "recordings" / "one" / draft.recording
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.path.rename(place)
        draft.path = place
        both.append(draft)
    site = Site(data, provider, *both)
    writer = AuditWriter(site.audit, "node-1", provider.signer(), SystemClock())
    open_next(writer, provider)
    for recording in both:
        writer.put([entry(writer.last_seq + 1)], {"one": items_of(recording)})
    writer.finish()
    return site


def items_of(made: SmallRecording) -> list[Item]:
    """What the server would have written while the recording was made."""
    items = [anchors.begun(made.recording, "2026-01-01T00:00:01.000Z")]
    for name, path in list_segments(made.path):
        for record in scan(path).records:
            if record.type == RecordType.CHECKPOINT:
                items.append(
                    anchors.head(
                        made.recording,
                        part=name.part,
                        index=name.index,
                        record=record.number,
                        offset=record.offset,
                        digest=record.head_before,
                        at=f"2026-01-01T00:00:{name.index:02d}.{record.number:03d}Z",
                    )
                )
    manifest = made.path / "manifest.json"
    if manifest.exists():
        items.append({"recording": made.recording, "manifest": digest_name(manifest.read_bytes())})
    for number, path in list_statements(made.path):
        items.append(
            {"recording": made.recording, "statement": number, "sm3": digest_name(path.read_bytes())}
        )
    return items


@pytest.fixture
def site(made: Site, tmp_path: Path) -> Site:
    shutil.copytree(made.data, tmp_path / "data")
    moved = []
    for one in (made.crashed, made.stopped):
        path = tmp_path / "data" / one.path.relative_to(made.data)
        moved.append(
            SmallRecording(path, one.recording, one.provider, one.data_key, one.segments, one.composite)
        )
    return Site(tmp_path / "data", made.provider, *moved)


def with_log(site: Site, made: SmallRecording) -> Report:
    report = verify(made.path)
    compare(report, made.path, site.audit)
    return report


def damage(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if one.kind not in (Kind.UNPROVEN, Kind.LEFTOVER)]


def test_what_the_log_has_unsigned_is_said_of_the_recording_too(site: Site) -> None:
    whole = with_log(site, site.stopped).verdict
    writer = AuditWriter(site.audit, "node-1", site.provider.signer(), SystemClock())
    open_next(writer, site.provider)
    writer.put([entry(9)], {})
    writer.leave()
    report = with_log(site, site.stopped)
    assert (whole, report.verdict) == (Verdict.OK, Verdict.UNPROVEN)
    assert [(one.kind, one.file[:9]) for one in report.findings] == [(Kind.UNPROVEN, "audit log")]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "250"})


def test_untouched_recordings_hold(site: Site) -> None:
    assert with_log(site, site.stopped).findings == []
    report = with_log(site, site.crashed)
    assert report.verdict == Verdict.UNPROVEN
    assert damage(report.findings) == []
    log, missing = check_all(site.recordings, site.audit)
    assert (log.verdict, missing) == (Verdict.OK, [])
    assert run("verify", site.stopped.path, "--audit", site.audit).exit_code == 0
    assert run("audit", "check", site.recordings, "--audit", site.audit).exit_code == 0


def test_without_the_log_a_crashed_recording_says_until_when_its_tail_is_provable(site: Site) -> None:
    tail = verify(site.crashed.path).findings[-1]
    assert tail.kind == Kind.UNPROVEN
    assert "the tail is not provable after 2026-01-01T00:00:09.400Z" in tail.detail
    cut_to(site.crashed, 1, 0)
    tail = verify(site.crashed.path).findings[-1]
    assert "the tail is not provable after 2026-01-01T00:00:05.200Z" in tail.detail
    result = run("verify", site.crashed.path)
    assert result.exit_code == 3
    assert "not provable after 2026-01-01T00:00:05.200Z" in result.stdout


def cut_to(made: SmallRecording, index: int, which: int) -> None:
    """Cut a journal back to just behind a checkpoint, as its signer left it then."""
    for name, path in list_segments(made.path):
        if name.index > index:
            path.unlink()
        if name.index == index:
            ends = [one.end for one in scan(path).records if one.type == RecordType.CHECKPOINT]
            with path.open("r+b") as file:
                file.truncate(ends[which])


@pytest.mark.parametrize(("index", "which"), [(2, 0), (1, 1), (1, 0), (0, 0)])
def test_a_tail_cut_back_to_a_checkpoint_is_found(site: Site, index: int, which: int) -> None:
    cut_to(site.crashed, index, which)
    alone = verify(site.crashed.path)
    assert damage(alone.findings) == []  # nothing tells, without the log
    found = damage(with_log(site, site.crashed).findings)
    assert len(found) == 1, [str(one) for one in found]
    assert found[0].file == f"segments/{SegmentName(1, 2)}"
    assert found[0].kind == (Kind.TRUNCATED if index == 2 else Kind.REMOVED)
    checkpoint = [one for one in scan(made_whole(site)).records if one.type == RecordType.CHECKPOINT][-1]
    assert (found[0].record, found[0].end) == (checkpoint.number, checkpoint.offset)
    result = run("verify", site.crashed.path, "--audit", site.audit)
    assert result.exit_code == 1
    assert f"segments/{SegmentName(1, 2)}" in result.stdout
    _, missing = check_all(site.recordings, site.audit)
    assert [one.file for one in missing] == [f"{site.crashed.recording}/segments/{SegmentName(1, 2)}"]


def made_whole(site: Site) -> Path:
    """Return the uncut last segment of the crashed recording."""
    original = next(site.data.parent.parent.glob(f"site*/data/recordings/one/{site.crashed.recording}"))
    return original / "segments" / str(SegmentName(1, 2))


def test_a_tail_cut_back_before_recovery_signed_it_is_found(site: Site) -> None:
    cut_to(site.crashed, 1, 0)
    parts = recover(site.crashed.path, site.crashed.data_key)
    write_manifest(
        site.crashed.path,
        site.crashed.recording,
        facts={"tenant": "one", "room": "r1", "state": "recovered"},
        sealed={},
        template={},
        parts=parts,
        data_key=site.crashed.data_key,
        provider=site.provider.info(),
        signer=site.provider.signer(),
    )
    assert verify(site.crashed.path).verdict == Verdict.OK
    [found] = damage(with_log(site, site.crashed).findings)
    assert (found.kind, found.file) == (Kind.REMOVED, f"segments/{SegmentName(1, 2)}")


def test_a_tail_replaced_by_another_is_found(site: Site) -> None:
    """Cut back, and written on by someone with data key and signing key: longer than it was."""
    segment = list_segments(site.crashed.path)[-1][1]
    records = scan(segment).records
    last = [one for one in records if one.type == RecordType.CHECKPOINT][-1]
    data = bytearray(segment.read_bytes())
    share = Checkpoint.from_bytes(last.payload)
    data[last.offset + 12 : last.offset + 13] = bytes([data[last.offset + 12]])
    data[last.offset - 40] ^= 1  # the trailers are not made anew: verify tells; the log tells as well
    data += bytes(1000)
    segment.write_bytes(data)
    assert share.leaves == 3
    assert with_log(site, site.crashed).verdict == Verdict.BROKEN


@pytest.mark.parametrize("number", [1, 2])
def test_a_statement_removed_is_found(site: Site, number: int) -> None:
    for one, path in list_statements(site.stopped.path):
        if one >= number:
            path.unlink()
    for left in (site.stopped.path / "statements").glob("*.sealed"):
        left.unlink()
    found = damage(with_log(site, site.stopped).findings)
    assert [one.file for one in found if one.kind == Kind.REMOVED] == [
        f"statements/{one:06d}.json" for one in range(number, 3)
    ]
    if number == 2:
        assert verify(site.stopped.path).verdict == Verdict.OK  # nothing tells, without the log


def test_another_statement_in_a_removed_ones_place_is_found(site: Site) -> None:
    (site.stopped.path / "statements" / "000002.json").unlink()
    for left in (site.stopped.path / "statements").glob("*.sealed"):
        left.unlink()
    append_statement(site.stopped.path, "review", {"verdict": "refused"}, site.provider.signer())
    assert verify(site.stopped.path).verdict == Verdict.OK
    [found] = damage(with_log(site, site.stopped).findings)
    assert (found.kind, found.file) == (Kind.CHANGED, "statements/000002.json")


def test_the_manifest_of_another_attempt_is_found(site: Site) -> None:
    shutil.rmtree(site.stopped.path / "statements")
    shutil.rmtree(site.stopped.path / "files")
    (site.stopped.path / "manifest.json").unlink()
    (site.stopped.path / "manifest.sealed").unlink()
    write_manifest(
        site.stopped.path,
        site.stopped.recording,
        facts={"tenant": "one", "room": "r1", "state": "sealed"},
        sealed={},
        template={},
        parts=recover(site.stopped.path, site.stopped.data_key),
        data_key=site.stopped.data_key,
        provider=site.provider.info(),
        signer=site.provider.signer(),
    )
    assert verify(site.stopped.path).verdict == Verdict.OK
    found = damage(with_log(site, site.stopped).findings)
    assert [(one.kind, one.file) for one in found] == [
        (Kind.CHANGED, "manifest.json"),
        (Kind.REMOVED, "statements/000001.json"),
        (Kind.REMOVED, "statements/000002.json"),
    ]


def test_a_manifest_removed_makes_no_running_recording(site: Site) -> None:
    shutil.rmtree(site.stopped.path / "statements")
    shutil.rmtree(site.stopped.path / "files")
    (site.stopped.path / "manifest.json").unlink()
    (site.stopped.path / "manifest.sealed").unlink()
    assert verify(site.stopped.path).verdict == Verdict.UNPROVEN
    assert with_log(site, site.stopped).verdict == Verdict.BROKEN


def test_a_whole_recording_removed_is_found(site: Site) -> None:
    shutil.rmtree(site.stopped.path)
    log, [found] = check_all(site.recordings, site.audit)
    assert log.verdict == Verdict.OK
    assert (found.kind, found.file) == (Kind.REMOVED, site.stopped.recording)
    assert "2 statements" in found.detail
    result = run("audit", "check", site.recordings, "--audit", site.audit, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["verdict"], told["missing"][0]["file"]) == ("broken", site.stopped.recording)


def test_media_that_the_manifest_speaks_for_may_be_elsewhere(site: Site) -> None:
    """It went to another site, or was destroyed with a statement: the log does not say where media is."""
    for _, path in list_segments(site.stopped.path):
        path.unlink()
    assert check_all(site.recordings, site.audit)[1] == []
    assert verify(site.stopped.path).verdict == Verdict.BROKEN


def test_a_recording_the_log_does_not_know_is_not_ok(site: Site, tmp_path: Path) -> None:
    other = make_recording(tmp_path / "other", site.provider, seed=9)
    report = with_log(site, other)
    assert report.verdict == Verdict.UNPROVEN
    assert "does not know this recording" in report.findings[-1].detail


def test_damage_of_the_log_is_told_with_the_recording(site: Site) -> None:
    log = next(site.audit.rglob("log.sealed"))
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    report = with_log(site, site.stopped)
    assert report.verdict == Verdict.BROKEN
    assert report.findings[0].file.startswith("audit log: ")


def test_the_log_on_the_command_line(site: Site) -> None:
    result = run("audit", "verify", site.audit, "--keys", site.provider.directory, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["entries"] == 2
    assert "proven until" in run("audit", "verify", site.audit).stdout
    found = run("audit", "search", site.audit, "--keys", site.provider.directory, "--actor", "li-wei")
    assert [json.loads(line)["seq"] for line in found.stdout.splitlines()] == [1, 2]
    next(site.audit.rglob("keys.json")).unlink()
    broken = run("audit", "search", site.audit, "--keys", site.provider.directory)
    assert (broken.exit_code, broken.stdout) == (1, "")
    assert "keys.json is missing" in broken.stderr
    assert run("audit", "verify", site.audit).exit_code == 1
    assert run("audit", "verify", site.data / "nothing").exit_code != 0
