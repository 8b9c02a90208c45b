"""The page sends its camera in several sizes: which, and how soon the best is seen and recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from playwright.async_api import Page, ViewportSize

from compositor.timeline import Timeline
from recorder.records import Record
from tests.e2e.api import Api
from tests.e2e.browser import chromium
from tests.e2e.evidence import records_of
from tests.e2e.stage import Stage
from tests.e2e.test_page import invite, opened, sees
from tests.media.pictures import AGENT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

WIDTH = """() => document.querySelector('.tile[data-identity=agent] video')?.videoWidth ?? 0"""
TILE = """() => document.querySelector('.tile[data-identity=agent]').clientWidth"""
WINDOW: ViewportSize = {"width": 1280, "height": 720}
SMALLER: ViewportSize = {"width": 700, "height": 480}
SMALLEST: ViewportSize = {"width": 320, "height": 360}
PATIENCE_S = 40.0


async def becomes(viewer: Page, width: int) -> float:
    """Wait until the agent's picture is so wide; returns how long that took in s."""
    began = time.monotonic()
    while (now := await viewer.evaluate(WIDTH)) != width:
        assert time.monotonic() - began < PATIENCE_S, f"{now} wide"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


def recorded(records: Sequence[Record]) -> list[tuple[float, int]]:
    """Return the widths of VP8 keyframes in a journal as they change, each with its s since the first."""
    timeline = Timeline()
    for record in records:
        timeline.feed(record)
    timeline.end()
    found: list[tuple[float, int]] = []
    keys = [
        frame for frame in timeline.ready(1 << 62) if frame.keyframe and frame.data[3:6] == b"\x9d\x01\x2a"
    ]
    for frame in keys:
        width = int.from_bytes(frame.data[6:8], "little") & 0x3FFF
        if not found or found[-1][1] != width:
            found.append((round((frame.at_ns - keys[0].at_ns) / 1e9, 2), width))
    return found


@pytest.mark.parametrize("small", [False, True])
async def test_the_camera_goes_out_in_the_sizes_it_bears(
    stage: Stage, api: Api, room: str, devices: dict[str, tuple[Path, Path]], small: bool
) -> None:
    """Chromium leaves out the largest of too many: a small camera must not lose half of its picture."""
    flags = [f"--use-file-for-fake-video-capture={devices[AGENT.identity][0]}"] if small else []
    best = 640 if small else 1280
    async with (
        chromium(*flags) as browser,
        opened(browser, await invite(api, room, "agent", "Li")) as agent,
        opened(browser, await invite(api, room, "customer", "Wang")) as customer,
    ):
        await customer.get_by_test_id("join").click()
        await agent.get_by_test_id("join").click()
        while not any(one["identity"] == "agent" and one["tracks"] for one in await api.participants(room)):
            await asyncio.sleep(0.05)
        recording = await api.record(room, f"LAYERS-{room}", "single")
        shown_s = await becomes(customer, best)
        await sees(customer, "agent")
        await asyncio.sleep(6)
        await api.stop(recording["id"])
        found = recorded(await records_of(stage, recording["id"]))
        print(f"camera of {best}: shown after {shown_s:.2f} s; recorded (s, width): {found}")
        assert found[-1][1] == best
        assert await customer.evaluate(WIDTH) == best

        if not small:  # he who shows it small is sent less of it
            for size, width in ((SMALLER, 640), (SMALLEST, 320), (WINDOW, best)):
                await customer.set_viewport_size(size)
                took_s = await becomes(customer, width)
                print(f"{size}: tile {await customer.evaluate(TILE)} wide, {width} after {took_s:.2f} s")

        # The camera off and on again: another track on the same layers.
        await agent.get_by_test_id("cam").click()
        await asyncio.sleep(1)
        await agent.get_by_test_id("cam").click()
        await sees(customer, "agent")
        print(f"camera on again: the best after {await becomes(customer, best):.2f} s")

    events = (await api.call("GET", "/v1/events?limit=1000"))["events"]
    begun = [one for one in events if one["type"] == "track.started" and one["room"] == room]
    layers = [one["data"]["layers"] for one in begun if "layers" in one["data"]]
    assert [[layer["rid"] for layer in one] for one in layers[:1]] == [["q", "h", "f"]]
