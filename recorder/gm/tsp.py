"""Time-stamp tokens (RFC 3161) through OpenSSL 3's libcrypto, loaded with cffi.

libcrypto parses a response and verifies the token's signature, the authority's chain and its
extendedKeyUsage. It cannot do so for an authority that signs with SM2, or over SM3 with RSA: such a token is
read, and said to be unsupported, never accepted. Imprints are SM3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cffi import FFI
from cryptography import x509

from recorder.gm import der

SM3_OID = "1.2.156.10197.1.401"
MAX_RESPONSE_BYTES = 256 << 10
"""A token with its certificates has 3 to 8 KiB; longer answers are refused."""

ffi = FFI()
ffi.cdef(
    """
    typedef struct ts_resp TS_RESP;
    typedef struct ts_status TS_STATUS_INFO;
    typedef struct ts_tst TS_TST_INFO;
    typedef struct ts_imprint TS_MSG_IMPRINT;
    typedef struct pkcs7 PKCS7;
    typedef struct asn1_string ASN1_STRING;
    typedef struct asn1_object ASN1_OBJECT;
    typedef struct x509_algor X509_ALGOR;
    typedef struct x509_st X509;
    typedef struct x509_store X509_STORE;
    typedef struct verify_param X509_VERIFY_PARAM;
    typedef struct evp_pkey EVP_PKEY;
    typedef struct stack OPENSSL_STACK;
    TS_RESP *d2i_TS_RESP(TS_RESP **a, const unsigned char **in, long size);
    void TS_RESP_free(TS_RESP *a);
    TS_STATUS_INFO *TS_RESP_get_status_info(TS_RESP *a);
    const ASN1_STRING *TS_STATUS_INFO_get0_status(const TS_STATUS_INFO *a);
    const OPENSSL_STACK *TS_STATUS_INFO_get0_text(const TS_STATUS_INFO *a);
    PKCS7 *TS_RESP_get_token(TS_RESP *a);
    TS_TST_INFO *TS_RESP_get_tst_info(TS_RESP *a);
    TS_TST_INFO *d2i_TS_TST_INFO(TS_TST_INFO **a, const unsigned char **in, long size);
    void TS_TST_INFO_free(TS_TST_INFO *a);
    long TS_TST_INFO_get_version(const TS_TST_INFO *a);
    ASN1_OBJECT *TS_TST_INFO_get_policy_id(TS_TST_INFO *a);
    TS_MSG_IMPRINT *TS_TST_INFO_get_msg_imprint(TS_TST_INFO *a);
    const ASN1_STRING *TS_TST_INFO_get_serial(const TS_TST_INFO *a);
    const ASN1_STRING *TS_TST_INFO_get_time(const TS_TST_INFO *a);
    const ASN1_STRING *TS_TST_INFO_get_nonce(const TS_TST_INFO *a);
    X509_ALGOR *TS_MSG_IMPRINT_get_algo(TS_MSG_IMPRINT *a);
    ASN1_STRING *TS_MSG_IMPRINT_get_msg(TS_MSG_IMPRINT *a);
    void X509_ALGOR_get0(const ASN1_OBJECT **o, int *type, const void **value, const X509_ALGOR *a);
    int OBJ_obj2txt(char *text, int size, const ASN1_OBJECT *o, int no_name);
    int ASN1_STRING_length(const ASN1_STRING *a);
    int ASN1_STRING_type(const ASN1_STRING *a);
    const unsigned char *ASN1_STRING_get0_data(const ASN1_STRING *a);
    OPENSSL_STACK *PKCS7_get0_signers(PKCS7 *p, OPENSSL_STACK *certificates, int flags);
    int TS_RESP_verify_signature(PKCS7 *t, OPENSSL_STACK *certificates, X509_STORE *s, X509 **signer);
    int OPENSSL_sk_num(const OPENSSL_STACK *s);
    void *OPENSSL_sk_value(const OPENSSL_STACK *s, int number);
    void OPENSSL_sk_free(OPENSSL_STACK *s);
    X509 *d2i_X509(X509 **a, const unsigned char **in, long size);
    int i2d_X509(const X509 *a, unsigned char **out);
    void X509_free(X509 *a);
    EVP_PKEY *X509_get0_pubkey(const X509 *a);
    int EVP_PKEY_is_a(const EVP_PKEY *key, const char *name);
    X509_STORE *X509_STORE_new(void);
    void X509_STORE_free(X509_STORE *s);
    int X509_STORE_add_cert(X509_STORE *s, X509 *a);
    X509_VERIFY_PARAM *X509_STORE_get0_param(const X509_STORE *s);
    int X509_VERIFY_PARAM_set_flags(X509_VERIFY_PARAM *p, unsigned long flags);
    void X509_VERIFY_PARAM_set_time(X509_VERIFY_PARAM *p, int64_t when);
    void ERR_clear_error(void);
    unsigned long ERR_get_error_all(const char **file, int *line, const char **function,
                                    const char **data, int *flags);
    void ERR_error_string_n(unsigned long code, char *text, size_t size);
    """
)
_lib: Any = ffi.dlopen("libcrypto.so.3")
_PARTIAL_CHAIN = 0x80000
_INTEGER_TYPE = 2
_TIME = re.compile(rb"^(\d{14})(?:\.(\d{1,9}))?Z$")
_SIGNED_DATA = (der.oid("1.2.840.113549.1.7.2"), der.oid("1.2.156.10197.6.1.4.2.2"))
"""Content type of CMS (RFC 5652), and of GM/T 0010, which libcrypto does not know."""
_UNSUPPORTED = ("digest not allowed", "unknown message digest", "unsupported digest")
"""libcrypto's words for a signature over a digest it does not take there, such as SM3 under RSA."""


