"""What a recording is to be made into: its composite of record, single pictures, further composites."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from recorder.catalog import Entry
from recorder.sealed import plain_name
from recorder.template import parse_template

TIMELINE = "timeline.json"
IMAGES = ("contact-sheet.jpg", "thumbnail.jpg")
SOURCES = ("camera", "screen", "document")


@dataclass(frozen=True)
class Piece:
    """One run of the compositor: a composite, single pictures, or both."""

    name: str
    """File of the composite; empty for single pictures alone."""
    kind: Literal["archive", "derived"]
    template: dict[str, Any] | None
    singles: bool = False

    def is_among(self, names: Iterable[str]) -> bool:
        """Tell whether files on disk of these names hold what this piece makes."""
        plain = {plain_name(name) for name in names}
        if not self.name:
            return any(name.startswith("single-") for name in plain)
        return self.name in plain


def pieces(entry: Entry) -> list[Piece]:
    """Return everything that is to be made of a recording, the composite of record first."""
    template = entry.details["template"]
    singles = entry.mode in ("single", "both")
    made = [
        Piece(parse_template(template).file_name, "archive", template, singles)
        if entry.mode in ("composite", "both")
        else Piece("", "archive", None, singles)
    ]
    return made + [
        Piece(one["name"], "derived", one["template"]) for one in entry.details.get("composites", [])
    ]


def file_names(entry: Entry) -> set[str]:
    """Return the names of all files that a recording's composing can make."""
    names: set[str] = set()
    for piece in pieces(entry):
        if piece.template is not None:
            names.add(piece.name)
            if piece.kind == "archive":
                names.add(TIMELINE)
                names.update(IMAGES if parse_template(piece.template).video else ())
        if piece.singles:
            names.update(_single_names(entry))
    return names


def _single_names(entry: Entry) -> list[str]:
    """List the names that single-picture files of a recording can have (VP8 goes into WebM)."""
    return [
        f"single-{who['seat'].replace('#', '-')}-{source}.{ending}"
        for who in entry.details.get("participants", [])
        for source in SOURCES
        for ending in ("mp4", "webm")
    ]
