"""ICE-lite for all sessions of a worker on its single UDP port (RFC 8445 section 2.5, RFC 7675), without I/O.

Bytes and ``now`` go in, answers and verdicts come out. A session is found by the first half of USERNAME,
which we
chose; nothing is bound to an address before MESSAGE-INTEGRITY has been checked with that session's password.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from mediaserver.media import stun

Address = tuple[str, int]

SECOND_NS = 1_000_000_000
DISCONNECTED_NS = 8 * SECOND_NS
"""Without a check or a packet for so long a session counts as disconnected. Chromium checks every 2.5 s,
aiortc 5 s."""
CONSENT_NS = 30 * SECOND_NS
"""RFC 7675 section 5.1: consent ends 30 s after the last valid check."""
CONNECT_NS = 30 * SECOND_NS
"""A session that never had a valid check ends after this."""
REBIND_NS = 3 * SECOND_NS + SECOND_NS // 2
"""A check from another address without USE-CANDIDATE moves the session only if its address was silent for
so long:
longer than Chromium's 2.5 s interval (else its checks of spare paths would move it), shorter than aiortc's
4-6 s."""
UNAUTHENTICATED_PER_SECOND = 2_000
"""Checks of unknown origin looked at per second in total (about 10 us each: 2 % of a core), the rest is
dropped."""
FAILURES_PER_SOURCE = 200
"""Failed checks per IP address and second before its unknown ports are no longer listened to in that
second: those that name a session by themselves, so that one client behind a NAT does not shut the others
out."""
SOURCES_KEPT = 4_096


class IceState(Enum):
    """Where a session stands. All changes happen in ``IceAgent``."""

    WAITING = "waiting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Credentials:
    """One side's ICE name and password."""

    ufrag: str
    password: str = field(repr=False)


@dataclass(slots=True)
class IceCounters:
    """What was dropped and why; plain integers, read by the metrics."""

    checks: int = 0
    malformed: int = 0
    unknown_user: int = 0
    bad_integrity: int = 0
    role_conflict: int = 0
    limited: int = 0
    ignored: int = 0


@dataclass(slots=True)
class CheckResult:
    """What a datagram led to."""

    reply: bytes | None = None
    """Datagram to send to where the check came from."""
    session: str | None = None
    """Session the check proved itself for."""
    bind: bool = False
    """Bind the session to the address from now on."""


@dataclass(slots=True)
class _Leg:
    session: str
    local: Credentials
    remote_ufrag: str
    created_ns: int
    old: Credentials | None = None
    address: Address | None = None
    socket: int = 0
    nominated: bool = False
    last_check_ns: int = 0
    last_bound_ns: int = 0
    state: IceState = IceState.WAITING


def new_credentials(worker: int = 0) -> Credentials:
    """Draw a name of 10 and a password of 24 characters (RFC 8445 section 5.3 asks for 24 and 128 bits).

    The name begins with the number of the worker, 0 … 255, so that each knows whose a check is (tcp.py).
    """
    return Credentials(f"{worker:02x}{secrets.token_hex(4)}", secrets.token_urlsafe(18))


def worker_of(ufrag: str) -> int | None:
    """Return the number of the worker that drew a name, None if none can have."""
    try:
        return int(ufrag[:2], 16) if len(ufrag) == 10 else None
    except ValueError:
        return None