class TokenError(ValueError):
    """A response is malformed, refused, or its token does not hold; says why."""


class TokenUntrusted(TokenError):
    """The token holds by its own certificate, which leads to no given authority."""


class TokenUnsupported(TokenError):
    """This library cannot tell whether the token holds."""


@dataclass(frozen=True)
class Token:
    """What a time-stamp token says; not believed before ``check``."""

    time: datetime
    policy: str
    serial: str
    imprint_algorithm: str
    imprint: bytes = field(repr=False)
    nonce: int | None
    authority: str
    """Subject of the certificate it says signed it; empty if it holds none."""
    not_after: datetime | None
    """End of that certificate."""
    unsupported: str
    """Why this library cannot check it; empty if it can."""


def request(imprint: bytes, *, nonce: int, policy: str | None = None) -> bytes:
    """Return the DER TimeStampReq (RFC 3161 section 2.4.1) for an SM3 digest; certificates are asked for."""
    algorithm = der.sequence(der.oid(SM3_OID), der.tlv(der.NULL, b""))
    return der.sequence(
        der.integer(1),
        der.sequence(algorithm, der.tlv(der.OCTET_STRING, imprint)),
        der.oid(policy) if policy else b"",
        der.integer(nonce),
        der.tlv(der.BOOLEAN, b"\xff"),
    )


def parse(response: bytes) -> Token:
    """Read a DER TimeStampResp. Raise TokenError if it is malformed or the authority refused."""
    _lib.ERR_clear_error()
    try:
        held = _load(response)
    except TokenError:
        return _parse_national(response)
    status = _integer(_lib.TS_STATUS_INFO_get0_status(_lib.TS_RESP_get_status_info(held)))
    if status not in (0, 1):
        raise TokenError(f"the authority refused (status {status}){_status_text(held)}")
    signer = _signer(held)
    return _token(_lib.TS_RESP_get_tst_info(held), *_describe(signer))


def check(response: bytes, token: Token, authorities: Sequence[bytes] | None) -> None:
    """Check signature, extendedKeyUsage and dates at the token's time, and its chain to ``authorities``.

    ``authorities`` are DER certificates, each an anchor of its own; None leaves the chain unchecked. Raise
    TokenError if the token does not hold, TokenUntrusted if only the chain leads nowhere, TokenUnsupported if
    the library cannot tell.
    """
    if token.unsupported:
        raise TokenUnsupported(token.unsupported)
    held = _load(response)
    reason = _verify(held, token, [_signer(held)])
    if any(part in reason for part in _UNSUPPORTED):
        raise TokenUnsupported(reason)
    if reason:
        raise TokenError(reason)
    if authorities is None:
        return
    reason = _verify(held, token, [_certificate(one) for one in authorities])
    if reason:
        raise TokenUntrusted(reason)


