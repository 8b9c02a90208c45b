"""Simulcast between real browsers: layers by wish, a layer that dies, and one picture in the recording."""

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

CODECS = ["video/VP8", *(["video/H264"] if LONG else [])]
RIDS = ("quarter", "half", "full")
WIDTHS = {0: 240, 1: 480, 2: 960}
PUBLISH = """async ({room, token, codec, rids}) => {
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
    const sendEncodings = rids.map((rid, at) => ({
        rid, scaleResolutionDownBy: 2 ** (rids.length - 1 - at), maxBitrate: [120000, 300000, 800000][at],
    }));
    const transceiver = connection.addTransceiver(media.getVideoTracks()[0], {
        direction: "sendonly", streams: [media], sendEncodings,
    });
    stage.prefer(transceiver, codec);
    const session = await stage.join("publish camera", connection, `/v1/whip/${room}`, token);
    session.media = media;
    stage.activate = async (rid, active) => {
        const parameters = transceiver.sender.getParameters();
        for (const one of parameters.encodings) if (one.rid === rid) one.active = active;
        await transceiver.sender.setParameters(parameters);
    };
    return connection.remoteDescription.sdp;
}"""


async def make(stage: Stage, codec: str) -> Call:
    room = f"counter-simulcast-{codec.rpartition('/')[2].lower()}"
    moments: dict[str, float] = {}
    layers: dict[str, Any] = {}
    async with Api(stage.base, stage.key()) as api, chromium() as browser:
        await api.room(room, codecs=[codec, "audio/opus"])
        token = await api.token(room, "customer", "customer")
        publisher, subscriber, boss = [await opened(browser, api.base) for _ in range(3)]
        given = {"room": room, "token": token, "codec": codec, "rids": RIDS}
        answer = await publisher.evaluate(PUBLISH, given)
        agent = await api.token(room, "agent", "agent")
        watching = {"room": room, "target": "customer", "token": agent}
        session = await subscriber.evaluate("options => stage.subscribe(options)", watching)
        path = f"{session['location']}/layers"

        await until(api, path, subscriber, WIDTHS[2])  # by default the highest
        recording = await api.record(room, f"SIMULCAST-{codec.rpartition('/')[2]}")
        await subscriber.evaluate(WATCH, "customer")
        moments["begin"] = time.time()
        await asyncio.sleep(1.5)
        for name, layer in (("lowest", 0), ("middle", 1), ("highest", 2)):
            moments[name] = time.time()
            await api.call("PATCH", path, {"preferred": layer}, bearer=agent)
            await until(api, path, subscriber, WIDTHS[layer])
            moments[f"{name} shown"] = time.time()
            await asyncio.sleep(1.5)
            layers[name] = [await picture(api, path)]
        hidden = await api.token(room, "boss", "supervisor", grants={"hidden": True, "publish": False})
        await boss.evaluate("options => stage.subscribe(options)", {**watching, "token": hidden})
        await asyncio.sleep(1.5)
        thumbnail = await boss.evaluate(SHOWN)
        moments["full dies"] = time.time()
        await publisher.evaluate("stage.activate('full', false)")
        await until(api, path, subscriber, WIDTHS[1])
        moments["half shown"] = time.time()
        await asyncio.sleep(2.5)
        layers["full dies"] = [await picture(api, path)]
        moments["full back"] = time.time()
        await publisher.evaluate("stage.activate('full', true)")
        await until(api, path, subscriber, WIDTHS[2])
        moments["full shown"] = time.time()
        await asyncio.sleep(3.0)
        moments["end"] = time.time()
        return await ended(api, subscriber, recording["id"], answer, moments, layers, thumbnail)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=CODECS)
async def call(stage: Stage, request: pytest.FixtureRequest) -> AsyncIterator[Call]:
    """Make the call once for each codec."""
    made = await make(stage, request.param)
    print(json.dumps({name: round(at - made.moments["begin"], 2) for name, at in made.moments.items()}))
    print(f"longest time without a new picture: {made.longest_gap():.3f} s")
    yield made


async def test_all_layers_are_agreed_and_received(call: Call) -> None:
    assert f"a=simulcast:recv {';'.join(RIDS)}\r\n" in call.answer
    (picture,) = call.layers["highest"]
    assert [layer["rid"] for layer in picture["layers"]] == list(RIDS)
    assert all(layer["alive"] and layer["bps"] > 0 for layer in picture["layers"]), picture
    weights = [layer["bps"] for layer in picture["layers"]]
    assert weights == sorted(weights)


async def test_a_wish_goes_down_and_up(call: Call) -> None:
    for name, layer in (("lowest", 0), ("middle", 1), ("highest", 2)):
        (picture,) = call.layers[name]
        assert (picture["layer"], picture["preferred"], picture["switching"]) == (layer, layer, False)
    assert call.widths("lowest shown", "middle") == [WIDTHS[0]]
    assert call.widths("middle shown", "highest") == [WIDTHS[1]]
    assert call.widths("highest shown", "full dies") == [WIDTHS[2]]
    video = next(one for one in call.stats["streams"] if one["kind"] == "video")
    assert video["frameWidth"] == WIDTHS[2]
    assert video.get("framesDecoded", 0) > 100


async def test_a_hidden_supervisor_gets_the_smallest(call: Call) -> None:
    assert call.thumbnail == WIDTHS[0]


async def test_a_dead_layer_is_left_and_taken_again(call: Call) -> None:
    (picture,) = call.layers["full dies"]
    assert picture["layer"] == 1
    assert [layer["alive"] for layer in picture["layers"]] == [True, True, False]
    left = call.widths("full dies", "full back")
    assert left in ([WIDTHS[2], WIDTHS[1]], [WIDTHS[1]])  # its last pictures may have been shown before
    assert call.widths("full back", "end") == [WIDTHS[1], WIDTHS[2]]


async def test_the_recording_is_one_picture_and_marks_every_change(call: Call) -> None:
    events = [one for one in call.timeline["events"] if one["type"] == "track.layer"]
    assert [event["data"]["recorded_layer"] for event in events] == [1, 2], events
    shown = [c["shown"] for c in call.timeline["composite"]["shown"] if c["seat"] == "customer#1"]
    first = shown.index("picture")
    assert set(shown[first:]) == {"picture"}, shown
    changes_ms = 1000 * (call.moments["full dies"] - call.moments["begin"])
    gaps = call.timeline["composite"]["gaps"]
    lost = [gap for gap in gaps if gap["reason"] == "loss" and gap["from_ms"] > changes_ms]
    assert not lost, lost
    times = call.film.frame_times_s
    assert times[-1] > call.moments["end"] - call.moments["begin"] - 1.0
