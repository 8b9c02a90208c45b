"""Time-stamps of real authorities over a recording: asked for, refused, checked, lapsed, renewed."""

from __future__ import annotations

import base64
import json
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from recorder.canonical import JSON, canonical
from recorder.fetch import FetchError, check_url, fetch
from recorder.gm import tsp
from recorder.gm.sm3 import sm3
from recorder.manifest import read_manifest
from recorder.report import Kind, Report, Verdict
from recorder.statements import append_statement, read_statements
from recorder.timestamp import (
    RENEWAL,
    TIMESTAMP,
    Authority,
    Stamped,
    TimestampError,
    ask,
    is_stamped,
    read_anchors,
    renewal_page,
    stamp,
    timestamp_page,
)
from recorder.tokens import lapse_of
from recorder.verify import verify
from tests.recorder import tsa
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
PAGE: dict[str, JSON] = {"type": "shuanglu.timestamp.v1", "number": 0}


@dataclass
class Running:
    """An authority and its server."""

    authority: tsa.Authority
    server: tsa.Server

    def client(self, *, policy: str | None = None, timeout_s: float = 10.0) -> Authority:
        return Authority(self.server.url, self.anchors, policy, timeout_s)

    @property
    def anchors(self) -> tuple[bytes, ...]:
        return read_anchors(self.authority.trust)

    def answer(self, answer: Callable[[bytes], bytes]) -> None:
        self.server.answer = answer

    def answer_at(self, when: datetime) -> None:
        """Answer as if it were ``when``."""
        self.server.answer = lambda request: self.authority.token(
            tsa.imprint_of(request), when, nonce=tsa.nonce_of(request)
        )


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tsa.Authority]:
    directory = tmp_path_factory.mktemp("tsa")
    return {
        "rsa": tsa.make_authority(directory / "rsa", "rsa", title="RSA Authority"),
        "p256": tsa.make_authority(directory / "p256", "p256", title="P-256 Authority"),
        "no_usage": tsa.make_authority(directory / "no_usage", time_stamping=False),
        "expired": tsa.make_authority(
            directory / "expired", not_before=NOW - 90 * DAY, not_after=NOW - 10 * DAY, title="Old Authority"
        ),
        "stranger": tsa.make_authority(directory / "stranger", title="P-256 Authority"),
    }


@pytest.fixture
def running(authorities: dict[str, tsa.Authority]) -> Iterator[Running]:
    with tsa.serve(authorities["p256"].reply) as server:
        yield Running(authorities["p256"], server)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SmallRecording:
    directory = tmp_path_factory.mktemp("whole")
    return make_recording(directory / "r", make_provider(directory / "keys"))


@pytest.fixture
def recording(whole: SmallRecording, tmp_path: Path) -> SmallRecording:
    shutil.copytree(whole.path, tmp_path / "r")
    return SmallRecording(
        tmp_path / "r", whole.recording, whole.provider, whole.data_key, whole.segments, whole.composite
    )


def stamped(recording: SmallRecording, running: Running, kind: str = TIMESTAMP) -> Stamped:
    return stamp(recording.path, kind, running.client(), recording.provider.signer())


def states(report: Report) -> list[str]:
    return [str(one["state"]) for one in report.timestamps]


# --- asking


@pytest.mark.parametrize("name", ["rsa", "p256"])
def test_an_authority_stamps_and_the_token_verifies(
    recording: SmallRecording, authorities: dict[str, tsa.Authority], name: str
) -> None:
    assert not is_stamped(read_statements(recording.path))
    with tsa.serve(authorities[name].reply) as server:
        running = Running(authorities[name], server)
        done = stamped(recording, running)
    assert (done.state, done.statement.number, done.statement.kind) == ("verified", 3, "timestamp")
    assert abs(done.token.time - datetime.now(UTC)) < timedelta(minutes=5)
    assert is_stamped(read_statements(recording.path))
    report = verify(recording.path, time_authorities=running.anchors)
    assert report.verdict == Verdict.OK, [str(finding) for finding in report.findings]
    (token,) = report.timestamps
    assert token["state"] == "verified"
    assert token["authority"] == f"CN={'RSA' if name == 'rsa' else 'P-256'} Authority"
    assert (token["statement"], token["covers"]) == (3, 2)
    assert datetime.fromisoformat(str(token["time"])) == done.token.time
    assert json.loads(json.dumps(report.to_json()))["timestamps"] == [token]


