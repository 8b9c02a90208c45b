"""Redundant audio (RFC 2198) from offer to recording: who gets it, who hears plain Opus, what is mended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription, rtp

from compositor.timeline import Timeline
from mediaserver.media import answer
from mediaserver.media.sdp import Codec, MediaOffer, parse_offer
from mediaserver.media.session import fitting_codecs
from recorder.depacketise import parse_red
from recorder.journal import JournalReader
from recorder.records import RED, RtpRecord, TrackRecord
from recorder.rtp import RtpPacket
from recorder.sealed import DataKey
from tests.compositor.call_simulator import build_red
from tests.media_worker.rig import Tone, Viewer, Worker, worker
from tests.media_worker.test_sdp import LOCAL

OFFERS = Path(__file__).parent / "offers"
PUBLISH, SUBSCRIBE = (
    (OFFERS / f"chromium_{what}.sdp").read_bytes().decode() for what in ("publish", "subscribe")
)
PREFERRING = PUBLISH.replace("SAVPF 111 63 ", "SAVPF 63 111 ")
RED_TYPE = 63


def audio_of(text: str) -> MediaOffer:
    return next(media for media in parse_offer(text).media if media.kind == "audio")


def agreed(text: str, wish: str, *, publishing: bool = True) -> int | None:
    (codec,) = fitting_codecs(audio_of(text), ["opus"], wish, publishing=publishing)
    return codec.red


def test_chromium_offers_it_and_prefers_it_only_if_told() -> None:
    assert PREFERRING != PUBLISH
    assert audio_of(PUBLISH).codecs[111].red == RED_TYPE
    assert [agreed(PUBLISH, wish) for wish in ("off", "accept", "prefer")] == [None, None, RED_TYPE]
    assert [agreed(PREFERRING, wish) for wish in ("off", "accept", "prefer")] == [None, RED_TYPE, RED_TYPE]
    who_hears = [agreed(SUBSCRIBE, wish, publishing=False) for wish in ("off", "accept", "prefer")]
    assert who_hears == [None, RED_TYPE, RED_TYPE]


@pytest.mark.parametrize(
    "line",
    [
        "a=fmtp:63 111",
        "a=fmtp:63 111/111/111",
    ],
)
def test_any_number_of_frames_may_be_repeated(line: str) -> None:
    assert agreed(PUBLISH.replace("a=fmtp:63 111/111", line), "prefer") == RED_TYPE


@pytest.mark.parametrize(
    "changed",
    [
        ("a=fmtp:63 111/111\r\n", ""),
        ("a=fmtp:63 111/111", "a=fmtp:63 111/0"),
        ("a=fmtp:63 111/111", "a=fmtp:63 0/0"),
        ("a=fmtp:63 111/111", "a=fmtp:63 63/63"),
        ("a=fmtp:63 111/111", "a=fmtp:63 ///"),
        ("a=fmtp:63 111/111", "a=fmtp:63 111/x"),
        ("a=fmtp:63 111/111", "a=fmtp:63 99999999999/99999999999"),
        ("a=rtpmap:63 red/48000/2", "a=rtpmap:63 red/48000"),
        ("a=rtpmap:63 red/48000/2", "a=rtpmap:63 red/8000/2"),
    ],
)
def test_what_fits_no_codec_is_not_taken(changed: tuple[str, str]) -> None:
    assert changed[0] in PUBLISH
    assert agreed(PUBLISH.replace(*changed), "prefer") is None


def test_odd_spellings_of_numbers_do_no_harm() -> None:
    odd = PREFERRING.replace("SAVPF 63 111 ", "SAVPF 063 0111 ")
    odd = odd.replace("a=rtpmap:63 ", "a=rtpmap:063 ").replace("a=rtpmap:111 ", "a=rtpmap:0111 ")
    assert [agreed(odd, wish) for wish in ("off", "accept", "prefer")] == [None, RED_TYPE, RED_TYPE]


def test_with_rtx_for_sound_it_is_not_taken() -> None:
    media = audio_of(PREFERRING)
    codec = replace(media.codecs[111], rtx=99)
    assert answer.redundancy(media, codec, "prefer", publishing=True) is None


def section(text: str, codec: Codec, direction: str) -> list[str]:
    offer = parse_offer(text)
    answers = [answer.MediaAnswer(media) for media in offer.media]
    for one in answers:
        if one.offer.kind == "audio":
            one.codecs, one.direction = [codec], direction
    lines = answer.write(offer, answers, LOCAL).split("\r\n")
    begins = next(at for at, line in enumerate(lines) if line.startswith("m=audio"))
    return [line for line in lines[begins:] if line.startswith(("m=audio", "a=rtpmap", "a=fmtp"))]


def test_the_answer_names_it_first_for_who_sends() -> None:
    codec = audio_of(PREFERRING).codecs[111]
    lines = section(PREFERRING, codec, "recvonly")
    assert lines[0].split()[3:] == ["63", "111"]
    assert lines[1:] == [
        "a=rtpmap:111 opus/48000/2",
        "a=fmtp:111 minptime=10;useinbandfec=1",
        "a=rtpmap:63 red/48000/2",
        "a=fmtp:63 111/111",
    ]
    assert section(SUBSCRIBE, codec, "sendonly")[0].split()[3:] == ["111", "63"]
    plain = section(PREFERRING, replace(codec, red=None), "recvonly")
    assert plain[0].split()[3:] == ["111"]
    assert not any("red" in line for line in plain)


def with_red(sdp: str) -> str:
    """Return an offer of aiortc's with RED before its Opus, as a browser writes it."""
    opus = next(line[9:].split()[0] for line in sdp.splitlines() if " opus/48000" in line)
    sdp = sdp.replace(f"SAVPF {opus} ", f"SAVPF {RED_TYPE} {opus} ", 1)
    line = f"a=rtpmap:{opus} opus/48000/2\r\n"
    assert line in sdp
    return sdp.replace(
        line, f"{line}a=rtpmap:{RED_TYPE} red/48000/2\r\na=fmtp:{RED_TYPE} {opus}/{opus}\r\n", 1
    )