def _load(response: bytes) -> Any:
    buffer = ffi.from_buffer("unsigned char[]", response)
    place = ffi.new("const unsigned char **", buffer)
    pointer = _lib.d2i_TS_RESP(ffi.NULL, place, len(response))
    if pointer == ffi.NULL:
        raise TokenError(f"no time-stamp response: {_reason()}")
    held = ffi.gc(pointer, _lib.TS_RESP_free)
    if place[0] != buffer + len(response):
        raise TokenError("bytes after the time-stamp response")
    return held


def _reason() -> str:
    """Empty libcrypto's error queue and return its texts, the first cause first."""
    data, text, reasons = ffi.new("const char **"), ffi.new("char[256]"), []
    while code := _lib.ERR_get_error_all(ffi.NULL, ffi.NULL, ffi.NULL, data, ffi.NULL):
        _lib.ERR_error_string_n(code, text, 256)
        more = _text(data[0]) if data[0] != ffi.NULL else ""
        reasons.append(_text(text).split(":")[-1] + (f" ({more})" if more else ""))
    return ", ".join(reasons) or "refused by libcrypto"


def _text(pointer: Any) -> str:
    value = ffi.string(pointer)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _status_text(held: Any) -> str:
    texts = _lib.TS_STATUS_INFO_get0_text(_lib.TS_RESP_get_status_info(held))
    if texts == ffi.NULL:
        return ""
    parts = (
        _string(ffi.cast("const ASN1_STRING *", _lib.OPENSSL_sk_value(texts, number)))
        for number in range(_lib.OPENSSL_sk_num(texts))
    )
    return ": " + ", ".join(part.decode("utf-8", "replace") for part in parts)


def _string(pointer: Any) -> bytes:
    return bytes(ffi.buffer(_lib.ASN1_STRING_get0_data(pointer), _lib.ASN1_STRING_length(pointer)))


def _integer(pointer: Any) -> int:
    value = int.from_bytes(_string(pointer), "big")
    return value if _lib.ASN1_STRING_type(pointer) == _INTEGER_TYPE else -value


def _oid(pointer: Any) -> str:
    text = ffi.new("char[128]")
    _lib.OBJ_obj2txt(text, 128, pointer, 1)
    return _text(text)


def _token(info: Any, authority: str, not_after: datetime | None, unsupported: str) -> Token:
    if _lib.TS_TST_INFO_get_version(info) != 1:
        raise TokenError("a token of another version than 1")
    imprint = _lib.TS_TST_INFO_get_msg_imprint(info)
    algorithm = ffi.new("const ASN1_OBJECT **")
    _lib.X509_ALGOR_get0(algorithm, ffi.NULL, ffi.NULL, _lib.TS_MSG_IMPRINT_get_algo(imprint))
    nonce = _lib.TS_TST_INFO_get_nonce(info)
    return Token(
        time=_time(_string(_lib.TS_TST_INFO_get_time(info))),
        policy=_oid(_lib.TS_TST_INFO_get_policy_id(info)),
        serial=f"{_integer(_lib.TS_TST_INFO_get_serial(info)):x}",
        imprint_algorithm=_oid(algorithm[0]),
        imprint=_string(_lib.TS_MSG_IMPRINT_get_msg(imprint)),
        nonce=None if nonce == ffi.NULL else _integer(nonce),
        authority=authority,
        not_after=not_after,
        unsupported=unsupported,
    )


