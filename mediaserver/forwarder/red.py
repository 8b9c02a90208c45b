"""Redundant audio (RFC 2198): which packets are taken, and how a subscriber without it gets its frame alone.

A packet's payload is a row of block headers, the blocks of frames sent before, and its own (primary) frame::

    |1| PT 7 | timestamp offset 14 | length 10 |  …  |0| PT 7 |  block  …  primary block

Taken are only packets whose blocks are all of the stream's codec, so that payload types can be exchanged for
the subscriber's. The native twin of this file is ``csrc/red.c``.
"""

from __future__ import annotations

from typing import Final

MAX_BLOCKS: Final = 32
MALFORMED: Final = 0
FOREIGN: Final = -1
"""A block is of another codec."""


def primary(data: bytes, start: int, end: int, payload_type: int | None) -> int:
    """Return the offset of the primary block of a payload, ``MALFORMED`` or ``FOREIGN``.

    ``payload_type``: what all blocks must have; ``None``: any.
    """
    at, copies, blocks, foreign = start, 0, 0, False
    while at < end and data[at] & 0x80:
        if blocks == MAX_BLOCKS or at + 4 > end:
            return MALFORMED
        foreign |= data[at] & 0x7F != payload_type
        copies += (data[at + 2] << 8 | data[at + 3]) & 0x3FF
        at += 4
        blocks += 1
    if at >= end or copies > end - at - 1:
        return MALFORMED
    foreign |= data[at] != payload_type
    return FOREIGN if foreign and payload_type is not None else at + 1 + copies


def renumbered(payload: bytes, payload_type: int) -> bytes:
    """Return a payload that ``primary`` found good with another payload type in all its headers."""
    changed = bytearray(payload)
    at = 0
    while at < len(changed) and changed[at] & 0x80:
        changed[at] = 0x80 | payload_type
        at += 4
    if at < len(changed):
        changed[at] = payload_type
    return bytes(changed)
