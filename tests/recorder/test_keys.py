"""Keys: making, loading, permissions, wrapping, the sidecar."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from recorder.gm.x509 import Certificate
from recorder.keys import (
    SIDECAR,
    CryptoProvider,
    FileProvider,
    KeyProblem,
    data_key_id,
    open_sidecar,
    read_sidecar,
    write_sidecar,
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("crypto") / "keys"
    FileProvider.create(directory)
    return directory


@pytest.fixture
def copied(keys: Path, tmp_path: Path) -> Path:
    shutil.copytree(keys, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_first_start_makes_two_key_pairs_that_only_their_owner_reads(keys: Path) -> None:
    assert sorted(path.name for path in keys.iterdir()) == [
        "encryption.cert.pem",
        "encryption.key.pem",
        "signing.cert.pem",
        "signing.key.pem",
    ]
    assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}
    assert keys.stat().st_mode & 0o777 == 0o700
    provider: CryptoProvider = FileProvider.open(keys)
    info = provider.info()
    assert (info.name, info.certificate, info.assurance) == ("file", "none", "development")
    signing = Certificate.from_pem(info.signing_certificate_pem)
    encryption = Certificate.from_pem(info.encryption_certificate_pem)
    assert signing.public_key.point != encryption.public_key.point
    assert signing.self_signed
    assert encryption.self_signed
    assert signing.public_key.verify(b"m", provider.signer().sign(b"m"))
    with pytest.raises(KeyProblem, match="never overwritten"):
        FileProvider.create(keys)


def test_a_passphrase_protects_the_keys(tmp_path: Path) -> None:
    FileProvider.create(tmp_path, "口令 with spaces")
    assert b"ENCRYPTED" in (tmp_path / "signing.key.pem").read_bytes()
    FileProvider.open(tmp_path, "口令 with spaces")
    with pytest.raises(KeyProblem, match="passphrase"):
        FileProvider.open(tmp_path)
    with pytest.raises(KeyProblem, match="signing"):
        FileProvider.open(tmp_path, "other")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_keys_others_can_read_are_refused(copied: Path, mode: int) -> None:
    (copied / "encryption.key.pem").chmod(mode)
    with pytest.raises(KeyProblem, match="open to others"):
        FileProvider.open(copied)


def test_what_does_not_fit_together_is_refused(copied: Path, keys: Path) -> None:
    (copied / "signing.cert.pem").write_bytes((keys / "encryption.cert.pem").read_bytes())
    with pytest.raises(KeyProblem, match="not the certificate"):
        FileProvider.open(copied)
    for kind in ("key", "cert"):
        shutil.copy(keys / f"encryption.{kind}.pem", copied / f"signing.{kind}.pem")
    with pytest.raises(KeyProblem, match="two keys"):
        FileProvider.open(copied)
    (copied / "signing.key.pem").unlink()
    with pytest.raises(KeyProblem, match="is missing"):
        FileProvider.open(copied)
    (copied / "encryption.cert.pem").write_text("rubbish")


async def test_a_data_key_is_wrapped_so_that_openssl_opens_it(keys: Path, tmp_path: Path) -> None:
    provider = FileProvider.open(keys)
    data_key, wrap = await provider.new_data_key("r1")
    (tmp_path / "wrap").write_bytes(base64.b64decode(str(wrap["ciphertext"])))
    command = ["openssl", "pkeyutl", "-decrypt", "-inkey", str(keys / "encryption.key.pem"), "-in", "wrap"]
    opened = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert opened == data_key.secret
    assert data_key.key_id == data_key_id(opened)
    assert data_key.secret.hex() not in repr(data_key) + repr(provider)


async def test_a_sidecar_opens_for_its_recording_and_key_only(keys: Path, tmp_path: Path) -> None:
    provider = FileProvider.open(keys)
    data_key, wrap = await provider.new_data_key("r1")
    write_sidecar(tmp_path, "r1", data_key.key_id, [wrap], provider.signer())
    assert (tmp_path / SIDECAR).stat().st_mode & 0o777 == 0o600
    sidecar = read_sidecar(tmp_path)
    assert await provider.unwrap(sidecar, recording_id="r1", purpose="test", actor="me") == data_key
    with pytest.raises(KeyProblem, match="not r2's"):
        await provider.unwrap(sidecar, recording_id="r2", purpose="test", actor="me")
    other = FileProvider.create(tmp_path / "other")
    with pytest.raises(KeyProblem, match="not wrapped for"):
        await other.unwrap(sidecar, recording_id="r1", purpose="test", actor="me")
    _, swapped = await provider.new_data_key("r2")
    with pytest.raises(KeyProblem, match="another key than it names"):
        await provider.unwrap({**sidecar, "wraps": [swapped]}, recording_id="r1", purpose="test", actor="me")
    for ciphertext in ("", "!", base64.b64encode(b"rubbish").decode()):
        broken = {**sidecar, "wraps": [{**wrap, "ciphertext": ciphertext}]}
        with pytest.raises(KeyProblem):
            await provider.unwrap(broken, recording_id="r1", purpose="test", actor="me")


@pytest.mark.parametrize("suite", [1, 2, 3])
async def test_a_data_key_carries_its_suite(suite: int, keys: Path, tmp_path: Path) -> None:
    provider = FileProvider.open(keys)
    data_key, wrap = await provider.new_data_key("r1", suite)
    assert (data_key.suite, len(data_key.secret)) == (suite, 32 if suite == 3 else 16)
    write_sidecar(tmp_path, "r1", data_key.key_id, [wrap], provider.signer(), suite=suite)
    sidecar = read_sidecar(tmp_path)
    assert sidecar["suite"] == suite
    assert await provider.unwrap(sidecar, recording_id="r1", purpose="test", actor="me") == data_key
    # The sidecar's signature covers its suite, and whoever signs it with another (a rewrap that forgot it)
    # is found out by the key's id.
    data = (tmp_path / SIDECAR).read_bytes()
    (tmp_path / SIDECAR).write_bytes(data.replace(b'"suite":%d' % suite, b'"suite":%d' % (suite % 3 + 1)))
    with pytest.raises(KeyProblem, match="signature does not fit"):
        read_sidecar(tmp_path)
    for other in ({"suite": suite % 3 + 1}, {"suite": None}, {"suite": "1"}, {"suite": True}, {"suite": 4}):
        with pytest.raises(KeyProblem, match="suite"):
            await provider.unwrap({**sidecar, **other}, recording_id="r1", purpose="test", actor="me")
    without = {name: value for name, value in sidecar.items() if name != "suite"}
    if suite == 1:
        assert await provider.unwrap(without, recording_id="r1", purpose="test", actor="me") == data_key
    else:
        with pytest.raises(KeyProblem, match="another suite"):
            await provider.unwrap(without, recording_id="r1", purpose="test", actor="me")


async def test_rotating_replaces_the_sidecar_in_one_step(keys: Path, tmp_path: Path) -> None:
    provider = FileProvider.open(keys)
    data_key, wrap = await provider.new_data_key("r1")
    write_sidecar(tmp_path, "r1", data_key.key_id, [wrap], provider.signer())
    new = FileProvider.create(tmp_path / "new")
    again = {**wrap, "recipient": Certificate.from_pem(new.info().encryption_certificate_pem).fingerprint}
    key = Certificate.from_pem(new.info().encryption_certificate_pem).public_key
    again["ciphertext"] = base64.b64encode(key.encrypt(data_key.secret)).decode()
    write_sidecar(tmp_path, "r1", data_key.key_id, [again], provider.signer(), revision=2)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [SIDECAR]
    opened = await new.unwrap(read_sidecar(tmp_path), recording_id="r1", purpose="test", actor="me")
    assert opened == data_key


async def test_a_changed_sidecar_is_refused(keys: Path, tmp_path: Path) -> None:
    provider = FileProvider.open(keys)
    data_key, wrap = await provider.new_data_key("r1")
    with pytest.raises(KeyProblem, match="missing"):
        read_sidecar(tmp_path)
    write_sidecar(tmp_path, "r1", data_key.key_id, [wrap], provider.signer())
    data = (tmp_path / SIDECAR).read_bytes()
    assert open_sidecar(tmp_path).certificate.pem == provider.info().signing_certificate_pem
    for position in range(0, len(data), 37):
        changed = bytearray(data)
        changed[position] ^= 1
        (tmp_path / SIDECAR).write_bytes(changed)
        with pytest.raises(KeyProblem):
            read_sidecar(tmp_path)


async def test_random_and_signing_of_the_provider(keys: Path) -> None:
    provider = FileProvider.open(keys)
    assert len(await provider.random(32)) == 32
    assert await provider.random(32) != await provider.random(32)
    certificate = Certificate.from_pem(provider.info().signing_certificate_pem)
    assert certificate.public_key.verify(b"message", await provider.sign(b"message"))


def test_the_keys_belong_to_the_running_user(copied: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(copied / "signing.key.pem", 65534, 65534)
    with pytest.raises(KeyProblem, match="belongs to user 65534"):
        FileProvider.open(copied)
