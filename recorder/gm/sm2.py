"""SM2 (GM/T 0003-2012, GB/T 32918): signatures and public-key encryption through OpenSSL 3's libcrypto.

libcrypto.so.3 is loaded through cffi: 0.8 ms a signature, nonces from OpenSSL's generator, C3 and curve
checked when decrypting. (gmssl does none of that: its nonces come from ``random``; it is only a second
opinion in tests and verification.) Signatures are DER SEQUENCE(r, s) over SM3(Z ‖ message) with the signer
id 1234567812345678 (GM/T 0009-2012 section 10); cipher texts are GM/T 0009 SM2Cipher DER, which
``openssl pkeyutl -decrypt`` opens.
"""

from __future__ import annotations

from typing import Any

from cffi import FFI

from recorder.gm import der
from recorder.gm.sm3 import sm3

SIGNER_ID = b"1234567812345678"
"""GM/T 0009 section 10: the id to use where none is agreed."""
POINT_BYTES = 65
CURVE_OID = "1.2.156.10197.1.301"
_PBKDF2_ROUNDS = 200_000

ffi = FFI()
ffi.cdef(
    """
    typedef struct evp_pkey_st EVP_PKEY;
    typedef struct evp_pkey_ctx_st EVP_PKEY_CTX;
    typedef struct evp_md_ctx_st EVP_MD_CTX;
    typedef struct evp_md_st EVP_MD;
    typedef struct evp_cipher_st EVP_CIPHER;
    typedef struct bio_st BIO;
    typedef struct x509_st X509;
    typedef struct x509_sig_st X509_SIG;
    typedef struct pkcs8_priv_key_info_st PKCS8_PRIV_KEY_INFO;
    const char *OpenSSL_version(int type);
    unsigned long ERR_get_error(void);
    void ERR_clear_error(void);
    void ERR_error_string_n(unsigned long code, char *text, size_t size);
    const EVP_MD *EVP_sm3(void);
    const EVP_CIPHER *EVP_aes_256_cbc(void);
    EVP_PKEY_CTX *EVP_PKEY_CTX_new_from_name(void *library, const char *name, const char *properties);
    EVP_PKEY_CTX *EVP_PKEY_CTX_new(EVP_PKEY *key, void *engine);
    void EVP_PKEY_CTX_free(EVP_PKEY_CTX *context);
    int EVP_PKEY_keygen_init(EVP_PKEY_CTX *context);
    int EVP_PKEY_generate(EVP_PKEY_CTX *context, EVP_PKEY **key);
    int EVP_PKEY_CTX_set1_id(EVP_PKEY_CTX *context, const void *id, int length);
    int EVP_PKEY_is_a(const EVP_PKEY *key, const char *name);
    void EVP_PKEY_free(EVP_PKEY *key);
    EVP_MD_CTX *EVP_MD_CTX_new(void);
    void EVP_MD_CTX_free(EVP_MD_CTX *context);
    void EVP_MD_CTX_set_pkey_ctx(EVP_MD_CTX *context, EVP_PKEY_CTX *key_context);
    int EVP_DigestSignInit(EVP_MD_CTX *c, EVP_PKEY_CTX **p, const EVP_MD *md, void *e, EVP_PKEY *key);
    int EVP_DigestSign(EVP_MD_CTX *c, unsigned char *out, size_t *n, const unsigned char *tbs, size_t size);
    int EVP_DigestVerifyInit(EVP_MD_CTX *c, EVP_PKEY_CTX **p, const EVP_MD *md, void *e, EVP_PKEY *key);
    int EVP_DigestVerify(EVP_MD_CTX *c, const unsigned char *sig, size_t n,
                         const unsigned char *tbs, size_t size);
    int EVP_PKEY_sign_init(EVP_PKEY_CTX *context);
    int EVP_PKEY_sign(EVP_PKEY_CTX *c, unsigned char *out, size_t *n, const unsigned char *tbs, size_t size);
    int EVP_PKEY_encrypt_init(EVP_PKEY_CTX *context);
    int EVP_PKEY_encrypt(EVP_PKEY_CTX *c, unsigned char *out, size_t *n,
                         const unsigned char *in, size_t size);
    int EVP_PKEY_decrypt_init(EVP_PKEY_CTX *context);
    int EVP_PKEY_decrypt(EVP_PKEY_CTX *c, unsigned char *out, size_t *n,
                         const unsigned char *in, size_t size);
    EVP_PKEY *d2i_AutoPrivateKey(EVP_PKEY **key, const unsigned char **data, long size);
    EVP_PKEY *d2i_PUBKEY(EVP_PKEY **key, const unsigned char **data, long size);
    int i2d_PUBKEY(const EVP_PKEY *key, unsigned char **out);
    X509 *d2i_X509(X509 **certificate, const unsigned char **data, long size);
    EVP_PKEY *X509_get_pubkey(X509 *certificate);
    void X509_free(X509 *certificate);
    BIO *BIO_new_mem_buf(const void *data, int size);
    const void *BIO_s_mem(void);
    BIO *BIO_new(const void *method);
    long BIO_ctrl(BIO *bio, int command, long number, void *pointer);
    int BIO_free(BIO *bio);
    EVP_PKEY *PEM_read_bio_PrivateKey(BIO *bio, EVP_PKEY **key, void *callback, void *passphrase);
    int PEM_write_bio_PrivateKey(BIO *b, EVP_PKEY *k, const EVP_CIPHER *c, void *p, int n, void *cb, void *u);
    PKCS8_PRIV_KEY_INFO *EVP_PKEY2PKCS8(const EVP_PKEY *key);
    void PKCS8_PRIV_KEY_INFO_free(PKCS8_PRIV_KEY_INFO *info);
    X509_SIG *PKCS8_encrypt(int pbe, const EVP_CIPHER *cipher, const char *pass, int passlen,
                            unsigned char *salt, int saltlen, int iterations, PKCS8_PRIV_KEY_INFO *info);
    void X509_SIG_free(X509_SIG *encrypted);
    int PEM_write_bio_PKCS8(BIO *bio, X509_SIG *encrypted);
    """
)
_BIO_CTRL_INFO = 3
_CURVE = bytes.fromhex(  # a, b and the base point of GB/T 32918.5
    "FFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFC"
    "28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93"
    "32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7"
    "BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0"
)


