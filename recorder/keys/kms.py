"""The KMS provider: keys live behind an HTTP service (docs/kms.md has its contract).

Every call has a connection of its own: one kept from before could be dead, and a new data key may not be
asked for twice. Answers are bounded, signatures are checked against the certificate before use, and no key
is ever logged.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import http.client
import ipaddress
import json
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recorder.canonical import JSON
from recorder.gm import selftest
from recorder.gm.sm2 import Sm2Error
from recorder.gm.x509 import Certificate
from recorder.keys.file import read_private
from recorder.keys.provider import (
    FIRST_SUITE,
    KeyProblem,
    KeysUnavailable,
    ProviderInfo,
    SealedOnly,
    data_key_id,
    data_key_of,
    wrap_entry,
    wrap_of,
)
from recorder.sealed import SUITES, DataKey

MAX_ANSWER_BYTES = 64 << 10
MAX_RANDOM_BYTES = 1024
AGAIN_S = 0.2
"""Pause before an idempotent call is tried a second and last time."""
AT_ONCE = 8
"""Calls under way from one process; more wait for one of them."""
_UNAVAILABLE = (429, 502, 503, 504)

_log = logging.getLogger(__name__)
T = TypeVar("T")


class KmsAddress(BaseModel):
    """Where the KMS is and how to show who asks: a token file, a client certificate, or both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    token_file: Path | None = None
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    timeout_s: float = Field(default=3.0, gt=0, le=30)

    @model_validator(mode="after")
    def _fits_together(self) -> KmsAddress:
        check_address(self.url, self.token_file, self.client_cert, self.client_key)
        return self


def check_address(
    url: str, token_file: Path | None, client_cert: Path | None, client_key: Path | None
) -> None:
    """Raise ValueError for an address or a credential that cannot be right."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"url: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("url: must be https://HOST[:PORT][/PATH]")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("url: holds no credentials, query or fragment")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ValueError("url: keys travel in the answers; plain http is for this machine only, use https")
    if (client_cert is None) != (client_key is None):
        raise ValueError("client_cert and client_key belong together: give both or none")
    if token_file is None and client_cert is None:
        raise ValueError("give token_file, or client_cert and client_key")
    if parts.scheme == "http" and client_cert is not None:
        raise ValueError("client_cert needs https")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class KmsClient:
    """Asks the KMS; blocking, for any thread."""

    def __init__(self, address: KmsAddress) -> None:
        """Load what TLS needs. Raise KeyProblem naming the file that does not load."""
        self._address = address
        parts = urlsplit(address.url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port
        self._base = parts.path.rstrip("/")
        self._context: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._context = ssl.create_default_context(cafile=address.ca)
                if address.client_cert is not None and address.client_key is not None:
                    read_private(address.client_key)
                    self._context.load_cert_chain(address.client_cert, address.client_key)
            except OSError as error:
                named = error.filename or address.client_cert or address.ca
                raise KeyProblem(f"the KMS's {named} does not load: {error}") from None

    def __repr__(self) -> str:
        return f"KmsClient({self._address.url!r})"

    def call(
        self, method: str, path: str, body: Mapping[str, JSON] | None = None, *, again: bool
    ) -> Mapping[str, JSON]:
        """Return the JSON object the KMS answers. ``again``: the call may be sent twice.

        Raise KeysUnavailable if nothing useful answers in time, KeyProblem if the KMS refuses.
        """
        try:
            return self._once(method, path, body)
        except KeysUnavailable:
            if not again:
                raise
        time.sleep(AGAIN_S)
        return self._once(method, path, body)

    def _once(self, method: str, path: str, body: Mapping[str, JSON] | None) -> Mapping[str, JSON]:
        headers = {"Accept": "application/json", "Connection": "close"}
        if self._address.token_file is not None:
            headers["Authorization"] = f"Bearer {self._token(self._address.token_file)}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection = self._connection()
        try:
            connection.request(method, f"{self._base}{path}", body=data, headers=headers)
            answer = connection.getresponse()
            raw = answer.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
            raise KeysUnavailable(f"the KMS at {self._address.url} does not answer: {why}") from None
        finally:
            connection.close()
        return self._read(answer.status, raw)

    def _connection(self) -> http.client.HTTPConnection:
        timeout_s = self._address.timeout_s
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._context)

    def _token(self, path: Path) -> str:
        """Read the token anew each time: it may be replaced while the server runs."""
        try:
            token = read_private(path).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyProblem(f"the KMS token {path} cannot be read: {error}") from None
        if not token or not token.isprintable() or " " in token:
            raise KeyProblem(f"the KMS token {path} must be one word")
        return token

    def _read(self, status: int, raw: bytes) -> Mapping[str, JSON]:
        """Return an answer's object. No text of ours ever quotes a good answer: keys may be in it."""
        if len(raw) > MAX_ANSWER_BYTES:
            raise KeyProblem(f"the KMS answers with more than {MAX_ANSWER_BYTES} bytes")
        try:
            value = json.loads(raw)
        except ValueError:
            value = None
        if status == 200:
            if not isinstance(value, dict):
                raise KeyProblem("the KMS answers with something that is no JSON object")
            return value
        said = value if isinstance(value, dict) else {}
        text = f"{said.get('code', status)}: {said.get('detail', 'no detail')}"
        shown = "".join(one if one.isprintable() else "?" for one in text)[:200]
        if status in _UNAVAILABLE:
            raise KeysUnavailable(f"the KMS cannot answer now ({status} {shown})")
        raise KeyProblem(f"the KMS refuses ({status} {shown})")