def test_without_a_named_authority_a_token_is_not_verified_and_the_verdict_stays(
    recording: SmallRecording, running: Running, authorities: dict[str, tsa.Authority]
) -> None:
    stamped(recording, running)
    others = [read_anchors(authorities[name].trust) for name in ("stranger", "rsa")]
    for anchors in (None, *others):
        report = verify(recording.path, time_authorities=anchors)
        assert report.ok, [str(finding) for finding in report.findings]
        assert states(report) == ["not_verified_here"]


def test_a_request_is_what_openssl_makes_of_it(running: Running, tmp_path: Path) -> None:
    ask(running.client(policy=tsa.OTHER_POLICY), PAGE)
    (request,) = running.server.requests
    (tmp_path / "query").write_bytes(request)
    shown = tsa.openssl("ts", "-query", "-in", tmp_path / "query", "-text")
    assert "Hash Algorithm: sm3" in shown
    assert "Certificate required: yes" in shown
    assert tsa.OTHER_POLICY in shown or "tsa_policy" in shown
    assert tsa.imprint_of(request) == sm3(canonical(PAGE))
    ask(running.client(), PAGE)
    assert tsa.nonce_of(running.server.requests[1]) != tsa.nonce_of(request)


def test_answers_to_something_else_are_refused(running: Running) -> None:
    good = running.authority
    old = good.reply(tsp.request(sm3(canonical(PAGE)), nonce=1 << 63 | 5))
    cases: dict[str, Callable[[bytes], bytes]] = {
        "wrong nonce": lambda request: old,
        "something else": lambda request: good.token(bytes(32), NOW, nonce=tsa.nonce_of(request)),
        "no time-stamp response": lambda request: b"<html>",
    }
    for reason, answer in cases.items():
        running.answer(answer)
        with pytest.raises(TimestampError, match=reason):
            ask(running.client(), PAGE)
    running.answer(lambda request: good.token(tsa.imprint_of(request), NOW))
    with pytest.raises(TimestampError, match="wrong nonce"):
        ask(running.client(), PAGE)
    running.answer_at(NOW)
    ask(running.client(policy=tsa.POLICY), PAGE)
    with pytest.raises(TimestampError, match="under policy"):
        ask(running.client(policy=tsa.OTHER_POLICY), PAGE)


def test_authorities_that_may_not_stamp_are_refused(authorities: dict[str, tsa.Authority]) -> None:
    for name, when, reason in (
        ("no_usage", NOW, "certificate purpose"),
        ("expired", NOW, "certificate has expired"),
        ("expired", NOW - 100 * DAY, "not yet valid"),
    ):
        with tsa.serve(authorities[name].reply) as server:
            running = Running(authorities[name], server)
            running.answer_at(when)
            with pytest.raises(TimestampError, match=reason):
                ask(running.client(), PAGE)
    with tsa.serve(authorities["stranger"].reply) as server:
        client = Authority(server.url, read_anchors(authorities["p256"].trust))
        with pytest.raises(TimestampError, match="certificate"):
            ask(client, PAGE)
        assert ask(Authority(server.url), PAGE)[2] == "verified"  # nobody said who it must be


def test_a_refusal_is_told(running: Running) -> None:
    with pytest.raises(TimestampError, match=r"refused .*policy"):
        ask(running.client(policy="1.2.3.4"), PAGE)


