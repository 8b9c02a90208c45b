"""Failed sign-ins for the audit log: the first at once, a storm of them as a number."""

from __future__ import annotations

from dataclasses import dataclass

from mediaserver.events import EventLog, Origin

PERIOD_S = 60.0
"""What the same address fails at in the same way within so long is one more entry, with a count."""
KEPT = 1000
OTHERS = "other addresses"


@dataclass
class _Failure:
    tenant: str
    since_s: float
    more: int = 0


class FailedSignIns:
    """Counts failures by address and code; bounded, so that guessing fills no disk."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._failures: dict[tuple[str, str], _Failure] = {}

    def note(self, address: str, code: str, tenant: str, now_s: float) -> None:
        """Take in that somebody was not let in; ``tenant`` is whose key was named, empty if none was."""
        self.flush(now_s)
        if (address, code) not in self._failures and len(self._failures) >= KEPT:
            address = OTHERS
        known = self._failures.get((address, code))
        if known is not None:
            known.more += 1
            return
        self._failures[address, code] = _Failure(tenant, now_s)
        self._say(address, code, tenant, 1)

    def flush(self, now_s: float) -> None:
        """Log the counts whose time is over."""
        # In the order of their beginning: those that are not over yet are behind.
        for (address, code), failure in list(self._failures.items()):
            if now_s - failure.since_s < PERIOD_S:
                break
            del self._failures[address, code]
            if failure.more:
                self._say(address, code, failure.tenant, failure.more)

    def _say(self, address: str, code: str, tenant: str, times: int) -> None:
        self._events.put(
            "audit.sign_in_failed",
            tenant=tenant,
            actor="unknown",
            data={"code": code, "times": times},
            origin=Origin(address),
        )
