"""The national algorithms against the standards' own examples, and each implementation against the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gmssl.sm2
import gmssl.sm4
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from gmssl import func
from gmssl import sm3 as gmssl_sm3
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.gm import aes, libgcrypt, selftest, sm2, sm3, sm4
from recorder.gm.aead import Aead, TagError
from recorder.gm.kdf import kdf_sm3
from recorder.gm.sm2 import PrivateKey, PublicKey, Sm2Error
from recorder.gm.x509 import Certificate, self_signed

KEY = bytes.fromhex("0123456789abcdeffedcba9876543210")
# GM/T 0004-2012 annex A.1 and A.2.
SM3_VECTORS = [
    (b"abc", "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"),
    (b"abcd" * 16, "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732"),
]
# GB/T 32918.5-2017 annex A.2: d, signature (r, s) over "message digest" with the default signer id.
SM2_D = 0x3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8
SM2_POINT = bytes.fromhex(
    "0409f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020"
    "ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13"
)


@pytest.mark.parametrize("name", list(sm3.implementations()))
@pytest.mark.parametrize(("message", "digest"), SM3_VECTORS)
def test_sm3_gives_the_standards_digests(name: str, message: bytes, digest: str) -> None:
    running = sm3.implementations()[name]()
    for byte in message:
        running.update(bytes((byte,)))
    assert running.digest().hex() == digest
    assert running.digest().hex() == digest  # reading does not end it
    copied = running.copy()
    copied.update(b"x")
    assert running.digest().hex() == digest != copied.digest().hex()


@given(st.binary(max_size=300))
@settings(max_examples=30, deadline=None)
def test_sm3_implementations_agree_with_each_other_and_with_gmssl(data: bytes) -> None:
    digests = set()
    for make in sm3.implementations().values():
        running = make()
        running.update(data)
        digests.add(running.digest().hex())
    assert digests == {gmssl_sm3.sm3_hash(list(data))}


def test_sm4_gives_the_standards_block() -> None:
    """GM/T 0002-2012 annex A.1, through CTR of GCM: the block cipher is not exposed by itself."""
    block = Cipher(algorithms.SM4(KEY), modes.ECB()).encryptor().update(KEY)
    assert block.hex() == "681edf34d206965e86b3e94f536e4246"
    # GCM's cipher text of zeros is the key stream: E(K, nonce ‖ 2), which gmssl computes independently.
    nonce = bytes(range(12))
    oracle = gmssl.sm4.CryptSM4()
    oracle.set_key(KEY, gmssl.sm4.SM4_ENCRYPT)
    stream = bytes(oracle.one_round(oracle.sk, list(nonce + b"\0\0\0\x02")))
    for make in sm4.implementations().values():
        out = bytearray(32)
        make(KEY).seal_into(memoryview(out), nonce, bytes(16), b"")
        assert bytes(out[:16]) == stream


@pytest.mark.parametrize("name", list(sm4.implementations()))
def test_sm4_gcm_refuses_any_change(name: str) -> None:
    aead = sm4.implementations()[name](KEY)
    out = bytearray(20 + 16)
    nonce = bytes(12)
    aead.seal_into(memoryview(out), nonce, b"x" * 20, b"aad")
    assert aead.open(nonce, out, b"aad") == b"x" * 20
    for position in range(len(out)):
        changed = bytearray(out)
        changed[position] ^= 1
        with pytest.raises(TagError):
            aead.open(nonce, bytes(changed), b"aad")
    for other_nonce, other_aad in ((b"\1" + bytes(11), b"aad"), (nonce, b"aae"), (nonce, b"")):
        with pytest.raises(TagError):
            aead.open(other_nonce, bytes(out), other_aad)


def test_sm4_a_million_times() -> None:
    """GM/T 0002-2012 annex A.2, by each library: CBC of zeros encrypts the block before, over and over."""
    zeros = bytes(16 * 1_000_000)
    context = Cipher(algorithms.SM4(KEY), modes.CBC(KEY)).encryptor()
    results = {context.update(zeros)[-16:].hex()}
    if libgcrypt.library is not None:
        handle = libgcrypt.ffi.new("gcry_cipher_hd_t *")
        cbc = 3
        libgcrypt.check(libgcrypt.library.gcry_cipher_open(handle, libgcrypt.GCRY_CIPHER_SM4, cbc, 0))
        libgcrypt.check(libgcrypt.library.gcry_cipher_setkey(handle[0], KEY, 16))
        libgcrypt.check(libgcrypt.library.gcry_cipher_setiv(handle[0], KEY, 16))
        out = libgcrypt.ffi.new("unsigned char[]", len(zeros))
        libgcrypt.check(libgcrypt.library.gcry_cipher_encrypt(handle[0], out, len(zeros), zeros, len(zeros)))
        libgcrypt.library.gcry_cipher_close(handle[0])
        results.add(bytes(out[len(zeros) - 16 : len(zeros)]).hex())
    assert results == {"595298c7c6fd271f0402f804c33d3f66"}


@pytest.mark.parametrize("name", list(sm4.ctr_implementations()))
@pytest.mark.parametrize(
    ("key", "sealed"),
    [  # draft-ribose-cfrg-sm4-10 appendix A.2.5, both examples; OpenSSL's evpciph_sm4.txt has them too
        (
            "0123456789abcdeffedcba9876543210",
            "ac3236cb970cc20791364c395a1342d1a3cbc1878c6f30cd074cce385cdd70c7"
            "f234bc0e24c11980fd1286310ce37b926e02fcd0faa0baf38b2933851d824514",
        ),
        (
            "fedcba98765432100123456789abcdef",
            "5dcccd25b95ab07417a08512ee160e2f8f661521cbbab44cc87138445bc29e5c"
            "0ae0297205d62704173b21239b887f6c8cb5b800917a2488284bde9e16ea2906",
        ),
    ],
)
def test_sm4_ctr_gives_the_published_texts(name: str, key: str, sealed: str) -> None:
    plain = bytes.fromhex("".join(digit * 16 for digit in "abcdefab"))
    ctr = sm4.ctr_implementations()[name](bytes.fromhex(key))
    out = bytearray(len(plain))
    ctr.crypt_into(memoryview(out), bytes(range(16)), plain)
    assert out.hex() == sealed
    ctr.crypt_into(memoryview(out), bytes(range(16)), bytes(out))
    assert out == plain


@pytest.mark.parametrize(
    ("key", "message", "mac"),
    [  # GM/T 0042-2015 annex D.3, as in the Linux kernel's crypto/testmgr.h
        (
            bytes(range(1, 33)),
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq" * 2,
            "ca05e144ed05d1857840d1f318a4a8669e559fc8391f414485bfdf7bb408963a",
        ),
        (
            bytes(range(1, 38)),
            b"\xcd" * 50,
            "220bf579ded555393f0159f66c99877822a3ecf610d1552154b41d44b94db3ae",
        ),
        (b"\x0b" * 32, b"Hi There", "c0ba18c68b90c88bc07de794bfc7d2c8d19ec31ed8773bc2b390c9604e0be11e"),
        (
            b"Jefe",
            b"what do ya want for nothing?",
            "2e87f1d16862e6d964b50a5200bf2b10b764faa9680a296a2405f24bec39f882",
        ),
    ],
)
def test_hmac_sm3_gives_the_standards_results(key: bytes, message: bytes, mac: str) -> None:
    assert sm3.hmac_sm3(key, message).hex() == mac
    keyed = sm3.HmacSm3(key)
    for at in range(len(message)):
        assert keyed.tag(message[:at], memoryview(message)[at:]).hex() == mac


def test_sm4_ctr_with_hmac_is_what_openssl_computes(tmp_path: Path) -> None:
    """Encrypt, then authenticate all of it; the tag is cut to 16 bytes."""
    key, nonce, aad, plain = bytes(range(48)), bytes(range(12)), b"about", b"plain text" * 9
    sealed = sm4.Sm4CtrHmacSm3(key).seal(nonce, plain, aad)
    (tmp_path / "plain").write_bytes(plain)
    (tmp_path / "mac").write_bytes(len(aad).to_bytes(8, "big") + aad + nonce + sealed[:-16])
    command = ["openssl", "enc", "-sm4-ctr", "-K", key[:16].hex(), "-iv", nonce.hex() + "00000002", "-in"]
    encrypted = subprocess.run([*command, "plain"], cwd=tmp_path, capture_output=True, check=True).stdout
    command = ["openssl", "dgst", "-sm3", "-mac", "hmac", "-macopt", f"hexkey:{key[16:].hex()}", "-binary"]
    tag = subprocess.run([*command, "mac"], cwd=tmp_path, capture_output=True, check=True).stdout
    assert sealed == encrypted + tag[:16]


AEADS: dict[str, Callable[[], Aead]] = {
    "sm4-gcm": lambda: sm4.Sm4Gcm(KEY),
    "sm4-ctr-hmac-sm3": lambda: sm4.Sm4CtrHmacSm3(bytes(range(48))),
    "aes-256-gcm": lambda: aes.Aes256Gcm(bytes(range(32))),
} | {
    f"sm4-ctr-hmac-sm3 by {name}": lambda make=make: sm4.CtrHmac(  # type: ignore[misc]
        make(KEY), sm3.HmacSm3(bytes(32))
    )
    for name, make in sm4.ctr_implementations().items()
}


@pytest.mark.parametrize("name", list(AEADS))
def test_every_cipher_refuses_any_change(name: str) -> None:
    aead = AEADS[name]()
    nonce, aad, plain = bytes(12), b"aad", b"x" * 20
    out = bytearray(len(plain) + 16)
    aead.seal_into(memoryview(out), nonce, plain, aad)
    assert aead.open(nonce, bytes(out), aad) == plain
    for bit in range(8 * len(out)):
        changed = bytearray(out)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TagError):
            aead.open(nonce, bytes(changed), aad)
    # The last but two: bytes moved between associated data, nonce and cipher text.
    for other_nonce, sealed, other_aad in (
        (b"\1" + nonce[1:], bytes(out), aad),
        (nonce, bytes(out), b"aae"),
        (nonce, bytes(out), b""),
        (nonce, bytes(out[1:]), aad + bytes(out[:1])),
        (nonce, nonce[-1:] + bytes(out), aad),
        (nonce, bytes(out[:-1]), aad),
    ):
        with pytest.raises(TagError):
            aead.open(other_nonce, sealed, other_aad)


@given(st.binary(max_size=2000), st.binary(max_size=50), st.binary(min_size=12, max_size=12))
@settings(max_examples=30, deadline=None)
def test_sm4_ctr_hmac_implementations_open_each_other(plain: bytes, aad: bytes, nonce: bytes) -> None:
    aeads = [AEADS[f"sm4-ctr-hmac-sm3 by {name}"]() for name in sm4.ctr_implementations()]
    for one in aeads:
        out = bytearray(len(plain) + 16)
        one.seal_into(memoryview(out), nonce, plain, aad)
        for other in aeads:
            assert other.open(nonce, bytes(out), aad) == plain


@given(st.binary(max_size=2000), st.binary(max_size=50), st.binary(min_size=12, max_size=12))
@settings(max_examples=30, deadline=None)
def test_aes_agrees_with_cryptographys_own_aead(plain: bytes, aad: bytes, nonce: bytes) -> None:
    key = bytes(range(32))
    assert aes.Aes256Gcm(key).seal(nonce, plain, aad) == AESGCM(key).encrypt(nonce, plain, aad)


def test_keys_of_a_wrong_size_are_refused() -> None:
    for make, size in ((sm4.Sm4Gcm, 16), (sm4.Sm4CtrHmacSm3, 48), (aes.Aes256Gcm, 32)):
        for wrong in (0, size - 1, size + 1):
            with pytest.raises(ValueError, match=f"{size}"):
                make(bytes(wrong))


@given(st.binary(max_size=2000), st.binary(max_size=50))
@settings(max_examples=30, deadline=None)
def test_sm4_gcm_implementations_open_each_other(plain: bytes, aad: bytes) -> None:
    aeads = [make(KEY) for make in sm4.implementations().values()]
    for one in aeads:
        out = bytearray(len(plain) + 16)
        one.seal_into(memoryview(out), bytes(12), plain, aad)
        for other in aeads:
            assert other.open(bytes(12), bytes(out), aad) == plain


def test_sm4_gcm_refuses_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        sm4.Sm4Gcm(b"short")
    with pytest.raises(ValueError, match="nonce"):
        sm4.Sm4Gcm(KEY).seal_into(memoryview(bytearray(16)), bytes(11), b"", b"")
    with pytest.raises(TagError):
        sm4.Sm4Gcm(KEY).open(bytes(12), b"x" * 15, b"")


def test_kdf_is_openssls_x963_with_sm3() -> None:
    """The published way to derive: openssl kdf X963KDF (OpenSSL 3.0)."""
    for size in (1, 32, 48, 100):
        command = [
            "openssl",
            "kdf",
            "-keylen",
            str(size),
            "-kdfopt",
            "digest:SM3",
            "-kdfopt",
            "hexkey:616263",
        ]
        printed = subprocess.run([*command, "X963KDF"], capture_output=True, text=True, check=True).stdout
        assert kdf_sm3(b"abc", size).hex() == printed.strip().replace(":", "").lower()
    with pytest.raises(ValueError, match="derive"):
        kdf_sm3(b"abc", 0)


@given(st.binary(max_size=200), st.binary(max_size=200))
@settings(max_examples=20, deadline=None)
def test_hmac_agrees_with_cryptography(key: bytes, message: bytes) -> None:
    from cryptography.hazmat.primitives import hashes, hmac

    oracle = hmac.HMAC(key, hashes.SM3())
    oracle.update(message)
    assert sm3.hmac_sm3(key, message) == oracle.finalize()


def test_digests_are_named() -> None:
    digest = sm3.sm3(b"abc")
    assert sm3.parse_named(sm3.named(digest)) == digest
    for bad in ("sha256:" + digest.hex(), "sm3:" + digest.hex().upper(), "sm3:00", digest.hex()):
        with pytest.raises(ValueError):
            sm3.parse_named(bad)


def test_sm2_accepts_the_standards_signature_and_decrypts_its_cipher_text() -> None:
    sm2.self_test()


def test_gmssl_verifies_our_signature_and_we_its() -> None:
    key = PrivateKey.from_scalar(SM2_D, SM2_POINT)
    oracle = gmssl.sm2.CryptSM2(private_key=f"{SM2_D:064x}", public_key=SM2_POINT[1:].hex(), asn1=True)
    message = "双录".encode()
    assert oracle.verify_with_sm3(key.sign(message).hex(), message)
    signature = bytes.fromhex(oracle.sign_with_sm3(message, func.random_hex(64)))
    assert key.public.verify(message, signature)


def test_sm2_round_trips_and_refuses_changes() -> None:
    key = PrivateKey.generate()
    sealed = key.public.encrypt(b"0123456789abcdef")
    assert PrivateKey.from_pem(key.to_pem()).decrypt(sealed) == b"0123456789abcdef"
    for position in range(0, len(sealed), 7):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(Sm2Error):
            key.decrypt(bytes(changed))
    with pytest.raises(Sm2Error):
        PrivateKey.generate().decrypt(sealed)
    signature = key.sign(b"message")
    for size in range(len(signature)):
        assert not key.public.verify(b"message", signature[:size])
    assert not key.public.verify(b"messagf", signature)
    assert not key.public.verify(b"message", signature + b"\0")


def test_keys_load_only_as_what_they_are() -> None:
    key = PrivateKey.generate()
    encrypted = key.to_pem("密码")
    assert b"ENCRYPTED" in encrypted
    assert PrivateKey.from_pem(encrypted, "密码").public.point == key.public.point
    for passphrase in (None, "other"):
        with pytest.raises(Sm2Error):
            PrivateKey.from_pem(encrypted, passphrase)
    with pytest.raises(Sm2Error):
        PrivateKey.from_pem(b"no key")
    p256 = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        capture_output=True,
        check=True,
    ).stdout
    with pytest.raises(Sm2Error, match="not an SM2 key"):
        PrivateKey.from_pem(p256)
    assert PublicKey.from_der(key.public.to_der()).point == key.public.point
    der = key.public.to_der()
    for size in range(len(der)):
        with pytest.raises(Sm2Error):
            PublicKey.from_der(der[:size])


def test_openssl_accepts_certificate_signature_and_wrap(tmp_path: Path) -> None:
    key = PrivateKey.generate()
    pem = self_signed(key, "测试", usage="sign", not_before=datetime(2026, 1, 1, tzinfo=UTC), days=3650)
    certificate = Certificate.from_pem(pem)
    assert certificate.self_signed
    assert certificate.subject == "CN=测试"
    (tmp_path / "c.pem").write_text(pem)
    (tmp_path / "k.pem").write_bytes(key.to_pem())
    (tmp_path / "m").write_bytes(b"message")
    (tmp_path / "s").write_bytes(key.sign(b"message"))
    (tmp_path / "w").write_bytes(key.public.encrypt(b"0123456789abcdef"))
    identity = "distid:1234567812345678"

    def openssl(*arguments: str) -> bytes:
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, check=True).stdout

    assert openssl("verify", "-CAfile", "c.pem", "-vfyopt", identity, "c.pem").strip() == b"c.pem: OK"
    arguments = ["-rawin", "-digest", "sm3", "-pkeyopt", identity, "-in", "m", "-sigfile", "s"]
    assert b"Success" in openssl("pkeyutl", "-verify", "-certin", "-inkey", "c.pem", *arguments)
    assert openssl("pkeyutl", "-decrypt", "-inkey", "k.pem", "-in", "w") == b"0123456789abcdef"


def test_a_changed_certificate_is_not_its_own(tmp_path: Path) -> None:
    key, other = PrivateKey.generate(), PrivateKey.generate()
    since = datetime(2026, 1, 1, tzinfo=UTC)
    certificate = Certificate.from_pem(self_signed(key, "a", usage="encrypt", not_before=since, days=30))
    assert not certificate.signed_by(other.public)
    for bad in ("", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "é"):
        with pytest.raises(Sm2Error):
            Certificate.from_pem(bad)


@pytest.mark.skipif(libgcrypt.library is None, reason=f"libgcrypt: {libgcrypt.version}")
@pytest.mark.parametrize("call", ["gcry_md_hash_buffer", "gcry_cipher_gettag", "gcry_cipher_open"])
def test_a_libgcrypt_that_computes_wrongly_is_not_used(call: str) -> None:
    class Wrong:
        def __getattr__(self, name: str) -> Any:
            return (
                getattr(libgcrypt.library, name) if name != call else lambda *arguments: int("open" in call)
            )

    assert libgcrypt.self_test(libgcrypt.library) == ""
    assert libgcrypt.self_test(Wrong()) != ""


def test_a_wrong_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that answers wrongly stops the process from sealing anything."""
    assert set(selftest.run()) == {"sm3", "sm4-gcm", "sm4-ctr", "aes-256-gcm", "sm2"}
    good = sm4.implementations()["cryptography"]

    class Wrong:
        def __init__(self, key: bytes) -> None:
            self._aead = good(key)

        def seal_into(self, out: memoryview, nonce: bytes, plaintext: Any, aad: bytes) -> None:
            self._aead.seal_into(out, nonce, plaintext, aad)
            out[0] ^= 1

        def open(self, nonce: bytes, sealed: Any, aad: bytes) -> bytes:
            return self._aead.open(nonce, sealed, aad)

    implementations: dict[str, Callable[[bytes], Aead]] = {"wrong": Wrong}
    with monkeypatch.context() as patched:
        patched.setattr(sm4, "implementations", lambda: implementations)
        with pytest.raises(selftest.SelfTestError, match="SM4-GCM of wrong"):
            selftest.run()
    selftest.run()


