"""Real Chromium as a participant: fake devices that play our files, and a small WHIP/WHEP page."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from playwright.async_api import Browser, Route, async_playwright

from tests.e2e.stage import ROOT
from tests.media.lossy import LossyLink
from tests.media.sounds import Sound

CHROMIUM = Path("/usr/bin/chromium")
CLIENT = Path(__file__).with_name("client.html")
PATIENCE = ROOT / "mediaserver" / "page" / "patience.js"
CLIMB = ROOT / "mediaserver" / "page" / "climb.js"
FLAGS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    # A test page is in no foreground; a real participant's is.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
)


def module(path: Path) -> str:
    """Return a module of the server's page as a plain script that leaves behind only its functions."""
    return "{\n" + path.read_text(encoding="utf-8").replace("export function", "function") + "}\n"


def client_page() -> str:
    """Return the client page with the scripts it shares with the server's own page."""
    shared = "".join(f"<script>{module(path)}</script>\n" for path in (PATIENCE, CLIMB))
    return CLIENT.read_text(encoding="utf-8").replace("<script>", f"{shared}<script>", 1)


class Scripted(Protocol):
    """A page that runs scripts: playwright's, or ``tests.e2e.firefox``'s."""

    async def evaluate(self, expression: str, arg: Any = None) -> Any:
        """Run a function or an expression in the page and return its result as JSON has it."""


@dataclass(eq=False)
class Participant:
    """A browser that takes part in a room."""

    page: Scripted

    async def publish(
        self,
        room: str,
        token: str,
        *,
        codec: str = "video/VP8",
        width: int = 640,
        height: int = 360,
        fps: int = 15,
        audio: bool = True,
        hint: str = "detail",
    ) -> dict[str, Any]:
        """Publish camera and microphone; returns ``{location, etag}``. ``hint``: detail keeps the size of the
        picture when the rate is low; nothing is what the server's page says of cameras.
        """
        options = {
            "room": room,
            "token": token,
            "codec": codec,
            "width": width,
            "height": height,
            "fps": fps,
            "audio": audio,
            "hint": hint,
        }
        made: dict[str, Any] = await self.page.evaluate("options => stage.publish(options)", options)
        return made

    async def subscribe(self, room: str, target: str, token: str) -> float:
        """Subscribe to a participant; returns s from the POST to the first picture shown."""
        options = {"room": room, "target": target, "token": token}
        made = await self.page.evaluate("options => stage.subscribe(options)", options)
        return float(made["firstFrameMs"]) / 1000

    async def stats(self) -> dict[str, Any]:
        """Return, per session, its state and its inbound and outbound RTP reports."""
        got: dict[str, Any] = await self.page.evaluate("stage.stats()")
        return got

    async def count(self, session: str, kind: str, field: str) -> int:
        """Return one number of a session's statistics, 0 when there is none yet."""
        streams = (await self.stats())[session]["streams"]
        return next((int(one.get(field, 0)) for one in streams if one["kind"] == kind), 0)

    async def watch_camera(self) -> None:
        """Note from now on when the camera delivers which picture; costs a tenth of a core."""
        await self.page.evaluate("stage.watchCamera()")

    async def captured(self) -> list[tuple[int, float]]:
        """Return (time in the bar code, UTC ms of its capture) of the pictures noted."""
        noted = await self.page.evaluate("stage.captured")
        return [(int(code), float(utc_ms)) for code, utc_ms in noted]

    async def watch_shown(self, target: str) -> None:
        """Note from now on when a subscription shows which picture; costs a tenth of a core."""
        await self.page.evaluate("target => stage.watchShown(target)", target)

    async def shown(self) -> list[tuple[int, float]]:
        """Return (time in the bar code, UTC ms of its showing) of the pictures noted."""
        noted = await self.page.evaluate("stage.shown")
        return [(int(code), float(utc_ms)) for code, utc_ms in noted]

    async def listen(self, target: str) -> None:
        """Keep from now on what a subscription sounds like."""
        await self.page.evaluate("target => { stage.listen(target); }", target)

    async def heard(self) -> Sound:
        """Return the sound kept since the last time."""
        samples = np.frombuffer(base64.b64decode(await self.page.evaluate("stage.takeHeard()")), "<i2")
        return samples.astype(np.float32) / np.float32(32768)

    async def mute(self, kind: str, muted: bool) -> None:
        """Turn the own camera or microphone off or on."""
        await self.page.evaluate("([kind, muted]) => stage.mute(kind, muted)", [kind, muted])

    async def leave(self) -> None:
        """End all sessions."""
        await self.page.evaluate("stage.close()")


@asynccontextmanager
async def chromium(*flags: str, program: Path = CHROMIUM) -> AsyncIterator[Browser]:
    """Run one headless Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, headless=True, args=[*FLAGS, *flags], timeout=60_000
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def participant(
    base: str,
    camera: Path,
    microphone: Path,
    *more: str,
    program: Path = CHROMIUM,
    link: LossyLink | None = None,
) -> AsyncIterator[Participant]:
    """Run one headless Chromium whose camera and microphone play files, with the client page of ``base``.

    What it publishes goes through a bad line if one is given.
    """
    flags = (f"--use-file-for-fake-video-capture={camera}", f"--use-file-for-fake-audio-capture={microphone}")
    async with chromium(*flags, *more, program=program) as browser:
        page = await browser.new_page(ignore_https_errors=True)

        async def serve(route: Route) -> None:
            await route.fulfill(body=client_page(), content_type="text/html; charset=utf-8")

        async def through(route: Route) -> None:
            answer = await route.fetch()
            body = await answer.text()
            if link is not None and answer.status == 201:
                body = await link.redirect(body)
            await route.fulfill(response=answer, body=body)

        if link is not None:
            await page.route(f"{base}/v1/whip/**", through)
        await page.route(f"{base}/stage-client", serve)
        await page.goto(f"{base}/stage-client")
        yield Participant(page)
