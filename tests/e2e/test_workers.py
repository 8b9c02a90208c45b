"""Two media workers: rooms go to the one with fewer of them, and the death of one is none of the other's.

Which worker serves a room is read from the outside: from the UDP port in the answer, and from /proc whose
socket that is.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import peers
from tests.e2e.api import Api
from tests.e2e.conftest import LONG
from tests.e2e.evidence import arrivals_ns, directory_of, records_of
from tests.e2e.stage import Stage
from tests.e2e.test_crash import REJOIN_S, calling
from tests.media.pictures import AGENT, CUSTOMER
from tests.media.tracks import MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

HOLE_S = 0.5
BEFORE_S, AFTER_S = (10.0, 10.0) if LONG else (2.0, 3.0)
LOOK_S = 0.02


def port_of(session: peers.Session) -> int:
    """Return the server's UDP port of a session."""
    lines = session.connection.remoteDescription.sdp.splitlines()
    candidates = [line.split() for line in lines if line.startswith("a=candidate:")]
    (port,) = {int(words[5]) for words in candidates if words[2] == "udp"}
    return port


def pid_of(stage: Stage, port: int) -> int:
    """Return the worker that has a UDP port open."""
    table = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in table if int(row[1].rpartition(":")[2], 16) == port}
    for pid in stage.pids("worker"):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(descriptor)[8:-1] in inodes:
                return pid
    raise AssertionError(f"no worker has port {port}")


async def sound(api: Api, room: str) -> peers.Session:
    """Open a room and let a customer's microphone publish into it: a call that costs little."""
    await api.room(room)
    token = await api.token(room, CUSTOMER.identity, CUSTOMER.role)
    session = await peers.publish(api, room, token, [MicrophoneTrack(CUSTOMER)])
    await peers.connected(session)
    return session


async def watch(subscription: peers.Subscription, seen: list[tuple[float, int]]) -> None:
    """Note, every 20 ms, when more packets had come, as the client's own statistics count them."""
    while True:
        report = await subscription.session.connection.getStats()
        counts = [one.packetsReceived for one in report.values() if one.type == "inbound-rtp"]
        if not seen or sum(counts) > seen[-1][1]:
            seen.append((time.monotonic(), sum(counts)))
        await asyncio.sleep(LOOK_S)


def widest(times: list[float]) -> float:
    """Return the largest distance between neighbours."""
    return max(late - early for early, late in itertools.pairwise(times))


def segments(stage: Stage, recording: dict[str, Any]) -> dict[str, bytes]:
    """Return what a recording's segments hold now."""
    found = (directory_of(stage, recording["id"]) / "segments").iterdir()
    return {path.name: path.read_bytes() for path in found}


async def test_rooms_go_to_the_least_loaded_worker(tmp_path: Path) -> None:
    with Stage(tmp_path / "data", {"media.workers": 2}) as stage:
        async with Api(stage.base, stage.key()) as api:
            calls = {room: await sound(api, room) for room in ("one", "two", "three", "four")}
            served = {room: pid_of(stage, port_of(session)) for room, session in calls.items()}
            assert sorted(served.values()) == sorted(2 * stage.pids("worker"))
            for room in ("one", "three" if served["three"] == served["one"] else "four"):
                await api.call("DELETE", f"/v1/rooms/{room}")
            for room in ("five", "six"):
                calls[room] = await sound(api, room)
                assert pid_of(stage, port_of(calls[room])) == served["one"], "the worker with fewer rooms"
            for session in calls.values():
                await session.close()


async def test_a_killed_worker_leaves_the_other_alone(tmp_path: Path) -> None:
    settings = {"media.workers": 2, "composing.when": "on_demand"}
    with Stage(tmp_path / "data", settings) as stage:
        async with (
            Api(stage.base, stage.key()) as api,
            calling(api, "doomed") as doomed,
            calling(api, "spared") as spared,
        ):
            victim, other = (pid_of(stage, port_of(one.session)) for one in (doomed, spared) if one.session)
            assert victim != other
            recordings = {
                caller.room: await api.record(caller.room, f"WORKERS-{caller.room}")
                for caller in (doomed, spared)
            }
            token = await api.token(spared.room, AGENT.identity, AGENT.role)
            subscription = await peers.subscribe(api, spared.room, CUSTOMER.identity, token)
            await subscription.first_picture()
            seen: list[tuple[float, int]] = []
            watching = asyncio.create_task(watch(subscription, seen))
            await asyncio.sleep(BEFORE_S)

            before = segments(stage, recordings["spared"])
            os.kill(victim, signal.SIGKILL)
            killed_s = time.monotonic()
            while len(doomed.joined_at) < 2:
                assert time.monotonic() < killed_s + REJOIN_S + 10, stage.log_end()
                await asyncio.sleep(LOOK_S)
            rejoined_s = doomed.joined_at[1] - killed_s
            await asyncio.sleep(AFTER_S)
            watching.cancel()
            await subscription.close()
            shown = {room: await api.stop(one["id"]) for room, one in recordings.items()}
            reports = {
                room: await api.call("POST", f"/v1/recordings/{one['id']}/verify")
                for room, one in recordings.items()
            }
            after = segments(stage, recordings["spared"])
            arrivals = {
                room: [at / 1e9 for at in arrivals_ns(await records_of(stage, one["id"]))]
                for room, one in recordings.items()
            }
            while len(stage.pids("worker")) < 2:
                assert time.monotonic() < killed_s + 20, "nothing took the dead worker's place"
                await asyncio.sleep(0.1)
            assert other in stage.pids("worker")

    received_s = widest([at for at, _ in seen])
    recorded_s = widest(arrivals["spared"])
    print(
        f"the other call: widest distance {received_s * 1000:.0f} ms received, "
        f"{recorded_s * 1000:.0f} ms recorded; rejoined after {rejoined_s:.2f} s"
    )
    assert seen[0][0] < killed_s < seen[-1][0] - AFTER_S / 2
    assert received_s < HOLE_S
    assert recorded_s < HOLE_S
    assert len(spared.joined_at) == 1
    assert (shown["spared"]["parts"], shown["spared"]["gaps"]) == (1, [])
    assert all(after[name].startswith(data) for name, data in before.items())
    assert rejoined_s <= REJOIN_S
    assert shown["doomed"]["parts"] == 2
    assert len(shown["doomed"]["gaps"]) == 1
    assert sum(at > killed_s for at in arrivals["doomed"]) > 50 * (AFTER_S - 1)
    assert all(report["ok"] is True for report in reports.values()), reports
