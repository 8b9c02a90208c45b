"""GStreamer's webrtcbin, from Debian, publishes; Chromium sees it, and it is recorded and composed.

With H.264 of the constrained baseline and G.711 it stands for terminals and telephone gateways.
"""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.api import Api
from tests.e2e.browser import participant
from tests.e2e.conftest import LONG
from tests.e2e.far_clients import recorded
from tests.e2e.stage import Stage
from tests.media.files import camera_file, write_wav
from tests.media.pictures import AGENT, CUSTOMER
from tests.media.sounds import PERIOD_S, programme

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PYTHON = Path("/usr/bin/python3")
PUBLISHER = Path(__file__).with_name("gstreamer_whip.py")
SECONDS = 6.0
FPS = 8


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a camera and a microphone file that last a minute: a pipeline does not loop them."""
    directory = tmp_path_factory.mktemp("films")
    camera = camera_file(
        directory / "camera.y4m", CUSTOMER, fps=FPS, width=320, height=180, seconds=5 * PERIOD_S
    )
    return camera, write_wav(directory / "microphone.wav", np.tile(programme(CUSTOMER), 5))


CASES = [("VP8", "OPUS"), ("H264", "PCMA"), *([("H264", "PCMU")] if LONG else [])]


@pytest.mark.parametrize(("video", "audio"), CASES)
async def test_its_stream_is_seen_recorded_and_composed(
    stage: Stage,
    api: Api,
    room: str,
    devices: dict[str, tuple[Path, Path]],
    films: tuple[Path, Path],
    video: str,
    audio: str,
) -> None:
    await api.room(room, codecs=[f"video/{video}", f"audio/{audio.replace('OPUS', 'opus')}"])
    agent = await api.token(room, AGENT.identity, AGENT.role)
    wanted = {
        "url": f"{stage.base}/v1/whip/{room}?source=camera",
        "token": await api.token(room, CUSTOMER.identity, CUSTOMER.role),
        "camera": str(films[0]),
        "microphone": str(films[1]),
        "video": video,
        "audio": audio,
    }
    async with participant(stage.base, *devices[AGENT.identity]) as viewer:
        process = await asyncio.create_subprocess_exec(
            PYTHON, str(PUBLISHER), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(wanted).encode() + b"\n")
        if await asyncio.wait_for(process.stdout.readline(), 30) != b"connected\n":
            pytest.fail((await process.communicate())[1].decode())
        await viewer.subscribe(room, CUSTOMER.identity, agent)
        name = f"subscribe {CUSTOMER.identity}"
        async with recorded(api, room) as results:
            await asyncio.sleep(SECONDS)
            pictures = await viewer.count(name, "video", "framesDecoded")
            sounds = await viewer.count(name, "audio", "packetsReceived")
        await viewer.leave()
    process.stdin.close()
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, errors.decode()
    made = results[0]
    codes, beeps = made.codes(CUSTOMER), made.beeps(CUSTOMER)
    print(f"viewer: {pictures} pictures, {sounds} sound packets")
    print(f"film: {len(codes)} pictures, beeps at {beeps}")
    assert pictures >= SECONDS * FPS / 2  # a busy machine encodes slowly
    assert sounds >= SECONDS * 25 / 2  # its G.711 packets last 40 ms
    assert len(codes) >= SECONDS * FPS / 2
    assert len(beeps) >= SECONDS - 3
