"""Who vanishes without a word comes back by a new session: same seat, same recording, the gap listed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from playwright.async_api import Error, Page

from recorder.records import EventRecord, TrackRecord
from tests.e2e import peers
from tests.e2e.api import Api
from tests.e2e.browser import chromium
from tests.e2e.evidence import records_of
from tests.e2e.stage import Stage
from tests.e2e.test_page import PATIENCE_MS, invite, sees
from tests.media.lossy import LossyLink
from tests.media.pictures import AGENT
from tests.media.tracks import CameraTrack, MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SEATS = ("agent#1", "customer#1")
AWAY_S = 6.0
"""Shorter than consent lasts: the sessions that are gone are still there. A tab that crashes may send on for
some seconds."""


async def test_a_killed_tab_and_a_lost_client_return_to_their_seats(
    stage: Stage, api: Api, room: str
) -> None:
    await api.room(room)
    token = await api.token(room, "agent", "agent")
    line = LossyLink(1)

    async def publish(link: LossyLink | None = None) -> peers.Session:
        made = await peers.publish(api, room, token, [CameraTrack(AGENT), MicrophoneTrack(AGENT)], link=link)
        await peers.connected(made)
        return made

    async def join(page: Page, address: str) -> None:
        await page.goto(address)
        await page.get_by_test_id("join").click()
        await sees(page, "agent")

    async def who() -> list[tuple[str, str, int]]:
        people = await api.participants(room)
        return [(one["identity"], one["seat"], len(one["tracks"])) for one in people]

    lost = await publish(line)
    async with chromium() as browser:
        context = await browser.new_context(locale="en-GB")
        context.set_default_timeout(PATIENCE_MS)
        killed = await context.new_page()
        await join(killed, await invite(api, room, "customer", "C"))
        recording = await api.record(room, f"RETURN-{room}", template={"overlays": []})
        await asyncio.sleep(2)
        before = await who()
        with suppress(Error):
            await killed.goto("chrome://crash")
        line.loss = 1.0
        await asyncio.sleep(AWAY_S)
        found = await publish()
        await join(await context.new_page(), api.base)
        seen = await peers.subscribe(api, room, "customer", token)
        await seen.first_picture()
        await asyncio.sleep(2)
        assert await who() == before == [("agent", "agent#1", 2), ("customer", "customer#1", 2)]
        await api.stop(recording["id"])
    await seen.close()
    await lost.connection.close()
    await found.close()
    line.close()

    records = await records_of(stage, recording["id"])
    events = [one.event for one in records if isinstance(one, EventRecord)]
    assert "participant.left" not in {one["type"] for one in events}
    ended: list[Any] = [one["data"] for one in events if one["type"] == "session.ended"]
    assert sorted((one["identity"], one["code"]) for one in ended) == [
        ("agent", "replaced"),
        ("customer", "replaced"),
    ]
    tracks = [one.info for one in records if isinstance(one, TrackRecord)]
    for seat in SEATS:
        for kind in ("audio", "video"):
            numbers = {info.track for info in tracks if (info.seat, info.kind) == (seat, kind)}
            assert len(numbers) == 2, "one track follows the other"

    await api.composed(recording["id"])
    timeline: dict[str, Any] = await api.call("GET", f"/v1/recordings/{recording['id']}/timeline")
    print(*timeline["composite"]["shown"], *timeline["composite"]["gaps"], sep="\n")
    for seat in SEATS:
        shown = [one for one in timeline["composite"]["shown"] if one["seat"] == seat]
        states = [one["shown"] for one in shown]
        assert states.index("picture") < states.index("lost") < len(states) - 1
        assert states[-1] == "picture"
        assert len({str(one["box"]) for one in shown}) == 1, "he keeps his place"
        gaps = [one for one in timeline["composite"]["gaps"] if one["seat"] == seat]
        assert len([one for one in gaps if one["reason"] == "stalled"]) == 2, "of sound and picture"
