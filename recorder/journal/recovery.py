"""Say what a dead writer left: every good record, from the files alone, changing none of them."""

from __future__ import annotations

from pathlib import Path

from recorder.journal.encoding import JournalError, decode
from recorder.journal.reader import open_segment
from recorder.journal.summary import PartSummary
from recorder.journal.tally import Tally
from recorder.sealed import DataKey, SealedError, summarise
from recorder.storage import list_segments


def recover(directory: Path, data_key: DataKey | None = None) -> list[PartSummary]:
    """Describe each part of a recording from its segments.

    Needs no database and writes nothing, so it may run any number of times. Without the key only segments and
    damage are told. Segments that no one can describe (not even a header) are named in ``damage``.
    """
    tallies: dict[int, Tally] = {}
    for name, path in list_segments(directory):
        tally = tallies.setdefault(name.part, Tally(name.part))
        summary = tally.summary
        if not path.is_file():
            summary.damage.append(f"{path.name}: is no file")
            continue
        try:
            if data_key is not None:
                _count_records(path, data_key, tally)
        except (SealedError, JournalError) as error:
            summary.damage.append(f"{path.name}: {error}")
        try:
            summary.segments.append(summarise(path))
        except SealedError as error:
            if error.code != "incomplete":
                summary.damage.append(f"{path.name}: {error}")
    return [tallies[part].finish() for part in sorted(tallies)]


def _count_records(path: Path, data_key: DataKey, tally: Tally) -> None:
    try:
        reader = open_segment(path, data_key)
    except SealedError as error:
        if error.code == "incomplete":
            return  # the writer died in the first write: there never was a record
        raise
    with reader:
        for chunk in reader.chunks():
            tally.add(list(decode(chunk)))
