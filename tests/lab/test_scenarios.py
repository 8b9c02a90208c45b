"""Real calls over bad lines, and the figures that come of them; docs/lab.md says what each asks.

A goal is asserted where it is reached today with room to spare; the others stand in the table.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.lab.beside import janus_call
from tests.lab.call import Call, Devices, Pair, call, delays_ms, longest_pause_s, missing_packets
from tests.lab.network import Laboratory
from tests.lab.table import Table
from tests.media.pictures import CUSTOMER

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

WHOLE = os.environ.get("LAB") != "subset"
CALL_S = 120.0 if WHOLE else 30.0
"""Of a measured call."""
CLIENT = {False: "bare client", True: "page"}
BAD: dict[str, Any] = {"loss": 0.05, "delay_ms": 25.0, "jitter_ms": 50.0}
"""5 % each way; 25 … 75 ms each way are 100 ms there and back."""


CLEAN = "no impairment"
LOSSY = "5 % loss, 50 ms jitter, 100 ms RTT"


async def test_no_impairment(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    async with call(lab, tmp_path, devices) as made:
        await _unimpaired(made, table, "ours")
        totals = missing_packets(await made.end())
    assert totals["audio"][0] == totals["video"][0] == 0
    assert min(total for _, total in totals.values()) > 10 * CALL_S


@pytest.mark.whole
async def test_no_impairment_with_janus(
    lab: Laboratory, tmp_path: Path, devices: Devices, table: Table
) -> None:
    async with janus_call(lab, tmp_path, devices) as made:
        await _unimpaired(made, table, "janus")
    for figure in ("camera to screen p50", "camera to screen p99"):
        ours, janus = table.find(CLEAN, figure), table.find(CLEAN, figure, "janus")
        if ours is not None and janus is not None:
            table.add(CLEAN, f"{figure}, ours over Janus'", ours - janus, "ms", at_most=5)


async def _unimpaired(made: Pair, table: Table, server: str) -> None:
    """Measure from the camera to the screen."""
    await made.publisher.watch_camera()
    before_s = float((await made.inbound())["totalFreezesDuration"])
    await asyncio.sleep(CALL_S / 2)
    delays = delays_ms(await made.publisher.captured(), await made.viewer.shown())
    frozen_s = float((await made.inbound())["totalFreezesDuration"]) - before_s
    for percent, goal_ms in ((50, 200), (99, 300)):
        value = float(np.percentile(delays, percent))
        figure = f"camera to screen p{percent}"
        table.add(CLEAN, figure, value, "ms", at_most=goal_ms, server=server, pictures=len(delays))
    table.add(CLEAN, "frozen", frozen_s, "s", at_most=1, server=server)
    assert len(delays) > CALL_S


async def test_loss_and_jitter(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    async with call(lab, tmp_path, devices) as made:
        await _impaired(made, LOSSY, table, CALL_S, 1.0)
        await _journal(made, LOSSY, table, CALL_S, {"video": 0.1, "audio": 0.05})


@pytest.mark.whole
async def test_loss_and_jitter_with_janus(
    lab: Laboratory, tmp_path: Path, devices: Devices, table: Table
) -> None:
    async with janus_call(lab, tmp_path, devices) as made:
        theirs = await _impaired(made, LOSSY, table, CALL_S, 1.0, server="janus")
    ours = table.find(LOSSY, "viewer frozen")
    if ours is not None:
        # "At most half of Janus', or both under 0.3 %."
        goal = theirs / 2 if max(ours, theirs) >= 0.3 else 0.3
        table.add(LOSSY, "viewer frozen, beside Janus", ours, "%", at_most=round(goal, 3), janus=theirs)


@pytest.mark.whole
@pytest.mark.parametrize(("loss", "frozen"), [(0.1, 5.0), (0.2, 10.0), (0.3, 20.0)])
async def test_heavy_loss(
    lab: Laboratory, tmp_path: Path, devices: Devices, table: Table, loss: float, frozen: float
) -> None:
    async with call(lab, tmp_path, devices) as made:
        await _impaired(made, f"{loss:.0%} loss", table, 60.0, frozen, {**BAD, "loss": loss})
        await _journal(made, f"{loss:.0%} loss", table, 60.0, {})


async def _impaired(
    made: Pair,
    name: str,
    table: Table,
    call_s: float,
    frozen_percent: float,
    bad: Mapping[str, Any] = BAD,
    server: str = "ours",
) -> float:
    """Impair both lines for a time; returns for how much of it (percent) the viewer's picture froze."""
    before = await made.inbound()
    for network in (made.phone, made.desk):
        network.line.reset()
        network.line.set(**bad)
    await asyncio.sleep(call_s)
    after = await made.inbound()
    lost = made.phone.line.statistics()["up"]["dropped"]["random"]
    for network in (made.phone, made.desk):
        network.line.set(loss=0)
    frozen_s, freezes = (after[key] - before[key] for key in ("totalFreezesDuration", "freezeCount"))
    frozen = 100 * float(frozen_s) / call_s
    table.add(
        name,
        "viewer frozen",
        frozen,
        "%",
        at_most=frozen_percent,
        server=server,
        freezes=freezes,
        lost=lost,
        s=frozen_s,
    )
    assert lost > 10, "the line lost nothing: the run says nothing"
    decoded = after["framesDecoded"] - before["framesDecoded"]
    assert decoded > 2 * call_s, "the viewer saw next to nothing"
    return frozen


