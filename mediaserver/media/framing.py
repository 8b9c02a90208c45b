"""Datagrams on a TCP connection: a length of two bytes before each (RFC 4571), as in ICE-TCP."""

from __future__ import annotations

import struct

_LENGTH = struct.Struct("!H")


class FrameError(ValueError):
    """A frame is longer than any datagram of ours; what follows it cannot be trusted."""


def frame(datagram: bytes) -> bytes:
    """Put the length before a datagram of at most 65,535 bytes."""
    return _LENGTH.pack(len(datagram)) + datagram


class Deframer:
    """Cuts a stream into datagrams. It holds one unfinished frame at most, of ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        """Take frames of up to ``limit`` bytes."""
        self._limit = limit
        self._rest = b""

    @property
    def held(self) -> bytes:
        """Return the bytes of the frame that is not whole yet, its length included."""
        return self._rest

    def receive(self, data: bytes) -> list[bytes]:
        """Return the datagrams that are whole now, empty ones left out (RFC 4571 section 2 allows them).

        Raises ``FrameError`` at the first length above the limit; the connection is of no use any more.
        """
        stream = self._rest + data
        self._rest = b""
        found: list[bytes] = []
        at, size = 0, len(stream)
        while size - at >= 2:
            (length,) = _LENGTH.unpack_from(stream, at)
            if length > self._limit:
                raise FrameError(f"a frame of {length} bytes")
            end = at + 2 + length
            if end > size:
                break
            if length:
                found.append(stream[at + 2 : end])
            at = end
        self._rest = stream[at:]
        return found
