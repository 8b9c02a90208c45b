"""Looks at this machine with the server's eyes and says what to change (``mediaserver doctor``)."""

from __future__ import annotations

import fcntl
import importlib.util
import ipaddress
import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from mediaserver import addresses, tls
from mediaserver.keys import open_keys, server_keys
from mediaserver.settings import Settings
from recorder.certificates import ChainError, check_chain, read_chain
from recorder.clock import TRUSTED_ERROR_NS, read_discipline
from recorder.gm import selftest
from recorder.gm.sm2 import LibcryptoMissing, Sm2Error
from recorder.gm.x509 import Usage
from recorder.keys import KeyProblem, KeysUnavailable

MIN_OPEN_FILES = 4096
FORWARDER_NICE = -10
"""What the native forwarder's thread asks for."""
_SYS_NICE = 23
"""Number of CAP_SYS_NICE, capabilities(7)."""
BYTES_PER_HOUR = 1_200_000_000
"""What one recorded hour of two 720p cameras takes: journal about 1 GB, composite 0.2 GB."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    level: Literal["ok", "warning", "failure"]
    text: str
    advice: str = ""
    """What to do, a command where there is one; empty if all is well."""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; no finding of level failure means that the server can start and record."""
    findings: list[Finding] = []
    looks = (_python, _ports, _receive_buffer, _clock, _disk, _crypto, _fonts, _addresses, _certificate)
    for look in (*looks, _key_certificates):
        findings += look(settings)
    return [*findings, *_secrets(settings), *_keys(settings), *_limits()]


