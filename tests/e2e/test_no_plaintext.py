"""Nothing the server writes holds media or a customer's name in the clear; a plain copy does, and is
caught.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.plaintext import MAGICS, contents, search, spellings
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


async def test_nothing_is_written_in_the_clear(stage: Stage, kept: Kept, seed: int, tmp_path: Path) -> None:
    print(f"seed {seed}")
    recording = kept.recording["id"]
    payloads, names = await payloads_of(stage, recording, seed), spellings(kept.canary)
    assert len(payloads) == PIECES
    places = {
        "data": contents(stage.data),
        "halfway": contents(kept.halfway),
        "temporary": contents(stage.temporary),
        "log": iter([("log", stage.log_path.read_bytes())]),
        "open": open_files(stage),
    }
    read = 0
    for place, files in places.items():
        content = list(files)
        read += sum(len(data) for _, data in content)
        hits = search(iter(content), payloads, names)
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
    hits = search(contents(plain), payloads, names)
    assert hits.keys() >= {"MP4 ftyp", "payload", "name"}, hits
