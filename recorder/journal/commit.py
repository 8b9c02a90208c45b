"""Group commit: one thread per worker process seals and writes the chunks of all its journals.

Ticks: each 250 ms (or when 256 KiB have gathered) every journal's records become a chunk, one write(2) each,
so a killed process loses at most that and the time of the write. Each second the segments are synced, by
threads of their own because a busy disk takes its time. Each two seconds one SM2 signature (0.8 ms) covers
all of them; a new journal gets its first one with its first chunk.

``step`` is the whole engine: time is its argument, the threads are a thin shell around it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from recorder.checkpoint import Checkpoint, merkle_tree
from recorder.clock import Clock
from recorder.journal.queue import Budget
from recorder.journal.writer import JournalTrouble, JournalWriter, SignedHead
from recorder.records import SessionRecord
from recorder.sealed import DataKey

SYNC_NS = 1_000_000_000
CLOCK_NS = 1_000_000_000
CHECKPOINT_NS = 2_000_000_000
SIGN_PATIENCE_S = 0.4
"""A signature that takes longer is given up: meanwhile nothing is written, and a crash would lose that much
more."""
SYNCERS = 4
"""Files synced at once: a file system commits them together, and a start waits for few others."""


class CheckpointSigner(Protocol):
    """What signs checkpoints, in a worker's thread (``recorder.keys.Signer``)."""

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature over ``message``."""


class GroupCommit:
    """The journals of one worker process."""

    def __init__(
        self,
        signer: CheckpointSigner,
        clock: Clock,
        *,
        queue_bytes: int = 64 << 20,
        segment_ns: int = 10_000_000_000,
        chunk_bytes: int = 256 << 10,
        chunk_ns: int = 250_000_000,
        fsync: bool = True,
        on_trouble: Callable[[JournalTrouble], None] | None = None,
        threads: bool = True,
    ) -> None:
        """Start the threads.

        ``queue_bytes``: memory all journals together may hold; one alone at most a quarter, so that one
        failing disk does not starve the rest. Without ``fsync`` only finished segments are made durable: a
        killed process loses no more than with it, a power cut up to a segment, and ``flushed`` answers when
        all is written. ``on_trouble`` is called in the commit thread. With
        ``threads=False`` nothing runs by itself: the caller calls ``step``.
        """
        self._signer = signer
        self._clock = clock
        self._budget = Budget(queue_bytes)
        self._journal_bytes = queue_bytes // 4
        self._segment_ns = segment_ns
        self._chunk_bytes = chunk_bytes
        self._chunk_ns = chunk_ns
        self._fsync = fsync
        self._on_trouble = on_trouble
        self._journals: list[JournalWriter] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._next_chunk = self._next_sync = self._next_clock = self._next_checkpoint = 0
        self._on_heads: Callable[[list[SignedHead]], None] | None = None
        self._heads_ns = self._next_heads = 0
        self._syncing: dict[JournalWriter, Future[None]] = {}
        self._syncer = ThreadPoolExecutor(SYNCERS, thread_name_prefix="journal-sync") if threads else None
        self._signers = ThreadPoolExecutor(1, thread_name_prefix="journal-sign") if threads else None
        self._signing: Future[bytes] | None = None
        self._thread: threading.Thread | None = None
        if threads:
            self._thread = threading.Thread(target=self._run, name="journal-commit", daemon=True)
            self._thread.start()

    def open(self, directory: Path, data_key: DataKey, session: SessionRecord) -> JournalWriter:
        """Begin a part in a recording's directory; its first records are ``session`` and a clock pair.

        Raises JournalError if the part was begun before (parts are never continued), OSError as mkdir does.
        """
        journal = JournalWriter(
            directory,
            data_key,
            session,
            budget=self._budget,
            queue_bytes=self._journal_bytes,
            chunk_bytes=self._chunk_bytes,
            segment_ns=self._segment_ns,
            wake=self._wake.set,
            report=self._report,
        )
        journal.append(self._clock.pair())
        with self._lock:
            self._journals.append(journal)
        self._wake.set()
        return journal

    def tell_heads(self, on_heads: Callable[[list[SignedHead]], None], every_ns: int) -> None:
        """Call ``on_heads`` in the commit thread about each ``every_ns`` with the last checkpoint of every
        open journal that a power cut does not take back.
        """
        self._heads_ns = every_ns
        self._on_heads = on_heads

    @property
    def queued_bytes(self) -> int:
        """Memory held by records not yet written."""
        return self._budget.used

    def close(self) -> None:
        """Write what is queued, finish the open segments (without an end: their parts were not closed),
        stop."""
        if self._stopping:
            return
        self._stopping = True
        if self._thread is not None:
            self._wake.set()
            self._thread.join()
        if self._syncer is not None:
            self._syncer.shutdown()
        if self._signers is not None:
            self._signers.shutdown(wait=False, cancel_futures=True)
        now_ns = self._clock.now_ns()
        for journal in self._open_journals():
            if not self._commit(journal, now_ns):
                journal.sync(now_ns, durable=self._fsync)
                journal.stop(now_ns)
        self._journals = []

    def step(self, now_ns: int) -> int:
        """Do what is due at ``now_ns``; return when the next step is due at the latest."""
        journals = self._open_journals()
        if now_ns >= self._next_clock:
            self._next_clock = now_ns + CLOCK_NS
            pair = self._clock.pair()
            for journal in journals:
                journal.append(pair)
        due = now_ns >= self._next_chunk
        if due:
            self._next_chunk = now_ns + self._chunk_ns
        for journal in journals:
            if (due or journal.urgent) and self._commit(journal, now_ns):
                with self._lock:
                    self._journals.remove(journal)
        if now_ns >= self._next_checkpoint:
            self._tell_heads(now_ns)
            self._next_checkpoint = now_ns + CHECKPOINT_NS
            self._sign_checkpoint(self._open_journals(), now_ns)
        elif fresh := [journal for journal in self._open_journals() if not journal.was_signed]:
            self._sign_checkpoint(fresh, now_ns)  # one that dies in its first seconds proves itself too
        self._sync(now_ns)
        return min(self._next_chunk, self._next_clock)

    def _commit(self, journal: JournalWriter, now_ns: int) -> bool:
        """Commit one journal; True when it is done with."""
        try:
            return journal.commit(now_ns)
        except Exception as error:  # a fault in one journal must not end the others' recordings
            journal.break_down(error, now_ns)
            return True

    def _open_journals(self) -> list[JournalWriter]:
        with self._lock:
            return list(self._journals)

    def _sign_checkpoint(self, journals: Sequence[JournalWriter], now_ns: int) -> None:
        """Sign one root over the heads of their open segments, and give each its path."""
        standing = [(journal, head) for journal in journals if (head := journal.chain.head)]
        if not standing:
            return
        for journal, _ in standing:
            journal.was_signed = (
                True  # or it was tried: a key service that is down is not asked at each chunk
            )
        root, paths = merkle_tree([head for _, head in standing])
        utc_ns = self._clock.utc_ns()
        unsigned = Checkpoint(0, len(standing), now_ns, utc_ns, root, ())
        try:
            signature = self._sign(unsigned.signed_message())
        except (
            Exception
        ) as error:  # a device or key service may fail in any way; the recordings go on without
            for journal, _ in standing:
                journal.report_unsigned(error, now_ns)
            return
        for index, (journal, _) in enumerate(standing):
            share = Checkpoint(index, len(standing), now_ns, utc_ns, root, paths[index], signature)
            journal.checkpoint(share, now_ns)

    def _tell_heads(self, now_ns: int) -> None:
        """Tell the checkpoints before this one, which have reached the disk by now."""
        if self._on_heads is None or now_ns < self._next_heads:
            return
        self._next_heads = now_ns + self._heads_ns
        heads = [head for journal in self._open_journals() if (head := journal.durable_head) is not None]
        if heads:
            self._on_heads(heads)

    def _sign(self, message: bytes) -> bytes:
        """Sign, waiting ``SIGN_PATIENCE_S`` at most: the key may be across a network. Raises TimeoutError."""
        if self._signers is None:
            return self._signer.sign(message)
        if self._signing is not None and not self._signing.done():
            raise TimeoutError("the signature before this one is still awaited")
        self._signing = self._signers.submit(self._signer.sign, message)
        try:
            return self._signing.result(SIGN_PATIENCE_S)
        except TimeoutError:
            raise TimeoutError(f"no signature within {SIGN_PATIENCE_S:g} s") from None

    def _sync(self, now_ns: int) -> None:
        """Begin what is due: journals somebody waits for at once, the others each second."""
        due = now_ns >= self._next_sync
        if due:
            self._next_sync = now_ns + SYNC_NS
        self._syncing = {journal: future for journal, future in self._syncing.items() if not future.done()}
        wanting = [journal for journal in self._open_journals() if journal not in self._syncing]
        wanting.sort(key=lambda journal: not journal.awaited)
        for journal in wanting:
            if not journal.awaited and not (self._fsync and due and journal.wants_sync()):
                continue
            if self._syncer is None:
                journal.sync(now_ns, durable=self._fsync)
            else:
                self._syncing[journal] = self._syncer.submit(self._sync_one, journal)

    def _sync_one(self, journal: JournalWriter) -> None:
        journal.sync(self._clock.now_ns(), durable=self._fsync)
        if journal.awaited:  # somebody has begun to wait meanwhile
            self._wake.set()

    def _report(self, trouble: JournalTrouble) -> None:
        if self._on_trouble is not None:
            self._on_trouble(trouble)

    def _run(self) -> None:
        while not self._stopping:
            due_ns = self.step(self._clock.now_ns())
            self._wake.wait(max(0, due_ns - self._clock.now_ns()) / 1e9)
            self._wake.clear()