@pytest.mark.parametrize("name", ["rsa", "p256"])
def test_cut_answers_at_every_length_and_random_ones_are_refused(
    authorities: dict[str, tsa.Authority], name: str
) -> None:
    whole = authorities[name].reply(tsp.request(bytes(32), nonce=1 << 63))
    tsp.parse(whole)
    cut = [whole[:size] for size in range(len(whole))] + [whole + b"\0"]
    for answer in cut:
        with pytest.raises(tsp.TokenError):
            tsp.parse(answer)
    seed = random.SystemRandom().randrange(1 << 32)
    source = random.Random(seed)
    anchors = read_anchors(authorities[name].trust)
    reference = tsp.parse(whole)
    accepted = 0
    for _ in range(600):
        changed = bytearray(whole)
        at = source.randrange(len(changed))
        changed[at] ^= 1 << source.randrange(8)
        try:
            token = tsp.parse(bytes(changed))
            tsp.check(bytes(changed), token, anchors)
        except tsp.TokenError:
            continue
        # What may change unnoticed is outside the signature (the status text, an unused certificate), never
        # what the token says.
        accepted += 1
        said = (token.time, token.imprint, token.nonce, token.policy, token.serial)
        assert said == (
            reference.time,
            reference.imprint,
            reference.nonce,
            reference.policy,
            reference.serial,
        ), f"seed {seed}, byte {at}"
    assert accepted < 300, f"seed {seed}"


def test_servers_that_fail_are_told_apart(running: Running) -> None:
    def refused(reason: str, *, timeout_s: float = 10.0) -> None:
        with pytest.raises(TimestampError, match=reason):
            ask(running.client(timeout_s=timeout_s), PAGE)

    running.server.status = 503
    refused("answered 503")
    running.server.status = 302
    refused("answered 302")
    running.server.status = 200
    running.server.content_type = "text/html"
    refused("answered text/html")
    running.server.content_type = "application/timestamp-reply"
    running.answer(lambda request: bytes(tsp.MAX_RESPONSE_BYTES + 1))
    refused("more than")
    running.answer(running.authority.reply)
    running.server.pause_s = 0.05  # 2 KiB at this pace take minutes
    refused("did not finish its answer", timeout_s=0.5)
    running.server.pause_s = 60.0
    refused("does not answer: timed out", timeout_s=0.5)


def test_a_dead_server_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(TimestampError, match="does not answer"):
        ask(Authority(f"http://127.0.0.1:{port}/", timeout_s=5.0), PAGE)


def test_a_server_that_hangs_up_in_mid_answer_is_told(running: Running) -> None:
    running.server.announced = 5000
    with pytest.raises(TimestampError, match=r"does not answer|ended its answer"):
        ask(running.client(timeout_s=5.0), PAGE)


def test_addresses_are_http_without_passwords(tmp_path: Path) -> None:
    for url in ("http://tsa.example/x", "https://tsa.example:8443", "http://[::1]:80/"):
        assert check_url(url) == url
    secret = tmp_path / "secret"
    secret.write_text("x")
    wrong = ("ftp://x/", "tsa.example", "http://", "http://u:p@x/", "http://x:99999/", "")
    for url in (f"file://{secret}", *wrong):
        with pytest.raises(ValueError, match="must"):
            check_url(url)
        with pytest.raises(FetchError, match="must"):
            fetch(url, timeout_s=1.0, max_bytes=10)


def test_anchors_are_read_from_pem(tmp_path: Path, authorities: dict[str, tsa.Authority]) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(authorities["rsa"].trust.read_bytes() + authorities["p256"].trust.read_bytes())
    assert read_anchors(both) == (
        authorities["rsa"].ca.public_bytes(Encoding.DER),
        authorities["p256"].ca.public_bytes(Encoding.DER),
    )
    both.write_text("nothing")
    with pytest.raises(TimestampError, match=r"both\.pem"):
        read_anchors(both)


# --- authorities that libcrypto cannot check