class Repeating:
    """Lets an aiortc client repeat two frames in each packet, and loses some packets on the way."""

    def __init__(self, real: Callable[[bytes], object], lost: set[int]) -> None:
        self.real, self.lost = real, lost
        self.frames: list[tuple[int, bytes]] = []
        self.payload_type = 0

    async def send(self, data: bytes) -> None:
        if not 192 <= data[1] <= 223:
            packet = RtpPacket.parse(data)
            self.payload_type = packet.payload_type
            self.frames.append((packet.timestamp, packet.payload))
            packet.payload = build_red(self.frames[-3:], packet.payload_type)
            packet.payload_type = RED_TYPE
            data = packet.build()
            if len(self.frames) - 1 in self.lost:
                return
        await self.real(data)  # type: ignore[misc]


async def connect(server: Worker, peer: RTCPeerConnection, method: str, *, red: bool, **who: object) -> str:
    await peer.setLocalDescription(await peer.createOffer())
    sdp = peer.localDescription.sdp
    reply = await server.call(method, sdp=with_red(sdp) if red else sdp, **who)
    await peer.setRemoteDescription(RTCSessionDescription(reply["sdp"], "answer"))
    return str(reply["sdp"])


def watch(viewer: Viewer) -> list[RtpPacket]:
    """Return a list that all packets of sound come into."""
    seen: list[RtpPacket] = []
    router = viewer.peer.getTransceivers()[0].receiver.transport._rtp_router
    real = router.route_rtp

    def route(packet: rtp.RtpPacket) -> object:
        seen.append(RtpPacket.parse(packet.serialize()))
        return real(packet)

    router.route_rtp = route  # type: ignore[method-assign,assignment]
    return seen


@pytest.mark.asyncio
@pytest.mark.parametrize("forwarder", ["native", "python"])
async def test_from_a_publisher_that_repeats_to_both_kinds_of_listeners_and_the_recording(
    tmp_path: Path, forwarder: str
) -> None:
    async with worker(tmp_path, forwarder=forwarder) as server:
        await server.call("room.open", room="red")
        directory, secret = await server.record("recording-red", "red")
        peer = RTCPeerConnection()
        sender = peer.addTransceiver(Tone(), direction="sendonly").sender
        lost = {60, 61, 75, 90, 91, 92, 93}
        repeating = Repeating(sender.transport._send_rtp, lost)
        sender.transport._send_rtp = repeating.send  # type: ignore[method-assign]
        told = await connect(server, peer, "whip", red=True, room="red", identity="customer")
        assert f"a=fmtp:{RED_TYPE} " in told
        with_it, without = Viewer(videos=0), Viewer(videos=0)
        for viewer, red in ((with_it, True), (without, False)):
            who = {"room": "red", "identity": f"agent{red}", "target": "customer"}
            text = await connect(server, viewer.peer, "whep", red=red, **who)
            assert (f"a=fmtp:{RED_TYPE} " in text) is red
        heard = {viewer: watch(viewer) for viewer in (with_it, without)}
        await without.wait_frames("audio0", 30)  # stock aiortc decodes what it gets
        async with asyncio.timeout(20):
            while len(repeating.frames) < 150:
                await asyncio.sleep(0.05)
        await server.call("recording.stop", recording="recording-red")
        sent = dict(repeating.frames)
        for viewer, packets in heard.items():
            assert len(packets) > 30
            kinds = {packet.payload_type for packet in packets}
            (opus,) = {
                c.payloadType for c in viewer.peer.getTransceivers()[0]._codecs if "opus" in c.mimeType
            }
            assert kinds == ({RED_TYPE} if viewer is with_it else {opus})
            frames = []
            for packet in packets:
                blocks = parse_red(packet.payload) if viewer is with_it else []
                assert {block.payload_type for block in blocks} <= {opus}
                frames.append(blocks[-1].data if blocks else packet.payload)
            assert all(frame in sent.values() for frame in frames)
        records = list(JournalReader(directory, DataKey("test", secret)).records())
        info = next(record.info for record in records if isinstance(record, TrackRecord))
        assert (info.mime, info.payload_type, info.fmtp[RED]) == (
            "audio/opus", repeating.payload_type, str(RED_TYPE)
        )  # fmt: skip
        packets = [RtpPacket.parse(record.packet) for record in records if isinstance(record, RtpRecord)]
        assert {packet.payload_type for packet in packets} == {RED_TYPE}
        timeline = Timeline()
        for record in records:
            timeline.feed(record)
        timeline.end()
        placed = [frame.data for frame in timeline.ready(1 << 62)]
        counts = timeline.counts()[info.track]
        # Of four in a row two are in no packet that came.
        assert (counts["lost"], counts["recovered"], counts["malformed"]) == (7, 5, 0)
        assert [gap.packets for gap in timeline.gaps if gap.reason == "loss"] == [2]
        assert len(placed) == len(packets) + 5
        began = [timestamp for timestamp, _ in repeating.frames].index(packets[0].timestamp)
        order = [
            frame for at, (_, frame) in enumerate(repeating.frames) if at >= began and at not in (90, 91)
        ]
        assert placed == order[: len(placed)]
        for one in (with_it, without):
            await one.close()
        await peer.close()
