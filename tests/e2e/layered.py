"""What the calls with layers share: a subscriber who notes each picture, and what came of the call."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Page, Route

from tests.e2e.api import Api
from tests.e2e.browser import CLIENT
from tests.media.film import Film, read_film

SHOWN = "stage.sessions.get('subscribe customer').video.videoWidth"
WATCH = """(target) => {
    const video = stage.sessions.get(`subscribe ${target}`).video;
    stage.shown = [];
    const note = (now) => {
        stage.shown.push([performance.timeOrigin + now, video.videoWidth]);
        video.requestVideoFrameCallback(note);
    };
    video.requestVideoFrameCallback(note);
}"""


async def opened(browser: Any, base: str) -> Page:
    page: Page = await browser.new_page()

    async def serve(route: Route) -> None:
        await route.fulfill(body=CLIENT.read_text(encoding="utf-8"), content_type="text/html; charset=utf-8")

    await page.route(f"{base}/stage-client", serve)
    await page.goto(f"{base}/stage-client")
    return page


@dataclass
class Call:
    """What was seen of one call whose picture has layers."""

    answer: str
    shown: list[tuple[float, int]]
    """UTC s and width of every picture that the subscriber was shown."""
    stats: dict[str, Any]
    """The subscriber's statistics at the end."""
    film: Film
    timeline: dict[str, Any]
    moments: dict[str, float] = field(default_factory=dict)
    """What was done → UTC s."""
    layers: dict[str, Any] = field(default_factory=dict)
    """What was done → the layers as the API showed them then."""
    thumbnail: int = 0
    """Width that the hidden supervisor was shown."""

    def widths(self, begin: str, end: str) -> list[int]:
        """Return the widths shown between two moments, each once as they followed."""
        found = [w for at, w in self.shown if self.moments[begin] <= at <= self.moments[end]]
        return [key for key, _ in itertools.groupby(found)]

    def pictures(self, begin: str, end: str) -> float:
        """Return how many pictures a second were shown between two moments."""
        count = sum(1 for at, _ in self.shown if self.moments[begin] <= at <= self.moments[end])
        return count / (self.moments[end] - self.moments[begin])

    def longest_gap(self) -> float:
        """Return the longest time in s between two pictures that were shown."""
        return max(late - early for (early, _), (late, _) in itertools.pairwise(self.shown))


async def picture(api: Api, path: str) -> dict[str, Any]:
    """Return the layers of a session's picture as the API shows them."""
    found: dict[str, Any] = (await api.call("GET", path))["pictures"][0]
    return found


async def until(api: Api, path: str, page: Page, wanted: int, timeout_s: float = 25.0) -> None:
    """Wait until a page shows a picture of a width."""
    deadline = time.monotonic() + timeout_s
    while (now := await page.evaluate(SHOWN)) != wanted:
        assert time.monotonic() < deadline, f"{now} and not {wanted} wide: {await picture(api, path)}"
        await asyncio.sleep(0.05)


async def ended(
    api: Api,
    subscriber: Page,
    recording: str,
    answer: str,
    moments: dict[str, float],
    layers: dict[str, Any],
    thumbnail: int,
) -> Call:
    """Note what the subscriber saw, then stop and compose the recording."""
    shown = await subscriber.evaluate("stage.shown")
    stats = await subscriber.evaluate("stage.stats()")
    await api.stop(recording)
    await api.composed(recording, timeout_s=120)
    composite = await api.file(recording, "composite.mp4")
    timeline = await api.call("GET", f"/v1/recordings/{recording}/timeline")
    return Call(
        answer,
        [(at_ms / 1000, int(w)) for at_ms, w in shown],
        stats["subscribe customer"],
        read_film(composite.body),
        timeline,
        moments,
        layers,
        thumbnail,
    )
