"""Joining over HTTPS from another network namespace, as a phone in the same network would."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.e2e import peers
from tests.e2e.api import Api
from tests.e2e.browser import CHROMIUM, chromium
from tests.e2e.stage import ROOT, Stage
from tests.e2e.test_page import invite, opened, sees
from tests.media.pictures import AGENT, CUSTOMER
from tests.media.tracks import CameraTrack, MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

NEAR, FAR = "10.213.77.1", "10.213.77.2"


def ip(*words: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture
def namespace() -> Iterator[str]:
    """Make a namespace joined to this one by a veth pair, and remove both afterwards."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 to make a network namespace")
    name, near, far = f"stage{os.getpid() % 10000}", f"sn{os.getpid() % 10000}", f"sf{os.getpid() % 10000}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel gives no network namespace: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        ip("addr", "add", f"{NEAR}/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "addr", "add", f"{FAR}/30", "dev", far)
        ip("-n", name, "link", "set", far, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "del", name)


async def test_joining_over_https_from_another_network(
    namespace: str, devices: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    settings = {"http.host": "0.0.0.0", "tls.enabled": True}
    with Stage(tmp_path / "data", settings) as stage:
        async with Api(stage.base, stage.key()) as api:
            room = "counter-far"
            await api.room(room)
            customer = await api.token(room, CUSTOMER.identity, CUSTOMER.role)
            agent = await api.token(room, AGENT.identity, AGENT.role)
            near = await peers.publish(
                api, room, customer, [CameraTrack(CUSTOMER), MicrophoneTrack(CUSTOMER)]
            )
            await peers.connected(near)
            command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "tests.e2e.far"]
            base = f"https://{NEAR}:{stage.port}"
            words = [base, room, agent, CUSTOMER.identity, *map(str, devices[AGENT.identity])]
            process = await asyncio.create_subprocess_exec(
                *command, *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            await asyncio.sleep(0)
            out, errors = await asyncio.wait_for(process.communicate(), 90)
            await near.close()
    assert process.returncode == 0, errors.decode()[-3000:]
    told = json.loads(out)
    print(told)
    assert told["secure"], "a browser gives the camera to secure pages only"
    assert told["decoded"] >= 30
    assert told["sent"] >= 30
    assert told["first_s"] < 3


async def test_the_page_comes_back_after_a_network_blip(namespace: str, tmp_path: Path) -> None:
    """The cable is out for 5 s, longer than the page waits for silence to end, then it is in again."""
    beyond = tmp_path / "chromium-beyond"
    beyond.write_text(f'#!/bin/sh\nexec ip netns exec {namespace} {CHROMIUM} "$@"\n')
    beyond.chmod(0o755)
    settings = {"http.host": "0.0.0.0", "tls.enabled": True}
    with Stage(tmp_path / "data", settings) as stage:
        async with Api(stage.base, stage.key()) as api, chromium(program=beyond) as browser:
            room = "counter-blip"
            await api.room(room)
            agent = await api.token(room, AGENT.identity, AGENT.role)
            near = await peers.publish(api, room, agent, [CameraTrack(AGENT), MicrophoneTrack(AGENT)])
            await peers.connected(near)
            address = (await invite(api, room, "customer", "王五")).replace("127.0.0.1", NEAR)
            async with opened(browser, address, ignore_https_errors=True) as page:
                await page.get_by_test_id("join").click()
                await sees(page, AGENT.identity)
                connection = page.get_by_test_id("connection")
                await expect(connection).to_have_text("Connected")
                ip("-n", namespace, "link", "set", "sf" + namespace.removeprefix("stage"), "down")
                await asyncio.sleep(5)
                await expect(connection).to_have_text("Reconnecting")
                ip("-n", namespace, "link", "set", "sf" + namespace.removeprefix("stage"), "up")
                began_s = asyncio.get_running_loop().time()
                await sees(page, AGENT.identity)
                await expect(connection).to_have_text("Connected")
                print(f"pictures again {asyncio.get_running_loop().time() - began_s:.1f} s after the cable")
                watching = await peers.subscribe(api, room, "customer", agent)
                await watching.first_picture()
                people = {person["identity"] for person in await api.participants(room)}
                assert people == {AGENT.identity, "customer"}, "nobody is there twice"
            await near.close()
