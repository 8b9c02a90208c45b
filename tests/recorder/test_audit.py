"""The audit log: written in order, searched with its keys, checked without; every change in it is found."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recorder.audit import AuditWriter, LogFile, Wanted, anchors, list_files, read_log, search
from recorder.audit.report import AuditReport
from recorder.canonical import JSON, canonical
from recorder.gm.sm3 import sm3
from recorder.gm.x509 import Certificate
from recorder.keys import FileProvider
from recorder.keys.rewrap import Rewrapper
from recorder.report import Finding, Kind, Verdict
from recorder.sealed import RecordType, scan
from recorder.sealed.format import RECORD
from tests.recorder.audit_tools import LogBench, entry, key_of, open_next
from tests.recorder.small_recording import make_provider
from tests.recorder.test_journal import FullDisk

DAY_NS = 86_400 * 10**9


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, provider: FileProvider) -> Path:
    """Four files: a day, a crash, a day, one still open."""
    bench = LogBench(tmp_path_factory.mktemp("log") / "audit", provider)
    bench.put()
    bench.writer.anchor()
    bench.put()
    bench.clock.now += DAY_NS
    assert bench.writer.due
    open_next(bench.writer, provider)
    bench.put()
    bench.writer.leave()
    bench.start()
    bench.put(700)
    bench.clock.now += 20 * DAY_NS
    open_next(bench.writer, provider)
    bench.put()
    bench.writer.sync()
    return bench.root


@pytest.fixture
def copy(log: Path, tmp_path: Path) -> Path:
    shutil.copytree(log, tmp_path / "audit")
    return tmp_path / "audit"


def damage(report: AuditReport) -> list[Finding]:
    return [one for one in report.findings if one.kind not in (Kind.UNPROVEN, Kind.LEFTOVER)]


def texts(report: AuditReport) -> list[str]:
    return [str(one) for one in report.findings]


def test_a_log_holds_with_and_without_its_keys(log: Path, provider: FileProvider) -> None:
    assert len(list_files(log)) == 4
    for key in (None, key_of(provider)):
        report = read_log(log, key_of=key)
        assert (report.verdict, report.findings) == (Verdict.OK, []), texts(report)
        assert (report.files, report.entries, report.last_seq, report.repeated) == (4, 712, 712, 0)
        assert report.anchors == 3  # one asked for, two when files were finished
        assert len(report.recordings) == 5
        assert report.opened == (key is not None)
        assert report.proven_until == "2023-12-05T22:13:35.000Z"


def test_entries_are_found(log: Path, provider: FileProvider) -> None:
    def found(**wanted: str) -> list[object]:
        return [one["seq"] for one in search(log, key_of(provider), Wanted(**wanted))]

    assert found() == list(range(1, 713))
    assert found(tenant="two") == []
    assert found(actor="li-wei", begin="2023-12-01T00:11:50") == [710, 711, 712]
    assert found(type="recording.*", end="2023-12-01T00:00:03") == [1, 2]
    assert found(type="recording") == []
    [first] = search(log, key_of(provider), Wanted(end="2023-12-01T00:00:02"))
    assert (first["address"], first["purpose"], first["data"]) == ("192.0.2.7", "playback", {"number": 1})


def test_what_canonical_json_has_no_place_for_is_kept_as_text(tmp_path: Path, provider: FileProvider) -> None:
    bench = LogBench(tmp_path / "audit", provider)
    odd = {"f": 0.1, "n": float("nan"), "big": 1 << 60, "s": "\ud800", "deep": [{"x": (1, None, True)}]}
    bench.writer.put([entry(1, data=odd)], {})
    [read] = search(bench.root, key_of(provider), Wanted())
    assert read["data"] == {
        "f": "0.1", "n": "nan", "big": str(1 << 60), "s": "?", "deep": [{"x": [1, None, True]}],
    }  # fmt: skip


def test_names_are_nowhere_in_the_clear(log: Path) -> None:
    written = b"".join(path.read_bytes() for path in log.rglob("*") if path.is_file())
    for canary in (b"li-wei", b"192.0.2.7", b"playback", b"hall"):
        assert canary not in written
    assert {path.stat().st_mode & 0o777 for path in log.rglob("*") if path.is_file()} == {0o600}


def test_one_changed_bit_anywhere_is_found_and_placed(copy: Path, provider: FileProvider) -> None:
    source = random.Random(20260102)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    missed = []
    for number in range(150):
        file = source.choice(files)
        data = bytearray(file.read_bytes())
        position = source.randrange(len(data))
        data[position] ^= 1 << source.randrange(8)
        good = file.read_bytes()
        file.write_bytes(data)
        report = read_log(copy, key_of=None if number % 2 or file.suffix == ".json" else key_of(provider))
        name = "/".join(file.parts[-4:])
        placed = [
            one
            for one in damage(report)
            if one.file == name and (one.begin is None or one.begin <= position < (one.end or 0))
        ]
        if report.verdict != Verdict.BROKEN or not placed:
            missed.append((name, position, texts(report)))
        file.write_bytes(good)
    assert not missed
    assert read_log(copy).verdict == Verdict.OK


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_removed_is_found(copy: Path, number: int) -> None:
    shutil.rmtree(list_files(copy)[number - 1].directory)
    report = read_log(copy)
    assert report.verdict == Verdict.BROKEN
    assert any(one.kind == Kind.REMOVED for one in report.findings)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_directory_emptied_is_found(copy: Path, number: int) -> None:
    for path in list_files(copy)[number - 1].directory.iterdir():
        path.unlink()
    assert read_log(copy).verdict == Verdict.BROKEN


def test_a_file_whose_writer_died_before_its_keys_were_there_is_none(
    copy: Path, provider: FileProvider
) -> None:
    bench = LogBench(copy, provider)
    bench.put()
    bench.writer.finish()
    file = bench.writer.next_file()
    file.directory.mkdir()
    (file.directory / ".keys.json.bb559648").write_bytes(b"{")
    bench.start()
    bench.put()
    bench.writer.finish()
    report = read_log(copy, key_of=key_of(provider))
    assert [one.file for one in report.findings if one.kind == Kind.LEFTOVER] == [file.name]
    assert report.verdict == Verdict.OK, texts(report)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_emptied_or_cut_off_is_found(copy: Path, number: int) -> None:
    file = list_files(copy)[number - 1]
    ends = [record.end for record in scan(file.path).records]
    for size in (0, 10, ends[1], ends[3], ends[-2], ends[-1] - 1):
        good = file.path.read_bytes()
        file.path.write_bytes(good[:size])
        report = read_log(copy)
        assert report.verdict == Verdict.BROKEN, (size, texts(report))
        file.path.write_bytes(good)


def test_the_newest_end_is_bounded_by_pages_kept_elsewhere(copy: Path, provider: FileProvider) -> None:
    bench = LogBench(copy, provider)
    bench.put()
    [page] = bench.writer.anchor()
    bench.put()
    bench.writer.finish()
    assert read_log(copy, kept=[page.data]).verdict == Verdict.OK
    last = list_files(copy)[-1]
    records = scan(last.path).records
    sealed_again = next(
        one for one in records if one.type == RecordType.CHECKPOINT and one.number < len(records) - 6
    )
    good = last.path.read_bytes()
    last.path.write_bytes(good[: sealed_again.end])
    assert read_log(copy).verdict == Verdict.OK  # this is what the log alone cannot show
    report = read_log(copy, kept=[page.data])
    assert [one.kind for one in report.findings] == [Kind.TRUNCATED]
    assert "is not in the log" in report.findings[0].detail
    shutil.rmtree(last.directory)
    assert read_log(copy).verdict == Verdict.OK
    assert read_log(copy, kept=[page.data]).verdict == Verdict.BROKEN
    stranger = make_provider(copy.parent / "stranger")
    forged = LogBench(copy.parent / "forged", stranger)
    forged.put()
    [other] = forged.writer.anchor()
    assert read_log(copy, kept=[other.data]).findings[0].kind == Kind.OTHER_SIGNER
    assert read_log(copy, kept=[page.data[:-3]]).findings[0].kind == Kind.CHANGED


def test_files_in_each_others_place_are_found(copy: Path) -> None:
    one, two = list_files(copy)[:2]
    spare = copy / "spare"
    one.directory.rename(spare)
    two.directory.rename(one.directory)
    spare.rename(two.directory)
    assert Kind.REORDERED in {found.kind for found in read_log(copy).findings}


def test_a_log_made_anew_by_another_signer_is_found(copy: Path, log: Path, provider: FileProvider) -> None:
    """Who holds the data key, but not the signing key, cannot go on with the log."""
    stranger = make_provider(copy.parent / "stranger")
    bench = LogBench(copy, stranger)
    bench.put()
    bench.writer.finish()
    report = read_log(copy)
    assert {one.kind for one in damage(report)} == {Kind.OTHER_SIGNER, Kind.CHANGED}
    own = Certificate.from_pem(provider.info().signing_certificate_pem).fingerprint
    assert read_log(log, trusted=[own]).verdict == Verdict.OK
    other = Certificate.from_pem(stranger.info().signing_certificate_pem).fingerprint
    assert read_log(log, trusted=[other]).verdict == Verdict.BROKEN


def test_after_a_rotation_the_old_key_vouches_for_the_new(tmp_path: Path, provider: FileProvider) -> None:
    bench = LogBench(tmp_path / "audit", provider)
    bench.put()
    bench.writer.finish()
    newer = make_provider(tmp_path / "newer")
    rewrapper = Rewrapper(provider, newer, actor="test")
    for file in list_files(bench.root):
        rewrapper.rewrap(file.directory)
    bench.provider = newer
    bench.start()
    bench.put()
    bench.writer.finish()
    report = read_log(bench.root, key_of=key_of(newer))
    assert (report.verdict, report.findings) == (Verdict.OK, []), texts(report)
    assert len(report.signers) == 2
    own = Certificate.from_pem(provider.info().signing_certificate_pem).fingerprint
    assert read_log(bench.root, trusted=[own]).verdict == Verdict.OK


def test_old_files_go_when_their_time_has_come_and_the_log_says_so(
    tmp_path: Path, provider: FileProvider
) -> None:
    bench = LogBench(tmp_path / "audit", provider)
    for _ in range(4):
        bench.put()
        bench.clock.now += DAY_NS
        open_next(bench.writer, provider)
    files = list_files(bench.root)
    for day, file in enumerate(files):
        os.utime(file.path, ns=(bench.clock.utc_ns() - (5 - day) * DAY_NS,) * 2)
    assert bench.writer.expire(bench.clock.utc_ns() - 9 * DAY_NS) == []
    gone = bench.writer.expire(bench.clock.utc_ns() - 3 * DAY_NS - DAY_NS // 2)
    assert [file.number for file in gone] == [1, 2]
    report = read_log(bench.root)
    assert (report.verdict, report.findings, report.expired) == (Verdict.OK, [], 2), texts(report)
    gone = bench.writer.expire(bench.clock.utc_ns() + DAY_NS)
    assert [file.number for file in gone] == [3, 4]  # never the open one
    assert read_log(bench.root).verdict == Verdict.OK
    bench.put()
    bench.writer.finish()
    bench.start()
    bench.put()
    shutil.rmtree(list_files(bench.root)[0].directory)
    report = read_log(bench.root)
    assert Kind.REMOVED in {one.kind for one in damage(report)}, texts(report)


def test_a_full_disk_loses_nothing_that_was_acknowledged(
    tmp_path: Path, provider: FileProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = LogBench(tmp_path / "audit", provider)
    bench.put()
    disk = FullDisk(monkeypatch, bench.root)
    with pytest.raises(OSError, match="No space"):
        bench.writer.put([entry(4)], {})
    assert bench.writer.last_seq == 3
    assert bench.writer.due
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            open_next(bench.writer, provider)
        shutil.rmtree(bench.writer.next_file().directory, ignore_errors=True)
    disk.full = False
    open_next(bench.writer, provider)
    bench.writer.put([entry(4)], {})
    bench.clock.now += DAY_NS
    bench.writer.checkpoint(bench.clock.now)
    report = read_log(bench.root, key_of=key_of(provider))
    assert (report.verdict, report.last_seq, report.files) == (Verdict.OK, 4, 2), texts(report)


def chained_on(file: LogFile, kind: RecordType, body: bytes, *, cut: bool) -> None:
    """Chain a record on as anybody can, without any key; with ``cut`` behind the last checkpoint."""
    found = scan(file.path)
    assert not found.finished or cut
    end, number = found.good_bytes, len(found.records)
    if cut:
        last = [record for record in found.records if record.type == RecordType.CHECKPOINT][-1]
        end, number = last.end, last.number + 1
    data = file.path.read_bytes()[:end] + RECORD.pack(kind, 0, number, len(body)) + body
    file.path.write_bytes(data + sm3(data))


def test_what_nobody_signed_is_not_believed(tmp_path: Path, provider: FileProvider) -> None:
    """Who can only write the disk lets the log say that its older files had had their time."""
    bench = LogBench(tmp_path / "audit", provider)
    for _ in range(3):
        bench.put()
        bench.writer.finish()
        bench.start()
    bench.put()
    bench.writer.finish()
    files = list_files(bench.root)
    said: dict[str, JSON] = {"through": 3, "head": None, "files": [], "before": "2020-01-01T00:00:00Z"}
    chained_on(files[-1], RecordType.EXPIRED, canonical(said), cut=True)
    for file in files[:-1]:
        shutil.rmtree(file.directory)
    report = read_log(bench.root)
    assert (report.verdict, report.expired) == (Verdict.BROKEN, 0), texts(report)
    bench.start()  # a new process signs on behind it
    bench.put()
    bench.writer.finish()
    report = read_log(bench.root)
    assert (report.verdict, report.expired) == (Verdict.BROKEN, 0), texts(report)
    assert {Kind.REMOVED, Kind.UNPROVEN} == {one.kind for one in report.findings}, texts(report)


def test_a_signed_expiry_is_only_of_the_files_it_names(tmp_path: Path, provider: FileProvider) -> None:
    bench = LogBench(tmp_path / "audit", provider)
    for _ in range(2):
        bench.put()
        open_next(bench.writer, provider)
    said: dict[str, JSON] = {"through": 2, "head": None, "files": []}
    bench.writer._frame(RecordType.EXPIRED, said)
    bench.writer.finish()
    for file in list_files(bench.root)[:2]:
        shutil.rmtree(file.directory)
    report = read_log(bench.root)
    assert [one.kind for one in report.findings] == [Kind.REMOVED], texts(report)


def test_what_a_crash_left_unsigned_is_named(tmp_path: Path, provider: FileProvider) -> None:
    bench = LogBench(tmp_path / "audit", provider)
    bench.put()
    items = [anchors.begun("019ad000-0000-7000-8000-00000000ffff", "never")]
    bench.writer.put([entry(4)], {"one": items})
    bench.writer.sync()
    bench.start()
    assert bench.writer.last_seq == 3
    bench.start()  # dies at once: nothing in its file is signed
    assert bench.writer.last_seq == 3
    bench.put()
    bench.writer.finish()
    report = read_log(bench.root, key_of=key_of(provider))
    assert [(one.kind, one.file) for one in report.findings] == [
        (Kind.UNPROVEN, file.name) for file in list_files(bench.root)[:2]
    ], texts(report)
    assert (report.verdict, report.entries) == (Verdict.UNPROVEN, 6)
    assert items[0]["recording"] not in report.recordings
    # A file of which nothing was said ended signed: what is behind that was added.
    chained_on(list_files(bench.root)[-1], RecordType.MARK, b"{}", cut=True)
    bench.writer._tails, bench.writer._previous = [], scan(list_files(bench.root)[-1].path).head
    open_next(bench.writer, provider)
    bench.writer.finish()
    assert Kind.ADDED in {one.kind for one in read_log(bench.root).findings}


def test_who_lives_on_vouches_for_what_it_wrote_unsigned(tmp_path: Path, provider: FileProvider) -> None:
    bench = LogBench(tmp_path / "audit", provider)
    for seq in (1, 2, 3):
        item = anchors.begun(f"019ad000-0000-7000-8000-00000000000{seq}", "now")
        bench.writer.put([entry(seq)], {"one": [item]})
        bench.writer.leave()
        open_next(bench.writer, provider)
    bench.writer.anchor()
    bench.writer.finish()
    report = read_log(bench.root)
    assert (report.verdict, report.findings, report.entries) == (Verdict.OK, [], 3), texts(report)
    assert len(report.recordings) == 3


@pytest.mark.parametrize("kind", [RecordType.ANCHOR, RecordType.EXPIRED, RecordType.MARK])
@pytest.mark.parametrize(
    "body",
    [b'{"type":"heads"}', b'{"type":"begin","tails":[1],"tenants":{"a":1}}', b"[]", b"x"],
)
def test_a_frame_of_no_form_is_reported_and_stops_nothing(
    tmp_path: Path, provider: FileProvider, kind: RecordType, body: bytes
) -> None:
    bench = LogBench(tmp_path / "audit", provider)
    bench.put()
    file = bench.writer._require()
    bench.writer._do(lambda: file.public_frame(kind, body))
    bench.clock.now += DAY_NS
    bench.writer.checkpoint(bench.clock.now)
    [finding] = damage(read_log(bench.root))
    assert (finding.kind, finding.record) == (Kind.CHANGED, file.records - 2)
    bench.start()
    assert bench.writer.last_seq == 3


def test_an_idle_log_grows_by_nothing(tmp_path: Path, provider: FileProvider) -> None:
    bench = LogBench(tmp_path / "audit", provider)
    bench.put()
    assert bench.writer.unsettled
    bench.writer.sync()
    size = bench.writer._require().bytes
    for _ in range(3):
        bench.clock.now += 10_000_000_000
        bench.writer.checkpoint(bench.clock.now)
        bench.writer.sync()
    assert not bench.writer.unsettled
    assert bench.writer._require().bytes == size


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("left", [None, 0, 5, 100])
def test_a_writer_that_died_beginning_a_file_leaves_no_damage(
    tmp_path: Path, provider: FileProvider, at: int, left: int | None
) -> None:
    """``left``: bytes of the file number ``at`` (from 0) that were written; None: it was not made yet."""
    bench = LogBench(tmp_path / "audit", provider)
    for number in range(at):
        bench.put()
        if number < at - 1:
            open_next(bench.writer, provider)
    if at:
        bench.start()
    bench.writer.leave()
    begun = list_files(bench.root)[-1].path
    data = begun.read_bytes()
    begun.unlink()
    if left is not None:
        begun.write_bytes(data[:left])
    bench.start()
    bench.put()
    bench.writer.finish()
    report = read_log(bench.root, key_of=key_of(provider))
    assert damage(report) == [], texts(report)
    found = [one["seq"] for one in search(bench.root, key_of(provider), Wanted())]
    assert found == list(range(1, bench.seq + 1))


def test_a_number_that_is_taken_is_left_out(tmp_path: Path, provider: FileProvider) -> None:
    bench = LogBench(tmp_path / "audit", provider)
    bench.put()
    other = AuditWriter(bench.root, "node-1", provider.signer(), bench.clock)
    assert open_next(other, provider).number == 2
    other.finish()
    assert open_next(bench.writer, provider).number == 3


def test_an_anchor_page_over_other_items_is_found(tmp_path: Path, provider: FileProvider) -> None:
    """The signing key's holder too must say in each page what the log says."""
    bench = LogBench(tmp_path / "audit", provider)
    bench.put()
    bench.writer._pending["one"].add([anchors.begun("019ad000-0000-7000-8000-00000000ffff", "never")])
    bench.writer.anchor()
    bench.writer.finish()
    [finding] = damage(read_log(bench.root))
    assert "is over other items" in finding.detail


def test_a_killed_writer_loses_nothing_it_had_written(tmp_path: Path, provider: FileProvider) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    root = tmp_path / "audit"
    written, first = 0, 1
    for _ in range(12):
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.recorder.audit_tools",
                str(root),
                str(provider.directory),
                str(first),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        # What no checkpoint covered is written again by the server, from its database.
        assert int(child.stdout.readline().split()[1]) <= written + 1
        stop_at = source.randrange(1, 400)
        for line in child.stdout:
            written = int(line)
            if written >= first + stop_at:
                break
        child.send_signal(signal.SIGKILL)
        written = max([written, *(int(line) for line in child.stdout.read().split() if line.isdigit())])
        child.wait()
        first = written + 1  # the server would ask its database what is missing
    report = read_log(root, key_of=key_of(provider))
    assert not damage(report), texts(report)
    found = [one["seq"] for one in search(root, key_of(provider), Wanted())]
    assert found[:written] == list(range(1, written + 1))
