"""All state changes of a recording happen through here, and the rule for further attempts.

arming ─→ recording ⇄ paused
   │          │         │
   │          └────┬────┘
   ↓               ↓
 failed ←────  stopping ─→ sealed | recovered ─→ destroyed
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mediaserver.errors import Refused
from recorder.catalog import Entry

TRANSITIONS: dict[str, tuple[str, ...]] = {
    "arming": ("recording", "stopping", "failed"),
    "recording": ("paused", "stopping"),
    "paused": ("recording", "stopping"),
    "stopping": ("sealed", "recovered", "failed"),
    "sealed": ("destroyed",),
    "recovered": ("destroyed",),
    "destroyed": (),
    "failed": (),
}


def changed(entry: Entry, state: str, **columns: Any) -> Entry:
    """Give the entry in its next state; raises Refused if the one does not follow the other."""
    if state not in TRANSITIONS[entry.state]:
        raise Refused("recording_state", f"a recording that is {entry.state} cannot become {state}")
    return replace(entry, state=state, **columns)


def next_attempt(earlier: Sequence[Entry], attempt: int | None, supersedes: str | None) -> int:
    """Decide which attempt a new recording of a business number is.

    ``earlier`` are its recordings, first to last. A first recording needs no attempt; a further one must say
    ``attempt`` = last + 1, so that nobody records a transaction twice by accident. Attempts that never armed
    do not count against the caller: the next may repeat their call without naming one. Raises Refused.
    """
    running = next((entry for entry in earlier if entry.active), None)
    if running is not None:
        raise Refused("recording_active", "this business number is being recorded", recording=running.id)
    last = earlier[-1] if earlier else None
    expected = last.attempt + 1 if last is not None else 1
    if supersedes is not None and supersedes not in {entry.id for entry in earlier}:
        raise Refused("attempt_required", "supersedes names no recording of this business number")
    recorded = [entry for entry in earlier if entry.armed_ns is not None]
    if attempt is None and not recorded:
        return expected
    if attempt != expected:
        raise Refused(
            "attempt_required",
            f"this business number was recorded before: say attempt {expected}"
            if recorded
            else f"the next attempt is {expected}",
            recording=last.id if last is not None else None,
            attempt=expected,
        )
    return attempt


def require_ended(entry: Entry) -> None:
    """Raise Refused while a recording has no signed manifest, or never will have one."""
    if entry.active or entry.state == "failed":
        raise Refused("recording_state", f"the recording is {entry.state}: there is no signed manifest")


def require_kept(entry: Entry) -> None:
    """Raise Refused for a recording whose key was destroyed."""
    if entry.state == "destroyed":
        raise Refused("destroyed", "the recording was destroyed")


def duration_ms(entry: Entry) -> int | None:
    """Give the recording's length, up to now while it runs; None before it is armed."""
    if entry.armed_ns is None:
        return None
    if entry.stopped_ns is not None:
        return (entry.stopped_ns - entry.armed_ns) // 1_000_000
    return max(0, time.monotonic_ns() - int(entry.details["armed_mono_ns"])) // 1_000_000
