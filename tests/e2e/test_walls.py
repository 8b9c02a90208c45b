"""Calls through firewalls: UDP shut, only TCP 443 open, IPv6; Chromium in another network namespace."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mediaserver import tls
from mediaserver.config import load
from recorder.manifest import parse_manifest
from tests.e2e import peers
from tests.e2e.api import Api
from tests.e2e.browser import CHROMIUM, chromium
from tests.e2e.conftest import LONG
from tests.e2e.stage import ROOT, Stage
from tests.e2e.test_namespace import ip
from tests.e2e.test_page import invite, opened, sees
from tests.media.pictures import AGENT, CUSTOMER
from tests.media.tracks import CameraTrack, MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

NEAR, FAR = "10.213.78.1", "10.213.78.2"
NEAR6, FAR6 = "fd00:213:78::1", "fd00:213:78::2"


@pytest.fixture
def beyond() -> Iterator[str]:
    """Make a namespace joined to this one by a veth pair, IPv4 and IPv6, and remove both afterwards."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 to make a network namespace")
    number = os.getpid() % 10000
    name, near, far = f"walls{number}", f"wn{number}", f"wf{number}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel gives no network namespace: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        ip("addr", "add", f"{NEAR}/30", "dev", near)
        ip("addr", "add", f"{NEAR6}/64", "dev", near, "nodad")
        ip("link", "set", near, "up")
        ip("-n", name, "addr", "add", f"{FAR}/30", "dev", far)
        ip("-n", name, "addr", "add", f"{FAR6}/64", "dev", far, "nodad")
        ip("-n", name, "link", "set", far, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "del", name)


def wall(namespace: str, *rules: str) -> None:
    """Let out of a namespace only what the rules say (nft(8)); raises CalledProcessError."""
    chain = ["type filter hook output priority 0", "policy drop", "oif lo accept", *rules]
    script = "table inet wall {\nchain out {\n" + "\n".join(chain) + "\n}\n}\n"
    subprocess.run(
        ["ip", "netns", "exec", namespace, "nft", "-f", "-"],
        input=script.encode(),
        check=True,
        capture_output=True,
        timeout=10,
    )


@contextmanager
def coturn(
    directory: Path, secret: str, address: str = NEAR, launcher: tuple[str, ...] = ()
) -> Iterator[None]:
    """Run Debian's coturn on ports 3478 and 443 of an address, with a certificate of its own; behind
    ``launcher`` it may be in another network.
    """
    program = shutil.which("turnserver")
    if program is None:
        pytest.skip("needs coturn (apt install coturn)")
    directory.mkdir()
    settings = load(None, {"SHUANGLU__DATA_DIR": str(directory)})
    made = tls.certificate(settings, (address,), datetime.now(UTC))
    config = directory / "turnserver.conf"
    config.touch(mode=0o600)
    config.write_text(
        f"listening-ip={address}\nrelay-ip={address}\nlistening-port=3478\ntls-listening-port=443\n"
        f"use-auth-secret\nstatic-auth-secret={secret}\nrealm=shuanglu.test\nno-cli\nno-dtls\nfingerprint\n"
        f"cert={made.cert}\npkey={made.key}\nlog-file=stdout\npidfile={directory}/pid\n"
        f"userdb={directory}/db\nmin-port=49152\nmax-port=49407\n"
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*launcher, program, "-c", str(config)], stdout=log, stderr=log, cwd=directory
        )
    try:
        deadline = time.monotonic() + 10
        knock = f"import socket; socket.create_connection(({address!r}, 443), 1)"
        while subprocess.run([*launcher, sys.executable, "-c", knock], capture_output=True).returncode:
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(10)


