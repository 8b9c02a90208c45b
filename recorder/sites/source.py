"""A sealed file at sites, read as ``recorder.sealed`` reads a local one: few requests, one copy after
another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from recorder.sites.site import Site, SiteError

_Read = Callable[[Site], tuple[bytes, int]]
_log = logging.getLogger(__name__)
TAIL_BYTES = 128 << 10
"""Read at once when opening: END and INDEX of a file of up to 2.5 GiB; a smaller file is then here
whole.
"""
HEAD_BYTES = 8 << 10
BEFORE_BYTES = 64
"""A chunk is opened with the trailer before it."""
FIRST_AHEAD_BYTES = (256 << 10) + 4096
"""One chunk with its frame."""
MOST_AHEAD_BYTES = 4 << 20


class SiteBytes:
    """One immutable object, at one or more sites, as positioned bytes; safe from several threads.

    Opening reads the tail; a random read one chunk; reading on in order reads ever further ahead, up to
    4 MiB. When a site fails the next one that has the object goes on. Which bytes are right the
    reader's tags say.
    """

    def __init__(self, sites: Sequence[Site], key: str) -> None:
        """Find the object. Raise SiteError of the last site if none gives it (``missing``,
        ``unreachable``).
        """
        if not sites:
            raise ValueError("no site is named")
        self.key = key
        self.requests = 0
        """Sent so far, for tests and measurements."""
        self._sites = list(sites)
        self._lock = threading.Lock()
        self._ahead = FIRST_AHEAD_BYTES
        self._next = -1
        tail, self._size = self._ask(lambda site: site.read_tail(key, TAIL_BYTES))
        self._tail = (self._size - len(tail), tail)
        self._head = (0, b"")
        self._last = (0, b"")

    @property
    def site(self) -> Site:
        """The site that is read now."""
        return self._sites[0]

    def size(self) -> int:
        """Return the object's size."""
        return self._size

    def close(self) -> None:
        """Let go of what was read; may be called twice."""
        self._head = self._tail = self._last = (0, b"")

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes; fewer only at the end. Raise SiteError."""
        end = min(offset + size, self._size)
        if offset >= end:
            return b""
        with self._lock:
            for begin, data in (self._last, self._tail, self._head):
                if begin <= offset and end <= begin + len(data):
                    return data[offset - begin : end - begin]
            if not self._head[1] and end <= HEAD_BYTES:
                self._head = (0, self._range(0, HEAD_BYTES))
                return self._head[1][offset:end]
            # Reading on where the last part ended: more at a time.
            in_order = self._last[1] and offset <= self._next <= offset + size + FIRST_AHEAD_BYTES
            self._ahead = min(self._ahead * 2, MOST_AHEAD_BYTES) if in_order else FIRST_AHEAD_BYTES
            begin = max(0, offset - BEFORE_BYTES)
            stop = min(self._size, max(end, begin + self._ahead))
            self._last = (begin, self._range(begin, stop))
            self._next = stop
            return self._last[1][offset - begin : end - begin]

    def _range(self, begin: int, end: int) -> bytes:
        stop = min(end, self._size)
        data = self._ask(lambda site: (site.read_range(self.key, begin, stop), self._size))[0]
        if len(data) != stop - begin:
            raise SiteError("changed", self.site.name, f"{self.key} is shorter than it was")
        return data

    def _ask(self, read: _Read) -> tuple[bytes, int]:
        """Ask the sites in turn; one that fails goes to the end."""
        error: SiteError | None = None
        for _ in range(len(self._sites)):
            self.requests += 1
            try:
                return read(self.site)
            except SiteError as problem:
                error = problem
                _log.warning("%s is read elsewhere: %s", self.key, problem)
                self._sites.append(self._sites.pop(0))
        try:
            assert error is not None
            raise error
        finally:
            del error  # no loop of error, traceback and frame
