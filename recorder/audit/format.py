"""The bytes of the audit log: where its files lie, what an entry is, what its public frames say.

An entry is canonical JSON (RFC 8785), sealed; several entries, a line each, make a chunk. Public frames are
canonical JSON too, and name recordings and tenants by their ids alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from recorder.canonical import JSON, MAX_INTEGER, CanonicalError, canonical, parse_canonical
from recorder.sealed import FileScan, RecordInfo, RecordType

MEDIA_TYPE = "application/vnd.shuanglu.audit"
LOG = "log.sealed"
CHUNK_BYTES = 1 << 20
_PLACE = re.compile(r"^(?P<node>[a-z0-9][a-z0-9-]{0,63})-(?P<number>\d{6,12})$")
_MEMBERS = ("actor", "address", "data", "id", "purpose", "recording", "room", "seq", "tenant", "time", "type")


@dataclass(frozen=True, order=True, slots=True)
class LogFile:
    """One file of a node's audit log; sorts in the order of writing."""

    node: str
    number: int
    directory: Path
    """Holds ``log.sealed`` and ``keys.json``."""

    @property
    def path(self) -> Path:
        """The sealed file."""
        return self.directory / LOG

    @property
    def name(self) -> str:
        """Its name in reports: from the year on."""
        return "/".join(self.path.parts[-4:])

    @property
    def series(self) -> str:
        """What its key's sidecar is made out to."""
        return series_id(self.node, self.number)

    @property
    def month(self) -> tuple[str, str]:
        """Year and month in which it was begun, as its place says."""
        return self.directory.parts[-3], self.directory.parts[-2]


def series_id(node: str, number: int) -> str:
    """Name a file as its ``keys.json`` does: ``audit-node-1-000001``."""
    return f"audit-{node}-{number:06d}"


def file_directory(root: Path, node: str, number: int, utc_ns: int) -> Path:
    """Return where a file begun at ``utc_ns`` goes. Raise ValueError for a node that is no safe name."""
    name = f"{node}-{number:06d}"
    if not _PLACE.match(name):
        raise ValueError(f"node {node!r} must be of a-z, 0-9 and -, at most 64 of them")
    day = datetime.fromtimestamp(utc_ns // 1_000_000_000, UTC)
    return root / f"{day:%Y}" / f"{day:%m}" / name


def list_files(root: Path) -> list[LogFile]:
    """Return the files of a log, of every node in the order of writing."""
    found = []
    for directory in root.glob("[0-9][0-9][0-9][0-9]/[0-9][0-9]/*"):
        match = _PLACE.match(directory.name)
        if match and directory.is_dir():
            found.append(LogFile(match["node"], int(match["number"]), directory))
    return sorted(found)


def entry_of(event: Mapping[str, object], *, address: str = "", purpose: str = "") -> dict[str, JSON]:
    """Return the entry of an event, fit to be written in canonical form.

    ``address`` is where it was asked from, ``purpose`` what for. Numbers that canonical JSON has no place
    for (fractions, integers beyond ±2^53) become their decimal text.
    """
    known = {name: _plain(event.get(name)) for name in _MEMBERS}
    return {**known, "address": address, "purpose": purpose}


def _plain(value: object) -> JSON:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= MAX_INTEGER else str(value)
    if isinstance(value, float):
        return json.dumps(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # a lone surrogate has no UTF-8 form
    if isinstance(value, Mapping):
        return {str(_plain(str(name))): _plain(item) for name, item in value.items()}
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return str(value)


def chunks_of(entries: Iterable[Mapping[str, JSON]]) -> Iterable[tuple[bytes, int, int, int]]:
    """Yield plain texts of chunks, each with the ``seq`` of its first and last entry and their number."""
    lines: list[bytes] = []
    size = first = last = 0
    for entry in entries:
        line = canonical(entry)
        if lines and size + len(line) > CHUNK_BYTES:
            yield b"\n".join(lines), first, last, len(lines)
            lines, size = [], 0
        last = int(str(entry["seq"]))
        first = first if lines else last
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield b"\n".join(lines), first, last, len(lines)


def entries_in(chunk: bytes) -> list[dict[str, JSON]]:
    """Read a chunk's plain text. Raise CanonicalError if it is no list of entries."""
    return [parse_canonical(line) for line in chunk.split(b"\n")]


def frame_fields(payload: bytes) -> dict[str, JSON]:
    """Read a public frame. Raise CanonicalError for anything but a JSON object.

    That it is in canonical form is not checked: the file's chain and signatures are over its bytes.
    """
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise CanonicalError(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise CanonicalError("no JSON object")
    return value


def unsigned_records(found: FileScan, signed: int) -> list[RecordInfo]:
    """Return the records behind the last checkpoint that holds, at offset ``signed``, which none vouches for.

    What only closes a file is not among them.
    """
    closing = (RecordType.CHECKPOINT, RecordType.INDEX, RecordType.END)
    return [one for one in found.records if one.offset > signed and one.type not in closing]


def integer(fields: Mapping[str, JSON], name: str) -> int:
    """Return an integer member of a frame. Raise CanonicalError if it is none."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise CanonicalError(f"{name} is no integer: {value!r}")
    return value
