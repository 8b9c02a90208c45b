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

        wide = await caps([200, 210, 220, 440, 880, 1760, 1900, 2000])
        assert wide == [(2, [264, 440]), (3, [880]), (4, [1760]), (5, [3520])], "on while all comes through"
        narrow = await caps([200, 210, 220, *range(285, 340)])
        assert [second for second, _ in narrow] == [2, 6, 11, 18, 26, 36, 49], "less and less often"
        assert await caps([200, 210, 220, 285, 230, 235, 240, 245]) == [(2, [264, 440]), (6, [480])]
        risen = await caps([200, 210, 220, 285, 310, 345])
        assert risen == [(2, [264, 440]), (5, [690])], "more than was found: at once"
        fallen = await caps([200, 210, 220, *range(285, 295), 180, 190, 200, 210])
        assert fallen[-1] == (15, [240, 400]), "far below what was found: soon"
        assert await caps([1700, 1800, 2600]) == [(2, [3120, inf])], "what is not measured is no limit"
