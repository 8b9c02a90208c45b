"""Decode a recording by docs/container.md alone: with ``cryptography`` and OpenSSL, nothing of ours."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

FIXTURES = Path(__file__).parent / "fixtures"
RECORDING = FIXTURES / "v1" / "recording"
RECORDINGS = {1: RECORDING} | {
    suite: FIXTURES / f"v1-{name}" / "recording"
    for suite, name in ((2, "sm4-ctr-hmac-sm3"), (3, "aes-256-gcm"))
}
"""By suite; all of version 1, and opened for ever."""
SEALED = [
    pytest.param(suite, path, id=f"{suite}-{path.name[:16]}")
    for suite, directory in RECORDINGS.items()
    for path in sorted(directory.rglob("*.se*"))
]


def sm3(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SM3())
    digest.update(data)
    return digest.finalize()


def kdf(secret: bytes, size: int) -> bytes:
    blocks = [sm3(secret + struct.pack(">I", counter)) for counter in range(1, size // 32 + 2)]
    return b"".join(blocks)[:size]


def hmac_sm3(key: bytes, message: bytes) -> bytes:
    code = hmac.HMAC(key, hashes.SM3())
    code.update(message)
    return code.finalize()


def open_record(suite: int, keys: bytes, nonce: bytes, associated: bytes, body: bytes) -> bytes:
    """Follow section 2.4 for one suite."""
    sealed, tag = body[:-16], body[-16:]
    if suite == 2:
        signed = struct.pack(">Q", len(associated)) + associated + nonce + sealed
        assert hmac_sm3(keys[16:48], signed)[:16] == tag
        context = Cipher(algorithms.SM4(keys[:16]), modes.CTR(nonce + b"\0\0\0\2")).decryptor()
        return context.update(sealed) + context.finalize()
    algorithm = algorithms.SM4(keys) if suite == 1 else algorithms.AES(keys)
    gcm = Cipher(algorithm, modes.GCM(nonce, tag)).decryptor()
    gcm.authenticate_additional_data(associated)
    return gcm.update(sealed) + gcm.finalize()


CIPHER_KEY_BYTES = {1: 16, 2: 48, 3: 32}
DATA_KEY_BYTES = {1: 16, 2: 16, 3: 32}


@dataclass
class Decoded:
    """What section 2 of the page gives."""

    header: dict[str, object]
    chunks: list[bytes]
    public: list[tuple[int, bytes, bytes]]
    index: bytes
    end: bytes
    cipher_keys: bytes
    bodies: list[tuple[bytes, bytes, bytes]]
    """Nonce, associated data and body of every chunk."""
    opaque: list[bool]


def decode(data: bytes, data_key: bytes) -> Decoded:
    """Follow section 2, record by record."""
    assert data[:8] == bytes.fromhex("89534C530D0A1A0A")
    found = Decoded({}, [], [], b"", b"", b"", [], [])
    offset, number, before, header_digest = 8, 0, b"", b""
    while offset < len(data):
        kind, flags, stated, length = struct.unpack(">HHII", data[offset : offset + 12])
        body = data[offset + 12 : offset + 12 + length]
        trailer = data[offset + 12 + length : offset + 44 + length]
        assert stated == number
        assert trailer == sm3(data[: offset + 12 + length])
        if kind == 1:
            found.header = json.loads(body)
            header_digest = sm3(data[: offset + 44 + length])
            suite = found.header["suite"]
            assert isinstance(suite, int)
            assert len(data_key) == DATA_KEY_BYTES[suite]
            label = f"shuanglu sealed file v1 suite {suite}".encode()
            size = CIPHER_KEY_BYTES[suite]
            derived = kdf(data_key + bytes.fromhex(str(found.header["file_id"])) + label, size + 32)
            found.cipher_keys, commitment_key = derived[:size], derived[size:]
        elif kind == 2:
            assert hmac_sm3(commitment_key, header_digest) == body
        elif kind in (3, 4):
            nonce = number.to_bytes(11, "big") + (b"\x01" if kind == 4 else b"\x00")
            assert flags in ((3,) if kind == 4 else (1, 5))
            associated = header_digest + before + data[offset : offset + 12]
            assert isinstance(suite, int)
            plain = open_record(suite, found.cipher_keys, nonce, associated, body)
            if kind == 3:
                found.chunks.append(plain)
                found.bodies.append((nonce, associated, body))
                found.opaque.append(bool(flags & 4))
            else:
                found.index = plain
        elif kind == 5:
            found.end = body
            assert offset + 44 + length == len(data)
        else:
            assert not flags & 1
            found.public.append((kind, body, sm3(data[:offset])))
        offset, number, before = offset + 44 + length, number + 1, trailer
    return found


def fixture_key(suite: int = 1) -> bytes:
    return bytes.fromhex((RECORDINGS[suite].parent / "data-key.hex").read_text().strip())


def manifest() -> dict[str, object]:
    value: dict[str, object] = json.loads((RECORDING / "manifest.json").read_bytes())
    return value


@pytest.mark.parametrize(("suite", "path"), SEALED)
def test_every_sealed_file_decodes_by_the_page(suite: int, path: Path) -> None:
    data = path.read_bytes()
    found = decode(data, fixture_key(suite))
    assert found.header["suite"] == suite
    plain = b"".join(found.chunks)
    total, count, digest = struct.unpack(">QI32s", found.index[:44])
    assert (total, count) == (len(plain), len(found.chunks))
    assert digest == sm3(plain) or (digest == bytes(32) and path.suffix == ".seg")
    at = [entry for entry in struct.iter_unpack(">QI", found.index[44:])]
    assert [size for _, size in at] == [len(chunk) for chunk in found.chunks]
    index_offset, plain_bytes, chunks, plain_digest = struct.unpack(">QQI32s", found.end)
    assert (plain_bytes, chunks, plain_digest) == (total, count, digest)
    assert struct.unpack(">H", data[index_offset : index_offset + 2]) == (4,)
    printed = subprocess.run(
        ["openssl", "dgst", "-sm3", str(path)], capture_output=True, text=True, check=True
    )
    digest_text = printed.stdout.strip().rpartition("= ")[2]
    pages = b"".join(page.read_bytes() for page in RECORDINGS[suite].rglob("*.json"))
    assert f'"sm3":"sm3:{digest_text}"'.encode() in pages
    named = f"sm3:{digest.hex()}" if digest != bytes(32) else ""
    assert f'"plain_sm3":"{named}"'.encode() in pages


@pytest.mark.parametrize("suite", list(RECORDINGS))
def test_an_opaque_chunk_decodes_like_any_other(suite: int) -> None:
    found = decode((RECORDINGS[suite].parent / "opaque.sealed").read_bytes(), fixture_key(suite))
    assert found.chunks == [b"end-to-end encrypted by the parties", b"ours"]
    assert found.opaque == [True, False]


@pytest.mark.parametrize("suite", list(RECORDINGS))
def test_the_key_id_is_of_key_and_suite(suite: int) -> None:
    """Section 6."""
    label = b"shuanglu data key id v1" + (b"" if suite == 1 else b" suite %d" % suite)
    sidecar = json.loads((RECORDINGS[suite] / "keys.json").read_bytes())
    assert sidecar["key_id"] == kdf(label + fixture_key(suite), 16).hex()
    assert sidecar.get("suite", 1) == suite


@pytest.mark.parametrize("suite", list(RECORDINGS))
def test_openssl_opens_a_chunk_and_the_wrap(suite: int, tmp_path: Path) -> None:
    """Section 2.5, command by command."""
    recording = RECORDINGS[suite]
    wrap = json.loads((recording / "keys.json").read_bytes())["wraps"][0]["ciphertext"]
    (tmp_path / "wrap.der").write_bytes(base64.b64decode(wrap))
    key_file = str(recording.parent / "encryption.key.pem")

    def openssl(*arguments: str) -> bytes:
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, check=True).stdout

    data_key = openssl("pkeyutl", "-decrypt", "-inkey", key_file, "-in", "wrap.der")
    assert data_key == fixture_key(suite)
    data = next((recording / "files").iterdir()).read_bytes()
    found = decode(data, data_key)
    label = f"shuanglu sealed file v1 suite {suite}".encode()
    secret = data_key.hex() + str(found.header["file_id"]) + label.hex()
    size = {1: "48", 2: "80", 3: "64"}[suite]
    derived = openssl(
        "kdf", "-keylen", size, "-kdfopt", "digest:SM3", "-kdfopt", f"hexkey:{secret}", "X963KDF"
    )
    keys = bytes.fromhex(derived.decode().replace(":", "").strip())
    cipher, key = ("-aes-256-ctr", keys[:32]) if suite == 3 else ("-sm4-ctr", keys[:16])
    nonce, associated, body = found.bodies[0]
    (tmp_path / "body").write_bytes(body[:-16])
    counter = nonce.hex() + "00000002"
    plain = openssl("enc", "-d", cipher, "-K", key.hex(), "-iv", counter, "-in", "body")
    assert plain == found.chunks[0]
    if suite == 2:
        (tmp_path / "signed").write_bytes(bytes.fromhex("000000000000004c") + associated + nonce + body[:-16])
        mac = ("-mac", "hmac", "-macopt", f"hexkey:{keys[16:48].hex()}")
        assert openssl("dgst", "-sm3", *mac, "-binary", "signed")[:16] == body[-16:]


@pytest.mark.parametrize("name", ["manifest.json", "keys.json", "statements/000001.json"])
def test_openssl_accepts_every_signed_page(name: str, tmp_path: Path) -> None:
    """Section 5, with Python's json and OpenSSL."""
    raw = (RECORDING / name).read_bytes()
    page = json.loads(raw)
    signature = page.pop("signature")
    body = json.dumps(page, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    whole = json.dumps(
        {**page, "signature": signature}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    assert whole == raw
    (tmp_path / "body").write_bytes(body)
    (tmp_path / "sig").write_bytes(base64.b64decode(signature.removeprefix("sm2-sm3:")))
    (tmp_path / "cert").write_text(page["certificate"])
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-rawin",
        "-digest",
        "sm3",
        "-pkeyopt",
        "distid:1234567812345678",
    ]
    command += ["-certin", "-inkey", "cert", "-in", "body", "-sigfile", "sig"]
    assert b"Success" in subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout


def test_checkpoints_prove_the_bytes_before_them(tmp_path: Path) -> None:
    """Section 4."""
    certificate = str(manifest()["certificate"])
    (tmp_path / "cert").write_text(certificate)
    proven = 0
    for path in sorted((RECORDING / "segments").iterdir()):
        for kind, body, head in decode(path.read_bytes(), fixture_key()).public:
            if kind != 16:
                continue
            version, index, leaves, at, utc, count, root = struct.unpack(">BIIQQB32s", body[:58])
            assert version == 1
            node, last = sm3(b"\x00" + head), leaves - 1
            place = index
            siblings = [body[58 + 32 * i : 90 + 32 * i] for i in range(count)]
            while last:
                if place ^ 1 <= last:
                    sibling = siblings.pop(0)
                    node = sm3(b"\x01" + (sibling + node if place & 1 else node + sibling))
                place, last = place >> 1, last >> 1
            assert node == root
            (size,) = struct.unpack(">H", body[58 + 32 * count : 60 + 32 * count])
            (tmp_path / "sig").write_bytes(body[60 + 32 * count : 60 + 32 * count + size])
            message = b"shuanglu journal checkpoint v1\n" + struct.pack(">IQQ32s", leaves, at, utc, root)
            (tmp_path / "m").write_bytes(message)
            command = ["openssl", "pkeyutl", "-verify", "-rawin", "-digest", "sm3"]
            command += ["-pkeyopt", "distid:1234567812345678", "-certin", "-inkey", "cert"]
            command += ["-in", "m", "-sigfile", "sig"]
            assert b"Success" in subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
            proven += 1
    assert proven >= 2
