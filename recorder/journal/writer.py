"""One journal being written: what the media thread sees of it, and its share of each group commit."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from recorder.checkpoint import Checkpoint
from recorder.journal.encoding import JournalError, encode, encode_head
from recorder.journal.queue import Budget, RecordQueue, gaps_of
from recorder.journal.segments import SegmentChain, disk_code, next_index
from recorder.journal.summary import PartSummary
from recorder.journal.tally import Tally
from recorder.records import (
    EndRecord,
    GapRecord,
    PacketBatch,
    Queued,
    RtcpRecord,
    RtpRecord,
    SessionRecord,
)
from recorder.sealed import DataKey

T = TypeVar("T")

RETRY_NS = 1_000_000_000
UNSIGNED_AGAIN_NS = 60_000_000_000
CLOSE_PATIENCE_NS = 3_000_000_000
"""How long a journal that is being closed goes on trying on a failing disk."""
LARGE_TEMPLATE_BYTES = 16 << 10
"""A template with pictures in it is not repeated in each segment."""


@dataclass(frozen=True, slots=True)
class JournalTrouble:
    """Something the operator must hear; raised in the commit thread, so receivers only pass it on."""

    type: str
    """``recording.stalled`` (the disk refuses; tried again each second), ``recording.restored``,
    ``recording.gap``, ``recording.unsigned``, ``recording.failed`` (given up)."""
    directory: Path
    part: int
    at_ns: int
    code: str
    """``disk_full``, ``disk_error``, ``queue_full``, ``signing``, ``internal``."""
    detail: str


@dataclass(frozen=True, slots=True)
class SignedHead:
    """How a journal stood at a signed checkpoint, for whoever keeps that elsewhere (the audit log)."""

    directory: Path
    part: int
    index: int
    """Of the segment."""
    record: int
    """Number of the CHECKPOINT record."""
    offset: int
    """… and where it begins."""
    head: bytes
    """SM3 of all bytes of the segment before it."""
    utc_ns: int


class JournalWriter:
    """Write one part of a recording. Made by ``GroupCommit.open``.

    ``write``, ``flushed`` and ``close`` may be called from any thread and return at once.
    """

    def __init__(
        self,
        directory: Path,
        data_key: DataKey,
        session: SessionRecord,
        *,
        budget: Budget,
        queue_bytes: int,
        chunk_bytes: int,
        segment_ns: int,
        wake: Callable[[], None],
        report: Callable[[JournalTrouble], None],
    ) -> None:
        """Prepare part ``session.part``.

        Raises JournalError if that part was begun before, OSError as mkdir.
        """
        if next_index(directory, session.part):
            raise JournalError(f"part {session.part} of {directory.name} was begun before")
        recording = session.info.get("recording")
        public = {"recording": recording} if isinstance(recording, str) else {}
        self.directory = directory
        self.part = session.part
        self.chain = SegmentChain(directory, data_key, session.part, public)
        self._queue = RecordQueue(budget, queue_bytes)
        self._tally = Tally(session.part)
        self._session = _repeated(session)
        self._chunk_bytes = chunk_bytes
        self._segment_ns = segment_ns
        self._wake = wake
        self._report = report
        self._pending: list[Queued] = []
        self._pending_bytes = 0
        self._written_marks: list[Future[int]] = []
        self._marks: list[Future[int]] = []
        self._mark_lock = threading.Lock()
        self._ending: Future[PartSummary] | None = None
        self._ended = False
        self._give_up_ns = 0
        self._retry_ns: int | None = None
        self._unsigned_ns = 0
        self._synced_ns = session.at_ns
        self._write_ns = session.at_ns
        self._sync_error: OSError | None = None
        self._signed: SignedHead | None = None
        self._signed_ns = 0
        self.was_signed = False
        """A checkpoint of it was made, or tried."""
        self._queue.put((session,))

    @property
    def lost_packets(self) -> int:
        """Packets that could not be kept so far."""
        return self._queue.lost_packets

    @property
    def failing(self) -> bool:
        """Whether the disk refuses what is to be written."""
        return self._retry_ns is not None

    @property
    def urgent(self) -> bool:
        """Whether somebody waits or a chunk is full: commit now, not at the next tick."""
        return self._queue.held - self._pending_bytes >= self._chunk_bytes or self._ended

    def write(self, records: Sequence[Queued]) -> None:
        """Hand over records, in order. Never waits: what exceeds the bound becomes a listed gap.

        Raises JournalError after ``close`` and for records that no journal can hold.
        """
        if self._ending is not None:
            raise JournalError(f"part {self.part} of {self.directory.name} is closed")
        if self._queue.put(records) - self._pending_bytes >= self._chunk_bytes:
            self._wake()

    def flushed(self) -> Future[int]:
        """Return a future that resolves (monotonic ns) when everything written so far is on disk.

        It fails with the OSError if the disk refuses.
        """
        future = self._queue.mark()
        self._wake()
        return future

    def close(self, end: EndRecord) -> Future[PartSummary]:
        """End the part. The future resolves when its last segment is finished; it always resolves.

        On a failing disk attempts go on for 3 s; then what could not be written is listed as gaps.
        """
        if self._ending is not None:
            return self._ending
        self._ending = Future()
        self._queue.put((end,))
        self._ended = True
        self._wake()
        return self._ending

    # What follows is called by the commit thread only.

    def commit(self, now_ns: int) -> bool:
        """Write what is queued. Return True when the part has ended and the journal can be forgotten."""
        ended = self._ended  # asked before taking: what is taken then has the END record, whenever it comes
        self._take()
        if self._sync_error is not None:
            self._lose_unsynced(self._sync_error, now_ns)
        if self._may_try(now_ns):
            try:
                self._write(now_ns)
                if ended or now_ns - self.chain.began_ns >= self._segment_ns:
                    self.chain.rotate()
                    self._synced_ns = now_ns
            except OSError as error:
                self._fail(error, now_ns)
        if not ended:
            return False
        if self._pending and not self._gave_up(now_ns):
            return False
        self._finish(now_ns)
        return True

    def checkpoint(self, share: Checkpoint, now_ns: int) -> None:
        """Store this journal's share of a signed root."""
        head = self.chain.head
        if head is None:
            return
        index, record, offset = self.chain.place
        try:
            self.chain.checkpoint(share.to_bytes())
        except OSError as error:
            self._fail(error, now_ns)
            return
        self._signed = SignedHead(self.directory, self.part, index, record, offset, head, share.utc_ns)
        self._signed_ns = now_ns

    @property
    def durable_head(self) -> SignedHead | None:
        """The last checkpoint, if a sync has begun since: a power cut does not take it back."""
        return self._signed if self._synced_ns > self._signed_ns else None

    def wants_sync(self) -> bool:
        """Whether something was written since the last ``sync``."""
        return self.chain.head is not None and self._write_ns > self._synced_ns

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for a ``sync``."""
        return bool(self._written_marks)

    def sync(self, now_ns: int, *, durable: bool = True) -> None:
        """Make what is written durable, if wanted, and resolve who waits for it; in the sync thread."""
        with self._mark_lock:
            marks, self._written_marks = self._written_marks, []
        written_ns = self._write_ns
        try:
            if durable:
                self.chain.sync()
        except OSError as error:
            self._sync_error = error
            for mark in marks:
                settle(mark, error)
            return
        self._synced_ns = written_ns
        for mark in marks:
            settle(mark, now_ns)

    def stop(self, now_ns: int) -> None:
        """Finish the open segment without ending the part; the worker goes."""
        try:
            self.chain.rotate()
        except OSError as error:
            self._fail(error, now_ns)
        if self._ending is not None and not self._ending.done():
            self._finish(now_ns)

    def break_down(self, error: Exception, now_ns: int) -> None:
        """Give up: a fault of this program, not of the disk. Whoever waits is told."""
        self.chain.leave()
        self._say("recording.failed", "internal", repr(error), now_ns)
        self._queue.release(self._queue.held)
        with self._mark_lock:
            waiting: list[Future[Any]] = [*self._marks, *self._written_marks]
            self._marks, self._written_marks = [], []
        if self._ending is None:
            self._ending = Future()
        for future in (*waiting, self._ending):
            settle(future, error)

    def append(self, record: Queued) -> None:
        """Queue a record of the commit's own (clock pairs)."""
        if self._ending is None:
            self._queue.put((record,))

    def report_unsigned(self, error: Exception, now_ns: int) -> None:
        """Say that a checkpoint could not be signed; once a minute while that goes on."""
        if now_ns >= self._unsigned_ns:
            self._unsigned_ns = now_ns + UNSIGNED_AGAIN_NS
            self._say("recording.unsigned", "signing", str(error), now_ns)

    def _take(self) -> None:
        records, held, marks = self._queue.take()
        self._pending.extend(records)
        self._pending_bytes = held
        self._marks.extend(marks)

    def _may_try(self, now_ns: int) -> bool:
        if self._retry_ns is None:
            return True
        if now_ns < self._retry_ns and not self._ended:
            return False
        self._retry_ns = now_ns + RETRY_NS
        return self.chain.room_again()

    def _write(self, now_ns: int) -> None:
        while self._pending:
            batch, size = self._next_batch()
            self.chain.append(self._head() + encode(batch), now_ns)
            del self._pending[: len(batch)]
            self._tally.add(batch)
            self._write_ns = now_ns
            released = self._pending_bytes if not self._pending else min(size, self._pending_bytes)
            self._pending_bytes -= released
            self._queue.release(released)
            if self._retry_ns is not None:
                self._retry_ns = None
                self._say("recording.restored", "", "writing again, in a new segment", now_ns)
            for record in batch:
                if type(record) is GapRecord:
                    detail = f"{record.packets} packets of track {record.track} not kept"
                    self._say("recording.gap", record.reason, detail, now_ns)
        with self._mark_lock:
            self._written_marks += self._marks
        self._marks = []

    def _head(self) -> bytes:
        """Return what begins the next chunk: in a new segment what a reader without the ones before lacks."""
        if self.chain.head is not None or not self._tally.summary.records:
            return b""
        return encode_head((self._session, *self._tally.summary.clocks[:1], *self._tally.tracks.values()))

    def _next_batch(self) -> tuple[list[Queued], int]:
        """Return the records of the next chunk, and about the bytes they hold in the queue."""
        size = count = 0
        for record in self._pending:
            if isinstance(record, PacketBatch):
                size += len(record.items)
            else:
                size += len(record.packet) + 16 if isinstance(record, RtpRecord | RtcpRecord) else 1024
            count += 1
            if size >= self._chunk_bytes:
                break
        return self._pending[:count], size

    def _fail(self, error: OSError, now_ns: int) -> None:
        self.chain.note(error)
        first = self._retry_ns is None
        self._retry_ns = now_ns + RETRY_NS
        for mark in self._marks:
            settle(mark, error)
        self._marks = []
        if first:
            self._say("recording.stalled", disk_code(error), str(error), now_ns)

    def _lose_unsynced(self, error: OSError, now_ns: int) -> None:
        """After a failed fdatasync: go on in a new file, and say what may be missing in the one before."""
        self._sync_error = None
        self.chain.leave()
        self._pending.insert(0, GapRecord(0, self._synced_ns, self._write_ns, 0, "sync_failed"))
        self._synced_ns = now_ns
        self._fail(error, now_ns)
        self._retry_ns = now_ns

    def _gave_up(self, now_ns: int) -> bool:
        if not self._give_up_ns:
            self._give_up_ns = now_ns + CLOSE_PATIENCE_NS
        return now_ns >= self._give_up_ns

    def _finish(self, now_ns: int) -> None:
        """Resolve ``close``.

        What is still pending goes into the summary as gaps: the disk would not have it.
        """
        self._queue.release(self._pending_bytes)
        self._pending_bytes = 0
        with self._mark_lock:
            marks, self._written_marks = self._written_marks, []
        for mark in (*marks, *self._marks):
            settle(mark, now_ns)
        self._marks = []
        self.chain.leave()
        lost = gaps_of(self._pending, "disk")
        self._pending = []
        summary = self._tally.finish()
        summary.gaps += lost
        summary.segments, summary.damage = self.chain.summaries()
        assert self._ending is not None
        settle(self._ending, summary)

    def _say(self, kind: str, code: str, detail: str, now_ns: int) -> None:
        self._report(JournalTrouble(kind, self.directory, self.part, now_ns, code, detail))


def _repeated(session: SessionRecord) -> SessionRecord:
    """Return the session as later segments repeat it."""
    if len(json.dumps(session.info.get("template"), default=str)) <= LARGE_TEMPLATE_BYTES:
        return session
    info = {key: value for key, value in session.info.items() if key != "template"}
    return replace(session, info=info)


def settle(future: Future[T], outcome: T | Exception) -> None:
    """Give a future its result or exception, unless whoever waited has given up (or has been told before)."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
