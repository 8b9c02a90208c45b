"""The page in a real browser: two people meet, record, play and verify; and it says what goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.e2e.api import Api
from tests.e2e.browser import Scripted, chromium
from tests.e2e.stage import Stage, kill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PATIENCE_MS = 30_000
"""The machine may be busy; what is timed is measured apart."""
expect.set_options(timeout=PATIENCE_MS)

NEW_PICTURES = """async ([identity, count]) => {
    let video = null, last = 0;
    for (let seen = 0; seen < count; await new Promise(done => setTimeout(done, 50))) {
        const tile = [...document.querySelectorAll('.tile')].find(
            tile => tile.dataset.identity === identity && tile.dataset.source === 'camera');
        const shown = tile?.querySelector('video') ?? null;
        const frames = shown?.mozPaintedFrames ?? shown?.getVideoPlaybackQuality().totalVideoFrames ?? 0;
        if (shown === video && frames > last) seen += frames - last;  // a new connection counts from 0 again
        [video, last] = [shown, frames];
    }
}"""


@asynccontextmanager
async def opened(browser: Browser, url: str, *, before: str = "", **context: Any) -> AsyncIterator[Page]:
    """Open an address as a person of their own; an error in a script fails the test.

    ``before``: a script that runs before the page's own.
    """
    made = await browser.new_context(locale="en-GB", **context)
    made.set_default_timeout(PATIENCE_MS)
    if before:
        await made.add_init_script(before)
    page = await made.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(url)
    yield page
    assert not errors
    await made.close()


async def invite(api: Api, room: str, role: str, name: str) -> str:
    """Return an invitation's address on loopback."""
    made = await api.call("POST", "/v1/invites", {"room": room, "role": role, "name": name, "identity": role})
    return f"{api.base}/#code={made['code']}"


