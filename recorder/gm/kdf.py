"""The key derivation function of GB/T 32918.4-2016 (GM/T 0003.4) section 5.4.3, over SM3."""

from __future__ import annotations

from recorder.gm.sm3 import DIGEST_BYTES, sm3


def kdf_sm3(secret: bytes, size: int) -> bytes:
    """Derive ``size`` bytes: SM3(secret ‖ counter) for the 32-bit counters 1, 2, …, cut to size.

    The same as the ANSI X9.63 KDF with SM3 and no shared info (``openssl kdf … X963KDF``).
    """
    if not 0 < size <= DIGEST_BYTES * 0xFFFF:
        raise ValueError(f"cannot derive {size} bytes")
    blocks = -(-size // DIGEST_BYTES)
    return b"".join(sm3(secret + counter.to_bytes(4, "big")) for counter in range(1, blocks + 1))[:size]
