"""A client's signalling session ("line"): what it is to be told, kept over lost sockets.

No I/O: the socket's tasks in ``mediaserver.api.signal`` take from it and are woken by it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from mediaserver.signal.messages import ServerMessage
from mediaserver.tokens import Principal

GRACE_S = 30.0
"""A line without a socket is kept so long."""
MAX_UNSENT = 512
"""Messages (and ``MAX_UNSENT_BYTES``) that wait for a slow client; one more and it is disconnected."""
MAX_UNSENT_BYTES = 4 << 20
KEPT = 256
"""Messages (and ``KEPT_BYTES``) sent but not acknowledged that are kept for a resume."""
KEPT_BYTES = 1 << 20
BURST, PER_S = 60, 20.0
"""Requests of one participant at once, and a second in the long run, over all lines and sockets."""
MAX_ALLOWANCES = 4_096
"""Before those are forgotten that nothing was taken of lately."""
QUALITY_S = 2.0
"""Between two quality reports."""
PER_PARTICIPANT = 4
"""Lines one participant may have; one more ends the oldest."""


class Allowance:
    """How many requests a participant may make now."""

    def __init__(self) -> None:
        self._left, self._filled = float(BURST), time.monotonic()

    @property
    def left(self) -> float:
        """Return the number of requests, up to ``BURST``."""
        return min(float(BURST), self._left + (time.monotonic() - self._filled) * PER_S)

    def take(self) -> bool:
        """Count a request; false if there were too many."""
        self._left, self._filled = self.left - 1.0, time.monotonic()
        return self._left >= 0.0


@dataclass(eq=False)
class Line:
    """One client in one room. A socket is attached to it, lost, and attached again."""

    principal: Principal
    token: str = field(repr=False)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """Secret that resumes it."""
    seq: int = 0
    last_id: int = 0
    media: set[str] = field(default_factory=set)
    """Media sessions begun over it: they end when the client leaves, not when it is lost."""
    view: str = ""
    """The session of its one subscribing connection."""
    unanswered: int = 0
    """Version of the offer it has to answer; 0 is none."""
    told: list[Any] = field(default_factory=list)
    """Tracks and skipped tracks as last told."""
    socket: object | None = None
    follower: asyncio.Task[None] | None = field(default=None, repr=False)
    """Tells it the events; ends with it."""
    grace: asyncio.TimerHandle | None = field(default=None, repr=False)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ending: str = ""
    """A problem code: everything is sent, then the socket closed for this reason."""
    negotiating: asyncio.Lock = field(default_factory=asyncio.Lock)
    quality_at: float = float("-inf")
    allowance: Allowance = field(default_factory=Allowance, repr=False)

    def __post_init__(self) -> None:
        self._kept: deque[tuple[int, str]] = deque()
        self._sent = 0
        self._kept_bytes = self._unsent_bytes = 0

    @property
    def place(self) -> tuple[str, str]:
        """Return tenant and name of its room."""
        return self.principal.tenant, self.principal.room

    def put(self, kind: type[ServerMessage], **members: Any) -> None:
        """Queue a message, never waiting; one too many ends the line as ``too_slow``."""
        if self.ending == "too_slow":
            return
        self.seq += 1
        text = kind(seq=self.seq, **members).model_dump_json()
        self._kept.append((self.seq, text))
        self._kept_bytes += len(text)
        self._unsent_bytes += len(text)
        if self.seq - self._sent > MAX_UNSENT or self._unsent_bytes > MAX_UNSENT_BYTES:
            self._kept.clear()
            self._kept_bytes = 0
            self.ending = "too_slow"
            self.end("too_slow")
        self._tidy()
        self.wake.set()

    def next_text(self) -> str | None:
        """Return the next message to send, which counts as sent; None if there is none now."""
        for seq, text in self._kept:
            if seq > self._sent:
                self._sent = seq
                self._unsent_bytes -= len(text)
                self._tidy()
                return text
        return None

    def _tidy(self) -> None:
        while len(self._kept) > KEPT or self._kept_bytes > KEPT_BYTES:
            if self._kept[0][0] > self._sent:
                return
            self._kept_bytes -= len(self._kept.popleft()[1])

    def acknowledge(self, seq: int) -> None:
        """Forget what has arrived."""
        while self._kept and self._kept[0][0] <= min(seq, self._sent):
            self._kept_bytes -= len(self._kept.popleft()[1])

    def rewind(self, seq: int) -> bool:
        """Have everything after ``seq`` sent again; false if that is not all here any more."""
        if seq > self.seq or (self._kept[0][0] if self._kept else self.seq + 1) > seq + 1 or self.ending:
            return False
        self._sent = seq
        self._unsent_bytes = sum(len(text) for number, text in self._kept if number > seq)
        return True

    def end(self, reason: str) -> None:
        """Have the socket closed for ``reason``, a problem code, once everything before is sent."""
        self.ending = self.ending or reason
        self.wake.set()
        if self.follower is not None and self.follower is not asyncio.current_task():
            self.follower.cancel()


class Lines:
    """All lines of a control process, and the last quality report of everybody."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._allowances: dict[tuple[str, str, str], Allowance] = {}
        self.quality: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        """By room, then identity."""
        self.unnamed: dict[object, asyncio.Event] = {}
        """Sockets whose first message is awaited, the oldest first; the event pushes one out."""

    def __len__(self) -> int:
        return len(self._lines)

    def allowance(self, principal: Principal) -> Allowance:
        """Return what is left to a participant, however many lines and sockets he has had."""
        key = (principal.tenant, principal.room, principal.identity)
        if key not in self._allowances and len(self._allowances) >= MAX_ALLOWANCES:
            self._allowances = {k: one for k, one in self._allowances.items() if one.left < BURST}
        return self._allowances.setdefault(key, Allowance())

    def add(self, line: Line) -> None:
        """Take a new line; the oldest of a participant with too many ends."""
        mine = [
            one
            for one in self._lines.values()
            if one.place == line.place and one.principal.identity == line.principal.identity
        ]
        for old in mine[: len(mine) - PER_PARTICIPANT + 1]:
            self.drop(old, "replaced")
        self._lines[line.key] = line

    def find(self, key: str, principal: Principal) -> Line | None:
        """Find the line a client resumes; only its own participant's."""
        line = self._lines.get(key)
        if line is None or line.place != (principal.tenant, principal.room):
            return None
        return line if line.principal.identity == principal.identity else None

    def drop(self, line: Line, reason: str) -> None:
        """End a line."""
        self._lines.pop(line.key, None)
        line.end(reason)

    def lost(self, line: Line, socket: object) -> None:
        """Give a line its grace time if ``socket`` was its own and is gone."""
        if line.socket is not socket:
            return
        line.socket = None
        if line.grace is not None:
            line.grace.cancel()

        def expire() -> None:
            if line.socket is None:
                self.drop(line, "resume_expired")

        line.grace = asyncio.get_running_loop().call_later(GRACE_S, expire)

    def close(self) -> None:
        """End all lines: the server goes down."""
        for line in list(self._lines.values()):
            self.drop(line, "draining")
