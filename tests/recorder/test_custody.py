"""Retention, holds, reviews and destruction: what stands against it is named, what is done is signed."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recorder import cli
from recorder.custody import KINDS, REVIEWS, CustodyError, Keeper, after, points, utc_ns
from recorder.destruction import CERTIFICATE_TYPE, carry_out, certificate
from recorder.keys import SIDECAR, FileProvider
from recorder.manifest import read_sealed_part
from recorder.report import Kind, Verdict
from recorder.sealed import SealedReader
from recorder.signed import open_page
from recorder.statements import StatementError, append_statement, read_statements
from recorder.verify import verify
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording

NOW = utc_ns("2030-01-01")
PAST, FUTURE = utc_ns("2029-12-31T23:59:59Z"), utc_ns("2035-06-30")


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture
def recording(tmp_path: Path, provider: FileProvider) -> SmallRecording:
    return make_recording(tmp_path / "r", provider)


def keeper(recording: SmallRecording, actor: str) -> Keeper:
    signer = recording.provider.signer()
    return Keeper(recording.path, recording.data_key, signer, points(signer.certificate_pem), actor)


def code(caught: pytest.ExceptionInfo[CustodyError]) -> str:
    return caught.value.code


def test_retention_is_extended_by_one_and_shortened_by_two(recording: SmallRecording) -> None:
    one, two = keeper(recording, "王芳"), keeper(recording, "赵磊")
    assert one.custody().until == {}, "kept for ever until somebody says otherwise"
    one.set_retention({"archive": PAST, "original": PAST}, "product_end+6m")
    one.set_retention({"archive": FUTURE}, "5y")
    assert one.custody().until == {"archive": FUTURE, "original": PAST}
    shorter = one.set_retention({"archive": PAST}, "mistake", "typing error").number
    assert one.custody().until["archive"] == FUTURE, "only proposed"
    with pytest.raises(CustodyError) as caught:
        one.approve_retention(shorter)
    assert code(caught) == "second_person"
    with pytest.raises(CustodyError) as caught:
        two.approve_retention(shorter - 1)
    assert code(caught) == "other_proposal"
    two.approve_retention(shorter)
    assert one.custody().until["archive"] == PAST
    with pytest.raises(CustodyError) as caught:
        two.approve_retention(shorter)
    assert code(caught) == "no_proposal"
    last = read_statements(recording.path)[-1].page.fields
    assert "赵磊" not in json.dumps(last, ensure_ascii=False)
    assert verify(recording.path, data_key=recording.data_key).ok


def test_one_person_alone_does_not_end_what_is_kept_for_ever(recording: SmallRecording) -> None:
    one, two = keeper(recording, "王芳"), keeper(recording, "赵磊")
    over = one.set_retention({"archive": PAST}, "none", now_ns=NOW)
    assert over.body["action"] == "proposed"
    assert one.custody().until == {}
    assert one.set_retention({"archive": FUTURE}, "5y", now_ns=NOW).body["action"] == "set"
    number = one.set_retention({"archive": PAST}, "none", now_ns=NOW).number
    two.approve_retention(number)
    assert one.custody().until == {"archive": PAST}


def test_one_proposal_stands_at_a_time_and_is_the_one_approved(recording: SmallRecording) -> None:
    one, two = keeper(recording, "王芳"), keeper(recording, "赵磊")
    one.set_retention(dict.fromkeys(KINDS, PAST), "1y", now_ns=PAST - 1)
    read = one.propose_destruction({"derived"}, "expired", NOW)
    with pytest.raises(CustodyError) as caught:
        one.propose_destruction(set(KINDS), "all of it", NOW)
    assert code(caught) == "proposal_stands"
    one.withdraw("destruction", "something else")
    other = one.propose_destruction(set(KINDS), "all of it", NOW)
    with pytest.raises(CustodyError) as caught:
        two.approve_destruction(read.number, NOW)
    assert code(caught) == "other_proposal"
    assert two.approve_destruction(other.number, NOW).body["proposal"] == other.number


def test_destruction_is_refused_naming_what_stands_against_it(recording: SmallRecording) -> None:
    one, two = keeper(recording, "王芳"), keeper(recording, "赵磊")

    def refused(kinds: set[str], match: str) -> str:
        with pytest.raises(CustodyError, match=match) as caught:
            one.propose_destruction(kinds, "expired", NOW)
        return code(caught)

    assert refused({"archive"}, "no retention was ever set for archive") == "retention_unknown"
    assert refused({"everything"}, "kinds are original, archive, derived") == "retention_unknown"
    one.set_retention({"archive": FUTURE, "original": PAST}, "5y")
    assert refused({"archive", "original"}, "archive is kept until 2035-06-30T00:00:00.000Z .5y") == (
        "retention_running"
    )
    placed = one.place_hold("case 7")
    assert refused({"original"}, f"hold {placed.number}") == "on_hold"
    assert one.custody().due(NOW) == []
    with pytest.raises(CustodyError) as caught:
        one.release_hold(placed.number, "over")
    assert code(caught) == "second_person"
    with pytest.raises(CustodyError) as caught:
        two.release_hold(99, "over")
    assert code(caught) == "no_hold"
    two.release_hold(None, "case 7 is over")
    assert one.custody().due(NOW) == ["original"]
    proposed = one.propose_destruction({"original"}, "expired", NOW)
    with pytest.raises(CustodyError) as caught:
        one.approve_destruction(proposed.number, NOW)
    assert code(caught) == "second_person"
    two.place_hold("case 8")
    with pytest.raises(CustodyError) as caught:
        two.approve_destruction(proposed.number, NOW)
    assert code(caught) == "on_hold", "a hold placed in between counts"
    one.release_hold(None, "case 8 is over")
    one.withdraw("destruction", "not now")
    with pytest.raises(CustodyError) as caught:
        two.approve_destruction(proposed.number, NOW)
    assert code(caught) == "no_proposal"
    assert carry_out(recording.path, one.accepted) == 0
    assert verify(recording.path, data_key=recording.data_key).verdict is Verdict.OK


def test_originals_go_and_the_archive_still_verifies(recording: SmallRecording) -> None:
    one, two = keeper(recording, "王芳"), keeper(recording, "赵磊")
    one.set_retention({"original": PAST, "archive": FUTURE, "derived": FUTURE}, "journal 1y, archive 5y")
    proposed = one.propose_destruction({"original"}, "expired", NOW)
    tombstone = two.approve_destruction(proposed.number, NOW)
    interrupted = verify(recording.path, data_key=recording.data_key)
    assert interrupted.verdict is Verdict.OK
    assert {finding.kind for finding in interrupted.findings} == {Kind.LEFTOVER}
    assert carry_out(recording.path, one.accepted) == 3
    assert carry_out(recording.path, one.accepted) == 0
    assert not list((recording.path / "segments").iterdir())
    report = verify(recording.path, data_key=recording.data_key)
    assert report.verdict is Verdict.OK
    (finding,) = report.findings
    assert (finding.kind, finding.file) == (Kind.DESTROYED, "segments/")
    listed = tombstone.body["destroyed"]
    assert isinstance(listed, list)
    digests = {file["sm3"] for file in listed if isinstance(file, dict)}
    assert digests == {segment.sm3 for segment in recording.segments}
    (composite,) = (recording.path / "files").iterdir()
    with SealedReader(composite, recording.data_key) as reader:
        assert b"".join(reader.chunks()) == recording.composite
    data = bytearray(composite.read_bytes())
    data[len(data) // 2] ^= 1
    composite.write_bytes(data)
    assert verify(recording.path).verdict is Verdict.BROKEN


def test_all_kinds_destroyed_erase_the_key_and_the_pages_still_hold(recording: SmallRecording) -> None:
    one, two = keeper(recording, "王芳"), keeper(recording, "赵磊")
    one.set_retention(dict.fromkeys(KINDS, PAST), "product_end+6m")
    proposed = one.propose_destruction(KINDS, "保存期限届满", NOW)
    tombstone = two.approve_destruction(proposed.number, NOW)
    signer = recording.provider.signer()
    names = {"proposed_by": "王芳", "approved_by": "赵磊", "reason": "保存期限届满"}
    page = open_page(certificate(recording.path, tombstone, signer, **names), page_type=CERTIFICATE_TYPE)
    assert page.fields["approved_by"] == "赵磊"
    carry_out(recording.path, one.accepted)
    assert not (recording.path / SIDECAR).exists()
    assert not [path for path in recording.path.rglob("*.seg")]
    report = verify(recording.path)
    assert (report.verdict, report.ok) == (Verdict.DESTROYED, True)
    assert {finding.kind for finding in report.findings} == {Kind.DESTROYED}
    shown = run("verify", recording.path)
    assert (shown.exit_code, "DESTROYED" in shown.output) == (0, True)
    with pytest.raises(CustodyError) as caught:
        one.place_hold("too late")
    assert code(caught) == "destroyed"
    assert read_sealed_part(recording.path, recording.data_key), "who kept the key could still read the pages"


def test_what_was_removed_without_a_tombstone_or_by_a_strangers_is_damage(
    recording: SmallRecording, tmp_path: Path
) -> None:
    one, two = keeper(recording, "王芳"), keeper(recording, "赵磊")
    one.set_retention({"original": PAST}, "1y")
    proposed = one.propose_destruction({"original"}, "expired", NOW)
    two.approve_destruction(proposed.number, NOW)
    carry_out(recording.path, one.accepted)
    (composite,) = (recording.path / "files").iterdir()
    composite.unlink()
    report = verify(recording.path)
    assert report.verdict is Verdict.BROKEN
    assert [finding.kind for finding in report.findings].count(Kind.REMOVED) == 1
    other = make_recording(tmp_path / "other", recording.provider, seed=3)
    stranger = make_provider(tmp_path / "stranger")
    body = {"action": "carried_out", "kinds": list(KINDS), "key": True, "destroyed": []}
    append_statement(other.path, "destruction", body, stranger.signer())
    with pytest.raises(StatementError, match="stranger"):
        carry_out(other.path, one.accepted)
    with pytest.raises(StatementError, match="not accepted"):
        replace(one, directory=other.path).custody()
    (other.path / SIDECAR).unlink()
    assert verify(other.path).verdict is Verdict.BROKEN


def test_names_in_a_tombstone_remove_nothing_outside(recording: SmallRecording, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    files = [{"name": name, "file_id": "0" * 32} for name in ("../../precious", str(precious), "..", "")]
    body = {"action": "carried_out", "kinds": ["original"], "key": False, "destroyed": files}
    append_statement(recording.path, "destruction", body, recording.provider.signer())
    one = keeper(recording, "王芳")
    assert carry_out(recording.path, one.accepted) == 0
    assert precious.exists()


def test_a_removal_interrupted_anywhere_is_finished_by_the_next_run(
    recording: SmallRecording, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    one, two = keeper(recording, "王芳"), keeper(recording, "赵磊")
    one.set_retention(dict.fromkeys(KINDS, PAST), "1y")
    proposed = one.propose_destruction(KINDS, "expired", NOW)
    two.approve_destruction(proposed.number, NOW)
    for number in range(8):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(recording.path, copy)
        going = [copy / SIDECAR, *copy.glob("segments/*"), *copy.glob("files/*")]
        for path in source.sample(going, source.randrange(len(going) + 1)):
            path.unlink()
        assert verify(copy).ok
        carry_out(copy, one.accepted)
        assert verify(copy).verdict is Verdict.DESTROYED


def test_reviews_follow_the_fields_table_and_no_agent_reviews_himself(recording: SmallRecording) -> None:
    reviewer = keeper(recording, "key:compliance")
    agents = ["wang-fang"]

    def review(state: str, who: str = "zhao-lei") -> None:
        reviewer.review(state, "looked at it whole", who, agents)

    for refused in ("confirmed", "rectified_pending", "unchecked", "perfect"):
        with pytest.raises(CustodyError) as caught:
            review(refused)
        assert code(caught) == "review_state"
    with pytest.raises(CustodyError) as caught:
        review("compliant", "wang-fang")
    assert code(caught) == "reviewer_is_agent"
    for state in ("to_rectify", "rectified_pending", "confirmed"):
        review(state, "wang-fang" if state == "rectified_pending" else "zhao-lei")
        assert reviewer.custody().review == state
    numbers = [one.body.get("number") for one in read_statements(recording.path) if one.kind == "review"]
    assert numbers[1:] == [2, 3, 4]
    assert list(REVIEWS) == ["unchecked", "compliant", "to_rectify", "rectified_pending", "confirmed"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_times() -> None:
    assert utc_ns("2030-01-01") == utc_ns("2030-01-01T00:00:00Z") == utc_ns("2030-01-01T08:00:00+08:00")
    with pytest.raises(ValueError):
        utc_ns("soon")


def test_the_commands(recording: SmallRecording, tmp_path: Path) -> None:
    keys = ["--keys", recording.provider.directory]
    one, two = ["--operator", "王芳"], ["--operator", "赵磊"]
    path = recording.path

    def done(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        return result.output

    times = [
        "--until",
        "original=2020-01-01",
        "--until",
        "archive=2020-01-01",
        "--until",
        "derived=2020-01-01",
    ]
    assert "retention proposed" in done("retention", path, *keys, *one, *times, "--basis", "1y")
    number = len(read_statements(path))
    assert "retention set" in done("retention", path, *keys, *two, "--approve", number)
    assert "hold placed" in done("hold", path, *keys, *one, "--reason", "case 7")
    held = json.loads(done("due", tmp_path, "--json"))
    assert (held[0]["due"], held[0]["holds"][0]["hold"]) == ([], 5)
    assert run("destroy", path, *keys, *one, "--kind", "original", "--reason", "r").exit_code == 1
    done("hold", path, *keys, *two, "--reason", "over", "--release", 5)
    assert "original, archive, derived" in done("due", tmp_path)
    done("review", path, "compliant", *keys, *two, "--comment", "whole", "--agent", "wang-fang")
    kinds = [option for kind in KINDS for option in ("--kind", kind)]
    done("destroy", path, *keys, *one, *kinds, "--reason", "expired")
    number = len(read_statements(path))
    assert run("destroy", path, *keys, *two, "--approve", number - 1).exit_code == 1
    assert run("destroy", path, *keys, *one, "--approve", number).exit_code == 1
    certificate_file = tmp_path / "certificate.json"
    said = done("destroy", path, *keys, *two, "--approve", number, "--certificate", certificate_file)
    assert "5 files removed" in said
    page = open_page(certificate_file.read_bytes(), page_type=CERTIFICATE_TYPE)
    assert (page.fields["proposed_by"], page.fields["approved_by"]) == ("王芳", "赵磊")
    assert run("verify", path).exit_code == 0
    for wrong in (["--until", "archive"], ["--until", "film=2020-01-01"], ["--until", "archive=soon"], []):
        assert run("retention", path, *keys, *one, *wrong, "--basis", "x").exit_code in (1, 2)


def test_periods_go_by_the_calendar() -> None:
    begin = utc_ns("2028-08-31T12:00:00.250Z")
    for period, end in (
        ("P6M", "2029-02-28T12:00:00.250Z"),
        ("P5Y", "2033-08-31T12:00:00.250Z"),
        ("P1Y6M1D", "2030-03-01T12:00:00.250Z"),
        ("P90D", "2028-11-29T12:00:00.250Z"),
    ):
        assert after(begin, period) == utc_ns(end), period
    for wrong in ("P", "6M", "PT5H", "P-1Y", "p5y"):
        with pytest.raises(ValueError):
            after(begin, wrong)