async def sees(page: Page | Scripted, identity: str, pictures: int = 5) -> None:
    """Wait until a participant's tile has shown some new pictures."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        await page.evaluate(NEW_PICTURES, [identity, pictures])


async def shows(tile: Locator, *, picture: str, sound: str) -> None:
    await expect(tile).to_have_attribute("data-picture", picture)
    await expect(tile).to_have_attribute("data-sound", sound)


def tile(page: Page, identity: str, source: str = "camera") -> Locator:
    return page.locator(f'[data-testid=tile][data-identity="{identity}"][data-source={source}]')


async def test_two_people_meet_record_play_and_verify(api: Api, room: str) -> None:
    async with (
        chromium() as browser,
        opened(browser, await invite(api, room, "agent", "李坐席")) as agent,
        opened(
            browser,
            await invite(api, room, "customer", "王五"),
            viewport={"width": 390, "height": 780},
            is_mobile=True,
            has_touch=True,
        ) as customer,
    ):
        for page in (agent, customer):
            await expect(page.get_by_test_id("join")).to_be_visible()
            assert "code" not in page.url, "a one-time code does not stay in the address"
            await page.get_by_test_id("join").click()
        await sees(agent, "customer")
        await sees(customer, "agent")
        await expect(tile(agent, "customer")).to_contain_text("王五")
        await expect(tile(agent, "customer")).to_have_attribute("data-state", "live")

        # What is not for customers is not there.
        await expect(customer.get_by_test_id("record")).to_be_hidden()
        await agent.get_by_test_id("record").click()
        await agent.get_by_test_id("business-no").fill(f"PAGE-{room}")
        await agent.get_by_test_id("start").click()
        for page in (agent, customer):
            await expect(page.get_by_test_id("recording-sign")).to_contain_text("Recording")

        # Muting is told to the others.
        await customer.get_by_test_id("mic").click()
        await customer.get_by_test_id("cam").click()
        await shows(tile(agent, "customer"), picture="off", sound="off")
        await customer.get_by_test_id("mic").click()
        await customer.get_by_test_id("cam").click()
        await shows(tile(agent, "customer"), picture="on", sound="on")
        await sees(agent, "customer")

        # A shared screen comes and goes as a tile of its own.
        await agent.get_by_test_id("screen").click()
        await expect(tile(customer, "agent", "screen")).to_be_visible()
        await customer.wait_for_function(
            "() => document.querySelector('[data-testid=tile][data-source=screen] video')?.videoWidth > 0"
        )
        await agent.get_by_test_id("screen").click()
        await expect(tile(customer, "agent", "screen")).to_have_count(0)

        await agent.get_by_test_id("record").click()
        await expect(customer.get_by_test_id("recording-sign")).to_be_hidden()
        await agent.get_by_test_id("show-recordings").click()
        row = agent.get_by_test_id("recording").filter(has_text=f"PAGE-{room}")
        await expect(row).to_have_attribute("data-composing", "done", timeout=90_000)
        await row.get_by_role("button").click()
        video = agent.get_by_test_id("video")
        await agent.wait_for_function("() => video.readyState >= 2 && video.videoWidth === 1280")
        seconds = await video.evaluate("video => video.duration")
        assert seconds > 2
        await video.evaluate(
            "video => { video.muted = true; video.currentTime = video.duration / 2; return video.play(); }"
        )
        await agent.wait_for_function("from => video.currentTime > from + 0.3", arg=seconds / 2)
        await agent.get_by_test_id("verify").click()
        await expect(agent.get_by_test_id("verdict")).to_have_attribute("data-verdict", "ok")
        if shots := os.environ.get("SHUANGLU_SHOTS"):
            await agent.screenshot(path=Path(shots) / "player.png")

        # A reload finds its way back by the cookie; the others see somebody leave and come.
        await agent.reload()
        await agent.get_by_test_id("join").click()
        await sees(agent, "customer")
        await agent.get_by_test_id("language").click()
        await expect(agent.get_by_test_id("leave")).to_contain_text("离开")
        await agent.get_by_test_id("leave").click()
        await expect(tile(customer, "agent")).to_have_count(0)


async def test_it_rejoins_after_a_workers_death_and_says_when_the_server_is_gone(tmp_path: Path) -> None:
    with Stage(tmp_path / "data") as stage:
        async with (
            Api(stage.base, stage.key()) as api,
            chromium() as browser,
            opened(browser, await invite(api, "r", "agent", "A")) as agent,
            opened(browser, await invite(api, "r", "customer", "C")) as customer,
        ):
            for page in (agent, customer):
                await page.get_by_test_id("join").click()
            await sees(agent, "customer")
            await sees(customer, "agent")

            before = await api.tracks("r")
            [control] = stage.pids("control")
            os.kill(control, signal.SIGSTOP)  # or the new worker is there before the page has told of it
            kill(stage.pids("worker")[0])
            await expect(tile(agent, "customer")).to_have_attribute("data-state", "reconnecting")
            os.kill(control, signal.SIGCONT)
            async with asyncio.timeout(PATIENCE_MS / 1000):
                while len(now := await api.tracks("r")) < len(before) or now & before:
                    await asyncio.sleep(0.1)
            await sees(agent, "customer")
            await sees(customer, "agent")
            await expect(agent.get_by_test_id("connection")).to_have_text("Connected")

            kill(stage.pids("control")[0])
            gone = agent.locator("[data-testid=banner][data-code=server_gone]")
            await expect(gone).to_be_visible()
            await sees(agent, "customer")  # the call goes on without it
            stage.wait_gone("control")
            stage.restart()
            await expect(gone).to_be_hidden()
            await sees(customer, "agent")


async def test_it_says_what_is_wrong(api: Api, room: str) -> None:
    def banner(page: Page, code: str) -> Locator:
        return page.locator(f"[data-testid=banner][data-code={code}]")

    async with chromium() as browser:
        async with opened(browser, f"{api.base}/#code=AAAA-AAAA-AAAA") as stranger:
            await expect(banner(stranger, "code_invalid")).to_contain_text("new invitation")
            await expect(stranger.get_by_test_id("code")).to_be_visible()

        async with opened(browser, f"{api.base}/") as typing:
            address = await invite(api, room, "customer", "C")
            await typing.get_by_test_id("code").fill(address.split("code=")[1].lower())
            await typing.get_by_test_id("sign-in").click()
            await typing.get_by_test_id("join").click()
            await expect(typing.get_by_test_id("own-tile")).to_have_attribute("data-state", "live")
            await api.call("DELETE", f"/v1/rooms/{room}/participants/customer")
            await expect(banner(typing, "token_revoked")).to_be_visible()

        # A machine without a camera, then one whose person says no.
        for error, code in (("NotFoundError", "no_camera"), ("NotAllowedError", "camera_denied")):
            context = await browser.new_context(locale="en-GB")
            await context.add_init_script(
                "navigator.mediaDevices.getUserMedia = () =>"
                f" Promise.reject(new DOMException('none here', '{error}'))"
            )
            page = await context.new_page()
            await page.goto(await invite(api, room, "customer", "C"))
            await expect(banner(page, code)).to_be_visible()
            await page.get_by_test_id("join").click()
            await shows(page.get_by_test_id("own-tile"), picture="off", sound="off")
            await context.close()


async def test_it_names_both_sides_codecs_when_they_share_none(api: Api, room: str) -> None:
    await api.room(room, codecs=["video/VP9", "audio/opus"])
    async with chromium() as browser:
        context = await browser.new_context(locale="en-GB")
        # A browser without VP9, as some builds of Safari are.
        await context.add_init_script(
            "const {send} = WebSocket.prototype; WebSocket.prototype.send = function (text) {"
            " return send.call(this, text.replaceAll('VP9/90000', 'XVP9/90000')); };"
        )
        page = await context.new_page()
        await page.goto(await invite(api, room, "customer", "C"))
        await page.get_by_test_id("join").click()
        said = page.locator("[data-testid=banner][data-code=codec_mismatch]")
        await expect(said).to_contain_text("VP9")
        await expect(said).to_contain_text("VP8")
        await context.close()
