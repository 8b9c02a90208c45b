"""Search the entries of an audit log, opening file after file with its key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from recorder.audit.format import LogFile, entries_in, frame_fields, list_files
from recorder.canonical import JSON, CanonicalError
from recorder.keys import KeyProblem
from recorder.sealed import DataKey, RecordType, SealedError, SealedReader, scan


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries; what is empty does not matter."""

    tenant: str = ""
    type: str = ""
    """An event's type, or its beginning and ``*``: ``audit.*``."""
    recording: str = ""
    actor: str = ""
    begin: str = ""
    """RFC 3339, UTC: from here on."""
    end: str = ""
    """… and before this."""

    def takes(self, entry: dict[str, JSON]) -> bool:
        """Say whether an entry is wanted."""
        kind = str(entry.get("type"))
        return (
            (not self.tenant or entry.get("tenant") == self.tenant)
            and (not self.type or is_of_type(kind, self.type))
            and (not self.recording or entry.get("recording") == self.recording)
            and (not self.actor or entry.get("actor") == self.actor)
            and (not self.begin or str(entry.get("time")) >= self.begin)
            and (not self.end or str(entry.get("time")) < self.end)
        )


def is_of_type(kind: str, wanted: str) -> bool:
    """Say whether an event's type is ``wanted``, or begins as ``wanted*`` says."""
    return kind.startswith(wanted[:-1]) if wanted.endswith("*") else kind == wanted


def search(
    root: Path,
    key_of: Callable[[LogFile], DataKey],
    wanted: Wanted,
    *,
    damaged: Callable[[LogFile, Exception], None] | None = None,
) -> Iterator[dict[str, JSON]]:
    """Yield the wanted entries in order, each once (a crash may have written one twice).

    What cannot be opened is told to ``damaged`` and the next file is read; without it SealedError, KeyProblem
    and CanonicalError are raised. Files of months before the wanted time are not opened.
    """
    seen: dict[str, int] = {}
    for file in list_files(root):
        # Not so with the end: what a crash left unwritten is written by the next start, whenever that is.
        if wanted.begin and _month_after("-".join(file.month)) < wanted.begin[:7]:
            continue
        try:
            for entry in _entries(file, key_of):
                seq = entry.get("seq")
                if isinstance(seq, int) and seq > seen.get(file.node, 0):
                    seen[file.node] = seq
                    if wanted.takes(entry):
                        yield entry
        except (SealedError, KeyProblem, CanonicalError, OSError) as error:
            if damaged is None:
                raise
            damaged(file, error)


def _entries(file: LogFile, key_of: Callable[[LogFile], DataKey]) -> Iterator[dict[str, JSON]]:
    """Yield a file's entries; none of one whose writer died before or in its first write."""
    if not file.path.exists():
        return
    try:
        reader = SealedReader(file.path, key_of(file))
    except SealedError as error:
        if error.code == "incomplete":
            return
        raise
    with reader:
        for chunk in reader.chunks():
            yield from entries_in(chunk)


def _month_after(month: str) -> str:
    year, number = map(int, month.split("-"))
    return f"{year + number // 12:04d}-{number % 12 + 1:02d}"


def frames(
    root: Path, tenant: str, *, begin: str = "", end: str = "", recording: str = ""
) -> list[dict[str, JSON]]:
    """Return a tenant's ANCHOR frames in order, with the file and record each lies in; no key is needed.

    ``begin`` and ``end`` are RFC 3339, UTC; with ``recording`` only the items about it, without the signed
    pages. Frames are returned as they lie there: ``read_log`` says whether they hold.
    """
    found: list[dict[str, JSON]] = []
    for file in list_files(root):
        if (begin and _month_after("-".join(file.month)) < begin[:7]) or not file.path.is_file():
            continue
        for record in scan(file.path).records:
            if record.type != RecordType.ANCHOR:
                continue
            try:
                frame = frame_fields(record.payload)
            except CanonicalError:
                continue
            at = str(frame.get("at"))
            if frame.get("tenant") != tenant or (begin and at < begin) or (end and at >= end):
                continue
            if recording:
                items = frame.get("recordings")
                mine = [
                    item
                    for item in (items if isinstance(items, list) else [])
                    if isinstance(item, Mapping) and item.get("recording") == recording
                ]
                if not mine:
                    continue
                frame = {**frame, "recordings": mine}
            found.append({"file": file.name, "record": record.number, "frame": frame})
    return found
