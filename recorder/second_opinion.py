"""Check a verified recording a second time by code that shares nothing with the first: gmssl, pure Python.

Signatures and digests that verification accepted (libcrypto, libgcrypt, hashlib) are computed anew by gmssl,
page bodies written anew by Python's ``json``. gmssl sees public keys, signatures and signed bytes, never a
private key: its nonces come from ``random`` and it checks neither ranges nor curves, so that it is no judge
of what the first one refused; it is asked only whether it agrees with what was accepted.

It is slow (SM3 0.1 MB/s, a signature some 15 ms), so files are taken smallest first and checkpoints evenly
over the recording until a limit; the report says what was checked twice and what was not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from gmssl.sm2 import CryptSM2
from gmssl.sm3 import sm3_hash

from recorder.canonical import JSON
from recorder.checkpoint import Checkpoint
from recorder.gm.sm3 import sm3
from recorder.gm.x509 import Certificate
from recorder.keys import SIDECAR
from recorder.manifest import MANIFEST
from recorder.report import Finding, Kind, Report
from recorder.sealed import RecordType
from recorder.sealed.format import MAGIC, RECORD, TRAILER_BYTES
from recorder.signed import SIGNATURE_PREFIX, read_page
from recorder.statements import STATEMENTS, list_statements
from recorder.storage import list_segments

CHECKPOINTS = 200
"""Checkpoint signatures checked at the most: some 3 s."""
DIGEST_BYTES = 1 << 20
"""Bytes of pages and files hashed at the most: some 10 s."""


@dataclass
class Opinion:
    """What was checked a second time, and of how much."""

    by: str
    pages: int = 0
    """Signed pages whose signature gmssl accepts too."""
    pages_of: int = 0
    checkpoints: int = 0
    checkpoints_of: int = 0
    files: int = 0
    """Pages and sealed files whose whole SM3 was taken again."""
    files_of: int = 0
    bytes: int = 0
    bytes_of: int = 0

    def to_json(self) -> dict[str, JSON]:
        """Return the members as JSON."""
        return asdict(self)


def gmssl_verifies(point: bytes, message: bytes, signature: bytes) -> bool:
    """Ask gmssl whether a DER signature over ``message`` is of the public point (65 bytes: 04 ‖ x ‖ y)."""
    judge = CryptSM2(private_key="", public_key="", asn1=True)
    # Its constructor strips every leading 0 and 4 of a key that begins with 04, not that prefix alone.
    judge.public_key = point[1:].hex()
    try:
        return bool(judge.verify_with_sm3(signature.hex(), message))
    except (ValueError, TypeError, IndexError):  # what it raises for rubbish, and for points at infinity
        return False


def gmssl_sm3(data: bytes) -> bytes:
    """Return gmssl's SM3 of ``data``, 0.1 MB/s."""
    return bytes.fromhex(sm3_hash(bytearray(data)))


def check(path: Path, report: Report) -> Opinion:
    """Check again what ``report`` (of ``recorder.verify``) accepted in the directory ``path``.

    Disagreements are added to the report's findings, and the report keeps what is returned.
    """
    second = _Second(path, report)
    second.pages()
    second.checkpoints()
    second.digests()
    report.second_opinion = second.opinion.to_json()
    return second.opinion


class _Second:
    def __init__(self, path: Path, report: Report) -> None:
        self._path = path
        self._report = report
        self._doubted = {finding.file for finding in report.findings if finding.kind not in _ACCEPTED}
        self._signers: dict[str, bytes] = {}
        self.opinion = Opinion(by=f"gmssl {version('gmssl')}")

    def _disagree(self, file: str, detail: str, begin: int, end: int, record: int | None = None) -> None:
        self._report.findings.append(Finding(Kind.DISAGREEMENT, file, detail, begin, end, record))

    def _accepted_pages(self) -> Iterator[tuple[str, bytes]]:
        paths = [self._path / MANIFEST, self._path / SIDECAR]
        paths += [page for _, page in list_statements(self._path)]
        for path in paths:
            name = f"{STATEMENTS}/{path.name}" if path.parent.name == STATEMENTS else path.name
            if path.exists() and name not in self._doubted:
                yield name, read_page(path)

    def pages(self) -> None:
        """Write each page's body anew by docs/container.md section 5 and ask about its signature."""
        for name, data in self._accepted_pages():
            page = json.loads(data)
            signature = base64.b64decode(page.pop("signature").removeprefix(SIGNATURE_PREFIX))
            body = json.dumps(page, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            certificate = Certificate.from_pem(page["certificate"])
            if certificate.fingerprint in self._report.signers:
                self._signers[certificate.fingerprint] = certificate.public_key.point
            self.opinion.pages_of += 1
            if gmssl_verifies(certificate.public_key.point, body, signature):
                self.opinion.pages += 1
            else:
                self._disagree(name, f"{self.opinion.by} does not accept the signature", 0, len(data))

    def checkpoints(self) -> None:
        """Ask about checkpoint signatures, evenly over the recording, the last one always among them."""
        found = [
            (f"{path.parent.name}/{path.name}", *frame)
            for _, path in list_segments(self._path)
            if f"{path.parent.name}/{path.name}" not in self._doubted
            for frame in _checkpoint_frames(path)
        ]
        self.opinion.checkpoints_of = len(found)
        count = min(len(found), CHECKPOINTS)
        for place in range(1, count + 1):
            file, number, begin, end, payload = found[place * len(found) // count - 1]
            checkpoint = Checkpoint.from_bytes(payload)
            message, signature = checkpoint.signed_message(), checkpoint.signature
            if any(gmssl_verifies(point, message, signature) for point in self._signers.values()):
                self.opinion.checkpoints += 1
            else:
                detail = f"{self.opinion.by} does not accept the checkpoint's signature"
                self._disagree(file, detail, begin, end, number)

    def digests(self) -> None:
        """Take the SM3 of whole files anew: pages first, then the others, smallest first."""
        pages = {name for name, _ in self._accepted_pages()}
        files = [
            (str(path.relative_to(self._path)), path, path.stat().st_size)
            for path in self._path.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        ]
        files = [file for file in files if file[0] not in self._doubted]
        files.sort(key=lambda file: (file[0] not in pages, file[2]))
        self.opinion.files_of = len(files)
        self.opinion.bytes_of = sum(size for _, _, size in files)
        for name, path, size in files:
            if self.opinion.bytes + size > DIGEST_BYTES:
                continue
            data = path.read_bytes()
            self.opinion.files += 1
            self.opinion.bytes += len(data)
            if gmssl_sm3(data) != sm3(data):
                self._disagree(name, f"{self.opinion.by} computes another SM3 of the file", 0, len(data))


_ACCEPTED = (Kind.UNPROVEN, Kind.LEFTOVER)


def _checkpoint_frames(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield number, begin, end and body of each whole CHECKPOINT record, skipping the others' bodies."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        size = file.seek(0, 2)
        offset = len(MAGIC)
        while file.seek(offset) == offset and len(head := file.read(RECORD.size)) == RECORD.size:
            kind, _, number, length = RECORD.unpack(head)
            end = offset + RECORD.size + length + TRAILER_BYTES
            if end > size:
                return  # torn: the first opinion does not speak of it either
            if kind == RecordType.CHECKPOINT:
                yield number, offset, end, file.read(length)
            offset = end
