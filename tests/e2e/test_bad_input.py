"""Rubbish over HTTP and UDP while a recorded call runs beside it, which must not notice.

Every refusal has its own line with the status and the code it must get. The call is checked after each of
them (pictures go on arriving) and at the end (the recording is whole, verifies, and nothing is missing in
it).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import jwt
import pylibsrtp
import pytest
import pytest_asyncio
from aiortc import RTCPeerConnection, RTCSessionDescription

from mediaserver.tokens import client_token
from tests.e2e import peers
from tests.e2e.api import Answer, Api
from tests.e2e.stage import Stage
from tests.media.film import read_film
from tests.media.pictures import AGENT, CUSTOMER
from tests.media.tracks import CameraTrack, MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

ROOM = "counter-rubbish"
PNG_HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\xff\xff\x00\x00\xff\xff"
SDP = {"Content-Type": "application/sdp"}
JSON = {"Content-Type": "application/json"}


@dataclass
class Beside:
    """The call beside which everything happens."""

    api: Api
    stage: Stage
    token: str
    """Of someone who may publish and is not in the call."""
    offer: str
    """A good WHIP offer of aiortc."""
    recording: dict[str, Any]
    watching: peers.Subscription
    publisher: peers.Session
    udp: tuple[str, int]

    async def unhurt(self) -> None:
        """Wait for two more pictures of the call."""
        before = self.watching.video.frames
        deadline = time.monotonic() + 5
        while self.watching.video.frames < before + 2:
            assert time.monotonic() < deadline, "the call beside stands still"
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def beside(stage: Stage) -> AsyncIterator[Beside]:
    """Run a recorded call for the whole file and check it afterwards."""
    async with Api(stage.base, stage.key()) as api:
        await api.room(ROOM)
        customer = await api.token(ROOM, CUSTOMER.identity, CUSTOMER.role)
        agent = await api.token(ROOM, AGENT.identity, AGENT.role)
        publisher = await peers.publish(
            api, ROOM, customer, [CameraTrack(CUSTOMER), MicrophoneTrack(CUSTOMER)]
        )
        await peers.connected(publisher)
        recording = await api.record(ROOM, "RUBBISH-1")
        watching = await peers.subscribe(api, ROOM, CUSTOMER.identity, agent)
        await watching.first_picture()
        sdp = publisher.connection.remoteDescription.sdp
        candidate = next(
            line for line in sdp.splitlines() if line.startswith("a=candidate") and "127.0.0.1" in line
        )
        words = candidate.split()
        stranger = RTCPeerConnection()
        stranger.addTrack(CameraTrack(AGENT))
        await stranger.setLocalDescription(await stranger.createOffer())
        mallory = await api.token(ROOM, "mallory", "customer")
        yield Beside(
            api,
            stage,
            mallory,
            stranger.localDescription.sdp,
            recording,
            watching,
            publisher,
            (words[4], int(words[5])),
        )
        await stranger.close()
        stopped = await api.stop(recording["id"])
        await watching.close()
        await publisher.close()
        shown, _ = await api.composed(recording["id"])
        assert shown["gaps"] == []
        assert shown["parts"] == 1, "a media worker died"
        film = read_film((await api.file(recording["id"], "composite.mp4")).body)
        assert abs(film.duration_s * 1000 - stopped["duration_ms"]) <= 100
        report = await api.call("POST", f"/v1/recordings/{recording['id']}/verify")
        assert report["ok"] is True, report
        assert "Traceback" not in stage.log_path.read_text()


def offer_without_codec(offer: str) -> str:
    """Rename every video codec of an offer to one that nobody has."""
    return offer.replace("VP8/90000", "XX8/90000").replace("H264/90000", "XX264/90000")


HTTP: list[tuple[str, int, str, Callable[[Beside], Any]]] = [
    ("no SDP at all", 400, "sdp_invalid", lambda b: whip(b, b"")),
    ("not SDP", 400, "sdp_invalid", lambda b: whip(b, b"hello\r\nworld")),
    ("binary", 400, "sdp_invalid", lambda b: whip(b, bytes(range(256)) * 8)),
    ("half an offer", 400, "sdp_invalid", lambda b: whip(b, b.offer[: len(b.offer) // 3].encode())),
    (
        "a port that is none",
        400,
        "sdp_invalid",
        lambda b: whip(b, re.sub("m=video [0-9]+", "m=video x", b.offer).encode()),
    ),
    (
        "an offer without fingerprint",
        400,
        "sdp_invalid",
        lambda b: whip(b, without(b.offer, "a=fingerprint")),
    ),
    ("an offer without ICE password", 400, "sdp_invalid", lambda b: whip(b, without(b.offer, "a=ice-pwd"))),
    ("no usable codec", 409, "codec_mismatch", lambda b: whip(b, offer_without_codec(b.offer).encode())),
    ("JSON for SDP", 415, "media_type_unsupported", lambda b: whip(b, b"{}", JSON)),
    ("no token", 401, "token_missing", lambda b: whip(b, b.offer.encode(), {**SDP, "Authorization": ""})),
    ("a wrong token", 401, "token_invalid", lambda b: whip(b, b.offer.encode(), bearer="a.b.c")),
    ("a token of another key", 401, "token_invalid", lambda b: whip(b, b.offer.encode(), bearer=forged())),
    ("an unsigned token", 401, "token_invalid", lambda b: whip(b, b.offer.encode(), bearer=unsigned())),
    ("an expired token", 401, "token_expired", lambda b: whip(b, b.offer.encode(), bearer=expired(b))),
    ("a token for another room", 403, "forbidden", lambda b: whip(b, b.offer.encode(), bearer=elsewhere(b))),
    ("an unknown source", 400, "bad_request", lambda b: whip(b, b.offer.encode(), source="kitchen")),
    ("an unknown room", 404, "room_not_found", lambda b: get(b, "/v1/rooms/nowhere/participants")),
    (
        "another tenant's room",
        404,
        "room_not_found",
        lambda b: other(b, "GET", f"/v1/rooms/{ROOM}/participants"),
    ),
    ("another tenant's recording", 404, "recording_not_found", lambda b: other(b, "GET", of(b))),
    (
        "another tenant's file",
        404,
        "recording_not_found",
        lambda b: other(b, "GET", of(b, "/files/composite.mp4")),
    ),
    ("another tenant stops", 404, "recording_not_found", lambda b: other(b, "POST", of(b, "/stop"))),
    (
        "another tenant's session",
        404,
        "session_not_found",
        lambda b: other(b, "DELETE", b.publisher.location),
    ),
    ("an id that is none", 404, "recording_not_found", lambda b: get(b, "/v1/recordings/%00")),
    ("a path upwards", 404, "", lambda b: raw(b, "/v1/recordings/../../../../etc/passwd")),
    (
        "a coded path upwards",
        404,
        "",
        lambda b: raw(b, "/v1/recordings/%2e%2e%2f%2e%2e%2fsecrets/files/api-keys.yaml"),
    ),
    ("a file upwards", 404, "file_not_found", lambda b: raw(b, of(b, "/files/..%2Fkeys.json?purpose=test"))),
    (
        "a file by its disk name",
        404,
        "file_not_found",
        lambda b: get(b, of(b, "/files/keys.json?purpose=test")),
    ),
    ("a page upwards", 404, "", lambda b: raw(b, "/..%2f..%2fsecrets/api-keys.yaml")),
    (
        "a huge body",
        413,
        "body_too_large",
        lambda b: post(b, "/v1/rooms", b'{"name":"' + b"x" * (2 << 20) + b'"}'),
    ),
    ("deep JSON", 400, "json_invalid", lambda b: post(b, "/v1/rooms", b"[" * 50_000)),
    ("JSON twice", 400, "json_invalid", lambda b: post(b, "/v1/rooms", b'{"name":"a","name":"b"}')),
    ("JSON that is none", 400, "json_invalid", lambda b: post(b, "/v1/rooms", b"{name: 1}")),
    ("JSON of no text", 400, "json_invalid", lambda b: post(b, "/v1/rooms", b'{"name":"\xff\xfe"}')),
    ("an infinite number", 400, "json_invalid", lambda b: post(b, "/v1/rooms", b'{"name":Infinity}')),
    ("a wrong type", 422, "body_invalid", lambda b: post(b, "/v1/rooms", b'{"name":7}')),
    ("an unknown key", 422, "body_invalid", lambda b: post(b, "/v1/rooms", b'{"name":"a","colour":"red"}')),
    ("a name upwards", 422, "body_invalid", lambda b: post(b, "/v1/rooms", b'{"name":"../../etc"}')),
    (
        "an image that is none",
        422,
        "body_invalid",
        lambda b: start(b, [{"kind": "image", "png": coded(b"GIF89a")}]),
    ),
    (
        "an image cut off",
        422,
        "body_invalid",
        lambda b: start(b, [{"kind": "image", "png": coded(PNG_HEAD)}]),
    ),
    (
        "an unknown font variable",
        422,
        "body_invalid",
        lambda b: start(b, [{"kind": "text", "text": "{password}"}]),
    ),
    ("a second recording", 409, "recording_active", lambda b: start(b, [], business_no="RUBBISH-1")),
    ("a range outside", 404, "", lambda b: get(b, of(b, "/files/none.mp4"), {"Range": "bytes=9-1"})),
]


async def whip(
    b: Beside,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    bearer: str | None = None,
    source: str = "camera",
) -> Answer:
    return await b.api.ask(
        "POST",
        f"/v1/whip/{ROOM}?source={source}",
        data=body,
        headers=headers or SDP,
        bearer=bearer or b.token,
    )


async def get(b: Beside, path: str, headers: dict[str, str] | None = None) -> Answer:
    return await b.api.ask("GET", path, headers=headers)


async def post(b: Beside, path: str, body: bytes) -> Answer:
    return await b.api.ask("POST", path, data=body, headers=JSON)


async def start(b: Beside, overlays: list[Any], business_no: str = "RUBBISH-2") -> Answer:
    body = {"business_no": business_no, "template": {"overlays": overlays}}
    return await b.api.ask("POST", f"/v1/rooms/{ROOM}/recordings", json=body)


async def other(b: Beside, method: str, path: str) -> Answer:
    async with Api(b.stage.base, b.stage.key("other")) as stranger:
        return await stranger.ask(method, path)


async def raw(b: Beside, path: str) -> Answer:
    """Send a path as it is: a client would tidy it up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", b.stage.port)
    request = (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {b.stage.bearer()}\r\nConnection: close\r\n\r\n"
    )
    writer.write(request.encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return Answer(int(lines[0].split()[1]), headers, body)


def of(b: Beside, rest: str = "") -> str:
    return f"/v1/recordings/{b.recording['id']}{rest}"


def without(offer: str, line: str) -> bytes:
    return "\r\n".join(one for one in offer.split("\r\n") if not one.startswith(line)).encode()


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def forged() -> str:
    claims = {
        "iss": "key-default",
        "aud": "shuanglu/client",
        "iat": int(time.time()),
        "exp": int(time.time()) + 60,
    }
    return jwt.encode(claims, "x" * 40, "HS256", headers={"kid": "key-default"})


def unsigned() -> str:
    claims = {
        "iss": "key-default",
        "aud": "shuanglu/server",
        "iat": int(time.time()),
        "exp": int(time.time()) + 60,
    }
    return jwt.encode(claims, "", "none", headers={"kid": "key-default"})


def expired(b: Beside) -> str:
    then_s = time.time() - 3600
    return client_token(
        b.stage.key(), identity="mallory", room=ROOM, role="customer", ttl_s=60, now_s=then_s
    )[0]


def elsewhere(b: Beside) -> str:
    return client_token(b.stage.key(), identity="mallory", room="counter-else", role="customer")[0]


@pytest.mark.parametrize(("what", "status", "code", "send"), HTTP, ids=[line[0] for line in HTTP])
async def test_http_refuses_clearly(
    beside: Beside, what: str, status: int, code: str, send: Callable[[Beside], Any]
) -> None:
    answer = await send(beside)
    assert answer.status == status, answer.body[:300]
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert code in ("", problem["code"]), problem
    if code == "recording_active":
        assert problem["recording"] == beside.recording["id"]
    await beside.unhurt()


def flood(beside: Beside, datagrams: list[bytes], *, answers: bool = False) -> list[bytes]:
    """Send datagrams to the worker's port; returns what came back within 0.3 s if asked for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        sender.settimeout(0.3)
        for datagram in datagrams:
            sender.sendto(datagram, beside.udp)
        got = []
        while answers:
            try:
                got.append(sender.recv(4096))
            except TimeoutError:
                break
        return got


def stun(ufrag: str, key: bytes | None) -> bytes:
    """Build a binding request, its integrity (RFC 8489 section 14.5) made with ``key`` or left away."""
    import hmac

    name = ufrag.encode()
    body = struct.pack(">HH", 0x0006, len(name)) + name + b"\0" * (-len(name) % 4)
    extra = 24 if key is not None else 0
    head = struct.pack(">HHI", 0x0001, len(body) + extra, 0x2112A442) + os.urandom(12)
    if key is None:
        return head + body
    return head + body + struct.pack(">HH", 0x0008, 20) + hmac.digest(key, head + body, "sha1")


async def test_stun_with_bad_integrity_binds_nothing(beside: Beside) -> None:
    sdp = beside.publisher.connection.remoteDescription.sdp
    ufrag = next(line for line in sdp.splitlines() if line.startswith("a=ice-ufrag:")).split(":", 1)[1]
    requests = [
        stun(f"{ufrag}:xxxx", b"wrong password"),
        stun(f"{ufrag}:xxxx", None),
        stun("nobody:xxxx", b"x"),
    ]
    for answer in flood(beside, requests, answers=True):
        kind = struct.unpack(">H", answer[:2])[0]
        assert kind != 0x0101, "a success for a wrong password"
    await beside.unhurt()


async def test_rubbish_datagrams_are_counted(beside: Beside, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    before = await rejected(beside)
    rtp = struct.pack(">BBHII", 0x90, 96, 1, 2, 3) + struct.pack(">HH", 0xBEDE, 2) + bytes(8) + bytes(40)
    rtcp = struct.pack(">BBHI", 0x80, 200, 6, 1) + bytes(20)
    dtls = bytes([22, 254, 253]) + bytes(8) + struct.pack(">H", 100) + rng.randbytes(60)
    request = stun("a:b", b"x")
    whole = [rtp, rtcp, dtls, request]
    cut = [packet[:size] for packet in whole for size in range(len(packet))]
    noise = [rng.randbytes(rng.randrange(1, 1500)) for _ in range(200)]
    flood(beside, [*whole, *cut, *noise])
    await beside.unhurt()
    deadline = time.monotonic() + 15
    while await rejected(beside) <= before:
        assert time.monotonic() < deadline, "no counter moved"
        await asyncio.sleep(0.3)


async def rejected(beside: Beside) -> float:
    """Return the counter of refused packets."""
    text = (await beside.api.ask("GET", "/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("shuanglu_packets_rejected_total")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def test_dtls_with_a_wrong_fingerprint_never_connects(beside: Beside) -> None:
    connection = RTCPeerConnection()
    connection.addTrack(CameraTrack(AGENT))
    await connection.setLocalDescription(await connection.createOffer())
    lines = connection.localDescription.sdp.split("\r\n")
    wrong = "a=fingerprint:sha-256 " + ":".join(["5A"] * 32)
    offer = "\r\n".join(wrong if line.startswith("a=fingerprint:sha-256") else line for line in lines)
    offer = "\r\n".join(
        line
        for line in offer.split("\r\n")
        if not line.startswith(("a=fingerprint:sha-384", "a=fingerprint:sha-512"))
    )
    token = await beside.api.token(ROOM, "eve", "customer")
    answer = await whip(beside, offer.encode(), bearer=token)
    assert answer.status == 201, answer.body
    await connection.setRemoteDescription(RTCSessionDescription(answer.body.decode(), "answer"))
    await asyncio.sleep(3)
    eve = [one for one in await beside.api.participants(ROOM) if one["identity"] == "eve"]
    assert not any(one["connected"] for one in eve)
    assert not any(track for one in eve for track in one["tracks"])
    await beside.api.ask("DELETE", answer.headers["Location"], bearer=token)
    await connection.close()
    await beside.unhurt()


async def test_rubbish_with_the_right_keys_hurts_nobody(beside: Beside) -> None:
    """A publisher that is let in sends truncated RTP and RTCP at every length, and empty payloads."""
    token = await beside.api.token(ROOM, "trudy", "customer")
    session = await peers.publish(beside.api, ROOM, token, [CameraTrack(AGENT), MicrophoneTrack(AGENT)])
    await peers.connected(session)
    watching = await peers.subscribe(beside.api, ROOM, "trudy", token)
    await watching.first_picture()
    video = next(one for one in session.connection.getSenders() if one.track.kind == "video")
    # Not aiortc's public interface: no honest client can send these.
    transport, ssrc = video.transport, video._ssrc
    # Well ahead of the honest packets, wherever in their circle those are.
    history = getattr(video, "_RTCRtpSender__rtp_history")  # noqa: B009
    ahead = max(packet.sequence_number for packet in history.values()) + 1000
    for sequence in range(100):
        head = struct.pack(">BBHII", 0x80, 97, (ahead + sequence) % 2**16, sequence * 3000, ssrc)
        await transport._send_rtp(head)
        await transport._send_rtp(bytes([head[0] | 0x20]) + head[1:] + bytes(3) + b"\x04")
    packet = (
        struct.pack(">BBHII", 0x90, 97, (ahead + 1000) % 2**16, 1, ssrc)
        + struct.pack(">HH", 0xBEDE, 1)
        + b"\x10abc"
        + b"\x90\x80"
    )
    for size in range(12, len(packet)):
        # libsrtp on this side refuses a cut extension; a hostile sender has its own.
        with contextlib.suppress(pylibsrtp.Error):
            await transport._send_rtp(packet[:size])
    report = struct.pack(
        ">BBHIIIIIIBBHIIII", 0x81, 200, 12, ssrc, 1, 2, 3, 4, 5, ssrc & 255, 0, 0, 1, 2, 3, 4
    )
    for size in range(8, len(report)):
        await transport._send_rtp(report[:size])
    await beside.unhurt()
    trudy = next(one for one in await beside.api.participants(ROOM) if one["identity"] == "trudy")
    assert trudy["connected"]
    await watching.close()
    await session.close()
