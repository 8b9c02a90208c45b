"""Namespaces and lines: a server's network and any number of clients', each behind a line of its own.

    this namespace ── veth (management) ── server's ── line 1 ── client 1's
                                                    └─ line 2 ── client 2's

The server has one address for all clients, IPv4 and IPv6. All is removed at the end, after failures too; what
a killed run left is removed by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.e2e.browser import CHROMIUM
from tests.e2e.stage import ROOT, Stage, kill

SERVER, SERVER_6 = "10.214.0.1", "fd00:214::1"
"""The server's addresses as its clients know them."""
BESIDE = "10.214.0.2"
"""Of another server, put beside ours."""
PREFIX = "lab"
START_S = 90.0
"""Until the server is ready, on a machine that starts two browsers at the same time or does other things."""


class LabError(RuntimeError):
    """The laboratory cannot be built here; the message says what is missing."""


def ip(*words: str) -> str:
    """Run ip(8); returns what it prints. Raises LabError with its words."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise LabError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def missing() -> str | None:
    """Say what this machine lacks for the laboratory, None if it has everything."""
    if os.geteuid() != 0:
        return "root"
    if shutil.which("ip") is None:
        return "iproute2"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun"
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
    except OSError as error:
        return f"a TUN device: {error}"
    os.close(descriptor)
    return None


@dataclass
class Line:
    """The process that joins two namespaces, from the outside."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send one message; returns the answer. Raises LabError."""
        self.control.send(json.dumps(message).encode())
        answer: dict[str, Any] = json.loads(self.control.recv(65536) or b"{}")
        if "error" in answer or not answer:
            raise LabError(f"the line refused {message}: {answer.get('error', 'it has ended')}")
        return answer

    def set(
        self, up: dict[str, Any] | None = None, down: dict[str, Any] | None = None, **both: Any
    ) -> dict[str, Any]:
        """Change settings of `Impairment`, in one direction or ``both``; returns the statistics so far."""
        return self.ask({"set": {"up": {**both, **(up or {})}, "down": {**both, **(down or {})}}})

    def statistics(self) -> dict[str, Any]:
        """Return the counts of both directions since the last reset."""
        return self.ask({"statistics": True})

    def reset(self) -> None:
        """Count from zero."""
        self.ask({"reset": True})

    def close(self) -> None:
        """End the line; its devices go with it."""
        self.control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Network:
    """A client's network."""

    namespace: str
    number: int
    line: Line
    device: str = "line"
    _host: int = field(default=2, init=False)

    @property
    def address(self) -> str:
        """Return the client's IPv4 address now."""
        return f"10.214.{self.number}.{self._host}"

    @property
    def address_6(self) -> str:
        """Return its IPv6 address now."""
        return f"fd00:214:{self.number}::{self._host}"

    def change_address(self) -> str:
        """Give the client another address, as a phone that changes networks; returns the IPv4 one."""
        old, old_6 = self.address, self.address_6
        self._host += 1
        # The old one goes first: the kernel would remove the second of a subnet together with the first.
        ip("-n", self.namespace, "addr", "del", f"{old}/24", "dev", self.device)
        ip("-n", self.namespace, "-6", "addr", "del", f"{old_6}/64", "dev", self.device)
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", self.device)
        ip("-n", self.namespace, "-6", "addr", "add", f"{self.address_6}/64", "dev", self.device, "nodad")
        # The routes may have gone with the address.
        ip("-n", self.namespace, "route", "replace", "default", "dev", self.device)
        ip("-n", self.namespace, "-6", "route", "replace", "default", "dev", self.device)
        return self.address

    def command(self, *words: str) -> list[str]:
        """Return a command that runs in this network."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def chromium(self, directory: Path) -> Path:
        """Write a program that is Chromium in this network; returns its path."""
        program = directory / f"chromium-{self.namespace}"
        program.write_text(f'#!/bin/sh\nexec nice -n -5 ip netns exec {self.namespace} {CHROMIUM} "$@"\n')
        program.chmod(0o755)
        return program


class Laboratory:
    """The networks of one scenario. Use as a context manager."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._mark = os.getpid()
        self._stack = ExitStack()
        self.server = f"{PREFIX}{self._mark}-server"
        self.clients: dict[str, Network] = {}
        # 10.215.0.0/16 in /30s: laboratories of several test runs at a time do not meet.
        base = self._mark % 16384 * 4
        self._slot = f"{base >> 8}.{base & 255}"
        self.management = self._own(215, 2)
        """The server's address for the tests themselves: no line is between."""

    def __enter__(self) -> Laboratory:
        if lack := missing():
            raise LabError(f"the network laboratory needs {lack}")
        _sweep()
        with self._stack:
            self._namespace(self.server)
            self._manage(self.server, 215)
            ip("-n", self.server, "addr", "add", f"{SERVER}/32", "dev", "lo")
            ip("-n", self.server, "-6", "addr", "add", f"{SERVER_6}/128", "dev", "lo", "nodad")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, name: str) -> Network:
        """Make a client's network behind a new line. Raises LabError."""
        number = len(self.clients) + 1
        namespace, near = f"{PREFIX}{self._mark}-{name}", f"line{number}"
        self._namespace(namespace)
        line = self._line(near, namespace, number)
        ip("-n", self.server, "link", "set", near, "multicast", "off", "up")
        ip("-n", self.server, "route", "add", f"10.214.{number}.0/24", "dev", near, "src", SERVER)
        ip("-n", self.server, "-6", "route", "add", f"fd00:214:{number}::/64", "dev", near, "src", SERVER_6)
        made = Network(namespace, number, line)
        ip("-n", namespace, "link", "set", made.device, "multicast", "off", "up")
        ip("-n", namespace, "addr", "add", f"{made.address}/24", "dev", made.device)
        ip("-n", namespace, "-6", "addr", "add", f"{made.address_6}/64", "dev", made.device, "nodad")
        ip("-n", namespace, "route", "add", "default", "dev", made.device)
        ip("-n", namespace, "-6", "route", "add", "default", "dev", made.device)
        self.clients[name] = made
        return made

    def beside(self) -> tuple[str, str]:
        """Make a network beside the server's for another server; returns its namespace and its address for
        the tests. Clients reach it as ``BESIDE``, by the same lines. Raises LabError.

        It has one device: Janus sends by that which has its address, whatever the routes say.
        """
        namespace = f"{PREFIX}{self._mark}-beside"
        self._namespace(namespace)
        self._manage(namespace, 216)
        ip(
            "-n",
            self.server,
            "link",
            "add",
            "beside",
            "type",
            "veth",
            "peer",
            "name",
            "lines",
            "netns",
            namespace,
        )
        ip("-n", self.server, "link", "set", "beside", "up")
        ip("-n", self.server, "route", "add", f"{BESIDE}/32", "dev", "beside")
        ip("netns", "exec", self.server, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        ip("-n", namespace, "addr", "add", f"{BESIDE}/32", "dev", "lines")
        ip("-n", namespace, "link", "set", "lines", "up")
        ip("-n", namespace, "route", "add", "default", "via", SERVER, "dev", "lines", "onlink")
        return namespace, self._own(216, 2)

    def stage(self, data: Path, **settings: object) -> Stage:
        """Return the real server, not yet started, in the server's network."""
        own = {
            "http.host": "0.0.0.0",
            "tls.enabled": True,
            "media.bind": [SERVER],
            "media.advertised": [SERVER],
            **settings,
        }
        launcher = ("ip", "netns", "exec", self.server)
        return Stage(data, own, launcher=launcher, address=self.management, start_s=START_S)

    def _own(self, net: int, host: int) -> str:
        """Return an address of this laboratory's /30 in 10.``net``.0.0/16; ``host`` 1: ours, 2: theirs."""
        high, low = self._slot.split(".")
        return f"10.{net}.{high}.{int(low) + host}"

    def _manage(self, namespace: str, net: int) -> None:
        """Join a namespace to the tests' own network by a pair that has no line."""
        near, far = f"lab{net}n{self._mark}", f"lab{net}f{self._mark}"
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", namespace)
        self._stack.callback(_quietly, "link", "del", near)
        ip("addr", "add", f"{self._own(net, 1)}/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", namespace, "addr", "add", f"{self._own(net, 2)}/30", "dev", far)
        ip("-n", namespace, "link", "set", far, "up")

    def _namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._stack.callback(_quietly, "netns", "del", name)
        ip("-n", name, "link", "set", "lo", "up")
        # Nothing but the tests' own packets on the lines: no address of the kernel's, no asking for routers.
        quiet = "cd /proc/sys/net/ipv6/conf/default && echo 1 >addr_gen_mode && echo 0 >router_solicitations"
        ip("netns", "exec", name, "sh", "-c", quiet)

    def _line(self, near: str, namespace: str, number: int) -> Line:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(20)
        words = [str(theirs.fileno()), self.server, near, namespace, "line", str(self.seed + number)]
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.link", *words], cwd=ROOT, pass_fds=[theirs.fileno()]
            )
        line = Line(process, ours)
        self._stack.callback(line.close)
        if not ours.recv(1024):
            raise LabError("the line did not start: see its error above")
        return line


def _quietly(*words: str) -> None:
    with suppress(LabError):
        ip(*words)


def _sweep() -> None:
    """Remove namespaces of laboratories whose process is gone, and what still runs in them."""
    for line in ip("netns", "list").splitlines():
        name = line.split()[0]
        owner = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            for process in ip("netns", "pids", name).split():
                kill(int(process))
            _quietly("netns", "del", name)
