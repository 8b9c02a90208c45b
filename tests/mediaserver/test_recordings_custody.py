"""Retention, holds, review and destruction over HTTP: two keys are two persons."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
import yaml

from mediaserver.recordings import continuity, custody
from mediaserver.recordings.composing import ComposingFailed
from mediaserver.settings import Settings
from mediaserver.tokens import ApiKey
from recorder.catalog import Entry
from recorder.custody import after, utc_ns
from recorder.destruction import CERTIFICATE_TYPE
from recorder.keys import KeysUnavailable
from recorder.manifest import read_sealed_part
from recorder.report import Verdict
from recorder.verify import verify
from tests.mediaserver import stand_in_compositor
from tests.mediaserver.running import KEYS, Client, make_keys, running, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECOND = ApiKey("key-compliance", "two-persons" * 4, "one")
POLICIES = {"short": {"original": "P1D", "archive": "P6M"}, "over": {"original": "P0D"}}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    retention = {"policies": POLICIES}
    settings = settings_in(tmp_path_factory.mktemp("custody"), retention=retention)
    make_keys(settings)
    add_key(settings)
    return settings


def add_key(settings: Settings) -> None:
    """Lay down a second key of the first tenant: the second person."""
    path = settings.secrets_dir / "api-keys.yaml"
    listed = yaml.safe_load(path.read_text())
    listed.append({"id": SECOND.id, "secret": SECOND.secret, "tenant": SECOND.tenant})
    path.write_text(yaml.safe_dump(listed))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(settings: Settings) -> AsyncIterator[Client]:
    async with running(settings) as client:
        client.control.finishing.command = [sys.executable, "-m", stand_in_compositor.__name__, "composes"]
        await client.ok("POST", "/v1/rooms", {"name": "desk"})
        yield client


async def recorded(api: Client, number: str, *, composed: bool = True, **more: Any) -> str:
    """Record something and end it; returns its path."""
    template = {"compose": "after_stop" if composed else "on_demand"}
    body = {"business_no": number, "template": template, "metadata": {"customer": "金丝雀"}, **more}
    made = await api.ok("POST", "/v1/rooms/desk/recordings", body)
    path = f"/v1/recordings/{made['id']}"
    await api.ok("POST", f"{path}/stop")
    async with asyncio.timeout(30):
        while composed and (await api.ok("GET", path))["composing"]["state"] != "done":
            await asyncio.sleep(0.05)
        while more and not (await api.ok("GET", f"{path}/custody"))["until"]:
            await asyncio.sleep(0.05)
    return path


async def proposal(api: Client, path: str) -> dict[str, Any]:
    """Give the body that approves what is proposed."""
    (one,) = (await api.ok("GET", f"{path}/custody"))["proposals"]
    return {"proposal": one["statement"]}


async def test_retention_begins_with_the_recording(api: Client) -> None:
    path = await recorded(api, "policy", composed=False, retention={"basis": "short"})
    stopped = utc_ns((await api.ok("GET", path))["stopped_at"])
    shown = await api.ok("GET", f"{path}/custody")
    assert shown["basis"] == "short"
    assert {kind: utc_ns(at) for kind, at in shown["until"].items()} == {
        "original": after(stopped, "P1D"),
        "archive": after(stopped, "P6M"),
    }
    given = {"basis": "contract", "until": "2037-01-01"}
    explicit = await recorded(api, "until", composed=False, retention=given)
    until = (await api.ok("GET", f"{explicit}/custody"))["until"]
    assert set(until.values()) == {"2037-01-01T00:00:00.000Z"}
    unknown = {"business_no": "unknown", "retention": {"basis": "no such policy"}}
    assert (await api.problem("POST", "/v1/rooms/desk/recordings", unknown))["code"] == "retention_unknown"
    wrong = {"business_no": "wrong", "retention": {"basis": "x", "until": "soon"}}
    assert (await api.problem("POST", "/v1/rooms/desk/recordings", wrong))["code"] == "body_invalid"
    kept = await recorded(api, "kept", composed=False)
    assert (await api.ok("GET", f"{kept}/custody"))["until"] == {}


async def test_longer_by_one_key_shorter_by_two(api: Client) -> None:
    path = await recorded(api, "patch", composed=False)
    longer = {"until": {"archive": "2040-01-01"}, "basis": "10y", "reason": "product"}
    assert (await api.ok("PATCH", f"{path}/retention", longer))["until"] == {
        "archive": "2040-01-01T00:00:00.000Z"
    }
    shorter = {**longer, "until": {"archive": "2030-01-01"}, "operator": "王芳"}
    proposed = await api.ok("PATCH", f"{path}/retention", shorter)
    assert proposed["until"]["archive"].startswith("2040")
    assert [one["kind"] for one in proposed["proposals"]] == ["retention"]
    refused = await api.problem("POST", f"{path}/retention/approve", await proposal(api, path))
    assert (refused["status"], refused["code"]) == (403, "second_person")
    approved = await api.ok("POST", f"{path}/retention/approve", await proposal(api, path), key=SECOND)
    assert approved["until"]["archive"].startswith("2030")


async def test_two_keys_destroy_what_is_due_and_no_hold_stands(api: Client, settings: Settings) -> None:
    path = await recorded(api, "due", retention={"basis": "contract", "until": "2020-01-01"})
    identifier = path.rpartition("/")[2]
    due = await api.ok("GET", "/v1/recordings?due=true")
    assert [one["id"] for one in due["recordings"]] == [identifier]
    held = await api.ok("POST", f"{path}/hold", {"reason": "case 7"})
    assert len(held["holds"]) == 1
    assert (await api.ok("GET", "/v1/recordings?due=true"))["recordings"] == []
    refused = await api.problem("POST", f"{path}/destruction", {"reason": "expired"})
    assert (refused["code"], "hold" in refused["detail"]) == ("on_hold", True)
    own = await api.problem("DELETE", f"{path}/hold", {"reason": "over"})
    assert own["code"] == "second_person"
    await api.ok("DELETE", f"{path}/hold", {"reason": "case 7 is over"}, key=SECOND)
    proposed = await api.ok("POST", f"{path}/destruction", {"reason": "expired", "operator": "王芳"})
    assert [one["kind"] for one in proposed["proposals"]] == ["destruction"]
    again = await api.problem("POST", f"{path}/destruction", {"reason": "more"})
    assert again["code"] == "proposal_stands"
    approval = await proposal(api, path)
    assert (await api.problem("POST", f"{path}/destruction/approve", approval))["code"] == "second_person"
    for wrong, code in (({}, "body_invalid"), ({"proposal": 1}, "other_proposal")):
        refused = await api.problem("POST", f"{path}/destruction/approve", wrong, key=SECOND)
        assert refused["code"] == code
    approval["operator"] = "赵磊"
    done = await api.ok("POST", f"{path}/destruction/approve", approval, key=SECOND)
    page = done["certificate"]
    assert page["type"] == CERTIFICATE_TYPE
    assert (page["proposed_by"], page["approved_by"]) == ("key:key-one", "key:key-compliance 赵磊")
    assert done["custody"]["key_destroyed"] is True
    shown = await api.ok("GET", path)
    assert (shown["state"], shown["files"], shown["metadata"]) == ("destroyed", [], {})
    assert (await api.ok("GET", "/v1/recordings?due=true"))["recordings"] == []
    (directory,) = settings.recordings_dir.glob(f"*/*/*/*/{identifier}")
    assert not (directory / "keys.json").exists()
    assert not [*directory.glob("segments/*"), *directory.glob("files/*")]
    assert verify(directory).verdict is Verdict.DESTROYED
    report = await api.ok("POST", f"{path}/verify")
    assert (report["verdict"], report["ok"]) == ("destroyed", True)
    for method, action, body in (
        ("POST", "hold", {"reason": "late"}),
        ("POST", "destruction", {"reason": "again"}),
        ("POST", "review", {"state": "compliant", "reviewer": "zhao-lei"}),
    ):
        assert (await api.problem(method, f"{path}/{action}", body))["code"] == "destroyed"
    assert (await api.problem("GET", f"{path}/files/composite.mp4"))["code"] == "file_not_found"
    events = (await api.ok("GET", "/v1/events?after=0&limit=500"))["events"]
    audited = [one for one in events if one["recording"] == identifier and one["type"].startswith("audit.")]
    assert [one["type"] for one in audited] == [
        "audit.held",
        "audit.released",
        "audit.destruction_proposed",
        "audit.destroyed",
        "audit.verified",
    ]


async def test_originals_go_and_the_archive_is_still_served(api: Client, settings: Settings) -> None:
    path = await recorded(api, "originals", retention={"basis": "over"})
    identifier = path.rpartition("/")[2]
    await api.ok("POST", f"{path}/destruction", {"reason": "journals 0 days", "kinds": ["original"]})
    done = await api.ok("POST", f"{path}/destruction/approve", await proposal(api, path), key=SECOND)
    assert (done["custody"]["destroyed"], done["custody"]["key_destroyed"]) == (["original"], False)
    (directory,) = settings.recordings_dir.glob(f"*/*/*/*/{identifier}")
    assert not list(directory.glob("segments/*"))
    status, body, _ = await api.ask("GET", f"{path}/files/composite.mp4")
    assert (status, body) == (200, stand_in_compositor.PLAIN)
    assert (await api.ok("POST", f"{path}/verify"))["verdict"] == "ok"
    entry = await api.control.recordings.find(identifier)
    assert entry is not None
    key = await api.control.recordings.data_key(entry, purpose="test", actor="test")
    assert read_sealed_part(directory, key)["business_no"] == "originals"


async def test_originals_stay_while_there_is_no_archive(api: Client) -> None:
    path = await recorded(api, "no archive", composed=False, retention={"basis": "over"})
    body = {"reason": "journals 0 days", "kinds": ["original"]}
    assert (await api.problem("POST", f"{path}/destruction", body))["code"] == "archive_missing"


async def test_a_removal_that_a_death_interrupted_is_done_by_the_durable_task(
    api: Client, settings: Settings
) -> None:
    path = await recorded(api, "death", retention={"basis": "over"})
    identifier = path.rpartition("/")[2]
    await api.ok("POST", f"{path}/destruction", {"reason": "r", "kinds": ["original"]})
    entry = await api.control.recordings.find(identifier)
    assert entry is not None
    number, late = (await proposal(api, path))["proposal"], utc_ns("2099-01-01")
    await api.control.custody.act(
        entry, "key:other", "", "test", lambda keeper: keeper.approve_destruction(number, late)
    )
    (directory,) = settings.recordings_dir.glob(f"*/*/*/*/{identifier}")
    assert list(directory.glob("segments/*"))
    assert api.control.finishing.jobs is not None
    await api.control.finishing.jobs.task("destroy", identifier)
    async with asyncio.timeout(30):
        while list(directory.glob("segments/*")):
            await asyncio.sleep(0.05)


async def test_review(api: Client) -> None:
    path = await recorded(api, "review", composed=False)
    wrong = await api.problem("POST", f"{path}/review", {"state": "confirmed", "reviewer": "zhao-lei"})
    assert (wrong["code"], "compliant or to_rectify" in wrong["detail"]) == ("review_state", True)
    body = {"state": "compliant", "reviewer": "zhao-lei", "comment": "全程清晰"}
    assert (await api.ok("POST", f"{path}/review", body))["review"] == "compliant"
    statements = (await api.ok("GET", f"{path}/statements"))["statements"]
    assert statements[-1]["body"] == {"state": "compliant", "number": 1}
    assert "全程清晰" not in str(statements)


async def test_only_servers_of_the_tenant_and_only_after_the_end(api: Client) -> None:
    made = await api.ok("POST", "/v1/rooms/desk/recordings", {"business_no": "running"})
    path = f"/v1/recordings/{made['id']}"
    assert (await api.problem("GET", f"{path}/custody"))["code"] == "recording_state"
    assert (await api.problem("POST", f"{path}/hold", {"reason": "x"}))["code"] == "recording_state"
    await api.ok("POST", f"{path}/stop")
    agent = api.participant("desk", "agent-1", "agent", admin=True)
    for method, action in (("GET", "custody"), ("POST", "hold"), ("POST", "destruction/approve")):
        body = {"hold": {"reason": "x"}, "destruction/approve": {"proposal": 1}}.get(action)
        assert (await api.problem(method, f"{path}/{action}", body, token=agent))["code"] == "forbidden"
        other = await api.problem(method, f"{path}/{action}", body, key=KEYS[1])
        assert other["code"] == "recording_not_found"
    for wrong in ({}, {"reason": ""}, {"reason": "x", "odd": 1}):
        assert (await api.problem("POST", f"{path}/hold", wrong))["code"] == "body_invalid"


async def test_a_certificate_that_cannot_be_signed_leaves_no_tombstone_undone(
    api: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await recorded(api, "no certificate", retention={"basis": "contract", "until": "2020-01-01"})
    identifier = path.rpartition("/")[2]
    await api.ok("POST", f"{path}/destruction", {"reason": "expired", "operator": "王芳"})
    approval = await proposal(api, path)

    def down(*_: Any, **__: Any) -> bytes:
        raise KeysUnavailable("the KMS is down")

    with monkeypatch.context() as patched:
        patched.setattr(custody, "certificate", down)
        refused = await api.problem("POST", f"{path}/destruction/approve", approval, key=SECOND)
        assert refused["code"] == "keys_unavailable"
        (directory,) = settings.recordings_dir.glob(f"*/*/*/*/{identifier}")
        async with asyncio.timeout(30):
            while (await api.ok("GET", path))["state"] != "destroyed":
                await asyncio.sleep(0.05)
        assert not (directory / "keys.json").exists()
    page = (await api.ok("POST", f"{path}/destruction/approve", approval, key=SECOND))["certificate"]
    assert (page["proposed_by"], page["reason"]) == ("key:key-one", "expired")


async def test_nothing_is_destroyed_under_a_composer(api: Client) -> None:
    path = await recorded(api, "composing", retention={"basis": "contract", "until": "2020-01-01"})
    await api.ok("POST", f"{path}/destruction", {"reason": "expired"})
    approval = await proposal(api, path)
    recordings = api.control.recordings
    entry = await recordings.find(path.rpartition("/")[2])
    assert entry is not None
    busy = {"composing": {"state": "running", "progress": None, "run": 9}}
    copying = {"details": {**entry.details, "copies": [{"name": "clip-1.mp4", "state": "waiting"}]}}
    for change in (busy, copying):
        await recordings.database.run(recordings.catalog.put, replace(entry, **change))
        refused = await api.problem("POST", f"{path}/destruction/approve", approval, key=SECOND)
        assert refused["code"] == "recording_state"
    await recordings.database.run(recordings.catalog.put, entry)
    await api.ok("POST", f"{path}/destruction/approve", approval, key=SECOND)
    # A composing that fails behind it brings nothing back, and nothing more can be asked for.
    await api.control.finishing._failed(entry, ComposingFailed("gone", "the segments are gone"))
    assert (await api.ok("GET", path))["state"] == "destroyed"
    more = {"name": "more.mp4", "template": {}}
    assert (await api.problem("POST", f"{path}/composites", more))["code"] == "recording_state"


async def test_a_retention_that_a_death_left_unsigned_is_signed_after_it(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def died(_: Entry) -> None:
        pass

    with monkeypatch.context() as patched:
        patched.setattr(api.control.custody, "ended", died)
        given = {"business_no": "unsigned", "retention": {"basis": "contract", "until": "2037-01-01"}}
        made = await api.ok("POST", "/v1/rooms/desk/recordings", given)
        path = f"/v1/recordings/{made['id']}"
        await api.ok("POST", f"{path}/stop")
        await asyncio.sleep(0.5)
        assert (await api.ok("GET", f"{path}/custody"))["until"] == {}
    await continuity.catch_up(api.control.recordings)
    async with asyncio.timeout(30):
        while not (await api.ok("GET", f"{path}/custody"))["until"]:
            await asyncio.sleep(0.05)