class Sm2Error(ValueError):
    """libcrypto refused: a malformed key, cipher text or certificate, or a wrong passphrase."""


class LibcryptoMissing(RuntimeError):
    """This machine has no libcrypto.so.3 with SM2."""


def _load() -> Any:
    try:
        return ffi.dlopen("libcrypto.so.3")
    except OSError as error:
        raise LibcryptoMissing(f"SM2 needs OpenSSL 3 (libcrypto.so.3, Debian's libssl3): {error}") from None


_lib = _load()


def library_version() -> str:
    """Return libcrypto's version text."""
    return _text(_lib.OpenSSL_version(0))


def _text(pointer: Any) -> str:
    value = ffi.string(pointer)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _fail(what: str) -> Sm2Error:
    text = ffi.new("char[256]")
    code, reasons = _lib.ERR_get_error(), []
    while code:
        _lib.ERR_error_string_n(code, text, 256)
        reasons.append(_text(text).split(":")[-1])
        code = _lib.ERR_get_error()
    return Sm2Error(f"{what}: {', '.join(reasons) or 'refused by libcrypto'}")


def _owned(pointer: Any, free: Any, what: str) -> Any:
    if pointer == ffi.NULL:
        raise _fail(what)
    return ffi.gc(pointer, free)


def _sm2_key(pointer: Any, what: str) -> Any:
    key = _owned(pointer, _lib.EVP_PKEY_free, what)
    if not _lib.EVP_PKEY_is_a(key, b"SM2"):
        raise Sm2Error(f"{what}: not an SM2 key")
    return key


