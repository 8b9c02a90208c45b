"""The signalling WebSocket over real sockets: what it refuses, what it keeps, what the docs say of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiortc import RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from av import AudioFrame

from mediaserver.api.signal import MAX_FAULTS
from mediaserver.signal import line as lines
from mediaserver.signal.messages import documentation
from tests.media_worker.rig import Tone
from tests.mediaserver.running import Client, make_keys, running, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROOT = Path(__file__).parents[2]
JSON = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    settings = settings_in(tmp_path_factory.mktemp("signal"), http={"cors_origins": ["https://bank.example"]})
    make_keys(settings)
    async with running(settings) as client:
        await client.ok("POST", "/v1/rooms", {"name": "hall"})
        yield client


class Socket:
    """A client's socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.id = 0

    async def send(self, kind: str, /, **members: Any) -> int:
        self.id += 1
        await self.socket.send_str(json.dumps({"type": kind, "id": self.id, **members}))
        return self.id

    async def next(self) -> JSON:
        message = await self.socket.receive(20)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        parsed: JSON = json.loads(message.data)
        return parsed

    async def wait(self, kind: str, **members: Any) -> JSON:
        """Return the next message of a kind that has these members; others are passed over."""
        while True:
            message = await self.next()
            if message["type"] == kind and all(message.get(name) == value for name, value in members.items()):
                return message

    async def event(self, kind: str) -> JSON:
        while True:
            event: JSON = (await self.wait("event"))["event"]
            if event["type"] == kind:
                return event

    async def refused(self, kind: str, code: str, **members: Any) -> JSON:
        number = await self.send(kind, **members)
        problem: JSON = (await self.wait("error", re=number))["problem"]
        assert problem["code"] == code
        return problem

    async def closed(self) -> tuple[int | None, str]:
        """Wait for the close; returns its code and reason."""
        while True:
            message = await self.socket.receive(20)
            if message.type is aiohttp.WSMsgType.CLOSE:
                return message.data, message.extra or ""
            if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                return self.socket.close_code, ""


async def connect(api: Client, **options: Any) -> Socket:
    return Socket(await api.session.ws_connect(api.base + "/v1/signal", autoclose=False, **options))


async def joined(api: Client, identity: str, role: str = "customer", **grants: bool) -> tuple[Socket, JSON]:
    socket = await connect(api)
    await socket.send("join", token=api.participant("hall", identity, role, **grants))
    return socket, await socket.wait("welcome")


async def test_the_documentation_has_every_message_as_it_is() -> None:
    text = (ROOT / "docs" / "signal.md").read_text()
    assert text.endswith(documentation()), "python -m mediaserver.signal.messages prints the new end"


@pytest.mark.parametrize(
    ("first", "close", "code"),
    [
        ('{"type":"ping","id":1,"last_seq":0}', 4401, "token_missing"),
        ('{"type":"join","id":1,"token":"nonsense"}', 4401, "token_invalid"),
        ('{"type":"join","id":1}', 4400, "body_invalid"),
        ('{"type":"join","id":1,"token":"x","extra":1}', 4400, "body_invalid"),
        ('{"type":"join","id":1,"id":2,"token":"x"}', 4400, "json_invalid"),
        ("[" * 5000, 4400, "json_invalid"),
        ("null", 4400, "body_invalid"),
    ],
)
async def test_a_first_message_that_is_none_closes(api: Client, first: str, close: int, code: str) -> None:
    socket = await connect(api)
    await socket.socket.send_str(first)
    assert (await socket.wait("error"))["problem"]["code"] == code
    assert await socket.closed() == (close, code)


async def test_it_is_for_participants_of_the_room_and_pages_of_this_server(api: Client) -> None:
    socket = await connect(api)
    await socket.send("join", token=api.participant("elsewhere", "c", "customer"))
    assert (await socket.wait("error"))["problem"]["code"] == "room_not_found"
    socket = await connect(api)
    await socket.send("join", token=api.participant("hall", "c", "customer", publish=False, subscribe=False))
    assert (await socket.wait("error"))["problem"]["code"] == "forbidden"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(api, headers={"Origin": "https://evil.example"})
    assert refused.value.status == 403
    for origin in ("https://bank.example", api.base):
        await (await connect(api, headers={"Origin": origin})).socket.close()
    problem = await api.problem("GET", "/v1/signal", key=None)
    assert problem["code"] == "bad_request"


