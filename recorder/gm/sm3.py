"""SM3 (GM/T 0004-2012, GB/T 32905-2016): 256-bit hash, and HMAC over it (RFC 2104).

Implementations, fastest first: libgcrypt (290 MB/s a core), hashlib where Python's OpenSSL has SM3
(190 MB/s), cryptography (200 MB/s, slower to set up). gmssl's pure Python (0.1 MB/s) is never used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

from cryptography.hazmat.primitives import hashes

from recorder.gm import libgcrypt

DIGEST_BYTES = 32
BLOCK_BYTES = 64

Buffer = bytes | bytearray | memoryview


class Hash(Protocol):
    """What every implementation offers; ``hashlib``'s objects already do."""

    def update(self, data: Buffer, /) -> None: ...

    def digest(self) -> bytes: ...

    def copy(self) -> Hash: ...


class _GcryptSm3:
    __slots__ = ("_handle",)

    def __init__(self, handle: Any = None) -> None:
        if handle is None:
            out = libgcrypt.ffi.new("gcry_md_hd_t *")
            libgcrypt.check(libgcrypt.library.gcry_md_open(out, libgcrypt.GCRY_MD_SM3, 0))
            handle = out[0]
        self._handle = libgcrypt.ffi.gc(handle, libgcrypt.library.gcry_md_close)

    def update(self, data: Buffer, /) -> None:
        view = libgcrypt.ffi.from_buffer(data)
        libgcrypt.library.gcry_md_write(self._handle, view, len(view))

    def copy(self) -> _GcryptSm3:
        out = libgcrypt.ffi.new("gcry_md_hd_t *")
        libgcrypt.check(libgcrypt.library.gcry_md_copy(out, self._handle))
        return _GcryptSm3(out[0])

    def digest(self) -> bytes:
        out = libgcrypt.ffi.new("gcry_md_hd_t *")
        libgcrypt.check(libgcrypt.library.gcry_md_copy(out, self._handle))
        final = out[0]  # reading finalises a handle, and ours goes on
        read = libgcrypt.library.gcry_md_read(final, libgcrypt.GCRY_MD_SM3)
        digest: bytes = libgcrypt.ffi.buffer(read, DIGEST_BYTES)[:]
        libgcrypt.library.gcry_md_close(final)
        return digest


class _CryptographySm3:
    __slots__ = ("_context",)

    def __init__(self, context: hashes.Hash | None = None) -> None:
        self._context = hashes.Hash(hashes.SM3()) if context is None else context

    def update(self, data: Buffer, /) -> None:
        self._context.update(data)

    def copy(self) -> _CryptographySm3:
        return _CryptographySm3(self._context.copy())

    def digest(self) -> bytes:
        return self._context.copy().finalize()


def _hashlib_sm3() -> Hash:
    return hashlib.new("sm3")


def implementations() -> dict[str, Callable[[], Hash]]:
    """Return every SM3 this machine has, fastest first, by name."""
    found: dict[str, Callable[[], Hash]] = {}
    if libgcrypt.library is not None:
        found["libgcrypt"] = _GcryptSm3
    if "sm3" in hashlib.algorithms_available:
        found["hashlib"] = _hashlib_sm3
    found["cryptography"] = _CryptographySm3
    return found


_IMPLEMENTATIONS = implementations()
_NEW = next(iter(_IMPLEMENTATIONS.values()))
# One hash of a few bytes costs 2 µs with hashlib, 6 µs through cffi: set-up counts there, not speed.
_NEW_SMALL = _IMPLEMENTATIONS.get("hashlib", _NEW)
_SMALL_BYTES = 4096


class Sm3:
    """Hash incrementally: ``update`` any number of times; ``digest`` and ``copy`` at any time."""

    __slots__ = ("_hash",)

    def __init__(self, data: Buffer = b"", *, _hash: Hash | None = None) -> None:
        self._hash = _NEW() if _hash is None else _hash
        if data:
            self._hash.update(data)

    def update(self, data: Buffer) -> None:
        """Add bytes; the interpreter lock is released while they are hashed."""
        self._hash.update(data)

    def digest(self) -> bytes:
        """Return the 32 bytes over everything so far; hashing may go on."""
        return self._hash.digest()

    def hexdigest(self) -> str:
        """Return ``digest`` as 64 lower-case hex digits."""
        return self.digest().hex()

    def copy(self) -> Sm3:
        """Return an independent hash of the same bytes so far."""
        return Sm3(_hash=self._hash.copy())


def sm3(data: Buffer) -> bytes:
    """Return the 32-byte SM3 of ``data``."""
    running = _NEW_SMALL() if len(data) <= _SMALL_BYTES else _NEW()
    running.update(data)
    return running.digest()


class HmacSm3:
    """HMAC-SM3 (RFC 2104; GB/T 15852.2) under one key; its two half-hashed pads are kept. For any thread."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        """Take a key of any length; longer than 64 bytes it is hashed first."""
        block = (sm3(key) if len(key) > BLOCK_BYTES else key).ljust(BLOCK_BYTES, b"\0")
        self._inner = Sm3(block.translate(_INNER_PAD))
        self._outer = block.translate(_OUTER_PAD)

    def tag(self, *parts: Buffer) -> bytes:
        """Return the 32 bytes over the parts one after another, without joining them."""
        inner = self._inner.copy()
        for part in parts:
            inner.update(part)
        return sm3(self._outer + inner.digest())


_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))


def hmac_sm3(key: bytes, message: bytes) -> bytes:
    """Return HMAC-SM3 (RFC 2104; GB/T 15852.2), 32 bytes; keys longer than 64 bytes are hashed first."""
    return HmacSm3(key).tag(message)


def named(digest: bytes) -> str:
    """Write a digest as every document of a recording does: ``sm3:`` and 64 hex digits."""
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"an SM3 digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    return f"sm3:{digest.hex()}"


def parse_named(text: str) -> bytes:
    """Read what ``named`` writes. Raise ValueError for another algorithm or form."""
    name, _, value = text.partition(":")
    if name != "sm3" or len(value) != 2 * DIGEST_BYTES or value != value.lower():
        raise ValueError(f"not an sm3: digest: {text[:80]!r}")
    return bytes.fromhex(value)