def _digest_context(key: Any) -> tuple[Any, Any]:
    """Return contexts with the signer id set; both must live until the operation is over."""
    key_context = _owned(_lib.EVP_PKEY_CTX_new(key, ffi.NULL), _lib.EVP_PKEY_CTX_free, "context")
    if _lib.EVP_PKEY_CTX_set1_id(key_context, SIGNER_ID, len(SIGNER_ID)) != 1:
        raise _fail("signer id")
    context = _owned(_lib.EVP_MD_CTX_new(), _lib.EVP_MD_CTX_free, "context")
    _lib.EVP_MD_CTX_set_pkey_ctx(context, key_context)
    return context, key_context


class PublicKey:
    """The public half of an SM2 key. Safe to use from several threads."""

    def __init__(self, key: Any) -> None:
        self._key = key

    @classmethod
    def from_der(cls, data: bytes) -> PublicKey:
        """Read a SubjectPublicKeyInfo. Raise Sm2Error."""
        place = ffi.new("const unsigned char **", ffi.from_buffer("unsigned char[]", data))
        return cls(_sm2_key(_lib.d2i_PUBKEY(ffi.NULL, place, len(data)), "public key"))

    @classmethod
    def from_certificate_der(cls, data: bytes) -> PublicKey:
        """Take the key out of an X.509 certificate, checking nothing else about it. Raise Sm2Error."""
        place = ffi.new("const unsigned char **", ffi.from_buffer("unsigned char[]", data))
        certificate = _owned(_lib.d2i_X509(ffi.NULL, place, len(data)), _lib.X509_free, "certificate")
        return cls(_sm2_key(_lib.X509_get_pubkey(certificate), "certificate's key"))

    def to_der(self) -> bytes:
        """Return the SubjectPublicKeyInfo."""
        size = _lib.i2d_PUBKEY(self._key, ffi.NULL)
        out = ffi.new("unsigned char[]", size)
        if _lib.i2d_PUBKEY(self._key, ffi.new("unsigned char **", out)) != size:
            raise _fail("public key")
        return bytes(ffi.buffer(out, size))

    @property
    def point(self) -> bytes:
        """The public point, 65 bytes: 04 ‖ x ‖ y."""
        return self.to_der()[-POINT_BYTES:]

    def digest(self, message: bytes) -> bytes:
        """Return e = SM3(Z ‖ message), 32 bytes: what a device signs (GB/T 32918.2 6.1, GM/T 0018)."""
        z = sm3((len(SIGNER_ID) * 8).to_bytes(2, "big") + SIGNER_ID + _CURVE + self.point[1:])
        return sm3(z + message)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Tell whether ``signature`` (DER) is this key's over ``message``. Never raises for bad ones."""
        context, _key_context = _digest_context(self._key)
        if _lib.EVP_DigestVerifyInit(context, ffi.NULL, _lib.EVP_sm3(), ffi.NULL, self._key) != 1:
            raise _fail("verify")
        good: bool = _lib.EVP_DigestVerify(context, signature, len(signature), message, len(message)) == 1
        _lib.ERR_clear_error()
        return good

    def encrypt(self, plaintext: bytes) -> bytes:
        """Return GM/T 0009 SM2Cipher DER (C1 C3 C2) of a short text, such as a data key."""
        context = _owned(_lib.EVP_PKEY_CTX_new(self._key, ffi.NULL), _lib.EVP_PKEY_CTX_free, "context")
        size = ffi.new("size_t *")
        if (
            _lib.EVP_PKEY_encrypt_init(context) != 1
            or _lib.EVP_PKEY_encrypt(context, ffi.NULL, size, plaintext, len(plaintext)) != 1
        ):
            raise _fail("encrypt")
        out = ffi.new("unsigned char[]", size[0])
        if _lib.EVP_PKEY_encrypt(context, out, size, plaintext, len(plaintext)) != 1:
            raise _fail("encrypt")
        return bytes(ffi.buffer(out, size[0]))


