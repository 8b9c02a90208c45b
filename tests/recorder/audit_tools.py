"""Write audit logs for tests, and a process that does so until it is killed.

``python -m tests.recorder.audit_tools ROOT KEYS FIRST`` writes entries from ``seq`` FIRST on, and tells each
that was written on standard output.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from recorder.audit import AuditWriter, LogFile, anchors, entry_of
from recorder.canonical import JSON
from recorder.clock import SystemClock
from recorder.keys import FileProvider, read_sidecar, write_sidecar
from recorder.sealed import DataKey
from tests.recorder.journal_tools import VirtualClock

RECORDING = "019ad000-0000-7000-8000-{:012x}"


def open_next(writer: AuditWriter, provider: FileProvider) -> LogFile:
    """Begin the writer's next file, as the server does."""
    file = writer.next_file()
    data_key, wrap = asyncio.run(provider.new_data_key(file.series))
    file.directory.mkdir(parents=True)
    write_sidecar(file.directory, file.series, data_key.key_id, [wrap], provider.signer())
    writer.begin(file, data_key)
    return file


def key_of(provider: FileProvider) -> Callable[[LogFile], DataKey]:
    """Return what opens the files of a log."""

    def opened(file: LogFile) -> DataKey:
        return provider.unwrap_now(
            read_sidecar(file.directory), recording_id=file.series, purpose="test", actor="test"
        )

    return opened


def entry(seq: int, **members: object) -> dict[str, JSON]:
    """Return an entry of the tenant ``one``."""
    event = {
        "id": f"id-{seq}",
        "seq": seq,
        "type": "recording.started",
        "time": f"2023-12-01T{seq // 3600 % 24:02d}:{seq // 60 % 60:02d}:{seq % 60:02d}.000Z",
        "tenant": "one",
        "room": "hall",
        "recording": None,
        "actor": "li-wei",
        "data": {"number": seq},
        **members,
    }
    return entry_of(event, address="192.0.2.7", purpose="playback")


class LogBench:
    """A log under a virtual clock."""

    def __init__(self, root: Path, provider: FileProvider) -> None:
        self.root = root
        self.provider = provider
        self.clock = VirtualClock()
        self.seq = 0
        self.start()

    def start(self) -> None:
        """Begin as a new process does."""
        self.writer = AuditWriter(self.root, "node-1", self.provider.signer(), self.clock)
        open_next(self.writer, self.provider)

    def put(self, count: int = 3) -> None:
        """Write some entries and a head, and sign."""
        entries = [entry(self.seq + number) for number in range(1, count + 1)]
        self.seq += count
        item = anchors.begun(RECORDING.format(self.seq), "2026-01-01T00:00:00.000Z")
        self.writer.put(entries, {"one": [item]})
        self.clock.now += 2_000_000_000
        self.writer.checkpoint(self.clock.now)


def main() -> None:
    """Write until killed."""
    root, keys, first = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    provider = FileProvider.open(keys)
    clock = SystemClock()
    writer = AuditWriter(root, "node-1", provider.signer(), clock)
    print(f"last {writer.last_seq}", flush=True)
    open_next(writer, provider)
    for seq in range(first, first + 100_000):
        writer.put([entry(seq)], {})
        print(seq, flush=True)
        writer.checkpoint(clock.now_ns())
        if seq % 97 == 0:
            writer.anchor()
        if seq % 211 == 0:
            open_next(writer, provider)


if __name__ == "__main__":
    main()
