"""SIGTERM while a call is recorded: nothing new is taken, what runs may end, and what does not is closed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import peers
from tests.e2e.api import Api, Problem
from tests.e2e.stage import Stage
from tests.media.pictures import CUSTOMER
from tests.media.tracks import CameraTrack, MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

DRAIN_S = 6


async def recorded_call(api: Api, room: str) -> tuple[peers.Session, Any]:
    """Let a customer publish, and record the room."""
    await api.room(room)
    token = await api.token(room, CUSTOMER.identity, CUSTOMER.role)
    caller = await peers.publish(api, room, token, [CameraTrack(CUSTOMER), MicrophoneTrack(CUSTOMER)])
    await peers.connected(caller)
    return caller, await api.record(room, f"DRAIN-{room}")


async def begin_to_drain(api: Api, stage: Stage) -> float:
    """Send SIGTERM and wait until the server says that it drains; returns when it was sent."""
    sent_s = time.monotonic()
    os.kill(stage.pids("control")[0], signal.SIGTERM)
    while (await api.ask("GET", "/readyz")).status == 200:
        assert time.monotonic() - sent_s < 5, "it does not drain"
        await asyncio.sleep(0.05)
    return sent_s


async def whole(stage: Stage, recording: str, reason: str) -> float:
    """Start the server again, have the recording composed and verified; returns its length in s."""
    stage.restart()
    async with Api(stage.base, stage.key()) as api:
        shown, _ = await api.composed(recording)
        events = (await api.call("GET", "/v1/events?limit=1000"))["events"]
        (stopped,) = [one for one in events if one["type"] == "recording.stopped"]
        assert (stopped["recording"], stopped["data"]["reason"]) == (recording, reason)
        report = await api.call("POST", f"/v1/recordings/{recording}/verify")
        assert report["ok"] is True, report
        return float(shown["duration_ms"]) / 1000


async def test_a_call_that_ends_in_time_is_not_disturbed(tmp_path: Path) -> None:
    with Stage(tmp_path / "data", {"drain_s": 30}) as stage:
        async with Api(stage.base, stage.key()) as api:
            caller, recording = await recorded_call(api, "polite")
            await asyncio.sleep(2)
            sent_s = await begin_to_drain(api, stage)
            with pytest.raises(Problem) as refused:
                await api.room("late")
            assert (refused.value.status, refused.value.code) == (503, "draining")
            await asyncio.sleep(3)
            assert (await api.recording(recording["id"]))["state"] == "recording"
            await api.stop(recording["id"])
            await caller.close()
        stage.wait_gone("control")
        print(f"gone {time.monotonic() - sent_s:.1f} s after SIGTERM")
        assert time.monotonic() - sent_s < 25, "it waits for nothing once the last recording has ended"
        assert not stage.processes()
        assert await whole(stage, recording["id"], "requested") > 4.5


async def test_a_call_that_goes_on_is_closed_cleanly(tmp_path: Path) -> None:
    with Stage(tmp_path / "data", {"drain_s": DRAIN_S}) as stage:
        async with Api(stage.base, stage.key()) as api:
            caller, recording = await recorded_call(api, "stubborn")
            await asyncio.sleep(2)
            sent_s = await begin_to_drain(api, stage)
        stage.wait_gone("control", DRAIN_S + 15)
        gone_s = time.monotonic() - sent_s
        print(f"gone {gone_s:.1f} s after SIGTERM")
        assert gone_s >= DRAIN_S
        assert not stage.processes()
        await caller.connection.close()
        assert await whole(stage, recording["id"], "server_stopped") > DRAIN_S + 1.5