def _time(text: bytes) -> datetime:
    match = _TIME.match(text)
    try:
        if match is None:
            raise ValueError
        whole = datetime.strptime(match[1].decode(), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise TokenError("the token's time is none of RFC 3161 section 2.4.2") from None
    return whole + timedelta(microseconds=int((match[2] or b"0").ljust(6, b"0")[:6]))


def _signer(held: Any) -> Any:
    """Return the signer's certificate out of the token; it lives as long as ``held``."""
    signers = _lib.PKCS7_get0_signers(_lib.TS_RESP_get_token(held), ffi.NULL, 0)
    if signers == ffi.NULL:
        raise TokenError(f"the token does not hold its signer's certificate: {_reason()}")
    try:
        if _lib.OPENSSL_sk_num(signers) != 1:
            raise TokenError("the token has not exactly one signer")
        return ffi.cast("X509 *", _lib.OPENSSL_sk_value(signers, 0))
    finally:
        _lib.OPENSSL_sk_free(signers)


def _describe(signer: Any) -> tuple[str, datetime | None, str]:
    """Return subject, end and why its key is none for this library."""
    size = _lib.i2d_X509(signer, ffi.NULL)
    out = ffi.new("unsigned char[]", max(size, 1))
    _lib.i2d_X509(signer, ffi.new("unsigned char **", out))
    key = _lib.X509_get0_pubkey(signer)
    if key == ffi.NULL or _lib.EVP_PKEY_is_a(key, b"SM2"):
        _lib.ERR_clear_error()
        unsupported = "its authority signs with SM2 or another algorithm that libcrypto's time-stamps lack"
    else:
        unsupported = ""
    return (*_subject(bytes(ffi.buffer(out, size))), unsupported)


def _subject(certificate: bytes) -> tuple[str, datetime | None]:
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        return parsed.subject.rfc4514_string(), parsed.not_valid_after_utc
    except Exception:  # of hostile bytes it raises exceptions of no common base
        raise TokenError("the signer's certificate is not readable") from None


def _certificate(data: bytes) -> Any:
    place = ffi.new("const unsigned char **", ffi.from_buffer("unsigned char[]", data))
    pointer = _lib.d2i_X509(ffi.NULL, place, len(data))
    if pointer == ffi.NULL:
        raise TokenError(f"an authority's certificate is not readable: {_reason()}")
    return ffi.gc(pointer, _lib.X509_free)


def _verify(held: Any, token: Token, anchors: Sequence[Any]) -> str:
    """Return why the token does not hold by these anchors, empty if it does."""
    store = ffi.gc(_lib.X509_STORE_new(), _lib.X509_STORE_free)
    for one in anchors:
        _lib.X509_STORE_add_cert(store, one)
    parameters = _lib.X509_STORE_get0_param(store)
    # Each given certificate is an anchor, an intermediate too: who gives it says so.
    _lib.X509_VERIFY_PARAM_set_flags(parameters, _PARTIAL_CHAIN)
    _lib.X509_VERIFY_PARAM_set_time(parameters, int(token.time.timestamp()))
    _lib.ERR_clear_error()
    if _lib.TS_RESP_verify_signature(_lib.TS_RESP_get_token(held), ffi.NULL, store, ffi.NULL) == 1:
        return ""
    return _reason()


def _parse_national(response: bytes) -> Token:
    """Read a response whose token is a SignedData of GM/T 0010; its structure is CMS's.

    Only to say what it claims: nothing of it is verified. Raise TokenError for anything else.
    """
    reason = "no time-stamp response"
    try:
        body, rest = der.read(response, der.SEQUENCE)
        status, content = der.read(body, der.SEQUENCE)
        if rest or int.from_bytes(der.read(status, der.INTEGER)[0], "big") not in (0, 1):
            raise ValueError("bytes after it, or refused")
        content, rest = der.read(content, der.SEQUENCE)
        if rest or not content.startswith(_SIGNED_DATA[1]):
            raise ValueError("not of GM/T 0010")
        signed, _ = der.read(der.read(content[len(_SIGNED_DATA[1]) :], 0xA0)[0], der.SEQUENCE)
        _, signed = der.read(signed, der.INTEGER)
        _, signed = der.read(signed, der.SET)
        encapsulated, signed = der.read(signed, der.SEQUENCE)
        _, encapsulated = der.read(encapsulated, der.OID)
        info, _ = der.read(der.read(encapsulated, 0xA0)[0], der.OCTET_STRING)
        first = b""
        if signed[:1] == b"\xa0":
            certificates = der.read(signed)[0]
            first = certificates[: len(certificates) - len(der.read(certificates, der.SEQUENCE)[1])]
    except ValueError as error:
        raise TokenError(f"{reason}: {error}") from None
    place = ffi.new("const unsigned char **", ffi.from_buffer("unsigned char[]", info))
    pointer = _lib.d2i_TS_TST_INFO(ffi.NULL, place, len(info))
    if pointer == ffi.NULL:
        raise TokenError(f"{reason}: {_reason()}")
    held = ffi.gc(pointer, _lib.TS_TST_INFO_free)
    authority, not_after = _subject(first) if first else ("", None)
    return _token(held, authority, not_after, "its token is of GM/T 0010, which libcrypto does not read")
