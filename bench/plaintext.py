"""Search what a server wrote for what must not be readable in it: media and the names of people."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

MAGICS = {
    "MP4 ftyp": re.compile(rb"\x00\x00\x00.ftyp(isom|iso[2-6]|mp4[12]|avc1|dash|M4V |qt  )", re.DOTALL),
    "MP4 moov": re.compile(rb"moov\x00\x00\x00.mvhd", re.DOTALL),
    "MP4 moof": re.compile(rb"moof\x00\x00\x00.mfhd", re.DOTALL),
    "Matroska": re.compile(rb"\x1a\x45\xdf\xa3.{0,12}\x42\x82.(matroska|webm)", re.DOTALL),
    "Ogg": re.compile(rb"OggS\x00[\x00-\x07].{8}", re.DOTALL),
    "WAV": re.compile(rb"RIFF.{4}WAVEfmt ", re.DOTALL),
    "JPEG": re.compile(rb"\xff\xd8\xff\xe0\x00\x10JFIF\x00", re.DOTALL),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", re.DOTALL),
    "H.264 start": re.compile(
        rb"\x00\x00\x00\x01[\x67\x27]\x42.{1,60}\x00\x00\x00?\x01[\x68\x28]", re.DOTALL
    ),
}
"""How media files begin, and what stands in the middle of them."""


def contents(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file under ``root`` with its content; what goes away meanwhile is left out."""
    for path in sorted(root.rglob("*")):
        try:
            if path.is_file() and not path.is_symlink():
                yield str(path.relative_to(root)), path.read_bytes()
        except FileNotFoundError:
            continue


def spellings(name: str) -> list[bytes]:
    """Return how a name might stand in a file."""
    escaped = json.dumps(name)[1:-1]
    return [
        name.encode(),
        name.encode("utf-16-le"),
        escaped.encode(),
        escaped.upper().encode(),
        name.encode("gbk"),
    ]


def search(
    files: Iterable[tuple[str, bytes]], payloads: Collection[bytes], names: Collection[bytes]
) -> dict[str, list[str]]:
    """Search files for media magics, pieces of payloads and spellings of names; returns what is where."""
    hits: dict[str, list[str]] = {}
    for name, data in files:
        for label, pattern in MAGICS.items():
            if pattern.search(data):
                hits.setdefault(label, []).append(name)
        if any(payload in data for payload in payloads):
            hits.setdefault("payload", []).append(name)
        if any(spelling in data for spelling in names):
            hits.setdefault("name", []).append(name)
    return hits
