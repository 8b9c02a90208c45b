"""The part of STUN that ICE-lite needs (RFC 8489, RFC 8445): read Binding requests, write their answers.

Every client's consent check comes through here every few seconds, so both ways are one pass over the bytes, a
quarter of what a general parser takes. Whatever is not as the RFC says is refused whole.
"""

from __future__ import annotations

import hmac
import socket
import struct
import zlib
from dataclasses import dataclass

COOKIE = b"\x21\x12\xa4\x42"
MAX_BYTES = 1500

_REQUEST, _RESPONSE, _ERROR = 0x0001, 0x0101, 0x0111
_USERNAME, _INTEGRITY, _ERROR_CODE, _XOR_MAPPED_ADDRESS = 0x0006, 0x0008, 0x0009, 0x0020
_USE_CANDIDATE, _FINGERPRINT, _CONTROLLED = 0x0025, 0x8028, 0x8029
_INTEGRITY_BYTES, _FINGERPRINT_BYTES = 24, 8
_FINGERPRINT_XOR = 0x5354554E
_HEAD = struct.Struct("!HH")
_CONFLICT = _HEAD.pack(_ERROR_CODE, 17) + b"\0\0\x04\x57Role Conflict\0\0\0"


class StunError(ValueError):
    """The datagram is no whole STUN message."""


@dataclass(slots=True)
class Request:
    """A Binding request as it came; nothing in it is to be believed before ``has_integrity``."""

    transaction: bytes
    ours: str
    """First half of USERNAME: the name of who is asked. Empty without USERNAME."""
    theirs: str
    nominates: bool
    controlled: bool
    """It calls itself controlled, as an ICE-lite side always is: one of both is wrong."""
    has_fingerprint: bool
    covered: bytes
    """What MESSAGE-INTEGRITY is computed over."""
    integrity: bytes
    """Its 20 bytes, empty without one."""

    def has_integrity(self, key: bytes) -> bool:
        """Tell whether the sender knows the password ``key``."""
        return hmac.compare_digest(hmac.digest(key, self.covered, "sha1"), self.integrity)


def read(data: bytes) -> Request | None:
    """Read a datagram: a Binding request, or None for other STUN messages. Raises ``StunError``.

    Lengths must add up, FINGERPRINT must be the last attribute and right. What follows MESSAGE-INTEGRITY is
    not authenticated and is ignored (RFC 8489 section 14.5).
    """
    size = len(data)
    if not 20 <= size <= MAX_BYTES or size % 4 or data[4:8] != COOKIE or data[0] & 0xC0:
        raise StunError("no STUN header")
    kind, length = _HEAD.unpack_from(data)
    if length != size - 20:
        raise StunError("length")
    username = integrity = b""
    nominates = controlled = has_fingerprint = False
    integrity_at = 0
    at = 20
    while at < size:
        attribute, length = _HEAD.unpack_from(data, at)
        value = at + 4
        end = value + length
        if end > size:
            raise StunError("attribute")
        if attribute == _FINGERPRINT:
            if length != 4 or end != size:
                raise StunError("fingerprint")
            if int.from_bytes(data[value:end], "big") != zlib.crc32(data[:at]) ^ _FINGERPRINT_XOR:
                raise StunError("fingerprint")
            has_fingerprint = True
        elif integrity_at:
            pass
        elif attribute == _USERNAME:
            username = data[value:end]
        elif attribute == _USE_CANDIDATE:
            nominates = True
        elif attribute == _CONTROLLED:
            controlled = True
        elif attribute == _INTEGRITY:
            if length != 20:
                raise StunError("integrity")
            integrity_at, integrity = at, data[value:end]
        at = end + (-length & 3)
    if kind != _REQUEST:
        return None
    try:
        ours, _, theirs = username.decode().partition(":")
    except UnicodeDecodeError as error:
        raise StunError("username") from error
    covered = b""
    if integrity_at:
        covered = _HEAD.pack(kind, integrity_at + _INTEGRITY_BYTES - 20) + data[4:integrity_at]
    return Request(data[8:20], ours, theirs, nominates, controlled, has_fingerprint, covered, integrity)


def user(data: bytes) -> str:
    """Return the first half of a datagram's USERNAME, unchecked; empty if it is not among the first eight
    attributes."""
    at = 20
    for _ in range(8):
        if at + 4 > len(data):
            break
        attribute, length = _HEAD.unpack_from(data, at)
        if attribute == _USERNAME:
            return data[at + 4 : at + 4 + length].partition(b":")[0].decode(errors="replace")
        at += 4 + length + (-length & 3)
    return ""


def respond(transaction: bytes, address: tuple[str, int], key: bytes) -> bytes:
    """Write the answer to a request that came from ``address``."""
    host, port = address
    family, mask = (socket.AF_INET6, COOKIE + transaction) if ":" in host else (socket.AF_INET, COOKIE)
    number = socket.inet_pton(family, host.partition("%")[0])
    hidden = int.from_bytes(number, "big") ^ int.from_bytes(mask, "big")
    body = struct.pack(
        "!HHBBH", _XOR_MAPPED_ADDRESS, 4 + len(number), 0, 2 if ":" in host else 1, port ^ 0x2112
    ) + hidden.to_bytes(len(number), "big")
    return _signed(_RESPONSE, transaction, body, key)


def refuse_role(transaction: bytes, key: bytes) -> bytes:
    """Write the answer 487 (Role Conflict)."""
    return _signed(_ERROR, transaction, _CONFLICT, key)


def _signed(kind: int, transaction: bytes, body: bytes, key: bytes) -> bytes:
    rest = COOKIE + transaction + body
    length = len(body) + _INTEGRITY_BYTES
    code = hmac.digest(key, _HEAD.pack(kind, length) + rest, "sha1")
    whole = _HEAD.pack(kind, length + _FINGERPRINT_BYTES) + rest + _HEAD.pack(_INTEGRITY, 20) + code
    return whole + struct.pack("!HHI", _FINGERPRINT, 4, zlib.crc32(whole) ^ _FINGERPRINT_XOR)