def _python(settings: Settings) -> Iterator[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("Python", "ok" if sys.version_info >= (3, 11) else "failure", version, "")


def server_runs(settings: Settings) -> bool:
    """Say whether a control process runs on this data directory."""
    try:
        lock = os.open(settings.run_dir / "control.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _ports(settings: Settings) -> Iterator[Finding]:
    running = server_runs(settings)
    wanted: list[tuple[str, int, socket.SocketKind]] = []
    if settings.http.port:
        wanted.append((settings.http.host, settings.http.port, socket.SOCK_STREAM))
    count = settings.media.workers or len(os.sched_getaffinity(0))
    if settings.media.port:
        wanted += [
            (address, settings.media.port + index, socket.SOCK_DGRAM)
            for index in range(count)
            for address in settings.media.bind
        ]
    if settings.media.tcp_port:
        wanted += [(address, settings.media.tcp_port, socket.SOCK_STREAM) for address in settings.media.bind]
    for host, port, kind in wanted:
        name = f"{'TCP' if kind is socket.SOCK_STREAM else 'UDP'} port {port}"
        error = _bind_error(host, port, kind)
        if error is None:
            yield Finding(name, "ok", f"free on {host}")
        elif running:
            yield Finding(name, "ok", "used, and a server runs on this data directory")
        else:
            key = "http.port" if kind is socket.SOCK_STREAM else "media.port"
            key = "media.tcp_port" if kind is socket.SOCK_STREAM and port == settings.media.tcp_port else key
            yield Finding(name, "failure", f"{host}: {error}", f"stop what uses it, or set {key} to another")


def _bind_error(host: str, port: int, kind: socket.SocketKind) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as probe:
        if kind is socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _receive_buffer(settings: Settings) -> Iterator[Finding]:
    wanted = settings.media.receive_buffer_bytes
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
        got = probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel doubles it, socket(7)
    if got >= wanted:
        yield Finding("Receive buffer", "ok", f"{got >> 10} KiB per UDP socket")
        return
    yield Finding(
        "Receive buffer",
        "warning",
        f"{got >> 10} KiB per UDP socket instead of {wanted >> 10} KiB: bursts lose packets",
        f"sysctl -w net.core.rmem_max={wanted} (as root; keep it in /etc/sysctl.d/60-shuanglu.conf)",
    )


def _clock(settings: Settings) -> Iterator[Finding]:
    state = read_discipline()
    error_ms = state.max_error_ns / 1e6
    if not state.synchronised:
        text = "UTC is not synchronised; recordings will say that their clock is degraded"
        yield Finding("Clock", "warning", text, "run an NTP client: apt-get install chrony")
    elif state.max_error_ns > TRUSTED_ERROR_NS:
        text = f"synchronised by {state.source}, but only to {error_ms:.0f} ms; 100 ms are needed for trust"
        yield Finding("Clock", "warning", text, "use a nearer time server in chrony.conf")
    else:
        yield Finding("Clock", "ok", f"synchronised by {state.source}, error at most {error_ms:.0f} ms")


def _disk(settings: Settings) -> Iterator[Finding]:
    directory = settings.data_dir.absolute()
    while not directory.exists():
        directory = directory.parent
    if not os.access(directory, os.W_OK | os.X_OK):
        yield Finding(
            "Disk", "failure", f"{directory} cannot be written to", f"chown {os.geteuid()} {directory}"
        )
        return
    free = shutil.disk_usage(directory).free
    text = f"{free / 1e9:.1f} GB free at {directory}, about {free / BYTES_PER_HOUR:.0f} hours of recording"
    if free < settings.recording.min_free_bytes:
        yield Finding(
            "Disk", "failure", f"{text}; below recording.min_free_bytes", "free space, or move data_dir"
        )
    elif free < 24 * BYTES_PER_HOUR:
        yield Finding("Disk", "warning", text, "plan for more; nothing records on a full disk")
    else:
        yield Finding("Disk", "ok", text)


def _crypto(settings: Settings) -> Iterator[Finding]:
    libcrypto = "apt-get install libssl3 (OpenSSL 3 with SM2 is needed for signatures)"
    try:
        selftest.run()
        found = selftest.describe()
    except LibcryptoMissing as error:
        yield Finding("libcrypto", "failure", str(error), libcrypto)
        return
    except selftest.SelfTestError as error:
        yield Finding("Self-test of SM2, SM3, SM4", "failure", str(error), "update the library it names")
        return
    yield Finding("libcrypto", "ok", f"SM2 by {found['sm2']}")
    yield Finding("Self-test of SM2, SM3, SM4", "ok", f"SM3 by {found['sm3']}, SM4 by {found['sm4-gcm']}")
    if "gcrypt" in found["sm4-gcm"]:
        yield Finding("libgcrypt", "ok", found["libgcrypt"])
    else:
        text = "not used: sealing takes five times the CPU"
        yield Finding("libgcrypt", "warning", text, "apt-get install libgcrypt20")


def _fonts(settings: Settings) -> Iterator[Finding]:
    spec = importlib.util.find_spec("compositor")
    places = list(spec.submodule_search_locations or []) if spec else []
    fonts = sorted(
        font.name for place in places for font in Path(place).glob("font/*.[ot]tf") if font.stat().st_size
    )
    if fonts:
        yield Finding("Fonts", "ok", f"{', '.join(fonts)} (shipped; the machine needs none)")
    else:
        yield Finding("Fonts", "failure", "the shipped font is missing", "install the package again")


def _addresses(settings: Settings) -> Iterator[Finding]:
    told = addresses.advertised(settings)
    text = f"clients are told {', '.join(told) or 'nothing'}; the page is {addresses.public_url(settings)}"
    parsed = [ipaddress.ip_address(address) for address in told]
    if not told:
        yield Finding("Advertised addresses", "failure", text, "set media.advertised or media.bind")
    elif all(address.is_loopback for address in parsed):
        yield Finding(
            "Advertised addresses", "warning", f"{text}; only this machine can join", "set media.advertised"
        )
    elif not any(address.is_global for address in parsed):
        yield Finding(
            "Advertised addresses",
            "ok",
            f"{text}; private networks only. Behind NAT, set media.advertised to the public address",
        )
    else:
        yield Finding("Advertised addresses", "ok", text)


def _certificate(settings: Settings) -> Iterator[Finding]:
    if not settings.tls.enabled:
        yield Finding("Certificate", "ok", "TLS is off: plain HTTP on loopback or behind the trusted proxy")
        return
    if settings.tls.cert is None or settings.tls.key is None:
        text = "self-signed: browsers warn once; compare the fingerprint that the server prints"
        yield Finding("Certificate", "ok", text, "set tls.cert and tls.key for production")
        return
    try:
        found = tls.read(settings.tls.cert, settings.tls.key, self_signed=False)
    except tls.TlsError as error:
        yield Finding("Certificate", "failure", str(error), "correct tls.cert and tls.key")
        return
    left = found.expires - tls.utc_now()
    text = f"for {', '.join(found.names) or 'no name at all'}, ends in {left.days} days"
    if left <= timedelta(0) or not found.names:
        yield Finding("Certificate", "failure", text, "get a new one with a subjectAltName")
    elif left < timedelta(days=14):
        yield Finding("Certificate", "warning", text, "renew it")
    else:
        yield Finding("Certificate", "ok", text)


def _key_certificates(settings: Settings) -> Iterator[Finding]:
    usages: tuple[tuple[str, Usage], ...] = (("signing", "sign"), ("encryption", "encrypt"))
    for half, usage in usages:
        path, name = settings.crypto_dir / f"{half}.cert.pem", f"{half.capitalize()} certificate"
        if not path.exists():
            continue  # not made yet, or the keys are elsewhere
        try:
            chain = read_chain(path)
            check_chain(chain, tls.utc_now(), usage)
        except (ChainError, Sm2Error, OSError) as error:
            yield Finding(name, "failure", str(error), "get another: docs/operations.md, Certificates")
            continue
        left = min(one.not_after for one in chain) - tls.utc_now()
        text = f"{chain[0].subject}, {len(chain)} in its chain, ends in {left.days} days"
        if left < timedelta(days=30):
            yield Finding(name, "warning", text, "renew it: with an expired one the server does not start")
        else:
            yield Finding(name, "ok", text)


def _secrets(settings: Settings) -> Iterator[Finding]:
    directory = settings.secrets_dir
    if not directory.exists():
        yield Finding("Secrets", "ok", f"none yet; the first start makes them in {directory}")
        return
    open_ones = [path for path in (directory, *directory.rglob("*")) if path.stat().st_mode & 0o077]
    if open_ones:
        text = f"other users can read {', '.join(str(path) for path in open_ones)}"
        yield Finding("Secrets", "failure", text, f"chmod -R go-rwx {directory}")
    else:
        yield Finding("Secrets", "ok", f"{directory} is readable by its owner only")


def _keys(settings: Settings) -> Iterator[Finding]:
    """Open the keys as the server would; a KMS is asked who it is, and for a signature."""
    crypto = settings.crypto
    if crypto.provider == "file" and not settings.crypto_dir.exists():
        yield Finding(
            "Keys", "ok", f"none yet; the first start makes development keys in {settings.crypto_dir}"
        )
        return
    try:
        provider = open_keys(settings, server_keys(settings))
        provider.signer().sign(b"mediaserver doctor")
    except KeysUnavailable as error:
        yield Finding("Keys", "failure", str(error), "start the KMS, or correct crypto.kms")
        return
    except (KeyProblem, selftest.SelfTestError, OSError) as error:
        yield Finding("Keys", "failure", str(error), "correct the section crypto (docs/operations.md, Keys)")
        return
    info = provider.info()
    opens = "opens recordings" if provider.can_open else "seals only"
    text = f"{info.name} {info.version}, product certificate {info.certificate}, {info.assurance}; {opens}"
    if settings.environment == "production" and info.assurance == "development":
        yield Finding("Keys", "failure", text, "use keys with certificates of your authority")
    elif not crypto.open and crypto.provider == "file" and _has_encryption_key(settings):
        text += "; yet encryption.key.pem lies beside it"
        yield Finding("Keys", "warning", text, f"move it from {settings.crypto_dir} to whoever opens")
    else:
        yield Finding("Keys", "ok", text)


def _has_encryption_key(settings: Settings) -> bool:
    return (settings.crypto_dir / "encryption.key.pem").exists()


def _limits() -> Iterator[Finding]:
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
    if capabilities >> _SYS_NICE & 1 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - FORWARDER_NICE:
        yield Finding("Priority", "ok", f"packets are forwarded at nice {FORWARDER_NICE}")
    else:
        text = "packets are forwarded at the priority of all else: composing on a full machine delays calls"
        yield Finding("Priority", "warning", text, f"LimitNICE={FORWARDER_NICE} in the unit")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MIN_OPEN_FILES:
        text = f"{soft}: some hundred recordings at once need more"
        yield Finding(
            "Open files", "warning", text, f"ulimit -n {MIN_OPEN_FILES * 4}, or LimitNOFILE= in the unit"
        )
    else:
        yield Finding("Open files", "ok", f"{soft}")
