"""All that changes during a call between real browsers, and what the composite makes of it.

A camera goes off and on, a screen is shared, a phone is rotated, bandwidth falls, a page is reloaded, a third
party comes late. The frames around every change are kept as a contact sheet, to be looked at.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from tests.e2e.api import Api
from tests.e2e.browser import chromium
from tests.e2e.contact_sheet import draw_sheet
from tests.e2e.stage import Stage
from tests.e2e.test_content import when
from tests.e2e.test_page import invite, opened, sees
from tests.media.film import Film, read_film

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

PHONE = """
// A phone's camera: a white picture with an arrow that points up, however the phone is held.
const canvas = document.createElement('canvas');
[canvas.width, canvas.height] = [360, 640];
const draw = () => {
    const pen = canvas.getContext('2d'), {width, height} = canvas;
    pen.fillStyle = 'white';
    pen.fillRect(0, 0, width, height);
    pen.fillStyle = 'black';
    pen.font = '120px sans-serif';
    pen.fillText('⬆', width / 2 - 60, height / 2);
    pen.font = '32px monospace';
    pen.fillText(`${width}x${height}`, width / 2 - 70, height / 2 + 60);
    pen.fillRect((performance.now() / 10) % width, height - 40, 30, 20);
};
setInterval(draw, 66);
window.turnPhone = () => { [canvas.width, canvas.height] = [canvas.height, canvas.width]; draw(); };
const devices = navigator.mediaDevices, original = devices.getUserMedia.bind(devices);
devices.getUserMedia = async ({video, audio}) => {
    const stream = audio ? await original({audio}) : new MediaStream();
    if (video) { draw(); stream.addTrack(canvas.captureStream(15).getVideoTracks()[0]); }
    return stream;
};
"""
CONNECTIONS = """
window.connections = window === top ? [] : top.connections;  // the page makes them in a frame (roaming.js)
window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...given) { super(...given); window.connections.push(this); }
};
"""
SENT_WIDTH = """async () => {
    const widths = [];
    for (const connection of window.connections)
        for (const {type, frameWidth, framesPerSecond} of (await connection.getStats()).values())
            if (type === 'outbound-rtp' && framesPerSecond > 0) widths.push(frameWidth);
    return Math.max(0, ...widths);
}"""
LIMIT = """async (bits) => {
    for (const connection of window.connections.filter((one) => one.connectionState === 'connected'))
        for (const sender of connection.getSenders().filter((one) => one.track?.kind === 'video')) {
            const wanted = sender.getParameters();
            for (const encoding of wanted.encodings)
                bits ? encoding.maxBitrate = bits : delete encoding.maxBitrate;
            await sender.setParameters(wanted);
        }
}"""
LARGE = [0, 0, 960, 720]
"""The large place of the layout screen_main."""


@dataclass
class Call:
    """What was done, and what came out."""

    film: Film
    recorded_s: float
    """From arming until the stop, by the recording."""
    shown: list[dict[str, Any]]
    """The timeline's list of what each place showed since when."""
    moments: dict[str, float] = field(default_factory=dict)
    """What was done → s in the file."""
    widths: dict[str, int] = field(default_factory=dict)
    """Width of the agent's picture as sent, before and during scarce bandwidth."""

    def stretches(self, seat: str, source: str) -> list[tuple[float, str]]:
        """Return (s, what is shown) of a seat's picture wherever it has a place."""
        return [
            (change["at_ms"] / 1000, change["shown"])
            for change in self.shown
            if (change["seat"], change["source"]) == (seat, source)
        ]

    def luma_at(self, at_s: float, x: int, y: int) -> float:
        """Return the brightness around a pixel of the frame shown at a time."""
        found = 0.0
        for start_s, luma in self.film.pictures():
            if start_s > at_s:
                break
            found = float(luma[y - 8 : y + 8, x - 8 : x + 8].mean())
        return found


