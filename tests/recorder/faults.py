"""A proxy in front of the S3 server that does what networks and stores do when they fail.

It stands where a load balancer would: requests are read whole, so that a fault hits a named request and not
some packet. The bytes that pass are the client's own (host and signature included).
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.recorder.s3 import S3Server

DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>object is locked</Message></Error>"


@dataclass(frozen=True)
class Request:
    """A request on its way."""

    method: str
    path: str
    """With the query."""
    size: int
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in small letters."""


Hits = Callable[[Request], bool]


@dataclass
class Faults:
    """Which requests a fault hits, and how often one did. Change it at any time."""

    port: int = 0
    hits: Hits = lambda _: True
    kind: str = ""
    """refuse, slow, cut, corrupt_upload, corrupt_download, deny, lose_answer; empty: everything passes."""
    delay_s: float = 0.0
    requests: list[Request] = field(default_factory=list)
    struck: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, kind: str, hits: Hits = lambda _: True, *, delay_s: float = 0.0) -> None:
        """Strike requests from now on."""
        self.kind, self.hits, self.delay_s, self.struck = kind, hits, delay_s, 0

    def clear(self) -> None:
        """Let everything pass."""
        self.kind = ""


@contextmanager
def faulty(server: S3Server) -> Iterator[Faults]:
    """Run the proxy in threads."""
    faults = Faults()
    handler = type("Handler", (_Handler,), {"faults": faults, "behind": server.port})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        proxy.daemon_threads = True
        faults.port = proxy.server_address[1]
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield faults
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    behind: int

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(
            self.command, self.path, len(body), {name.lower(): value for name, value in self.headers.items()}
        )
        self.faults.requests.append(request)
        fault = self.faults.kind if self.faults.kind and self.faults.hits(request) else ""
        self.faults.struck += bool(fault)
        if fault == "slow":
            time.sleep(self.faults.delay_s)
        if fault == "refuse":
            self._hang_up()
            return
        if fault == "deny":
            self._answer(403, {"Content-Type": "application/xml"}, DENIED)
            return
        if fault == "corrupt_upload" and body:
            body = _flipped(body)
        self._pass_on(body, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _pass_on(self, body: bytes, fault: str) -> None:
        behind = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        try:
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                behind.putheader(name, value)
            behind.endheaders()
            if fault == "cut":
                behind.send(body[: len(body) // 2])
                behind.close()
                self._hang_up()
                return
            behind.send(body)
            answer = behind.getresponse()
            data = answer.read()
        except OSError:
            self._hang_up()
            return
        finally:
            behind.close()
        if fault == "lose_answer":
            self._hang_up()
            return
        if fault == "corrupt_download" and self.command == "GET" and data:
            data = _flipped(data)
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self._answer(answer.status, {**headers, "Content-Length": length or "0"}, data)

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle_one_request(self) -> None:
        """A client that hangs up is no error here."""
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


_HOP = ("content-length", "connection", "transfer-encoding")


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
