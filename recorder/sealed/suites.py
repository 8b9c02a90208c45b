"""Cipher suites of sealed files by number, the data key that carries one, and the keys of a single file.

Whatever the suite, chain, key commitment and key derivation are SM3 and signatures SM2: the signed pages of a
recording name one digest algorithm. docs/container.md section 2.3 has the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from recorder.gm import aes, sm4
from recorder.gm.aead import Checked
from recorder.gm.kdf import kdf_sm3
from recorder.gm.sm3 import DIGEST_BYTES, hmac_sm3

SUITE_SM4_GCM = 1
SUITE_SM4_CTR_HMAC_SM3 = 2
SUITE_AES_256_GCM = 3


@dataclass(frozen=True)
class Suite:
    """How the chunks of a file are sealed."""

    number: int
    """As every header states it."""
    name: str
    """As settings say it."""
    title: str
    data_key_bytes: int
    """Of a recording's data key: no key derived from it is stronger."""
    cipher_key_bytes: int
    """Of a file's cipher, all its keys together."""
    cipher: Callable[[bytes], Checked]

    @property
    def label(self) -> bytes:
        """What the derivation of a file's keys names: no two suites share a key."""
        return b"shuanglu sealed file v1 suite %d" % self.number


SUITES = {
    suite.number: suite
    for suite in (
        Suite(SUITE_SM4_GCM, "sm4-gcm", "SM4-GCM, SM3, SM2", sm4.KEY_BYTES, sm4.KEY_BYTES, sm4.Sm4Gcm),
        Suite(
            SUITE_SM4_CTR_HMAC_SM3,
            "sm4-ctr-hmac-sm3",
            "SM4-CTR with HMAC-SM3, SM3, SM2",
            sm4.KEY_BYTES,
            sm4.KEY_BYTES + sm4.MAC_KEY_BYTES,
            sm4.Sm4CtrHmacSm3,
        ),
        Suite(
            SUITE_AES_256_GCM,
            "aes-256-gcm",
            "AES-256-GCM, SM3, SM2",
            aes.KEY_BYTES,
            aes.KEY_BYTES,
            aes.Aes256Gcm,
        ),
    )
}


def suite_named(name: str) -> int:
    """Return the number of the suite that settings call ``name``. Raise ValueError for an unknown one."""
    for suite in SUITES.values():
        if suite.name == name:
            return suite.number
    raise ValueError(
        f"no suite is called {name!r}; there are {', '.join(one.name for one in SUITES.values())}"
    )


@dataclass(frozen=True)
class DataKey:
    """The secret all keys of one recording's files are derived from. ``repr`` does not show it."""

    key_id: str
    secret: bytes = field(repr=False)
    """16 bytes; 32 for AES-256-GCM."""
    suite: int = SUITE_SM4_GCM
    """Of files written with it. A reader goes by the file's own header."""

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise ValueError(f"suite {self.suite!r} is not one this version writes")
        size = SUITES[self.suite].data_key_bytes
        if len(self.secret) != size:
            raise ValueError(f"a data key of suite {self.suite} has {size} bytes, not {len(self.secret)}")


@dataclass(frozen=True)
class FileKeys:
    """What is derived for one file: its cipher and its key commitment's key."""

    aead: Checked
    commitment_key: bytes = field(repr=False)

    @classmethod
    def derive(cls, secret: bytes, file_id: bytes, suite: int) -> FileKeys:
        """KDF of GB/T 32918.4 over data key ‖ file id ‖ label: the cipher's keys, 32 bytes commitment key.

        Raise ValueError if the secret is not as long as the suite's data keys.
        """
        one = SUITES[suite]
        if len(secret) != one.data_key_bytes:
            raise ValueError(
                f"suite {suite} needs a data key of {one.data_key_bytes} bytes, not {len(secret)}"
            )
        derived = kdf_sm3(secret + file_id + one.label, one.cipher_key_bytes + DIGEST_BYTES)
        return cls(one.cipher(derived[: one.cipher_key_bytes]), derived[one.cipher_key_bytes :])

    def commitment(self, header_digest: bytes) -> bytes:
        """Return HMAC-SM3 over the header's digest: no second key fits the same file."""
        return hmac_sm3(self.commitment_key, header_digest)
