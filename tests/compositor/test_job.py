"""The child process: live, killed or afterwards, the file is the same; nothing plain lies on disk."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from bench.journals import JournalInSteps
from compositor.job import EXIT_FAILED, EXIT_PARENT_DIED
from recorder.records import Record
from recorder.sealed import DataKey, SealedReader
from tests.compositor.calls import MS, START_NS, UTC_NS, Call, track

KEY = DataKey("job", b"fedcba9876543210")
TEMPLATE = {"width": 320, "height": 240, "profile": "evidence"}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    call = Call(4000)
    for seat, number, luma in (("agent#1", 1, 80), ("customer#1", 3, 180)):
        picture, sound = track(number, seat, "video/VP8"), track(number + 1, seat, "audio/opus")
        call.join(picture)
        call.join(sound)
        call.video(picture, lambda n, luma=luma: luma + n % 20)  # type: ignore[misc]
        call.audio(sound, 300 * number, from_ms=400 * number)
    return call.records()


class Child:
    """A compositor process."""

    def __init__(self, directory: Path, **more: Any) -> None:
        job = {
            "recording_dir": str(directory),
            "data_key_id": KEY.key_id,
            "data_key": base64.b64encode(KEY.secret).decode(),
            "template": TEMPLATE,
            "kind": "archive",
            "name": "composite.mp4",
            "live": False,
            "singles": None,
            "sign": False,
            **more,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "compositor.job"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.say(job)

    def say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)

    def last(self) -> dict[str, Any]:
        found = list(self.lines())
        self.process.wait(timeout=30)
        return found[-1] if found else {}


def plain(directory: Path, name: str) -> bytes:
    (path,) = directory.glob(f"files/{name}.*.sealed")
    with SealedReader(path, KEY) as reader:
        return reader.read(0, reader.size)


def test_live_killed_and_afterwards_are_byte_for_byte_the_same(tmp_path: Path, records: list[Record]) -> None:
    afterwards = tmp_path / "afterwards"
    JournalInSteps(afterwards, KEY, records, UTC_NS).write()
    first = Child(afterwards).last()["done"]

    live = tmp_path / "live"
    journal = JournalInSteps(live, KEY, records, UTC_NS)
    journal.write(0.8)
    killed = Child(live, live=True)
    next(killed.lines())  # it has composed something
    killed.process.kill()
    killed.process.wait()
    assert list(live.glob("files/.*.spool"))
    child = Child(live, live=True)
    assert "progress" in next(child.lines())
    journal.write()
    second = child.last()["done"]

    assert first["file"]["plain_sm3"] == second["file"]["plain_sm3"]
    assert first["timeline"] == second["timeline"]
    assert [one["plain_sm3"] for one in first["images"]] == [one["plain_sm3"] for one in second["images"]]
    for directory, done in ((afterwards, first), (live, second)):
        made = [done["file"], done["timeline_file"], *done["images"]]
        names = {one["name"] for one in made}
        assert len(names) == 4
        assert {p.name for p in (directory / "files").iterdir()} == names
        assert json.loads(plain(directory, "timeline.json")) == done["timeline"]
        assert done["duration_ms"] == 4000
        assert done["frames"] == 60
        data = plain(directory, "composite.mp4")
        assert data[4:8] == b"ftyp"
        assert data.index(b"moov") < data.index(b"mdat")
        container: Any = av.open(io.BytesIO(data))
        with container:
            assert abs(container.duration - 4_000_000) < 1000
            assert len(list(container.decode(container.streams.video[0]))) == 60
        for path in directory.rglob("*"):
            if path.is_file():
                raw = path.read_bytes()
                assert b"ftyp" not in raw
                assert data[-2000:-1900] not in raw


def test_a_damaged_journal_is_composed_and_said(tmp_path: Path, records: list[Record]) -> None:
    journal = JournalInSteps(tmp_path, KEY, records, UTC_NS)
    journal.write()
    (segment,) = tmp_path.glob("segments/*.seg")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    *before, last = Child(tmp_path).lines()
    assert last["done"]["duration_ms"] == 4000
    (detail,) = last["done"]["timeline"]["unreadable"]
    assert segment.name in detail
    assert "does not open" in detail
    assert {"event": {"type": "composite.journal_damaged", "data": {"detail": detail}}} in before


def test_parent_dies(tmp_path: Path, records: list[Record]) -> None:
    journal = JournalInSteps(tmp_path, KEY, records, UTC_NS)
    journal.write(0.6)
    child = Child(tmp_path, live=True)
    next(child.lines())
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert child.process.wait(timeout=20) == EXIT_PARENT_DIED
    assert list((tmp_path / "files").iterdir()) == []


def test_parent_stops_listening(tmp_path: Path, records: list[Record]) -> None:
    JournalInSteps(tmp_path, KEY, records, UTC_NS).write()
    child = Child(tmp_path)
    assert child.process.stdout is not None
    child.process.stdout.close()
    assert child.process.wait(timeout=20) == EXIT_PARENT_DIED


def test_ended_without_a_final_record_and_singles(tmp_path: Path, records: list[Record]) -> None:
    journal = JournalInSteps(tmp_path, KEY, records[:-1], UTC_NS)
    journal.write()
    child = Child(tmp_path, live=True, template=None, singles=[])
    child.say({"ended": True, "end_ns": START_NS + 4000 * MS})
    done = child.last()["done"]
    assert [single["name"] for single in done["singles"]] == [
        "single-agent-1-camera.webm",
        "single-customer-1-camera.webm",
    ]
    container: Any = av.open(io.BytesIO(plain(tmp_path, "single-customer-1-camera.webm")))
    with container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("vp8", "opus")
        packets = [p for p in container.demux(video) if p.size]
        assert len(packets) >= 95
        assert abs(container.duration - 4_000_000) < 100_000


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"template": {"width": 3}}, "job_invalid"),
        ({"data_key": "no"}, "job_invalid"),
        ({"name": "../x"}, "job_invalid"),
        ({}, "nothing_recorded"),
    ],
)
def test_bad_jobs_fail_by_name(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    child = Child(tmp_path, **change)
    failed = child.last()["failed"]
    assert failed["code"] == code
    assert base64.b64encode(KEY.secret).decode() not in json.dumps(failed)
    assert child.process.returncode == EXIT_FAILED