@pytest.mark.parametrize("form", ["sm2", "gm0010", "rsa_sm3"])
def test_what_the_library_cannot_check_is_never_good_nor_bad(
    recording: SmallRecording, authorities: dict[str, tsa.Authority], form: str
) -> None:
    """An SM2 authority in CMS, one in GM/T 0010's form, and RSA over SM3."""

    def answer(request: bytes) -> bytes:
        imprint, nonce = tsa.imprint_of(request), tsa.nonce_of(request)
        if form == "rsa_sm3":
            return authorities["rsa"].token(imprint, NOW, nonce=nonce, digest="sm3")
        content_type = tsa.GM_SIGNED_DATA if form == "gm0010" else tsa.CMS_SIGNED_DATA
        return tsa.sm2_response(imprint, NOW, nonce, content_type=content_type)

    anchors = read_anchors(authorities["rsa"].trust)
    with tsa.serve(answer) as server:
        client = Authority(server.url, anchors)
        done = stamp(recording.path, TIMESTAMP, client, recording.provider.signer())
        assert done.state == "not_verified_here"
        server.answer = lambda request: tsa.sm2_response(bytes(32), NOW, tsa.nonce_of(request))
        with pytest.raises(TimestampError, match="something else"):
            ask(client, PAGE)
        server.answer = lambda request: tsa.sm2_response(tsa.imprint_of(request), NOW, 5)
        with pytest.raises(TimestampError, match="wrong nonce"):
            ask(client, PAGE)
    for trust in (anchors, None):
        report = verify(recording.path, time_authorities=trust)
        assert report.verdict == Verdict.OK, [str(finding) for finding in report.findings]
        assert states(report) == ["not_verified_here"]
        assert datetime.fromisoformat(str(report.timestamps[0]["time"])) == NOW
        assert report.timestamps[0]["detail"]


def test_cut_national_answers_are_refused_at_every_length() -> None:
    for content_type in (tsa.CMS_SIGNED_DATA, tsa.GM_SIGNED_DATA):
        whole = tsa.sm2_response(bytes(32), NOW, 5, content_type=content_type)
        assert tsp.parse(whole).nonce == 5
        for size in range(len(whole)):
            with pytest.raises(tsp.TokenError):
                tsp.parse(whole[:size])


# --- checking


def only_broken(report: Report, file: str, reason: str) -> None:
    assert report.verdict == Verdict.BROKEN
    assert [(one.kind, one.file) for one in report.findings] == [(Kind.CHANGED, file)], [
        str(one) for one in report.findings
    ]
    assert reason in report.findings[0].detail


def test_a_token_of_another_recording_is_found(
    recording: SmallRecording, running: Running, tmp_path: Path
) -> None:
    """By someone who can sign statements, but whom no authority stamps."""
    other = make_recording(tmp_path / "other", recording.provider, seed=2)
    body = dict(stamped(other, running).statement.body)
    append_statement(recording.path, "timestamp", body, recording.provider.signer())
    report = verify(recording.path, time_authorities=running.anchors)
    only_broken(report, "statements/000003.json", "stamps recording")
    assert states(report) == ["broken"]


def test_a_token_whose_page_was_fitted_to_it_is_found(recording: SmallRecording, running: Running) -> None:
    done = stamped(recording, running)
    page = done.statement.body["stamped"]
    assert isinstance(page, dict)
    body = {**done.statement.body, "stamped": {**page, "number": 1}}
    append_statement(recording.path, "timestamp", body, recording.provider.signer())
    report = verify(recording.path, time_authorities=running.anchors)
    only_broken(report, "statements/000004.json", "over something else")
    assert states(report) == ["verified", "broken"]


@pytest.mark.parametrize("kind", [TIMESTAMP, RENEWAL])
def test_what_was_signed_anew_after_the_token_is_found(
    recording: SmallRecording, running: Running, kind: str
) -> None:
    """Someone with the signing key replaces the last statement and all after it."""
    done = stamped(recording, running, kind)
    signer = recording.provider.signer()
    for number in (2, 3):
        (recording.path / "statements" / f"{number:06d}.json").unlink()
    append_statement(recording.path, "review", {"verdict": "failed"}, signer)
    append_statement(recording.path, kind, done.statement.body, signer)
    report = verify(recording.path, time_authorities=running.anchors)
    damage = [one for one in report.findings if one.kind != Kind.LEFTOVER]  # the sealed part of the old one
    assert [(one.kind, one.file) for one in damage] == [(Kind.CHANGED, "statements/000003.json")]
    assert states(report) == ["broken"]


