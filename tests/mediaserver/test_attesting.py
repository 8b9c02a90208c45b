"""What others say of a recording, stored with it by a running server: time-stamps, revocation lists."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mediaserver.config import ConfigError
from mediaserver.secrets import SecretsError, open_secrets
from mediaserver.settings import Settings
from recorder.catalog import Entry
from recorder.certificates import Trust
from recorder.gm.x509 import Certificate
from recorder.statements import Statement, read_statements
from recorder.timestamp import read_anchors
from recorder.verify import verify
from tests.mediaserver.running import Client, make_keys, running, settings_in
from tests.recorder import pki, tsa

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tsa.Authority:
    return tsa.make_authority(tmp_path_factory.mktemp("tsa") / "p256")


def settings_with(directory: Path, **sections: Any) -> Settings:
    directory.mkdir()
    settings = settings_in(directory, **sections)
    make_keys(settings)
    return settings


async def recorded(api: Client, number: str) -> tuple[dict[str, Any], Path]:
    """Record nothing for a moment; return the recording as the stop answers it, and where it is."""
    await api.ok("POST", "/v1/rooms", {"name": "desk"})
    one = await api.ok("POST", "/v1/rooms/desk/recordings", {"business_no": number})
    stopped = await api.ok("POST", f"/v1/recordings/{one['id']}/stop")
    entry = await api.control.recordings.find(one["id"])
    assert entry is not None
    return stopped, api.control.recordings.directory(entry)


async def until_stated(directory: Path, kind: str, timeout_s: float = 60.0) -> Statement:
    async with asyncio.timeout(timeout_s):
        while True:
            for statement in read_statements(directory):
                if statement.kind == kind:
                    return statement
            await asyncio.sleep(0.05)


async def until_event(api: Client, kind: str, recording: str, timeout_s: float = 60.0) -> dict[str, Any]:
    async with asyncio.timeout(timeout_s):
        while True:
            listed = await api.ok("GET", "/v1/events?limit=1000")
            for event in listed["events"]:
                if (event["type"], event["recording"]) == (kind, recording):
                    found: dict[str, Any] = event
                    return found
            await asyncio.sleep(0.05)


async def test_a_recording_is_stamped_after_its_stop_once_the_authority_answers(
    tmp_path: Path, authority: tsa.Authority
) -> None:
    with tsa.serve(authority.reply) as server:
        server.status = 503  # down at first: the stop does not wait for it
        stamping = {"when": "stop", "url": server.url, "trust": str(authority.trust)}
        async with running(settings_with(tmp_path / "one", timestamp=stamping)) as api:
            stopped, directory = await recorded(api, "B-1")
            assert stopped["state"] == "sealed"
            async with asyncio.timeout(30):
                while not server.requests:
                    await asyncio.sleep(0.05)
            assert [one.kind for one in read_statements(directory)] == []
            uploads, told = api.control.uploads, []
            bring = uploads.changed

            async def changed(entry: Entry) -> None:
                told.append((entry.id, [one.kind for one in read_statements(directory)]))
                await bring(entry)

            uploads.changed = changed  # type: ignore[method-assign]
            server.status = 200
            event = await until_event(api, "recording.timestamped", stopped["id"])
            assert event["data"]["authority"] == "CN=Test Time-Stamp Authority"
            assert (event["data"]["state"], event["data"]["statement"]) == ("verified", 1)
            assert told == [(stopped["id"], ["timestamp"])], "the sites are told of the stamp"
            entry = await api.control.recordings.find(stopped["id"])
            assert entry is not None
            shown = await api.ok("POST", f"/v1/recordings/{stopped['id']}/verify")
            assert [one["state"] for one in shown["timestamps"]] == ["verified"]
            # Asked for again there is nothing to do.
            asked = len(server.requests)
            await api.control.finishing.attesting.attest(f'{{"recording": "{entry.id}", "since": 0}}')
            assert len(server.requests) == asked
    report = verify(directory, time_authorities=read_anchors(authority.trust))
    assert report.ok, [str(finding) for finding in report.findings]
    assert [one["state"] for one in report.timestamps] == ["verified"]


async def test_after_the_given_time_it_is_given_up_and_said(tmp_path: Path, authority: tsa.Authority) -> None:
    with tsa.serve(authority.reply) as server:
        server.status = 503
        stamping = {"when": "stop", "url": server.url}
        async with running(settings_with(tmp_path / "one", timestamp=stamping)) as api:
            stopped, directory = await recorded(api, "B-1")
            await api.control.finishing.attesting.attest(f'{{"recording": "{stopped["id"]}", "since": 0}}')
            event = await until_event(api, "recording.timestamp_failed", stopped["id"])
            assert "answered 503" in event["data"]["reason"]
            assert read_statements(directory) == []
            # A recording that is gone has nothing to stamp.
            await api.control.finishing.attesting.attest('{"recording": "nobody", "since": 0}')


async def test_without_an_authority_nothing_is_asked(tmp_path: Path) -> None:
    async with running(settings_with(tmp_path / "one")) as api:
        _, directory = await recorded(api, "B-1")
        await api.control.finishing.attesting.attest(f'{{"recording": "{directory.name}", "since": 0}}')
        assert read_statements(directory) == []


@contextmanager
def web(pages: dict[str, bytes]) -> Iterator[str]:
    """Serve pages by path; one that is not there is 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = pages.get(self.path)
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_the_authoritys_lists_are_stored_with_a_recording(tmp_path: Path) -> None:
    """From an address and a file; what cannot be got is said."""
    chain = pki.make_chain()
    of_root = tmp_path / "root.crl"
    of_root.write_bytes(pki.revocation_list(chain.root, {}, this_update=NOW - DAY, next_update=NOW + DAY))
    crl = pki.revocation_list(chain.intermediate, {"5": NOW - DAY}, this_update=NOW, next_update=NOW + DAY)
    pages = {"/ca.crl": crl, "/broken.crl": crl[:-9]}
    with web(pages) as base:
        sources = [f"{base}/ca.crl", str(of_root), f"{base}/gone.crl", f"{base}/broken.crl"]
        settings = settings_with(tmp_path / "one", crypto={"status": {"crl": sources}})
        open_secrets(settings)
        pki.certify(settings.crypto_dir, chain)
        async with running(settings) as api:
            stopped, directory = await recorded(api, "B-1")
            assert stopped["assurance"] == "operator"
            statement = await until_stated(directory, "certificate_status")
            lists = api.control.finishing.attesting.lists
            assert set(lists.lists) == set(sources[:2])
            # A source that fails later keeps what was got.
            pages.clear()
            await lists.refresh()
            assert set(lists.lists) == set(sources[:2])
    listed, missing = statement.body["lists"], statement.body["missing"]
    assert isinstance(listed, list)
    assert isinstance(missing, list)
    assert [
        (one["source"], base64.b64decode(str(one["crl"]))) for one in listed if isinstance(one, dict)
    ] == [
        (sources[0], crl),
        (sources[1], of_root.read_bytes()),
    ]
    assert [one["source"] for one in missing if isinstance(one, dict)] == sources[2:]
    report = verify(directory, trusted=Trust(authorities=(chain.root.certificate,)))
    assert report.ok, [str(finding) for finding in report.findings]
    own = Certificate.from_pem((settings.crypto_dir / "signing.cert.pem").read_text())
    assert [(one["subject"], one["state"]) for one in report.certificates] == [
        (own.subject, "good"),
        (chain.intermediate.certificate.subject, "good"),
    ]


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"timestamp": {"when": "stop"}}, "timestamp.url names no authority"),
        ({"timestamp": {"url": "ftp://x"}}, "timestamp.url"),
        ({"timestamp": {"url": "http://user:secret@x/"}}, "no user name"),
        ({"timestamp": {"policy": "mine"}}, "timestamp.policy"),
        ({"crypto": {"status": {"crl": ["ldap://x"]}}}, "crypto.status"),
        ({"crypto": {"status": {"refresh_s": 0}}}, "crypto.status.refresh_s"),
    ]
    for number, (sections, reason) in enumerate(wrong):
        with pytest.raises(ConfigError, match=reason):
            settings_with(tmp_path / str(number), **sections)
    (tmp_path / "empty.pem").write_text("")
    settings = settings_with(tmp_path / "trust", timestamp={"trust": str(tmp_path / "empty.pem")})
    with pytest.raises(SecretsError, match=r"timestamp\.trust: .*empty\.pem"):
        open_secrets(settings)
