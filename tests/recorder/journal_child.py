"""A process that records until it is killed: ``… -m tests.recorder.journal_child DIRECTORY PART [no-fsync]``.

Writes a numbered packet about each millisecond and tells its number and arrival on standard output.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from recorder.clock import SystemClock
from recorder.journal import GroupCommit
from recorder.records import RtpRecord
from tests.recorder.journal_tools import KEY, SECOND, DigestSigner, session


def main() -> None:
    clock = SystemClock()
    fsync = sys.argv[3:] != ["no-fsync"]
    commit = GroupCommit(DigestSigner(), clock, segment_ns=SECOND // 2, fsync=fsync)
    part = int(sys.argv[2])
    journal = commit.open(Path(sys.argv[1]), KEY, session(part, clock.now_ns()))
    journal.flushed().result(30)
    for number in range(60_000):
        arrival_ns = clock.now_ns()
        journal.write([RtpRecord(part, arrival_ns, number.to_bytes(4, "big") * 250)])
        sys.stdout.write(f"{number} {arrival_ns}\n")
        sys.stdout.flush()
        time.sleep(0.001)


if __name__ == "__main__":
    main()
