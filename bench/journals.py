"""Journals of made-up calls, written by the real journal as far as wanted, with the time of their records."""

from __future__ import annotations

from pathlib import Path

from recorder.journal import GroupCommit
from recorder.journal.commit import CheckpointSigner
from recorder.journal.encoding import record_time
from recorder.records import ClockRecord, EndRecord, Record, SessionRecord
from recorder.sealed import DataKey

TICK_NS = 300_000_000
"""After this a commit is due."""


class _StoppedClock:
    """A clock that stands still when the recording is armed."""

    def __init__(self, at_ns: int, utc_ns: int) -> None:
        self._at_ns, self._utc_ns = at_ns, utc_ns

    def now_ns(self) -> int:
        return self._at_ns

    def utc_ns(self) -> int:
        return self._utc_ns

    def pair(self) -> ClockRecord:
        return ClockRecord(self._at_ns, self._utc_ns, 0, "ntp", 2, "trusted")


class _NoSigner:
    """Checkpoints are not what these journals are about."""

    def sign(self, message: bytes) -> bytes:
        return b"unsigned"


class JournalInSteps:
    """A journal written as far as its caller says. ``records``: the session first; ``utc_ns``: its UTC."""

    def __init__(
        self,
        directory: Path,
        key: DataKey,
        records: list[Record],
        utc_ns: int,
        signer: CheckpointSigner | None = None,
    ) -> None:
        session = records[0]
        assert isinstance(session, SessionRecord)
        clock = _StoppedClock(session.at_ns, utc_ns)
        self._commit = GroupCommit(signer or _NoSigner(), clock, threads=False)
        self._journal = self._commit.open(directory, key, session)
        self._records = records[1:]

    def write(self, fraction: float = 1.0) -> None:
        """Write up to a fraction of the records; the last one closes the part."""
        count = round(len(self._records) * fraction)
        now, self._records = self._records[:count], self._records[count:]
        last = None
        if not self._records and isinstance(now[-1], EndRecord):
            last = now.pop()
        for at in range(0, len(now), 50):
            self._journal.write(now[at : at + 50])
            self._commit.step(record_time(now[min(at + 49, len(now) - 1)]) + TICK_NS)
        if isinstance(last, EndRecord):
            ended = self._journal.close(last)
            self._commit.step(last.at_ns + TICK_NS)
            ended.result(timeout=10)

    def close(self) -> None:
        """Stop without an end."""
        self._commit.close()
