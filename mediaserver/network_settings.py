"""Settings of the API, the page, their TLS, and of TURN; a part of settings.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import AfterValidator, Field, SecretStr

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


def _ice_url(value: str) -> str:
    if not re.fullmatch(
        r"(stun:|turns?:)(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?(\?transport=(udp|tcp))?", value
    ):
        raise ValueError("a URL such as turn:turn.example.com:3478?transport=udp (RFC 7065)")
    return value


class Turn(Section):
    """A TURN server beside this one, for clients that reach neither its UDP nor its TCP ports."""

    urls: tuple[Annotated[str, AfterValidator(_ice_url)], ...] = Field(
        default=(),
        max_length=8,
        description="What clients are told: turn:HOST:3478?transport=udp, turn:HOST:3478?transport=tcp, "
        "turns:HOST:443?transport=tcp. Empty: clients connect directly or not at all. docs/networks.md",
    )
    secret: SecretStr | None = Field(
        default=None,
        description="Secret shared with the TURN server (coturn: static-auth-secret), 16 characters or "
        "more. Who has it relays through the TURN server at will. Prefer secret_file.",
    )
    secret_file: Path | None = Field(default=None, description="File that holds the secret.")
    ttl_s: int = Field(
        default=900,
        ge=60,
        le=604_800,
        description="How long a client may begin to use the relay; an ICE restart gives new credentials. "
        "coturn lets a relay that was begun go on; another server may not. Who is removed from a room can "
        "relay for so long still, to this server.",
    )

    @pydantic.model_validator(mode="after")
    def _has_secret(self) -> Turn:
        if any(url.startswith("turn") for url in self.urls) and self.secret is None:
            raise ValueError("secret: TURN servers need the secret they share with this server")
        if self.secret is not None and len(self.secret.get_secret_value()) < 16:
            raise ValueError("secret: has fewer than 16 characters")
        return self
