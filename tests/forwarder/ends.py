"""The ends of the conformance tests: real UDP sockets with pylibsrtp, and a forwarder between them."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pylibsrtp import Policy, Session

from mediaserver.forwarder import (
    ABS_SEND_TIME,
    AUDIO_LEVEL,
    MID,
    TRANSPORT_CC,
    VIDEO_ORIENTATION,
    Event,
    Forwarder,
    Profile,
    RouteParameters,
    StreamParameters,
    open_forwarder,
)
from mediaserver.forwarder.native import NativeForwarder

SENTINEL = b"\x01sentinel"
TIMEOUT_S = 30.0

PUBLISHED = {MID: 1, ABS_SEND_TIME: 2, TRANSPORT_CC: 3, AUDIO_LEVEL: 4, VIDEO_ORIENTATION: 5}
SUBSCRIBED = {MID: 9, ABS_SEND_TIME: 8, TRANSPORT_CC: 7, AUDIO_LEVEL: 6, VIDEO_ORIENTATION: 2}


def rtp(
    sequence: int,
    *,
    ssrc: int = 0x1111,
    timestamp: int = 0,
    payload_type: int = 96,
    payload: bytes = b"payload",
    marker: bool = False,
    elements: Sequence[tuple[int, bytes]] = (),
    two_byte: bool = False,
    csrcs: Sequence[int] = (),
    padding: int = 0,
) -> bytes:
    """Build an RTP packet."""
    first = 0x80 | len(csrcs) | (0x10 if elements else 0) | (0x20 if padding else 0)
    data = struct.pack(
        "!BBHII",
        first,
        payload_type | (0x80 if marker else 0),
        sequence & 0xFFFF,
        timestamp & 0xFFFFFFFF,
        ssrc,
    )
    for csrc in csrcs:
        data += struct.pack("!I", csrc)
    if elements:
        if two_byte:
            body = b"".join(bytes((number, len(value))) + value for number, value in elements)
        else:
            body = b"".join(bytes((number << 4 | len(value) - 1,)) + value for number, value in elements)
        body += bytes(-len(body) % 4)
        data += struct.pack("!HH", 0x1000 if two_byte else 0xBEDE, len(body) // 4) + body
    data += payload
    if padding:
        data += bytes(padding - 1) + bytes((padding,))
    return data


def vp8(
    keyframe: bool,
    picture: int | None = None,
    index: int | None = None,
    *,
    start: bool = True,
    size: int = 40,
) -> bytes:
    """Build a VP8 payload (RFC 7741), the picture id with 15 bits."""
    first = 0x10 if start else 0
    flags = (0x80 if picture is not None else 0) | (0x40 if index is not None else 0)
    head = bytes((first | (0x80 if flags else 0),))
    if flags:
        head += bytes((flags,))
    if picture is not None:
        head += struct.pack("!H", 0x8000 | picture & 0x7FFF)
    if index is not None:
        head += bytes((index & 0xFF,))
    return head + bytes((0 if keyframe else 1,)) + bytes(size)


@dataclass
class Seen:
    """A received RTP packet, taken apart."""

    data: bytes
    marker: bool = False
    payload_type: int = 0
    sequence: int = 0
    timestamp: int = 0
    ssrc: int = 0
    elements: dict[int, bytes] = field(default_factory=dict)
    profile: int = 0
    payload: bytes = b""

    def __post_init__(self) -> None:
        first, second, self.sequence, self.timestamp, self.ssrc = struct.unpack_from("!BBHII", self.data)
        self.marker = bool(second & 0x80)
        self.payload_type = second & 0x7F
        at = 12 + 4 * (first & 15)
        if first & 0x10:
            self.profile, words = struct.unpack_from("!HH", self.data, at)
            body = self.data[at + 4 : at + 4 + 4 * words]
            at += 4 + 4 * words
            place = 0
            while place < len(body):
                byte = body[place]
                place += 1
                if byte == 0:
                    continue
                if self.profile == 0xBEDE:
                    number, length = byte >> 4, (byte & 15) + 1
                else:
                    number, length = byte, body[place]
                    place += 1
                self.elements[number] = body[place : place + length]
                place += length
        self.payload = self.data[at:]


class End:
    """One participant: a UDP socket, its SRTP sessions, its peer number."""

    def __init__(self, world: World, profile: Profile, family: int, seed: int) -> None:
        self.world = world
        self.family = family
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        self.socket.settimeout(TIMEOUT_S)
        self.address = self.socket.getsockname()[:2]
        self.rng = random.Random(seed)
        self.peer = 0
        self.profile = profile
        self.key(profile)

    def key(self, profile: Profile) -> None:
        """Draw keys for both directions."""
        self.profile = profile
        size = profile.key_bytes + profile.salt_bytes
        self.up, self.down = self.rng.randbytes(size), self.rng.randbytes(size)
        policy = Policy(key=self.up, ssrc_type=Policy.SSRC_ANY_OUTBOUND, srtp_profile=int(profile))
        policy.allow_repeat_tx = True
        self.tx = Session(policy)
        policy = Policy(key=self.down, ssrc_type=Policy.SSRC_ANY_INBOUND, srtp_profile=int(profile))
        policy.window_size = 1024
        self.rx = Session(policy)

    def keys(self) -> tuple[Profile, bytes, bytes, bytes, bytes]:
        """Return the arguments of ``Forwarder.set_keys`` after the peer."""
        n = self.profile.key_bytes
        return self.profile, self.up[:n], self.up[n:], self.down[:n], self.down[n:]

    def send_bytes(self, data: bytes) -> None:
        """Send a datagram as it is."""
        self.world.sent += 1
        self.socket.sendto(data, self.world.address(self.family))

    def send(self, *packets: bytes) -> None:
        """Encrypt and send RTP packets."""
        for packet in packets:
            self.send_bytes(self.tx.protect(packet))

    def send_rtcp(self, data: bytes) -> None:
        """Encrypt and send a compound."""
        self.send_bytes(self.tx.protect_rtcp(data))

    def receive_bytes(self) -> list[bytes]:
        """Return all datagrams that the forwarder has sent here for what was sent to it so far."""
        self.world.settle()
        self.world.forwarder.send_raw(
            self.address, SENTINEL, 0 if self.family == self.world.sockets[0].family else 1
        )
        found = []
        while (data := self.socket.recv(4096)) != SENTINEL:
            found.append(data)
        return found

    def receive(self) -> list[Seen]:
        """Return all RTP packets, decrypted."""
        return [Seen(self.rx.unprotect(data)) for data in self.receive_bytes() if not 192 <= data[1] <= 223]

    def receive_rtcp(self) -> list[bytes]:
        """Return all compounds, decrypted."""
        return [self.rx.unprotect_rtcp(data) for data in self.receive_bytes() if 192 <= data[1] <= 223]


def make_forwarder(sockets: list[socket.socket], kind: str) -> Forwarder:
    """Open a forwarder: ``python``, ``native``, or ``native-libsrtp`` that does without EVP.

    ``FORWARDER_LIBRARY`` names another native library, one with sanitizers.
    """
    if kind == "python":
        return open_forwarder(sockets, kind=kind)
    evp = kind == "native"
    return NativeForwarder(sockets, library=os.environ.get("FORWARDER_LIBRARY"), evp=evp)


class World:
    """A forwarder on an IPv4 and an IPv6 loopback socket, and ends around it."""

    def __init__(self, kind: str) -> None:
        self.sockets = []
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.bind((host, 0))
            self.sockets.append(sock)
        self.forwarder: Forwarder = make_forwarder(self.sockets, kind)
        self.ends: list[End] = []
        self.sent = 0
        self.events: list[Event] = []

    def address(self, family: int) -> tuple[str, int]:
        """Return the forwarder's address of a family."""
        sock = self.sockets[0 if family == socket.AF_INET else 1]
        host, port = sock.getsockname()[:2]
        return host, port

    def end(
        self,
        profile: Profile = Profile.AEAD_AES_128_GCM,
        *,
        family: int = socket.AF_INET,
        ready: bool = True,
    ) -> End:
        """Make a participant, bound and keyed."""
        end = End(self, profile, family, len(self.ends) + 1)
        self.ends.append(end)
        end.peer = self.forwarder.add_peer(PUBLISHED)
        if ready:
            self.forwarder.bind(end.peer, end.address, 0 if family == socket.AF_INET else 1)
            self.forwarder.set_keys(end.peer, *end.keys())
        return end

    def stream(
        self,
        end: End,
        ssrc: int = 0x1111,
        *,
        mime: str = "audio/opus",
        payload_type: int = 96,
        clock_rate: int = 48000,
        **more: object,
    ) -> int:
        """Publish a stream."""
        parameters = StreamParameters(
            kind=mime.partition("/")[0],
            mime=mime,
            clock_rate=clock_rate,
            payload_type=payload_type,
            extensions=PUBLISHED,
            **more,  # type: ignore[arg-type]
        )
        return self.forwarder.add_stream(end.peer, ssrc, parameters)

    def route(self, stream: int, end: End, ssrc: int = 0x2222, **more: object) -> int:
        """Subscribe ``end`` to a stream; payload type 111 and first sequence number 100 unless said."""
        more.setdefault("payload_type", 111)
        more.setdefault("first_sequence", 100)
        return self.forwarder.add_route(stream, end.peer, RouteParameters(ssrc=ssrc, **more))  # type: ignore[arg-type]

    def settle(self) -> None:
        """Wait until the forwarder has taken all that was sent to it."""
        self.wait(lambda: self.forwarder.stats().datagrams_received >= self.sent)

    def settle_undrained(self) -> None:
        """Likewise, without taking events."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.forwarder.stats().datagrams_received < self.sent:
            assert time.monotonic() < deadline, "waited in vain"

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait until something is so; events that come meanwhile are collected."""
        deadline = time.monotonic() + TIMEOUT_S
        while not done():
            assert time.monotonic() < deadline, "waited in vain"
            select.select([self.forwarder.event_fd], [], [], 0.001)
            self.events += self.forwarder.take_events()

    def take(self, *kinds: type[Event]) -> list[Event]:
        """Return all events of these kinds so far."""
        self.settle()
        self.events += self.forwarder.take_events()
        return [event for event in self.events if isinstance(event, kinds)]

    def close(self) -> None:
        """Stop the forwarder and close all sockets."""
        self.forwarder.close()
        for sock in self.sockets:
            sock.close()
        for end in self.ends:
            end.socket.close()


def sequences(packets: Iterable[Seen]) -> list[int]:
    """Return the sequence numbers of packets."""
    return [packet.sequence for packet in packets]


def resident_bytes() -> int:
    """Return this process's resident memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
