"""From the settings to where keys are: the server's own, those that open for composing, the former ones."""

from __future__ import annotations

import os

from mediaserver.key_settings import Kms, OtherKeys
from mediaserver.settings import Settings
from recorder.keys import CryptoProvider, KmsAddress, ProviderConfig, open_provider
from recorder.keys.environment import take_keys
from recorder.keys.rotating import RotatingProvider


def server_keys(settings: Settings) -> ProviderConfig:
    """Say where the server's keys are. Those of the environment are taken out of it. Raise KeyProblem."""
    crypto = settings.crypto
    return ProviderConfig(
        provider=crypto.provider,
        directory=settings.crypto_dir.absolute() if crypto.provider == "file" else None,
        passphrase=crypto.passphrase.get_secret_value() if crypto.passphrase else None,
        pem=take_keys(os.environ) if crypto.provider == "environment" else None,
        kms=_address(crypto.kms),
        opens=crypto.open,
        certificate_no=crypto.certificate_no,
        former_signers=tuple(path.absolute() for path in crypto.former_signers),
    )


def opening_keys(settings: Settings) -> ProviderConfig | None:
    """Say where a compositor finds the keys that open, None if it is told the data key or nothing."""
    return _other(settings.crypto.opening)


def open_keys(settings: Settings, keys: ProviderConfig) -> CryptoProvider:
    """Open the server's keys, together with the former ones while they are rotated. Raise KeyProblem."""
    current = open_provider(keys)
    former = _other(settings.crypto.former)
    return current if former is None else RotatingProvider(current, open_provider(former))


def _other(keys: OtherKeys) -> ProviderConfig | None:
    if keys.provider == "none":
        return None
    return ProviderConfig(
        provider=keys.provider,
        directory=keys.directory.absolute() if keys.directory else None,
        passphrase_file=keys.passphrase_file.absolute() if keys.passphrase_file else None,
        kms=_address(keys.kms),
        expired=True,  # they open what was sealed while they were in force
    )


def _address(kms: Kms) -> KmsAddress | None:
    if not kms.url:
        return None
    paths = {
        name: path.absolute() if path else None
        for name, path in (
            ("token_file", kms.token_file),
            ("ca", kms.ca),
            ("client_cert", kms.client_cert),
            ("client_key", kms.client_key),
        )
    }
    return KmsAddress(url=kms.url, timeout_s=kms.timeout_s, **paths)
