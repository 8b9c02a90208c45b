"""How long the page lets pictures and sound wait: mediaserver/page/patience.js, in a browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.browser import PATIENCE, chromium, module

pytestmark = [pytest.mark.e2e]

CALM: dict[str, Any] = {"nacks": 0, "disturbed": False, "rttMs": 100, "seconds": 1}
LOSSY = {**CALM, "nacks": 4}
FROZEN = {**CALM, "disturbed": True}


async def test_waiting_follows_what_is_missing() -> None:
    async with chromium() as browser:
        page = await browser.new_page()
        await page.add_script_tag(content=module(PATIENCE))

        async def waits(looks: list[dict[str, Any]]) -> list[float]:
            """Return how many ms are waited after each of these looks at a new receiver."""
            run = "all => { let wait = {}; return all.map((one) => (wait = patience(wait, one)).ms); }"
            told: list[float] = await page.evaluate(run, looks)
            return told

        calm = await waits([CALM] * 30)
        assert calm[:15] == [120] * 15, "nothing is known of the line"
        assert calm == sorted(calm, reverse=True)
        assert calm[-1] == 0
        assert await waits([{**CALM, "nacks": 1}, *[CALM] * 9, {**CALM, "nacks": 1}]) == [120] * 11
        assert await waits([LOSSY] * 3) == [450] * 3, "three rounds of 100 ms and a step"
        assert await waits([{**LOSSY, "rttMs": 900}]) == [1000], "no longer than the server asks again"
        assert await waits([FROZEN] * 7) == [270, 420, 570, 720, 870, 1000, 1000]
        often = {**CALM, "seconds": 0.2}
        assert await waits([{**often, "nacks": 1}, *[often] * 9, {**often, "nacks": 1}]) == [120] * 10 + [450]
        falling = (await waits([LOSSY, *[CALM] * 60]))[1:]
        assert falling[:15] == [450] * 15
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] == 0

        given = """async () => {
          const pc = new RTCPeerConnection();
          bePatient(pc);
          for (const kind of ["audio", "video"]) pc.addTransceiver(kind, { direction: "recvonly" });
          const targets = () => pc.getReceivers().map((receiver) => receiver.jitterBufferTarget);
          while (targets().includes(null)) await new Promise((resolve) => setTimeout(resolve, 10));
          pc.close();
          return targets();
        }"""
        assert await page.evaluate(given) == [120, 120], "before the first packet"
