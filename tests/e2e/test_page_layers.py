"""The page sends its camera in several sizes: which, and how soon the best is seen and recorded."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from tests.e2e.api import Api
from tests.e2e.browser import chromium
from tests.e2e.test_page import invite, opened, sees
from tests.media.pictures import AGENT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

KEEP = """{
    const Plain = RTCPeerConnection;
    window.connections = [];
    window.RTCPeerConnection = class extends Plain {
        constructor(...given) {
            super(...given);
            window.connections.push(this);
        }
    };
}"""
SENT = """async () => {
    const sent = {};
    for (const connection of window.connections)
        for (const report of (await connection.getStats()).values())
            if (report.type === "outbound-rtp" && report.kind === "video" && report.frameWidth)
                sent[report.rid] = report.frameWidth;
    return sent;
}"""
WIDTH = """() => document.querySelector('.tile[data-identity=agent] video')?.videoWidth ?? 0"""
PATIENCE_S = 40.0


async def camera(api: Api, room: str) -> dict[str, Any]:
    """Return the agent's camera as the API lists it."""
    people = await api.participants(room)
    tracks = [track for one in people if one["identity"] == "agent" for track in one["tracks"]]
    return next((track for track in tracks if track["source"] == "camera"), {})


async def follow(api: Api, room: str, viewer: Page, best: int, width: int) -> dict[str, float]:
    """Wait until the best layer is recorded and seen; returns what happened after how many s."""
    began = time.monotonic()
    seen: dict[str, float] = {}
    while {f"recorded {best}", f"shown {width}"} - seen.keys():
        passed = round(time.monotonic() - began, 2)
        listed = await camera(api, room)
        seen.setdefault(f"recorded {listed.get('recorded_layer')}", passed)
        seen.setdefault(f"shown {await viewer.evaluate(WIDTH)}", passed)
        assert passed < PATIENCE_S, (seen, listed)
        await asyncio.sleep(0.1)
    return seen


@pytest.mark.parametrize("small", [False, True])
async def test_the_camera_goes_out_in_the_sizes_it_bears(
    api: Api, room: str, devices: dict[str, tuple[Path, Path]], small: bool
) -> None:
    """Chromium leaves out the largest of too many: a small camera must not lose half of its picture."""
    flags = [f"--use-file-for-fake-video-capture={devices[AGENT.identity][0]}"] if small else []
    sizes = {"q": 320, "h": 640} if small else {"q": 320, "h": 640, "f": 1280}
    async with (
        chromium(*flags) as browser,
        opened(browser, await invite(api, room, "agent", "Li"), before=KEEP) as agent,
        opened(browser, await invite(api, room, "customer", "Wang")) as customer,
    ):
        await customer.get_by_test_id("join").click()
        await agent.get_by_test_id("join").click()
        seen = await follow(api, room, customer, len(sizes) - 1, 640 if small else 1280)
        print(f"{'640' if small else '1280'} wide: {seen}")
        await sees(customer, "agent")
        assert await agent.evaluate(SENT) == sizes
        listed = await camera(api, room)
        assert [layer["rid"] for layer in listed["layers"]] == ["q", "h", "f"]
        assert [layer["alive"] for layer in listed["layers"]] == [True, True, not small]

        # The camera off and on again: another track on the same layers.
        await agent.get_by_test_id("cam").click()
        await asyncio.sleep(1)
        await agent.get_by_test_id("cam").click()
        await sees(customer, "agent")
        print(f"camera on again: {await follow(api, room, customer, len(sizes) - 1, 640 if small else 1280)}")
