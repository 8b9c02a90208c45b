"""Clips and viewers' copies: exact to the frame, marked, tied to their parent, which is never touched."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from compositor import cli, copies
from compositor.copies import CopyError, CopyJob, make_copy
from recorder.sealed import FileSummary, SealedReader, plain_name
from recorder.statements import read_sealed, read_statements
from recorder.verify import verify
from tests.compositor.real_recording import RealRecording, make_real_recording
from tests.recorder.small_recording import make_provider

FPS = 15
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> RealRecording:
    place = tmp_path_factory.mktemp("real")
    template = {"width": 320, "height": 240, "profile": "evidence", "overlays": [], "static_fps": None}
    return make_real_recording(place / "r", make_provider(place / "keys"), template=template)


def request(recording: RealRecording, **more: Any) -> dict[str, Any]:
    parent = recording.file("composite.mp4")
    return {
        "recording_dir": str(recording.path),
        "data_key_id": recording.data_key.key_id,
        "data_key": base64.b64encode(recording.data_key.secret).decode(),
        "parent": parent.name,
        "parent_id": parent.file_id,
        "parent_sm3": parent.sm3,
        "name": "copy-1.mp4",
        **more,
    }


def made(recording: RealRecording, done: dict[str, Any]) -> bytes:
    summary = FileSummary.from_json(done["file"])
    path = recording.path / "files" / summary.name
    try:
        with SealedReader(path, recording.data_key) as reader:
            assert reader.header.kind == "derived"
            assert reader.header.public["parent"] == recording.file("composite.mp4").file_id
            return b"".join(reader.chunks())
    finally:
        path.unlink()


def opened_film(film: bytes) -> Any:
    return av.open(io.BytesIO(film))


def pictures(film: bytes) -> list[tuple[int, Pixels]]:
    """Decode a film: number of each frame on the grid, and its luma."""
    with opened_film(film) as opened:
        video = opened.streams.video[0]
        return [
            (round(frame.pts * frame.time_base * FPS), frame.to_ndarray(format="gray"))
            for frame in opened.decode(video)
        ]


def sound(film: bytes) -> npt.NDArray[np.float32]:
    with opened_film(film) as opened:
        parts = [frame.to_ndarray()[0] for frame in opened.decode(opened.streams.audio[0])]
    return np.concatenate(parts)


def distance(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_a_copy_has_every_frame_of_its_parent_with_the_name_over_it(recording: RealRecording) -> None:
    parent = recording.plain("composite.mp4")
    before = {path.name: path.read_bytes() for path in (recording.path / "files").iterdir()}
    marked = made(recording, make_copy(CopyJob.model_validate(request(recording, mark="赵磊 2026-11-26"))))
    unmarked = made(recording, make_copy(CopyJob.model_validate(request(recording))))
    originals, copied, plain = pictures(parent), pictures(marked), pictures(unmarked)
    assert [number for number, _ in copied] == [number for number, _ in originals]
    assert len(originals) == 4 * FPS
    for (_, original), (_, copy), (_, same) in zip(originals, copied, plain, strict=True):
        assert distance(original, same) < 1.0, "it is the same picture"
        lighter = copy.astype(int) - original.astype(int) > 12
        for rows in np.array_split(lighter, 2):  # the name is all over the picture
            for part in np.array_split(rows, 2, axis=1):
                assert part.mean() > 0.005
    with opened_film(parent) as one, opened_film(marked) as other:
        assert one.duration == other.duration
        titles = [chapter["metadata"]["title"] for chapter in one.chapters()]
        assert [chapter["metadata"]["title"] for chapter in other.chapters()] == titles
        assert titles
    assert np.corrcoef(sound(parent)[: 3 * 48000], sound(marked)[: 3 * 48000])[0, 1] > 0.98
    assert {path.name: path.read_bytes() for path in (recording.path / "files").iterdir()} == before


@pytest.mark.parametrize(("from_ms", "to_ms"), [(0, 1000), (1000, 2400), (2134, 2201), (3000, None)])
def test_a_clip_is_exact_to_the_frame(recording: RealRecording, from_ms: int, to_ms: int | None) -> None:
    parent = recording.plain("composite.mp4")
    job = CopyJob.model_validate(request(recording, from_ms=from_ms, to_ms=to_ms, name="clip-1.mp4"))
    done = make_copy(job)
    clip = made(recording, done)
    end_ms = to_ms or 4000
    assert (done["duration_ms"], done["to_ms"]) == (end_ms - from_ms, end_ms)
    originals, cut = dict(pictures(parent)), pictures(clip)
    first = round(from_ms * FPS / 1000)
    count = max(1, round((end_ms - from_ms) * FPS / 1000))
    assert [number for number, _ in cut] == list(range(count))
    for number, picture in cut:
        distances = {other: distance(picture, original) for other, original in originals.items()}
        nearest = [other for other, value in distances.items() if value <= min(distances.values()) + 0.2]
        assert first + number in nearest, f"frame {number} shows {nearest}"
    with opened_film(clip) as opened:
        assert opened.duration == (end_ms - from_ms) * 1000
    expected = sound(parent)[from_ms * 48 : end_ms * 48]
    got = sound(clip)[: expected.size]
    if expected.size > 48000:
        middle = slice(4800, expected.size - 9600)
        assert np.corrcoef(expected[middle], got[middle])[0, 1] > 0.98, "not a sample out of place"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"from_ms": 4000}, "behind the end"),
        ({"parent_id": "0" * 32}, "not the file that was signed"),
        ({"parent": "thumbnail.jpg"}, "cannot be decoded"),
    ],
)
def test_what_cannot_be_made_is_said_and_leaves_nothing(
    recording: RealRecording, change: dict[str, Any], match: str
) -> None:
    if "parent" in change:
        file = recording.file(change["parent"])
        change = {"parent": file.name, "parent_id": file.file_id}
    before = sorted(path.name for path in (recording.path / "files").iterdir())
    with pytest.raises(CopyError, match=match):
        make_copy(CopyJob.model_validate(request(recording, **change)))
    assert sorted(path.name for path in (recording.path / "files").iterdir()) == before


def test_as_a_process_it_speaks_the_compositors_lines_and_never_its_key(recording: RealRecording) -> None:
    command = [sys.executable, "-m", copies.__name__]
    good = subprocess.run(
        command, input=json.dumps(request(recording)) + "\n", capture_output=True, text=True, timeout=60
    )
    done = json.loads(good.stdout.splitlines()[-1])["done"]
    assert (good.returncode, done["frames"]) == (0, 4 * FPS)
    made(recording, done)
    secret = base64.b64encode(recording.data_key.secret).decode()
    for wrong in ({"from_ms": 5, "to_ms": 5}, {"name": "../x.mp4"}, {"parent": "../manifest.sealed"}):
        body = json.dumps(request(recording, **wrong)) + "\n"
        bad = subprocess.run(command, input=body, capture_output=True, text=True, timeout=60)
        assert json.loads(bad.stdout)["failed"]["code"] == "job_invalid"
        assert secret not in bad.stdout + bad.stderr
    assert not list(Path(recording.path / "files").glob(".*"))


def test_the_commands_put_on_record_who_for_whom_and_why(recording: RealRecording) -> None:
    options = ["--keys", str(recording.provider.directory), "--operator", "王芳", "--reason", "case 7"]

    def run(command: str, *more: str) -> Any:
        return CliRunner().invoke(cli.app, [command, str(recording.path), *options, *more])

    assert run("copy", "--viewer", "赵磊").exit_code == 0
    assert run("clip", "--from-ms", "1000", "--to-ms", "2000").exit_code == 0
    assert run("clip", "--from-ms", "2000", "--to-ms", "3000").exit_code == 0
    parent = recording.file("composite.mp4")
    copied, first, second = read_statements(recording.path)[-3:]
    assert [plain_name(one.files[0].name) for one in (copied, first, second)] == [
        "copy-1.mp4",
        "clip-1.mp4",
        "clip-2.mp4",
    ]
    assert first.body["operation"] == {"kind": "clip", "from_ms": 1000, "to_ms": 2000}
    named = first.body["parent"]
    assert isinstance(named, dict)
    assert (named["sm3"], named["plain_sm3"]) == (parent.sm3, parent.plain_sm3)
    private = read_sealed(recording.path, copied, recording.data_key)
    assert private == {"operator": "王芳", "reason": "case 7", "viewer": "赵磊"}
    assert "赵磊" not in json.dumps(copied.page.fields, ensure_ascii=False)
    assert verify(recording.path, data_key=recording.data_key).ok
    for wrong in (["copy", "--viewer", " "], ["clip", "--from-ms", "5", "--to-ms", "5"]):
        assert run(*wrong).exit_code == 1
