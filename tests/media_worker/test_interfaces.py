"""A worker on several addresses, inner network and DMZ, IPv4 and IPv6: each client comes by its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mediaserver.settings import Media
from tests.e2e.stage import ROOT
from tests.media_worker.rig import Worker, worker

NETWORKS = {
    "inner": ("10.213.81.1", "10.213.81.2", 30),
    "dmz": ("10.213.82.1", "10.213.82.2", 30),
    "six": ("fd00:213:83::1", "fd00:213:83::2", 64),
}
"""Name → our address there, the client's, the prefix."""


def ip(*words: str) -> None:
    """Run ip(8); raises CalledProcessError."""
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture
def networks() -> Iterator[dict[str, str]]:
    """Make a namespace for each network, joined to this one by a veth pair; returns their names."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 to make network namespaces")
    with ExitStack() as stack:
        made = {}
        for name, (ours, theirs, prefix) in NETWORKS.items():
            mark = f"{name}{os.getpid() % 10000}"
            try:
                ip("netns", "add", mark)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"this kernel gives no network namespace: {error.stderr.decode().strip()}")
            stack.callback(ip, "netns", "del", mark)
            ip("link", "add", f"n{mark}", "type", "veth", "peer", "name", "far", "netns", mark)
            quiet = ["nodad"] if ":" in ours else []
            ip("addr", "add", f"{ours}/{prefix}", "dev", f"n{mark}", *quiet)
            ip("link", "set", f"n{mark}", "up")
            ip("-n", mark, "addr", "add", f"{theirs}/{prefix}", "dev", "far", *quiet)
            ip("-n", mark, "link", "set", "far", "up")
            made[name] = mark
        yield made


async def publish_from(namespace: str, server: Worker, identity: str) -> dict[str, Any]:
    """Publish from a network until the server receives; returns the addresses of the path."""
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", namespace, sys.executable, "-m", "tests.media_worker.far_peer"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(40):
            offer = json.loads(await process.stdout.readline())["offer"]
            reply = await server.call("whip", room="far", identity=identity, sdp=offer)
            told = {line.split()[4] for line in reply["sdp"].splitlines() if line.startswith("a=candidate")}
            assert told == {ours for ours, _, _ in NETWORKS.values()}
            process.stdin.write(json.dumps({"answer": reply["sdp"]}).encode() + b"\n")
            path: dict[str, Any] = json.loads(await process.stdout.readline())
            before = (await server.call("stats"))["bytes_received"]
            while (await server.call("stats"))["bytes_received"] < before + 2_000:
                await asyncio.sleep(0.1)
            process.stdin.close()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return path


async def test_each_client_comes_by_the_address_it_reaches(networks: dict[str, str], tmp_path: Path) -> None:
    # The inner network by its interface, the others by address, as media.bind may have them.
    bind = [f"n{networks['inner']}", *(ours for name, (ours, _, _) in NETWORKS.items() if name != "inner")]
    addresses = Media(bind=tuple(bind)).bind
    async with worker(tmp_path, bind=addresses) as running:
        await running.call("room.open", room="far")
        ports = {int(place.rpartition(":")[2]) for place in (await running.call("hello"))["udp"]}
        for name, namespace in networks.items():
            path = await publish_from(namespace, running, name)
            ours, theirs, _ = NETWORKS[name]
            assert (path["remote"], path["local"]) == (ours, theirs)
        (port,) = ports
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", port))  # raises if the worker listened on more than it was told
