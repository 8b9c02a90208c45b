"""Seal what names people inside database columns.

The database is an index that anyone who copies the disk can read, so columns that may name a person (names,
identities, metadata, business numbers) are stored sealed, and what must be searched is stored as a keyed
digest. The key lies in a file of its own; losing it loses only the index, which is rebuilt from the
recordings.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class FieldKeyError(Exception):
    """The key file is unusable, or a sealed column does not belong to this key."""


class FieldKey:
    """Seal JSON values and make search digests with one 32-byte secret.

    Columns are AES-256-GCM under a random 96-bit nonce (NIST SP 800-38D allows 2^32 of them for one key), the
    column's name being authenticated with it. These are rows of a local index, not evidence: the sealed files
    of a recording are SM4 and never use this key.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise FieldKeyError(f"an index key has 32 bytes, this one {len(secret)}")
        self._seal = AESGCM(hashlib.sha256(b"seal" + secret).digest())
        self._search = hashlib.sha256(b"search" + secret).digest()

    def __repr__(self) -> str:
        return "FieldKey(…)"

    @classmethod
    def open(cls, path: Path) -> FieldKey:
        """Read the key file, or make it (0600, in a 0700 directory) at the first start."""
        try:
            return cls(path.read_bytes())
        except FileNotFoundError:
            pass
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = os.urandom(32)
        # Written beside and renamed, so that a kill never leaves half a key.
        # A random name: in a container the next process has the same id as the one that was killed.
        beside = path.with_name(f"{path.name}.{os.urandom(4).hex()}.new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(beside, path)
        except FileExistsError:  # another process was first: its key holds
            return cls(path.read_bytes())
        finally:
            beside.unlink()
        return cls(secret)

    def seal(self, value: Any, column: str) -> bytes:
        """Seal a JSON value for ``column``."""
        nonce = os.urandom(12)
        plain = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        return nonce + self._seal.encrypt(nonce, plain, column.encode())

    def unseal(self, sealed: bytes, column: str) -> Any:
        """Give back what ``seal`` was given; raises FieldKeyError if it was not sealed under this key."""
        try:
            plain = self._seal.decrypt(sealed[:12], sealed[12:], column.encode())
        except Exception as error:
            raise FieldKeyError(f"column {column} is not sealed under this index key") from error
        return json.loads(plain)

    def digest(self, value: str, column: str) -> str:
        """Make the keyed digest that equality search on ``column`` uses (HMAC-SHA-256, hexadecimal)."""
        return hmac.new(self._search, f"{column}\0{value}".encode(), hashlib.sha256).hexdigest()
