"""The chain of segment files that one writer leaves: create, append, rotate, survive the disk's errors.

A segment is never opened for writing twice. When the disk fails, the file is left as it is (all its whole
records stay good), and the next attempt is a new file that names the head of the last good record as its
``previous``.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from recorder.atomic import sync_directory
from recorder.canonical import JSON
from recorder.sealed import DataKey, FileSummary, RecordType, SealedError, SealedWriter, summarise
from recorder.storage import SegmentName, segment_path, segments_directory

MEDIA_TYPE = "application/vnd.shuanglu.journal"
_ROOM_NEEDED = 1 << 20
"""After "disk full", free bytes to wait for before another file is begun: no trail of empty files."""


def disk_code(error: OSError) -> str:
    """Name an error of the disk for people: ``disk_full`` or ``disk_error``."""
    return "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_error"


class SegmentChain:
    """Segments of one part. One thread writes; ``sync`` may be called by another at the same time."""

    def __init__(self, directory: Path, data_key: DataKey, part: int, public: Mapping[str, JSON]) -> None:
        """Make the directory. Raises OSError if that is not possible."""
        self.directory = directory
        self.part = part
        self.index = 0
        """Of the next segment to be created."""
        self.began_ns = 0
        """When the open segment was begun."""
        self._data_key = data_key
        self._public = public
        self._writer: SealedWriter | None = None
        self._previous: bytes | None = None
        self._finished: list[FileSummary | Path] = []
        self._closing = threading.Lock()  # held while a descriptor is closed or synced
        self._wait_for_room = False
        self._folder_synced = False
        self._name_synced: SealedWriter | None = None  # whose file's name is on disk
        segments_directory(directory).mkdir(parents=True, exist_ok=True)

    @property
    def head(self) -> bytes | None:
        """Chain head of the open segment; None if there is none."""
        return self._previous if self._writer is not None else None

    @property
    def place(self) -> tuple[int, int, int]:
        """Where the next record of the open segment goes: its index, the record's number, its offset."""
        assert self._writer is not None
        return self.index - 1, self._writer.records, self._writer.bytes

    def append(self, chunk: bytes, now_ns: int) -> None:
        """Seal one chunk into the open segment, beginning one if there is none.

        Raises OSError; the open segment is then left for good and the chunk is not part of it.
        """
        writer = self._writer or self._begin(now_ns)
        try:
            writer.append(chunk)
        except OSError:
            self._leave()
            raise
        self._previous = writer.head

    def checkpoint(self, payload: bytes) -> None:
        """Write a checkpoint into the open segment. Raises OSError as ``append`` does."""
        if self._writer is None:
            return
        try:
            self._writer.public_frame(RecordType.CHECKPOINT, payload)
        except OSError:
            self._leave()
            raise
        self._previous = self._writer.head

    def sync(self) -> None:
        """Make the open segment, and its name, survive a power cut. Raises OSError.

        Then whoever writes must call ``leave``: after a failed fdatasync the kernel may have dropped the
        data, and a second one would wrongly say that all is well.
        """
        with self._closing:
            if self._writer is None:
                return
            self._writer.sync()
            if self._name_synced is not self._writer:
                sync_directory(segments_directory(self.directory))
                self._name_synced = self._writer
            if not self._folder_synced:
                sync_directory(self.directory)
                self._folder_synced = True

    def rotate(self) -> None:
        """Finish the open segment, if any; the next append begins another.

        Raises OSError as ``append`` does.
        """
        if self._writer is None:
            return
        try:
            with self._closing:
                summary = self._writer.close()
        except OSError:
            self._leave()
            raise
        self._finished.append(summary)
        self._previous = bytes.fromhex(summary.head.partition(":")[2])
        self._writer = None

    def leave(self) -> None:
        """Leave the open segment unfinished, if any."""
        if self._writer is not None:
            self._leave()

    def room_again(self) -> bool:
        """Tell whether another attempt makes sense: after "disk full", only when there is room again."""
        if not self._wait_for_room:
            return True
        try:
            state = os.statvfs(segments_directory(self.directory))
        except OSError:
            return True
        return state.f_bavail * state.f_frsize >= _ROOM_NEEDED

    def note(self, error: OSError) -> None:
        """Remember why the disk failed, for ``room_again``."""
        self._wait_for_room = disk_code(error) == "disk_full"

    def summaries(self) -> tuple[list[FileSummary], list[str]]:
        """Describe all segments left so far, and what could not be described, a sentence each."""
        found: list[FileSummary] = []
        damage: list[str] = []
        for item in self._finished:
            if isinstance(item, FileSummary):
                found.append(item)
                continue
            try:
                found.append(summarise(item))
            except (SealedError, OSError) as error:
                damage.append(f"{item.name}: {error}")
        return found, damage

    def _begin(self, now_ns: int) -> SealedWriter:
        path = segment_path(self.directory, self.part, self.index)
        try:
            self._writer = SealedWriter(
                path,
                self._data_key,
                kind="original",
                media_type=MEDIA_TYPE,
                public={**self._public, "part": self.part, "index": self.index},
                previous=self._previous,
            )
        except FileExistsError:
            raise
        except OSError:
            # Not even a header: nothing was ever sealed under this file's id, so its name may be used again.
            path.unlink(missing_ok=True)
            raise
        self.index += 1
        self.began_ns = now_ns
        self._previous = self._writer.head
        return self._writer

    def _leave(self) -> None:
        assert self._writer is not None
        with self._closing:
            self._writer.abandon()
        self._finished.append(self._writer.path)
        self._writer = None


def next_index(directory: Path, part: int) -> int:
    """Return the first free index of a part: 0 unless a writer has been there."""
    folder = segments_directory(directory)
    names = [SegmentName.parse(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return max((name.index + 1 for name in names if name is not None and name.part == part), default=0)