async def call(
    namespace: str,
    tmp_path: Path,
    devices: dict[str, tuple[Path, Path]],
    settings: dict[str, object],
    *,
    host: str = NEAR,
    only: str = "",
    rules: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Hold a recorded call between a customer here and an agent beyond the wall; returns what the agent saw.

    ``rules``: what gets through the wall besides the API; none: no wall.
    """
    own = {"http.host": "0.0.0.0", "tls.enabled": True, "media.advertised": [NEAR], **settings}
    with Stage(tmp_path / "data", own) as stage:
        if rules:
            wall(namespace, f"tcp dport {stage.port} accept", "meta l4proto icmpv6 accept", *rules)
        async with Api(stage.base, stage.key()) as api:
            room = "counter-walls"
            await api.room(room)
            customer = await api.token(room, CUSTOMER.identity, CUSTOMER.role)
            agent = await api.token(room, AGENT.identity, AGENT.role)
            near = await peers.publish(
                api, room, customer, [CameraTrack(CUSTOMER), MicrophoneTrack(CUSTOMER)]
            )
            await peers.connected(near)
            recording = await api.record(room, "WALLS-1", mode="single")
            words = [f"https://{host}:{stage.port}", room, agent, CUSTOMER.identity]
            process = await asyncio.create_subprocess_exec(
                *("ip", "netns", "exec", namespace, sys.executable, "-m", "tests.e2e.far"),
                *(*words, *map(str, devices[AGENT.identity]), *([only] if only else [])),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                out, errors = await asyncio.wait_for(process.communicate(), 90)
            finally:
                if process.returncode is None:
                    process.kill()
            await api.stop(recording["id"])
            manifest = await api.ask("GET", f"/v1/recordings/{recording['id']}/manifest")
            await near.close()
        log = stage.log_path.read_text()
    assert process.returncode == 0, errors.decode()[-3000:]
    told: dict[str, Any] = json.loads(out)
    print(json.dumps(told["pair"], indent=1))
    assert told["decoded"] >= 30
    assert told["sent"] >= 30
    parts: Any = parse_manifest(manifest.body).parts
    kept = {(track["seat"], track["kind"]) for part in parts for track in part["tracks"]}
    seats = (f"{CUSTOMER.role}#1", f"{AGENT.role}#1")
    assert kept == {(seat, kind) for seat in seats for kind in ("audio", "video")}
    assert "credential" not in log
    return told


async def test_a_call_by_ice_tcp_where_udp_is_shut(
    beyond: str, devices: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    told = await call(beyond, tmp_path, devices, {}, rules=("meta l4proto tcp accept",))
    assert told["pair"]["remote"]["protocol"] == "tcp"
    assert told["pair"]["local"]["tcpType"] == "active"


async def test_udp_is_preferred_where_both_are_open(
    beyond: str, devices: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    told = await call(beyond, tmp_path, devices, {})
    assert told["pair"]["remote"]["protocol"] == "udp"


async def test_a_call_over_ipv6(beyond: str, devices: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Inner, DMZ and public addresses of both families are told; only IPv6 gets through."""
    settings: dict[str, object] = {
        "media.bind": ["0.0.0.0", "::"],
        "media.advertised": ["192.0.2.7", NEAR, NEAR6],
    }
    told = await call(
        beyond, tmp_path, devices, settings, rules=("meta nfproto ipv6 meta l4proto udp accept",)
    )
    assert told["pair"]["remote"]["address"] == NEAR6
    assert told["pair"]["remote"]["protocol"] == "udp"


@pytest.mark.parametrize("way", ["udp", "tcp", "tls-443", *(["tls"] if LONG else [])])
async def test_a_call_by_turn(
    beyond: str, devices: dict[str, tuple[Path, Path]], tmp_path: Path, way: str
) -> None:
    """Through coturn over UDP, TCP and TLS with credentials of the Link header; then with only 443 open."""
    secret = secrets.token_urlsafe(24)
    (tmp_path / "turn.secret").write_text(secret)
    settings: dict[str, object] = {
        "turn.urls": [
            f"turn:{NEAR}:3478?transport=udp",
            f"turn:{NEAR}:3478?transport=tcp",
            f"turns:{NEAR}:443?transport=tcp",
        ],
        "turn.secret_file": str(tmp_path / "turn.secret"),
    }
    only = {"udp": "transport=udp", "tcp": "turn:10.213.78.1:3478?transport=tcp"}.get(way, "turns:")
    rules = ("tcp dport 443 accept",) if way == "tls-443" else ()
    with coturn(tmp_path / "coturn", secret):
        told = await call(beyond, tmp_path, devices, settings, only=only, rules=rules)
    assert told["pair"]["local"]["candidateType"] == "relay"
    assert told["pair"]["local"]["relayProtocol"] == way.removesuffix("-443")
    assert secret not in (tmp_path / "data.log").read_text()


async def test_a_changed_address_keeps_session_and_recording(
    beyond: str, devices: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """The phone's address changes in mid-call: the page restarts ICE, its session and its tracks stay."""
    program = tmp_path / "chromium-beyond"
    program.write_text(f'#!/bin/sh\nexec ip netns exec {beyond} {CHROMIUM} "$@"\n')
    program.chmod(0o755)
    settings = {"http.host": "0.0.0.0", "tls.enabled": True, "media.advertised": [NEAR]}
    far = "wf" + beyond.removeprefix("walls")
    near_end = "wn" + beyond.removeprefix("walls")
    camera, microphone = devices[CUSTOMER.identity]
    flags = (f"--use-file-for-fake-video-capture={camera}", f"--use-file-for-fake-audio-capture={microphone}")
    with Stage(tmp_path / "data", settings) as stage:
        ip("addr", "add", "10.213.79.1/30", "dev", near_end)
        async with Api(stage.base, stage.key()) as api, chromium(*flags, program=program) as browser:
            room = "counter-moved"
            await api.room(room)
            agent = await api.token(room, AGENT.identity, AGENT.role)
            near = await peers.publish(api, room, agent, [CameraTrack(AGENT), MicrophoneTrack(AGENT)])
            await peers.connected(near)
            address = (await invite(api, room, "customer", "王五")).replace("127.0.0.1", NEAR)
            async with opened(browser, address, ignore_https_errors=True) as page:
                mended: list[str] = []
                page.on("console", lambda said: mended.append(said.text))
                await page.get_by_test_id("join").click()
                await sees(page, AGENT.identity)
                recording = await api.record(room, "MOVED-1", mode="single")
                before = await api.participants(room)
                ip("-n", beyond, "addr", "add", "10.213.79.2/30", "dev", far)
                ip("-n", beyond, "route", "replace", "10.213.78.1/32", "via", "10.213.79.1", "dev", far)
                ip("-n", beyond, "addr", "del", f"{FAR}/30", "dev", far)
                began_s = asyncio.get_running_loop().time()
                await sees(page, AGENT.identity, pictures=200)
                print(f"200 pictures {asyncio.get_running_loop().time() - began_s:.1f} s after the change")
                print([text for text in mended if "link" in text])
                assert await api.participants(room) == before, "the same tracks"
                assert any("link mended" in text or "link recovered" in text for text in mended)
                await api.stop(recording["id"])
                manifest = await api.ask("GET", f"/v1/recordings/{recording['id']}/manifest")
            await near.close()
    parts: Any = parse_manifest(manifest.body).parts
    kept = [(track["seat"], track["kind"]) for part in parts for track in part["tracks"]]
    assert sorted(kept) == [(s, k) for s in ("agent#1", "customer#1") for k in ("audio", "video")]