async def test_what_is_not_allowed_is_refused_by_name_and_the_socket_lives(api: Client) -> None:
    socket, welcome = await joined(api, "watcher", "supervisor")
    assert welcome["seat"] == "supervisor#1"
    assert "watcher" not in str(welcome["participants"]), "hidden"
    await socket.refused("publish", "forbidden", sdp="v=0")
    await socket.refused("mute", "forbidden", muted=True, identity="somebody")
    await socket.refused("subscribe", "body_invalid")
    await socket.refused("subscribe", "sdp_invalid", sdp="v=0\r\nnonsense")
    await socket.refused("subscribe", "session_not_found", session="nobody's")
    await socket.refused("answer", "session_not_found", session="x", version=1, sdp="v=0")
    await socket.refused("hangup", "session_not_found", session="x")
    await socket.refused("layers", "session_not_found", session="x", wishes=[{"track": "t"}])
    await socket.refused("layers", "body_invalid", session="x", wishes=[{"track": "t", "preferred": -1}])
    await socket.refused("join", "bad_request", token="x")
    await socket.refused("nonsense", "body_invalid")
    problem = await socket.refused("ping", "body_invalid", last_seq="1")
    assert "last_seq" in problem["detail"]
    socket.id -= 5
    await socket.refused("ping", "body_invalid", last_seq=0)  # an id that was taken before
    socket.id += 5
    number = await socket.send("ping", last_seq=0)
    await socket.wait("pong", re=number)
    await socket.send("leave")
    assert await socket.closed() == (1000, "left")


async def test_who_sends_nonsense_too_much_or_too_often_is_disconnected(api: Client) -> None:
    socket, _ = await joined(api, "fuzzer")
    for _ in range(MAX_FAULTS + 1):
        await socket.socket.send_str("{")
    assert await socket.closed() == (4400, "json_invalid")
    socket, _ = await joined(api, "binary")
    for _ in range(MAX_FAULTS + 1):
        await socket.socket.send_bytes(b"{}")
    assert await socket.closed() == (4400, "json_invalid")
    socket, _ = await joined(api, "large")
    await socket.socket.send_str('"' + "x" * (400 * 1024) + '"')
    assert (await socket.closed())[0] == 1009
    socket, _ = await joined(api, "hasty")
    for _ in range(lines.BURST * 2):
        await socket.send("ping", last_seq=0)
    assert await socket.closed() == (4429, "rate_limited")


async def test_a_lost_socket_is_taken_up_with_everything_missed(api: Client) -> None:
    socket, welcome = await joined(api, "phone")
    number = await socket.send("quality", rtt_ms=80.0, streams=[])
    done = await socket.wait("done", re=number)
    await socket.socket.close()
    other, _ = await joined(api, "friend")
    # Something happens while it is away: an event of the room that both may see.
    await api.control.events.append("room.note", tenant="one", room="hall", data={"n": 1})
    await api.control.events.append("room.note", tenant="two", room="hall", data={"n": 2})
    await api.control.events.append("audit.note", tenant="one", room="hall", data={"n": 3})
    assert (await other.event("room.note"))["data"] == {"n": 1}

    again = await connect(api)
    again.id = socket.id
    resume = {"resume": welcome["resume"], "last_seq": done["seq"] - 1}
    await again.send("resume", token=api.participant("hall", "phone", "customer"), **resume)
    back = await again.wait("welcome")
    assert (back["resumed"], back["last_id"]) == (True, number)
    replayed = await again.next()
    assert (replayed["type"], replayed["re"], replayed["seq"]) == ("done", number, done["seq"])
    missed = await again.next()
    assert (missed["seq"], missed["event"]["data"]) == (done["seq"] + 1, {"n": 1})

    # A second socket of the same session takes it over; another participant cannot.
    third = await connect(api)
    third.id = again.id
    await third.send("resume", token=api.participant("hall", "phone", "customer"), **resume)
    await third.wait("welcome")
    await again.send("ping", last_seq=0)
    assert (await again.closed())[0] == 4409
    thief = await connect(api)
    thief.id = third.id
    await thief.send("resume", token=api.participant("hall", "thief", "customer"), **resume)
    assert (await thief.wait("error"))["problem"]["code"] == "resume_expired"
    assert await thief.closed() == (4410, "resume_expired")


