"""WHIP and WHEP over HTTP: what RFC 9725 asks of the server, with a real worker behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiortc import RTCPeerConnection
from aiortc.mediastreams import AudioStreamTrack, VideoStreamTrack
from pydantic import SecretStr

from mediaserver.network_settings import Turn
from tests.mediaserver.running import Client, make_keys, running, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
SDP = {"Content-Type": "application/sdp"}
FRAGMENT = "application/trickle-ice-sdpfrag"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    turn = Turn(urls=("stun:t.example", "turn:t.example?transport=tcp"), secret=SecretStr("x" * 16))
    settings = settings_in(tmp_path_factory.mktemp("media")).model_copy(update={"turn": turn})
    make_keys(settings)
    async with running(settings) as client:
        await client.ok("POST", "/v1/rooms", {"name": "hall"})
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def offer() -> str:
    peer = RTCPeerConnection()
    peer.addTrack(AudioStreamTrack())
    peer.addTrack(VideoStreamTrack())
    await peer.setLocalDescription(await peer.createOffer())
    text = peer.localDescription.sdp
    await peer.close()
    return str(text)


async def test_publish_patch_delete(api: Client, offer: str) -> None:
    token = api.participant("hall", "li", "customer")
    status, body, headers = await api.ask("POST", "/v1/whip/hall", data=offer, headers=SDP, token=token)
    assert status == 201, body
    assert headers["Content-Type"] == "application/sdp"
    assert body.startswith(b"v=0")
    location = headers["Location"]
    etag = headers["ETag"]
    assert location.startswith("/v1/sessions/")
    assert etag.startswith('"')
    assert headers["Accept-Patch"] == FRAGMENT

    patch = {"Content-Type": FRAGMENT}
    missing = await api.problem("PATCH", location, data="a=x\r\n", headers=patch, token=token)
    assert (missing["status"], missing["code"]) == (428, "precondition_required")
    wrong = {**patch, "If-Match": '"another"'}
    candidate = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\na=end-of-candidates\r\n"
    stale = await api.problem("PATCH", location, data=candidate, headers=wrong, token=token)
    assert stale["status"] in (400, 412)
    restart = {"Content-Type": FRAGMENT, "If-Match": "*"}
    fresh = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n"
    status, body, again = await api.ask("PATCH", location, data=fresh, headers=restart, token=token)
    assert (status, body[:12]) == (200, b"a=ice-ufrag:")
    assert ':li"; credential="' in again["Link"], "the first credentials may have run out"
    assert again["Cache-Control"] == "no-store"
    as_json = {"Content-Type": "application/json", "If-Match": etag}
    odd = await api.problem("PATCH", location, data="{}", headers=as_json, token=token)
    assert (odd["status"], odd["code"]) == (415, "media_type_unsupported")
    assert (await api.problem("GET", location, token=token))["code"] == "method_not_allowed"

    # Another participant of the room, and a stranger, do not see the session.
    for other in (api.participant("hall", "wang", "customer"), api.participant("elsewhere", "li", "agent")):
        assert (await api.problem("DELETE", location, token=other))["code"] == "session_not_found"
    assert (await api.ask("DELETE", location, token=token))[0] == 200
    assert (await api.problem("DELETE", location, token=token))["code"] == "session_not_found"


async def test_subscribe_before_there_is_anything(api: Client, offer: str) -> None:
    token = api.participant("hall", "chen", "agent")
    peer = RTCPeerConnection()
    peer.addTransceiver("audio", direction="recvonly")
    peer.addTransceiver("video", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    text = peer.localDescription.sdp
    await peer.close()
    path = "/v1/whep/hall/nobody-yet"
    status, body, headers = await api.ask("POST", path, data=text, headers=SDP, token=token)
    assert status == 201, body
    assert (await api.ask("DELETE", headers["Location"]))[0] == 200  # a server may end any session


@pytest.mark.parametrize(
    ("sdp", "code"),
    [
        ("", "sdp_invalid"),
        ("v=0", "sdp_invalid"),
        ("\x00" * 50, "sdp_invalid"),
        ("v=0\r\n" + "a=x\r\n" * 5000, "sdp_invalid"),
        ("NO VIDEO CODEC", "codec_mismatch"),
    ],
)
async def test_bad_offers(api: Client, offer: str, sdp: str, code: str) -> None:
    if sdp == "NO VIDEO CODEC":
        sdp = offer.replace("VP8", "VP7").replace("H264", "H261")
    token = api.participant("hall", "li", "customer")
    problem = await api.problem("POST", "/v1/whip/hall", data=sdp.encode(), headers=SDP, token=token)
    assert problem["code"] in (code, "bad_request")
    if code == "codec_mismatch":
        assert "VP8" in problem["detail"]


async def test_refusals(api: Client, offer: str) -> None:
    token = api.participant("hall", "li", "customer")
    listener = api.participant("hall", "ear", "customer", publish=False)
    for path, headers, bearer, status in [
        ("/v1/whip/hall", {"Content-Type": "text/plain"}, token, 415),
        ("/v1/whip/hall", {**SDP, "Accept": "application/json"}, token, 406),
        ("/v1/whip/hall?source=mirror", SDP, token, 400),
        ("/v1/whip/hall", SDP, listener, 403),
        ("/v1/whip/closed", SDP, api.participant("closed", "li", "customer"), 404),
        ("/v1/whip/other", SDP, token, 403),
    ]:
        problem = await api.problem("POST", path, data=offer, headers=headers, token=bearer)
        assert problem["status"] == status, path
    as_server = await api.problem("POST", "/v1/whip/hall", data=offer, headers=SDP)
    assert as_server["code"] == "forbidden"


async def test_options_need_no_token(api: Client) -> None:
    status, _, headers = await api.ask("OPTIONS", "/v1/whip/hall", key=None)
    assert (status, headers["Accept-Post"]) == (204, "application/sdp")
    status, _, headers = await api.ask("OPTIONS", "/v1/sessions/any", key=None)
    assert (status, headers["Accept-Patch"]) == (204, FRAGMENT)


async def test_a_removed_participant_is_gone(api: Client, offer: str) -> None:
    token = (await api.ok("POST", "/v1/rooms/hall/tokens", {"identity": "out", "role": "customer"}))["token"]
    await api.ok("POST", "/v1/whip/hall", data=offer, headers=SDP, token=token)
    assert (await api.ask("DELETE", "/v1/rooms/hall/participants/out"))[0] == 204
    again = await api.problem("POST", "/v1/whip/hall", data=offer, headers=SDP, token=token)
    assert again["code"] == "token_revoked"


async def test_muting(api: Client, offer: str) -> None:
    token = api.participant("hall", "quiet", "customer")
    _, _, headers = await api.ask("POST", "/v1/whip/hall", data=offer, headers=SDP, token=token)
    path = "/v1/rooms/hall/participants/quiet"
    await api.ok("PATCH", path, {"muted": True, "kind": "audio"}, token=token)
    for body in ({"muted": "yes"}, {"muted": True, "kind": "smell"}, {}):
        assert (await api.problem("PATCH", path, body))["code"] == "body_invalid"
    refused = await api.problem("PATCH", path, {"muted": True}, token=api.participant("hall", "x", "agent"))
    assert refused["code"] == "forbidden"
    await api.ask("DELETE", headers["Location"], token=token)


async def test_the_same_offer_twice_with_one_key_is_one_session(api: Client, offer: str) -> None:
    token = api.participant("hall", "retry", "customer")
    headers = {**SDP, "Idempotency-Key": "offer-1"}
    one = await api.ask("POST", "/v1/whip/hall", data=offer, headers=headers, token=token)
    two = await api.ask("POST", "/v1/whip/hall", data=offer, headers=headers, token=token)
    assert one[2]["Location"] == two[2]["Location"]
    assert one[1] == two[1]
    await asyncio.gather(api.ask("DELETE", one[2]["Location"], token=token))


async def test_wishes_for_layers_are_checked_and_belong_to_the_receiver(api: Client, offer: str) -> None:
    token = api.participant("hall", "wisher", "agent")
    receiving = offer.replace("a=sendrecv", "a=recvonly")
    path = "/v1/whep/hall/nobody-yet"
    _, _, headers = await api.ask("POST", path, data=receiving, headers=SDP, token=token)
    layers = f"{headers['Location']}/layers"
    assert await api.ok("GET", layers, token=token) == {"pictures": []}
    assert await api.ok("PATCH", layers, {"preferred": 0, "maximum": 2}, token=token) == {"pictures": []}
    for body in ({"preferred": 3}, {"maximum": -1}, {"preferred": True}, {"layer": 1}, {"source": "mirror"}):
        assert (await api.problem("PATCH", layers, body, token=token))["code"] == "body_invalid"
    other = api.participant("hall", "other", "customer")
    assert (await api.problem("PATCH", layers, {"preferred": 0}, token=other))["code"] == "session_not_found"
    _, _, headers = await api.ask(
        "POST", "/v1/whip/hall", data=offer, headers=SDP, token=api.participant("hall", "sender", "customer")
    )
    problem = await api.problem("PATCH", f"{headers['Location']}/layers", {"preferred": 0})
    assert (problem["status"], problem["code"]) == (400, "bad_request")