@dataclass(frozen=True)
class KmsSigner:
    """Signs by asking the KMS; from any thread, and waits there for the answer."""

    certificate_pem: str
    _provider: KmsProvider

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature over ``message``, checked. Raise KeyProblem."""
        return self._provider.sign_now(message)


class KmsProvider:
    """Keys of an HTTP KMS. Only a recording's data key ever comes here, as long as it is used."""

    def __init__(self, client: KmsClient, info: ProviderInfo, *, opens: bool) -> None:
        """Use a client and what the KMS said of itself; see ``open``."""
        self._client = client
        self._info = info
        self._opens = opens
        self._signing = Certificate.from_pem(info.signing_certificate_pem)
        self._encryption = Certificate.from_pem(info.encryption_certificate_pem)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kms")

    @classmethod
    def open(
        cls,
        address: KmsAddress,
        *,
        opens: bool = True,
        certificate_no: str = "none",
        former: tuple[str, ...] = (),
    ) -> KmsProvider:
        """Ask the KMS who it is. Raise KeyProblem, KeysUnavailable if it does not answer."""
        selftest.require()
        client = KmsClient(address)
        said = client.call("GET", "/v1/info", again=True)
        texts = {name: _text(said, name) for name in ("name", "version", "certificate_no")}
        certificates: dict[str, Certificate] = {}
        for use in ("signing", "encryption"):
            try:
                certificates[use] = Certificate.from_pem(_text(said, f"{use}_certificate", 16 << 10))
            except Sm2Error as error:
                raise KeyProblem(f"the KMS's {use}_certificate does not load: {error}") from None
        if certificates["signing"].public_key.point == certificates["encryption"].public_key.point:
            raise KeyProblem("the KMS's signing and encryption key must be two keys")
        development = any(certificate.self_signed for certificate in certificates.values())
        info = ProviderInfo(
            name=f"kms/{texts['name']}",
            version=texts["version"],
            certificate=certificate_no if certificate_no != "none" else texts["certificate_no"],
            assurance="development" if development else "operator",
            signing_certificate_pem=certificates["signing"].pem,
            encryption_certificate_pem=certificates["encryption"].pem,
            former_signing_certificates=former,
        )
        return cls(client, info, opens=opens)

    def __repr__(self) -> str:
        return f"KmsProvider({self._client!r})"

    @property
    def can_open(self) -> bool:
        """Whether data keys may be asked for; the KMS itself must refuse where this says no, too."""
        return self._opens

    def info(self) -> ProviderInfo:
        """Say what the KMS said at ``open``."""
        return self._info

    def signer(self) -> KmsSigner:
        """Return a signer for worker threads."""
        return KmsSigner(self._info.signing_certificate_pem, self)

    async def random(self, size: int) -> bytes:
        """Return random bytes of the KMS, 1 to 1024. Raise KeyProblem."""
        return await self._in_thread(lambda: self.random_now(size))

    def random_now(self, size: int) -> bytes:
        """Do what ``random`` does, blocking."""
        if not 1 <= size <= MAX_RANDOM_BYTES:
            raise ValueError(f"{size} random bytes; 1 to {MAX_RANDOM_BYTES} can be asked for")
        drawn = _bytes(self._client.call("POST", "/v1/random", {"bytes": size}, again=True), "random")
        if len(drawn) != size:
            raise KeyProblem(f"the KMS gives {len(drawn)} random bytes for {size}")
        return drawn

    async def new_data_key(
        self, recording_id: str, suite: int = FIRST_SUITE
    ) -> tuple[DataKey, dict[str, JSON]]:
        """Let the KMS make a recording's data key and wrap it. Never asked twice. Raise KeyProblem."""
        return await self._in_thread(lambda: self._new_data_key(recording_id, suite))

    def _new_data_key(self, recording_id: str, suite: int) -> tuple[DataKey, dict[str, JSON]]:
        asked: dict[str, JSON] = {"recording": recording_id, "bytes": SUITES[suite].data_key_bytes}
        said = self._client.call("POST", "/v1/data-keys", asked, again=False)
        secret, ciphertext = _bytes(said, "key"), _bytes(said, "ciphertext")
        if said.get("recipient") != self._encryption.fingerprint:
            raise KeyProblem("the KMS wrapped a data key for another certificate than it showed: restart")
        try:
            key = DataKey(data_key_id(secret, suite), secret, suite)
        except ValueError as error:
            raise KeyProblem(f"the KMS made no usable data key: {error}") from None
        wrap = wrap_entry(self._encryption, ciphertext, self._info.name)
        if self._opens:
            # A wrap that does not open loses the recording: now is the time to know.
            sidecar: dict[str, JSON] = {
                "recording": recording_id,
                "key_id": key.key_id,
                "suite": suite,
                "wraps": [wrap],
            }
            self.unwrap_now(sidecar, recording_id=recording_id, purpose="check", actor="server")
        _log.info("the KMS made the data key of recording %s", recording_id)
        return key, wrap

    async def unwrap(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Let the KMS open a recording's data key; purpose and actor go into its audit. Raise KeyProblem."""
        return await self._in_thread(
            lambda: self.unwrap_now(sidecar, recording_id=recording_id, purpose=purpose, actor=actor)
        )

    def unwrap_now(
        self, sidecar: Mapping[str, JSON], *, recording_id: str, purpose: str, actor: str
    ) -> DataKey:
        """Do what ``unwrap`` does, blocking."""
        if not self._opens:
            raise SealedOnly(
                f"the data key of recording {recording_id} cannot be opened here: crypto.open is false"
            )
        ciphertext = wrap_of(sidecar, recording_id, self._encryption.fingerprint)
        asked: dict[str, JSON] = {
            "recording": recording_id,
            "key_id": str(sidecar.get("key_id")),
            "recipient": self._encryption.fingerprint,
            "ciphertext": base64.b64encode(ciphertext).decode(),
            "purpose": purpose,
            "actor": actor,
        }
        secret = _bytes(self._client.call("POST", "/v1/unwrap", asked, again=True), "key")
        key = data_key_of(sidecar, recording_id, secret)
        _log.info("the KMS opened the data key of recording %s for %s by %s", recording_id, purpose, actor)
        return key

    async def sign(self, message: bytes) -> bytes:
        """Return the DER signature of the signing key over ``message``. Raise KeyProblem."""
        return await self._in_thread(lambda: self.sign_now(message))

    def sign_now(self, message: bytes) -> bytes:
        """Do what ``sign`` does, blocking. Only the digest travels, as to a device (GM/T 0018)."""
        digest = base64.b64encode(self._signing.public_key.digest(message)).decode()
        signature = _bytes(self._client.call("POST", "/v1/sign", {"digest": digest}, again=True), "signature")
        if not self._signing.public_key.verify(message, signature):
            raise KeyProblem("the KMS returned a signature that its own certificate does not verify")
        return signature

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run a call in threads of its own: a slow KMS must not use up those that everything else needs."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _text(said: Mapping[str, JSON], name: str, longest: int = 100) -> str:
    value = said.get(name)
    if not isinstance(value, str) or not value or len(value) > longest:
        raise KeyProblem(f"the KMS's answer has no usable {name}")
    return value


def _bytes(said: Mapping[str, JSON], name: str) -> bytes:
    value = said.get(name)
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else _no(name)
    except (binascii.Error, ValueError):
        return _no(name)


def _no(name: str) -> bytes:
    raise KeyProblem(f"the KMS's answer has no usable {name}")
