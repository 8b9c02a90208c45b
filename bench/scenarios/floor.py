"""What forwarding one packet costs beside the floor: CPU of the forwarder's process per packet sent.

The floor is the native forwarder's own loop, naps, bursts and batches with crypto, extensions, cache, RTX and
transport-cc switched off: what is left is moving datagrams. The forwarder runs in its own process, alone on
core 0; load and sink run on the last core. Publishers send video in frame bursts of equal packets with mid,
abs-send-time and transport-cc extensions; every subscriber gets its own numbers. The sink counts all packets
and decrypts one in 32. ``waited_share`` says how busy others kept the core: above 0.1 losses are theirs.

What the native forwarder does beyond that is measured at one fan-out: RED (RFC 2198) passed on, and made
plain for each viewer, beside Opus in the same packets; VP9 in three spatial layers sent whole, and without
the largest.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pylibsrtp import Policy, Session

from bench.load.engine import null_crypto
from bench.scenarios.calls import Progress
from mediaserver.forwarder import (
    ABS_SEND_TIME,
    MID,
    TRANSPORT_CC,
    Forwarder,
    Profile,
    RouteParameters,
    StreamParameters,
)
from mediaserver.forwarder.batch import BatchForwarder
from mediaserver.forwarder.native import NativeForwarder
from mediaserver.forwarder.sockets import Destination, Receiver, ffi, libc, pack_address

RATES = {
    "floor": {1: 16000, 3: 8000, 10: 3000},
    "native": {1: 16000, 3: 8000, 10: 3000},
    "native-libsrtp": {1: 16000, 3: 8000, 10: 3000},
    "python": {1: 6000, 3: 3000, 10: 1000},
    "opus": {3: 8000},
    "red": {3: 8000},
    "red-made-plain": {3: 8000},
    "vp9": {3: 8000},
    "vp9-two-of-three-layers": {3: 8000},
}
"""Packets a second in, by fan-out: some 20 to 60 % of a core each."""
PUBLISHERS = 32
BURST = 4
PAYLOAD_BYTES = 1100
MIMES = {"opus": "audio/opus", "red": "audio/opus", "vp9": "video/VP9"}
PROFILE = Profile.AEAD_AES_128_GCM
SAMPLE = 32
SOUND = ("opus", "red", "red-made-plain")
FEATURES = (*SOUND, "vp9", "vp9-two-of-three-layers")
FEATURES_FAN_OUT = 3
FRAME_BYTES = 80
"""Of Opus at 32 kbit/s; RED carries one more of them."""
RED_TYPE = 63
LAYERS = (0, 1, 2, 2)
"""Spatial layers of the packets of a picture."""
EXTENSIONS = {MID: 1, ABS_SEND_TIME: 2, TRANSPORT_CC: 3}


def key_of(number: int, direction: int) -> bytes:
    """Return the master key and salt of a direction: any will do, both processes must know them."""
    return bytes((number & 255, number >> 8, direction)) * 9 + b"!"


def session(number: int, direction: int, *, outbound: bool) -> Session:
    """Make the client's SRTP session."""
    kind = Policy.SSRC_ANY_OUTBOUND if outbound else Policy.SSRC_ANY_INBOUND
    policy = Policy(key=key_of(number, direction), ssrc_type=kind, srtp_profile=int(PROFILE))
    policy.window_size = 1024
    return Session(policy)


# --- the server's process