class PrivateKey:
    """An SM2 key pair in libcrypto's memory. Safe to use from several threads; never shown by repr."""

    def __init__(self, key: Any) -> None:
        self._key = key
        self.public = PublicKey(key)

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a new key pair from OpenSSL's random generator."""
        context = _owned(
            _lib.EVP_PKEY_CTX_new_from_name(ffi.NULL, b"SM2", ffi.NULL), _lib.EVP_PKEY_CTX_free, "SM2"
        )
        key = ffi.new("EVP_PKEY **")
        if _lib.EVP_PKEY_keygen_init(context) != 1 or _lib.EVP_PKEY_generate(context, key) != 1:
            raise _fail("key generation")
        return cls(_sm2_key(key[0], "key generation"))

    @classmethod
    def from_scalar(cls, scalar: int, point: bytes) -> PrivateKey:
        """Build the key of a published vector: d, and its public point (65 bytes)."""
        inner = der.sequence(
            der.integer(1),
            der.tlv(der.OCTET_STRING, scalar.to_bytes(32, "big")),
            der.tlv(0xA1, der.bit_string(point)),
        )
        algorithm = der.sequence(der.oid("1.2.840.10045.2.1"), der.oid(CURVE_OID))
        data = der.sequence(der.integer(0), algorithm, der.tlv(der.OCTET_STRING, inner))
        place = ffi.new("const unsigned char **", ffi.from_buffer("unsigned char[]", data))
        return cls(_sm2_key(_lib.d2i_AutoPrivateKey(ffi.NULL, place, len(data)), "private key"))

    @classmethod
    def from_pem(cls, data: bytes, passphrase: str | None = None) -> PrivateKey:
        """Read a PEM private key, encrypted (PKCS #8) or not. Raise Sm2Error for a wrong passphrase too."""
        bio = _owned(_lib.BIO_new_mem_buf(data, len(data)), _lib.BIO_free, "PEM")
        # Never NULL for the passphrase: libcrypto would ask for it on the terminal.
        secret = ffi.new("char[]", _passphrase_bytes(passphrase or ""))
        return cls(_sm2_key(_lib.PEM_read_bio_PrivateKey(bio, ffi.NULL, ffi.NULL, secret), "private key"))

    def to_pem(self, passphrase: str | None = None) -> bytes:
        """Write PKCS #8 PEM; with a passphrase PBES2 (PBKDF2-HMAC-SHA256, 200,000 rounds, AES-256-CBC)."""
        bio = _owned(_lib.BIO_new(_lib.BIO_s_mem()), _lib.BIO_free, "memory")
        if passphrase:
            secret = _passphrase_bytes(passphrase)
            info = _owned(_lib.EVP_PKEY2PKCS8(self._key), _lib.PKCS8_PRIV_KEY_INFO_free, "PKCS #8")
            encrypted = _owned(
                _lib.PKCS8_encrypt(
                    -1, _lib.EVP_aes_256_cbc(), secret, len(secret), ffi.NULL, 0, _PBKDF2_ROUNDS, info
                ),
                _lib.X509_SIG_free,
                "PKCS #8",
            )
            good = _lib.PEM_write_bio_PKCS8(bio, encrypted)
        else:
            good = _lib.PEM_write_bio_PrivateKey(bio, self._key, ffi.NULL, ffi.NULL, 0, ffi.NULL, ffi.NULL)
        if good != 1:
            raise _fail("PEM")
        place = ffi.new("char **")
        size = _lib.BIO_ctrl(bio, _BIO_CTRL_INFO, 0, place)
        return bytes(ffi.buffer(place[0], size))

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature over ``message`` (hashed with Z inside; GM/T 0003.2)."""
        context, _key_context = _digest_context(self._key)
        if _lib.EVP_DigestSignInit(context, ffi.NULL, _lib.EVP_sm3(), ffi.NULL, self._key) != 1:
            raise _fail("sign")
        size = ffi.new("size_t *", 128)
        out = ffi.new("unsigned char[]", 128)
        if _lib.EVP_DigestSign(context, out, size, message, len(message)) != 1:
            raise _fail("sign")
        return bytes(ffi.buffer(out, size[0]))

    def sign_digest(self, digest: bytes) -> bytes:
        """Return the DER signature over e (32 bytes, see ``PublicKey.digest``), as a device makes it."""
        if len(digest) != 32:
            raise Sm2Error(f"sign: a digest of {len(digest)} bytes, not 32")
        context = _owned(_lib.EVP_PKEY_CTX_new(self._key, ffi.NULL), _lib.EVP_PKEY_CTX_free, "context")
        size = ffi.new("size_t *", 128)
        out = ffi.new("unsigned char[]", 128)
        if (
            _lib.EVP_PKEY_sign_init(context) != 1
            or _lib.EVP_PKEY_sign(context, out, size, digest, len(digest)) != 1
        ):
            raise _fail("sign")
        return bytes(ffi.buffer(out, size[0]))

    def decrypt(self, ciphertext: bytes) -> bytes:
        """Open GM/T 0009 SM2Cipher DER. Raise Sm2Error if it is changed (C3) or for another key."""
        context = _owned(_lib.EVP_PKEY_CTX_new(self._key, ffi.NULL), _lib.EVP_PKEY_CTX_free, "context")
        size = ffi.new("size_t *")
        if (
            _lib.EVP_PKEY_decrypt_init(context) != 1
            or _lib.EVP_PKEY_decrypt(context, ffi.NULL, size, ciphertext, len(ciphertext)) != 1
        ):
            raise _fail("decrypt")
        out = ffi.new("unsigned char[]", size[0] + 1)
        if _lib.EVP_PKEY_decrypt(context, out, size, ciphertext, len(ciphertext)) != 1:
            raise _fail("decrypt")
        return bytes(ffi.buffer(out, size[0]))


def _passphrase_bytes(passphrase: str) -> bytes:
    encoded = passphrase.encode()
    if b"\0" in encoded or len(encoded) > 1023:
        raise ValueError("a passphrase has at most 1023 bytes and no NUL")
    return encoded


# GB/T 32918.5-2017 annexes A.2 (signature) and C.2 (encryption), the recommended curve.
_D = 0x3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8
_POINT = bytes.fromhex(
    "04"
    "09F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020"
    "CCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13"
)
_R = 0xF5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3
_S = 0xB1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA
_C1_X = 0x04EBFC718E8D1798620432268E77FEB6415E2EDE0E073C0F4F640ECD2E149A73
_C1_Y = 0xE858F9D81E5430A57B36DAAB8F950A3C64E6EE6A63094D99283AFF767E124DF0
_C3 = bytes.fromhex("59983C18F809E262923C53AEC295D30383B54E39D609D160AFCB1908D0BD8766")
_C2 = bytes.fromhex("21886CA989CA9C7D58087307CA93092D651EFA")


def self_test() -> None:
    """Check libcrypto's SM2 against the standard's examples. Raise SelfTestError."""
    from recorder.gm.selftest import SelfTestError

    key = PrivateKey.from_scalar(_D, _POINT)
    signature = der.sequence(der.integer(_R), der.integer(_S))
    if not key.public.verify(b"message digest", signature):
        raise SelfTestError("SM2 of libcrypto does not accept GB/T 32918.5's signature")
    if key.public.verify(b"message digesT", signature):
        raise SelfTestError("SM2 of libcrypto accepts a signature over another message")
    if not key.public.verify(b"round trip", key.sign(b"round trip")):
        raise SelfTestError("SM2 of libcrypto does not accept its own signature")
    parts = (
        der.integer(_C1_X),
        der.integer(_C1_Y),
        der.tlv(der.OCTET_STRING, _C3),
        der.tlv(der.OCTET_STRING, _C2),
    )
    if key.decrypt(der.sequence(*parts)) != b"encryption standard":
        raise SelfTestError("SM2 of libcrypto does not open GB/T 32918.5's cipher text")
