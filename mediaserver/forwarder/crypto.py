"""Functions of libsrtp and OpenSSL, as pointers for the native forwarder.

libsrtp comes from pylibsrtp. EVP comes from the same binary where its OpenSSL is exported (as pylibsrtp 1.0's
wheels do: used there at 0.7 µs a packet against libsrtp's 1.1), else from the system's libcrypto 3; without
either libsrtp does everything.
"""

from __future__ import annotations

import ctypes.util
from typing import Any, Final

import cffi
from pylibsrtp import _binding

_EVP: Final = {
    "evp_new": "EVP_CIPHER_CTX_new",
    "evp_free": "EVP_CIPHER_CTX_free",
    "evp_ctrl": "EVP_CIPHER_CTX_ctrl",
    "evp_encrypt_init": "EVP_EncryptInit_ex",
    "evp_encrypt_update": "EVP_EncryptUpdate",
    "evp_encrypt_final": "EVP_EncryptFinal_ex",
    "evp_decrypt_init": "EVP_DecryptInit_ex",
    "evp_decrypt_update": "EVP_DecryptUpdate",
    "evp_decrypt_final": "EVP_DecryptFinal_ex",
    "evp_aes_128_gcm": "EVP_aes_128_gcm",
    "evp_aes_128_ctr": "EVP_aes_128_ctr",
}
_SRTP: Final = ("srtp_protect", "srtp_unprotect", "srtp_protect_rtcp", "srtp_unprotect_rtcp")

_symbols: Final[Any] = cffi.FFI()
_symbols.cdef("".join(f"void {name}(void);" for name in _EVP.values()))


def crypto_table(ffi: Any, *, evp: bool = True) -> tuple[Any, list[Any], str]:
    """Fill an ``fwd_crypto_t``; return it, what must stay alive with it, and who does AES-GCM media."""
    table = ffi.new("fwd_crypto_t *")
    for name in _SRTP:
        pointer = _binding.ffi.addressof(_binding.lib, name)
        setattr(table, name, ffi.cast(ffi.typeof(getattr(table, name)), _address(_binding.ffi, pointer)))
    if evp:
        for path in (_binding.__file__, ctypes.util.find_library("crypto"), "libcrypto.so.3"):
            if path and (library := _evp_library(path)) is not None:
                for field, name in _EVP.items():
                    address = _address(_symbols, _symbols.addressof(library, name))
                    setattr(table, field, ffi.cast(ffi.typeof(getattr(table, field)), address))
                return table, [library], "evp"
    return table, [], "libsrtp"


def _address(ffi: Any, pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _evp_library(path: str) -> Any | None:
    try:
        library = _symbols.dlopen(path)
        for name in _EVP.values():
            _symbols.addressof(library, name)
    except (OSError, AttributeError):
        return None  # not there, or without these functions: the next one may have them
    return library
