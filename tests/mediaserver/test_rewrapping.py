"""Rotation as the server does it: in the background, over a kill -9, each recording in the audit."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mediaserver.tokens import server_token
from recorder.catalog import Entry
from recorder.ids import uuid7
from recorder.keys import SIDECAR, FileProvider, KeyProblem, read_sidecar, write_sidecar
from recorder.manifest import write_manifest
from recorder.reindex import facts_of, private_of, template_text
from recorder.storage import recording_directory
from recorder.verify import verify
from tests.e2e.stage import Stage

COUNT = 120
UTC_NS = 1_790_000_000_000_000_000


@pytest.fixture
def crypto(tmp_path: Path) -> Path:
    FileProvider.create(tmp_path / "old")
    FileProvider.create(tmp_path / "new")
    return tmp_path


def lay_down(data: Path, tenant: str, provider: FileProvider, count: int) -> list[Path]:
    """Make ended recordings without media under the old keys."""
    made = []
    for number in range(count):
        identifier = str(uuid7())
        place = recording_directory(data, tenant, identifier)
        place.mkdir(parents=True)
        key, wrap = asyncio.run(provider.new_data_key(identifier))
        write_sidecar(place, identifier, key.key_id, [wrap], provider.signer())
        entry = Entry(
            id=identifier,
            tenant=tenant,
            room="desk",
            business_no=f"no-{number}",
            mode="composite",
            directory=str(place.relative_to(data)),
            created_ns=UTC_NS,
            armed_ns=UTC_NS,
            stopped_ns=UTC_NS + 1,
            state="sealed",
            composing={"state": "none", "progress": None},
            details={"template": {}, "metadata": {}, "participants": [], "actor": "test"},
        )
        write_manifest(
            place,
            identifier,
            facts=facts_of(entry),
            sealed=private_of(entry),
            template=template_text({}),
            parts=[],
            data_key=key,
            provider=provider.info(),
            signer=provider.signer(),
        )
        made.append(place)
    return made


def ask(stage: Stage, method: str, path: str, tenant: str = "default") -> tuple[int, Any]:
    request = urllib.request.Request(
        stage.base + path,
        method=method,
        headers={"Authorization": f"Bearer {server_token(stage.key(tenant))}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_for(condition: Callable[[], Any], stage: Stage, timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, stage.log_end()
        time.sleep(0.002)
    return value


def events(stage: Stage) -> Iterator[dict[str, Any]]:
    after = 0
    while True:
        page = ask(stage, "GET", f"/v1/events?after={after}&limit=500")[1]
        yield from page["events"]
        if not page["events"]:
            return
        after = page["events"][-1]["seq"]


def revision(directory: Path) -> object:
    return read_sidecar(directory)["revision"]


def test_a_run_killed_goes_on_and_the_audit_has_each(tmp_path: Path, crypto: Path) -> None:
    old, new = FileProvider.open(crypto / "old"), FileProvider.open(crypto / "new")
    settings = {
        "crypto.directory": str(crypto / "new"),
        "crypto.former.provider": "file",
        "crypto.former.directory": str(crypto / "old"),
        "media.spare": False,
    }
    data = tmp_path / "data"
    stage = Stage(data, settings, tenants=("default", "other"))
    made = lay_down(data, "default", old, COUNT)
    others = lay_down(data, "other", old, 2)
    with stage:
        assert ask(stage, "GET", "/v1/keys/rewrap")[1] == {"state": "none"}
        # What is not moved yet opens with the former keys, and what they signed is ours.
        identifier = made[0].name
        status, report = ask(stage, "POST", f"/v1/recordings/{identifier}/verify")
        assert (status, report["opened"]) == (200, True), report
        assert not [one for one in report["findings"] if one["kind"] == "other_signer"]
        status, state = ask(stage, "POST", "/v1/keys/rewrap")
        assert (status, state["state"]) == (202, "running")
        wait_for(lambda: revision(sorted(made)[4]) == 2, stage)
        (control,) = stage.pids("control")
        os.kill(control, signal.SIGKILL)
        moved = sum(revision(path) == 2 for path in made)
        assert 5 <= moved < COUNT
        stage.restart()
        again = ask(stage, "POST", "/v1/keys/rewrap")[1]
        assert again["run"] == state["run"]
        done = wait_for(
            lambda: (now := ask(stage, "GET", "/v1/keys/rewrap")[1])["state"] == "done" and now, stage
        )
        assert (done["total"], done["done"], done["failed"]) == (COUNT, COUNT, 0)
        heard = [one for one in events(stage) if one["type"] == "audit.rewrapped"]
        assert {one["recording"] for one in heard} == {path.name for path in made}
        assert len(heard) <= COUNT + 1  # at most the one under way is heard of twice
        assert heard[0]["actor"] == "key:key-default"
        status, report = ask(stage, "POST", f"/v1/recordings/{identifier}/verify")
        assert (status, report["opened"]) == (200, True), report
    for path in made:
        sidecar = read_sidecar(path)
        assert sidecar["revision"] == 2
        new.unwrap_now(sidecar, recording_id=path.name, purpose="test", actor="test")
        with pytest.raises(KeyProblem, match="not wrapped for"):
            old.unwrap_now(sidecar, recording_id=path.name, purpose="test", actor="test")
        assert not list(path.glob(f".{SIDECAR}.*"))
    assert verify(made[0]).ok
    assert [revision(path) for path in others] == [1, 1]


def test_without_former_keys_there_is_nothing_to_do(tmp_path: Path) -> None:
    with Stage(tmp_path / "data", {"media.spare": False}, tenants=("default",)) as stage:
        status, problem = ask(stage, "POST", "/v1/keys/rewrap")
        assert (status, problem["code"]) == (409, "former_keys_missing")
