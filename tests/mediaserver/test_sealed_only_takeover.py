"""Recordings of a server that cannot open them, over deaths; and the same with a KMS."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from typer.testing import CliRunner

from mediaserver.control import Control
from mediaserver.secrets import open_secrets
from recorder.cli import app
from recorder.verify import verify
from tests.mediaserver.running import make_keys, running, settings_in
from tests.mediaserver.sealing import composed, directory_of, sealing_settings, start
from tests.recorder.kms_process import reference_kms


async def test_the_next_control_process_gets_the_key_from_the_worker(tmp_path: Path) -> None:
    settings = sealing_settings(tmp_path)
    async with running(settings, leave_workers=True) as first:
        await first.ok("POST", "/v1/rooms", {"name": "desk"})
        one = await start(first, "survivor")
    async with running(settings, leave_workers=True) as second:
        shown = await second.ok("GET", f"/v1/recordings/{one['id']}")
        assert shown["state"] == "recording"
        # It has the key in memory: the recording can even go on in another worker.
        os.kill(second.control.workers.all()[0].pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while (await second.ok("GET", f"/v1/recordings/{one['id']}"))["parts"] < 2:
                await asyncio.sleep(0.1)
        ended = await second.ok("POST", f"/v1/recordings/{one['id']}/stop")
        assert ended["state"] in ("sealed", "recovered")
        assert verify(await directory_of(second, one["id"])).ok
        # Not composed here: nobody here can open it.
        await second.ask("GET", f"/v1/recordings/{one['id']}/files/composite.mp4")
        shown = await composed(second, one["id"])
        assert "sealed_only" in shown["composing"]["detail"]
        pid = second.control.workers.all()[0].pid
        lost = await start(second, "both lost")
        directory = await directory_of(second, lost["id"])
    os.kill(pid, signal.SIGKILL)
    async with running(settings) as third:
        shown = await third.ok("GET", f"/v1/recordings/{lost['id']}")
        assert (shown["state"], shown["failure"]) == ("failed", "sealed_only")
    # Whoever opens recovers it; the signing key is the server's.
    command = ["recover", str(directory), "--keys", str(tmp_path / "server")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code != 0
    done = CliRunner().invoke(app, [*command, "--opening", str(tmp_path / "opening")])
    assert done.exit_code == 0, done.output
    assert "recovered" in done.output
    assert verify(directory).ok


async def test_a_kms_token_that_may_not_open(tmp_path: Path) -> None:
    with reference_kms(tmp_path / "kms") as kms:
        crypto = {
            "provider": "kms",
            "open": False,
            "kms": kms.settings("sealing"),
            "opening": {"provider": "kms", "kms": kms.settings("opening")},
        }
        settings = settings_in(tmp_path, crypto=crypto)
        make_keys(settings)
        async with running(settings) as api:
            await api.ok("POST", "/v1/rooms", {"name": "desk"})
            one = await start(api, "kms")
            await api.ok("POST", f"/v1/recordings/{one['id']}/stop")
            await api.ask("GET", f"/v1/recordings/{one['id']}/files/composite.mp4")
            assert (await composed(api, one["id"]))["composing"]["state"] == "done"
            problem = await api.problem("GET", f"/v1/recordings/{one['id']}/files/composite.mp4")
            assert problem["code"] == "sealed_only"
        opened = [line for line in kms.audit() if line["operation"] == "unwrap"]
        assert {(line["who"], line["purpose"], line["actor"]) for line in opened} == {
            ("opening", "compose", "compositor")
        }


async def recovers(control: Control, recording: str) -> None:
    """Wait until a recording has ended; it is whole."""
    async with asyncio.timeout(60):
        while (entry := await control.recordings.find(recording)) is None or entry.active:
            await asyncio.sleep(0.1)
    assert entry.state == "recovered"
    assert verify(control.recordings.directory(entry)).ok


async def test_keys_that_are_down_at_the_take_over(tmp_path: Path) -> None:
    with reference_kms(tmp_path / "kms") as kms:
        crypto = {"provider": "kms", "kms": kms.settings(timeout_s=2.0)}
        settings = settings_in(tmp_path, crypto=crypto)
        make_keys(settings)
        async with running(settings, leave_workers=True) as first:
            await first.ok("POST", "/v1/rooms", {"name": "desk"})
            one = await start(first, "goes on")
        secrets = open_secrets(settings)
        kms.fail(down=True)
        second = Control(settings, secrets)
        try:
            await second.start()
            # Its worker lives and has the key.
            assert second.recordings.active[one["id"]].entry.state == "recording"
            pid = second.workers.all()[0].pid
        finally:
            await second.close(leave_workers=True)
        os.kill(pid, signal.SIGKILL)
        kms.fail()
        secrets = open_secrets(settings)
        kms.fail(down=True)
        third = Control(settings, secrets)
        try:
            await third.start()
            entry = await third.recordings.find(one["id"])
            assert entry is not None
            assert entry.state == "recording"  # not failed: it waits
            kms.fail()
            await recovers(third, one["id"])
        finally:
            await third.close()


async def test_keys_that_are_refused_or_unreadable_at_the_take_over(tmp_path: Path) -> None:
    """A token that ended and a disk that does not read say nothing of a recording: it is not given up."""
    with reference_kms(tmp_path / "kms") as kms:
        settings = settings_in(tmp_path, crypto={"provider": "kms", "kms": kms.settings(timeout_s=2.0)})
        make_keys(settings)
        async with running(settings, leave_workers=True) as first:
            await first.ok("POST", "/v1/rooms", {"name": "desk"})
            one = await start(first, "goes on")
            keys = await directory_of(first, one["id"]) / "keys.json"
        aside = keys.rename(keys.with_name("aside"))
        keys.mkdir()  # reading it is an OSError
        second = Control(settings, open_secrets(settings))
        try:
            await second.start()
            assert second.recordings.active[one["id"]].entry.state == "recording"
            pid = second.workers.all()[0].pid
        finally:
            await second.close(leave_workers=True)
        os.kill(pid, signal.SIGKILL)
        third = Control(settings, open_secrets(settings))
        try:
            await third.start()
            entry = await third.recordings.find(one["id"])
            assert entry is not None
            assert entry.state == "recording"  # nobody has its key: it waits
            keys.rmdir()
            keys.write_bytes(b"{}")  # no longer an OSError: a KeyProblem, as of a KMS that refuses
            await asyncio.sleep(2.5)
            entry = await third.recordings.find(one["id"])
            assert entry is not None
            assert entry.state == "recording"
            aside.rename(keys)
            await recovers(third, one["id"])
        finally:
            await third.close()
