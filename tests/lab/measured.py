"""What scenarios measure alike, whichever server is between the browsers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from recorder.records import Record
from tests.lab.call import Call, Pair, delays_ms, missing_packets
from tests.lab.table import Table

CLEAN: Final = "no impairment"
BAD: Final[Mapping[str, Any]] = {"loss": 0.05, "delay_ms": 25.0, "jitter_ms": 50.0}
"""5 % each way; 25 … 75 ms each way are 100 ms there and back."""


async def unimpaired(made: Pair, table: Table, call_s: float, server: str) -> None:
    """Measure from the camera to the screen."""
    await made.publisher.watch_camera()
    before_s = float((await made.inbound())["totalFreezesDuration"])
    await asyncio.sleep(call_s)
    delays = delays_ms(await made.publisher.captured(), await made.viewer.shown())
    frozen_s = float((await made.inbound())["totalFreezesDuration"]) - before_s
    for percent, goal_ms in ((50, 200), (99, 300)):
        value = float(np.percentile(delays, percent))
        figure = f"camera to screen p{percent}"
        row = table.add(CLEAN, figure, value, "ms", at_most=goal_ms, server=server, pictures=len(delays))
        assert percent > 50 or row.reached
    table.add(CLEAN, "frozen", frozen_s, "s", at_most=1, server=server)
    assert len(delays) > 2 * call_s


async def impaired(
    made: Pair,
    name: str,
    table: Table,
    call_s: float,
    frozen_percent: float,
    bad: Mapping[str, Any] = BAD,
    server: str = "ours",
    both: bool = True,
) -> float:
    """Impair the phone's line, or both, for a time; returns for how many percent of it the viewer's picture
    froze.
    """
    networks = (made.phone, made.desk) if both else (made.phone,)
    before = await made.inbound()
    for network in networks:
        network.line.reset()
        network.line.set(**bad)
    await asyncio.sleep(call_s)
    after = await made.inbound()
    lost = made.phone.line.statistics()["up"]["dropped"]["random"]
    for network in networks:
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
    assert decoded > call_s / 2, "the viewer saw next to nothing"
    return frozen


async def journal(
    made: Call, name: str, table: Table, call_s: float, goals: Mapping[str, float]
) -> list[Record]:
    """Add what the recording lacks, in percent of the packets sent, beside the goal of each kind; returns the
    journal.
    """
    await asyncio.sleep(1)  # what is on the way still comes
    records = await made.end()
    totals = missing_packets(records)
    for kind, (missing, expected) in totals.items():
        figure, share, goal = f"{kind} missing in journal", 100 * missing / expected, goals[kind]
        table.add(name, figure, share, "%", at_most=goal, missing=missing, expected=expected)
        assert expected > 5 * call_s, f"the recording of {kind} ended early"
        assert missing <= expected * goal / 100 + 1, f"{kind} is missing in the journal"
    return records


async def gaps(made: Call, name: str, table: Table, records: list[Record]) -> None:
    """Add which share of the packets that the journal lacks stands in gaps of the composite's timeline."""
    lacking = sum(missing for missing, _ in missing_packets(records).values())
    listed = [gap for gap in (await made.listed())["gaps"] if gap["reason"] in ("loss", "resync")]
    told = sum(gap["packets"] for gap in listed)
    share = 100.0 if not lacking else 100 * min(told, lacking) / lacking
    table.add(
        name, "of missing packets, in listed gaps", share, "%", at_least=100, lacking=lacking, listed=told
    )


RATES: Final = (("at 2 Mbit/s", 2_000_000), ("at 300 kbit/s", 300_000), ("back", 2_000_000))


async def followed(made: Pair, table: Table, server: str, rates: Sequence[tuple[str, int]] = RATES) -> None:
    """Give the publisher's line one rate after the other; add which share of it the browser uses each time.

    10 s to follow, 10 s that count.
    """
    await made.allow(4_000_000)
    line = made.phone.line
    line.set(delay_ms=20, queue_bytes=64_000)
    for figure, rate_bps in rates:
        line.set(up={"rate_bps": rate_bps})
        each = []
        for _ in range(4):
            line.reset()
            before = line.statistics()
            await asyncio.sleep(5)
            after = line.statistics()
            elapsed_s = (after["at_ns"] - before["at_ns"]) / 1e9
            each.append(100 * after["up"]["delivered_bytes"] * 8 / elapsed_s / rate_bps)
        used = sum(each[2:]) / 2
        details = {"queue_ms": after["up"]["queue_ms"], "each_5_s": [round(one, 1) for one in each]}
        name = "publisher 2 Mbit/s, 300 kbit/s, back"
        table.add(name, f"link used {figure}", used, "%", at_least=80, server=server, **details)
        if rate_bps == 300_000:
            assert 20 < used <= 103, "next to nothing was sent over the narrow line"
