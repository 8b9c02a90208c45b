"""How long the page lets pictures and sound wait: mediaserver/page/patience.js, in a browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.browser import PATIENCE, chromium, module

pytestmark = [pytest.mark.e2e]

CALM: dict[str, Any] = {"nacks": 0, "disturbed": False, "rttMs": 100}
LOSSY = {**CALM, "nacks": 4}
FROZEN = {**CALM, "disturbed": True}


async def test_waiting_follows_what_is_missing() -> None:
    async with chromium() as browser:
        page = await browser.new_page()
        await page.add_script_tag(content=module(PATIENCE))

        async def waits(seconds: list[dict[str, Any]]) -> list[float]:
            """Return how many ms are waited after each of these seconds."""
            run = "all => { let wait = {}; return all.map((one) => (wait = patience(wait, one)).ms); }"
            told: list[float] = await page.evaluate(run, seconds)
            return told

        assert await waits([CALM] * 30) == [0] * 30
        assert await waits([{**CALM, "nacks": 1}, *[CALM] * 9, {**CALM, "nacks": 1}]) == [0] * 11
        assert await waits([LOSSY] * 3) == [450] * 3, "three rounds of 100 ms and a step"
        assert await waits([{**LOSSY, "rttMs": 900}]) == [1000], "no longer than the server asks again"
        assert await waits([FROZEN] * 8) == [150, 300, 450, 600, 750, 900, 1000, 1000]
        falling = (await waits([LOSSY, *[CALM] * 60]))[1:]
        assert falling[:15] == [450] * 15
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] == 0
