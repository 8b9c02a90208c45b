"""Read a journal: finished or still growing, of one part or several, damaged or whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recorder.journal.encoding import JournalError, decode, decode_head, record_time
from recorder.records import ClockRecord, EndRecord, Record, SessionRecord, TrackInfo, TrackRecord
from recorder.sealed import DataKey, Header, RecordType, SealedError, SealedReader, scan
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

    A torn tail (the writer died, or is writing) is not an error. A chunk that was changed is left out and
    ``damage`` says so; where the structure was, the rest of its segment is. What follows is read. What lost
    chunks said of session and tracks is taken from the next segment's head. One thread.
    """

    def __init__(self, directory: Path, data_key: DataKey, *, part: int | None = None) -> None:
        """Open the journal of a recording's directory, or one part of it; it may not have begun yet."""
        self._directory = directory
        self._part = part
        self._data_key = data_key
        self._place: SegmentName | None = None
        self._segment: SealedReader | None = None
        self._given_up = False
        self._memory = _Memory()
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
        for chunk in self.chunks():
            yield from chunk

    def poll(self) -> list[Record]:
        """Return what came since the last call, an empty list if nothing did."""
        return [record for chunk in self.chunks() for record in chunk]

    def chunks(self) -> Iterator[list[Record]]:
        """Yield what ``records`` does, as it was written together."""
        while True:
            # Before reading to the end of a segment, see whether it has a successor: only then the end is
            # final.
            following = self._following()
            yield from self._rest_of_segment(self._limit(following))
            if following is None:
                yield self._memory.release()  # for now no head tells more
                return
            self.close()
            expected = self._expected(following[0].part)
            if expected.index == 0:
                yield self._memory.release()
                self._memory = _Memory()
            if following[0] != expected:
                self.damage.append(f"{expected}: missing")
                self._memory.lost()
            self._place, path = following
            self._given_up = False
            self._open(path)

    def _expected(self, part: int) -> SegmentName:
        """Return the segment of a part that should be read next."""
        same_part = self._place is not None and self._place.part == part
        return SegmentName(part, self._place.index + 1 if self._place is not None and same_part else 0)

    def _following(self) -> tuple[SegmentName, Path] | None:
        for name, path in list_segments(self._directory):
            if self._part in (None, name.part) and (self._place is None or name > self._place):
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

    def _limit(self, following: tuple[SegmentName, Path] | None) -> int | None:
        """Return where the open segment, left unfinished, ends by the head that its successor names.

        Only that much its writer knew to be written; a whole chunk behind it is another's. None: as it lies
        there.
        """
        if following is None or self._segment is None or following[0] != self._expected(following[0].part):
            return None
        try:
            if self._segment.finished:
                return None
            with open_segment(following[1], self._data_key) as successor:
                previous = successor.header.previous
            records = scan(segments_directory(self._directory) / str(self._place)).records
        except (JournalError, SealedError, OSError):
            return None  # said when it is opened itself
        behind = [one for one in records if one.head_before == previous] if previous is not None else []
        if not behind:
            return None
        if any(one.type == RecordType.CHUNK for one in records[behind[0].number :]):
            name, offset = following[0], behind[0].offset
            self.damage.append(f"{self._place}: bytes from {offset} on lie behind the head that {name} names")
        return behind[0].offset

    def _rest_of_segment(self, limit: int | None) -> Iterator[list[Record]]:
        if self._place is None or self._given_up:
            return
        if self._segment is None:
            self._open(segments_directory(self._directory) / str(self._place))
        if self._segment is None:
            return
        chunks = self._segment.chunks(limit)
        while True:
            try:
                chunk = next(chunks, None)
                if chunk is None:
                    return
                records = list(decode(chunk))
                head = decode_head(chunk)
            except SealedError as error:
                if error.code != "changed":
                    self._give_up(error)
                    return
                self._note(error)
                chunks = self._segment.chunks(limit)
                continue
            except JournalError as error:  # its writer sealed it so; the next chunk stands for itself
                self._note(error)
                continue
            for record in records:
                self.ended = self.ended or (isinstance(record, EndRecord) and record.final)
            yield self._memory.take(head, records)

    def _give_up(self, error: Exception) -> None:
        self._given_up = True
        self._note(error)

    def _note(self, error: Exception) -> None:
        self.damage.append(f"{self._place}: {error}")
        self._memory.lost()


class _Memory:
    """What was said of session and tracks of a part so far.

    After a loss records wait for the head that says what is missing.
    """

    def __init__(self) -> None:
        self._begun = False
        self._clock_ns: int | None = None
        """When the earliest clock pair of the part was taken."""
        self._tracks: dict[int, TrackInfo] = {}
        self._incomplete = False
        self._held: list[Record] = []

    def lost(self) -> None:
        """Something is missing before what comes next."""
        self._incomplete = True

    def take(self, head: list[Record], records: list[Record]) -> list[Record]:
        """Return what can be handed on, now that a chunk was read."""
        self._learn(records)
        if not self._incomplete:
            return records
        self._held += records
        if not head:
            return []
        missing = [record for record in head if not self._known(record)]
        self._learn(missing)
        self._incomplete = False
        return missing + self.release()

    def release(self) -> list[Record]:
        """Return what waits, though nothing more is known."""
        held, self._held = self._held, []
        return held

    def _learn(self, records: list[Record]) -> None:
        for record in records:
            if isinstance(record, TrackRecord):
                self._tracks[record.info.track] = record.info
            elif isinstance(record, SessionRecord):
                self._begun, self._clock_ns = True, None
            elif isinstance(record, ClockRecord) and self._clock_ns is None:
                self._clock_ns = record.at_ns

    def _known(self, record: Record) -> bool:
        if isinstance(record, TrackRecord):
            return record.info.track in self._tracks
        if isinstance(record, SessionRecord):
            return self._begun
        return self._clock_ns is not None and self._clock_ns <= record_time(record)
