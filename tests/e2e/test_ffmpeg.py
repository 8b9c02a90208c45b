"""FFmpeg's own WHIP muxer, in a process of its own, publishes; it is recorded and composed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.api import Api
from tests.e2e.far_clients import certificate, recorded
from tests.e2e.stage import ROOT, Stage
from tests.media.pictures import CUSTOMER

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SECONDS = 6.0


async def publisher(
    stage: Stage, room: str, token: str, options: dict[str, str]
) -> asyncio.subprocess.Process:
    """Start the muxer; its first line of output says that it is connected."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.e2e.ffmpeg_whip", cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    wanted = {
        "url": f"{stage.base}/v1/whip/{room}?source=camera",
        "token": token,
        "options": options,
    }
    assert process.stdin is not None
    process.stdin.write(json.dumps(wanted).encode() + b"\n")
    await process.stdin.drain()
    return process


@pytest.mark.parametrize("flags", ["", "dtls_active"])
async def test_its_stream_is_recorded_and_composed(
    stage: Stage, api: Api, room: str, tmp_path: Path, flags: str
) -> None:
    """By default FFmpeg is the DTLS server (``a=setup:passive``), with the flag the client."""
    await api.room(room, codecs=["video/H264", "audio/opus"])
    token = await api.token(room, CUSTOMER.identity, CUSTOMER.role)
    own, key = certificate(tmp_path, ec.SECP256R1())
    options = {"cert_file": str(own), "key_file": str(key), **({"whip_flags": flags} if flags else {})}
    process = await publisher(stage, room, token, options)
    assert process.stdout is not None
    if await process.stdout.readline() != b"connected\n":
        pytest.fail((await process.communicate())[1].decode())
    async with recorded(api, room) as results:
        await asyncio.sleep(SECONDS)
    assert process.stdin is not None
    process.stdin.close()
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, errors.decode()
    made = results[0]
    codes, beeps = made.codes(CUSTOMER), made.beeps(CUSTOMER)
    print(f"{len(codes)} pictures {codes[:1]} … {codes[-1:]} ms, beeps at {beeps}")
    assert len(codes) >= SECONDS * 5  # a busy machine encodes slowly
    assert len(beeps) >= SECONDS - 3
    assert made.shown["gaps"] == []


async def test_its_own_certificate_is_refused_by_name(
    stage: Stage, api: Api, room: str, tmp_path: Path
) -> None:
    """FFmpeg over GnuTLS makes itself a certificate on P-224, which OpenSSL 4 does not take in DTLS."""
    await api.room(room, codecs=["video/H264", "audio/opus"])
    token = await api.token(room, CUSTOMER.identity, CUSTOMER.role)
    process = await publisher(stage, room, token, {"whip_flags": "dtls_active"})
    output, errors = await process.communicate()
    assert process.returncode != 0
    assert b"connected" not in output
    assert "Input/output error" in errors.decode()
    codes: list[str] = []
    after, until = 0, time.monotonic() + 10
    while not codes and time.monotonic() < until:  # the muxer ends before its session is told of
        page = (await api.call("GET", f"/v1/events?after={after}&limit=1000"))["events"]
        codes = [e["data"]["code"] for e in page if e["type"] == "session.failed" and e["room"] == room]
        after = page[-1]["seq"] if page else after
        await asyncio.sleep(0 if page else 0.1)
    assert codes == ["dtls_wrong_curve"]