class IceAgent:
    """The controlled, lite side of every session of a worker."""

    def __init__(self, consent_ns: int = CONSENT_NS, worker: int = 0) -> None:
        """Let sessions live for ``consent_ns`` without a valid check or a packet, 30 s without a check."""
        self._worker = worker
        self.counters = IceCounters()
        self._consent_ns = min(consent_ns, CONSENT_NS)
        self._legs: dict[str, _Leg] = {}
        self._by_ufrag: dict[str, _Leg] = {}
        self._failures: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._bound: dict[Address, _Leg] = {}
        self._window_ns = 0
        self._budget = UNAUTHENTICATED_PER_SECOND

    def add(self, session: str, remote_ufrag: str, now: int, local: Credentials | None = None) -> Credentials:
        """Begin to answer checks of a session; returns our credentials for its SDP answer, drawn if not
        given."""
        local = local or self._fresh()
        leg = _Leg(session, local, remote_ufrag, now)
        self._legs[session] = self._by_ufrag[local.ufrag] = leg
        return local

    def restart(self, session: str, remote_ufrag: str, now: int) -> Credentials:
        """Give a session new credentials (RFC 8445 section 9); the old ones hold until the first check with
        the new: the answer may be lost, and the client ask again while its old path carries."""
        leg = self._legs[session]
        if leg.old is None:
            leg.old = leg.local
        else:
            self._by_ufrag.pop(leg.local.ufrag, None)  # never used
        leg.local = self._fresh()
        leg.remote_ufrag = remote_ufrag
        leg.created_ns = now
        self._by_ufrag[leg.local.ufrag] = leg
        return leg.local

    def remove(self, session: str) -> None:
        """Forget a session; later checks for it are from an unknown user."""
        leg = self._legs.pop(session, None)
        if leg is not None:
            self._release(leg)
            self._by_ufrag.pop(leg.local.ufrag, None)
            if leg.old is not None:
                self._by_ufrag.pop(leg.old.ufrag, None)

    def local(self, session: str) -> Credentials:
        """Return our present credentials of a session (KeyError if unknown)."""
        return self._legs[session].local

    def state(self, session: str) -> IceState:
        """Return where the session stands; an unknown one has expired."""
        leg = self._legs.get(session)
        return leg.state if leg is not None else IceState.EXPIRED

    def knows_remote(self, session: str, ufrag: str) -> bool:
        """Tell whether a client's name is the one its session has already."""
        leg = self._legs.get(session)
        return leg is not None and leg.remote_ufrag == ufrag

    def place(self, session: str) -> tuple[Address, int] | None:
        """Return address and socket a session is bound to, if any."""
        leg = self._legs.get(session)
        return (leg.address, leg.socket) if leg is not None and leg.address is not None else None

    def follow(self, session: str, address: Address, socket: int, now: int) -> bool:
        """Bind a session to where its media comes from now; the caller has seen that it is authentic and that
        the old path is silent. False if somebody else is there. Consent is not renewed by it.
        """
        leg = self._legs.get(session)
        if leg is None or leg.address is None:
            return False
        checked_ns = leg.last_check_ns
        moved = self._accept(leg, address, socket, True, now)
        leg.last_check_ns = checked_ns
        return moved

    def lose(self, address: Address) -> None:
        """Take note that nothing can be sent to an address any more; the next valid check binds at once."""
        leg = self._bound.get(address)
        if leg is not None:
            self._release(leg)

    def receive(
        self, data: bytes, address: Address, now: int, socket: int = 0, client: Address | None = None
    ) -> CheckResult:
        """Answer one STUN datagram; whatever is wrong with it is counted and dropped without an answer.

        ``address`` is what is bound, ``client`` who is answered and limited where that is another: on TCP.
        No error answer to unauthenticated checks (RFC 8489 section 9.1.3 has 401): it would serve reflection.
        """
        client = client or address
        named = stun.user(data)
        source = (client[0], named if named in self._by_ufrag else "")
        if not self._admit(address, source, now):
            self.counters.limited += 1
            return CheckResult()
        try:
            request = stun.read(data)
        except stun.StunError:
            self.counters.malformed += 1
            self._failed(source)
            return CheckResult()
        if request is None:
            self.counters.ignored += 1
            return CheckResult()
        ours = request.ours
        leg = self._by_ufrag.get(ours)
        if leg is None or not request.has_fingerprint:
            self.counters.unknown_user += 1
            self._failed(source)
            return CheckResult()
        used = leg.local if ours == leg.local.ufrag or leg.old is None else leg.old
        key = used.password.encode()
        current = used is leg.local
        if not request.has_integrity(key) or (current and request.theirs != leg.remote_ufrag):
            self.counters.bad_integrity += 1
            self._failed(source)
            return CheckResult()
        self.counters.checks += 1
        if request.controlled:
            self.counters.role_conflict += 1
            return CheckResult(stun.refuse_role(request.transaction, key), leg.session)
        # Who restarted ICE lost its path; Chromium nominates no new one while it believes in the old.
        restarted = current and leg.old is not None
        bind = self._accept(leg, address, socket, request.nominates or restarted, now)
        if current and leg.old is not None:
            self._by_ufrag.pop(leg.old.ufrag, None)
            leg.old = None
        return CheckResult(stun.respond(request.transaction, client, key), leg.session, bind)

    def handle_timer(
        self, now: int, heard_ns: Callable[[str], int] = lambda session: 0
    ) -> list[tuple[str, IceState]]:
        """Return the sessions whose state time has changed; an expired one is to be removed by the caller.

        ``heard_ns`` is asked of sessions without a recent check: when did authenticated packets last come?
        Who is heard is not disconnected, nor taken for gone when some checks get lost; consent is not renewed
        by it.
        """
        changes: list[tuple[str, IceState]] = []
        for leg in self._legs.values():
            unchecked_ns = now - leg.last_check_ns
            if unchecked_ns <= DISCONNECTED_NS and leg.state is IceState.CONNECTED:
                continue
            if leg.state is IceState.EXPIRED:
                continue
            state: IceState
            if leg.state is IceState.WAITING:
                state = IceState.EXPIRED if now - leg.created_ns > CONNECT_NS else leg.state
            elif unchecked_ns > CONSENT_NS or (
                unchecked_ns > self._consent_ns and now - heard_ns(leg.session) > self._consent_ns
            ):
                state = IceState.EXPIRED
            elif unchecked_ns <= DISCONNECTED_NS or now - heard_ns(leg.session) <= DISCONNECTED_NS:
                state = IceState.CONNECTED
            else:
                state = IceState.DISCONNECTED
            if state is not leg.state:
                leg.state = state
                changes.append((leg.session, state))
        return changes

    def _fresh(self) -> Credentials:
        while True:
            credentials = new_credentials(self._worker)
            if credentials.ufrag not in self._by_ufrag:
                return credentials

    def _accept(self, leg: _Leg, address: Address, socket: int, nominated: bool, now: int) -> bool:
        leg.last_check_ns = now
        if leg.state is IceState.WAITING:
            leg.state = IceState.CONNECTED
        place = (leg.address, leg.socket)
        if place == (address, socket):
            leg.last_bound_ns = now
            leg.nominated = leg.nominated or nominated
            return False
        # Before nomination the first valid path serves, so that DTLS can begin; the nominated one replaces
        # it.
        if leg.address is None or nominated or now - leg.last_bound_ns > REBIND_NS:
            holder = self._bound.get(address)
            if holder is not None and holder is not leg:
                # Whoever has a session of its own and forges a source address must not cut off who is there.
                if now - holder.last_bound_ns <= DISCONNECTED_NS:
                    return False
                self._release(holder)
            self._release(leg)
            self._bound[address] = leg
            leg.address, leg.socket = address, socket
            leg.last_bound_ns = now
            leg.nominated = leg.nominated or nominated
            return True
        return False

    def _release(self, leg: _Leg) -> None:
        """Take the session's address from it, if it has one."""
        if leg.address is not None:
            self._bound.pop(leg.address, None)
            leg.address = None

    def _admit(self, address: Address, source: tuple[str, str], now: int) -> bool:
        if now - self._window_ns >= SECOND_NS:
            self._window_ns = now
            self._budget = UNAUTHENTICATED_PER_SECOND + 50 * len(self._legs)
            self._failures.clear()
        if address in self._bound:
            return True
        if self._failures.get(source, 0) >= FAILURES_PER_SOURCE:
            return False
        if self._budget <= 0:
            return False
        self._budget -= 1
        return True

    def _failed(self, source: tuple[str, str]) -> None:
        self._failures[source] = self._failures.get(source, 0) + 1
        if len(self._failures) > SOURCES_KEPT:
            self._failures.popitem(last=False)