def waited_s() -> float:
    """Return how long this process's threads were ready to run but other programs had the core."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9


def serve() -> None:
    """Run a forwarder as told on stdin (one JSON object a line); answer CPU seconds and counters when
    asked."""
    plan = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, {0})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        forwarder: Forwarder
        if plan["kind"] == "python":
            forwarder = BatchForwarder([sock])
        elif plan["kind"] == "floor":
            forwarder = NativeForwarder([sock], crypto=null_crypto)
        else:
            forwarder = NativeForwarder([sock], evp=plan["kind"] != "native-libsrtp")
        bare = plan["kind"] == "floor"
        extensions = {} if bare else EXTENSIONS
        n, streams, fan_out = PROFILE.key_bytes, [], plan["fan_out"]
        for number, address in enumerate(plan["addresses"]):
            peer = forwarder.add_peer(extensions)
            forwarder.bind(peer, (address[0], address[1]))
            up, down = key_of(number, 0), key_of(number, 1)
            end = n + PROFILE.salt_bytes
            forwarder.set_keys(peer, PROFILE, up[:n], up[n:end], down[:n], down[n:end])
            if number < PUBLISHERS:
                kept = {"keep_ms": 0, "keep_bytes": 0} if bare else {}
                red = RED_TYPE if plan["kind"].startswith("red") else None
                parameters = StreamParameters(
                    "audio" if plan["kind"] in SOUND else "video",
                    MIMES.get(plan["kind"].partition("-")[0], "video/any"),
                    48000 if plan["kind"] in SOUND else 90000,
                    96,
                    red_payload_type=red,
                    extensions=extensions,
                    **kept,
                )
                streams.append(forwarder.add_stream(peer, number + 1, parameters))
                if not bare:
                    forwarder.set_feedback(peer, 100)
            else:
                stream = streams[(number - PUBLISHERS) // fan_out]
                route = RouteParameters(
                    ssrc=number + 1,
                    payload_type=111,
                    extensions=extensions,
                    mid="" if bare else "0",
                    first_sequence=0,
                    red_payload_type=RED_TYPE if plan["kind"] == "red" else None,
                )
                added = forwarder.add_route(stream, peer, route)
                if plan["kind"] == "vp9-two-of-three-layers":
                    forwarder.set_layers(added, 1, None)
        print(json.dumps({"port": sock.getsockname()[1], "crypto": forwarder.stats().crypto}), flush=True)
        while sys.stdin.readline().strip() == "ask":
            forwarder.take_events()
            usage, stats = resource.getrusage(resource.RUSAGE_SELF), forwarder.stats()
            answer = {
                "user_s": usage.ru_utime,
                "system_s": usage.ru_stime,
                "sent": stats.datagrams_sent,
                "received": stats.datagrams_received,
                "messages": stats.send_messages,
                "batches": stats.receive_batches,
                "kernel_dropped": stats.kernel_dropped,
                "python_calls": stats.python_calls,
                "waited_s": waited_s(),
            }
            print(json.dumps(answer), flush=True)
        forwarder.close()


# --- load and sink


@dataclass
class Client:
    """One peer's socket."""

    number: int
    socket: socket.socket
    srtp: Session
    sequence: int = 0
    received: int = 0
    bad: int = 0


