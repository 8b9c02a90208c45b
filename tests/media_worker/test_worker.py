"""A real worker process with stock aiortc clients, driven over its control line."""

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from av import VideoFrame

from mediaserver.ipc import IpcClient, IpcError
from recorder.depacketise import is_keyframe
from recorder.journal import JournalReader
from recorder.records import (
    ClockRecord,
    EndRecord,
    EventRecord,
    RtcpRecord,
    RtpRecord,
    SessionRecord,
    TrackRecord,
)
from recorder.rtp import RtpPacket
from recorder.sealed import DataKey
from tests.media_worker.rig import Picture, Tone, Viewer, Worker, connect, publish, worker

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    async with worker(tmp_path_factory.mktemp("worker")) as running:
        yield running


def ssrcs(reply: dict[str, object]) -> list[str]:
    return re.findall(r"a=ssrc:(\d+) cname", str(reply["sdp"]))


async def shade(viewer: Viewer, name: str) -> int:
    """Return the brightness of the last decoded picture."""
    frame = viewer.last[name]
    assert isinstance(frame, VideoFrame)
    return int(frame.to_ndarray(format="gray").mean())


async def test_subscriber_comes_first_and_spare_lines_serve_later_tracks(server: Worker) -> None:
    await server.call("room.open", room="early")
    viewer = Viewer(videos=2)
    reply = await connect(server, viewer.peer, "whep", room="early", identity="agent", target="customer")
    assert len(set(ssrcs(reply))) == 5  # sound, and two pictures with their retransmissions
    camera, _ = await publish(server, "early", "customer")
    await viewer.wait_frames("video1", 10)
    await viewer.wait_frames("audio0", 10)
    assert "video2" not in viewer.frames
    screen, _ = await publish(server, "early", "customer", source="screen", shade=220)
    await viewer.wait_frames("video2", 10)
    assert await shade(viewer, "video2") > await shade(viewer, "video1")
    await screen.close()
    await server.wait_for("track.ended", "early", source="screen")
    await viewer.wait_frames("video1", 10)
    await camera.close()
    await server.wait_for("participant.left", "early", identity="customer")
    await viewer.close()
    await server.wait_for("room.empty", "early")


async def test_publisher_reconnects_and_subscribers_go_on(server: Worker) -> None:
    await server.call("room.open", room="again")
    first, _ = await publish(server, "again", "customer", shade=60)
    viewer = Viewer()
    await connect(server, viewer.peer, "whep", room="again", identity="agent", target="customer")
    await viewer.wait_frames("video1", 10)
    dark = await shade(viewer, "video1")
    second, reply = await publish(server, "again", "customer", shade=200)
    await server.wait_for("session.connected", session=reply["session"])
    await server.wait_for("session.ended", "again", code="replaced")
    async with asyncio.timeout(30):
        while await shade(viewer, "video1") < dark + 60:
            await viewer.wait_frames("video1", 1)
    await viewer.wait_frames("audio0", 10)
    joins = [e for e in server.events if e["type"] == "participant.joined" and e["room"] == "again"]
    assert sorted(event["data"]["identity"] for event in joins) == ["agent", "customer"]
    hello = await server.call("hello")
    room = next(room for room in hello["rooms"] if room["room"] == "again")
    person = next(p for p in room["participants"] if p["identity"] == "customer")
    assert [s["session"] for s in person["sessions"]] == [reply["session"]]
    assert len(person["tracks"]) == 2
    for peer in (first, second):
        await peer.close()
    await viewer.close()


async def test_mute_stops_what_is_sent_and_unmute_goes_on(server: Worker) -> None:
    await server.call("room.open", room="mute")
    customer, _ = await publish(server, "mute", "customer")
    viewer = Viewer()
    await connect(server, viewer.peer, "whep", room="mute", identity="agent", target="customer")
    await viewer.wait_frames("video1", 5)
    muted = await server.call("participant.mute", room="mute", identity="customer", kind="video", muted=True)
    assert len(muted["tracks"]) == 1
    await asyncio.sleep(0.2)
    count = viewer.frames["video1"]
    await viewer.wait_frames("audio0", 20)
    assert viewer.frames["video1"] <= count + 1
    await server.call("participant.mute", room="mute", identity="customer", kind="video", muted=False)
    await viewer.wait_frames("video1", 5)
    await server.wait_for("track.unmuted", "mute", identity="customer")
    await server.call("participant.remove", room="mute", identity="customer")
    await server.wait_for("session.ended", code="removed")
    await customer.close()
    await viewer.close()


