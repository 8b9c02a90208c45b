"""Redundant audio (RFC 2198, "RED"): one packet carries its own frame and copies of frames before it.

::

    |1| PT 7 | timestamp offset 14 | length 10 |  …  |0| PT 7 |  block  …  primary block
     for each redundant block                         primary
"""

from __future__ import annotations

from dataclasses import dataclass

from recorder.rtp import RtpError

MAX_BLOCKS = 32
"""Redundant blocks of one packet that are looked at; senders in the field put in 1 to 8."""


@dataclass(frozen=True, slots=True)
class RedBlock:
    """One block of a packet."""

    payload_type: int
    """0 … 127."""
    offset: int
    """Media time by which it lies before the packet, 0 … 16383; 0 for the primary block."""
    data: bytes
    """May be empty."""


def parse_red(payload: bytes) -> list[RedBlock]:
    """Return the blocks of a RED payload as they stand in it, the primary one last (RFC 2198 section 3).

    Raises RtpError(``red``) for headers or blocks that are cut off and for more than ``MAX_BLOCKS``.
    """
    headers: list[tuple[int, int, int]] = []
    at, size = 0, len(payload)
    while at < size and payload[at] & 0x80:
        if len(headers) == MAX_BLOCKS:
            raise RtpError("red", f"more than {MAX_BLOCKS} redundant blocks")
        if at + 4 > size:
            raise RtpError("red", "block header cut off")
        word = int.from_bytes(payload[at : at + 4], "big")
        headers.append((word >> 24 & 0x7F, word >> 10 & 0x3FFF, word & 0x3FF))
        at += 4
    if at >= size:
        raise RtpError("red", "no primary block")
    primary = payload[at] & 0x7F
    at += 1
    blocks: list[RedBlock] = []
    for payload_type, offset, length in headers:
        if at + length > size:
            raise RtpError("red", f"block of {length} bytes, {size - at} left")
        blocks.append(RedBlock(payload_type, offset, payload[at : at + length]))
        at += length
    return [*blocks, RedBlock(primary, 0, payload[at:])]
