"""A call between Firefox and Chromium, both from Debian, recorded and composed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.e2e.api import Api
from tests.e2e.browser import Participant, participant
from tests.e2e.conftest import LONG
from tests.e2e.far_clients import recorded
from tests.e2e.firefox import firefox_participant
from tests.e2e.stage import Stage
from tests.media.barcode import Box
from tests.media.pictures import AGENT, CUSTOMER

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SECONDS = 8.0
LEFT, RIGHT = Box(0, 0, 640, 720), Box(640, 0, 640, 720)


@pytest.mark.parametrize("codec", ["video/VP8", *(["video/VP9"] if LONG else [])])
async def test_each_sees_the_other_and_both_are_in_the_recording(
    stage: Stage, api: Api, room: str, devices: dict[str, tuple[Path, Path]], codec: str
) -> None:
    await api.room(room, codecs=[codec, "audio/opus"])
    agent = await api.token(room, AGENT.identity, AGENT.role)
    customer = await api.token(room, CUSTOMER.identity, CUSTOMER.role)
    async with (
        participant(stage.base, *devices[AGENT.identity]) as chromium,
        firefox_participant(stage.base, CUSTOMER) as firefox,
    ):
        await chromium.publish(room, agent, codec=codec)
        await firefox.publish(room, customer, codec=codec)
        waits = [
            await chromium.subscribe(room, CUSTOMER.identity, agent),
            await firefox.subscribe(room, AGENT.identity, customer),
        ]
        pairs = {AGENT.identity: (chromium, firefox), CUSTOMER.identity: (firefox, chromium)}

        async def counts(sender: Participant, receiver: Participant, whose: str) -> tuple[int, int, int]:
            return (
                await sender.count("publish camera", "video", "framesSent"),
                await receiver.count(f"subscribe {whose}", "video", "framesDecoded"),
                await receiver.count(f"subscribe {whose}", "audio", "packetsReceived"),
            )

        async with recorded(api, room, {"static_fps": None, "overlays": []}) as results:
            before = {whose: await counts(*pair, whose) for whose, pair in pairs.items()}
            await asyncio.sleep(SECONDS)
            after = {whose: await counts(*pair, whose) for whose, pair in pairs.items()}
        await chromium.leave()
        await firefox.leave()
    sent = {}
    for whose in pairs:
        sent[whose], decoded, sound = (
            late - early for early, late in zip(before[whose], after[whose], strict=True)
        )
        print(f"{codec} of {whose}: sent {sent[whose]}, decoded {decoded}, sound packets {sound}")
        assert sent[whose] >= SECONDS * 5
        assert decoded >= sent[whose] * 0.9
        assert sound >= SECONDS * 50 * 0.9
    print(f"first pictures after {waits} s")
    made = results[0]
    seen = {p.identity: len(made.codes(p, tile)) for p, tile in ((AGENT, LEFT), (CUSTOMER, RIGHT))}
    beeps, tone = made.beeps(AGENT), made.tone_share(CUSTOMER.tone_hz)
    print(f"in the film: pictures {seen}, {len(beeps)} beeps, Firefox' tone {tone:.0%} of the time")
    assert all(pictures >= sent[whose] * 0.9 for whose, pictures in seen.items())
    assert len(beeps) >= SECONDS - 2
    assert tone >= 0.9
