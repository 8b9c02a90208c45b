"""Two headless Chromiums in one room: each decodes what the other sends, soon after joining."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import pytest

from tests.e2e.api import Api, Problem
from tests.e2e.browser import Participant, participant
from tests.e2e.stage import Stage
from tests.media.pictures import AGENT, CUSTOMER, FPS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

JOIN_S = 1.0
LEAST_DECODED = 0.95


async def joined(api: Api, stage_room: str, one: Participant, other: Participant, codec: str) -> list[float]:
    """Let both publish and then subscribe to each other; returns both times from POST to first picture."""
    agent = await api.token(stage_room, AGENT.identity, AGENT.role)
    customer = await api.token(stage_room, CUSTOMER.identity, CUSTOMER.role)
    await asyncio.gather(
        one.publish(stage_room, agent, codec=codec), other.publish(stage_room, customer, codec=codec)
    )
    # The senders are measured in their stride, not while their encoders start.
    for sender in (one, other):
        deadline = time.monotonic() + 15
        while await sender.count("publish camera", "video", "framesSent") < FPS:
            assert time.monotonic() < deadline, "nothing was sent in 15 s"
            await asyncio.sleep(0.1)
    return [
        await one.subscribe(stage_room, CUSTOMER.identity, agent),
        await other.subscribe(stage_room, AGENT.identity, customer),
    ]


@pytest.mark.parametrize("codec", ["video/VP8", "video/H264", "video/VP9"])
async def test_each_decodes_what_the_other_sends(
    stage: Stage, api: Api, room: str, devices: dict[str, tuple[Path, Path]], call_s: float, codec: str
) -> None:
    await api.room(room, codecs=[codec, "audio/opus"])
    async with (
        participant(stage.base, *devices[AGENT.identity]) as one,
        participant(stage.base, *devices[CUSTOMER.identity]) as other,
    ):
        joins = await joined(api, room, one, other, codec)
        names = {one: f"subscribe {CUSTOMER.identity}", other: f"subscribe {AGENT.identity}"}

        async def counts(sender: Participant, receiver: Participant) -> tuple[int, int, int]:
            return (
                await sender.count("publish camera", "video", "framesSent"),
                await receiver.count(names[receiver], "video", "framesDecoded"),
                await receiver.count(names[receiver], "audio", "packetsReceived"),
            )

        before = [await counts(one, other), await counts(other, one)]
        await asyncio.sleep(call_s)
        after = [await counts(one, other), await counts(other, one)]
        stats = await one.stats()
        people = await api.participants(room)
        await one.leave()
        await other.leave()
    for begin, end in zip(before, after, strict=True):
        sent, decoded, sound = (late - early for early, late in zip(begin, end, strict=True))
        print(f"{codec}: sent {sent}, decoded {decoded} ({decoded / sent:.1%}), sound packets {sound}")
        assert sent >= call_s * FPS * 0.9
        assert decoded >= sent * LEAST_DECODED
        assert sound >= call_s * 50 * LEAST_DECODED
    print(f"{codec}: joins {', '.join(f'{join * 1000:.0f} ms' for join in joins)}")
    assert statistics.median(joins) < JOIN_S
    assert all(one["state"] == "connected" for one in stats.values())
    tracks = {track["mime"].lower() for person in people for track in person["tracks"]}
    assert tracks == {codec.lower(), "audio/opus"}
    assert {(person["identity"], person["seat"]) for person in people} == {
        (AGENT.identity, "agent#1"),
        (CUSTOMER.identity, "customer#1"),
    }


async def test_a_client_without_a_common_codec_is_told_so(api: Api, room: str) -> None:
    await api.room(room, codecs=["video/VP9", "audio/opus"])
    token = await api.token(room, AGENT.identity, AGENT.role)
    with pytest.raises(Problem) as caught:
        await api.call(
            "POST",
            f"/v1/whip/{room}?source=camera",
            data=VP8_ONLY,
            headers={"Content-Type": "application/sdp"},
            bearer=token,
        )
    assert caught.value.code == "codec_mismatch"
    assert "VP9" in str(caught.value)
    assert "VP8" in str(caught.value)


VP8_ONLY = "\r\n".join(
    [
        "v=0",
        "o=- 1 1 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0",
        "m=video 9 UDP/TLS/RTP/SAVPF 96",
        "c=IN IP4 0.0.0.0",
        "a=mid:0",
        "a=ice-ufrag:abcd",
        "a=ice-pwd:0123456789012345678901",
        "a=fingerprint:sha-256 " + ":".join(["AB"] * 32),
        "a=setup:actpass",
        "a=rtcp-mux",
        "a=sendonly",
        "a=rtpmap:96 VP8/90000",
        "a=ssrc:1234 cname:x",
        "",
    ]
)
