"""One client's connection: a UDP socket, ICE in the controlling role, DTLS as client, media by the engine.

It offers by itself (WHIP, WHEP) or answers an offer (Janus' subscribers). The other side is ICE-lite or full,
and accepts or proposes the passive DTLS role. One component, one candidate, BUNDLE: what a load needs.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aioice import stun
from OpenSSL import SSL

from bench.load.engine import Engine, Sent
from mediaserver.media.dtls import PROFILES, DtlsIdentity, SrtpKeys, export_keys, split_datagrams

RETRY_S = 0.05
"""As Chromium does; OpenSSL alone would wait a second for a server not ready for the first flight."""
PATIENCE_S = 20.0
EXTENSIONS = {
    "urn:ietf:params:rtp-hdrext:sdes:mid": 4,
    "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time": 2,
    "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01": 3,
}
MID, ABS_SEND_TIME, TRANSPORT_CC = EXTENSIONS
VIDEO_PT, AUDIO_PT = 96, 111
_FORMATS = {
    "video/VP8": ["a=rtpmap:96 VP8/90000"],
    "video/H264": [
        "a=rtpmap:96 H264/90000",
        "a=fmtp:96 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
    ],
}


class JoinError(Exception):
    """A connection did not come about; the text says which step and why."""


@dataclass(frozen=True, slots=True)
class Remote:
    """What the other side's SDP says."""

    ufrag: str
    password: str = field(repr=False)
    address: tuple[str, int]
    payload_types: Mapping[str, int]
    """Kind → the payload type of the codec that is sent."""
    ssrcs: Mapping[str, int]
    mids: Mapping[str, str]
    extensions: Mapping[str, int]


def parse(sdp: str, mime: str) -> Remote:
    """Read the lines that matter. Raises ``JoinError``."""

    def first(pattern: str, text: str = sdp) -> str:
        found = re.search(pattern, text, re.MULTILINE)
        if not found:
            raise JoinError(f"the server's SDP has no {pattern!r}")
        return found.group(1)

    candidates = [
        (line[4], int(line[5]))
        for line in (found.split() for found in re.findall(r"^a=candidate:(.*?)\r?$", sdp, re.MULTILINE))
        if line[1] == "1" and line[2].lower() == "udp" and ":" not in line[4]
    ]
    if not candidates:
        raise JoinError("the server's SDP has no IPv4 UDP candidate")
    payload_types, ssrcs, mids = {}, {}, {}
    for section in re.split(r"^m=", sdp, flags=re.MULTILINE)[1:]:
        kind = section.split()[0]
        if kind not in ("audio", "video") or kind in mids:
            continue
        name = "opus" if kind == "audio" else mime.partition("/")[2]
        mids[kind] = first(r"^a=mid:(\S+)", section)
        payload_types[kind] = int(first(rf"^a=rtpmap:(\d+) (?i:{name})/", section))
        if found := re.search(r"^a=ssrc:(\d+)", section, re.MULTILINE):
            ssrcs[kind] = int(found.group(1))
    extensions = {
        uri: int(number)
        for number, uri in re.findall(r"^a=extmap:(\d+)(?:/\w+)? (\S+?)\r?$", sdp, re.MULTILINE)
    }
    return Remote(
        first(r"^a=ice-ufrag:(\S+)"),
        first(r"^a=ice-pwd:(\S+)"),
        candidates[0],
        payload_types,
        ssrcs,
        mids,
        extensions,
    )


