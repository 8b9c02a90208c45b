"""The certificate: covers what is advertised, is kept, is renewed, and a real client can check it."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mediaserver import tls
from mediaserver.config import load

NOW = datetime(2026, 7, 1, tzinfo=UTC)
NAMES = ("192.0.2.7", "2001:db8::7", "127.0.0.1", "localhost")


def made(tmp_path: Path, names: tuple[str, ...] = NAMES, now: datetime = NOW) -> tls.Certificate:
    return tls.certificate(load(None, {"SHUANGLU__DATA_DIR": str(tmp_path)}), names, now)


def test_a_self_signed_one_covers_all_names_and_is_kept(tmp_path: Path) -> None:
    first = made(tmp_path)
    assert set(first.names) == set(NAMES)
    assert first.self_signed
    assert len(first.fingerprint) == 32 * 3 - 1
    for path in (first.cert, first.key):
        assert path.stat().st_mode & 0o777 == 0o600
    assert made(tmp_path) == first
    assert made(tmp_path, NAMES[:2]).fingerprint == first.fingerprint


def test_a_new_one_comes_with_a_new_address_and_before_the_end(tmp_path: Path) -> None:
    first = made(tmp_path)
    second = made(tmp_path, (*NAMES, "198.51.100.1"))
    assert second.fingerprint != first.fingerprint
    late = NOW + timedelta(days=tls.VALID_DAYS - tls.RENEW_DAYS + 1)
    assert made(tmp_path, NAMES, late).expires > second.expires


def test_a_client_that_trusts_it_connects(tmp_path: Path) -> None:
    certificate = made(tmp_path, now=tls.utc_now())
    server_context = tls.context(certificate.cert, certificate.key)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with server_context.wrap_socket(ours, server_side=True) as connection:
            connection.sendall(b"hello")

    server = threading.Thread(target=serve)
    server.start()
    client_context = ssl.create_default_context(cafile=str(certificate.cert))
    with client_context.wrap_socket(theirs, server_hostname="192.0.2.7") as connection:
        assert connection.recv(16) == b"hello"
        assert connection.version() in ("TLSv1.2", "TLSv1.3")
    server.join()


def test_a_configured_one_must_be_readable_and_fit_its_key(tmp_path: Path) -> None:
    first, other = made(tmp_path / "a"), made(tmp_path / "b")

    def configured(cert: Path, key: Path) -> tls.Certificate:
        environ = {"SHUANGLU__TLS__CERT": str(cert), "SHUANGLU__TLS__KEY": str(key)}
        return tls.certificate(load(None, environ), NAMES, NOW)

    assert not configured(first.cert, first.key).self_signed
    for cert, key in ((first.cert, other.key), (tmp_path / "none.pem", first.key), (first.key, first.key)):
        with pytest.raises(tls.TlsError, match=str(cert)):
            configured(cert, key)


def test_loopback_and_the_host_name_are_always_covered() -> None:
    names = tls.names_to_cover(("192.0.2.7",))
    assert names[0] == "192.0.2.7"
    assert {"127.0.0.1", "localhost"} <= set(names)
