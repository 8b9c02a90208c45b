"""UDP packets with their time and number, sent at an even pace from one network to another."""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from tests.lab.link import enter
from tests.lab.network import SERVER, SERVER_6, Laboratory, Network

HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}
"""Bytes of IP and UDP before the payload."""


def socket_in(namespace: str, family: socket.AddressFamily, address: str) -> socket.socket:
    """Return a UDP socket that lives in another network namespace. Raises OSError."""
    made: list[socket.socket] = []

    def make() -> None:
        enter(namespace)  # of this thread alone
        one = socket.socket(family, socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        one.bind((address, 0))
        made.append(one)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise OSError(f"no socket in {namespace} on {address}")
    return made[0]


@dataclass
class Seen:
    """What arrived: number and one-way delay of each packet, in the order of arrival."""

    numbers: list[int] = field(default_factory=list)
    delays_ns: list[int] = field(default_factory=list)
    arrivals_ns: list[int] = field(default_factory=list)
    sent: int = 0

    @property
    def loss(self) -> float:
        """Return the share that did not arrive."""
        return 1 - len(self.numbers) / self.sent

    @property
    def overtaken(self) -> int:
        """Count arrivals after one that was sent later."""
        latest = np.maximum.accumulate(np.array(self.numbers))
        return int((np.array(self.numbers) < latest).sum())

    def delay_ms(self, percent: float) -> float:
        """Return a percentile of the one-way delay."""
        return float(np.percentile(np.array(self.delays_ns), percent)) / 1e6


def send(
    lab: Laboratory,
    client: Network,
    *,
    count: int,
    every_s: float,
    payload: int = 500,
    up: bool = True,
    family: socket.AddressFamily = socket.AF_INET,
    wait_s: float = 1.0,
) -> Seen:
    """Send ``count`` packets of ``payload`` bytes; returns what arrived until ``wait_s`` after the last."""
    server = socket_in(lab.server, family, SERVER if family == socket.AF_INET else SERVER_6)
    far = socket_in(
        client.namespace, family, client.address if family == socket.AF_INET else client.address_6
    )
    source, target = (far, server) if up else (server, far)
    seen, ended = Seen(sent=count), threading.Event()

    def receive() -> None:
        target.settimeout(0.1)
        while not ended.is_set():
            try:
                data = target.recv(2048)
            except TimeoutError:
                continue
            now_ns = time.monotonic_ns()
            number, sent_ns = struct.unpack_from("!Iq", data)
            seen.numbers.append(number)
            seen.delays_ns.append(now_ns - sent_ns)
            seen.arrivals_ns.append(now_ns)

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        where = target.getsockname()
        began_s = time.monotonic()
        for number in range(count):
            ahead_s = began_s + number * every_s - time.monotonic()
            if ahead_s > 0.0005:
                time.sleep(ahead_s)
            head = struct.pack("!Iq", number, time.monotonic_ns())
            source.sendto(head.ljust(payload, b"\0"), where)
        time.sleep(wait_s)
    finally:
        ended.set()
        thread.join()
        server.close()
        far.close()
    return seen
