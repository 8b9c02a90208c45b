"""What the load generator sends, and what it says when a server's SDP lacks something."""

from __future__ import annotations

import pytest

from bench.load import clip
from bench.load.connection import JoinError, parse
from bench.scenarios.calls import in_turn, ratios
from bench.servers import ServerError

SDP = """v=0
o=- 1 1 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=ice-lite
m=audio 9 UDP/TLS/RTP/SAVPF 111
a=mid:0
a=ice-ufrag:abcd
a=ice-pwd:efghijklmnopqrstuvwxyz
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=rtpmap:111 OPUS/48000/2
a=candidate:1 1 udp 2130706431 ::1 7000 typ host
a=candidate:1 1 tcp 2130706431 127.0.0.1 7001 typ host
a=candidate:1 1 UDP 2130706431 127.0.0.1 7002 typ host
m=video 9 UDP/TLS/RTP/SAVPF 96
a=mid:1
a=rtpmap:96 VP8/90000
a=ssrc:77 cname:x
""".replace("\n", "\r\n")


def test_answer_is_read() -> None:
    found = parse(SDP, "video/VP8")
    assert found.address == ("127.0.0.1", 7002)
    assert (found.ufrag, found.password) == ("abcd", "efghijklmnopqrstuvwxyz")
    assert found.payload_types == {"audio": 111, "video": 96}
    assert found.mids == {"audio": "0", "video": "1"}
    assert found.ssrcs == {"video": 77}
    assert found.extensions == {"urn:ietf:params:rtp-hdrext:sdes:mid": 4}


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("a=ice-ufrag:abcd\r\n", "ice-ufrag"),
        ("a=ice-pwd:efghijklmnopqrstuvwxyz\r\n", "ice-pwd"),
        ("a=candidate:1 1 UDP 2130706431 127.0.0.1 7002 typ host\r\n", "IPv4 UDP candidate"),
        ("a=mid:1\r\n", "a=mid"),
        ("a=rtpmap:96 VP8/90000\r\n", "VP8"),
        ("a=rtpmap:111 OPUS/48000/2\r\n", "opus"),
    ],
)
def test_what_is_missing_is_named(line: str, missing: str) -> None:
    assert line in SDP
    with pytest.raises(JoinError, match=missing):
        parse(SDP.replace(line, ""), "video/VP8")


def test_another_codec_is_named() -> None:
    with pytest.raises(JoinError, match="H264"):
        parse(SDP, "video/H264")


def test_vp8_clip_fits_packets_and_bitrate() -> None:
    made = clip.video("video/VP8", 1_000_000)
    assert len(made.frames) == clip.SECONDS * clip.FPS
    sizes = [len(packet) for frame in made.frames for packet in frame]
    assert max(sizes) <= clip.PACKET_BYTES + 4  # the payload descriptor
    assert sum(sizes) * 8 / clip.SECONDS == pytest.approx(1_000_000, rel=0.35)
    for number, frame in enumerate(made.frames):
        assert [bool(packet[0] & 0x10) for packet in frame] == [True] + [False] * (len(frame) - 1)
        assert all(int.from_bytes(packet[2:4], "big") == 0x8000 | number for packet in frame)
    keys = [not frame[0][4] & 1 for frame in made.frames]  # RFC 7741: P bit 0 is a keyframe
    assert keys[0]
    assert not any(keys[1:])


def test_h264_clip_fits_packets() -> None:
    made = clip.video("video/H264", 1_000_000)
    assert len(made.frames) == clip.SECONDS * clip.FPS
    assert max(len(packet) for frame in made.frames for packet in frame) <= 1300
    assert made.opaque_bytes == 0


def test_opus_clip_is_20_ms_packets() -> None:
    made = clip.audio()
    assert made.packets_per_s == 50
    assert all(len(frame) == 1 and 0 < len(frame[0]) < 400 for frame in made.frames)
    assert len(made.frames) == pytest.approx(clip.SECONDS * 50, abs=1)


def test_codecs_the_generator_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="video/AV1"):
        clip.video("video/AV1")


async def test_a_peer_that_cannot_carry_the_load_costs_the_others_nothing() -> None:
    turns: list[str] = []

    async def once(name: str) -> dict[str, int]:
        turns.append(name)
        if name == "slow":
            raise JoinError("DTLS: the handshake did not end")
        return {"cpu": len(turns)}

    servers, left_out = await in_turn(("slow", "janus"), 2, "a test", lambda text: None, once)
    assert turns == ["ours", "slow", "janus", "ours", "janus"]
    assert left_out == {"slow": "DTLS: the handshake did not end"}
    assert {name: one["cpu"]["runs"] for name, one in servers.items()} == {"ours": [1, 4], "janus": [3, 5]}

    async def broken(name: str) -> dict[str, int]:
        raise ServerError(f"{name} did not start")

    with pytest.raises(ServerError, match="ours"):
        await in_turn((), 1, "a test", lambda text: None, broken)


def test_a_server_that_cannot_be_seen_has_no_ratio() -> None:
    servers = {
        "ours": {"cpu": {"median": 2.0}},
        "janus": {"cpu": {"median": 8.0}},
        "far": {"cpu": {"median": 0.0}},
    }
    assert ratios(servers, "cpu") == {"janus": 0.25}
    with pytest.raises(ServerError, match="silent: no packet"):
        ratios({**servers, "silent": {"cpu": None}}, "cpu")
