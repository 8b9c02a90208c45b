"""The server's audit log: everything in it, in order, over crashes and full disks; what it proves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mediaserver.audit import start_facts
from mediaserver.settings import Settings
from mediaserver.sign_ins import KEPT, OTHERS, PERIOD_S, FailedSignIns
from mediaserver.tokens import server_token
from mediaserver.webhooks import signature
from recorder.audit import Wanted, list_files, read_log, search
from recorder.audit.proof import check_all
from recorder.canonical import JSON
from recorder.keys import FileProvider
from recorder.report import Kind, Verdict
from recorder.timestamp import read_anchors
from tests.mediaserver.running import KEYS, Client, make_keys, running, settings_in
from tests.recorder import tsa
from tests.recorder.audit_tools import key_of
from tests.recorder.test_journal import FullDisk


def prepared(directory: Path, **changes: Any) -> Settings:
    """Give settings with API keys laid down, ``changes`` being those of the audit log."""
    settings = settings_in(directory, audit={"heads_s": 2, **changes})
    if not settings.secrets_dir.exists():
        make_keys(settings)
    return settings


def entries(settings: Settings, **wanted: str) -> list[dict[str, JSON]]:
    provider = FileProvider.open(settings.crypto_dir)
    return list(search(settings.data_dir / "audit", key_of(provider), Wanted(**wanted)))


def in_database(settings: Settings) -> list[int]:
    with sqlite3.connect(settings.data_dir / "server.sqlite") as database:
        return [row[0] for row in database.execute("SELECT seq FROM events ORDER BY seq")]


async def record(api: Client, number: str) -> str:
    started = await api.ok("POST", "/v1/rooms/hall/recordings", {"business_no": number})
    return str(started["id"])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return prepared(tmp_path)


async def test_the_log_holds_what_the_database_does(settings: Settings) -> None:
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        await api.ok("POST", "/v1/rooms", {"name": "theirs"}, key=KEYS[1])
        recording = await record(api, "金丝雀-1")
        await api.ok("POST", f"/v1/recordings/{recording}/stop")
        report = await api.ok("POST", f"/v1/recordings/{recording}/verify?purpose=complaint%207")
        assert report["ok"]
        status, _, _ = await api.ask("GET", "/v1/rooms", token="x.y.z")
        assert status == 401
        checked = await api.ok("POST", "/v1/audit/verify")
        assert checked["verdict"] in ("ok", "unproven"), checked
        assert checked["findings"] == [] or checked["findings"][0]["kind"] == "unproven"
    found = entries(settings)
    assert [one["seq"] for one in found] == in_database(settings)
    types = [one["type"] for one in found]
    assert types[:2] == ["audit.server_started", "room.opened"]
    assert {"recording.started", "recording.stopped", "audit.verified", "audit.sign_in_failed"} <= set(types)
    by_type = {str(one["type"]): one for one in found}
    assert by_type["recording.started"]["address"] == "127.0.0.1"
    assert by_type["recording.started"]["actor"] == "key:key-one"
    assert by_type["audit.verified"]["purpose"] == "complaint 7"
    assert by_type["audit.sign_in_failed"]["address"] == "127.0.0.1"
    assert by_type["audit.server_started"]["address"] == ""
    report = read_log(settings.data_dir / "audit")
    assert (report.verdict, report.findings, report.repeated) == (Verdict.OK, [], 0)
    assert report.recordings[recording].manifest.startswith("sm3:")
    written = b"".join(
        path.read_bytes() for path in (settings.data_dir / "audit").rglob("*") if path.is_file()
    )
    assert "金丝雀".encode() not in written
    assert b"127.0.0.1" not in written


async def test_search_over_the_api(settings: Settings) -> None:
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        await api.ok("POST", "/v1/rooms", {"name": "theirs"}, key=KEYS[1])
        recording = await record(api, "B-1")
        await api.ok("POST", f"/v1/recordings/{recording}/stop")

        async def found(query: str, **options: Any) -> list[str]:
            answer = await api.ok("GET", f"/v1/audit?{query}", **options)
            return [one["type"] for one in answer["entries"]]

        everything = await found("limit=1000")
        assert everything[0] == "room.opened"  # of two tenants neither sees what the server itself did
        assert await found("type=recording.*") == ["recording.started", "recording.stopped"]
        assert await found("type=recording.started") == ["recording.started"]
        assert await found("type=recording.start") == []
        assert await found("type=room.*", key=KEYS[1]) == ["room.opened"]
        assert "recording.stopped" in await found(f"recording={recording}")
        assert await found("actor=key:key-one&type=room.*") == ["room.opened"]
        assert await found("actor=key:key-two") == []
        assert await found("to=2020-01-01") == []
        assert await found("from=2020-01-01T08:00:00%2B08:00&type=room.*") == ["room.opened"]
        page = await api.ok("GET", "/v1/audit?limit=1")
        assert page["next"] == page["entries"][0]["seq"]
        assert page["entries"][0]["address"] == "127.0.0.1"
        assert (await found(f"after={page['next']}"))[0] == "recording.started"
        for query in ("limit=x", "after=-1", "from=yesterday", "what=1", "limit=5000", f"actor={'x' * 300}"):
            assert (await api.problem("GET", f"/v1/audit?{query}"))["code"] == "bad_request"
        client = api.participant("hall", "li", "agent", admin=True, record=True)
        assert (await api.problem("GET", "/v1/audit", token=client))["code"] == "forbidden"
        assert (await api.problem("POST", "/v1/audit/verify", token=client))["code"] == "forbidden"
        anchors = (await api.ok("GET", f"/v1/audit/anchors?recording={recording}"))["anchors"]
        kinds = [set(item) - {"recording"} for one in anchors for item in one["frame"]["recordings"]]
        assert {"begun"} in kinds
        assert {"manifest"} in kinds
        assert (await api.ok("GET", f"/v1/audit/anchors?recording={recording}", key=KEYS[1]))["anchors"] == []


async def test_what_a_crash_left_between_database_and_log_is_made_good(settings: Settings) -> None:
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        api.control.events.keep = None  # as if killed between the two, again and again
        recording = await record(api, "B-1")
        await api.ok("POST", f"/v1/recordings/{recording}/stop")
        assert len(entries(settings)) < len(in_database(settings))
    assert len(entries(settings)) < len(in_database(settings))
    async with running(settings):
        assert [one["seq"] for one in entries(settings)] == in_database(settings)
    report = read_log(settings.data_dir / "audit")
    assert (report.verdict, report.findings, report.repeated) == (Verdict.OK, [], 0)
    assert report.recordings[recording].begun
    assert report.recordings[recording].manifest


async def test_after_a_lost_database_numbers_go_on(settings: Settings) -> None:
    async with running(settings) as api:
        for name in ("a", "b", "c"):
            await api.ok("POST", "/v1/rooms", {"name": name})
    last = in_database(settings)[-1]
    for path in settings.data_dir.glob("server.sqlite*"):
        path.unlink()
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "d"})
    seqs = [one["seq"] for one in entries(settings)]
    assert seqs == list(range(1, len(seqs) + 1))
    [said] = [one for one in entries(settings, type="audit.server_started") if one["seq"] == last + 1]
    data = said["data"]
    assert isinstance(data, dict)
    assert (data["database_seq"], data["log_seq"]) == (0, last)
    assert read_log(settings.data_dir / "audit").findings == []


async def test_no_recording_starts_while_the_log_cannot_be_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        await api.ok("POST", "/v1/rooms", {"name": "other"})
        runs = await record(api, "runs")
        disk = FullDisk(monkeypatch, settings.data_dir.absolute() / "audit")
        marker = {"step": {"code": "risk"}, "action": "start"}
        await api.ok("POST", f"/v1/recordings/{runs}/markers", marker)  # goes on, and is in the database
        refused = await api.problem("POST", "/v1/rooms/other/recordings", {"business_no": "new"})
        assert (refused["status"], refused["code"]) == (503, "audit_unavailable")
        ready, body, _ = await api.ask("GET", "/readyz", key=None)
        assert (ready, body["checks"]["audit"]) == (503, False)
        assert b"shuanglu_audit_failures_total 0.0" not in await api.ok("GET", "/metrics", key=None)
        ended = await api.ok("POST", f"/v1/recordings/{runs}/stop")
        assert ended["state"] == "sealed"
        disk.full = False
        async with asyncio.timeout(20):
            while api.control.audit.failing:
                await asyncio.sleep(0.05)
        await api.ok("POST", "/v1/rooms/other/recordings", {"business_no": "new"})
    assert [one["seq"] for one in entries(settings)] == in_database(settings)
    report = read_log(settings.data_dir / "audit")
    assert (report.verdict, report.findings) == (Verdict.OK, [])
    assert report.recordings[runs].manifest


async def test_heads_of_running_journals_reach_the_log_and_find_a_cut_tail(settings: Settings) -> None:
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        recording = await record(api, "B-1")
        async with asyncio.timeout(30):
            log = read_log(settings.data_dir / "audit")
            while recording not in log.recordings or not log.recordings[recording].heads:
                await asyncio.sleep(0.2)  # only what is signed counts
                log = read_log(settings.data_dir / "audit")
        head = log.recordings[recording].heads[1]
        _, missing = check_all(settings.recordings_dir, settings.data_dir / "audit")
        assert missing == []
        segment = next(settings.recordings_dir.rglob("p0001-000000.seg"))
        offset = head["offset"]
        assert isinstance(offset, int)
        assert segment.stat().st_size > offset
        copy = settings.data_dir / "copy"
        shutil.copytree(settings.recordings_dir, copy)
        with next(copy.rglob("p0001-000000.seg")).open("r+b") as file:
            file.truncate(offset)
        _, [found] = check_all(copy, settings.data_dir / "audit")
        assert (found.kind, found.file) == (Kind.TRUNCATED, f"{recording}/segments/p0001-000000.seg")
        await api.ok("POST", f"/v1/recordings/{recording}/stop")
    shutil.rmtree(next(settings.recordings_dir.rglob(recording)))
    _, [found] = check_all(settings.recordings_dir, settings.data_dir / "audit")
    assert (found.kind, found.file) == (Kind.REMOVED, recording)


async def test_anchors_go_to_who_keeps_them(tmp_path: Path) -> None:
    got: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()

    async def receive(request: web.Request) -> web.Response:
        got.put_nowait((dict(request.headers), await request.read()))
        return web.Response(status=204)

    keeper = web.Application()
    keeper.router.add_post("/keep", receive)
    runner = web.AppRunner(keeper)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    secret = tmp_path / "anchor.secret"
    secret.write_text("s" * 40)
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/keep"
    authority = tsa.make_authority(tmp_path / "tsa")
    stamping = contextlib.ExitStack()
    server = stamping.enter_context(tsa.serve(authority.reply))
    settings = settings_in(
        tmp_path,
        audit={"heads_s": 2, "anchor_webhook": url, "anchor_secret_file": str(secret), "anchor_s": 10},
        timestamp={"when": "stop", "url": server.url, "trust": str(authority.trust)},
    )
    make_keys(settings)
    try:
        async with running(settings) as api, asyncio.timeout(60):
            await api.ok("POST", "/v1/rooms", {"name": "hall"})
            pages = [await got.get(), await got.get()]
            while len(read_log(settings.data_dir / "audit").timestamps) < 2:
                await asyncio.sleep(0.1)
        async with running(settings), asyncio.timeout(60):
            pages.append(await got.get())  # written when the server closed, delivered by the next
    finally:
        await runner.cleanup()
        stamping.close()
    for headers, page in pages:
        expected = signature("s" * 40, headers["webhook-id"], int(headers["webhook-timestamp"]), page)
        assert headers["webhook-signature"] == expected
    known = read_anchors(authority.trust)
    report = read_log(settings.data_dir / "audit", kept=[page for _, page in pages], time_authorities=known)
    assert (report.verdict, report.findings) == (Verdict.OK, [])
    assert {one["state"] for one in report.timestamps} == {"verified"}
    assert len(report.timestamps) >= 2
    unknown = read_log(settings.data_dir / "audit")
    assert {one["state"] for one in unknown.timestamps} == {"not_verified_here"}
    tenants = {json.loads(page)["tenant"] for _, page in pages}
    assert tenants == {"", "one"}
    for file in list_files(settings.data_dir / "audit"):
        shutil.rmtree(file.directory)
    assert read_log(settings.data_dir / "audit", kept=[pages[0][1]]).verdict == Verdict.BROKEN


async def test_what_changed_in_the_settings_is_in_the_log(tmp_path: Path) -> None:
    async with running(prepared(tmp_path)):
        pass
    settings = prepared(tmp_path, keep_days=400)
    async with running(settings):
        pass
    first, second = entries(settings, type="audit.server_started")
    assert isinstance(first["data"], dict)
    assert isinstance(second["data"], dict)
    assert first["data"]["changed"] == {}
    assert second["data"]["changed"] == {"audit.keep_days": {"from": 1095, "to": 400}}
    assert first["data"]["settings_sm3"] != second["data"]["settings_sm3"]


def test_no_secret_is_in_what_a_start_tells(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, crypto={"passphrase": "canary-passphrase"})
    assert "canary-passphrase" not in json.dumps(start_facts(settings, None))


async def test_a_storm_of_failed_sign_ins_is_a_number(settings: Settings) -> None:
    async with running(settings) as api:
        for _ in range(5):
            await api.problem("GET", "/v1/rooms", token="x.y.z")
        await api.problem("GET", "/v1/rooms", token=server_token(KEYS[0], ttl_s=10, now_s=1_600_000_000))
        await api.problem("POST", "/v1/session", {"code": "AAAA-BBBB-CCCC"}, key=None)
        await api.problem("GET", "/v1/rooms", key=None)  # nobody tried to sign in
        now = asyncio.get_running_loop().time()
        api.control.sign_ins.flush(now + 1e6)
        await api.control.events.settle()
    found = [(one["tenant"], one["data"]) for one in entries(settings, type="audit.sign_in_failed")]
    assert found == [
        ("", {"code": "token_invalid", "times": 1}),
        ("one", {"code": "token_expired", "times": 1}),
        ("", {"code": "code_invalid", "times": 1}),
        ("", {"code": "token_invalid", "times": 4}),
    ]


async def test_failed_sign_ins_are_bounded() -> None:
    class Log:
        def __init__(self) -> None:
            self.said: list[tuple[str, int]] = []

        def put(self, kind: str, **given: Any) -> None:
            self.said.append((given["origin"].address, given["data"]["times"]))

    log = Log()
    failed = FailedSignIns(log)  # type: ignore[arg-type]
    for number in range(KEPT + 500):
        failed.note(f"10.0.{number >> 8}.{number & 255}", "token_invalid", "", 1.0)
    assert len(log.said) == KEPT + 1
    assert log.said[-1] == (OTHERS, 1)
    failed.flush(1.0 + PERIOD_S)
    assert log.said[-1] == (OTHERS, 499)


@pytest.mark.timeout(300)
async def test_a_killed_server_loses_nothing_of_its_log(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    settings = prepared(tmp_path)
    acknowledged = 0
    for round_ in range(2):
        log = tmp_path / f"log-{round_}"
        with log.open("wb") as file:  # no pipe: the workers, which live on, would hold it open
            process = subprocess.Popen(
                [
                    sys.executable, "-c", "from mediaserver.cli import main; main()",
                    "serve", "--config", str(tmp_path / "settings.yaml"),
                ],
                stderr=file,
            )  # fmt: skip
        async with asyncio.timeout(60):
            while not (ready := re.search(r"^ready (\S+)", log.read_text(), re.MULTILINE)):
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession() as session:
            killer = asyncio.get_running_loop().call_later(source.uniform(0.3, 1.5), process.kill)
            number = 0
            try:
                while True:
                    number += 1
                    headers = {"Authorization": f"Bearer {server_token(KEYS[0])}"}
                    name = {"name": f"r{round_}-{number}"}
                    async with session.post(f"{ready[1]}/v1/rooms", json=name, headers=headers) as answer:
                        assert answer.status == 201
                        acknowledged += 1
            except aiohttp.ClientError:
                killer.cancel()
        process.wait(10)
    assert acknowledged > 10
    before = entries(settings, type="room.opened")
    assert len(before) >= acknowledged
    async with running(settings):
        assert [one["seq"] for one in entries(settings)] == in_database(settings)
    report = read_log(settings.data_dir / "audit", key_of=key_of(FileProvider.open(settings.crypto_dir)))
    # The ends that the kills left are unsigned; what was in them was written again.
    assert {one.kind for one in report.findings} <= {Kind.LEFTOVER, Kind.UNPROVEN}, report.findings
