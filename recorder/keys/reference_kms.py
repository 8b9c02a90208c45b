"""A reference KMS: the contract of docs/kms.md as a small server, for tests and to write one's own after.

    python -m recorder.keys.reference_kms DIRECTORY [--port 0]

It is no product: its SM2 keys lie in files of DIRECTORY (0700), and it listens on loopback only. The first
start makes keys and three bearer tokens: ``server.token`` may do everything, ``sealing.token`` all but
unwrap, ``opening.token`` unwrap alone. Each call leaves a line in ``audit.jsonl``: never a key, never a
token. With ``--cert``, ``--key`` it speaks TLS; with ``--client-ca`` a client certificate does for a token.
``faults.json`` in DIRECTORY, read at each call, makes it fail on purpose:
``{"down": true, "delay_s": 2.5, "wrong_signature": true, "wrong_wrap": true, "garbage": true}``.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hmac
import ipaddress
import json
import secrets
import signal
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from recorder.atomic import write_private
from recorder.gm.sm2 import PrivateKey, Sm2Error
from recorder.gm.x509 import Certificate
from recorder.keys.file import FileProvider, read_private

VERSION = "1"
MAX_BODY_BYTES = 16 << 10
MAX_RANDOM_BYTES = 1024
MEMBERS = {
    "random": {"bytes"},
    "data-keys": {"recording", "bytes"},
    "unwrap": {"recording", "key_id", "recipient", "ciphertext", "purpose", "actor"},
    "sign": {"digest"},
}
TOKENS = {
    "server": {"info", *MEMBERS},
    "sealing": {"info", *MEMBERS} - {"unwrap"},
    "opening": {"info", "unwrap"},
}


class Refusal(Exception):
    """An error answer: status, stable code, detail for people."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail


