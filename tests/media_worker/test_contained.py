"""What goes wrong with one client stays with it: the others' events, timers and reports go on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mediaserver.ipc import IpcError
from mediaserver.media import session
from mediaserver.media.feedback import SECOND_NS
from mediaserver.media.layer import Layer
from mediaserver.media.link import Link
from mediaserver.media.room import MAX_SESSIONS_PER_PARTICIPANT
from mediaserver.media.sdp import SdpError, parse_offer
from mediaserver.media.service import Service
from mediaserver.media.session import SubscribeSession
from mediaserver.media.subscription import PLEAS
from recorder import rtcp
from tests.forwarder.ends import World, rtp
from tests.media_worker.rig import worker
from tests.media_worker.transports import transport_of

OFFERS = Path(__file__).parent / "offers"


@pytest.fixture
def world() -> Iterator[World]:
    made = World("native")
    try:
        yield made
    finally:
        made.close()


CONSENT_NS = 10**10


class Owner:
    """Whom a peer's timer or events concern; it may fail."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.woken = 0

    def handle_timer(self, now: int) -> int | None:
        self.woken += 1
        if self.fails:
            raise ZeroDivisionError("a client's numbers")
        return now

    def trouble(self) -> None:
        raise AssertionError("no feedback is watched here")


@pytest.mark.asyncio
async def test_a_timer_that_fails_rests_and_the_others_run_on(world: World) -> None:
    transport = transport_of(world, CONSENT_NS)
    bad, good = Owner(fails=True), Owner()
    seconds: list[int] = []
    for number, owner in ((901, bad), (902, good)):
        transport.watch_timer(number, owner)
        transport.wake(number)
    transport.start([seconds.append])
    async with asyncio.timeout(10):
        while good.woken < 5 or len(seconds) < 2:
            await asyncio.sleep(0.01)
    assert bad.woken == 1
    assert transport.counters.internal_errors == 1
    transport._loop = None  # the world closes the forwarder
    assert transport._timer is not None
    transport._timer.cancel()
    asyncio.get_running_loop().remove_reader(world.forwarder.event_fd)


def test_an_event_that_fails_costs_the_others_none(world: World) -> None:
    """The log line of the failure was itself one that failed, and took all events after it along."""
    transport = transport_of(world, CONSENT_NS)
    first, second = world.end(), world.end()
    heard: list[int] = []

    def owner(number: int, *, fails: bool) -> Link:
        def found_ssrc(event: object) -> None:
            heard.append(number)
            if fails:
                raise ZeroDivisionError

        return cast(Link, SimpleNamespace(owner=SimpleNamespace(found_ssrc=found_ssrc)))

    transport._by_peer = {
        first.peer: owner(1, fails=True),
        second.peer: owner(2, fails=False),
    }
    first.send(rtp(1, ssrc=0x51))
    world.settle()
    second.send(rtp(1, ssrc=0x52))
    world.forwarder.take_events = lambda events=world.forwarder.take_events: [*world.events, *events()]  # type: ignore
    transport._drain()
    assert heard == [1, 2]
    assert transport.counters.internal_errors == 1


def test_a_report_that_fails_costs_the_others_none(world: World) -> None:
    transport = transport_of(world, CONSENT_NS)
    reported: list[int] = []

    def fail(now: int) -> None:
        raise ValueError("a session's own")

    sessions = {
        "a": (SimpleNamespace(report=fail), None),
        "b": (SimpleNamespace(report=reported.append), None),
    }
    Service._reports(cast(Service, SimpleNamespace(sessions=sessions, transport=transport)), 5)
    assert reported == [5]


def test_reports_of_many_tracks_fit_their_datagrams(world: World) -> None:
    """29 tracks on one connection were more than a packet holds."""
    transport = transport_of(world, CONSENT_NS)
    made = SubscribeSession(cast(session.SessionOwner, SimpleNamespace(red="off")), transport, "viewer")
    made.open(parse_offer((OFFERS / "chromium_subscribe.sdp").read_text()), ["VP8", "opus"], "somebody")
    report = rtcp.SenderReport(ssrc=1, ntp=1, rtp_timestamp=1, packets=1, octets=1)
    pair = [report, rtcp.SourceDescription.of_cname(1, "f" * 16)]
    tracks = [SimpleNamespace(report=lambda now: pair, publication=None, route=None) for _ in range(64)]
    made.subscriptions = tracks  # type: ignore[assignment]
    sent: list[bytes] = []
    real = world.forwarder.send_rtcp

    def send(peer: int, data: bytes) -> bool:
        sent.append(data)
        return real(peer, data)

    world.forwarder.send_rtcp = send  # type: ignore[method-assign]
    made.report(5)
    assert sum(len(rtcp.parse(data)) for data in sent) == 128
    assert all(isinstance(rtcp.parse(data)[0], rtcp.SenderReport) for data in sent)
    assert max(map(len, sent)) <= 1200


def test_two_tracks_of_one_ssrc_are_refused_at_the_door() -> None:
    offer = (OFFERS / "aiortc_publish.sdp").read_bytes().decode()
    audio, video = offer.split("m=video")
    (name,) = set(re.findall(r"a=ssrc:(\d+)", audio))
    for other in set(re.findall(r"a=ssrc:(\d+)", video)):
        with pytest.raises(SdpError, match="same ssrc"):
            parse_offer(audio + "m=video" + video.replace(other, name))


@pytest.mark.asyncio
async def test_one_participant_does_not_fill_the_room(tmp_path: Path) -> None:
    """Offers that are never taken up: each is a session for 30 s."""
    offer = (OFFERS / "chromium_subscribe.sdp").read_bytes().decode()
    async with worker(tmp_path) as server:
        await server.call("room.open", room="hall")

        async def enter(identity: str) -> None:
            await server.call("whep", room="hall", identity=identity, target="somebody", sdp=offer)

        for _ in range(MAX_SESSIONS_PER_PARTICIPANT):
            await enter("greedy")
        with pytest.raises(IpcError) as refused:
            await enter("greedy")
        assert (refused.value.code, refused.value.status) == ("room_full", 503)
        await enter("customer")


def test_a_client_that_asks_for_keyframes_all_the_time_is_heeded_once_a_second(world: World) -> None:
    """The sender pays for each with 3 to 10 pictures, and so do the recording and the others."""
    transport = transport_of(world, CONSENT_NS)
    made = SubscribeSession(cast(session.SessionOwner, SimpleNamespace(red="off")), transport, "viewer")
    made.open(parse_offer((OFFERS / "chromium_subscribe.sdp").read_text()), ["VP8", "opus"], "somebody")
    asked: list[int] = []
    start = now = 10**12

    def ask() -> None:
        asked.append(now)

    picture = made.pictures()[0]
    picture.layer = cast(Layer, SimpleNamespace(want_keyframe=ask))
    plea = rtcp.PictureLossIndication(7, picture.ssrc)
    for tick in range(600):  # a minute
        now = start + tick * SECOND_NS // 10
        made.take_rtcp([plea], now)
    assert PLEAS + 58 <= len(asked) <= PLEAS + 60
    assert asked[:PLEAS] == [start + tick * SECOND_NS // 10 for tick in range(PLEAS)], "at first at once"
    now += 60 * SECOND_NS
    before = len(asked)
    for _ in range(2 * PLEAS):
        made.take_rtcp([plea], now)
    assert len(asked) == before + PLEAS
