"""Keys: who makes, wraps, opens and signs. The provider is a seam: files, the environment or a KMS here, an
SM2 device elsewhere (docs/kms.md).

A recording's data key lies wrapped (SM2, GM/T 0009) in its sidecar ``keys.json``, outside every digest:
rotating rewrites sidecars and never touches media; deleting them is crypto-erase. The sidecar is itself a
signed page, so that a changed bit or another recording's wrap is found without any key.
"""

from recorder.keys.config import ProviderConfig, open_at, open_opener, open_opener_at, open_provider
from recorder.keys.environment import EnvironmentProvider
from recorder.keys.erase import erase_sidecar
from recorder.keys.file import FileProvider
from recorder.keys.kms import KmsAddress, KmsProvider
from recorder.keys.local import LocalSigner
from recorder.keys.provider import (
    WRAP_ALGORITHM,
    CryptoProvider,
    KeyProblem,
    KeysUnavailable,
    Opener,
    ProviderInfo,
    SealedOnly,
    data_key_id,
)
from recorder.keys.sidecar import (
    SIDECAR,
    SIDECAR_TYPE,
    open_sidecar,
    own_sidecar,
    read_sidecar,
    write_sidecar,
)

__all__ = [
    "SIDECAR",
    "SIDECAR_TYPE",
    "WRAP_ALGORITHM",
    "CryptoProvider",
    "EnvironmentProvider",
    "FileProvider",
    "KeyProblem",
    "KeysUnavailable",
    "KmsAddress",
    "KmsProvider",
    "LocalSigner",
    "Opener",
    "ProviderConfig",
    "ProviderInfo",
    "SealedOnly",
    "data_key_id",
    "erase_sidecar",
    "open_at",
    "open_opener",
    "open_opener_at",
    "open_provider",
    "open_sidecar",
    "own_sidecar",
    "read_sidecar",
    "write_sidecar",
]
