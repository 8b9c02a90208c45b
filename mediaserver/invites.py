"""One-time codes that let a browser in, and the brake on guessing them.

A code is ``SSSS-VVVV-VVVV``: four characters select the invitation, eight (40 bits) prove it. Only keyed
digests are stored. An invitation dies after ATTEMPTS wrong proofs, and an address that guesses waits.
"""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass
from typing import Any

from mediaserver.errors import Refused
from mediaserver.store import Store, invites

ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
"""32 characters without 0 O 1 I, because people read codes aloud."""
SELECTOR, VERIFIER = 4, 8
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a code was given for."""

    tenant: str
    room: str
    role: str
    identity: str
    name: str
    grants: dict[str, bool]


def make(store: Store, invitation: Invitation, ttl_s: int) -> tuple[str, int]:
    """Make an invitation; returns its code and when it expires (seconds of UTC). Blocks: in the database
    thread.
    """
    now = int(time.time())
    expires_s = now + ttl_s
    sealed = store.key.seal(vars_of(invitation), "invites.sealed")
    with store.engine.begin() as connection:
        connection.execute(invites.delete().where(invites.c.expires_s < now))
        while True:
            selector, verifier = _random(SELECTOR), _random(VERIFIER)
            digest = store.key.digest(selector, "invites.selector")
            if connection.execute(invites.select().where(invites.c.selector == digest)).first() is None:
                break
        connection.execute(
            invites.insert().values(
                selector=digest,
                verifier=store.key.digest(verifier, "invites.verifier"),
                expires_s=expires_s,
                failures=0,
                sealed=sealed,
            )
        )
    return f"{selector}-{verifier[:4]}-{verifier[4:]}", expires_s


def redeem(store: Store, code: str) -> Invitation:
    """Take a code, once. Raises Refused code_invalid, not telling which part of it was wrong."""
    refused = Refused("code_invalid", "the code is wrong, used or expired")
    plain = code.upper().replace("-", "").replace(" ", "")
    if len(plain) != SELECTOR + VERIFIER:
        raise refused
    selector = store.key.digest(plain[:SELECTOR], "invites.selector")
    verifier = store.key.digest(plain[SELECTOR:], "invites.verifier")
    mine = invites.c.selector == selector
    with store.engine.begin() as connection:
        row = connection.execute(invites.select().where(mine)).mappings().first()
        good = hmac.compare_digest(row["verifier"] if row is not None else "0" * 64, verifier)
        alive = row is not None and row["expires_s"] >= time.time() and row["failures"] < ATTEMPTS
        if row is not None and good:
            connection.execute(invites.delete().where(mine))
        elif row is not None:
            connection.execute(invites.update().where(mine).values(failures=invites.c.failures + 1))
    if row is None or not good or not alive:
        raise refused
    value: dict[str, Any] = store.key.unseal(row["sealed"], "invites.sealed")
    return Invitation(**value)


def vars_of(invitation: Invitation) -> dict[str, Any]:
    """Give an invitation as JSON."""
    return {name: getattr(invitation, name) for name in Invitation.__dataclass_fields__}


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


class Brake:
    """Lets an address fail ``burst`` times at once and then once per ``period_s``. Time is an argument
    (seconds).
    """

    def __init__(self, *, burst: int = 10, period_s: float = 30.0, limit: int = 10_000) -> None:
        self._burst = burst
        self._period_s = period_s
        self._limit = limit
        self._owed: dict[str, float] = {}
        """By address: when its failures are forgiven."""

    def wait_s(self, address: str, now_s: float) -> float:
        """Give how long an address must wait before its next try; 0: not at all."""
        owed = self._owed.get(address, 0.0) - now_s
        return max(0.0, owed - (self._burst - 1) * self._period_s)

    def failed(self, address: str, now_s: float) -> None:
        """Count a failure. Beyond ``limit`` addresses the settled are forgotten, then the oldest."""
        if len(self._owed) >= self._limit and address not in self._owed:
            self._owed = {one: until for one, until in self._owed.items() if until > now_s}
            while len(self._owed) >= self._limit:
                self._owed.pop(next(iter(self._owed)))
        self._owed[address] = max(now_s, self._owed.get(address, 0.0)) + self._period_s
