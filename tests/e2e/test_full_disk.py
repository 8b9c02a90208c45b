"""A disk that runs full under a running recording: call and recording go on, the loss is listed, nothing else
breaks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import peers
from tests.e2e.api import Api, Problem
from tests.e2e.stage import Stage
from tests.media.pictures import AGENT, CUSTOMER
from tests.media.tracks import CameraTrack, MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

DISK_BYTES = 160 << 20
LEAST_FREE_BYTES = 64 << 20
LOW_FREE_BYTES = 80 << 20
QUEUE_BYTES = 1 << 20
"""The least there is: a quarter of it, for one journal, holds two seconds; the disk is full for longer."""
FULL_S = 6.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small disk of memory."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0755", "tmpfs", str(mount)],
        capture_output=True,
        timeout=10,
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True, timeout=10)


def fill(path: Path, leave_bytes: int) -> None:
    """Write a file that leaves so much room."""
    with path.open("wb") as file:
        while (free := shutil.disk_usage(path.parent).free - leave_bytes) > 0:
            file.write(bytes(min(free, 1 << 20)))
            file.flush()


async def test_full_disk_ends_no_call_and_is_told(small_disk: Path) -> None:
    filler = small_disk / "filler"
    settings = {
        "recording.min_free_bytes": LEAST_FREE_BYTES,
        "recording.low_free_bytes": LOW_FREE_BYTES,
        "recording.queue_bytes": QUEUE_BYTES,
    }
    with Stage(small_disk / "data", settings) as stage:
        async with Api(stage.base, stage.key()) as api:
            await api.room("full")
            customer = await api.token("full", CUSTOMER.identity, CUSTOMER.role)
            agent = await api.token("full", AGENT.identity, AGENT.role)
            caller = await peers.publish(
                api, "full", customer, [CameraTrack(CUSTOMER), MicrophoneTrack(CUSTOMER)]
            )
            await peers.connected(caller)
            watching = await peers.subscribe(api, "full", CUSTOMER.identity, agent)
            await watching.first_picture()
            recording = await api.record("full", "FULL-1", "single")
            await asyncio.sleep(2)
            # From here the disk holds nothing more.
            fill(filler, 0)
            before = watching.video.frames
            with pytest.raises(Problem) as refused:
                await api.record("full", "FULL-2", "single")
            assert (refused.value.status, refused.value.code) == (507, "disk_full")
            await asyncio.sleep(FULL_S)
            assert watching.video.frames - before > 40, "the call goes on"
            assert (await api.ask("GET", "/healthz")).status in (200, 503)
            shown = await api.recording(recording["id"])
            print(f"while full: {shown['state']}, {shown['failure']}, gaps {shown['gaps']}")
            assert (shown["state"], shown["failure"]) == ("recording", "disk_full"), "it waits for room"
            assert "shuanglu_disk_level 2.0" in (await api.ask("GET", "/metrics")).body.decode()
            filler.unlink()
            await asyncio.sleep(5)
            shown = await api.recording(recording["id"])
            print(f"with room again: {shown['state']}, {shown['failure']}, gaps {shown['gaps']}")
            assert (shown["state"], shown["failure"]) == ("recording", None)
            told = [event["type"] for event in (await api.call("GET", "/v1/events?limit=1000"))["events"]]
            assert {"recording.restored", "disk.restored"} <= set(told), told
            shown = await api.stop(recording["id"])
            assert (shown["state"], shown["parts"]) == ("sealed", 1)
            lost = "queue_full" in {gap["reason"] for gap in shown["gaps"]}
            assert lost == ("recording.gap" in told), "what memory did not hold is told and listed"
            report = await api.call("POST", f"/v1/recordings/{recording['id']}/verify")
            assert report["verdict"] != "broken", report
            after = await api.record("full", "FULL-3", "single")
            await asyncio.sleep(2)
            await api.stop(after["id"])
            report = await api.call("POST", f"/v1/recordings/{after['id']}/verify")
            assert report["verdict"] != "broken", report
            await watching.close()
            await caller.close()
