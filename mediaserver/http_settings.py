"""Settings of the API, the page and their TLS; a part of settings.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mediaserver.section import Section

Port = Annotated[int, Field(ge=0, le=65535)]


class Http(Section):
    """The API, the page and the metrics, on one port."""

    host: str = Field(
        default="0.0.0.0",  # noqa: S104  phones in the same network join by this address
        description="Address to listen on. 127.0.0.1: nobody outside this machine reaches page and API.",
    )
    port: Port = Field(default=8443, description="TCP port. 0: any free one, told in the log; for tests.")
    public_url: str = Field(
        default="",
        description="Address that browsers use, such as https://media.example.com, put into invitations. "
        "Empty: the first advertised address and the port.",
    )
    max_body_bytes: int = Field(
        default=1 << 20,
        ge=65536,
        description="Larger request bodies get 413. SDP of a browser is about 10 KiB.",
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="Origins whose pages may call the API from a browser. Empty: only this server's own "
        "page.",
    )


class Tls(Section):
    """HTTPS. A browser gives camera and microphone to pages over HTTPS or on localhost only."""

    enabled: bool = Field(
        default=True,
        description="false: plain HTTP; refused unless http.host is loopback or trusted_proxy is set.",
    )
    cert: Path | None = Field(
        default=None,
        description="PEM file with the certificate chain. null: a self-signed one for all advertised "
        "addresses "
        "is made in the data directory, browsers warn once, and its fingerprint is printed.",
    )
    key: Path | None = Field(default=None, description="PEM file with the private key of tls.cert.")
