"""What is said about a finished (or left) sealed file in manifests and statements."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from recorder.canonical import JSON, CanonicalError, as_int

_SEALED_NAME = re.compile(r"^(?P<name>.+)\.[0-9a-f]{32}\.sealed$")


@dataclass(frozen=True)
class FileSummary:
    """One sealed file: its size, its digests. ``name`` is the file's name on disk, without directories."""

    name: str
    file_id: str
    kind: str
    media_type: str
    bytes: int
    plain_bytes: int
    chunks: int
    sm3: str
    """``sm3:…`` of all bytes of the file; ``openssl dgst -sm3`` prints the same."""
    plain_sm3: str
    """``sm3:…`` of all plain text of finished media; empty for journals and unfinished files."""
    head: str
    """Chain head: of a finished file the same as ``sm3``, of others that after the last whole record."""
    finished: bool = True

    def to_json(self) -> dict[str, JSON]:
        """Return the members as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: JSON) -> FileSummary:
        """Read what ``to_json`` wrote. Raise CanonicalError for anything else."""
        if not isinstance(value, Mapping):
            raise CanonicalError("a file summary is a JSON object")
        try:
            return cls(
                name=str(value["name"]),
                file_id=str(value["file_id"]),
                kind=str(value["kind"]),
                media_type=str(value["media_type"]),
                bytes=as_int(value["bytes"]),
                plain_bytes=as_int(value["plain_bytes"]),
                chunks=as_int(value["chunks"]),
                sm3=str(value["sm3"]),
                plain_sm3=str(value["plain_sm3"]),
                head=str(value["head"]),
                finished=bool(value.get("finished", True)),
            )
        except KeyError as error:
            raise CanonicalError(f"file summary without {error}") from None


def plain_name(name: str) -> str:
    """Return ``composite.mp4`` of ``composite.mp4.{file id}.sealed``; other names unchanged."""
    match = _SEALED_NAME.match(name)
    return match["name"] if match else name
