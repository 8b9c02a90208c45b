"""Where things lie in a recording's directory.

    {data}/recordings/{tenant}/{yyyy}/{mm}/{dd}/{recording id}/
        keys.json  manifest.json  manifest.sealed
        segments/p{part}-{index}.seg   statements/NNNNNN.json   files/{name}.{file id}.sealed

The day is that of the recording's id (a UUIDv7 holds its time), UTC. The path is stored with the recording
and never computed again: recordings may be moved.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_SEGMENT = re.compile(r"^p(\d{4,})-(\d{6,})\.seg$")
_SAFE = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")


@dataclass(frozen=True, order=True, slots=True)
class SegmentName:
    """Place of a segment in its recording; sorts in the order of writing."""

    part: int
    index: int

    def __str__(self) -> str:
        return f"p{self.part:04d}-{self.index:06d}.seg"

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """Return the place a file name says, None for other files."""
        match = _SEGMENT.match(name)
        place = cls(int(match[1]), int(match[2])) if match else None
        # One place, one name: p00001-… is not a second p0001-….
        return place if str(place) == name else None


def tenant_directory(data: Path, tenant: str) -> Path:
    """Return where a tenant's recordings are. Raise ValueError for a tenant that is no safe file name."""
    if not _SAFE.match(tenant):
        raise ValueError(f"tenant {tenant!r} is no safe directory name")
    return data / "recordings" / tenant


def recording_directory(data: Path, tenant: str, recording: str) -> Path:
    """Return where a new recording goes. Raise ValueError for a tenant or id that is no safe file name."""
    root = tenant_directory(data, tenant)
    identifier = uuid.UUID(recording)
    if identifier.version != 7:
        raise ValueError(f"recording id {recording} is no UUIDv7")
    day = datetime.fromtimestamp((identifier.int >> 80) / 1000, UTC)
    return root / f"{day:%Y}" / f"{day:%m}" / f"{day:%d}" / str(identifier)


def segments_directory(directory: Path) -> Path:
    """Return the directory of a recording's journal segments."""
    return directory / "segments"


def files_directory(directory: Path) -> Path:
    """Return the directory of a recording's composites and other sealed files."""
    return directory / "files"


def segment_path(directory: Path, part: int, index: int) -> Path:
    """Return the path of one segment."""
    return segments_directory(directory) / str(SegmentName(part, index))


def list_segments(directory: Path) -> list[tuple[SegmentName, Path]]:
    """Return a recording's segments in the order of writing; other files are not looked at."""
    folder = segments_directory(directory)
    if not folder.is_dir():
        return []
    named = ((SegmentName.parse(path.name), path) for path in folder.iterdir())
    return sorted((name, path) for name, path in named if name is not None)