async def _journal(made: Call, name: str, table: Table, call_s: float, goals: Mapping[str, float]) -> None:
    """Add what the recording lacks, in percent of the packets sent, where there is a goal for it."""
    await asyncio.sleep(1)  # what is on the way still comes
    totals = missing_packets(await made.end())
    for kind, (missing, expected) in totals.items():
        figure, share, goal = f"{kind} missing in journal", 100 * missing / expected, goals.get(kind, 100)
        table.add(name, figure, share, "%", at_most=goal, missing=missing, expected=expected)
        assert expected > 10 * call_s, f"the recording of {kind} ended early"


async def test_bursts(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    name = "bursts of 500 ms every 10 s"
    count = 6 if WHOLE else 3
    async with call(lab, tmp_path, devices) as made:
        began_s = time.time()
        made.phone.line.set(outage_every_ms=10_000, outage_ms=500)
        await asyncio.sleep(10 * count + 3)
        shown = await made.shown_s()
        backs = [await made.back_s(began_s + 10 * (index + 1), 0.1) for index in range(count)]
        dropped = made.phone.line.statistics()["up"]["dropped"]["outage"]
        made.phone.line.set(outage_every_ms=0, outage_ms=0)
        totals = missing_packets(await made.end())
        timeline = await made.api.call("GET", f"/v1/recordings/{made.recording}/timeline")
    assert dropped > 10 * count
    worst = None if None in backs else max(back for back in backs if back is not None)
    pause_s = longest_pause_s(shown, began_s, began_s + 10 * count)
    row = table.add(name, "picture back after", worst, "s", at_most=1.5, each=backs, longest_pause_s=pause_s)
    listed = [gap for gap in timeline["gaps"] if gap.get("track") is not None]
    table.add(
        name, "gaps in timeline", len(listed), "", at_least=count, missing=totals, gaps=timeline["gaps"]
    )
    assert row.value is not None, "the picture never came back"


async def test_publisher_rate(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    name = "publisher 2 Mbit/s, 300 kbit/s, back"
    settle_s, window_s = 10.0, 10.0
    async with call(lab, tmp_path, devices) as made:
        line = made.phone.line
        line.set(delay_ms=20, queue_bytes=64_000)
        for figure, rate_bps in (("at 2 Mbit/s", 2_000_000), ("at 300 kbit/s", 300_000), ("back", 2_000_000)):
            line.set(up={"rate_bps": rate_bps})
            await asyncio.sleep(settle_s)
            line.reset()
            before = line.statistics()
            await asyncio.sleep(window_s)
            after = line.statistics()
            elapsed_s = (after["at_ns"] - before["at_ns"]) / 1e9
            used = 100 * after["up"]["delivered_bytes"] * 8 / elapsed_s / rate_bps
            # The test camera is a quiet scene of some 115 kbit/s: no proof that the line is followed.
            details = {"queue_ms": after["up"]["queue_ms"], "dropped": after["up"]["dropped"]["queue"]}
            table.add(name, f"link used {figure}", used, "%", at_least=80, **details)
            if rate_bps == 300_000:
                assert 20 < used <= 103, "next to nothing was sent over the narrow line"
        await made.end()


@pytest.mark.whole
async def test_subscriber_rate(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    name = "subscriber 2 Mbit/s, 300 kbit/s, back"
    async with call(lab, tmp_path, devices) as made:
        line = made.desk.line
        line.set(down={"rate_bps": 2_000_000, "delay_ms": 20, "queue_bytes": 64_000})
        await asyncio.sleep(5)
        began_s = time.time()
        line.set(down={"rate_bps": 300_000})
        line.reset()
        await asyncio.sleep(20)
        narrow = line.statistics()["down"]
        line.set(down={"rate_bps": 2_000_000})
        await asyncio.sleep(10)
        shown = await made.shown_s()
        details = {"queue_ms": narrow["queue_ms"], "dropped": narrow["dropped"]["queue"]}
        pause_s = longest_pause_s(shown, began_s, began_s + 20)
        table.add(name, "longest pause", pause_s, "s", at_most=1, **details)
        assert [at for at in shown if at > began_s + 20], "no picture came when the line was wide again"
        missing = missing_packets(await made.end())
    assert missing["video"][0] == 0, "a viewer's line is none of the recording's affair"


@pytest.mark.parametrize("page", [pytest.param(False, marks=pytest.mark.whole), True])
async def test_cut_of_ten_seconds(
    lab: Laboratory, tmp_path: Path, devices: Devices, table: Table, page: bool
) -> None:
    async with call(lab, tmp_path, devices, page=page) as made:
        made.phone.line.set(cut=True)
        await asyncio.sleep(10)
        made.phone.line.set(cut=False)
        back_s = await made.back_s(time.time())
        table.add(f"10 s cut, {CLIENT[page]}", "media again after", back_s, "s", at_most=2)
        await _same_recording(made)
        assert back_s is not None
        await made.end()


@pytest.mark.parametrize("page", [pytest.param(False, marks=pytest.mark.whole), True])
async def test_address_change(
    lab: Laboratory, tmp_path: Path, devices: Devices, table: Table, page: bool
) -> None:
    async with call(lab, tmp_path, devices, page=page) as made:
        new = made.phone.change_address()
        back_s = await made.back_s(time.time())
        name = f"address change, {CLIENT[page]}"
        table.add(name, "media again after", back_s, "s", at_most=1, address=new)
        await _same_recording(made)
        await made.end()


async def _same_recording(made: Call) -> None:
    shown = await made.api.recording(made.recording)
    assert shown["state"] == "recording", shown["state"]
    assert CUSTOMER.identity in {person["identity"] for person in await made.api.participants(shown["room"])}