async def test_codec_mismatch_names_both_sides(server: Worker) -> None:
    await server.call("room.open", room="vp9", codecs=["video/VP9", "audio/opus"])
    with pytest.raises(IpcError) as caught:
        await publish(server, "vp9", "customer")
    assert (caught.value.code, caught.value.status) == ("codec_mismatch", 409)
    assert "VP9" in caught.value.detail
    assert "VP8, H264" in caught.value.detail

    await server.call("room.open", room="vp8")
    customer, _ = await publish(server, "vp8", "customer")
    await server.wait_for("track.started", "vp8", identity="customer", kind="video", mime="video/VP8")
    subscriber = RTCPeerConnection()
    line = subscriber.addTransceiver("video", direction="recvonly")
    codecs = RTCRtpSender.getCapabilities("video").codecs
    line.setCodecPreferences([codec for codec in codecs if codec.name in ("H264", "rtx")])
    with pytest.raises(IpcError) as caught:
        await connect(server, subscriber, "whep", room="vp8", identity="agent", target="customer")
    assert (caught.value.code, caught.value.status) == ("codec_mismatch", 409)
    assert "customer sends video/VP8; agent takes H264" in caught.value.detail
    await subscriber.close()
    await customer.close()


async def test_h264_and_pcma_pass_where_the_room_lists_them(server: Worker) -> None:
    await server.call("room.open", room="other", codecs=["H264", "audio/PCMA"])
    viewer = Viewer()
    reply = await connect(server, viewer.peer, "whep", room="other", identity="agent", target="customer")
    assert "VP8" not in reply["sdp"]
    assert "opus" not in reply["sdp"]
    customer, _ = await publish(server, "other", "customer")
    await viewer.wait_frames("video1", 5)
    await viewer.wait_frames("audio0", 5)
    event = await server.wait_for("track.started", "other", identity="customer", source="camera")
    assert event["data"]["mime"] == "video/H264"
    await customer.close()
    await viewer.close()


