"""Scalable streams (SVC) between real browsers: one stream, to each what he wishes of it, one recording."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.api import Api
from tests.e2e.browser import chromium
from tests.e2e.conftest import LONG
from tests.e2e.layered import SHOWN, WATCH, Call, ended, opened, picture, until
from tests.e2e.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

WIDTHS = {0: 240, 1: 480, 2: 960}
FULL_BPS, NARROW_BPS = 1_200_000, 120_000
PUBLISH = """async ({room, token, codec, mode, bps}) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [960, 540];
    const pen = canvas.getContext("2d");
    let count = 0;
    setInterval(() => {
        for (let column = 0; column < 24; column += 1) {
            pen.fillStyle = `hsl(${(column * 15 + count * 2) % 360} 70% 60%)`;
            pen.fillRect(column * 40, 0, 40, 540);
        }
        pen.fillStyle = "black";
        pen.fillRect((count * 7) % 900, 200, 60, 140);
        count += 1;
    }, 66);
    const media = canvas.captureStream(15);
    const connection = new RTCPeerConnection();
    const transceiver = connection.addTransceiver(media.getVideoTracks()[0], {
        direction: "sendonly", streams: [media], sendEncodings: [{ scalabilityMode: mode, maxBitrate: bps }],
    });
    stage.prefer(transceiver, codec);
    const session = await stage.join("publish camera", connection, `/v1/whip/${room}`, token);
    session.media = media;
    stage.limit = async (maxBitrate) => {
        const parameters = transceiver.sender.getParameters();
        parameters.encodings[0].maxBitrate = maxBitrate;
        await transceiver.sender.setParameters(parameters);
    };
    return connection.remoteDescription.sdp;
}"""
PICTURES = "stage.shown.length"


async def make(stage: Stage, codec: str, mode: str, *, described: bool) -> Call:
    room = f"scalable-{codec.rpartition('/')[2]}-{mode}".lower().replace("_", "-")
    moments: dict[str, float] = {}
    layers: dict[str, Any] = {}
    async with Api(stage.base, stage.key()) as api, chromium() as browser:
        await api.room(room, codecs=[codec, "audio/opus"])
        token = await api.token(room, "customer", "customer")
        publisher, subscriber, boss = [await opened(browser, api.base) for _ in range(3)]
        given = {"room": room, "token": token, "codec": codec, "mode": mode, "bps": FULL_BPS}
        answer = await publisher.evaluate(PUBLISH, given)
        agent = await api.token(room, "agent", "agent")
        watching = {"room": room, "target": "customer", "token": agent, "described": described}
        session = await subscriber.evaluate("options => stage.subscribe(options)", watching)
        path = f"{session['location']}/layers"

        await until(api, path, subscriber, WIDTHS[2])  # by default the highest
        recording = await api.record(room, f"SCALABLE-{codec.rpartition('/')[2]}-{mode}")
        await subscriber.evaluate(WATCH, "customer")
        moments["begin"] = time.time()
        await asyncio.sleep(2.0)
        for name, layer in (("lowest", 0), ("middle", 1), ("highest", 2)):
            moments[name] = time.time()
            await api.call("PATCH", path, {"preferred": layer}, bearer=agent)
            await until(api, path, subscriber, WIDTHS[layer])
            moments[f"{name} shown"] = time.time()
            await asyncio.sleep(1.5)
            layers[name] = await picture(api, path)
        moments["slow"] = time.time()
        await api.call("PATCH", path, {"temporal": 0}, bearer=agent)
        await asyncio.sleep(0.5)
        moments["slow shown"] = time.time()
        await asyncio.sleep(3.0)
        moments["fast"] = time.time()
        await api.call("PATCH", path, {}, bearer=agent)
        await asyncio.sleep(0.7)
        moments["fast shown"] = time.time()
        await asyncio.sleep(3.0)
        moments["whole"] = time.time()
        hidden = await api.token(room, "boss", "supervisor", grants={"hidden": True, "publish": False})
        alone = {**watching, "token": hidden, "described": False}
        await boss.evaluate("options => stage.subscribe(options)", alone)
        await until(api, path, boss, WIDTHS[0])
        await asyncio.sleep(1.0)
        thumbnail = await boss.evaluate(SHOWN)
        moments["narrow"] = time.time()
        await publisher.evaluate("bps => stage.limit(bps)", NARROW_BPS)
        await asyncio.sleep(4.0)
        layers["narrow"] = await picture(api, path)
        moments["wide"] = time.time()
        await publisher.evaluate("bps => stage.limit(bps)", FULL_BPS)
        await until(api, path, subscriber, WIDTHS[2])
        moments["wide shown"] = time.time()
        await asyncio.sleep(2.0)
        moments["end"] = time.time()
        return await ended(api, subscriber, recording["id"], answer, moments, layers, thumbnail)


CASES = [("video/VP9", "L3T3_KEY", False)]
"""Codec, mode, and whether subscribers take dependency descriptors."""
if LONG:
    CASES.append(("video/AV1", "L3T3_KEY", True))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=CASES, ids=lambda case: case[0])
async def call(stage: Stage, request: pytest.FixtureRequest) -> AsyncIterator[Call]:
    """Make the call once for each codec."""
    codec, mode, described = request.param
    made = await make(stage, codec, mode, described=described)
    print(json.dumps({name: round(at - made.moments["begin"], 2) for name, at in made.moments.items()}))
    print(f"longest time without a new picture: {made.longest_gap():.3f} s")
    print(f"pictures a second: slow {made.pictures('slow shown', 'fast'):.1f}, ", end="")
    print(f"whole {made.pictures('fast shown', 'whole'):.1f}")
    print(json.dumps(made.layers))
    print(json.dumps(next(s for s in made.stats["streams"] if s["kind"] == "video")))
    yield made


async def test_the_layers_of_one_stream_are_found(call: Call) -> None:
    assert "#dependency-descriptor-rtp-header-extension" in call.answer
    picture = call.layers["highest"]
    assert picture["temporal_layers"] == 3
    assert [layer["layer"] for layer in picture["layers"]] == [0, 1, 2]
    weights = [layer["bps"] for layer in picture["layers"]]
    assert weights[0] > 0
    assert weights == sorted(weights)


async def test_a_wish_goes_down_and_up(call: Call) -> None:
    for name, layer in (("lowest", 0), ("middle", 1), ("highest", 2)):
        picture = call.layers[name]
        assert (picture["layer"], picture["preferred"], picture["switching"]) == (layer, layer, False)
    assert call.widths("lowest shown", "middle") == [WIDTHS[0]]
    assert call.widths("middle shown", "highest") == [WIDTHS[1]]
    assert call.widths("highest shown", "slow") == [WIDTHS[2]]


async def test_temporal_layers_are_left_out_and_come_back(call: Call) -> None:
    slow, whole = call.pictures("slow shown", "fast"), call.pictures("fast shown", "whole")
    assert slow < whole / 2
    assert call.widths("slow shown", "whole") == [WIDTHS[2]]


async def test_a_hidden_supervisor_gets_the_smallest(call: Call) -> None:
    assert call.thumbnail == WIDTHS[0]


async def test_a_layer_that_the_sender_leaves_out_is_missed_by_nobody(call: Call) -> None:
    alive = [layer["alive"] for layer in call.layers["narrow"]["layers"]]
    assert alive[0]
    assert not alive[2], call.layers["narrow"]
    assert call.widths("wide", "end")[-1] == WIDTHS[2]


async def test_the_recording_is_one_picture_and_marks_layers_that_come_and_go(call: Call) -> None:
    events = [one for one in call.timeline["events"] if one["type"] == "track.layer"]
    tops = [event["data"]["recorded_layer"] for event in events]
    assert tops[-1] == 2, events
    assert min(tops) < 2, events
    shown = [c["shown"] for c in call.timeline["composite"]["shown"] if c["seat"] == "customer#1"]
    assert set(shown[shown.index("picture") :]) == {"picture"}, shown
    # It begins between keyframes and may end within a picture.
    end_ms = 1000 * (call.moments["end"] - call.moments["begin"])
    gaps = call.timeline["composite"]["gaps"]
    assert not [gap for gap in gaps if gap["reason"] == "loss" and 1000 < gap["from_ms"] < end_ms], gaps
    times = call.film.frame_times_s
    assert times[-1] > call.moments["end"] - call.moments["begin"] - 1.0
