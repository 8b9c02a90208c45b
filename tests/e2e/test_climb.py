"""When a publisher's page has its line measured: mediaserver/page/climb.js, in a browser."""

from __future__ import annotations

from math import inf

import pytest

from tests.e2e.browser import CLIMB, chromium, module

pytestmark = [pytest.mark.e2e]

RUN = """
([estimates, share, wanted]) => {
  let [state, cap] = [{}, Infinity];
  return estimates.map((estimate) => {
    state = climb(state, { estimate, sent: share * estimate, wanted, cap });
    cap = state.caps.at(-1) ?? cap;
    return state.caps;
  });
}
"""


async def test_what_is_measured_when() -> None:
    async with chromium() as browser:
        page = await browser.new_page()
        await page.add_script_tag(content=module(CLIMB))

        async def caps(
            kbps: list[int], share: float = 0.9, wanted: float = 4e6
        ) -> list[tuple[int, list[float]]]:
            """Return (second, highest rates set then, kbit/s) for a browser's estimates of each second."""
            told = await page.evaluate(RUN, [[1000 * one for one in kbps], share, wanted])
            return [(second, [one / 1000 for one in set_]) for second, set_ in enumerate(told) if set_]

        rising = list(range(200, 300, 5))
        assert await caps(rising, wanted=150_000) == [], "the encoders have all they want"
        assert await caps(rising, share=0.6) == [], "no more is sent than there is"
        assert await caps(rising[::-1]) == [], "a queue drains"
        assert await caps([250] * 20) == [], "the browser holds its rate"

        wide = await caps([200, 230, 250, 500, 1000, 2000, 2100, 2200])
        assert wide == [(2, [300, 500]), (3, [1000]), (4, [2000]), (5, [4000])], "on while all comes through"
        risen = [200, 230, 250, 285, 290, 300, 310, 320, 345]
        assert await caps(risen) == [(2, [300, 500]), (8, [690])], "what a probe found is passed by a fifth"
        full = [200, 230, 250, *range(285, 355)]
        assert [second for second, _ in await caps(full)] == [2, 15, 34, 62], "less and less often"
        sawtooth = [300, 255, 270, 290, 310, 335, 350] + [255, 270, 290, 310, 335, 350] * 5
        assert await caps(sawtooth) == [], "the line is full: its queue would be what is found"
        wider = [300, 255, 270, 290, 310, 335, 365, 380]
        assert await caps(wider) == [(6, [438, 730])], "more than the line carried: it became wider"
        fallen = [1900, 900, 255, 270, 290, 310, 335, 365]
        assert await caps(fallen) == [(7, [438, 730])], "the last fall tells what the line carries"
        alarm = [200, 230, 250, 490, 300, 310, 340, 400, 420, 430]
        assert await caps(alarm) == [(2, [300, 500]), (3, [980]), (9, [516, 860])], "a probe made a queue"
        alarm = [200, 230, 250, 190, 230, 270, 290, 305]
        assert await caps(alarm, share=1.0) == [(2, [300, 500]), (7, [610])], "from what was in use"
        assert await caps([1700, 1800, 2600]) == [(2, [3120, inf])], "what is not measured is no limit"
