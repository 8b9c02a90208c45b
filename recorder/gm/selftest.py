"""Run the published vectors on what this machine will use, once a process; refuse to go on if one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from recorder.gm import aes, libgcrypt, sm3, sm4
from recorder.gm.aead import TAG_BYTES, Aead, TagError

_SM3_VECTORS = (  # GM/T 0004-2012 annex A
    (b"abc", "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"),
    (b"abcd" * 16, "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732"),
)
# GM/T 0042-2015 annex D.3: key, message, HMAC-SM3.
_HMAC_VECTOR = (
    bytes(range(1, 33)),
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq" * 2,
    bytes.fromhex("ca05e144ed05d1857840d1f318a4a8669e559fc8391f414485bfdf7bb408963a"),
)
_SM4_KEY = bytes.fromhex("0123456789ABCDEFFEDCBA9876543210")
_SM4_BLOCK = bytes.fromhex("681EDF34D206965E86B3E94F536E4246")
"""GM/T 0002-2012 annex A.1: the key encrypted under itself."""
# draft-ribose-cfrg-sm4-10 appendix A.2.5.1.
_CTR_COUNTER = bytes(range(16))
_CTR_SEALED = bytes.fromhex(
    "AC3236CB970CC20791364C395A1342D1A3CBC1878C6F30CD074CCE385CDD70C7"
    "F234BC0E24C11980FD1286310CE37B926E02FCD0FAA0BAF38B2933851D824514"
)
_CTR_PLAIN = b"".join(bytes((byte,)) * 8 for byte in b"\xaa\xbb\xcc\xdd\xee\xff\xaa\xbb")
# RFC 8998 appendix A.1, SM4-GCM.
_GCM_NONCE = bytes.fromhex("00001234567800000000ABCD")
_GCM_AAD = bytes.fromhex("FEEDFACEDEADBEEFFEEDFACEDEADBEEFABADDAD2")
_GCM_PLAIN = b"".join(bytes((byte,)) * 8 for byte in b"\xaa\xbb\xcc\xdd\xee\xff\xee\xaa")
_GCM_SEALED = bytes.fromhex(
    "17F399F08C67D5EE19D0DC9969C4BB7D5FD46FD3756489069157B282BB200735"
    "D82710CA5C22F0CCFA7CBF93D496AC15A56834CBCF98C397B4024A2691233B8D"
    "83DE3541E4C2B58177E065A9BF7B62EC"
)
# McGrew and Viega, The Galois/Counter Mode of Operation (submitted to NIST), test case 16: AES-256.
_AES_KEY = bytes.fromhex("FEFFE9928665731C6D6A8F9467308308" * 2)
_AES_NONCE = bytes.fromhex("CAFEBABEFACEDBADDECAF888")
_AES_PLAIN = bytes.fromhex(
    "D9313225F88406E5A55909C5AFF5269A86A7A9531534F7DA2E4C303D8A318A72"
    "1C3C0C95956809532FCF0E2449A6B525B16AEDF5AA0DE657BA637B39"
)
_AES_SEALED = bytes.fromhex(
    "522DC1F099567D07F47F37A32A84427D643A8CDCBFE5C0C97598A2BD2555D1AA"
    "8CB08E48590DBB3DA7B08B1056828838C5F61E6393BA7A0ABCC9F662"
    "76FC6ECE0F4E1768CDDF8853BB2D551B"
)
_LONG = bytes(range(256)) * 41
"""Longer than the vectors: vector units take other paths from a few hundred bytes on."""


class SelfTestError(RuntimeError):
    """A library gives another answer than the standard: nothing may be sealed, opened or signed with it."""


_lock = threading.Lock()
_passed = False


def require() -> None:
    """Run the self-test (4 ms) unless it passed in this process. Raise SelfTestError naming what failed."""
    global _passed
    if _passed:
        return
    with _lock:
        if not _passed:
            run()
            _passed = True


def run() -> dict[str, list[str]]:
    """Check every implementation present against the vectors, and those of one algorithm against each other.

    Return the names by algorithm, fastest first (the first is used). Raise SelfTestError.
    """
    from recorder.gm import sm2

    for name, new in sm3.implementations().items():
        for message, expected in _SM3_VECTORS:
            running = new()
            running.update(message)
            if running.digest().hex() != expected:
                raise SelfTestError(f"SM3 of {name} does not give GM/T 0004's digest")
    mac_key, message, mac = _HMAC_VECTOR
    if sm3.HmacSm3(mac_key).tag(message[:7], message[7:]) != mac:
        raise SelfTestError("HMAC-SM3 does not give GM/T 0042's result")
    gcms, ctrs = sm4.implementations(), sm4.ctr_implementations()
    long_texts = {name: _test_gcm("SM4-GCM", name, make) for name, make in gcms.items()}
    _same("SM4-GCM", long_texts)
    _same("SM4-CTR", {name: _test_ctr(name, make) for name, make in ctrs.items()})
    _test_aead("AES-256-GCM", "cryptography", aes.Aes256Gcm(_AES_KEY), _AES_NONCE, _AES_PLAIN, _AES_SEALED)
    _test_refusal("SM4-CTR-HMAC-SM3", "this program", sm4.Sm4CtrHmacSm3(_SM4_KEY + bytes(sm4.MAC_KEY_BYTES)))
    sm2.self_test()
    return {
        "sm3": list(sm3.implementations()),
        "sm4-gcm": list(gcms),
        "sm4-ctr": list(ctrs),
        "aes-256-gcm": ["cryptography"],
        "sm2": [sm2.library_version()],
    }


def _test_gcm(algorithm: str, name: str, make: Callable[[bytes], Aead]) -> bytes:
    """Check one SM4-GCM; return the long text sealed."""
    aead = make(_SM4_KEY)
    _test_aead(algorithm, name, aead, _GCM_NONCE, _GCM_PLAIN, _GCM_SEALED)
    out = bytearray(len(_LONG) + TAG_BYTES)
    aead.seal_into(memoryview(out), _GCM_NONCE, _LONG, b"")
    return bytes(out)


def _test_aead(algorithm: str, name: str, aead: Aead, nonce: bytes, plain: bytes, sealed: bytes) -> None:
    out = bytearray(len(sealed))
    aead.seal_into(memoryview(out), nonce, plain, _GCM_AAD)
    if out != sealed or aead.open(nonce, sealed, _GCM_AAD) != plain:
        raise SelfTestError(f"{algorithm} of {name} does not give the published result")
    _test_refusal(algorithm, name, aead)


def _test_refusal(algorithm: str, name: str, aead: Aead) -> None:
    out = bytearray(len(_GCM_PLAIN) + TAG_BYTES)
    aead.seal_into(memoryview(out), _GCM_NONCE, _GCM_PLAIN, _GCM_AAD)
    if aead.open(_GCM_NONCE, bytes(out), _GCM_AAD) != _GCM_PLAIN:
        raise SelfTestError(f"{algorithm} of {name} does not open what it sealed")
    out[-1] ^= 1
    try:
        aead.open(_GCM_NONCE, bytes(out), _GCM_AAD)
    except TagError:
        return
    raise SelfTestError(f"{algorithm} of {name} opens a text with a wrong tag")


def _test_ctr(name: str, make: Callable[[bytes], sm4.Ctr]) -> bytes:
    """Check one SM4-CTR, and by it the block cipher; return the long text encrypted."""
    ctr = make(_SM4_KEY)
    out = bytearray(len(_LONG))
    # The key stream of counter block P is the encryption of P.
    for counter, plain, expected in (
        (_SM4_KEY, bytes(16), _SM4_BLOCK),
        (_CTR_COUNTER, _CTR_PLAIN, _CTR_SEALED),
    ):
        ctr.crypt_into(memoryview(out), counter, plain)
        if out[: len(plain)] != expected:
            raise SelfTestError(f"SM4-CTR of {name} does not give the published result")
    ctr.crypt_into(memoryview(out), b"\xff" * 16, _LONG)  # the counter runs over
    return bytes(out)


def _same(algorithm: str, results: Mapping[str, bytes]) -> None:
    if len(set(results.values())) != 1:
        raise SelfTestError(f"{algorithm} of {' and '.join(results)} differ on a long text")


def describe() -> dict[str, str]:
    """Return which library does what, for ``doctor`` and manifests."""
    from recorder.gm import sm2

    return {
        "sm3": next(iter(sm3.implementations())),
        "sm4-gcm": next(iter(sm4.implementations())),
        "sm4-ctr": next(iter(sm4.ctr_implementations())),
        "sm2": sm2.library_version(),
        "libgcrypt": libgcrypt.version,
    }
