"""The journal: what a call was, packet by packet, sealed while it is written.

Writing: one ``GroupCommit`` per worker process, one ``JournalWriter`` per recording part. Reading, finished
or growing: ``JournalReader``. What a dead writer left: ``recover``. The bytes of records are in ``encoding``,
those of segments in ``recorder.sealed``, those of checkpoints in ``recorder.checkpoint``.
"""

from recorder.journal.commit import GroupCommit
from recorder.journal.encoding import JournalError
from recorder.journal.reader import JournalReader
from recorder.journal.recovery import recover
from recorder.journal.summary import PartSummary, TrackSummary
from recorder.journal.writer import JournalTrouble, JournalWriter, SignedHead

__all__ = [
    "GroupCommit",
    "JournalError",
    "JournalReader",
    "JournalTrouble",
    "JournalWriter",
    "PartSummary",
    "SignedHead",
    "TrackSummary",
    "recover",
]
