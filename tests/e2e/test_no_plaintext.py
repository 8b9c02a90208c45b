"""Nothing the server writes holds media or a customer's name in the clear; a plain copy does, and is
caught.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from recorder.records import RtpRecord
from recorder.rtp import RtpPacket
from tests.e2e.conftest import Kept
from tests.e2e.evidence import directory_of, records_of
from tests.e2e.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SLICE = 24
"""Bytes of a payload that are looked for: too many to be there by chance."""
PIECES = 60
"""Payloads looked for."""
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


def searched(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file under ``root`` with its content."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(root)), path.read_bytes()


def open_files(stage: Stage) -> Iterator[tuple[str, bytes]]:
    """Yield what the server's processes hold open on disk and in memory, deleted files included."""
    for process in stage.processes():
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                target = link.readlink()
                if not str(target).startswith("/") or not link.is_file() or "/site-packages/" in str(target):
                    continue
                yield f"{process.what} {target}", link.read_bytes()
            except OSError:
                continue


def found(
    files: Iterator[tuple[str, bytes]], payloads: list[bytes], names: list[bytes]
) -> dict[str, list[str]]:
    """Search files; returns what was found where."""
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


async def payloads_of(stage: Stage, recording: str, seed: int) -> list[bytes]:
    """Return pieces of random payloads of the journal, video and sound."""
    packets = [
        record.packet for record in await records_of(stage, recording) if isinstance(record, RtpRecord)
    ]
    rng = random.Random(seed)
    rng.shuffle(packets)
    pieces: list[bytes] = []
    for packet in packets:
        payload = RtpPacket.parse(packet).payload
        if len(payload) < SLICE + 8:
            continue
        at = rng.randrange(4, len(payload) - SLICE)
        piece = payload[at : at + SLICE]
        # Silence and padding repeat a few bytes; a piece must be worth finding.
        if len(set(piece)) > 8:
            pieces.append(piece)
        if len(pieces) == PIECES:
            break
    return pieces


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


async def test_nothing_is_written_in_the_clear(stage: Stage, kept: Kept, seed: int, tmp_path: Path) -> None:
    print(f"seed {seed}")
    recording = kept.recording["id"]
    payloads, names = await payloads_of(stage, recording, seed), spellings(kept.canary)
    assert len(payloads) == PIECES
    places = {
        "data": searched(stage.data),
        "halfway": searched(kept.halfway),
        "temporary": searched(stage.temporary),
        "log": iter([("log", stage.log_path.read_bytes())]),
        "open": open_files(stage),
    }
    read = 0
    for place, files in places.items():
        content = list(files)
        read += sum(len(data) for _, data in content)
        hits = found(iter(content), payloads, names)
        # The page's own pictures and the like are no recording; secrets hold keys, not media.
        assert hits == {}, f"{place}: {hits}"
    print(f"{read:,} bytes searched for {len(payloads)} payloads, {len(MAGICS)} magics and a name")
    assert (directory_of(stage, recording) / "manifest.json").exists()

    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "composite.mp4").write_bytes(kept.composite)
    packets = [one.packet for one in await records_of(stage, recording) if isinstance(one, RtpRecord)]
    (plain / "journal.rtp").write_bytes(b"".join(packets))
    (plain / "index.db").write_bytes(b"\x00row\x00" + kept.canary.encode() + b"\x00")
    hits = found(searched(plain), payloads, names)
    assert hits.keys() >= {"MP4 ftyp", "payload", "name"}, hits
