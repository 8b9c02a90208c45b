"""A publisher's bad line: what is resent is in the journal. Chromium through a lossy relay."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from recorder.records import Record, RtpRecord, TrackRecord
from tests.e2e.api import Api
from tests.e2e.browser import participant
from tests.e2e.conftest import LONG
from tests.e2e.evidence import records_of
from tests.e2e.stage import Stage
from tests.media.lossy import LossyLink
from tests.media.pictures import AGENT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SECONDS = 90.0 if LONG else 25.0
LOSS, JITTER_S, ONE_WAY_S = 0.05, 0.05, 0.05
LAST_NS = 1_000_000_000
"""What is lost so shortly before the stop cannot have been resent by then."""


def missing(records: list[Record]) -> dict[str, tuple[int, int]]:
    """Return kind → (packets missing from the journal, packets sent), without the last moment."""
    kinds = {record.info.track: record.info.kind for record in records if isinstance(record, TrackRecord)}
    end_ns = max(record.arrival_ns for record in records if isinstance(record, RtpRecord)) - LAST_NS
    numbers: dict[str, set[int]] = {kind: set() for kind in kinds.values()}
    late: dict[str, set[int]] = {kind: set() for kind in kinds.values()}
    highest: dict[str, int] = {}
    for record in records:
        if isinstance(record, RtpRecord):
            kind = kinds[record.track]
            number = int.from_bytes(record.packet[2:4], "big")
            top = highest.get(kind, number)
            number = top + ((number - top + 0x8000) & 0xFFFF) - 0x8000
            highest[kind] = max(top, number)
            (numbers if record.arrival_ns <= end_ns else late)[kind].add(number)
    found = {}
    for kind, came in numbers.items():
        sent = range(min(came), max(came) + 1)
        found[kind] = sum(1 for number in sent if number not in came | late[kind]), len(sent)
    return found


@pytest.mark.parametrize("nack", [True, False], ids=["sound is asked for again", "sound is not"])
async def test_what_was_lost_is_in_the_journal(
    stage: Stage, api: Api, room: str, devices: dict[str, tuple[Path, Path]], seed: int, nack: bool
) -> None:
    """Chromium resends sound too if its offer says so; without that the loss shows that the line is bad."""
    await api.room(room, codecs=["video/VP8", "audio/opus"])
    token = await api.token(room, AGENT.identity, AGENT.role)
    link = LossyLink(seed)
    async with participant(stage.base, *devices[AGENT.identity], link=link) as sender:
        await sender.page.evaluate("nack => { stage.audioNack = nack; }", nack)
        await sender.publish(room, token)
        await asyncio.sleep(1)
        link.loss, link.jitter_s, link.delay_s = LOSS, JITTER_S, ONE_WAY_S
        recording = await api.record(room, f"{room}-1", "both")
        await asyncio.sleep(SECONDS if nack else 10)
        await api.stop(recording["id"])
        link.loss = 0
        await sender.leave()
    link.close()
    found = missing(await records_of(stage, recording["id"]))
    print(f"seed {seed}: {link.lost} of {link.lost + link.passed} datagrams lost; missing, sent: {found}")
    assert link.lost > 20
    assert found["video"][0] <= found["video"][1] * 0.001 + 1
    if nack:
        assert found["audio"][0] <= found["audio"][1] * 0.0005 + 1
    else:
        assert found["audio"][0] > found["audio"][1] * 0.01
