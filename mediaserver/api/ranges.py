"""HTTP Range and conditional requests (RFC 9110 sections 13 and 14), as pure functions."""

from __future__ import annotations

import re

_SINGLE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*\Z")


class RangeNotSatisfiable(Exception):
    """The range lies outside the file (416)."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Give the half-open byte range a Range header asks of ``size`` bytes; None means the whole file.

    Several ranges, other units and malformed headers are answered whole, as RFC 9110 section 14.2 allows.
    Raises RangeNotSatisfiable.
    """
    match = _SINGLE.match(header.strip()) if header is not None else None
    if match is None:
        return None
    first, last = match[1], match[2]
    if not first and not last:
        return None
    if not first:
        length = int(last)
        if length == 0 or size == 0:
            raise RangeNotSatisfiable
        return max(0, size - length), size
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiable
    return start, min(size, int(last) + 1) if last else size


def etag_listed(header: str, etag: str, *, weak: bool) -> bool:
    """Say whether a list of entity tags holds ``etag`` (quoted); ``weak`` compares as If-None-Match does."""
    if header.strip() == "*":
        return True
    for one in header.split(","):
        tag = one.strip()
        if weak and tag.startswith("W/"):
            tag = tag[2:]
        if tag == etag:
            return True
    return False
