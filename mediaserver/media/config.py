"""What a worker is told on its first line of standard input: one JSON object, strict."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_RATE_BPS = 2_500_000


class WorkerConfig(BaseModel):
    """Settings of one media worker; made by the control process (``WorkerConfig(...).model_dump_json()``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(default=0, ge=0)
    socket: Path
    """Unix socket on which the worker listens for control."""
    bind: tuple[str, ...] = ("0.0.0.0",)  # noqa: S104 - calls come from the network
    """Addresses the UDP sockets are bound to, all with ``port``."""
    port: int = Field(default=0, ge=0, le=65535)
    """UDP port; 0 takes a free one, told by ``hello``."""
    advertised: tuple[str, ...] = ("127.0.0.1",)
    """Addresses clients are told to send to, best first."""
    advertised_port: int | None = None
    """Port clients are told, where a NAT maps another one to ours."""
    forwarder: str = "auto"
    receive_buffer_bytes: int = 4 << 20
    crypto_dir: Path | None = None
    """Directory of the file key provider; None: this worker cannot record."""
    passphrase_file: Path | None = None
    consent_s: float = Field(default=15.0, gt=0, le=30)
    segment_s: float = Field(default=10.0, gt=0)
    chunk_ms: int = 250
    chunk_bytes: int = 256 << 10
    queue_bytes: int = 64 << 20
    drain_s: float = 30.0
    """After SIGTERM running recordings are closed after so long."""
    orphan_s: float = 60.0
    """Without control, sessions and recordings the worker ends after so long."""
    log_level: str = "info"
