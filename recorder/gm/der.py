"""Write the few ASN.1 DER structures we make ourselves (X.690): certificates, keys of the self-test."""

from __future__ import annotations

from datetime import datetime

INTEGER, BIT_STRING, OCTET_STRING, OID, UTF8_STRING = 0x02, 0x03, 0x04, 0x06, 0x0C
PRINTABLE_STRING, NULL, ENUMERATED = 0x13, 0x05, 0x0A
UTC_TIME, GENERALIZED_TIME, SEQUENCE, SET, BOOLEAN = 0x17, 0x18, 0x30, 0x31, 0x01


def tlv(tag: int, content: bytes) -> bytes:
    """Return tag, length in the shortest form, content."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sequence(*items: bytes) -> bytes:
    """Return a SEQUENCE of encoded items."""
    return tlv(SEQUENCE, b"".join(items))


def integer(value: int) -> bytes:
    """Return a non-negative INTEGER."""
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    content = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return tlv(OID, bytes(content))


def bit_string(content: bytes, unused: int = 0) -> bytes:
    """Return a BIT STRING; ``unused`` low bits of the last byte do not count."""
    return tlv(BIT_STRING, bytes((unused,)) + content)


def time(when: datetime) -> bytes:
    """Return a time as RFC 5280 section 4.1.2.5 wants it: UTCTime up to 2049, then GeneralizedTime."""
    if when.year < 2050:
        return tlv(UTC_TIME, when.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(GENERALIZED_TIME, when.strftime("%Y%m%d%H%M%SZ").encode())


def read(data: bytes, tag: int | None = None) -> tuple[bytes, bytes]:
    """Return the content of the first element and the bytes after it.

    Raise ValueError if it is cut off, of another tag than expected, or of no definite length.
    """
    if len(data) < 2 or (tag is not None and data[0] != tag):
        raise ValueError("cut off, or not the expected ASN.1 element")
    size, begin = data[1], 2
    if size & 0x80:
        begin += size & 0x7F
        size = int.from_bytes(data[2:begin], "big")
        if not 2 < begin <= 6:
            raise ValueError("a length this program does not read")
    if len(data) < begin + size:
        raise ValueError("an ASN.1 element is cut off")
    return data[begin : begin + size], data[begin + size :]
