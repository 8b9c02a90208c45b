"""The doctor sees what is wrong and says what to do."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path

import pytest

from mediaserver import doctor, tls
from mediaserver.config import load
from mediaserver.doctor import Finding
from tests.recorder import pki
from tests.recorder.small_recording import make_provider


def examine(tmp_path: Path, **environ: str) -> dict[str, Finding]:
    settings = load(
        None,
        {
            "SHUANGLU__DATA_DIR": str(tmp_path / "data"),
            "SHUANGLU__HTTP__PORT": "0",
            "SHUANGLU__MEDIA__PORT": "0",
            **{f"SHUANGLU__{key}": value for key, value in environ.items()},
        },
    )
    return {finding.name: finding for finding in doctor.examine(settings)}


def test_everything_the_issue_names_is_looked_at(tmp_path: Path) -> None:
    found = examine(tmp_path, HTTP__PORT="18443", MEDIA__PORT="17882", MEDIA__WORKERS="2")
    assert {
        "TCP port 18443",
        "UDP port 17882",
        "UDP port 17883",
        "Receive buffer",
        "Priority",
        "Clock",
        "Disk",
        "libgcrypt",
        "libcrypto",
        "Fonts",
        "Advertised addresses",
        "Certificate",
        "Secrets",
        "Keys",
    } <= set(found)
    for finding in found.values():
        assert finding.level == "ok" or finding.advice, finding


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        found = examine(tmp_path, MEDIA__PORT=str(port), MEDIA__BIND="[127.0.0.1]", MEDIA__WORKERS="1")
    finding = found[f"UDP port {port}"]
    assert finding.level == "failure"
    assert "media.port" in finding.advice


def test_a_receive_buffer_the_kernel_does_not_give(tmp_path: Path) -> None:
    finding = examine(tmp_path, MEDIA__RECEIVE_BUFFER_BYTES=str(1 << 30))["Receive buffer"]
    assert finding.level == "warning"
    assert f"net.core.rmem_max={1 << 30}" in finding.advice


def test_a_full_disk(tmp_path: Path) -> None:
    assert examine(tmp_path, RECORDING__MIN_FREE_BYTES=str(1 << 60))["Disk"].level == "failure"


def test_loopback_only_is_a_warning(tmp_path: Path) -> None:
    assert examine(tmp_path, MEDIA__BIND="[127.0.0.1]")["Advertised addresses"].level == "warning"
    assert examine(tmp_path, MEDIA__ADVERTISED="[1.2.3.4]")["Advertised addresses"].level == "ok"


@pytest.mark.parametrize(("left", "level"), [(400, "ok"), (20, "warning"), (-1, "failure")])
def test_the_life_of_the_keys_certificates(tmp_path: Path, left: int, level: str) -> None:
    keys = tmp_path / "data" / "secrets" / "crypto"
    make_provider(keys)
    pki.certify(keys, pki.make_chain(), until=tls.utc_now().replace(microsecond=0) + timedelta(days=left))
    found = examine(tmp_path)
    assert [found[f"{half} certificate"].level for half in ("Signing", "Encryption")] == [level] * 2
    assert level == "ok" or found["Signing certificate"].advice
    (keys / "signing.cert.pem").write_bytes((keys / "encryption.cert.pem").read_bytes())
    assert examine(tmp_path)["Signing certificate"].level == "failure"


def test_secrets_open_to_others(tmp_path: Path) -> None:
    secrets = tmp_path / "data/secrets"
    secrets.mkdir(parents=True, mode=0o700)
    (secrets / "session.key").touch(0o600)
    assert examine(tmp_path)["Secrets"].level == "ok"
    (secrets / "session.key").chmod(0o644)
    finding = examine(tmp_path)["Secrets"]
    assert finding.level == "failure"
    assert "session.key" in finding.text


@pytest.mark.parametrize(("days_gone", "level"), [(0, "ok"), (390, "warning"), (400, "failure")])
def test_the_life_of_a_certificate(tmp_path: Path, days_gone: int, level: str) -> None:
    made_at = tls.utc_now() - timedelta(days=days_gone)
    settings = load(None, {"SHUANGLU__DATA_DIR": str(tmp_path / "other")})
    made = tls.certificate(settings, ("192.0.2.1",), made_at)
    found = examine(tmp_path, TLS__CERT=str(made.cert), TLS__KEY=str(made.key))
    assert found["Certificate"].level == level