class Connection:
    """A publisher or a subscriber. ``offer`` or ``answer``, then ``connect``; ``close`` at the end."""

    identity = DtlsIdentity()
    """One certificate for all: making one costs more than a handshake."""

    def __init__(
        self,
        engine: Engine,
        mime: str,
        source: int,
        *,
        publishes: bool,
        local: str,
        bound: socket.socket | None = None,
        layered: bool = False,
    ) -> None:
        """``bound``: a UDP socket to use, of another network for example; None: a new one on ``local``.
        ``layered``: a publisher offers two sizes of its picture (RFC 8853) and sends one of them."""
        self.engine, self.mime, self.source, self.publishes = engine, mime, source, publishes
        self.layered = layered
        self.ufrag, self.password = secrets.token_hex(4), secrets.token_hex(12)
        self.ssrcs = {"video": source * 4 + 1, "audio": source * 4 + 2}
        self.socket = bound or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        if bound is None:
            self.socket.bind((local, 0))
        self.number: int | None = None
        self.profile = ""
        self.resource = ""
        """Address of the WHIP or WHEP session, to DELETE."""
        self.credentials: dict[str, str] = {}
        self._remote: Remote | None = None
        self._checked = asyncio.Event()
        self._dtls: SSL.Connection | None = None
        self._hello: list[bytes] | None = None
        """The first flight, until it is answered."""
        self._keys: SrtpKeys | None = None
        self._keyed = asyncio.Event()

    # --- SDP

    def offer(self) -> str:
        """Return an SDP offer: sound and picture, sent or received."""
        return self._sdp(
            {"audio": "0", "video": "1"}, EXTENSIONS, "sendonly" if self.publishes else "recvonly"
        )

    def answered(self, sdp: str) -> None:
        """Take the answer to our offer. Raises ``JoinError``."""
        self._remote = parse(sdp, self.mime)

    def answer(self, sdp: str) -> str:
        """Take an offer that sends to us; returns the answer. Raises ``JoinError``."""
        remote = self._remote = parse(sdp, self.mime)
        known = {uri: number for uri, number in remote.extensions.items() if uri in EXTENSIONS}
        return self._sdp(remote.mids, known, "recvonly", remote.payload_types)

    def _sdp(
        self,
        mids: Mapping[str, str],
        extensions: Mapping[str, int],
        direction: str,
        payload_types: Mapping[str, int] | None = None,
    ) -> str:
        numbers = payload_types or {"video": VIDEO_PT, "audio": AUDIO_PT}
        host, port = self.socket.getsockname()
        lines = ["v=0", f"o=- {self.source} 1 IN IP4 127.0.0.1", "s=-", "t=0 0"]
        lines += [f"a=group:BUNDLE {' '.join(mids.values())}", "a=msid-semantic: WMS *"]
        for kind, mid in mids.items():
            number = numbers[kind]
            formats = ["a=rtpmap:111 opus/48000/2"] if kind == "audio" else _FORMATS[self.mime]
            lines += [
                f"m={kind} {port} UDP/TLS/RTP/SAVPF {number}",
                f"c=IN IP4 {host}",
                f"a={direction}",
                f"a=mid:{mid}",
                "a=rtcp-mux",
                f"a=ice-ufrag:{self.ufrag}",
                f"a=ice-pwd:{self.password}",
                f"a=fingerprint:sha-256 {self.identity.fingerprint}",
                "a=setup:active",
                f"a=candidate:1 1 udp 2130706431 {host} {port} typ host",
                "a=end-of-candidates",
                *(f"a=extmap:{at} {uri}" for uri, at in extensions.items()),
                *(re.sub(r":(96|111)\b", f":{number}", line, count=1) for line in formats),
                f"a=rtcp-fb:{number} transport-cc",
            ]
            if kind == "video":
                lines += [f"a=rtcp-fb:{number} {what}" for what in ("nack", "nack pli", "ccm fir")]
            if direction == "sendonly" and self.layered and kind == "video":
                lines += ["a=rid:h send", "a=rid:f send", "a=simulcast:send h;f"]
            if direction == "sendonly":
                lines += [f"a=msid:bench {kind}", f"a=ssrc:{self.ssrcs[kind]} cname:bench"]
        return "\r\n".join([*lines, ""])

    # --- ICE and DTLS

    async def connect(self) -> None:
        """Prove our address, shake hands, and let the engine send or receive. Raises ``JoinError``."""
        remote = self._remote
        if remote is None:
            raise JoinError("connect needs the other side's SDP first")
        loop = asyncio.get_running_loop()
        self.socket.connect(remote.address)
        loop.add_reader(self.socket, self._readable)
        try:
            await self._until(self._checked, self.check, "ICE: no answer to our checks")
            self._dtls = SSL.Connection(self.identity.context, None)
            self._dtls.set_connect_state()
            self._dtls.set_ciphertext_mtu(1200)
            self._shake()
            await self._until(self._keyed, self._repeat, "DTLS: the handshake did not end")
        finally:
            loop.remove_reader(self.socket)
        assert self._keys is not None
        extensions = {uri: at for uri, at in remote.extensions.items() if uri in EXTENSIONS}
        media = Sent(
            video_pt=remote.payload_types.get("video", VIDEO_PT),
            audio_pt=remote.payload_types.get("audio", AUDIO_PT),
            video_ssrc=self.ssrcs["video"],
            audio_ssrc=self.ssrcs["audio"],
            mid_id=extensions.get(MID, 0),
            abs_id=extensions.get(ABS_SEND_TIME, 0),
            transport_cc_id=extensions.get(TRANSPORT_CC, 0),
            video_mid=remote.mids.get("video", "1"),
            audio_mid=remote.mids.get("audio", "0"),
        )
        self.number = self.engine.add(
            self.socket.fileno(), self._keys, media, self.source, publishes=self.publishes
        )

    async def _until(self, event: asyncio.Event, again: object, otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        assert callable(again)
        if event is self._checked:
            again()
        while not event.is_set():
            if time.monotonic() > deadline:
                raise JoinError(f"{otherwise} within {PATIENCE_S:.0f} s")
            try:
                await asyncio.wait_for(event.wait(), RETRY_S)
            except TimeoutError:
                again()

    def check(self) -> None:
        """Send a check, as consent needs every few seconds (RFC 7675)."""
        assert self._remote is not None
        message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        message.attributes["USERNAME"] = f"{self._remote.ufrag}:{self.ufrag}"
        message.attributes["PRIORITY"] = 1845501695
        message.attributes["ICE-CONTROLLING"] = self.source
        message.attributes["USE-CANDIDATE"] = None
        message.add_message_integrity(self._remote.password.encode())
        message.add_fingerprint()
        self._send(bytes(message))

    def receive(self, data: bytes) -> None:
        """Take a datagram that is no media."""
        if data[:1] < b"\x02":
            self._stun(data)
        elif 20 <= data[0] <= 63 and self._dtls is not None and self._keys is None:
            self._hello = []
            self._dtls.bio_write(data)
            self._shake()

    def _readable(self) -> None:
        while True:
            try:
                data = self.socket.recv(2048)
            except BlockingIOError:
                return
            except ConnectionRefusedError:  # not listening yet: the check is sent again
                return
            if data:
                self.receive(data)
            if self._keyed.is_set():
                return  # what comes now is the engine's

    def _stun(self, data: bytes) -> None:
        try:
            message = stun.parse_message(data)
        except ValueError:
            return
        if message.message_class is stun.Class.REQUEST:
            answer = stun.Message(
                stun.Method.BINDING, stun.Class.RESPONSE, transaction_id=message.transaction_id
            )
            answer.attributes["XOR-MAPPED-ADDRESS"] = self.socket.getpeername()
            answer.add_message_integrity(self.password.encode())
            answer.add_fingerprint()
            self._send(bytes(answer))
        elif message.message_class is stun.Class.RESPONSE:
            self._checked.set()

    def _shake(self) -> None:
        assert self._dtls is not None
        try:
            self._dtls.do_handshake()
            self._keys = self._export(self._dtls)
        except SSL.WantReadError:
            pass  # the next flight is the other side's
        except SSL.Error as error:
            raise JoinError(f"DTLS: {error}") from error
        self._flush()
        if self._keys is not None:
            self._keyed.set()

    def _repeat(self) -> None:
        assert self._dtls is not None
        if self._hello:
            for datagram in self._hello:
                self._send(datagram)
        elif self._dtls.DTLSv1_handle_timeout():
            self._flush()

    def _flush(self) -> None:
        assert self._dtls is not None
        try:
            flight = split_datagrams(self._dtls.bio_read(65536))
        except SSL.WantReadError:
            return
        if self._hello is None:
            self._hello = flight
        for datagram in flight:
            self._send(datagram)

    def _send(self, data: bytes) -> None:
        try:
            self.socket.send(data)
        except OSError:
            return  # no room, nobody there, no network just now: sent again

    def _export(self, dtls: SSL.Connection) -> SrtpKeys:
        self.profile = dtls.get_selected_srtp_profile().decode()
        profile = next((one for one in PROFILES if one.name == self.profile), None)
        if profile is None:
            raise JoinError("DTLS: the server chose no SRTP profile")
        return export_keys(dtls, profile, client=True)

    def close(self) -> None:
        """Let go of the socket; the server learns it by its API or by silence."""
        if self.number is not None:
            self.engine.remove(self.number)
            self.number = None
        self.socket.close()


class Keeper:
    """Keeps consent alive for all connections and answers the other sides' checks."""

    EVERY_S = 2.5
    """As Chromium does."""

    def __init__(self, engine: Engine, connections: Sequence[Connection]) -> None:
        self._engine, self._connections = engine, connections

    async def run(self) -> None:
        """Go on until cancelled."""
        at, due = 0, 0.0
        while True:
            await asyncio.sleep(0.05)
            live = [one for one in self._connections if one.number is not None]
            by_number = {one.number: one for one in live}
            for number, data in self._engine.take_raw():
                if number in by_number:
                    by_number[number].receive(data)
            due += len(live) * 0.05 / self.EVERY_S
            while due >= 1:
                live[at % len(live)].check()
                at, due = at + 1, due - 1