def test_bodies_of_every_wrong_form_are_found(recording: SmallRecording, running: Running) -> None:
    done = stamped(recording, running)
    body = done.statement.body
    page, response = body["stamped"], base64.b64decode(str(body["response"]))
    assert isinstance(page, dict)
    flipped = bytearray(response)
    flipped[-5] ^= 1
    wrong: list[dict[str, object]] = [
        {},
        {"stamped": page},
        {"response": body["response"]},
        {"stamped": page, "response": "***"},
        {"stamped": page, "response": base64.b64encode(response[:-1]).decode()},
        {"stamped": page, "response": base64.b64encode(bytes(flipped)).decode()},
        {"stamped": {**page, "number": 99}, "response": body["response"]},
        {"stamped": {**page, "number": True}, "response": body["response"]},
        {"stamped": {**page, "number": -1}, "response": body["response"]},
        {"stamped": list(page), "response": body["response"]},
    ]
    for one in wrong:
        append_statement(recording.path, "timestamp", one, recording.provider.signer())
    report = verify(recording.path, time_authorities=running.anchors)
    assert states(report) == ["verified"] + ["broken"] * len(wrong)
    assert len(report.findings) == len(wrong)
    # A token of a manifest is none of a renewal's page.
    append_statement(recording.path, "renewal", body, recording.provider.signer())
    assert states(verify(recording.path, time_authorities=running.anchors))[-1] == "broken"


def test_a_removed_token_leaves_its_number(recording: SmallRecording, running: Running) -> None:
    stamped(recording, running)
    append_statement(recording.path, "review", {"verdict": "passed"}, recording.provider.signer())
    (recording.path / "statements" / "000003.json").unlink()
    report = verify(recording.path, time_authorities=running.anchors)
    assert [(one.kind, one.file) for one in report.findings] == [(Kind.REMOVED, "statements/000003.json")]
    assert report.timestamps == []


def test_what_comes_after_a_token_is_not_covered_and_no_damage(
    recording: SmallRecording, running: Running
) -> None:
    stamped(recording, running)
    append_statement(recording.path, "review", {"verdict": "passed"}, recording.provider.signer())
    assert not is_stamped(read_statements(recording.path))
    report = verify(recording.path, time_authorities=running.anchors)
    assert report.ok
    assert [one["covers"] for one in report.timestamps] == [2]
    again = stamped(recording, running)
    assert again.statement.number == 5
    assert is_stamped(read_statements(recording.path))
    report = verify(recording.path, time_authorities=running.anchors)
    assert [one["covers"] for one in report.timestamps] == [2, 4]


def test_a_statement_signed_while_the_authority_answers_is_not_covered(
    recording: SmallRecording, running: Running
) -> None:
    def answer(request: bytes) -> bytes:
        append_statement(recording.path, "review", {"verdict": "passed"}, recording.provider.signer())
        return running.authority.reply(request)

    running.answer(answer)
    assert stamped(recording, running).statement.number == 4
    report = verify(recording.path, time_authorities=running.anchors)
    assert report.ok
    assert [(one["statement"], one["covers"]) for one in report.timestamps] == [(4, 2)]


# --- renewal


def test_a_renewal_names_every_file_and_page(recording: SmallRecording, running: Running) -> None:
    stamped(recording, running)
    page = renewal_page(read_manifest(recording.path), read_statements(recording.path))
    listed = page["files"]
    assert isinstance(listed, list)
    names = [str(one["name"]) for one in listed if isinstance(one, dict)]
    there = {str(path.relative_to(recording.path)) for path in recording.path.rglob("*") if path.is_file()}
    assert names == sorted(names)
    assert set(names) == there - {"keys.json"}
    for one in listed:
        assert isinstance(one, dict)
        assert one["sm3"] == "sm3:" + sm3((recording.path / str(one["name"])).read_bytes()).hex()
    done = stamped(recording, running, RENEWAL)
    assert done.statement.kind == "renewal"
    report = verify(recording.path, time_authorities=running.anchors)
    assert report.ok, [str(finding) for finding in report.findings]
    assert states(report) == ["verified", "verified"]


