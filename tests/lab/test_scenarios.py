"""Real calls over bad lines, and the figures that come of them; docs/lab.md says what each asks.

A goal is asserted where it is reached today with room to spare; the others stand in the table.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.lab.beside import janus_call
from tests.lab.call import Call, Devices, call, longest_pause_s, missing_packets
from tests.lab.measured import CLEAN, RATES, followed, gaps, impaired, journal, unimpaired
from tests.lab.network import Laboratory
from tests.lab.table import Table
from tests.media.pictures import CUSTOMER

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

WHOLE = os.environ.get("LAB") != "subset"
CALL_S = 120.0 if WHOLE else 20.0
"""Of a measured call."""
CLIENT = {False: "bare client", True: "page"}
LOSSY = "5 % loss, 50 ms jitter, 100 ms RTT"


async def test_no_impairment(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    async with call(lab, tmp_path, devices) as made:
        await unimpaired(made, table, CALL_S / 2, "ours")
        totals = missing_packets(await made.end())
    assert totals["audio"][0] == totals["video"][0] == 0
    assert min(total for _, total in totals.values()) > 5 * CALL_S


@pytest.mark.whole
async def test_no_impairment_with_janus(
    lab: Laboratory, tmp_path: Path, devices: Devices, table: Table
) -> None:
    async with janus_call(lab, tmp_path, devices) as made:
        await unimpaired(made, table, CALL_S / 2, "janus")
    for figure in ("camera to screen p50", "camera to screen p99"):
        ours, janus = table.find(CLEAN, figure), table.find(CLEAN, figure, "janus")
        if ours is not None and janus is not None:
            table.add(CLEAN, f"{figure}, ours over Janus'", ours - janus, "ms", at_most=5)


async def test_loss_and_jitter(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    async with call(lab, tmp_path, devices) as made:
        await impaired(made, LOSSY, table, CALL_S, 1.0)
        await journal(made, LOSSY, table, CALL_S, {"video": 0.1, "audio": 0.05})


@pytest.mark.whole
async def test_loss_and_jitter_with_janus(
    lab: Laboratory, tmp_path: Path, devices: Devices, table: Table
) -> None:
    async with janus_call(lab, tmp_path, devices) as made:
        theirs = await impaired(made, LOSSY, table, CALL_S, 1.0, server="janus")
    ours = table.find(LOSSY, "viewer frozen")
    if ours is not None:
        # "At most half of Janus', or both under 0.3 %."
        goal = theirs / 2 if max(ours, theirs) >= 0.3 else 0.3
        table.add(LOSSY, "viewer frozen, beside Janus", ours, "%", at_most=round(goal, 3), janus=theirs)


async def test_bursts(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    name = "bursts of 500 ms every 10 s"
    count = 6 if WHOLE else 2
    async with call(lab, tmp_path, devices) as made:
        began_s = time.time()
        made.phone.line.set(outage_every_ms=10_000, outage_ms=500)
        await asyncio.sleep(10 * count + 3)
        shown = await made.shown_s()
        backs = [await made.back_s(began_s + 10 * (index + 1), 0.1) for index in range(count)]
        dropped = made.phone.line.statistics()["up"]["dropped"]["outage"]
        made.phone.line.set(outage_every_ms=0, outage_ms=0)
        records = await made.end()
        if WHOLE:  # composing takes too long for CI
            await gaps(made, name, table, records)
    assert dropped > 10 * count
    worst = None if None in backs else max(back for back in backs if back is not None)
    pause_s = longest_pause_s(shown, began_s, began_s + 10 * count)
    row = table.add(name, "picture back after", worst, "s", at_most=1.5, each=backs, longest_pause_s=pause_s)
    assert row.reached, "the picture did not come back in time"


async def test_publisher_rate(
    lab: Laboratory, tmp_path: Path, devices: Devices, busy_camera: Path, table: Table
) -> None:
    async with call(lab, tmp_path, (busy_camera, devices[1])) as made:
        await followed(made, table, "ours", RATES if WHOLE else RATES[1:2])
        await made.end()


@pytest.mark.whole
async def test_publisher_rate_with_janus(
    lab: Laboratory, tmp_path: Path, devices: Devices, busy_camera: Path, table: Table
) -> None:
    async with janus_call(lab, tmp_path, (busy_camera, devices[1])) as made:
        await followed(made, table, "janus")


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
        before = await _tracks(made)
        new = made.phone.change_address()
        since_s = time.time()
        back_s = await made.back_s(since_s)
        name = f"address change, {CLIENT[page]}"
        table.add(name, "media again after", back_s, "s", at_most=1, address=new)
        if page:
            assert back_s is not None
            await asyncio.sleep(8)  # a page that takes its connection for lost makes a new one after 5 s
            pause_s = longest_pause_s(await made.shown_s(), since_s - 0.5, since_s + 7)
            table.add(name, "longest pause", pause_s, "s", at_most=1)
            assert await _tracks(made) == before, "the same session goes on"
        await _same_recording(made)
        await made.end()


@pytest.mark.whole
async def test_viewer_that_moves(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    """The page of who watches, when his address changes and when his line is cut."""
    async with call(lab, tmp_path, devices, watching=True) as made:
        before = await _tracks(made)
        for what in ("address change", "10 s cut"):
            if what == "address change":
                made.desk.change_address()
            else:
                made.desk.line.set(cut=True)
                await asyncio.sleep(10)
                made.desk.line.set(cut=False)
            since_s = time.time()
            back_s = await made.back_s(since_s)
            await asyncio.sleep(8)
            pause_s = longest_pause_s(await made.shown_s(), since_s - 0.5, since_s + 7)
            name = f"{what}, viewer's page"
            table.add(name, "pictures again after", back_s, "s", at_most=2, longest_pause_s=pause_s)
            assert back_s is not None
        assert await _tracks(made) == before, "his own session goes on"
        await made.end()


async def _tracks(made: Call) -> set[str]:
    return await made.api.tracks((await made.api.recording(made.recording))["room"])


async def _same_recording(made: Call) -> None:
    shown = await made.api.recording(made.recording)
    assert shown["state"] == "recording", shown["state"]
    assert CUSTOMER.identity in {person["identity"] for person in await made.api.participants(shown["room"])}
