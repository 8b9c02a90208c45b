"""Firefox with the server's own page: a call of three with two Chromiums, recorded."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import expect

from recorder.records import RtpRecord, TrackRecord
from recorder.rtp import RtpPacket
from tests.e2e.api import Api
from tests.e2e.browser import chromium
from tests.e2e.evidence import records_of
from tests.e2e.firefox import firefox
from tests.e2e.stage import Stage
from tests.e2e.test_page import PATIENCE_MS, opened, sees, shows, tile
from tests.e2e.test_page_layers import recorded
from tests.e2e.test_signal import WATCHED, enter, invited, reported

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
expect.set_options(timeout=PATIENCE_MS)


async def test_firefox_on_the_page_with_two_chromiums(stage: Stage, api: Api, room: str) -> None:
    async with (
        chromium() as browser,
        opened(browser, await invited(api, room, "agent", "agent", "Li"), before=WATCHED) as agent,
        opened(browser, await invited(api, room, "wife", "co_borrower", "Wang"), before=WATCHED) as wife,
        firefox() as customer,
    ):
        await enter(agent)
        await enter(wife)
        await customer.visit(await invited(api, room, "customer", "customer", "Zhao"))
        await customer.click("join")
        for page, others in (
            (agent, ("customer", "wife")),
            (wife, ("customer", "agent")),
            (customer, ("agent", "wife")),
        ):
            for other in others:
                await sees(page, other)

        await customer.click("mic")
        await customer.click("cam")
        await shows(tile(agent, "customer"), picture="off", sound="off")
        await customer.click("mic")
        await customer.click("cam")
        await shows(tile(agent, "customer"), picture="on", sound="on")
        await sees(agent, "customer")

        recording = await api.record(room, f"FIREFOX-{room}", "single")
        await reported(api, room, "customer", {("in", "audio"): 2, ("in", "video"): 2, ("out", "video"): 3})
        await asyncio.sleep(3)
        await customer.click("leave")
        for page in (agent, wife):
            await expect(tile(page, "customer")).to_have_count(0)
        await api.stop(recording["id"])
        assert not customer.errors

    records = await records_of(stage, recording["id"])
    own = [one.info for one in records if isinstance(one, TrackRecord) and one.info.identity == "customer"]
    tracks = {info.track: info.kind for info in own}
    packets: dict[str, list[int]] = {"audio": [], "video": []}
    for one in records:
        if isinstance(one, RtpRecord) and one.track in tracks:
            packets[tracks[one.track]].append(RtpPacket.parse(one.packet).sequence_number)
    print(f"of Firefox: {[(kind, len(seen)) for kind, seen in packets.items()]}, {recorded(records)}")
    sound = packets["audio"]
    assert len(sound) == (sound[-1] - sound[0]) % 65536 + 1 > 3 * 50, "no sound is missing"
    assert 1280 in [width for _, width in recorded(records)], "the largest of its three sizes is recorded"