@pytest.mark.parametrize("change", ["left_out", "added", "other_digest", "no_list"])
def test_a_renewal_of_other_files_than_are_there_is_found(
    recording: SmallRecording, running: Running, change: str
) -> None:
    """The authority stamps what it is given; the list must be the package's."""
    page = renewal_page(read_manifest(recording.path), read_statements(recording.path))
    listed = page["files"]
    assert isinstance(listed, list)
    last = listed[-1]
    assert isinstance(last, dict)
    files: JSON = {
        "left_out": listed[:-1],
        "added": [*listed, {"name": "files/more.sealed", "sm3": last["sm3"]}],
        "other_digest": [*listed[:-1], {**last, "sm3": "sm3:" + bytes(32).hex()}],
        "no_list": None,
    }[change]
    changed: dict[str, JSON] = {**page, "files": files}
    response, _, _ = ask(running.client(), changed)
    body = {"stamped": changed, "response": base64.b64encode(response).decode()}
    append_statement(recording.path, RENEWAL, body, recording.provider.signer())
    report = verify(recording.path, time_authorities=running.anchors)
    only_broken(report, "statements/000003.json", "stamps another package")


def test_a_token_lapses_with_its_authority_unless_it_was_renewed_before(
    recording: SmallRecording, authorities: dict[str, tsa.Authority], running: Running
) -> None:
    old = authorities["expired"]  # valid from 90 to 10 days ago
    anchors = (*read_anchors(old.trust), *running.anchors)
    with tsa.serve(old.reply) as server:
        first = Running(old, server)
        first.answer_at(NOW - 60 * DAY)
        assert stamped(recording, first).state == "verified"
    late = recording.path.with_name("late")
    shutil.copytree(recording.path, late)

    def found(path: Path, now: datetime) -> list[str]:
        report = verify(path, time_authorities=anchors, now=now)
        assert report.ok, [str(finding) for finding in report.findings]
        return states(report)

    assert found(recording.path, NOW - 11 * DAY) == ["verified"]
    assert found(recording.path, NOW) == ["lapsed"]
    assert lapse_of(read_statements(recording.path)) == NOW - 10 * DAY
    renewing = tsa.make_authority(
        running.authority.directory.with_name("renewing"), not_before=NOW - 80 * DAY, title="Next Authority"
    )
    anchors = (*anchors, *read_anchors(renewing.trust))
    with tsa.serve(renewing.reply) as server:
        second = Running(renewing, server)
        second.answer_at(NOW - 20 * DAY)
        stamped(recording, second, RENEWAL)
        assert found(recording.path, NOW) == ["verified", "verified"]
        assert found(recording.path, NOW + 4000 * DAY) == ["lapsed", "lapsed"]
        # Too late for the first token; from now on the recording is provable again, as of the renewal.
        second.answer_at(NOW)
        done = stamp(late, RENEWAL, second.client(), recording.provider.signer())
        assert done.state == "verified"
        assert found(late, NOW) == ["lapsed", "verified"]
    lapse = lapse_of(read_statements(recording.path))
    assert lapse is not None
    assert lapse > NOW + 3000 * DAY


def test_a_renewal_by_nobody_we_know_keeps_nothing_in_force(
    recording: SmallRecording, authorities: dict[str, tsa.Authority]
) -> None:
    old = authorities["expired"]
    with tsa.serve(old.reply) as server:
        first = Running(old, server)
        first.answer_at(NOW - 60 * DAY)
        stamped(recording, first)
        anchors = first.anchors
    with tsa.serve(authorities["stranger"].reply) as server:
        second = Running(authorities["stranger"], server)
        stamped(recording, second, RENEWAL)
    report = verify(recording.path, time_authorities=anchors)
    assert states(report) == ["lapsed", "not_verified_here"]


def test_the_stamped_page_names_the_manifest_where_there_is_no_statement(recording: SmallRecording) -> None:
    page = timestamp_page(read_manifest(recording.path), [])
    assert page["statement"] is None
    assert page["number"] == 0
