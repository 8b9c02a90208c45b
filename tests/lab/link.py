"""The line as a process: two TUN devices in two namespaces, and between them two `Direction`.

``python -m tests.lab.link CONTROL_FD NEAR_NAMESPACE NEAR_DEVICE FAR_NAMESPACE FAR_DEVICE SEED`` makes the
devices and ends when the other end of the control socket is closed, so it cannot outlive its test. A message
on that socket is one JSON object, and one answer follows:

    {"set": {"up": {"loss": 0.05}, "down": {…}}}    settings changed, the others stay; a wrong one is an error
    {"statistics": true}                            both directions since the last reset
    {"reset": true}                                 counts from zero; what is inside stays

*Up* is from the far side (the client) to the near side (the server).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any, Final

from tests.lab.impairment import Direction, SettingsError, Statistics

TUNSETIFF: Final = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
CLONE_NEWNET: Final = 0x40000000
TOP: Final = 65536
BATCH: Final = 64
"""Packets read from one side before the other gets its turn."""
MESSAGE_BYTES: Final = 65536


def enter(namespace: str) -> None:
    """Move this process into a network namespace of ip(8). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns comes with Python 3.12
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"setns to {namespace}: {os.strerror(code)}")
    finally:
        os.close(descriptor)


def open_tun(name: str) -> int:
    """Make a TUN device in the present namespace; it lives as long as the descriptor. Raises OSError."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class Link:
    """Both directions and their devices."""

    def __init__(self, control: socket.socket, near: int, far: int, seed: int) -> None:
        now_ns = time.monotonic_ns()
        self._control, self._near, self._far = control, near, far
        self.directions = {
            "up": Direction(2 * seed, now_ns=now_ns),
            "down": Direction(2 * seed + 1, now_ns=now_ns),
        }
        self._refused = 0
        """Packets the kernel did not take: the device is down, or has no address any more."""
        self._work = [(far, self.directions["up"]), (near, self.directions["down"])]

    def run(self) -> None:
        """Carry packets until the control socket is closed."""
        up, down = self.directions["up"], self.directions["down"]
        watched = [self._control.fileno(), self._near, self._far]
        while True:
            times = [at for at in (up.next_ns(), down.next_ns()) if at is not None]
            wait_s = max(0.0, (min(times) - time.monotonic_ns()) / 1e9) if times else None
            readable = select.select(watched, [], [], wait_s)[0]
            if watched[0] in readable and not self._obey():
                return
            for source, direction in self._work:
                if source in readable:
                    self._take(source, direction)
            now_ns = time.monotonic_ns()
            self._give(up, self._near, now_ns)
            self._give(down, self._far, now_ns)

    def _take(self, source: int, direction: Direction) -> None:
        for _ in range(BATCH):
            try:
                packet = os.read(source, TOP)
            except BlockingIOError:
                return
            direction.offer(packet, time.monotonic_ns())

    def _give(self, direction: Direction, target: int, now_ns: int) -> None:
        for packet in direction.due(now_ns):
            try:
                os.write(target, packet)
            except OSError:
                self._refused += 1

    def _obey(self) -> bool:
        """Answer one message; False when the other end is gone."""
        message = self._control.recv(MESSAGE_BYTES)
        if not message:
            return False
        try:
            answer = self._answer(json.loads(message))
        except (SettingsError, ValueError, KeyError, TypeError) as error:
            answer = {"error": str(error)}
        self._control.send(json.dumps(answer).encode())
        return True

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        now_ns = time.monotonic_ns()
        if "set" in asked:
            made = {
                name: self.directions[name].impairment.changed(changes)
                for name, changes in asked["set"].items()
            }
            for name, impairment in made.items():
                self.directions[name].change(impairment, now_ns)
        if "reset" in asked:
            for direction in self.directions.values():
                direction.statistics = Statistics()
            self._refused = 0
        return {
            "at_ns": now_ns,
            "cpu_s": time.process_time(),
            "refused": self._refused,
            **{
                name: {**direction.statistics.row(), "held": direction.held}
                for name, direction in self.directions.items()
            },
        }


def main(words: list[str]) -> None:
    """Make the devices, say ``ready`` on the control socket, and carry packets."""
    control = socket.socket(fileno=int(words[0]))
    # Before all else on a busy machine: what this process is late by would count as the line's delay.
    os.setpriority(os.PRIO_PROCESS, 0, -10)
    devices = []
    for namespace, name in ((words[1], words[2]), (words[3], words[4])):
        enter(namespace)
        devices.append(open_tun(name))
    control.send(json.dumps({"ready": True}).encode())
    near, far = devices
    Link(control, near, far, int(words[5])).run()


if __name__ == "__main__":
    main(sys.argv[1:])
