"""Read a journal: finished or still growing, of one part or several, damaged or whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recorder.journal.encoding import JournalError, decode
from recorder.records import EndRecord, Record
from recorder.sealed import DataKey, Header, SealedError, SealedReader
from recorder.storage import SegmentName, list_segments, segments_directory


def open_segment(path: Path, data_key: DataKey) -> SealedReader:
    """Open a segment that lies where its header says. Raise SealedError, JournalError if it was moved.

    The file's name is in no digest; its header is bound to the key.
    """
    if path.exists() and not path.is_file():
        raise JournalError(f"{path.name} is no file")
    reader = SealedReader(path, data_key)
    place = segment_place(reader.header)
    if str(place) != path.name:
        reader.close()
        raise JournalError(f"{path.name} holds {place or 'what is no segment'}: it was moved or renamed")
    return reader


def segment_place(header: Header) -> SegmentName | None:
    """Return the place in its recording that a segment's header names, None if it names none."""
    part, index = header.public.get("part"), header.public.get("index")
    return SegmentName(part, index) if isinstance(part, int) and isinstance(index, int) else None


class JournalReader:
    """Yield a journal's records in the order of writing.

    A torn tail (the writer died, or is writing) is not an error. Where a segment was changed its remaining
    records are left out and ``damage`` says so; the following segments are read. One thread.
    """

    def __init__(self, directory: Path, data_key: DataKey) -> None:
        """Open the journal of a recording's directory; it may not have begun yet."""
        self._directory = directory
        self._data_key = data_key
        self._place: SegmentName | None = None
        self._segment: SealedReader | None = None
        self._given_up = False
        self.ended = False
        """An EndRecord with ``final`` was read: nothing follows."""
        self.damage: list[str] = []
        """What could not be read, a sentence each, naming segment, record and byte range."""

    def close(self) -> None:
        """Close the open segment; may be called twice."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def records(self) -> Iterator[Record]:
        """Yield all records there are now, from where this reader stands."""
        for chunk in self._chunks():
            yield from chunk

    def poll(self) -> list[Record]:
        """Return what came since the last call, an empty list if nothing did."""
        return [record for chunk in self._chunks() for record in chunk]

    def _chunks(self) -> Iterator[list[Record]]:
        while True:
            # Before reading to the end of a segment, see whether it has a successor: only then the end is
            # final.
            following = self._following()
            yield from self._rest_of_segment()
            if following is None:
                return
            self.close()
            self._place, path = following
            self._given_up = False
            self._open(path)

    def _following(self) -> tuple[SegmentName, Path] | None:
        for name, path in list_segments(self._directory):
            if self._place is None or name > self._place:
                return name, path
        return None

    def _open(self, path: Path) -> None:
        try:
            self._segment = open_segment(path, self._data_key)
        except JournalError as error:
            self._give_up(error)
        except SealedError as error:
            if error.code != "incomplete":
                self._give_up(error)

    def _rest_of_segment(self) -> Iterator[list[Record]]:
        if self._place is None or self._given_up:
            return
        if self._segment is None:
            self._open(segments_directory(self._directory) / str(self._place))
        if self._segment is None:
            return
        chunks = self._segment.chunks()
        while True:
            try:
                chunk = next(chunks, None)
                if chunk is None:
                    return
                records = list(decode(chunk))
            except (SealedError, JournalError) as error:
                self._give_up(error)
                return
            for record in records:
                self.ended = self.ended or (isinstance(record, EndRecord) and record.final)
            yield records

    def _give_up(self, error: Exception) -> None:
        self._given_up = True
        self.damage.append(f"{self._place}: {error}")
