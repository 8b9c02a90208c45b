"""A real S3 server on loopback: OpenStack Swift (Debian) with its S3 API, in a temporary directory.

Four unprivileged processes (proxy, account, container, object server), one replica, one device that is
a plain directory: what an S3 client sees is Swift as banks run it. It needs a file system with user
xattrs. Started once for a whole test run (2 s); each test takes a bucket of its own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

SERVERS = ("account", "container", "object")
PACKAGES = ("swift-proxy", "swift-account", "swift-container", "swift-object")
ACCESS_KEY = "test:tester"
REGION = "us-east-1"
START_S = 60.0
WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""They end with the test run, however that ends."""


class S3Error(Exception):
    """The server cannot be started, or refused; says what it said."""


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and what it lets in."""

    directory: Path
    port: int
    access_key: str
    secret_key: str

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def credentials(self, directory: Path) -> Path:
        """Write the credentials file (0600) that a site's settings name."""
        path = directory / "s3-credentials.yaml"
        text = f"access_key_id: {self.access_key!r}\nsecret_access_key: {self.secret_key!r}\n"
        path.write_text(text)
        path.chmod(0o600)
        return path

    def bucket(self, name: str = "", *, versions: bool = False) -> str:
        """Make a bucket, with all versions of its objects kept or not; returns its name."""
        name = name or f"b-{secrets.token_hex(6)}"
        self.request("PUT", f"/{name}")
        if versions:
            xml = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
            self.request("PUT", f"/{name}", query="versioning", body=xml.encode())
        return name

    def request(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send a request straight to the server, signed by AWS' version 2. Raise S3Error.

        Not the code under test: what tests do to the store behind the product's back.
        """
        date = formatdate(usegmt=True)
        kind = "application/octet-stream" if body else ""
        md5 = base64.b64encode(hashlib.md5(body).digest()).decode() if body else ""
        resource = f"{path}?{query}" if query else path
        text = "\n".join((method, md5, kind, date, resource))
        signature = base64.b64encode(hmac.new(self.secret_key.encode(), text.encode(), "sha1").digest())
        request = urllib.request.Request(
            self.endpoint + resource, data=body or None, method=method, headers=dict(headers or {})
        )
        request.add_header("Date", date)
        request.add_header("Authorization", f"AWS {self.access_key}:{signature.decode()}")
        if body:
            request.add_header("Content-Type", kind)
            request.add_header("Content-MD5", md5)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as error:
            raise S3Error(f"{method} {resource}: {error.code} {error.read()[:300]!r}") from error


@contextmanager
def serving(directory: Path | None = None) -> Iterator[S3Server]:
    """Run the server in a new directory below ``directory`` (default: the system's for temporary files).

    Raise S3Error where the Debian packages are missing or it does not come up; its log is in the
    message.
    """
    missing = [name for name in (*SERVERS, "proxy") if shutil.which(f"swift-{name}-server") is None]
    if missing:
        raise S3Error(f"no swift-{missing[0]}-server: apt-get install {' '.join(PACKAGES)}")
    home = Path(tempfile.mkdtemp(prefix="swift-", dir=directory))
    server = S3Server(home, _free_port(), ACCESS_KEY, secrets.token_hex(16))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        ports = {name: _free_port() for name in SERVERS}
        _write_configuration(server, ports)
        for name in (*SERVERS, "proxy"):
            with (home / f"{name}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [*WITH_US, f"swift-{name}-server", str(home / f"{name}.conf"), "-v"],
                        stdout=log,
                        stderr=log,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                        env={"PATH": os.environ["PATH"], "HOME": str(home)},
                    )
                )
        _wait(server, [server.port, *ports.values()], processes)
        yield server
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _write_configuration(server: S3Server, ports: Mapping[str, int]) -> None:
    home = server.directory
    (home / "devices" / "d1").mkdir(parents=True)
    (home / "swift.conf").write_text(
        f"[swift-hash]\nswift_hash_path_suffix = {secrets.token_hex(8)}\n"
        "[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    common = (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {{port}}\nworkers = 0\nswift_dir = {home}\n"
        f"user = {pwd.getpwuid(os.geteuid()).pw_name}\nlog_level = ERROR\n"
        f"log_address = {home / 'no-syslog'}\n"
    )
    for name in SERVERS:
        (home / f"{name}.conf").write_text(
            common.format(port=ports[name])
            + f"devices = {home / 'devices'}\nmount_check = false\nfallocate_reserve = 0\n"
            # A listing must not lag behind an object on a busy machine: no updater runs here.
            + "container_update_timeout = 30\n"
            + f"disable_fallocate = true\n[pipeline:main]\npipeline = {name}-server\n"
            + f"[app:{name}-server]\nuse = egg:swift#{name}\nallow_versions = true\n"
        )
    _build_rings(home, ports)
    pipeline = (
        "catch_errors gatekeeper cache listing_formats s3api tempauth copy slo dlo versioned_writes symlink "
        "proxy-server"
    )
    (home / "proxy.conf").write_text(
        common.format(port=server.port)
        + f"[pipeline:main]\npipeline = {pipeline}\n"
        + "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nconn_timeout = 5\n"
        # tempauth asks a memcached, and does without one that is not there.
        + f"[filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = 127.0.0.1:{_free_port()}\n"
        + "[filter:tempauth]\nuse = egg:swift#tempauth\n"
        + f"user_test_tester = {server.secret_key} .admin\n"
        + f"[filter:s3api]\nuse = egg:swift#s3api\nlocation = {REGION}\ns3_acl = false\n"
        + "dns_compliant_bucket_names = true\n"
        + "[filter:versioned_writes]\nuse = egg:swift#versioned_writes\n"
        + "allow_versioned_writes = true\nallow_object_versioning = true\n"
        + "".join(
            f"[filter:{name}]\nuse = egg:swift#{name}\n"
            for name in ("catch_errors", "gatekeeper", "listing_formats", "copy", "slo", "dlo", "symlink")
        )
    )


_RINGS = """
import os, sys
from swift.common.ring import RingBuilder
home, places = sys.argv[1], dict(one.split("=") for one in sys.argv[2:])
for name, port in places.items():
    builder = RingBuilder(2, 1, 1)
    where = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port)}
    builder.add_dev({**where, "weight": 1.0, "device": "d1"})
    builder.rebalance()
    builder.get_ring().save(os.path.join(home, name + ".ring.gz"))
"""


def _build_rings(home: Path, ports: Mapping[str, int]) -> None:
    """Say where what is kept, as swift-ring-builder does, in one process for all three rings."""
    places = [f"{name}={port}" for name, port in ports.items()]
    done = subprocess.run(
        ["/usr/bin/python3", "-c", _RINGS, str(home), *places], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise S3Error(f"the rings cannot be built: {done.stderr[-800:]}")


def _wait(server: S3Server, ports: list[int], processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_S
    for port in ports:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                logs = {path.name: path.read_text()[-800:] for path in server.directory.glob("*.log")}
                raise S3Error(f"Swift does not come up: {logs}")
            time.sleep(0.05)
