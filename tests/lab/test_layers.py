"""A subscriber's narrow line, and a publisher who sends three sizes: the layer follows the line."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.api import Api
from tests.e2e.browser import Participant, participant
from tests.e2e.layered import WATCH
from tests.lab.call import ROOM, VIEWER, Devices
from tests.lab.network import SERVER, Laboratory, Network
from tests.lab.table import Table
from tests.media.pictures import CUSTOMER

pytestmark = [pytest.mark.lab, pytest.mark.whole, pytest.mark.timeout(400)]

WIDTHS = (240, 480, 960)
RATES_BPS = (120_000, 350_000, 1_100_000)
PUBLISH = """async ({ room, token, widths, rates }) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [960, 540];
  const pen = canvas.getContext("2d");
  const grain = new OffscreenCanvas(240, 135), spray = grain.getContext("2d");
  const noise = spray.createImageData(240, 135);
  let count = 0;
  setInterval(() => {  // every picture is new: what a layer may have, it takes
    for (let at = 0; at < noise.data.length; at += 4) {
      noise.data[at] = noise.data[at + 1] = noise.data[at + 2] = 90 + Math.random() * 60;
      noise.data[at + 3] = 255;
    }
    spray.putImageData(noise, 0, 0);
    pen.drawImage(grain, 0, 0, 960, 540);
    pen.fillStyle = "black";
    pen.fillRect((count * 7) % 900, 200, 60, 140);
    count += 1;
  }, 66);
  const media = await navigator.mediaDevices.getUserMedia({ audio: true });
  const connection = new RTCPeerConnection();
  connection.addTransceiver(media.getAudioTracks()[0], { direction: "sendonly", streams: [media] });
  const picture = connection.addTransceiver(canvas.captureStream(15).getVideoTracks()[0], {
    direction: "sendonly", streams: [media],
    sendEncodings: widths.map((width, at) => ({
      rid: `w${width}`, scaleResolutionDownBy: widths.at(-1) / width, maxBitrate: rates[at],
    })),
  });
  stage.prefer(picture, "video/VP8");
  const session = await stage.join("publish camera", connection, `/v1/whip/${room}`, token);
  session.media = media;
}"""


@dataclass
class Layered:
    """What the scenario works with."""

    api: Api
    desk: Network
    viewer: Participant
    layers: str
    """Where the API shows the viewer's layers."""
    told: list[tuple[float, int, bool, int]] = field(default_factory=list)

    async def width(self) -> int:
        """Return the width of the picture that is shown."""
        script = f"stage.sessions.get('subscribe {CUSTOMER.identity}').video.videoWidth"
        return int(await self.viewer.page.evaluate(script))

    async def shown(self) -> list[tuple[float, int]]:
        """Return when (UTC s) pictures of which width were shown."""
        return [(ms / 1000, int(width)) for ms, width in await self.viewer.page.evaluate("stage.shown")]

    async def becomes(self, width: int, since_s: float, timeout_s: float) -> float | None:
        """Return how long after a time (UTC s) a picture so wide was shown, None if it was not."""
        while True:
            for at, shown in await self.shown():
                if at >= since_s and shown == width:
                    return at - since_s
            if time.time() - since_s > timeout_s:
                return None
            await asyncio.sleep(0.2)

    async def follow(self) -> None:
        """Note from now on what the API says: UTC s, layer, still switching, target in kbit/s."""
        while True:
            said = await self.said()
            one = (said["layer"], said["switching"], (said["target_bps"] or 0) // 1000)
            if not self.told or self.told[-1][1:] != one:
                self.told.append((time.time(), *one))
            await asyncio.sleep(0.05)

    async def said(self) -> dict[str, Any]:
        """Return what the API says of the picture."""
        found: dict[str, Any] = (await self.api.call("GET", self.layers))["pictures"][0]
        return found


@asynccontextmanager
async def call(lab: Laboratory, directory: Path, devices: Devices) -> AsyncIterator[Layered]:
    """Start the server, a publisher of three layers and a viewer, each behind a line of its own."""
    camera, microphone = devices
    phone, desk = lab.add("phone"), lab.add("desk")
    desk.line.set(delay_ms=20)  # a way that grew by 20 ms in mid-call would be a queue until proved otherwise
    with lab.stage(directory / "data", **{"composing.when": "on_demand"}) as stage:
        base = f"https://{SERVER}:{stage.port}"
        async with (
            Api(stage.base, stage.key()) as api,
            participant(base, camera, microphone, program=desk.chromium(directory)) as viewer,
            participant(base, camera, microphone, program=phone.chromium(directory)) as publisher,
        ):
            await api.room(ROOM)
            token = await api.token(ROOM, CUSTOMER.identity, CUSTOMER.role)
            given = {"room": ROOM, "token": token, "widths": WIDTHS, "rates": RATES_BPS}
            await publisher.page.evaluate(PUBLISH, given)
            watching = {"room": ROOM, "target": CUSTOMER.identity}
            watching["token"] = await api.token(ROOM, VIEWER, "agent")
            made = await viewer.page.evaluate("options => stage.subscribe(options)", watching)
            await viewer.page.evaluate(WATCH, CUSTOMER.identity)
            yield Layered(api, desk, viewer, f"{made['location']}/layers")


async def test_subscriber_rate(lab: Laboratory, tmp_path: Path, devices: Devices, table: Table) -> None:
    name = "subscriber 2 Mbit/s, 300 kbit/s, back"
    async with call(lab, tmp_path, devices) as made:
        line = made.desk.line
        began_s = time.time()
        line.set(down={"rate_bps": 2_000_000, "queue_bytes": 64_000})
        best_s = await made.becomes(WIDTHS[-1], began_s, 30)
        assert best_s is not None, f"2 Mbit/s do not take the best layer: {await made.said()}"
        await asyncio.sleep(8)
        wide = await made.said()
        assert wide["layer"] == len(WIDTHS) - 1, wide
        line.reset()
        follower = asyncio.create_task(made.follow())
        narrow_s = time.time()
        line.set(down={"rate_bps": 300_000})
        down_s = await made.becomes(WIDTHS[0], narrow_s, 20)
        await asyncio.sleep(max(20 - (time.time() - narrow_s), 0))
        narrow, statistics = await made.said(), line.statistics()["down"]
        back_s = time.time()
        line.set(down={"rate_bps": 2_000_000})
        up_s = await made.becomes(WIDTHS[-1], back_s, 30)
        await asyncio.sleep(3)
        again = await made.said()
        shown = await made.shown()
        follower.cancel()
    ends = {"wide": wide, "narrow": narrow, "again": again}
    print(json.dumps({key: (one["target_bps"], one["layers"]) for key, one in ends.items()}))
    widths = [(round(next(group)[0] - narrow_s, 2), width) for width, group in _runs(shown)]
    details = {
        "queue_ms": statistics["queue_ms"],
        "dropped": statistics["dropped"]["queue"],
        "widths": widths,
        "told": [(round(at_s - narrow_s, 2), *said) for at_s, *said in made.told],
    }
    pauses = [(late - early, early - narrow_s) for (early, _), (late, _) in itertools.pairwise(shown)]
    pause_s, _ = max((one for one in pauses if -0.5 <= one[1] < back_s - narrow_s), default=(20.0, 0.0))
    table.add(name, "best layer at the start", best_s, "s", at_most=15)
    table.add(name, "layer down after", down_s, "s", at_most=2, **details)
    table.add(name, "longest pause", pause_s, "s", at_most=1)
    table.add(name, "layer up after", up_s, "s", at_most=15)
    assert down_s is not None, f"300 kbit/s were not seen: {narrow}"
    assert narrow["layer"] == 0, narrow
    assert up_s is not None, f"the line is wide again and was not found so: {again}"


def _runs(shown: list[tuple[float, int]]) -> itertools.groupby[int, tuple[float, int]]:
    return itertools.groupby(shown, key=lambda one: one[1])
