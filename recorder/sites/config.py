"""What is said about a site, in the server's settings and in the file that ``recorder --site`` reads."""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_SCHEMES = ("s3", "file")


class ObjectLock(BaseModel):
    """Retention that is asked for with every object that never changes."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    mode: Literal["governance", "compliance"]
    days: int = Field(ge=1, le=36500)


class SiteConfig(BaseModel):
    """One site. Secrets are in ``credentials_file`` alone, never here."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: str = Field(
        default="site",
        pattern=r"^[a-z0-9][a-z0-9-]{0,31}$",
        description="Name in metrics, events and the log. Unique, and it stays: uploads under way name it.",
    )
    url: str = Field(
        description="s3://bucket/prefix, or file:///directory (a mounted share). What lies below has the "
        "layout of a data directory."
    )
    endpoint: str | None = Field(
        default=None,
        description="Address of an S3-compatible store, such as https://s3.bank.example. null: AWS.",
    )
    region: str = Field(default="us-east-1", description="Region that requests are signed for.")
    credentials_file: Path | None = Field(
        default=None,
        description="YAML or JSON with access_key_id and secret_access_key (and session_token), mode 0600. "
        "null: the machine's own role or the AWS_… environment variables.",
    )
    ca_file: Path | None = Field(
        default=None, description="PEM certificates of a private authority that the store's are signed by."
    )
    path_style: bool = Field(
        default=True, description="false: the bucket is part of the host's name, as some stores demand."
    )
    checksum: bool = Field(
        default=True,
        description="Send x-amz-checksum-sha256, which locked buckets ask for. false: for stores that refuse "
        "it; the signed SHA-256 of each request's body is checked by the store all the same.",
    )
    object_lock: ObjectLock | None = Field(
        default=None,
        description="{mode: governance|compliance, days: N}: nobody deletes media, manifests and statements "
        "there before. Needs a bucket with object lock. keys.json is left out, so that erasing keys works.",
    )
    timeout_s: float = Field(
        default=60.0, gt=0, description="A request of at most 8 MiB that takes longer has failed."
    )

    @field_validator("url")
    @classmethod
    def _known(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in _SCHEMES:
            raise ValueError("is s3://bucket/prefix or file:///directory")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("holds neither credentials nor options")
        if (parts.scheme == "s3") != bool(parts.netloc):
            raise ValueError("is s3://bucket/prefix or file:///directory")
        return value

    @model_validator(mode="after")
    def _fits(self) -> SiteConfig:
        endpoint = urlsplit(self.endpoint or "https://aws")
        if endpoint.scheme not in ("http", "https") or not endpoint.hostname or endpoint.username:
            raise ValueError(f"endpoint: {self.endpoint!r} is no http or https address without credentials")
        if endpoint.scheme == "http" and not _is_loopback(endpoint.hostname):
            raise ValueError("endpoint: plain HTTP leaves this machine; use https")
        if self.object_lock is not None and (self.directory is not None or not self.checksum):
            raise ValueError("object_lock needs an s3 site, with checksum: a locked bucket asks for it")
        return self

    @property
    def bucket(self) -> str:
        """The bucket of an S3 site; empty for directories."""
        return urlsplit(self.url).netloc

    @property
    def prefix(self) -> str:
        """What all keys of an S3 site begin with, without slashes at the ends."""
        return urlsplit(self.url).path.strip("/")

    @property
    def directory(self) -> Path | None:
        """The directory of a ``file:`` site."""
        parts = urlsplit(self.url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    def credentials(self) -> dict[str, str]:
        """Read the credentials file. Raise ValueError naming what is wrong with it, OSError."""
        if self.credentials_file is None:
            return {}
        path = self.credentials_file
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ValueError(
                    f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o}); chmod 600 it"
                )
            text = file.read(1 << 16)
        found = _mapping(path, text)
        needed, optional = {"access_key_id", "secret_access_key"}, {"session_token"}
        if not needed <= set(found) <= needed | optional:
            raise ValueError(
                f"{path} holds access_key_id and secret_access_key (and session_token), nothing else"
            )
        if not all(isinstance(value, str) and value for value in found.values()):
            raise ValueError(f"{path}: every value is text, quoted if it looks like a number")
        return found


def read_site(url: str, path: Path | None) -> SiteConfig:
    """Make a site of a URL and a file with its other members. Raise ValueError naming the fault,
    OSError.
    """
    members: dict[str, Any] = _mapping(path, path.read_bytes()) if path is not None else {}
    for name in ("credentials_file", "ca_file"):
        if isinstance(members.get(name), str):
            members[name] = Path(members[name])
    try:
        return SiteConfig(**{**members, "url": url})
    except pydantic.ValidationError as error:
        faults = (f"{'.'.join(map(str, one['loc'])) or 'site'}: {one['msg']}" for one in error.errors())
        raise ValueError(f"{path or url}: {'; '.join(faults)}") from None


def _mapping(path: Path, text: bytes) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"{path} is neither YAML nor JSON") from None  # its text may hold the secret
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} must hold names and values")
    return found


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
