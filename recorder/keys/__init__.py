"""Keys: who makes, wraps, opens and signs. The provider is a seam: files here, a KMS or an SM2 device
elsewhere.

A recording's data key lies wrapped (SM2, GM/T 0009) in its sidecar ``keys.json``, outside every digest:
rotating rewrites sidecars and never touches media; deleting them is crypto-erase. The sidecar is itself a
signed page, so that a changed bit or another recording's wrap is found without any key.
"""

from recorder.keys.file import FileProvider, FileSigner
from recorder.keys.provider import (
    WRAP_ALGORITHM,
    CryptoProvider,
    KeyProblem,
    ProviderInfo,
    data_key_id,
)
from recorder.keys.sidecar import SIDECAR, SIDECAR_TYPE, open_sidecar, read_sidecar, write_sidecar

__all__ = [
    "SIDECAR",
    "SIDECAR_TYPE",
    "WRAP_ALGORITHM",
    "CryptoProvider",
    "FileProvider",
    "FileSigner",
    "KeyProblem",
    "ProviderInfo",
    "data_key_id",
    "open_sidecar",
    "read_sidecar",
    "write_sidecar",
]
