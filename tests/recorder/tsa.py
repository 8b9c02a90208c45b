"""Time-stamp authorities for tests and benches: OpenSSL's ``ts`` behind a real HTTP server, and tokens made
by hand where ``openssl ts`` refuses (another time, another certificate, SM2 keys).
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from recorder.gm import der, tsp
from recorder.gm.sm2 import PrivateKey
from recorder.gm.sm3 import sm3
from recorder.gm.x509 import SM2_WITH_SM3_OID, extension, name, sign_certificate

POLICY = "1.3.6.1.4.1.55555.1"
OTHER_POLICY = "1.3.6.1.4.1.55555.2"
CMS_SIGNED_DATA = "1.2.840.113549.1.7.2"
GM_SIGNED_DATA = "1.2.156.10197.6.1.4.2.2"
_TST_INFO = "1.2.840.113549.1.9.16.1.4"
_SHA256 = der.sequence(der.oid("2.16.840.1.101.3.4.2.1"))
_SM3 = der.sequence(der.oid(tsp.SM3_OID))
_RSA = der.sequence(der.oid("1.2.840.113549.1.1.1"), der.tlv(der.NULL, b""))
_ECDSA_SHA256 = der.sequence(der.oid("1.2.840.10045.4.3.2"))
Algorithm = Literal["rsa", "p256"]
_CONFIG = """
[tsa]
default_tsa = test
[test]
serial = {directory}/serial
signer_cert = {directory}/tsa.pem
signer_key = {directory}/tsa.key
certs = {directory}/ca.pem
signer_digest = sha256
default_policy = {policy}
other_policies = {other_policy}
digests = sm3
accuracy = secs:1
ordering = no
tsa_name = yes
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""


def openssl(*arguments: str | Path) -> str:
    """Run ``openssl``; return what it prints. Raise CalledProcessError."""
    done = subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


@dataclass
class Authority:
    """A CA and the time-stamp certificate it issued, in files that ``openssl ts`` reads."""

    directory: Path
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    ca: x509.Certificate
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    @property
    def trust(self) -> Path:
        """PEM file with the anchor."""
        return self.directory / "ca.pem"

    def reply(self, request: bytes) -> bytes:
        """Answer a TimeStampReq with ``openssl ts -reply``."""
        query, answer = self.directory / "query.tsq", self.directory / "answer.tsr"
        with self.one_at_a_time:  # the serial number is a file
            query.write_bytes(request)
            answer.unlink(missing_ok=True)
            config = self.directory / "tsa.cnf"
            openssl("ts", "-reply", "-config", config, "-queryfile", query, "-out", answer)
            return answer.read_bytes()

    def token(
        self, imprint: bytes, at: datetime, *, nonce: int | None = None, digest: str = "sha256"
    ) -> bytes:
        """Make a response by hand, such as this authority would have given at ``at``."""
        info, key = tst_info(imprint, at, nonce), self.key
        certificates = [one.public_bytes(Encoding.DER) for one in (self.certificate, self.ca)]
        if digest == "sm3":
            assert isinstance(key, rsa.RSAPrivateKey)
            return response(info, certificates, _SM3, _RSA, partial(_rsa_sm3, key))
        algorithm = _RSA if isinstance(key, rsa.RSAPrivateKey) else _ECDSA_SHA256
        return response(info, certificates, _SHA256, algorithm, self._sign)

    def _sign(self, data: bytes) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


