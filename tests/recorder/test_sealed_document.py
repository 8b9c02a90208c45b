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


def sm3(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SM3())
    digest.update(data)
    return digest.finalize()


def kdf(secret: bytes, size: int) -> bytes:
    blocks = [sm3(secret + struct.pack(">I", counter)) for counter in range(1, size // 32 + 2)]
    return b"".join(blocks)[:size]


@dataclass
class Decoded:
    """What section 2 of the page gives."""

    header: dict[str, object]
    chunks: list[bytes]
    public: list[tuple[int, bytes, bytes]]
    index: bytes
    end: bytes
    file_key: bytes
    bodies: list[tuple[bytes, bytes]]
    """Nonce and body of every chunk."""


def decode(data: bytes, data_key: bytes) -> Decoded:
    """Follow section 2, record by record."""
    assert data[:8] == bytes.fromhex("89534C530D0A1A0A")
    found = Decoded({}, [], [], b"", b"", b"", [])
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
            label = b"shuanglu sealed file v1 suite 1"
            derived = kdf(data_key + bytes.fromhex(str(found.header["file_id"])) + label, 48)
            found.file_key, commitment_key = derived[:16], derived[16:]
        elif kind == 2:
            code = hmac.HMAC(commitment_key, hashes.SM3())
            code.update(header_digest)
            assert code.finalize() == body
        elif kind in (3, 4):
            nonce = number.to_bytes(11, "big") + (b"\x01" if kind == 4 else b"\x00")
            assert flags == (3 if kind == 4 else 1)
            context = Cipher(algorithms.SM4(found.file_key), modes.GCM(nonce, body[-16:])).decryptor()
            context.authenticate_additional_data(header_digest + before + data[offset : offset + 12])
            plain = context.update(body[:-16]) + context.finalize()
            if kind == 3:
                found.chunks.append(plain)
                found.bodies.append((nonce, body))
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


def fixture_key() -> bytes:
    return bytes.fromhex((FIXTURES / "v1" / "data-key.hex").read_text().strip())


def manifest() -> dict[str, object]:
    value: dict[str, object] = json.loads((RECORDING / "manifest.json").read_bytes())
    return value


@pytest.mark.parametrize("path", sorted(RECORDING.rglob("*.se*")), ids=lambda path: path.name[:16])
def test_every_sealed_file_decodes_by_the_page(path: Path) -> None:
    data = path.read_bytes()
    found = decode(data, fixture_key())
    plain = b"".join(found.chunks)
    total, count, digest = struct.unpack(">QI32s", found.index[:44])
    assert (total, count, digest) == (len(plain), len(found.chunks), sm3(plain))
    at = [entry for entry in struct.iter_unpack(">QI", found.index[44:])]
    assert [size for _, size in at] == [len(chunk) for chunk in found.chunks]
    index_offset, plain_bytes, chunks, plain_digest = struct.unpack(">QQI32s", found.end)
    assert (plain_bytes, chunks, plain_digest) == (total, count, digest)
    assert struct.unpack(">H", data[index_offset : index_offset + 2]) == (4,)
    printed = subprocess.run(
        ["openssl", "dgst", "-sm3", str(path)], capture_output=True, text=True, check=True
    )
    digest_text = printed.stdout.strip().rpartition("= ")[2]
    pages = b"".join(page.read_bytes() for page in RECORDING.rglob("*.json"))
    assert f'"sm3":"sm3:{digest_text}"'.encode() in pages
    assert f'"plain_sm3":"sm3:{digest.hex()}"'.encode() in pages


def test_openssl_opens_a_chunk_and_the_wrap(tmp_path: Path) -> None:
    """Section 2.5, command by command."""
    wrap = json.loads((RECORDING / "keys.json").read_bytes())["wraps"][0]["ciphertext"]
    (tmp_path / "wrap.der").write_bytes(base64.b64decode(wrap))
    key_file = str(FIXTURES / "v1" / "encryption.key.pem")

    def openssl(*arguments: str) -> bytes:
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, check=True).stdout

    data_key = openssl("pkeyutl", "-decrypt", "-inkey", key_file, "-in", "wrap.der")
    assert data_key == fixture_key()
    data = next((RECORDING / "files").iterdir()).read_bytes()
    found = decode(data, data_key)
    secret = data_key.hex() + str(found.header["file_id"]) + b"shuanglu sealed file v1 suite 1".hex()
    derived = openssl(
        "kdf", "-keylen", "48", "-kdfopt", "digest:SM3", "-kdfopt", f"hexkey:{secret}", "X963KDF"
    )
    file_key = bytes.fromhex(derived.decode().replace(":", "").strip())[:16]
    nonce, body = found.bodies[0]
    (tmp_path / "body").write_bytes(body[:-16])
    counter = nonce.hex() + "00000002"
    plain = openssl("enc", "-d", "-sm4-ctr", "-K", file_key.hex(), "-iv", counter, "-in", "body")
    assert plain == found.chunks[0]


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
