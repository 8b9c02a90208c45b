"""One conformance suite over every key provider, and what is special about each."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from recorder.canonical import JSON
from recorder.gm.sm2 import PrivateKey, Sm2Error
from recorder.gm.x509 import Certificate
from recorder.keys import (
    CryptoProvider,
    EnvironmentProvider,
    FileProvider,
    KeyProblem,
    KeysUnavailable,
    KmsAddress,
    KmsProvider,
    ProviderConfig,
    SealedOnly,
    open_at,
    open_opener,
    open_opener_at,
    open_provider,
    read_sidecar,
    write_sidecar,
)
from recorder.keys.environment import take_keys
from recorder.keys.rotating import RotatingProvider
from recorder.sealed import DataKey
from tests.recorder.kms_process import Kms, reference_kms

RECORDING = "0193a000-0000-7000-8000-000000000001"
Open = Callable[..., CryptoProvider]


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kms]:
    with reference_kms(tmp_path_factory.mktemp("kms")) as running:
        yield running


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("crypto") / "keys"
    FileProvider.create(directory)
    return directory


def environment(keys: Path) -> dict[str, str]:
    names = {"key": "KEY", "cert": "CERTIFICATE"}
    return {
        f"SHUANGLU_CRYPTO_{use.upper()}_{name}": (keys / f"{use}.{kind}.pem").read_text()
        for use in ("signing", "encryption")
        for kind, name in names.items()
    }


@pytest.fixture(params=["file", "environment", "kms", "rotating"])
def opened(request: pytest.FixtureRequest, keys: Path, kms: Kms, tmp_path: Path) -> Open:
    """Give what opens a provider of each kind."""

    def of_files(**options: Any) -> CryptoProvider:
        return FileProvider.open(keys, **options)

    def of_environment(**options: Any) -> CryptoProvider:
        return EnvironmentProvider.open(take_keys(environment(keys)), **options)

    def of_kms(**options: Any) -> CryptoProvider:
        return KmsProvider.open(kms.address(), **options)

    def rotating(**options: Any) -> CryptoProvider:
        former = tmp_path / "former"
        if not former.exists():
            FileProvider.create(former)
        return RotatingProvider(FileProvider.open(keys, **options), FileProvider.open(former))

    kinds = {"file": of_files, "environment": of_environment, "kms": of_kms, "rotating": rotating}
    return kinds[request.param]


async def sidecar_of(provider: CryptoProvider, directory: Path) -> tuple[DataKey, dict[str, JSON]]:
    key, wrap = await provider.new_data_key(RECORDING)
    await asyncio.to_thread(write_sidecar, directory, RECORDING, key.key_id, [wrap], provider.signer())
    return key, read_sidecar(directory)


class TestEveryProvider:
    """What a recording needs of its keys, wherever they are."""

    async def test_a_data_key_comes_back_from_its_wrap(self, opened: Open, tmp_path: Path) -> None:
        provider = opened()
        key, sidecar = await sidecar_of(provider, tmp_path)
        again = await provider.unwrap(sidecar, recording_id=RECORDING, purpose="test", actor="me")
        assert again == key
        assert again.secret == key.secret
        other, _ = await provider.new_data_key(RECORDING)
        assert other.secret != key.secret

    async def test_it_opens_for_its_recording_only(self, opened: Open, tmp_path: Path) -> None:
        provider = opened()
        _, sidecar = await sidecar_of(provider, tmp_path)
        with pytest.raises(KeyProblem, match="not another's"):
            provider.unwrap_now(sidecar, recording_id="another", purpose="test", actor="me")
        swapped = {**sidecar, "key_id": "0" * 32}
        with pytest.raises(KeyProblem, match="another key"):
            provider.unwrap_now(swapped, recording_id=RECORDING, purpose="test", actor="me")

    @pytest.mark.parametrize("damage", ["!!!", "AAAA", ""])
    async def test_a_damaged_wrap_is_refused(self, opened: Open, tmp_path: Path, damage: str) -> None:
        provider = opened()
        _, sidecar = await sidecar_of(provider, tmp_path)
        assert isinstance(sidecar["wraps"], list)
        assert isinstance(sidecar["wraps"][0], dict)
        sidecar["wraps"][0]["ciphertext"] = damage
        with pytest.raises(KeyProblem):
            provider.unwrap_now(sidecar, recording_id=RECORDING, purpose="test", actor="me")

    async def test_signatures_fit_the_certificate(self, opened: Open) -> None:
        provider = opened()
        public = Certificate.from_pem(provider.info().signing_certificate_pem).public_key
        for message in (b"", b"m", bytes(1_000_000)):
            assert public.verify(message, await provider.sign(message))
            assert public.verify(message, await asyncio.to_thread(provider.signer().sign, message))
        assert not public.verify(b"n", provider.signer().sign(b"m"))

    async def test_random(self, opened: Open) -> None:
        provider = opened()
        drawn = {await provider.random(32) for _ in range(4)}
        assert {len(one) for one in drawn} == {32}
        assert len(drawn) == 4

    async def test_without_the_opening_key_it_still_seals(self, opened: Open, tmp_path: Path) -> None:
        sealing, opening = opened(opens=False), opened()
        assert (sealing.can_open, opening.can_open) == (False, True)
        key, sidecar = await sidecar_of(sealing, tmp_path)
        with pytest.raises(SealedOnly, match="cannot be opened here"):
            await sealing.unwrap(sidecar, recording_id=RECORDING, purpose="test", actor="me")
        assert opening.unwrap_now(sidecar, recording_id=RECORDING, purpose="test", actor="me") == key

    def test_it_says_what_it_is_and_shows_no_key(self, opened: Open, keys: Path) -> None:
        provider = opened(certificate_no="SXH2026001")
        info = provider.info()
        assert (info.certificate, info.assurance) == ("SXH2026001", "development")
        assert info.name
        assert info.version
        assert opened().info().certificate == "none"
        assert "PRIVATE" not in repr(provider) + repr(info)

    async def test_no_key_is_logged(
        self, opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        provider = opened()
        key, sidecar = await sidecar_of(provider, tmp_path)
        await provider.unwrap(sidecar, recording_id=RECORDING, purpose="test", actor="me")
        assert RECORDING in caplog.text
        for shown in (key.secret.hex(), base64.b64encode(key.secret).decode(), repr(key.secret)):
            assert shown not in caplog.text


class TestEnvironment:
    def test_keys_are_taken_out_of_the_environment(self, keys: Path) -> None:
        environ = {**environment(keys), "PATH": "/bin"}
        pem = take_keys(environ)
        assert environ == {"PATH": "/bin"}
        assert "PRIVATE" not in repr(pem)
        assert pem.for_sealing().encryption_key == ""
        with pytest.raises(KeyProblem, match=r"SHUANGLU_CRYPTO_SIGNING_KEY, .*is not in the environment"):
            take_keys(environ)

    def test_what_does_not_load_is_named(self, keys: Path) -> None:
        for name in environment(keys):
            pem = take_keys({**environment(keys), name: "rubbish"})
            with pytest.raises(KeyProblem, match=name):
                EnvironmentProvider.open(pem)
        swapped = environment(keys)
        swapped["SHUANGLU_CRYPTO_SIGNING_KEY"] = swapped["SHUANGLU_CRYPTO_ENCRYPTION_KEY"]
        with pytest.raises(KeyProblem, match="is not the certificate of the signing key"):
            EnvironmentProvider.open(take_keys(swapped))
        without = environment(keys)
        del without["SHUANGLU_CRYPTO_ENCRYPTION_KEY"]
        with pytest.raises(KeyProblem, match="SHUANGLU_CRYPTO_ENCRYPTION_KEY"):
            EnvironmentProvider.open(take_keys(dict(without)))
        assert not EnvironmentProvider.open(take_keys(without), opens=False).can_open


class TestConfig:
    async def test_a_process_gets_the_place_and_not_the_key(self, keys: Path, tmp_path: Path) -> None:
        config = ProviderConfig(directory=keys, passphrase="canary-passphrase")
        assert "canary" not in repr(config)
        assert not config.for_sealing().opens
        pem = take_keys(environment(keys))
        carried = ProviderConfig(provider="environment", pem=pem).for_sealing().model_dump_json()
        assert pem.encryption_key not in carried
        assert pem.encryption_key.splitlines()[1] not in carried
        provider = open_provider(ProviderConfig.model_validate_json(carried))
        key, sidecar = await sidecar_of(provider, tmp_path)
        opener = open_opener(ProviderConfig(directory=keys))
        assert opener.unwrap_now(sidecar, recording_id=RECORDING, purpose="x", actor="y") == key

    async def test_what_opens_needs_no_signing_key(self, keys: Path, tmp_path: Path) -> None:
        alone = tmp_path / "opening"
        alone.mkdir()
        for kind in ("key", "cert"):
            (alone / f"encryption.{kind}.pem").write_bytes((keys / f"encryption.{kind}.pem").read_bytes())
        (alone / "encryption.key.pem").chmod(0o600)
        key, sidecar = await sidecar_of(FileProvider.open(keys, opens=False), tmp_path)
        opener = open_opener_at(alone)
        assert opener.unwrap_now(sidecar, recording_id=RECORDING, purpose="x", actor="y") == key
        with pytest.raises(KeyProblem, match=r"signing\.key\.pem is missing"):
            open_at(alone)
        (alone / "encryption.key.pem").chmod(0o640)
        with pytest.raises(KeyProblem, match="open to others"):
            open_opener_at(alone)

    def test_a_command_can_name_a_kms_by_a_file(self, kms: Kms, tmp_path: Path) -> None:
        path = tmp_path / "kms.json"
        path.write_text(ProviderConfig(provider="kms", kms=kms.address()).model_dump_json())
        path.chmod(0o600)
        assert open_at(path).info().name == "kms/reference"
        assert not open_at(path, opens=False).can_open
        path.chmod(0o644)
        with pytest.raises(KeyProblem, match="open to others"):
            open_at(path)
        path.write_text('{"provider": "kms", "pasword": "canary"}')
        path.chmod(0o600)
        with pytest.raises(KeyProblem, match="pasword") as caught:
            open_at(path)
        assert "canary" not in str(caught.value)


class TestKms:
    async def test_its_audit_names_who_and_why(self, kms: Kms, tmp_path: Path) -> None:
        provider = KmsProvider.open(kms.address())
        key, sidecar = await sidecar_of(provider, tmp_path)
        await provider.unwrap(sidecar, recording_id=RECORDING, purpose="复核", actor="key:1")
        line = kms.audit()[-1]
        wanted = {"operation": "unwrap", "recording": RECORDING, "purpose": "复核", "actor": "key:1"}
        assert {**line, **wanted, "who": "server", "outcome": "done"} == line
        text = (kms.directory / "audit.jsonl").read_text()
        token = (kms.directory / "server.token").read_text()
        for secret in (key.secret.hex(), base64.b64encode(key.secret).decode(), token):
            assert secret not in text

    async def test_a_token_may_do_what_it_is_for(self, kms: Kms, tmp_path: Path) -> None:
        # Even a server that believes it may open is refused by the KMS itself.
        sealing = KmsProvider.open(kms.address("sealing"), opens=False)
        key, sidecar = await sidecar_of(sealing, tmp_path)
        overreaching = KmsProvider.open(kms.address("sealing"))
        with pytest.raises(KeyProblem, match="403 forbidden"):
            overreaching.unwrap_now(sidecar, recording_id=RECORDING, purpose="x", actor="y")
        opener = open_opener(ProviderConfig(provider="kms", kms=kms.address("opening")))
        assert opener.unwrap_now(sidecar, recording_id=RECORDING, purpose="x", actor="y") == key
        with pytest.raises(KeyProblem, match="403 forbidden"):
            KmsProvider.open(kms.address("opening")).signer().sign(b"m")

    def test_tokens(self, kms: Kms, tmp_path: Path) -> None:
        token = tmp_path / "token"
        address = KmsAddress(url=kms.url, token_file=token)
        with pytest.raises(KeyProblem, match="cannot be read"):
            KmsProvider.open(address)
        for content, message in (("wrong", "401 unauthorized"), ("two words", "one word"), ("", "one word")):
            token.write_text(content)
            token.chmod(0o600)
            with pytest.raises(KeyProblem, match=message):
                KmsProvider.open(address)
        token.write_bytes((kms.directory / "server.token").read_bytes())
        KmsProvider.open(address)
        token.chmod(0o644)
        with pytest.raises(KeyProblem, match="open to others"):
            KmsProvider.open(address)

    async def test_what_it_may_do_wrong(self, tmp_path: Path) -> None:
        with reference_kms(tmp_path / "kms") as kms:
            provider = KmsProvider.open(kms.address(timeout_s=0.5))
            await sidecar_of(provider, tmp_path)
            for fault, error, message in (
                ({"wrong_signature": True}, KeyProblem, "does not verify"),
                ({"garbage": True}, KeyProblem, "more than 65536 bytes"),
                ({"down": True}, KeysUnavailable, "503 unavailable: down on purpose"),
                ({"delay_s": 1.5}, KeysUnavailable, "does not answer"),
            ):
                kms.fail(**fault)
                with pytest.raises(error, match=message) as caught:
                    await provider.sign(b"m")
                assert type(caught.value) is error
            kms.fail(wrong_wrap=True)
            with pytest.raises(KeyProblem, match="another key than it names"):
                await provider.new_data_key(RECORDING)
            kms.fail()
            await provider.sign(b"m")
            kms.stop()
            with pytest.raises(KeysUnavailable, match="does not answer"):
                await provider.random(16)
            kms.start()
            assert len(await provider.random(16)) == 16

    async def test_a_new_key_is_asked_for_once_and_the_rest_again(self, tmp_path: Path) -> None:
        with reference_kms(tmp_path / "kms") as kms:
            provider = KmsProvider.open(kms.address())
            kms.fail(down=True)
            before = len(kms.audit())
            with pytest.raises(KeysUnavailable):
                await provider.new_data_key(RECORDING)
            assert len(kms.audit()) - before == 1
            with pytest.raises(KeysUnavailable):
                await provider.sign(b"m")
            assert len(kms.audit()) - before == 3

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"url": "http://kms.example.com"}, "plain http is for this machine only"),
            ({"url": "ftp://127.0.0.1"}, "https://HOST"),
            ({"url": "https://"}, "https://HOST"),
            ({"url": "https://user:word@kms"}, "no credentials"),
            ({"url": "https://kms:notaport"}, "url"),
            ({"url": "https://kms", "token_file": None}, "give token_file"),
            ({"url": "https://kms", "client_cert": "c"}, "belong together"),
            ({"url": "http://127.0.0.1", "client_cert": "c", "client_key": "k"}, "needs https"),
            ({"url": "https://kms", "timeout_s": 0}, "timeout_s"),
            ({"url": "https://kms", "timeout_s": 31}, "timeout_s"),
        ],
    )
    def test_addresses_that_cannot_be_right(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            KmsAddress.model_validate({"token_file": "t", **given})

    def test_tls_and_client_certificates(self, tmp_path: Path) -> None:
        for name in ("server", "client"):
            extension = ("-addext", "subjectAltName=IP:127.0.0.1")
            subprocess.run(
                [
                    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
                    *("-nodes", "-days", "2", "-subj", f"/CN={name}", *extension),
                    *("-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.pem")),
                ],
                check=True,
                capture_output=True,
            )
        options = ("--cert", str(tmp_path / "server.pem"), "--key", str(tmp_path / "server.key"))
        with reference_kms(tmp_path / "kms", *options, "--client-ca", str(tmp_path / "client.pem")) as kms:
            shown = {"client_cert": str(tmp_path / "client.pem"), "client_key": str(tmp_path / "client.key")}
            good = KmsAddress.model_validate({"url": kms.url, "ca": str(tmp_path / "server.pem"), **shown})
            provider = KmsProvider.open(good)
            assert provider.info().name == "kms/reference"
            assert provider.signer().sign(b"m")
            with pytest.raises(KeysUnavailable, match="certificate"):
                KmsProvider.open(good.model_copy(update={"ca": tmp_path / "client.pem"}))
            with pytest.raises(KeysUnavailable):  # shows no certificate
                KmsProvider.open(kms.address(ca=tmp_path / "server.pem"))
            with pytest.raises(KeyProblem, match="does not load"):
                KmsProvider.open(good.model_copy(update={"ca": tmp_path / "nothing.pem"}))

    def test_the_reference_listens_on_loopback_only(self, tmp_path: Path) -> None:
        run = subprocess.run(
            [sys.executable, "-m", "recorder.keys.reference_kms", str(tmp_path), "--host", "0.0.0.0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 2
        assert "loopback only" in run.stderr
        assert not os.listdir(tmp_path)


def test_a_digest_signed_is_a_message_signed() -> None:
    key = PrivateKey.generate()
    for size in (0, 1, 63, 64, 65, 100_000):
        message = os.urandom(size)
        assert key.public.verify(message, key.sign_digest(key.public.digest(message)))
    assert not key.public.verify(b"other", key.sign_digest(key.public.digest(b"m")))
    for size in (0, 31, 33):
        with pytest.raises(Sm2Error, match="not 32"):
            key.sign_digest(bytes(size))
