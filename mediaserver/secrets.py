"""The server's secrets: made at the first start, checked at every one.

``{data}/secrets`` (0700) holds ``api-keys.yaml``, ``session.key`` and, unless crypto.directory says
otherwise, the key provider's files in ``crypto/``; all files 0600. Nothing here has a default value. Values
are never printed.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from mediaserver.config import ConfigError, parse_yaml
from mediaserver.keys import open_keys, server_keys
from mediaserver.settings import Settings
from mediaserver.tokens import MIN_SECRET_BYTES, ApiKey
from recorder.atomic import sync_directory
from recorder.keys import CryptoProvider, FileProvider, KeyProblem, ProviderConfig
from recorder.timestamp import TimestampError, read_anchors

_log = logging.getLogger(__name__)


class SecretsError(Exception):
    """A secret is missing, readable by others, or not to be used here; says which and what to do."""


@dataclass(frozen=True)
class Secrets:
    """What was opened."""

    api_keys: tuple[ApiKey, ...]
    session_key: str
    """Signs browser sessions."""
    provider: CryptoProvider
    keys: ProviderConfig
    """Where the provider's keys are, for the workers."""
    created: tuple[Path, ...]
    """Files made just now, to tell the operator."""

    def __repr__(self) -> str:
        return f"Secrets({len(self.api_keys)} API keys)"


def open_secrets(settings: Settings) -> Secrets:
    """Open all secrets, making those that a first start lacks; SecretsError if one may not be used."""
    directory = settings.secrets_dir
    created: list[Path] = []
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    api_keys, session_key, crypto = (
        directory / "api-keys.yaml",
        directory / "session.key",
        settings.crypto_dir,
    )
    if not api_keys.exists():
        key = {"id": f"key-{secrets.token_hex(4)}", "secret": secrets.token_urlsafe(32), "tenant": "default"}
        _write_new(api_keys, yaml.safe_dump([key], sort_keys=False))
        created.append(api_keys)
    if not session_key.exists():
        _write_new(session_key, secrets.token_urlsafe(32) + "\n")
        created.append(session_key)
    in_files = settings.crypto.provider == "file"
    if in_files and (not crypto.exists() or not any(crypto.iterdir())):
        _refuse_new_crypto_keys(settings)
        crypto.mkdir(mode=0o700, exist_ok=True)
        passphrase = settings.crypto.passphrase.get_secret_value() if settings.crypto.passphrase else None
        FileProvider.create(crypto, passphrase)
        created += sorted(path for path in crypto.iterdir() if path.is_file())
    checked = [directory, *_files(directory), *([crypto, *_files(crypto)] if in_files else ())]
    for path in checked:
        _check_mode(path)
    where = str(crypto) if in_files else f"crypto.provider {settings.crypto.provider}"
    try:
        keys = server_keys(settings)
        provider = open_keys(settings, keys)
    except KeyProblem as error:
        raise SecretsError(f"{where}: {error}") from error
    if settings.environment == "production" and provider.info().assurance == "development":
        raise SecretsError(
            f"environment is production, but the keys of {where} are development keys; use keys with a "
            "certificate of your authority (docs/operations.md)"
        )
    if settings.timestamp.trust is not None:
        try:
            read_anchors(settings.timestamp.trust)
        except (TimestampError, OSError) as error:
            raise SecretsError(f"timestamp.trust: {error}") from error
    return Secrets(read_api_keys(api_keys), _read_session_key(session_key), provider, keys, tuple(created))


def read_api_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a list of ``{id, secret, tenant, webhook_url}``; SecretsError names the entry that is wrong."""
    try:
        entries = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise SecretsError(f"{path}: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise SecretsError(f"{path}: must be a list of at least one key")
    keys: list[ApiKey] = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}: key {number}"
        if not isinstance(entry, dict) or not set(entry) <= {"id", "secret", "tenant", "webhook_url"}:
            raise SecretsError(
                f"{where}: must have id, secret, tenant and may have webhook_url, nothing else"
            )
        if not all(isinstance(value, str) and value for value in entry.values()):
            raise SecretsError(f"{where}: values must be text and not empty")
        if "id" not in entry or len(entry.get("secret", "").encode()) < MIN_SECRET_BYTES:
            raise SecretsError(f"{where}: needs an id, and a secret of {MIN_SECRET_BYTES} bytes or more")
        if any(key.id == entry["id"] for key in keys):
            raise SecretsError(f"{where}: the id {entry['id']} is given twice")
        keys.append(ApiKey(**entry))
    return tuple(keys)


def _refuse_new_crypto_keys(settings: Settings) -> None:
    """Make new keys at a first start only: beside recordings they would hide that the old are gone."""
    if not settings.crypto.open:
        raise SecretsError(
            f"{settings.crypto_dir} holds no keys, and crypto.open is false: put signing.key.pem, its "
            "certificate and encryption.cert.pem there; whoever opens keeps encryption.key.pem"
        )
    if settings.crypto.directory is not None:
        raise SecretsError(f"crypto.directory: {settings.crypto.directory} holds no keys (is it mounted?)")
    recordings = settings.recordings_dir
    if recordings.exists() and any(recordings.iterdir()):
        raise SecretsError(
            f"{settings.crypto_dir} holds no keys, but {recordings} has recordings made with some; "
            "bring the keys back, or move the recordings away"
        )


def _write_new(path: Path, content: str) -> None:
    """Write a file that did not exist, 0600 from its first byte, whole or not at all."""
    # A random name: in a container the next process has the same id as the one that was killed.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.link(draft, path)  # unlike a rename it fails if another process was first
    draft.unlink()
    sync_directory(path.parent)


def _read_session_key(path: Path) -> str:
    key = path.read_text(encoding="utf-8").strip()
    if len(key.encode()) < MIN_SECRET_BYTES:
        raise SecretsError(f"{path}: shorter than {MIN_SECRET_BYTES} bytes; delete it, a new one is made")
    return key


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file() or path.is_dir())


def _check_mode(path: Path) -> None:
    status = path.stat()
    if status.st_mode & 0o077:
        wanted = "700" if path.is_dir() else "600"
        raise SecretsError(
            f"{path} can be read by other users (mode {status.st_mode & 0o777:o}); chmod {wanted} {path}"
        )
    if status.st_uid != os.geteuid():
        raise SecretsError(f"{path} belongs to another user; chown {os.geteuid()} {path}")