@pytest.mark.parametrize(
    ("module", "name", "what"),
    [
        (sm4, "ctr_implementations", "SM4-CTR of wrong"),
        (sm3.HmacSm3, "tag", "HMAC-SM3"),
        (aes.Aes256Gcm, "open", "AES-256-GCM"),
        (sm4.Sm4CtrHmacSm3, "open", "opens a text with a wrong tag"),
    ],
)
def test_each_wrong_algorithm_is_named(
    module: Any, name: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        def __init__(self, key: bytes) -> None:
            pass

        def crypt_into(self, out: memoryview, counter: bytes, data: bytes) -> None:
            out[: len(data)] = bytes(len(data))

    answers: dict[str, Any] = {
        "ctr_implementations": lambda: {"wrong": Wrong},
        "tag": lambda *parts: bytes(32),
        "open": lambda aead, nonce, sealed, aad: b"".join(
            bytes((byte,)) * 8 for byte in b"\xaa\xbb\xcc\xdd\xee\xff\xee\xaa"
        ),
    }
    monkeypatch.setattr(module, name, answers[name])
    with pytest.raises(selftest.SelfTestError, match=what):
        selftest.run()


_CIRCLES = """
import gc, os
from recorder.gm.aead import TagError
from recorder.gm.sm4 import Sm4Gcm

class Report:
    pass

def refused(aead):
    sealed = memoryview(os.urandom(5000))[10:4000]  # before the report: the order in which they are collected
    report = Report()
    try:
        aead.open(bytes(12), sealed, b"")
    except TagError as error:
        report.error = error  # error, traceback, this frame, report: a circle

gc.disable()
for _ in range(300):
    refused(Sm4Gcm(bytes(16)))
gc.collect()
"""


def test_errors_that_are_kept_do_not_crash_the_collector() -> None:
    """CPython before 3.11.8 crashes on a circle with a borrowed memoryview in it (gh-77894)."""
    done = subprocess.run([sys.executable, "-c", _CIRCLES], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
