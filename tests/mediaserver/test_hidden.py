"""Who is hidden is hidden from the other participants everywhere, and after a restart too."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

from mediaserver.tokens import Grants, client_token
from tests.mediaserver.running import KEYS, Client, make_keys, running, settings_in


def token_of(identity: str, role: str) -> str:
    grants = Grants.for_role(role)
    return client_token(KEYS[0], identity=identity, room="hall", role=role, grants=grants)[0]


async def watch(api: Client, token: str) -> RTCPeerConnection:
    """Connect a viewer of somebody who is not there."""
    peer = RTCPeerConnection()
    peer.addTransceiver("audio", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/sdp"}
    async with api.session.post(
        api.base + "/v1/whep/hall/customer", data=peer.localDescription.sdp, headers=headers
    ) as answer:
        assert answer.status == 201
        await peer.setRemoteDescription(RTCSessionDescription(await answer.text(), "answer"))
    return peer


async def follow(api: Client, token: str, until: str) -> str:
    """Read the stream of events from the beginning up to one of a type."""
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream", "Last-Event-ID": "0"}
    seen = b""
    timeout = aiohttp.ClientTimeout(total=20)
    async with api.session.get(api.base + "/v1/events", headers=headers, timeout=timeout) as stream:
        while f"event: {until}\n".encode() not in seen:
            seen += await stream.content.readany()
    return seen.decode()


@pytest.mark.asyncio
async def test_nobody_learns_of_a_hidden_supervisor(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    make_keys(settings)
    customer = token_of("customer", "customer")
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        peer = await watch(api, token_of("boss", "supervisor"))
        events: list[dict[str, object]] = []
        async with asyncio.timeout(20):
            while not any(event["type"] == "session.connected" for event in events):
                events = (await api.ok("GET", "/v1/events"))["events"]
        assert "boss" in json.dumps(events), "servers see him"
        await api.control.events.append("room.note", tenant="one", room="hall", actor="boss", data={})
        page = await api.ok("GET", "/v1/events", token=customer)
        assert page["next"] >= events[-1]["seq"]
        assert "boss" not in json.dumps(page)
        assert page["events"][-1] | {"actor": "boss"} == (await api.ok("GET", "/v1/events"))["events"][-1]
        assert "boss" not in await follow(api, customer, "room.note")
        assert "boss" not in json.dumps(await api.ok("GET", "/v1/rooms/hall/participants", token=customer))
        await peer.close()
    async with running(settings) as api:
        seen = await api.ok("GET", "/v1/rooms/hall/participants")
        assert [one["identity"] for one in seen["participants"]] == ["boss"]
        assert (await api.ok("GET", "/v1/rooms/hall/participants", token=customer))["participants"] == []


@pytest.mark.asyncio
async def test_who_is_hidden_sends_nothing(tmp_path: Path) -> None:
    """His tracks would be announced to all, and recorded."""
    settings = settings_in(tmp_path)
    make_keys(settings)
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        token = api.participant("hall", "boss", "supervisor", publish=True, hidden=True)
        headers = {"Content-Type": "application/sdp"}
        problem = await api.problem("POST", "/v1/whip/hall", token=token, data="v=0\r\n", headers=headers)
        assert problem["code"] == "forbidden"
        assert "hidden" in problem["detail"]
