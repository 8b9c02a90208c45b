"""Say what a dead writer left: every good record, from the files alone, changing none of them."""

from __future__ import annotations

from pathlib import Path

from recorder.journal.reader import JournalReader
from recorder.journal.summary import PartSummary
from recorder.journal.tally import Tally
from recorder.sealed import DataKey, SealedError, summarise
from recorder.storage import list_segments


def recover(directory: Path, data_key: DataKey | None = None) -> list[PartSummary]:
    """Describe each part of a recording from its segments.

    Needs no database and writes nothing, so it may run any number of times. Without the key only segments and
    damage are told. Segments that no one can describe (not even a header) are named in ``damage``.
    """
    parts: dict[int, list[Path]] = {}
    for name, path in list_segments(directory):
        parts.setdefault(name.part, []).append(path)
    return [_part(directory, part, paths, data_key) for part, paths in sorted(parts.items())]


def _part(directory: Path, part: int, paths: list[Path], data_key: DataKey | None) -> PartSummary:
    tally = Tally(part)
    summary = tally.summary
    if data_key is not None:
        reader = JournalReader(directory, data_key, part=part)
        for records in reader.chunks():
            tally.add(records)
        reader.close()
        summary.damage += reader.damage
    for path in paths:
        if not path.is_file():
            summary.damage.append(f"{path.name}: is no file")
            continue
        try:
            summary.segments.append(summarise(path))
        except SealedError as error:
            if error.code != "incomplete":
                summary.damage.append(f"{path.name}: {error}")
    return tally.finish()
