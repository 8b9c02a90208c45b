"""The load generator behind a bad line: many calls at a time, every packet checked, one of them recorded."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.e2e.api import Api
from tests.e2e.evidence import records_of
from tests.e2e.stage import ROOT
from tests.lab.call import missing_packets
from tests.lab.network import SERVER, Laboratory
from tests.lab.table import Table

pytestmark = [pytest.mark.lab, pytest.mark.timeout(200)]

ROOMS, SECONDS = 5, 15.0
LOSS = 0.02


async def test_many_calls_over_a_lossy_line(lab: Laboratory, tmp_path: Path, table: Table) -> None:
    phone = lab.add("phone")
    with lab.stage(tmp_path / "data", **{"composing.when": "on_demand"}) as stage:
        async with Api(stage.base, stage.key()) as api:
            tokens: dict[str, dict[str, str]] = {}
            for room in (f"room-{number}" for number in range(ROOMS)):
                await api.room(room)
                parties = ("party-0", "party-1")
                tokens[room] = {one: await api.token(room, one, "agent") for one in parties}
            recording = (await api.record("room-0", "LAB-LOAD", "single"))["id"]
            phone.line.set(loss=LOSS, delay_ms=20.0, jitter_ms=20.0)
            words = phone.command(sys.executable, "-m", "tests.lab.generator")
            process = await asyncio.create_subprocess_exec(
                *words, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            given = {
                "base": f"https://{SERVER}:{stage.port}",
                "local": phone.address,
                "tokens": tokens,
                "seconds": SECONDS,
            }
            try:
                said, _ = await asyncio.wait_for(process.communicate(json.dumps(given).encode()), 120)
            finally:
                if process.returncode is None:
                    process.kill()
            assert process.returncode == 0
            await api.stop(recording)
            records = await records_of(stage, recording)
    counted = json.loads(said)
    # The generator asks for nothing again and resends nothing: what either way of the line loses is lost.
    both_ways = 1 - (1 - LOSS) ** 2
    wrong = counted["bad"] + counted["auth_failed"]
    name = f"{ROOMS} calls of the load generator, {LOSS:.0%} loss each way"
    table.add(name, "packets not as they were sent", wrong, "", at_most=0, per_s=counted["packets_per_s"])
    assert wrong == 0
    assert counted["packets_per_s"] > ROOMS * 2 * 50, "sound alone is 50 packets a second"
    assert abs(counted["loss"] - both_ways) < both_ways / 2
    for kind, (missing, expected) in missing_packets(records).items():
        assert expected > SECONDS * 20, f"the recording of {kind} ended early"
        assert missing < expected * LOSS * 2