async def sent_width(page: Page, *, below: int = 1 << 16) -> int:
    """Wait until the page sends pictures of a width under ``below``; return it."""
    deadline = time.monotonic() + 40.0
    while True:
        width = int(await page.evaluate(SENT_WIDTH))
        if 0 < width < below:
            return width
        assert time.monotonic() < deadline, f"the browser sends {width} pixels"
        await asyncio.sleep(0.2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def call(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Call]:
    """Make the call once; the film and its contact sheet are kept as long as pytest keeps things."""
    room, moments, widths = "counter-changes", dict[str, float](), dict[str, int]()
    async with (
        Api(stage.base, stage.key()) as api,
        chromium() as browser,
        opened(browser, await invite(api, room, "agent", "李坐席"), before=CONNECTIONS) as agent,
        opened(browser, await invite(api, room, "customer", "王五"), before=PHONE) as customer,
    ):
        for page in (agent, customer):
            await page.get_by_test_id("join").click()
        await sees(agent, "customer")
        await sees(customer, "agent")
        template = {"layout": {"name": "screen_main"}, "static_fps": None}
        recording = await api.record(room, "CHANGES-1", template=template)
        armed_s = when(recording["armed_at"]).timestamp()

        def mark(name: str) -> None:
            moments[name] = time.time() - armed_s

        await asyncio.sleep(2.5)
        mark("camera off")
        await customer.get_by_test_id("cam").click()
        await asyncio.sleep(2.5)
        mark("camera on")
        await customer.get_by_test_id("cam").click()
        await sees(agent, "customer")
        await asyncio.sleep(2.5)
        mark("share begins")
        await agent.get_by_test_id("screen").click()
        await customer.wait_for_function(
            "() => document.querySelector('[data-testid=tile][data-source=screen] video')?.videoWidth > 0"
        )
        await asyncio.sleep(2.5)
        mark("share ends")
        await agent.get_by_test_id("screen").click()
        await expect(customer.locator("[data-testid=tile][data-source=screen]")).to_have_count(0)
        await asyncio.sleep(2.5)
        mark("phone turned")
        await customer.evaluate("turnPhone()")
        await asyncio.sleep(2.5)
        widths["before"] = await sent_width(agent)
        await agent.evaluate(LIMIT, 40_000)
        widths["scarce"] = await sent_width(agent, below=widths["before"])
        mark("bandwidth scarce")
        await asyncio.sleep(2.5)
        await agent.evaluate(LIMIT, 0)
        mark("bandwidth back")
        await asyncio.sleep(2.5)
        mark("page reloaded")
        await customer.reload()
        await customer.get_by_test_id("join").click()
        await sees(agent, "customer")
        mark("back again")
        await asyncio.sleep(2.5)
        mark("expert comes")
        async with opened(browser, await invite(api, room, "expert", "赵专家")) as expert:
            await expert.get_by_test_id("join").click()
            await sees(agent, "expert")
            await asyncio.sleep(3.0)
            mark("stop asked")
            stopped = await api.stop(recording["id"])
            mark("end")
        await api.composed(recording["id"], timeout_s=120)
        answer = await api.file(recording["id"], "composite.mp4")
        timeline = await api.call("GET", f"/v1/recordings/{recording['id']}/timeline")
    kept = tmp_path_factory.mktemp("changes")
    (kept / "composite.mp4").write_bytes(answer.body)
    shown = timeline["composite"]["shown"]
    titles = {f"{name} (done)": at_s for name, at_s in moments.items()}
    for change in shown[2:]:
        title = f"{change['seat'] or 'nobody'} {change['source']}: {change['shown']} at {change['at_ms']} ms"
        titles[title] = change["at_ms"] / 1000
    rows = dict(sorted(titles.items(), key=lambda row: row[1]))
    draw_sheet(answer.body, rows, kept / "changes.jpg")
    print(f"look at {kept / 'changes.jpg'}")
    if shots := os.environ.get("SHUANGLU_SHOTS"):
        shutil.copy(kept / "changes.jpg", Path(shots) / "changes.jpg")
    yield Call(read_film(answer.body), stopped["duration_ms"] / 1000, shown, moments, widths)


def states(stretches: list[tuple[float, str]], begin: float, end: float) -> list[str]:
    """Return what was shown between two times, each once as it followed."""
    before = [what for at_s, what in stretches if at_s <= begin]
    found = [*before[-1:], *(what for at_s, what in stretches if begin < at_s < end)]
    return [what for index, what in enumerate(found) if index == 0 or found[index - 1] != what]


async def test_every_frame_is_there(call: Call) -> None:
    times = call.film.frame_times_s
    assert max(late - early for early, late in itertools.pairwise(times)) < 0.0401
    assert call.moments["stop asked"] - 0.01 <= call.recorded_s <= call.moments["end"] + 0.01
    assert abs(call.film.duration_s - call.recorded_s) < 0.1


async def test_a_camera_that_goes_off_is_a_card_until_it_is_on(call: Call) -> None:
    at = call.moments
    customer = call.stretches("customer#1", "camera")
    found = states(customer, at["camera off"] - 0.5, at["share begins"])
    assert found[0] == "picture"
    assert found[-1] == "picture"
    assert set(found[1:-1]) & {"muted", "ended", "left"}
    assert "lost" not in found


async def test_a_shared_screen_comes_and_goes(call: Call) -> None:
    at = call.moments
    screen = call.stretches("agent#1", "screen")
    begins = [at_s for at_s, what in screen if what == "picture"]
    assert begins
    assert at["share begins"] <= begins[0] <= at["share begins"] + 2.5
    large = [change for change in call.shown if change["box"] == LARGE]
    shared = states([(c["at_ms"] / 1000, c["source"]) for c in large], at["share begins"], at["share ends"])
    after = states([(c["at_ms"] / 1000, c["source"]) for c in large], at["share ends"] + 1.0, at["end"])
    assert "screen" in shared
    assert "screen" not in after


async def test_a_turned_phone_stands_upright(call: Call) -> None:
    """Large place, 960 x 720: a portrait picture leaves its sides dark, a landscape one fills its width."""
    turned = call.moments["phone turned"]
    side, middle, arrow = (60, 420), (480, 500), (480, 300)
    assert call.luma_at(turned - 0.5, *side) < 60
    assert call.luma_at(turned + 2.0, *side) > 200
    for at_s in (turned - 0.5, turned + 2.0):
        assert call.luma_at(at_s, *middle) > 200
    # The arrow is narrow at its tip and has its shaft below: black under the middle of the large place.
    assert call.luma_at(turned + 2.0, *arrow) < 60


async def test_a_smaller_picture_fills_the_same_place(call: Call) -> None:
    print(f"sent {call.widths}")
    assert call.widths["scarce"] < call.widths["before"]
    begin, end = call.moments["bandwidth scarce"], call.moments["page reloaded"]
    agent = call.stretches("agent#1", "camera")
    assert set(states(agent, begin, end)) == {"picture"}
    boxes = [
        change["box"] for change in call.shown if change["seat"] == "agent#1" and change["source"] == "camera"
    ]
    assert boxes[-1][2] >= 320


async def test_a_reload_comes_back_to_its_place(call: Call) -> None:
    at = call.moments
    customer = call.stretches("customer#1", "camera")
    found = states(customer, at["page reloaded"] - 0.5, at["back again"] + 1.0)
    assert found[0] == "picture"
    assert found[-1] == "picture"
    large = [change for change in call.shown if change["box"] == LARGE]
    assert large[-1]["seat"] == "customer#1"


async def test_a_late_party_gets_a_place(call: Call) -> None:
    at = call.moments
    expert = call.stretches("expert#1", "camera")
    begins = [at_s for at_s, what in expert if what == "picture"]
    assert begins
    assert at["expert comes"] < begins[0] < at["end"] - 1.5
