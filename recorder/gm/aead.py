"""What every authenticated cipher here offers: 12-byte nonce, 16-byte tag behind the cipher text.

Whoever calls answers for nonces: ``recorder.sealed`` has a key per file and counts records.
"""

from __future__ import annotations

from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

NONCE_BYTES = 12
TAG_BYTES = 16

Buffer = bytes | bytearray | memoryview


class TagError(ValueError):
    """The cipher text, its associated data, nonce or key is not what was sealed."""


class Aead(Protocol):
    """One key's sealing and opening; safe to use from several threads."""

    def seal_into(self, out: memoryview, nonce: bytes, plaintext: Buffer, aad: bytes) -> None:
        """Write cipher text and tag into ``out`` (exactly ``len(plaintext) + 16`` bytes, writable)."""

    def open(self, nonce: bytes, sealed: Buffer, aad: bytes) -> bytes:
        """Return the plain text of cipher text + tag. Raise TagError, giving away no plain text."""


class Checked:
    """An ``Aead`` whose sizes are checked before it is asked, whatever library does the work."""

    __slots__ = ("_aead",)

    def __init__(self, aead: Aead) -> None:
        self._aead = aead

    def seal_into(self, out: memoryview, nonce: bytes, plaintext: Buffer, aad: bytes) -> None:
        """Write cipher text and tag into ``out``. Raise ValueError if it has another length than that."""
        if len(nonce) != NONCE_BYTES or len(out) != len(plaintext) + TAG_BYTES:
            raise ValueError("nonce of 12 bytes and room for cipher text + 16 needed")
        self._aead.seal_into(out, nonce, plaintext, aad)

    def seal(self, nonce: bytes, plaintext: Buffer, aad: bytes) -> bytes:
        """Return cipher text + tag."""
        out = bytearray(len(plaintext) + TAG_BYTES)
        self.seal_into(memoryview(out), nonce, plaintext, aad)
        return bytes(out)

    def open(self, nonce: bytes, sealed: Buffer, aad: bytes) -> bytes:
        """Return the plain text. Raise TagError if anything is not as it was sealed."""
        if len(nonce) != NONCE_BYTES or len(sealed) < TAG_BYTES:
            raise TagError("too short: nonce of 12 bytes and tag of 16 needed")
        return self._aead.open(nonce, sealed, aad)


class CryptographyGcm:
    """GCM of any block cipher through ``cryptography``."""

    def __init__(self, algorithm: algorithms.SM4 | algorithms.AES, name: str) -> None:
        self._algorithm = algorithm
        self._name = name

    def seal_into(self, out: memoryview, nonce: bytes, plaintext: Buffer, aad: bytes) -> None:
        """Write cipher text and tag into ``out``."""
        context = Cipher(self._algorithm, modes.GCM(nonce)).encryptor()
        context.authenticate_additional_data(aad)
        size = len(plaintext)
        context.update_into(plaintext, out)  # which wants a block more than the text; the tag's place is that
        context.finalize()
        out[size:] = context.tag

    def open(self, nonce: bytes, sealed: Buffer, aad: bytes) -> bytes:
        """Return the plain text. Raise TagError."""
        view = memoryview(sealed)
        context = Cipher(self._algorithm, modes.GCM(nonce, bytes(view[-TAG_BYTES:]))).decryptor()
        context.authenticate_additional_data(aad)
        plaintext = context.update(view[:-TAG_BYTES])
        try:
            return plaintext + context.finalize()
        except InvalidTag:
            raise TagError(f"{self._name} tag does not match") from None