async def test_quality_reports_are_bounded_and_reach_room_and_metrics(api: Client) -> None:
    socket, _ = await joined(api, "measured")
    stream = {"direction": "in", "kind": "video", "packets": 90, "lost": 10, "freeze_ms": 1500.0}
    await socket.send("quality", rtt_ms=120.5, streams=[stream])
    await socket.wait("done")
    await socket.refused("quality", "bad_request", streams=[])
    await socket.refused("quality", "body_invalid", streams=[{**stream, "packets": -1}])
    await socket.refused("quality", "body_invalid", streams=[stream] * 65)
    shown = await api.ok("GET", "/v1/rooms/hall/quality")
    report = next(one for one in shown["reports"] if one["identity"] == "measured")
    assert (report["rtt_ms"], report["streams"][0]["lost"]) == (120.5, 10)
    token = api.participant("hall", "measured", "customer")
    assert (await api.problem("GET", "/v1/rooms/hall/quality", token=token))["code"] == "forbidden"
    text = (await api.ok("GET", "/metrics")).decode()
    assert 'shuanglu_client_lost_ratio_count{kind="video"} 1.0' in text
    assert "shuanglu_client_freeze_seconds_total 1.5" in text


async def test_who_is_removed_and_whose_room_closes_is_disconnected(api: Client) -> None:
    await api.ok("POST", "/v1/rooms", {"name": "cell"})
    sockets = []
    for identity in ("first", "second"):
        socket = await connect(api)
        await socket.send("join", token=api.participant("cell", identity, "customer"))
        await socket.wait("welcome")
        sockets.append(socket)
    await api.ok("DELETE", "/v1/rooms/cell/participants/first")
    assert await sockets[0].closed() == (4401, "token_revoked")
    await sockets[1].event("participant.removed")
    await api.ok("DELETE", "/v1/rooms/cell")
    assert await sockets[1].closed() == (4410, "room_closed")


async def test_offers_follow_tracks_and_only_their_own_answer_is_taken(api: Client) -> None:
    socket, _ = await joined(api, "viewer")
    async with contextlib.AsyncExitStack() as leaving:
        viewer = RTCPeerConnection(RTCConfiguration(bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        leaving.push_async_callback(viewer.close)
        for kind in ("audio", "video"):
            viewer.addTransceiver(kind, direction="recvonly")
        await viewer.setLocalDescription(await viewer.createOffer())
        number = await socket.send("subscribe", sdp=viewer.localDescription.sdp)
        answered = await socket.wait("answered", re=number)
        await viewer.setRemoteDescription(RTCSessionDescription(answered["sdp"], "answer"))
        session = answered["session"]

        speaker, _ = await joined(api, "speaker")
        sender = RTCPeerConnection()
        leaving.push_async_callback(sender.close)
        sender.addTransceiver(Tone(), direction="sendonly")
        await sender.setLocalDescription(await sender.createOffer())
        number = await speaker.send("publish", sdp=sender.localDescription.sdp)
        published = await speaker.wait("answered", re=number)
        await sender.setRemoteDescription(RTCSessionDescription(published["sdp"], "answer"))

        offer = await socket.wait("offer", session=session, version=1)
        assert [one["identity"] for one in offer["tracks"]] == ["speaker"]
        await viewer.setRemoteDescription(RTCSessionDescription(offer["sdp"], "offer"))
        await viewer.setLocalDescription(await viewer.createAnswer())
        good = viewer.localDescription.sdp
        bad: JSON = {"session": session, "version": 1}
        await socket.refused("answer", "sdp_invalid", **{**bad, "version": 2}, sdp=good)
        await socket.refused("answer", "sdp_invalid", **bad, sdp="v=0\r\nnonsense\r\n")
        await socket.refused("answer", "sdp_invalid", **bad, sdp=good[: good.rindex("m=")])
        mid = offer["tracks"][0]["mid"]
        await socket.refused("answer", "sdp_invalid", **bad, sdp=good.replace(f"a=mid:{mid}", "a=mid:other"))
        await speaker.refused("answer", "session_not_found", **bad, sdp=good)
        await socket.send("answer", **bad, sdp=good)
        await socket.wait("done")
        await socket.refused("answer", "sdp_invalid", **bad, sdp=good)  # answered before
        wishes = [{"track": offer["tracks"][0]["track"], "preferred": 0}]
        number = await socket.send("layers", session=session, wishes=wishes)
        await socket.wait("done", re=number)

        received = viewer.getTransceivers()[-1].receiver.track
        assert isinstance(await asyncio.wait_for(received.recv(), 20), AudioFrame)

        number = await speaker.send("hangup", session=published["session"])
        await speaker.wait("done", re=number)
        closing = await socket.wait("offer", session=session, version=2)
        assert closing["tracks"] == []
        assert "m=audio 0 " in closing["sdp"]
        opened = [
            event
            for event in await api.control.events.after("one", 0, room="hall", limit=1000)
            if event["type"] == "audit.session_opened"
        ]
        kinds = {(event["actor"], event["data"]["kind"]) for event in opened}
        assert kinds >= {("viewer", "view"), ("speaker", "whip")}
