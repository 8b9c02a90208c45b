"""Capture the fuzzer's seeds from real calls: ``python -m tests.forwarder.capture [DIRECTORY]``.

Chromium and stock aiortc call each other through a real server over loopback, a few seconds per codec; the
media worker runs the Python forwarder with `capture_worker` inside. What both ends sent is written as
``corpus/NAME.bin`` in the format of `fuzz.c`: SSRCs, payload types and header extension ids are put in place
of the ones that its harness knows, payloads are cut to their first bytes. The pictures and sounds are made by
`tests.media`; no person is in them.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mediaserver.forwarder import ABS_SEND_TIME, AUDIO_LEVEL, MID, REPAIRED_RID, RID, TRANSPORT_CC
from mediaserver.forwarder.wire import CODECS, parse_rtp, rtcp_packets
from tests.e2e import peers
from tests.e2e.api import Api
from tests.e2e.browser import participant
from tests.e2e.stage import ROOT, Stage
from tests.media.files import camera_file, microphone_file
from tests.media.pictures import AGENT, CUSTOMER
from tests.media.tracks import CameraTrack, MicrophoneTrack

CORPUS: Final = Path(__file__).with_name("corpus")
CALL_S: Final = 6.0
IDS: Final = {MID: 1, RID: 2, REPAIRED_RID: 3, TRANSPORT_CC: 4, ABS_SEND_TIME: 5, AUDIO_LEVEL: 6}
"""Header extension ids in the harness of fuzz.c; all others become 7."""
WHOLE: Final = 3
"""Packets of an SSRC that keep their whole payload."""
PAYLOAD_BYTES: Final = 28
OF_EACH: Final = 24
"""Packets of a kind at the beginning, and again later, that a corpus file has at most."""
PUBLISHER, SUBSCRIBER = 0, 1


@dataclass
class Call:
    """What the harness of fuzz.c calls the things of one call."""

    side: dict[int, int] = field(default_factory=dict)
    """Number of the forwarder's peer → PUBLISHER or SUBSCRIBER."""
    ssrcs: dict[int, int] = field(default_factory=dict)
    rtx: set[int] = field(default_factory=set)
    ids: dict[int, dict[int, int]] = field(default_factory=dict)
    """SSRC → header extension ids of the call → of the harness."""
    codecs: dict[int, int] = field(default_factory=dict)
    """Number of the stream → number of its codec."""
    kept: dict[int, int] = field(default_factory=dict)

    def learn(self, line: dict[str, Any]) -> None:
        """Take in a line about a stream or a route."""
        number = line["stream"]
        if line["what"] == "stream":
            self.codecs[number] = codec = CODECS.get(line["mime"].lower(), 0)
            ids = {theirs: IDS.get(uri, 7) for uri, theirs in line["extensions"].items()}
            self.side[line["peer"]] = PUBLISHER
            self._name(line["ssrc"], 0x1111 + codec, ids)
        codec = self.codecs[number]
        if line["what"] == "route":
            self.side[line["peer"]] = SUBSCRIBER
            self._name(line["ssrc"], 0x2222 + 2 * codec, {})
            if line["rtx_ssrc"] is not None:
                self._name(line["rtx_ssrc"], 0x3332 + 2 * codec, {})
        elif line["rtx_ssrc"] is not None:
            self._name(line["rtx_ssrc"], 0x9990 + codec, {theirs: theirs for theirs in range(16)})
            self.rtx.add(line["rtx_ssrc"])

    def _name(self, ssrc: int, ours: int, ids: dict[int, int]) -> None:
        self.ssrcs[ssrc], self.ids[ssrc] = ours, ids

    def rtp(self, data: bytearray) -> bytes | None:
        """Rename and cut an RTP packet; None if it is of no stream."""
        packet = parse_rtp(bytes(data), 0)
        if packet is None or packet.ssrc not in self.ssrcs:
            return None
        data[1] = packet.marker | (97 if packet.ssrc in self.rtx else 96)
        struct.pack_into("!I", data, 8, self.ssrcs[packet.ssrc])
        for number, at, length in packet.elements:
            if not packet.two_byte:
                data[at - 1] = self.ids[packet.ssrc].get(number, 7) << 4 | length - 1
        self.kept[packet.ssrc] = self.kept.get(packet.ssrc, 0) + 1
        if self.kept[packet.ssrc] > WHOLE and not data[0] & 0x20:
            del data[packet.payload_start + PAYLOAD_BYTES :]
        return bytes(data)

    def rtcp(self, data: bytearray) -> bytes:
        """Rename the SSRCs of a compound; they stand at multiples of four bytes."""
        for at in range(4, len(data) - 3, 4):
            (ssrc,) = struct.unpack_from("!I", data, at)
            if ssrc in self.ssrcs:
                struct.pack_into("!I", data, at, self.ssrcs[ssrc])
        return bytes(data)


