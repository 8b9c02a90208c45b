"""AES-256-GCM (FIPS 197, NIST SP 800-38D) through ``cryptography``: for suites where SM4 is not asked for."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import algorithms

from recorder.gm.aead import Checked, CryptographyGcm

KEY_BYTES = 32


class Aes256Gcm(Checked):
    """AES-256-GCM under one 32-byte key: 12-byte nonce, 16-byte tag."""

    __slots__ = ()

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"an AES-256 key has {KEY_BYTES} bytes, not {len(key)}")
        super().__init__(CryptographyGcm(algorithms.AES(key), "AES-256-GCM"))
