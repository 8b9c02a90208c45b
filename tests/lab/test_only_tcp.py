"""A phone behind a wall that lets no UDP out: TCP makes lost packets good; the page finds new connections."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.test_walls import coturn
from tests.lab.call import Devices, OnThePage, call, longest_pause_s, missing_packets
from tests.lab.network import SERVER, Laboratory
from tests.lab.table import Table

pytestmark = [pytest.mark.lab, pytest.mark.whole, pytest.mark.timeout(200)]

CALL_S = 20.0


@pytest.mark.parametrize("way", ["ICE-TCP", "TURN over TLS on 443"])
async def test_a_call_without_udp(
    lab: Laboratory, tmp_path: Path, devices: Devices, table: Table, way: str
) -> None:
    turn = way.startswith("TURN")
    secret = secrets.token_urlsafe(24)
    (tmp_path / "turn.secret").write_text(secret)
    settings = {
        "turn.urls": [f"turns:{SERVER}:443?transport=tcp"],
        "turn.secret_file": str(tmp_path / "turn.secret"),
    }
    with ExitStack() as stack:
        if turn:
            inside = ("ip", "netns", "exec", lab.server)
            stack.enter_context(coturn(tmp_path / "coturn", secret, SERVER, inside))
        async with call(
            lab,
            tmp_path,
            devices,
            walls=("tcp dport 443 accept",) if turn else ("meta l4proto tcp accept",),
            only="turns:" if turn else "",
            settings=settings if turn else None,
        ) as made:
            pair = (await made.publisher.stats())["publish camera"]["pair"]
            made.phone.line.set(loss=0.01, delay_ms=20.0, jitter_ms=10.0)
            began_s = time.time()
            await asyncio.sleep(CALL_S)
            shown = [at for at in await made.shown_s() if at >= began_s]
            totals = missing_packets(await made.end())
    name = f"only TCP, 1 % loss: {way}"
    assert pair["local"]["protocol"] == "tcp" or pair["local"].get("relayProtocol") == "tls", pair
    assert table.add(name, "pictures shown a second", len(shown) / CALL_S, "", at_least=10).reached
    table.add(name, "longest pause", longest_pause_s(shown, began_s, began_s + CALL_S), "s", at_most=1)
    missing = sum(one for one, _ in totals.values())
    assert table.add(name, "packets missing in journal", missing, "", at_most=0, totals=totals).reached
    assert min(expected for _, expected in totals.values()) > 5 * CALL_S


async def test_the_page_without_udp(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    """The page finds ICE-TCP by itself, and again after a cut and with another address."""
    name = "only TCP, page: ICE-TCP"
    async with call(lab, tmp_path, devices, page=True, walls=("meta l4proto tcp accept",)) as made:
        assert isinstance(made.publisher, OnThePage)
        assert {one["protocol"] for one in await made.publisher.local()} == {"tcp"}
        began_s = time.time()
        await asyncio.sleep(CALL_S / 2)
        shown = [at for at in await made.shown_s() if at >= began_s]
        assert table.add(name, "pictures shown a second", len(shown) * 2 / CALL_S, "", at_least=10).reached
        for what in ("10 s cut", "address change"):
            if what == "10 s cut":
                made.phone.line.set(cut=True)
                await asyncio.sleep(10)
                made.phone.line.set(cut=False)
            else:
                made.phone.change_address()
            since_s = time.time()
            back_s = await made.back_s(since_s)
            await asyncio.sleep(8)
            pause_s = longest_pause_s(await made.shown_s(), since_s - 0.5, since_s + 7)
            row = table.add(
                name, f"{what}: media again after", back_s, "s", at_most=5, longest_pause_s=pause_s
            )
            assert row.reached
        await made.end()
