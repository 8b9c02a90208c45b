"""The line carries real packets as its settings and its own counts say."""

from __future__ import annotations

import itertools
import json
import os
import socket

import pytest

from tests.lab.network import LabError, Laboratory, ip, missing
from tests.lab.traffic import HEADERS, send

pytestmark = pytest.mark.lab

FAMILIES = [socket.AF_INET, socket.AF_INET6]


def test_this_machine_can_build_the_laboratory() -> None:
    assert missing() is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("up", [True, False])
def test_a_clean_line_loses_nothing(lab: Laboratory, family: socket.AddressFamily, up: bool) -> None:
    client = lab.add("phone")
    client.line.reset()
    seen = send(lab, client, count=500, every_s=0.001, up=up, family=family, wait_s=0.3)
    assert seen.numbers == list(range(500))
    row = client.line.statistics()["up" if up else "down"]
    assert row["delivered_packets"] == row["offered_packets"] == 500
    assert row["delivered_bytes"] == 500 * (500 + HEADERS[family])


def test_loss_in_each_direction_is_its_own_and_as_counted(lab: Laboratory) -> None:
    client = lab.add("phone")
    client.line.set(up={"loss": 0.05}, down={"loss": 0.3})
    for up, share, within in ((True, 0.05, 0.02), (False, 0.3, 0.04)):
        client.line.reset()
        seen = send(lab, client, count=3000, every_s=0.0005, up=up, wait_s=0.3)
        row = client.line.statistics()["up" if up else "down"]
        assert len(seen.numbers) == row["delivered_packets"]
        assert row["dropped"]["random"] == 3000 - len(seen.numbers)
        assert seen.loss == pytest.approx(share, abs=within)  # four standard deviations


@pytest.mark.parametrize("family", FAMILIES)
def test_delay_and_jitter_are_those_set(lab: Laboratory, family: socket.AddressFamily) -> None:
    client = lab.add("phone")
    client.line.set(delay_ms=25, jitter_ms=50, reorder=1.0)
    client.line.reset()
    seen = send(lab, client, count=1500, every_s=0.002, family=family)
    row = client.line.statistics()["up"]
    print(f"one way p1 {seen.delay_ms(1):.1f}, p50 {seen.delay_ms(50):.1f}, p99 {seen.delay_ms(99):.1f} ms")
    assert len(seen.numbers) == 1500
    assert seen.delay_ms(0) >= 25, "never before its time"
    # What the process adds on a busy machine is its own affair; its median stays small.
    assert 45 <= seen.delay_ms(50) <= 65
    assert seen.delay_ms(50) == pytest.approx(row["way_ms"]["p50"], abs=5)
    assert seen.overtaken == row["overtaken"] > 100


def test_jitter_without_reordering_keeps_the_order(lab: Laboratory) -> None:
    client = lab.add("phone")
    client.line.set(jitter_ms=50)
    seen = send(lab, client, count=1000, every_s=0.002)
    assert seen.numbers == list(range(1000))


def test_a_rate_is_kept_and_the_queue_drops_the_rest(lab: Laboratory) -> None:
    client = lab.add("phone")
    client.line.set(up={"rate_bps": 1_000_000, "queue_bytes": 20_000})
    client.line.reset()
    seen = send(lab, client, count=2000, every_s=0.002, payload=472)  # 2 Mbit/s of IP packets of 500 bytes
    row = client.line.statistics()["up"]
    taken_s = (seen.arrivals_ns[-1] - seen.arrivals_ns[0]) / 1e9
    rate_bps = (len(seen.numbers) - 1) * 500 * 8 / taken_s
    print(f"{rate_bps / 1e6:.3f} Mbit/s, queue {row['queue_ms']}")
    assert rate_bps == pytest.approx(1_000_000, rel=0.03)
    assert row["dropped"]["queue"] == 2000 - len(seen.numbers) > 500
    assert row["queue_ms"]["p99"] == pytest.approx(20_000 * 8 / 1000, rel=0.1)


def test_outages_and_cuts_let_nothing_through(lab: Laboratory) -> None:
    client = lab.add("phone")
    client.line.reset()
    client.line.set(up={"outage_every_ms": 500, "outage_ms": 100})
    seen = send(lab, client, count=2000, every_s=0.001, wait_s=0.3)
    holes = [later - before for before, later in itertools.pairwise(seen.numbers) if later - before > 50]
    assert len(holes) in (3, 4)
    assert client.line.statistics()["up"]["dropped"]["outage"] == 2000 - len(seen.numbers)
    client.line.set(cut=True)
    assert send(lab, client, count=50, every_s=0.001, wait_s=0.2).numbers == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_that_changed_its_address_is_reached_at_the_new_one(
    lab: Laboratory, family: socket.AddressFamily
) -> None:
    client = lab.add("phone")
    assert client.address != client.change_address()
    for up in (True, False):
        assert send(lab, client, count=50, every_s=0.001, up=up, family=family, wait_s=0.3).loss == 0


def test_two_clients_have_lines_of_their_own(lab: Laboratory) -> None:
    phone, desk = lab.add("phone"), lab.add("desk")
    phone.line.set(cut=True)
    assert send(lab, desk, count=50, every_s=0.001, wait_s=0.2).loss == 0
    assert send(lab, phone, count=50, every_s=0.001, wait_s=0.2).loss == 1


def test_it_carries_20_mbit_a_second(lab: Laboratory) -> None:
    client = lab.add("phone")
    client.line.set(delay_ms=20, jitter_ms=10)
    client.line.reset()
    before_s = client.line.statistics()["cpu_s"]
    seen = send(lab, client, count=25_000, every_s=0.0002, payload=472)
    told = client.line.statistics()
    (device,) = json.loads(ip("-n", client.namespace, "-s", "-j", "link", "show", "dev", client.device))
    print(
        f"5,000 packets/s: {(told['cpu_s'] - before_s) / 5:.2f} of a core, {25_000 - len(seen.numbers)} lost"
    )
    assert told["up"]["delivered_packets"] == 25_000
    assert device["stats64"]["tx"]["dropped"] == 0
    assert seen.loss == 0


def test_a_wrong_setting_is_refused_and_changes_nothing(lab: Laboratory) -> None:
    client = lab.add("phone")
    with pytest.raises(LabError, match="loss"):
        client.line.set(up={"loss": 0.5}, down={"loss": 2})
    assert send(lab, client, count=100, every_s=0.001, wait_s=0.2).loss == 0


def test_nothing_is_left_after_a_failure(lab_seed: int) -> None:
    with pytest.raises(ZeroDivisionError), Laboratory(lab_seed) as lab:  # noqa: PT012
        line = lab.add("phone").line
        _ = 1 / 0
    assert line.process.poll() == 0
    assert f"lab{os.getpid()}" not in ip("netns", "list")
    assert f"lab215n{os.getpid()}" not in ip("link")