class Load:
    """Publishers, subscribers, and the loop that sends and receives."""

    def __init__(self, kind: str, fan_out: int) -> None:
        self.fan_out, self.bare, self.kind = fan_out, kind == "floor", kind
        self.share = 0.5 if kind == "vp9-two-of-three-layers" else 1.0
        """Of the packets is sent on."""
        count = PUBLISHERS * (1 + fan_out)
        self.clients = [self._client(number) for number in range(count)]
        addresses = [client.socket.getsockname() for client in self.clients]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.scenarios.floor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        began = self.ask(json.dumps({"kind": kind, "fan_out": fan_out, "addresses": addresses}))
        self.crypto = str(began["crypto"])
        target = pack_address(("127.0.0.1", int(began["port"])), socket.AF_INET)
        self.destination = Destination(0, target)
        self.receivers = {
            client.socket.fileno(): (Receiver(client.socket, 0), client) for client in self.clients
        }
        self.poller = select.epoll()
        for client in self.clients:
            self.poller.register(client.socket.fileno(), select.EPOLLIN)
        self.target = ("127.0.0.1", int(began["port"]))

    @staticmethod
    def _client(number: int) -> Client:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 << 20)
        publisher = number < PUBLISHERS
        return Client(number, sock, session(number, 0 if publisher else 1, outbound=publisher))

    def ask(self, line: str) -> dict[str, Any]:
        """Say a line to the server and read its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def packets(self, client: Client, count: int) -> list[bytes]:
        """Encrypt a publisher's next packets."""
        made = []
        for _ in range(count):
            i = client.sequence
            client.sequence += 1
            first = 0x80 if self.bare else 0x90
            payload_type = RED_TYPE if self.kind.startswith("red") else 96
            head = struct.pack(
                "!BBHII", first, payload_type, i & 0xFFFF, i // BURST * 3000, client.number + 1
            )
            body = b"\x10v\x22\0\0\1\x31" + struct.pack("!H", i & 0xFFFF) + b"\0\0\0"
            payload = self.payload(i)
            if self.bare:  # as long as a protected packet
                made.append(head + payload + payload[:32])
                continue
            made.append(client.srtp.protect(head + b"\xbe\xde\0\3" + body + payload))
        return made

    def payload(self, i: int) -> bytes:
        """Make the payload of packet ``i``."""
        if self.kind in SOUND:
            frame = struct.pack("!I", i) * (FRAME_BYTES // 4)
            if self.kind == "opus":
                return frame
            return struct.pack("!IB", 1 << 31 | 96 << 24 | 960 << 10 | FRAME_BYTES, 96) + frame + frame
        body = struct.pack("!I", i) * (PAYLOAD_BYTES // 4)
        if not self.kind.startswith("vp9"):
            return body
        # Picture id, layer; P on all but the first picture; begin and end of a layer's frame (RFC 9628).
        at, spatial = i % BURST, LAYERS[i % BURST]
        begins, ends = at < 3, at != 2
        flags = 0xB0 | (0x40 if i >= BURST else 0) | begins << 3 | ends << 2
        head = struct.pack("!BHB", flags, 0x8000 | i // BURST & 0x7FFF, 0x10 | spatial << 1 | (spatial > 0))
        return head + (b"\x02" if i >= BURST else b"") + body

    def receive(self, timeout_s: float) -> None:
        """Take what is there; decrypt one in ``SAMPLE``."""
        for fd, _ in self.poller.poll(timeout_s):
            receiver, client = self.receivers[fd]
            for slot, length, _, _ in receiver.receive():
                at = slot * 2048
                if client.number < PUBLISHERS:
                    continue  # transport-cc feedback
                client.received += 1
                if client.received % SAMPLE == 1:
                    data = bytes(receiver.buffer[at : at + length])
                    data = data if self.bare else client.srtp.unprotect(data)
                    if data[8:12] != struct.pack("!I", client.number + 1) or data[-4:] != data[-8:-4]:
                        client.bad += 1

    def run(self, rate: int, seconds: float) -> dict[str, float]:
        """Send ``rate`` packets a second for a while; return what it cost the server."""
        publishers = self.clients[:PUBLISHERS]
        rounds = max(int(rate * seconds / PUBLISHERS / BURST), 1)
        prepared = [self.packets(client, rounds * BURST) for client in publishers]
        memory = [ffi.new("uint8_t[]", 2048) for _ in range(BURST)]
        messages, vectors = ffi.new("struct mmsghdr[]", BURST), ffi.new("struct iovec[]", BURST)
        for i in range(BURST):
            header = messages[i].msg_hdr
            header.msg_name, header.msg_namelen = self.destination.name, 16
            header.msg_iov, header.msg_iovlen = vectors + i, 1
            vectors[i].iov_base = memory[i]
        before_count = sum(client.received for client in self.clients)
        before = self.ask("ask")
        began = time.monotonic()
        gap = seconds / rounds / PUBLISHERS
        sent = 0
        for at in range(rounds):
            for which, client in enumerate(publishers):
                due = began + (at * PUBLISHERS + which) * gap
                while (left := due - time.monotonic()) > 0:
                    self.receive(min(left, 0.001))
                for i in range(BURST):
                    packet = prepared[which][at * BURST + i]
                    ffi.memmove(memory[i], packet, len(packet))
                    vectors[i].iov_len = len(packet)
                done = libc.sendmmsg(client.socket.fileno(), messages, BURST, 0x40)
                sent += max(done, 0)
            self.receive(0)
        elapsed = time.monotonic() - began
        deadline = time.monotonic() + 2
        expected = round(sent * self.fan_out * self.share)
        while self._received() - before_count < expected and time.monotonic() < deadline:
            self.receive(0.05)
        after = self.ask("ask")
        arrived = self._received() - before_count
        out = after["sent"] - before["sent"]
        user, system = after["user_s"] - before["user_s"], after["system_s"] - before["system_s"]
        return {
            "us_per_packet_sent": 1e6 * (user + system) / out,
            "us_per_packet_in": 1e6 * (user + system) / max(after["received"] - before["received"], 1),
            "user_us": 1e6 * user / out,
            "system_us": 1e6 * system / out,
            "core_share": (user + system) / elapsed,
            "packets_per_second_sent": out / elapsed,
            "received_per_batch": (after["received"] - before["received"])
            / max(after["batches"] - before["batches"], 1),
            "packets_per_message": out / (after["messages"] - before["messages"]),
            "waited_share": (after["waited_s"] - before["waited_s"]) / elapsed,
            "lost": expected - arrived,
            "kernel_dropped": after["kernel_dropped"] - before["kernel_dropped"],
            "bad": sum(client.bad for client in self.clients),
            "python_calls": after["python_calls"] - before["python_calls"],
        }

    def _received(self) -> int:
        return sum(client.received for client in self.clients)

    def close(self) -> None:
        """End the server and close all sockets."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.poller.close()
        for client in self.clients:
            client.socket.close()


def measure(kind: str, fan_out: int, seconds: float, runs: int) -> dict[str, Any]:
    """Measure one kind of forwarder at one fan-out; medians and spread of ``runs``."""
    load = Load(kind, fan_out)
    try:
        rate = RATES[kind][fan_out]
        load.run(rate, 0.3)  # warm: caches filled, routes begun
        results = [load.run(rate, seconds) for _ in range(runs)]
    finally:
        load.close()
    costs = [result["us_per_packet_sent"] for result in results]
    middle = sorted(results, key=lambda result: result["us_per_packet_sent"])[len(results) // 2]
    return {
        "kind": kind,
        "crypto": load.crypto,
        "fan_out": fan_out,
        "packets_per_second_in": rate,
        "us_per_packet_sent": round(statistics.median(costs), 2),
        "spread_us": [round(min(costs), 2), round(max(costs), 2)],
        "lost": sum(result["lost"] for result in results),
        "bad": sum(result["bad"] for result in results),
        **{name: round(value, 2) for name, value in middle.items() if name not in ("lost", "bad")},
    }


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    seconds: float = 2.0
    runs: int = 3
    kinds: tuple[str, ...] = ("floor", "native", "native-libsrtp", "python")
    fan_outs: tuple[int, ...] = (1, 3, 10)
    features: tuple[str, ...] = FEATURES


def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Measure all kinds at every fan-out; ``times_floor`` says how they compare with the floor."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    rows = []
    try:
        for fan_out in plan.fan_outs:
            floor = None
            for kind in plan.kinds:
                progress(f"{kind}, 1 to {fan_out}")
                row = measure(kind, fan_out, plan.seconds, plan.runs)
                if kind == "floor":
                    floor = row["us_per_packet_sent"]
                elif floor:
                    row["times_floor"] = round(row["us_per_packet_sent"] / floor, 2)
                rows.append(row)
        for kind in plan.features:
            progress(f"{kind}, 1 to {FEATURES_FAN_OUT}")
            rows.append(measure(kind, FEATURES_FAN_OUT, plan.seconds, plan.runs))
    finally:
        os.sched_setaffinity(0, set(cores))
    return {
        "scenario": "floor",
        "profile": PROFILE.name,
        "payload_bytes": PAYLOAD_BYTES,
        "burst": BURST,
        "publishers": PUBLISHERS,
        "runs": plan.runs,
        "seconds": plan.seconds,
        "rows": rows,
    }


if __name__ == "__main__":
    serve()