async def test_wrong_questions_get_stable_codes(server: Worker) -> None:
    await server.call("room.open", room="wrong")
    peer = RTCPeerConnection()
    peer.addTransceiver("audio", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    sdp = peer.localDescription.sdp
    cases: list[tuple[str, dict[str, object], str, int]] = [
        ("whip", {"room": "none", "identity": "a", "sdp": sdp}, "room_not_found", 404),
        ("whip", {"room": "wrong", "identity": "a", "sdp": "v=0"}, "sdp_invalid", 400),
        ("whip", {"room": "wrong", "identity": "a", "sdp": sdp}, "sdp_invalid", 400),
        ("whip", {"room": "wrong", "identity": "a", "sdp": sdp, "source": "x"}, "source_unknown", 400),
        ("whip", {"room": "wrong", "identity": "a", "sdp": "x" * 300_000}, "bad_request", 400),
        ("whep", {"room": "wrong", "identity": "a", "sdp": sdp}, "bad_request", 400),
        ("session.patch", {"session": "none", "sdpfrag": "a"}, "session_not_found", 404),
        ("session.delete", {"session": "none"}, "session_not_found", 404),
        ("participant.mute", {"room": "wrong", "identity": "x", "muted": True}, "participant_not_found", 404),
        ("recording.stop", {"recording": "none"}, "recording_not_found", 404),
        ("recording.start", {"recording": "r", "room": "wrong"}, "bad_request", 400),
        ("room.open", {"room": "new", "codecs": ["video/H265"]}, "codec_unknown", 422),
    ]
    for method, params, code, status in cases:
        with pytest.raises(IpcError) as caught:
            await server.call(method, **params)
        assert (caught.value.code, caught.value.status) == (code, status), method
    await peer.close()


async def test_wrong_fingerprint_fails_the_session_only(server: Worker) -> None:
    await server.call("room.open", room="forged")
    good, _ = await publish(server, "forged", "customer")
    viewer = Viewer()
    await connect(server, viewer.peer, "whep", room="forged", identity="agent", target="customer")
    await viewer.wait_frames("video1", 5)
    bad = RTCPeerConnection()
    bad.addTransceiver(Picture(), direction="sendonly")
    await bad.setLocalDescription(await bad.createOffer())
    sdp = re.sub(r"a=fingerprint:sha-(384|512).*\r\n", "", bad.localDescription.sdp)
    sdp = re.sub(r"(a=fingerprint:sha-256 )..", r"\g<1>00", sdp)
    reply = await server.call("whip", room="forged", identity="thief", sdp=sdp)
    await bad.setRemoteDescription(RTCSessionDescription(reply["sdp"], "answer"))
    event = await server.wait_for("session.failed", session=reply["session"])
    assert event["data"]["code"] == "dtls_fingerprint_mismatch"
    await viewer.wait_frames("video1", 5)
    for peer in (bad, good):
        await peer.close()
    await viewer.close()


async def test_restart_and_trickle(server: Worker) -> None:
    await server.call("room.open", room="patch")
    customer, reply = await publish(server, "patch", "customer")
    session, etag = reply["session"], reply["etag"]
    trickle = "a=mid:0\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n"
    assert await server.call("session.patch", session=session, sdpfrag=trickle, if_match=etag) == {
        "etag": etag
    }
    restart = "a=ice-ufrag:newname\r\na=ice-pwd:newpassword0123456789abc\r\n"
    answered = await server.call("session.patch", session=session, sdpfrag=restart, if_match="*")
    assert answered["etag"] != etag
    assert answered["etag"].strip('"') in answered["sdpfrag"]
    with pytest.raises(IpcError) as caught:
        await server.call("session.patch", session=session, sdpfrag=trickle, if_match=etag)
    assert (caught.value.code, caught.value.status) == ("etag_mismatch", 412)
    await server.call("session.delete", session=session)
    await server.wait_for("session.ended", session=session, code="deleted")
    await customer.close()


async def test_recording_holds_every_track_and_what_happened(server: Worker) -> None:
    await server.call("room.open", room="rec")
    customer, _ = await publish(server, "rec", "customer")
    await server.wait_for("track.started", "rec", identity="customer", kind="video")
    directory, secret = await server.record("recording-a", "rec", next_track=5)
    with pytest.raises(IpcError) as caught:
        await server.record("recording-b", "rec")
    assert (caught.value.code, caught.value.detail) == ("recording_active", "recording-a")
    agent, _ = await publish(server, "rec", "agent")
    viewers = {who: Viewer() for who in ("agent", "customer")}
    for who, viewer in viewers.items():
        await connect(server, viewer.peer, "whep", room="rec", identity="boss", target=who, hidden=True)
    for viewer in viewers.values():
        await viewer.wait_frames("video1", 30)
        await viewer.wait_frames("audio0", 5)
    paused = {"type": "recording.paused", "at_ns": 1, "data": {}}
    await server.call("recording.event", recording="recording-a", event=paused)
    await server.call("participant.mute", room="rec", identity="customer", muted=True)
    await viewers["agent"].wait_frames("video1", 5)
    await server.call(
        "recording.event", recording="recording-a", event={"type": "recording.resumed", "data": {}}
    )
    for name in ("video1", "audio0"):
        await viewers["agent"].wait_frames(name, 20)
    stopped = await server.call("recording.stop", recording="recording-a", final=True, reason="stopped")

    records = list(JournalReader(directory, DataKey("test", secret)).records())
    assert isinstance(records[0], SessionRecord)
    assert records[0].info["armed_ns"] <= records[0].at_ns
    assert isinstance(records[-1], EndRecord)
    assert records[-1].final
    assert any(isinstance(record, ClockRecord) for record in records)
    tracks = {record.info.track: record.info for record in records if isinstance(record, TrackRecord)}
    assert sorted(tracks) == [5, 6, 7, 8]
    assert {(t.seat, t.kind, t.source) for t in tracks.values()} == {
        (f"{who}#1", *what)
        for who in ("customer", "agent")
        for what in (("audio", "microphone"), ("video", "camera"))
    }
    assert len({t.stream for t in tracks.values()}) == 2
    packets = Counter(record.track for record in records if isinstance(record, RtpRecord))
    assert set(packets) == set(tracks)
    assert any(isinstance(record, RtcpRecord) for record in records)
    for track, info in tracks.items():
        of_track = [record for record in records if isinstance(record, RtpRecord) and record.track == track]
        parsed = [RtpPacket.parse(record.packet) for record in of_track]
        assert {p.ssrc for p in parsed} == {info.ssrc}
        assert {p.payload_type for p in parsed} == {info.payload_type}
        assert [r.arrival_ns for r in of_track] == sorted(r.arrival_ns for r in of_track)
        if info.kind == "video":
            assert any(is_keyframe(info.mime, p.payload) for p in parsed if p.payload)
    events = [record.event for record in records if isinstance(record, EventRecord)]
    names = [event["type"] for event in events]
    assert names.index("recording.paused") < names.index("track.muted") < names.index("recording.resumed")
    muted = {event["data"]["track"] for event in events if event["type"] == "track.muted"}
    assert {tracks[number].identity for number in muted} == {"customer"}
    resumed_ns = next(
        r.at_ns for r in records if isinstance(r, EventRecord) and r.event["type"] == "recording.resumed"
    )
    after = Counter(r.track for r in records if isinstance(r, RtpRecord) and r.arrival_ns > resumed_ns)
    assert {tracks[number].identity for number in after} == {"agent"}
    assert stopped["part"]["ended"]
    assert stopped["next_track"] == 9
    assert sum(count["packets"] for count in stopped["part"]["counts"]) == sum(packets.values())
    for peer in (customer, agent):
        await peer.close()
    for viewer in viewers.values():
        await viewer.close()


async def test_ssrcs_that_no_offer_named_are_found(server: Worker) -> None:
    await server.call("room.open", room="unnamed")
    directory, secret = await server.record("recording-unnamed", "unnamed")
    peer = RTCPeerConnection()
    peer.addTransceiver(Tone(), direction="sendonly")
    peer.addTransceiver(Picture(), direction="sendonly")
    await peer.setLocalDescription(await peer.createOffer())
    sdp = re.sub(r"a=ssrc.*\r\n", "", peer.localDescription.sdp)
    reply = await server.call("whip", room="unnamed", identity="customer", sdp=sdp)
    await peer.setRemoteDescription(RTCSessionDescription(reply["sdp"], "answer"))
    viewer = Viewer()
    await connect(
        server, viewer.peer, "whep", room="unnamed", identity="boss", target="customer", hidden=True
    )
    await viewer.wait_frames("video1", 10)
    await viewer.wait_frames("audio0", 10)
    await server.call("recording.stop", recording="recording-unnamed")
    records = list(JournalReader(directory, DataKey("test", secret)).records())
    numbers: dict[int, list[int]] = {}
    for record in records:
        if isinstance(record, RtpRecord):
            numbers.setdefault(record.track, []).append(RtpPacket.parse(record.packet).sequence_number)
    assert set(numbers) == {1, 2}
    for track in numbers.values():  # from the very first packet on
        assert (track[-1] - track[0]) % 65536 + 1 == len(set(track))
    said = [record.event for record in records if isinstance(record, EventRecord)]
    assert not any(event["data"].get("identity") == "boss" for event in said)
    await peer.close()
    await viewer.close()


async def test_a_directory_that_is_none_refuses_the_recording_only(server: Worker) -> None:
    await server.call("room.open", room="disk")
    customer, _ = await publish(server, "disk", "customer")
    (server.directory / "blocked").write_text("a file")
    with pytest.raises(IpcError) as caught:
        await server.record("blocked", "disk")
    assert (caught.value.code, caught.value.status) == ("recording_failed", 507)
    viewer = Viewer()
    await connect(server, viewer.peer, "whep", room="disk", identity="agent", target="customer")
    await viewer.wait_frames("video1", 3)
    await server.record("recording-after", "disk")
    stopped = await server.call("recording.stop", recording="recording-after")
    assert stopped["part"]["final"]
    with pytest.raises(IpcError) as caught:  # a part is never continued
        await server.record("recording-after", "disk")
    assert caught.value.code == "part_exists"
    await server.record("recording-after", "disk", part=2)
    await server.call("recording.stop", recording="recording-after")
    await customer.close()
    await viewer.close()


class LossyPath(asyncio.DatagramProtocol):
    """A UDP relay that drops media packets on their way to the worker, a seeded part of them."""

    def __init__(self, worker_port: int, loss: float) -> None:
        self._worker = ("127.0.0.1", worker_port)
        self._loss = loss
        self._random = random.Random(7)
        self._clients: dict[tuple[str, int], socket.socket] = {}
        self.dropped = 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if addr not in self._clients:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect(self._worker)
            self._clients[addr] = sock
            asyncio.get_running_loop().add_reader(sock, self._back, sock, addr)
        is_media = data[0] >> 6 == 2 and not 192 <= data[1] <= 223
        if is_media and self._random.random() < self._loss:
            self.dropped += 1
        else:
            self._clients[addr].send(data)

    def _back(self, sock: socket.socket, addr: tuple[str, int]) -> None:
        self._transport.sendto(sock.recv(2048), addr)

    def close(self) -> None:
        for sock in self._clients.values():
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._transport.close()


async def test_lost_packets_are_asked_for_and_recorded(server: Worker) -> None:
    await server.call("room.open", room="lossy")
    hello = await server.call("hello")
    port = int(hello["udp"][0].rpartition(":")[2])
    loop = asyncio.get_running_loop()
    transport, path = await loop.create_datagram_endpoint(
        lambda: LossyPath(port, 0.08), local_addr=("127.0.0.1", 0)
    )
    entry = transport.get_extra_info("sockname")[1]
    before = (await server.call("stats"))["nacks_sent"]
    peer = RTCPeerConnection()
    peer.addTransceiver(Picture(), direction="sendonly")
    await peer.setLocalDescription(await peer.createOffer())
    reply = await server.call("whip", room="lossy", identity="customer", sdp=peer.localDescription.sdp)
    sdp = reply["sdp"].replace(f" {port} ", f" {entry} ")
    await peer.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
    await server.wait_for("session.connected", session=reply["session"])
    directory, secret = await server.record("recording-lossy", "lossy")
    async with asyncio.timeout(20):
        while path.dropped < 12:
            await asyncio.sleep(0.1)
    await asyncio.sleep(0.4)
    path._loss = 0.0
    await asyncio.sleep(0.4)
    await server.call("recording.stop", recording="recording-lossy")
    assert (await server.call("stats"))["nacks_sent"] > before
    records = JournalReader(directory, DataKey("test", secret)).records()
    numbers = {RtpPacket.parse(r.packet).sequence_number for r in records if isinstance(r, RtpRecord)}
    first = min(numbers)
    if max(numbers) - first > 30_000:  # wrapped
        numbers = {(number + 32_768) % 65_536 for number in numbers}
        first = min(numbers)
    missing = [number for number in range(first, max(numbers)) if number not in numbers]
    assert len(missing) <= 1, (path.dropped, missing)
    await peer.close()
    path.close()


async def test_rubbish_on_the_port_is_counted_and_calls_go_on(server: Worker) -> None:
    await server.call("room.open", room="noise")
    customer, _ = await publish(server, "noise", "customer")
    viewer = Viewer()
    await connect(server, viewer.peer, "whep", room="noise", identity="agent", target="customer")
    await viewer.wait_frames("video1", 5)
    hello = await server.call("hello")
    host, _, port = hello["udp"][0].rpartition(":")
    before = await server.call("stats")
    noise = random.Random(3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for first in (0, 1, 2, 20, 22, 63, 64, 128, 129, 191, 255):
            for length in (1, 2, 4, 12, 20, 28, 60, 1200, 1500, 4000):
                sock.sendto(bytes([first]) + noise.randbytes(length - 1), (host, int(port)))
                stun = (
                    b"\0\1"
                    + (length & ~3).to_bytes(2, "big")
                    + b"\x21\x12\xa4\x42"
                    + noise.randbytes(length + 12)
                )
                sock.sendto(stun, (host, int(port)))
    await viewer.wait_frames("video1", 15)
    after = await server.call("stats")
    assert after["ice"]["malformed"] > before["ice"]["malformed"]
    assert after["forwarder"]["unknown_address"] > before["forwarder"]["unknown_address"]
    assert after["transport"]["internal_errors"] == 0
    assert after["bytes_sent"] > before["bytes_sent"]
    await customer.close()
    await viewer.close()
    await server.wait_for("room.empty", "noise")
    closed = await server.call("stats")
    for name in ("bytes_sent", "bytes_received", "packets_resent", "keyframe_requests", "nacks_sent"):
        assert closed[name] >= after[name], name  # totals never fall, whoever leaves


async def test_calls_and_recordings_outlive_control_and_end_cleanly(tmp_path: Path) -> None:
    async with worker(tmp_path) as running:
        await running.call("room.open", room="alone")
        customer, reply = await publish(running, "alone", "customer")
        viewer = Viewer()
        await connect(running, viewer.peer, "whep", room="alone", identity="agent", target="customer")
        directory, secret = await running.record("recording-c", "alone")
        await viewer.wait_frames("video1", 3)
        socket_path = running.client.path
        await running.client.close()
        await viewer.wait_frames("video1", 15)
        running.client = IpcClient(socket_path)
        await running.client.connect(5)
        hello = await running.call("hello")
        assert [r["recording"] for r in hello["recordings"]] == ["recording-c"]
        assert len(hello["rooms"][0]["participants"]) == 2
        running.process.terminate()
        async with asyncio.timeout(10):
            while running.process.poll() is None:
                await asyncio.sleep(0.05)
        assert running.process.returncode == 0
        async with asyncio.timeout(5):
            while customer.connectionState != "closed":
                await asyncio.sleep(0.05)
        await customer.close()
        await viewer.close()
    records = list(JournalReader(directory, DataKey("test", secret)).records())
    assert isinstance(records[-1], EndRecord)
    assert (records[-1].final, records[-1].reason) == (False, "worker_ended")
    log = (tmp_path / "worker0.log").read_text()
    assert reply["etag"].strip('"') not in log
    assert "ice-pwd" not in log
