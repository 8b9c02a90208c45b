"""Chromium prefers RED (RFC 2198) on a lossy line: its listeners, with and without, and the recording."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from compositor.timeline import Timeline
from recorder.records import RED, TrackRecord
from tests.e2e.api import Api
from tests.e2e.browser import participant
from tests.e2e.conftest import LONG
from tests.e2e.evidence import records_of
from tests.e2e.stage import Stage
from tests.media.lossy import LossyLink
from tests.media.pictures import AGENT, CUSTOMER

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SECONDS = 15
LOSS = 0.1
WITH, WITHOUT = f"subscribe {CUSTOMER.identity}", f"subscribe {CUSTOMER.identity} plain"


@pytest.mark.parametrize("prefers", ["client", *(["server"] if LONG else [])])
async def test_sound_that_repeats_itself_is_heard_by_all_and_mended_in_the_recording(
    tmp_path: Path, devices: dict[str, tuple[Path, Path]], seed: int, prefers: str
) -> None:
    settings = {"media.red": "prefer"} if prefers == "server" else {}
    with Stage(tmp_path / "data", settings=settings, tenants=("default",)) as stage:
        async with Api(stage.base, stage.key()) as api:
            await call(stage, api, devices, seed, client_prefers=prefers == "client")


async def call(
    stage: Stage, api: Api, devices: dict[str, tuple[Path, Path]], seed: int, *, client_prefers: bool
) -> None:
    """Nothing is asked for again here (no NACK for sound is offered): what is mended, copies have mended."""
    room = "counter-red"
    await api.room(room, codecs=["video/VP8", "audio/opus"])
    speaks = await api.token(room, CUSTOMER.identity, CUSTOMER.role)
    hears = await api.token(room, AGENT.identity, AGENT.role)
    link = LossyLink(seed)
    async with (
        participant(stage.base, *devices[CUSTOMER.identity], link=link) as sender,
        participant(stage.base, *devices[AGENT.identity]) as listener,
    ):
        await sender.page.evaluate("prefers => { stage.redundant = prefers; }", client_prefers)
        await sender.publish(room, speaks, width=320, height=180)
        for plain in (False, True):
            options = {"room": room, "target": CUSTOMER.identity, "token": hears, "plain": plain}
            await listener.page.evaluate("options => stage.subscribe(options)", options)
        link.loss = LOSS
        recording = await api.record(room, f"{room}-1", "both")
        await asyncio.sleep(SECONDS)
        heard = {
            name: {
                field: await listener.count(name, "audio", field)
                for field in ("packetsReceived", "bytesReceived", "concealedSamples")
            }
            for name in (WITH, WITHOUT)
        }
        await api.stop(recording["id"])
        link.loss = 0
        await listener.leave()
        await sender.leave()
    link.close()
    records = await records_of(stage, recording["id"])
    timeline = Timeline()
    for record in records:
        timeline.feed(record)
    timeline.end()
    info = next(r.info for r in records if isinstance(r, TrackRecord) and r.info.kind == "audio")
    counts = timeline.counts()[info.track]
    print(f"seed {seed}: recorded {counts}, heard {heard}")
    assert info.fmtp[RED]
    assert counts["malformed"] == 0
    assert counts["lost"] > SECONDS * 50 * LOSS / 2
    assert counts["recovered"] > 0.75 * counts["lost"]  # nine of ten, if one frame is repeated
    listed = [gap.packets for gap in timeline.gaps if gap.track == info.track and gap.reason == "loss"]
    assert sum(listed) == counts["lost"] - counts["recovered"]
    for name in (WITH, WITHOUT):
        assert heard[name]["packetsReceived"] > SECONDS * 50 * 0.7
    assert heard[WITH]["bytesReceived"] > 1.4 * heard[WITHOUT]["bytesReceived"]
    assert heard[WITH]["concealedSamples"] < 0.5 * heard[WITHOUT]["concealedSamples"]
