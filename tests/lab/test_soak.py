"""A day of bad lines in half an hour (LAB_MINUTES): no leak, no stuck room, no wrong duration."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.load import clip
from bench.load.engine import Engine
from tests.e2e.api import Api
from tests.lab.network import Laboratory
from tests.lab.soak import CODEC, CONSENT_S, ENDS, IDLE_ROOM_S, Soak
from tests.lab.table import Table

MINUTES = float(os.environ.get("LAB_MINUTES") or 30)
AT_ONCE = 4
SLACK_S = 0.25
"""Of a duration: start and stop are seen from outside, and the answers take their time."""

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(round(MINUTES * 60) + 400)]


async def test_a_day_of_bad_lines(lab: Laboratory, tmp_path: Path, table: Table, lab_seed: int) -> None:
    networks = [lab.add(name) for name in ("phone", "desk", "shop")]
    settings = {"media.idle_room_s": IDLE_ROOM_S, "media.consent_s": CONSENT_S, "composing.when": "on_demand"}
    generator = Engine(clip.video(CODEC, 500_000), clip.audio())
    with generator, lab.stage(tmp_path / "data", **settings) as stage:
        async with Api(stage.base, stage.key()) as api:
            soak = Soak(stage, api, generator, networks, lab_seed)
            # Caches, pools and heaps get their size first: what grows after that is a leak.
            await soak.run(MINUTES * 60 / 4, AT_ONCE)
            warm, first = await soak.at_rest(), len(soak.recorded)
            await soak.run(MINUTES * 60 * 3 / 4, AT_ONCE)
            end = await soak.at_rest()
            wrong = await soak.wrong(SLACK_S)
            workers = stage.pids("worker")
    name, count = f"soak of {MINUTES:g} min", len(soak.recorded)
    grown = 100 * (end.resident_bytes / warm.resident_bytes - 1)
    more = end.descriptors - warm.descriptors
    table.add(name, "wrong recordings", len(wrong), "", at_most=0, of=count, counted=dict(soak.counted))
    table.add(name, "memory grown at rest", grown, "%", at_most=10, since=first, to=end.resident_bytes)
    table.add(name, "descriptors grown at rest", more, "", at_most=0, to=end.descriptors)
    assert not wrong, "\n".join(wrong)
    assert set(ENDS) <= set(soak.counted), "every way to end has to have been tried"
    assert soak.counted["did not get through"] <= count / 2
    assert len(workers) == 1
    assert more <= 4
    assert grown < 25
