"""Run the published vectors on what this machine will use, once a process; refuse to go on if one fails."""

from __future__ import annotations

import threading

from recorder.gm import libgcrypt, sm3, sm4

_SM3_VECTORS = (  # GM/T 0004-2012 annex A
    (b"abc", "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"),
    (b"abcd" * 16, "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732"),
)
# RFC 8998 appendix A.1, SM4-GCM.
_GCM_KEY = bytes.fromhex("0123456789ABCDEFFEDCBA9876543210")
_GCM_NONCE = bytes.fromhex("00001234567800000000ABCD")
_GCM_AAD = bytes.fromhex("FEEDFACEDEADBEEFFEEDFACEDEADBEEFABADDAD2")
_GCM_PLAIN = bytes.fromhex(
    "AA" * 8 + "BB" * 8 + "CC" * 8 + "DD" * 8 + "EE" * 8 + "FF" * 8 + "EE" * 8 + "AA" * 8
)
_GCM_SEALED = bytes.fromhex(
    "17F399F08C67D5EE19D0DC9969C4BB7D5FD46FD3756489069157B282BB200735"
    "D82710CA5C22F0CCFA7CBF93D496AC15A56834CBCF98C397B4024A2691233B8D"
    "83DE3541E4C2B58177E065A9BF7B62EC"
)


class SelfTestError(RuntimeError):
    """A library gives another answer than the standard: nothing may be sealed, opened or signed with it."""


_lock = threading.Lock()
_passed = False


def require() -> None:
    """Run the self-test unless it passed in this process already. Raise SelfTestError naming what failed."""
    global _passed
    if _passed:
        return
    with _lock:
        if not _passed:
            run()
            _passed = True


def run() -> dict[str, list[str]]:
    """Check every implementation present against the vectors, SM4-GCM ones against each other too.

    Return the names by algorithm, fastest first (the first is used). Raise SelfTestError.
    """
    from recorder.gm import sm2

    for name, new in sm3.implementations().items():
        for message, expected in _SM3_VECTORS:
            running = new()
            running.update(message)
            if running.digest().hex() != expected:
                raise SelfTestError(f"SM3 of {name} does not give GM/T 0004's digest")
    long_text = bytes(range(256)) * 41
    aeads = sm4.implementations()
    sealed: dict[str, bytes] = {}
    for name, make in aeads.items():
        aead = make(_GCM_KEY)
        out = bytearray(len(_GCM_PLAIN) + sm4.TAG_BYTES)
        aead.seal_into(memoryview(out), _GCM_NONCE, _GCM_PLAIN, _GCM_AAD)
        if out != _GCM_SEALED or aead.open(_GCM_NONCE, _GCM_SEALED, _GCM_AAD) != _GCM_PLAIN:
            raise SelfTestError(f"SM4-GCM of {name} does not give RFC 8998's result")
        try:
            aead.open(_GCM_NONCE, _GCM_SEALED[:-1] + b"\0", _GCM_AAD)
        except sm4.TagError:
            pass
        else:
            raise SelfTestError(f"SM4-GCM of {name} opens a text with a wrong tag")
        # Longer than the vector: vector units take other paths from a few hundred bytes on.
        out = bytearray(len(long_text) + sm4.TAG_BYTES)
        aead.seal_into(memoryview(out), _GCM_NONCE, long_text, b"")
        sealed[name] = bytes(out)
    if len(set(sealed.values())) != 1:
        raise SelfTestError(f"SM4-GCM of {' and '.join(sealed)} differ on a long text")
    sm2.self_test()
    return {"sm3": list(sm3.implementations()), "sm4-gcm": list(aeads), "sm2": [sm2.library_version()]}


def describe() -> dict[str, str]:
    """Return which library does what, for ``doctor`` and manifests."""
    from recorder.gm import sm2

    return {
        "sm3": next(iter(sm3.implementations())),
        "sm4-gcm": next(iter(sm4.implementations())),
        "sm2": sm2.library_version(),
        "libgcrypt": libgcrypt.version,
    }
