"""Start `mediaserver serve` on free ports with its data in a directory of its own, and end it for certain.

Every process of a stage carries ``STAGE_MARK`` in its environment, workers and compositors included, so that
they are found again after their parent was killed, and nothing else ever is.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe

import yaml

from mediaserver.tokens import ApiKey, server_token

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).with_name("mediaserver")
MARK = "STAGE_MARK"
START_S = 40.0
"""Until the server is ready. On two busy cores its imports alone take some seconds."""
END_S = 20.0


class StageError(RuntimeError):
    """The server did not start, or not end; the message has the end of its log."""


def free_port(kind: socket.SocketKind) -> int:
    """Return a port that was free a moment ago on 127.0.0.1."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a stage."""

    pid: int
    what: str
    """``control``, ``worker``, ``spare`` (a worker without work), ``compositor`` or ``other``."""
    command: str


@dataclass
class Stage:
    """One server. Use as a context manager; ``data`` keeps everything it wrote."""

    data: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    """Dotted keys over the stage's own: one worker, plain HTTP on loopback, any free port."""
    tenants: tuple[str, ...] = ()
    """Tenants whose API keys are there before the first start; none: the server makes its own key."""
    launcher: tuple[str, ...] = ()
    """Words before the server's command, such as those that put it into a network namespace."""
    address: str = "127.0.0.1"
    """Where the tests reach it."""
    start_s: float = START_S
    log_path: Path = field(init=False)
    temporary: Path = field(init=False)
    """The server's TMPDIR, so that whatever it drops there is found."""
    port: int = field(init=False)
    _mark: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        self.log_path = self.data.parent / f"{self.data.name}.log"
        self.temporary = self.data.parent / f"{self.data.name}.tmp"
        self.temporary.mkdir(exist_ok=True)
        self.port = free_port(socket.SOCK_STREAM)
        if self.tenants:
            secrets_dir = self.data / "secrets"
            secrets_dir.mkdir(mode=0o700, exist_ok=True)
            made = [
                {"id": f"key-{tenant}", "secret": token_urlsafe(32), "tenant": tenant}
                for tenant in self.tenants
            ]
            path = secrets_dir / "api-keys.yaml"
            path.write_text(yaml.safe_dump(made))
            path.chmod(0o600)

    def __enter__(self) -> Stage:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def values(self) -> dict[str, object]:
        """Return the settings this server runs with, by dotted key."""
        return {
            "data_dir": str(self.data),
            "http.host": "127.0.0.1",
            "http.port": self.port,
            "tls.enabled": False,
            "media.workers": 1,
            "media.port": 0,
            "media.tcp_port": 0,
            "drain_s": 3,
            "recording.min_free_bytes": 64 << 20,
            "log.format": "json",
            **self.settings,
        }

    @property
    def base(self) -> str:
        """Return the server's own address, without a slash at the end."""
        scheme = "https" if self.values["tls.enabled"] else "http"
        return f"{scheme}://{self.address}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the environment that makes `mediaserver …` speak of this stage."""
        own = {
            f"SHUANGLU__{name.upper().replace('.', '__')}": yaml.safe_dump(value, default_flow_style=True)
            .removesuffix("\n")
            .removesuffix("\n...")
            for name, value in self.values.items()
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SHUANGLU__")}
        return {**clean, **own, MARK: self._mark, "TMPDIR": str(self.temporary), "PYTHONUNBUFFERED": "1"}

    def start(self) -> None:
        """Start the control process and wait until the server says that it is ready. Raises StageError."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.launcher, str(PROGRAM), "serve"],
                env=self.environment(),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + self.start_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise StageError(f"the server ended with code {self._process.returncode}:\n{self.log_end()}")
            if self.ready():
                return
            time.sleep(0.05)
        self.end()
        raise StageError(f"the server was not ready within {self.start_s} s:\n{self.log_end()}")

    def ready(self) -> bool:
        """Ask /readyz once."""
        if self.values["tls.enabled"]:
            import ssl

            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        else:
            context = None
        try:
            with urllib.request.urlopen(f"{self.base}/readyz", timeout=2, context=context) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def end(self) -> int | None:
        """Stop the server as an operator would, then make sure that nothing of it is left; returns its
        code.
        """
        code = None
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            try:
                code = self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        for process in self.processes():
            kill(process.pid)
        return code

    def processes(self) -> list[Process]:
        """Return the living processes of this stage, orphans included."""
        found = []
        needle = f"{MARK}={self._mark}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                environment = (entry / "environ").read_bytes()
                words = (entry / "cmdline").read_bytes().split(b"\0")
                command = b" ".join(words).decode(errors="replace").strip()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if needle in environment.split(b"\0") and command:
                what = _what(command)
                if what == "worker" and not _has_sockets(entry):
                    what = "spare"  # it still waits for its settings
                found.append(Process(int(entry.name), what, command))
        return sorted(found, key=lambda process: process.pid)

    def pids(self, what: str) -> list[int]:
        """Return the process ids of the control process, the workers or the compositors."""
        return [process.pid for process in self.processes() if process.what == what]

    def wait_gone(self, what: str, timeout_s: float = 15.0) -> None:
        """Wait until no process of a kind lives. Raises StageError."""
        deadline = time.monotonic() + timeout_s
        while self.pids(what):
            if time.monotonic() > deadline:
                raise StageError(f"{what} still runs after {timeout_s} s")
            time.sleep(0.1)

    def restart(self) -> None:
        """Start the control process again after it was killed, with the same data and port."""
        if self._process is not None:
            try:
                self._process.wait(5.0)  # one that is just ending has no command line and no status yet
            except subprocess.TimeoutExpired:
                raise StageError("the control process still runs") from None
        self.start()

    def key(self, tenant: str | None = None) -> ApiKey:
        """Return a tenant's API key, by default the first one. Raises KeyError."""
        for entry in yaml.safe_load((self.data / "secrets" / "api-keys.yaml").read_text()):
            if tenant in (None, entry["tenant"]):
                return ApiKey(id=entry["id"], secret=entry["secret"], tenant=entry["tenant"])
        raise KeyError(tenant)

    def bearer(self) -> str:
        """Return a server's Authorization header."""
        return f"Bearer {server_token(self.key())}"

    def log_end(self, lines: int = 40) -> str:
        """Return the last lines of the server's log."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def kill(pid: int) -> None:
    """Send SIGKILL; a process that has already gone is as good."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _has_sockets(process: Path) -> bool:
    """Say whether a process in /proc has any socket open."""
    for descriptor in (process / "fd").iterdir():
        try:
            if os.readlink(descriptor).startswith("socket:"):
                return True
        except FileNotFoundError:
            continue
    return False


def _waits_for_settings(entry: Path) -> bool:
    """Say whether a worker's standard input is still control's pipe: it has got no settings yet."""
    try:
        return os.readlink(entry / "fd" / "0").startswith("pipe:")
    except OSError:
        return False


def _what(command: str) -> str:
    for part, what in (
        ("mediaserver.media.worker", "worker"),
        ("compositor.job", "compositor"),
        ("mediaserver serve", "control"),
    ):
        if part in command:
            return what
    return "other"