class ReferenceKms:
    """Keys, tokens and audit of one directory."""

    def __init__(self, directory: Path) -> None:
        """Open the directory, making what a first start lacks. Raise KeyProblem."""
        self._directory = directory
        keys = directory / "keys"
        if not keys.exists():
            FileProvider.create(keys)
        self._certificates = FileProvider.open(keys).info()
        self._signing = PrivateKey.from_pem(read_private(keys / "signing.key.pem"))
        self._encryption = PrivateKey.from_pem(read_private(keys / "encryption.key.pem"))
        self._recipient = Certificate.from_pem(self._certificates.encryption_certificate_pem).fingerprint
        for name in TOKENS:
            if not (directory / f"{name}.token").exists():
                write_private(directory / f"{name}.token", secrets.token_urlsafe(32).encode())
        self._tokens = {name: read_private(directory / f"{name}.token").strip() for name in TOKENS}
        self._audit = threading.Lock()

    def who(self, authorization: str, *, has_certificate: bool) -> str:
        """Return whose token it is (a client certificate alone counts as the server's). Raise Refusal."""
        given = authorization.removeprefix("Bearer ").encode()
        found = ""
        for name, token in self._tokens.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(given, token):
                found = name
        if not found and not authorization and has_certificate:
            found = "server"
        if not found:
            raise Refusal(401, "unauthorized", "no token of this KMS")
        return found

    def faults(self) -> Mapping[str, Any]:
        """Return what is to go wrong now."""
        try:
            value = json.loads((self._directory / "faults.json").read_bytes())
        except FileNotFoundError:
            return {}
        return value if isinstance(value, dict) else {}

    def answer(self, who: str, operation: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Do one operation. Raise Refusal."""
        if operation not in TOKENS[who]:
            raise Refusal(403, "forbidden", f"the {who} token may not {operation}")
        if operation == "info":
            return {
                "name": "reference",
                "version": VERSION,
                "certificate_no": "none",
                "signing_certificate": self._certificates.signing_certificate_pem,
                "encryption_certificate": self._certificates.encryption_certificate_pem,
            }
        if set(body) != MEMBERS[operation]:
            raise Refusal(400, "bad_request", f"the body must have {', '.join(sorted(MEMBERS[operation]))}")
        if operation == "random":
            size = body["bytes"]
            if not isinstance(size, int) or not 1 <= size <= MAX_RANDOM_BYTES:
                raise Refusal(400, "bad_request", f"bytes must be 1 to {MAX_RANDOM_BYTES}")
            return {"random": _encoded(secrets.token_bytes(size))}
        if operation == "data-keys":
            _text(body, "recording")
            if body["bytes"] not in (16, 32):
                raise Refusal(400, "bad_request", "bytes must be 16 or 32")
            secret = secrets.token_bytes(body["bytes"])
            wrapped = secrets.token_bytes(len(secret)) if self.faults().get("wrong_wrap") else secret
            return {
                "key": _encoded(secret),
                "recipient": self._recipient,
                "ciphertext": _encoded(self._encryption.public.encrypt(wrapped)),
            }
        if operation == "unwrap":
            return self._unwrap(body)
        digest = _decoded(body, "digest")
        if len(digest) != 32:
            raise Refusal(400, "bad_request", "digest must be 32 bytes: SM3 of Z and the message")
        if self.faults().get("wrong_signature"):
            digest = secrets.token_bytes(32)
        return {"signature": _encoded(self._signing.sign_digest(digest))}

    def _unwrap(self, body: Mapping[str, Any]) -> dict[str, Any]:
        for name in ("recording", "key_id", "purpose", "actor"):
            _text(body, name)
        if body["recipient"] != self._recipient:
            raise Refusal(404, "unknown_recipient", "no key of this KMS has that certificate")
        try:
            return {"key": _encoded(self._encryption.decrypt(_decoded(body, "ciphertext")))}
        except Sm2Error as error:
            raise Refusal(400, "not_openable", str(error)) from None

    def note(self, who: str, operation: str, outcome: str, body: Mapping[str, Any]) -> None:
        """Append a line to the audit: who did what for which recording and why; no key, no cipher text."""
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": who,
            "operation": operation,
            "outcome": outcome,
            **{name: body[name] for name in ("recording", "purpose", "actor") if name in body},
        }
        with self._audit, (self._directory / "audit.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(body: Mapping[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(_text(body, name), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "bad_request", f"{name} must be base64") from None


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body[name]
    if not isinstance(value, str) or not 1 <= len(value) <= 4096:
        raise Refusal(400, "bad_request", f"{name} must be text of 1 to 4096 characters")
    return value


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10

    def do_GET(self) -> None:
        """Answer ``/v1/info``."""
        self._serve("GET")

    def do_POST(self) -> None:
        """Answer the other operations."""
        self._serve("POST")

    def _serve(self, method: str) -> None:
        kms = self.server.kms
        who, operation, body = "nobody", self.path.removeprefix("/v1/"), {}
        try:
            faults = kms.faults()
            time.sleep(float(faults.get("delay_s", 0)))
            if faults.get("down"):
                raise Refusal(503, "unavailable", "down on purpose")
            has_certificate = isinstance(self.connection, ssl.SSLSocket) and bool(
                self.connection.getpeercert()
            )
            who = kms.who(self.headers.get("Authorization", ""), has_certificate=has_certificate)
            if not self.path.startswith("/v1/") or (operation, method) not in _ROUTES:
                raise Refusal(404, "not_found", "no such operation")
            body = self._body() if method == "POST" else {}
            result = kms.answer(who, operation, body)
        except Refusal as refusal:
            kms.note(who, operation, refusal.code, body)
            self._send(refusal.status, {"code": refusal.code, "detail": refusal.detail})
            return
        kms.note(who, operation, "done", body)
        self._send(200, result, garbage=bool(faults.get("garbage")))

    def _body(self) -> dict[str, Any]:
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > MAX_BODY_BYTES:
            raise Refusal(413, "body_too_large", f"a body has at most {MAX_BODY_BYTES} bytes")
        try:
            value = json.loads(self.rfile.read(int(size)))
        except ValueError:
            raise Refusal(400, "bad_request", "the body is no JSON") from None
        if not isinstance(value, dict):
            raise Refusal(400, "bad_request", "the body is no JSON object")
        return value

    def _send(self, status: int, value: Mapping[str, Any], *, garbage: bool = False) -> None:
        raw = b"{" * 100_000 if garbage else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on standard error: the audit says it."""


_ROUTES = {("info", "GET"), *((name, "POST") for name in MEMBERS)}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], kms: ReferenceKms) -> None:
        super().__init__(address, _Handler)
        self.kms = kms


def main() -> int:
    """Serve until SIGTERM; prints ``ready URL`` once it answers."""
    parser = argparse.ArgumentParser(prog="python -m recorder.keys.reference_kms", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--client-ca", type=Path)
    given = parser.parse_args()
    if not ipaddress.ip_address(given.host).is_loopback:
        parser.error("this is a reference, not a product: it listens on loopback only")
    given.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = _Server((given.host, given.port), ReferenceKms(given.directory))
    scheme = "http"
    if given.cert is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(given.cert, given.key)
        if given.client_ca is not None:
            context.load_verify_locations(given.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"ready {scheme}://{given.host}:{server.server_port}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