def steps(lines: list[dict[str, Any]]) -> Iterator[bytes]:
    """Turn what a worker noted of one call into steps of fuzz.c."""
    call = Call()
    for line in lines:
        if line["what"] == "rtx":
            line["what"] = "stream-rtx"
        if line["what"] != "packet":
            call.learn(line)
    last_ms = lines[0]["at_ms"]
    for line in lines:
        if line["what"] != "packet" or line["peer"] not in call.side:
            continue
        data = bytearray.fromhex(line["data"])
        packet = call.rtcp(data) if 192 <= data[1] <= 223 else call.rtp(data)
        if packet is not None:
            pause = min(math.isqrt(line["at_ms"] - last_ms), 31)
            last_ms = line["at_ms"]
            yield struct.pack("!BH", pause << 3 | call.side[line["peer"]], len(packet)) + packet


def kind(step: bytes) -> tuple[object, ...]:
    """Tell what is in a step: whose SSRC, or which packets of RTCP."""
    packet = step[3:]
    if 192 <= packet[1] <= 223:
        return step[0] & 7, *((name, form) for name, form, _, _ in rtcp_packets(packet) or [])
    return step[0] & 7, packet[8:12], bool(packet[0] & 0x20)


def write(noted: Path, target: Path) -> None:
    """Write a corpus file: of each kind of packet the first ones, and as many of the rest, spread evenly."""
    (path,) = [path for path in noted.glob("*.jsonl") if path.stat().st_size]
    made = list(steps([json.loads(line) for line in path.read_text().splitlines()]))
    places: dict[tuple[object, ...], list[int]] = {}
    for at, step in enumerate(made):
        places.setdefault(kind(step), []).append(at)
    kept: set[int] = set()
    for found in places.values():
        rest = found[OF_EACH:]
        kept.update(found[:OF_EACH], rest[:: math.ceil(len(rest) / OF_EACH) or 1])
    target.write_bytes(b"".join(made[at] for at in sorted(kept)))
    counts = {str(what): len(found) for what, found in places.items()}
    print(f"{target.name}: {target.stat().st_size} bytes, {len(kept)} of {len(made)} packets: {counts}")


async def browsers(stage: Stage, api: Api, codec: str, scratch: Path) -> None:
    """Let one Chromium publish and another subscribe."""
    room = codec.rpartition("/")[2].lower()
    await api.room(room, codecs=[codec, "audio/opus"])
    camera = camera_file(scratch / "camera.y4m", AGENT)
    microphone = microphone_file(scratch / "microphone.wav", AGENT)
    agent = await api.token(room, AGENT.identity, AGENT.role)
    customer = await api.token(room, CUSTOMER.identity, CUSTOMER.role)
    async with (
        participant(stage.base, camera, microphone) as one,
        participant(stage.base, camera, microphone) as other,
    ):
        await one.publish(room, agent, codec=codec)
        await asyncio.sleep(1)
        await other.subscribe(room, AGENT.identity, customer)
        await asyncio.sleep(CALL_S)
        await other.leave()
        await one.leave()
        await asyncio.sleep(0.5)


async def stock(stage: Stage, api: Api, codec: str, scratch: Path) -> None:
    """Let two stock aiortc clients do the same."""
    room = codec.rpartition("/")[2].lower()
    await api.room(room, codecs=[codec, "audio/opus"])
    agent = await api.token(room, AGENT.identity, AGENT.role)
    customer = await api.token(room, CUSTOMER.identity, CUSTOMER.role)
    tracks = [CameraTrack(AGENT), MicrophoneTrack(AGENT)]
    session = await peers.publish(api, room, agent, tracks, codec=codec.rpartition("/")[2])
    await peers.connected(session)
    subscription = await peers.subscribe(api, room, AGENT.identity, customer)
    await asyncio.sleep(CALL_S)
    await subscription.close()
    await session.close()
    await asyncio.sleep(0.5)


CALLS: Final = {
    "chromium-vp8": (browsers, "video/VP8"),
    "chromium-vp9": (browsers, "video/VP9"),
    "chromium-h264": (browsers, "video/H264"),
    "chromium-av1": (browsers, "video/AV1"),
    "aiortc-vp8": (stock, "video/VP8"),
    "aiortc-h264": (stock, "video/H264"),
}


async def capture(name: str, directory: Path) -> None:
    """Hold one call and write its corpus file."""
    hold, codec = CALLS[name]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        hook, noted = root / "hook", root / "noted"
        hook.mkdir()
        noted.mkdir()
        # Python imports sitecustomize at every start; only media workers listen.
        (hook / "sitecustomize.py").write_text(
            "import pathlib, sys\n"
            "if 'mediaserver.media.worker' in sys.orig_argv:\n"
            "    from tests.forwarder.capture_worker import listen\n"
            f"    listen(pathlib.Path({str(noted)!r}))\n"
        )
        os.environ["PYTHONPATH"] = f"{hook}:{ROOT}"
        with Stage(root / "data", {"media.forwarder": "python"}) as stage:
            del os.environ["PYTHONPATH"]
            async with Api(stage.base, stage.key()) as api:
                await hold(stage, api, codec, root)
        write(noted, directory / f"{name}.bin")


async def main(directory: Path, names: list[str]) -> None:
    """Capture all calls, or those named."""
    directory.mkdir(exist_ok=True)
    for name in names or CALLS:
        await capture(name, directory)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS, sys.argv[2:]))
