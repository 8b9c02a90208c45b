"""The sealed file: one container for journal segments, composites and reports. docs/container.md has the
bytes.

Writing: ``SealedWriter``. Opening with the key: ``SealedReader``. Checking and describing without: ``scan``.
"""

from recorder.sealed.format import Flag, Header, RecordType, SealedError
from recorder.sealed.reader import SealedReader
from recorder.sealed.scan import FileScan, RecordInfo, read_header, scan, summarise
from recorder.sealed.suites import SUITES, DataKey, suite_named
from recorder.sealed.summary import FileSummary, plain_name
from recorder.sealed.writer import SealedWriter

__all__ = [
    "SUITES",
    "DataKey",
    "FileScan",
    "FileSummary",
    "Flag",
    "Header",
    "RecordInfo",
    "RecordType",
    "SealedError",
    "SealedReader",
    "SealedWriter",
    "plain_name",
    "read_header",
    "scan",
    "suite_named",
    "summarise",
]
