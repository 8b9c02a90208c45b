"""The environment provider: SM2 keys as PEM in environment variables, as container platforms hand them in.

They are taken out of the environment when read, so that no child process inherits them. What the kernel
shows of a process's first environment (``/proc/PID/environ``: its user and root) stays: a file provider or a
KMS shows less.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from pydantic import BaseModel, ConfigDict, Field

from recorder.gm.sm2 import PrivateKey, Sm2Error
from recorder.gm.x509 import Certificate
from recorder.keys.local import USES, LocalProvider, check_pairs
from recorder.keys.provider import KeyProblem

PREFIX = "SHUANGLU_CRYPTO_"
"""Of every variable that may hold a secret of ours; children get none of them."""


class PemKeys(BaseModel):
    """The four variables' texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signing_key: str = Field(repr=False)
    signing_certificate: str
    encryption_key: str = Field(default="", repr=False)
    """Empty where only sealing is wanted."""
    encryption_certificate: str

    def for_sealing(self) -> PemKeys:
        """Return them without the key that opens."""
        return self.model_copy(update={"encryption_key": ""})


def take_keys(environ: MutableMapping[str, str]) -> PemKeys:
    """Take ``SHUANGLU_CRYPTO_SIGNING_KEY``, ``…_SIGNING_CERTIFICATE``, ``…_ENCRYPTION_KEY`` and
    ``…_ENCRYPTION_CERTIFICATE`` out of the environment. Raise KeyProblem naming what is missing.
    """
    found = {name: environ.pop(PREFIX + name.upper(), "") for name in PemKeys.model_fields}
    missing = [PREFIX + name.upper() for name, text in found.items() if not text and name != "encryption_key"]
    if missing:
        raise KeyProblem(f"{', '.join(missing)} is not in the environment")
    return PemKeys(**found)


class EnvironmentProvider(LocalProvider):
    """Keys that came in the environment."""

    NAME = "environment"

    @classmethod
    def open(
        cls,
        pem: PemKeys,
        passphrase: str | None = None,
        *,
        opens: bool = True,
        expired: bool = False,
        certificate_no: str = "none",
        former: tuple[str, ...] = (),
    ) -> EnvironmentProvider:
        """Load the keys. Raise KeyProblem naming the variable that does not load or fit."""
        places = {name: f"{PREFIX}{name.upper()}_CERTIFICATE" for name in USES}
        keys: dict[str, PrivateKey] = {}
        chains: dict[str, list[Certificate]] = {}
        for name, text, certificate in (
            ("signing", pem.signing_key, pem.signing_certificate),
            ("encryption", pem.encryption_key, pem.encryption_certificate),
        ):
            if name == "signing" or opens:
                if not text:
                    raise KeyProblem(f"{PREFIX}{name.upper()}_KEY is not in the environment")
                try:
                    keys[name] = PrivateKey.from_pem(text.encode(), passphrase)
                except Sm2Error as error:
                    raise KeyProblem(f"{PREFIX}{name.upper()}_KEY does not load: {error}") from None
            try:
                chains[name] = Certificate.all_from_pem(certificate)
            except Sm2Error as error:
                raise KeyProblem(f"{places[name]} does not load: {error}") from None
        check_pairs(keys, chains, places, expired=expired)
        return cls(
            keys["signing"],
            keys.get("encryption"),
            chains,
            certificate_no=certificate_no,
            former=former,
        )
