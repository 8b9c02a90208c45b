"""The audit log: who did what, from where and why, sealed and chained; and what ties recordings to it.

It is a series of sealed files (docs/container.md), each in a directory of its own with its key's sidecar:

    {data}/audit/{yyyy}/{mm}/{node}-{number}/log.sealed  keys.json

``AuditWriter`` writes them, ``read_log`` reads and checks them without any key, ``search`` opens their
entries, ``proof`` finds by them what a recording alone cannot show: a tail cut back, a statement or a whole
recording removed. docs/audit.md says what it proves and what not.
"""

from recorder.audit.anchors import Anchored, Pending
from recorder.audit.format import LogFile, entry_of, list_files
from recorder.audit.report import AuditReport
from recorder.audit.search import Wanted, frames, search
from recorder.audit.verify import read_log
from recorder.audit.writer import AuditWriter, SigningError

__all__ = [
    "Anchored",
    "AuditReport",
    "AuditWriter",
    "LogFile",
    "Pending",
    "SigningError",
    "Wanted",
    "entry_of",
    "frames",
    "list_files",
    "read_log",
    "search",
]