def make_authority(
    directory: Path,
    algorithm: Algorithm = "p256",
    *,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    time_stamping: bool = True,
    title: str = "Test Time-Stamp Authority",
) -> Authority:
    """Make keys and certificates (valid from yesterday for ten years, if not said otherwise)."""
    directory.mkdir(parents=True)
    now = datetime.now(UTC).replace(microsecond=0)
    begin, end = not_before or now - timedelta(days=1), not_after or now + timedelta(days=3650)
    ca_key, key = _new_key(algorithm), _new_key(algorithm)
    root = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{title} Root")])
    ca = (
        _builder(root, root, ca_key, begin, end + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    builder = _builder(own, root, key, begin, end)
    if time_stamping:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
        builder = builder.add_extension(usage, critical=True)
    certificate = builder.sign(ca_key, hashes.SHA256())
    (directory / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (directory / "tsa.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (directory / "tsa.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (directory / "serial").write_text("01\n")
    config = _CONFIG.format(directory=directory, policy=POLICY, other_policy=OTHER_POLICY)
    (directory / "tsa.cnf").write_text(config)
    return Authority(directory, key, certificate, ca)


def _new_key(algorithm: Algorithm) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    if algorithm == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _rsa_sm3(key: rsa.RSAPrivateKey, data: bytes) -> bytes:
    """Sign over SM3 with RSA (GM/T 0006's 1.2.156.10197.1.504), which OpenSSL refuses to make."""
    numbers = key.private_numbers()
    modulus = numbers.public_numbers.n
    algorithm = der.sequence(der.oid(tsp.SM3_OID), der.tlv(der.NULL, b""))
    info = der.sequence(algorithm, der.tlv(der.OCTET_STRING, sm3(data)))
    size = (modulus.bit_length() + 7) // 8
    padded = b"\x00\x01" + b"\xff" * (size - len(info) - 3) + b"\x00" + info
    return pow(int.from_bytes(padded, "big"), numbers.d, modulus).to_bytes(size, "big")


def tst_info(imprint: bytes, at: datetime, nonce: int | None = None) -> bytes:
    """Return the DER TSTInfo (RFC 3161 section 2.4.2) over an SM3 imprint."""
    algorithm = der.sequence(der.oid(tsp.SM3_OID), der.tlv(der.NULL, b""))
    return der.sequence(
        der.integer(1),
        der.oid(POLICY),
        der.sequence(algorithm, der.tlv(der.OCTET_STRING, imprint)),
        der.integer(77),
        der.tlv(der.GENERALIZED_TIME, at.strftime("%Y%m%d%H%M%SZ").encode()),
        der.integer(nonce) if nonce is not None else b"",
    )


def response(
    info: bytes,
    certificates: list[bytes],
    digest_algorithm: bytes,
    signature_algorithm: bytes,
    sign: Callable[[bytes], bytes],
    *,
    content_type: str = CMS_SIGNED_DATA,
) -> bytes:
    """Return a granted TimeStampResp whose token is a CMS SignedData (RFC 5652) made by hand."""
    hashed = sm3(info) if digest_algorithm == _SM3 else sha256(info).digest()
    own = x509.load_der_x509_certificate(certificates[0])
    certificate_id = der.sequence(der.tlv(der.OCTET_STRING, sha256(certificates[0]).digest()))
    attributes = b"".join(
        sorted(
            der.sequence(der.oid(kind), der.tlv(der.SET, value))
            for kind, value in (
                ("1.2.840.113549.1.9.3", der.oid(_TST_INFO)),
                ("1.2.840.113549.1.9.4", der.tlv(der.OCTET_STRING, hashed)),
                ("1.2.840.113549.1.9.16.2.47", der.sequence(der.sequence(certificate_id))),
            )
        )
    )
    signer = der.sequence(
        der.integer(1),
        der.sequence(own.issuer.public_bytes(), der.integer(own.serial_number)),
        digest_algorithm,
        der.tlv(0xA0, attributes),
        signature_algorithm,
        der.tlv(der.OCTET_STRING, sign(der.tlv(der.SET, attributes))),
    )
    content = der.tlv(0xA0, der.tlv(der.OCTET_STRING, info))
    signed = der.sequence(
        der.integer(3),
        der.tlv(der.SET, digest_algorithm),
        der.sequence(der.oid(_TST_INFO), content),
        der.tlv(0xA0, b"".join(certificates)),
        der.tlv(der.SET, signer),
    )
    token = der.sequence(der.oid(content_type), der.tlv(0xA0, signed))
    return der.sequence(der.sequence(der.integer(0)), token)


def sm2_response(
    imprint: bytes, at: datetime, nonce: int | None = None, *, content_type: str = CMS_SIGNED_DATA
) -> bytes:
    """Return the answer of an authority that signs with SM2 over SM3, as GM/T 0033 has them."""
    key = PrivateKey.generate()
    own = name({"C": "CN", "CN": "Test SM2 Time-Stamp Authority"})
    pem = sign_certificate(
        key.public,
        own,
        key,
        own,
        not_before=at - timedelta(days=1),
        not_after=at + timedelta(days=365),
        extensions=[extension("2.5.29.37", der.sequence(der.oid("1.3.6.1.5.5.7.3.8")), critical=True)],
    )
    certificate = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
    algorithm = der.sequence(der.oid(SM2_WITH_SM3_OID))
    info = tst_info(imprint, at, nonce)
    return response(info, [certificate], _SM3, algorithm, key.sign, content_type=content_type)


def nonce_of(request: bytes) -> int:
    """Return the nonce of a TimeStampReq."""
    body, _ = der.read(request, der.SEQUENCE)
    while body:
        tag, (content, body) = body[0], der.read(body)
        if tag == der.INTEGER and len(content) > 1:
            return int.from_bytes(content, "big")
    raise ValueError("the request has no nonce")


def imprint_of(request: bytes) -> bytes:
    """Return the imprint of a TimeStampReq."""
    _, rest = der.read(der.read(request, der.SEQUENCE)[0], der.INTEGER)
    _, hashed = der.read(der.read(rest, der.SEQUENCE)[0], der.SEQUENCE)
    return der.read(hashed, der.OCTET_STRING)[0]


@dataclass
class Server:
    """What the HTTP server answers, to be changed while it runs."""

    url: str
    answer: Callable[[bytes], bytes]
    status: int = 200
    content_type: str = "application/timestamp-reply"
    pause_s: float = 0.0
    """Before each byte of the answer, if not 0."""
    announced: int | None = None
    """Content-Length, if it is to be a wrong one."""
    requests: list[bytes] = field(default_factory=list)


@contextlib.contextmanager
def serve(answer: Callable[[bytes], bytes]) -> Iterator[Server]:
    """Run an HTTP server that answers POSTs by ``answer`` (such as ``Authority.reply``)."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = self.rfile.read(int(self.headers["Content-Length"]))
            state.requests.append(request)
            data = state.answer(request)
            self.send_response(state.status)
            self.send_header("Content-Type", state.content_type)
            self.send_header("Content-Length", str(state.announced or len(data)))
            self.end_headers()
            if not state.pause_s:
                self.wfile.write(data)
                return
            with contextlib.suppress(OSError):
                for at in range(len(data)):
                    self.wfile.write(data[at : at + 1])
                    if released.wait(state.pause_s):
                        return

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{httpd.server_port}/", answer)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        released.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()
