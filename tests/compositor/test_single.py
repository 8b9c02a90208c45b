"""Single-picture files: the sent pictures, undecoded, at their times, in containers that hold them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import pytest

from compositor.pictures import picture_size
from compositor.single import SingleWanted, SingleWriter
from recorder.records import Record
from recorder.sealed import DataKey, SealedReader
from tests.compositor.calls import Call, coded, track

KEY = DataKey("single", b"fedcba9876543210")


def written(directory: Path, records: list[Record], wanted: list[SingleWanted]) -> dict[str, Any]:
    """Write the files; returns name → (report, opened container)."""
    writer = SingleWriter(directory, KEY, wanted)
    for record in records:
        writer.feed(record)
    found: dict[str, Any] = {}
    for single in writer.finish():
        with SealedReader(directory / "files" / single["file"]["name"], KEY) as reader:
            found[single["name"]] = (single, av.open(io.BytesIO(reader.read(0, reader.size))))
    writer.remove_spools()
    return found


@pytest.mark.parametrize(
    ("mime", "ending", "codec"),
    [
        ("video/VP8", "webm", "vp8"),
        ("video/VP9", "mp4", "vp9"),
        ("video/H264", "mp4", "h264"),
        ("video/AV1", "mp4", "libdav1d"),
    ],
)
def test_every_codec_is_copied_as_sent(tmp_path: Path, mime: str, ending: str, codec: str) -> None:
    call = Call(3000)
    picture, sound = track(1, "customer#1", mime), track(2, "customer#1", "audio/opus")
    call.join(picture)
    call.join(sound)
    call.video(picture, lambda n: 60 + 2 * n, from_ms=600)
    call.audio(sound, 440, from_ms=1000, to_ms=1600)
    call.audio(sound, 440, from_ms=2200, to_ms=2800)
    ((name, (single, container)),) = written(tmp_path, call.records(), []).items()
    assert name == f"single-customer-1-camera.{ending}"
    assert single["left_out"] == []
    assert single["duration_ms"] == 3000
    video = container.streams.video[0]
    assert video.codec_context.name == codec
    assert (video.codec_context.width, video.codec_context.height) == (320, 180)
    pictures = list(container.decode(video))
    assert len(pictures) == 60
    assert abs(float(pictures[0].pts * pictures[0].time_base) - 0.6) < 0.03
    for number, shown in enumerate(pictures):
        assert abs(float(shown.pts * shown.time_base) - 0.6 - number / 25) < 0.04
        assert abs(int(shown.to_ndarray(format="yuv420p")[90, 160]) - (60 + 2 * number)) <= 6
    assert abs(container.duration / 1e6 - 3.0) < 0.06
    container.seek(1_700_000)
    after = next(container.decode(video))
    assert abs(float(after.pts * after.time_base) - 1.6) < 0.06, "the keyframe before"


def test_sound_is_at_its_time_and_gaps_are_silent(tmp_path: Path) -> None:
    call = Call(3000)
    picture, sound = track(1, "agent#1", "video/H264"), track(2, "agent#1", "audio/opus")
    call.join(picture)
    call.join(sound)
    call.video(picture, lambda n: 100)
    call.audio(sound, 440, from_ms=1000, to_ms=1600)
    call.audio(sound, 440, from_ms=2200, to_ms=2800)
    ((_, container),) = written(tmp_path, call.records(), [SingleWanted(seat="agent#1")]).values()
    loud = []
    for frame in container.decode(container.streams.audio[0]):
        if abs(frame.to_ndarray()).max() > 0.1:
            loud.append(float(frame.pts * frame.time_base))
    first, second = [at for at in loud if at < 1.9], [at for at in loud if at > 1.9]
    assert abs(first[0] - 1.0) < 0.05
    assert abs(first[-1] - 1.6) < 0.05
    assert abs(second[0] - 2.2) < 0.05
    assert abs(second[-1] - 2.8) < 0.05


def test_reconnect_continues_the_file_and_another_codec_is_listed(tmp_path: Path) -> None:
    call = Call(4000)
    first, second = track(1, "customer#1", "video/VP8"), track(2, "customer#1", "video/VP8")
    third = track(3, "customer#1", "video/H264")
    for info, begins in ((first, 0), (second, 1500), (third, 3000)):
        call.join(info, begins)
        call.video(info, lambda n: 100, from_ms=begins, to_ms=begins + 1000)
    ((single, container),) = written(tmp_path, call.records(), []).values()
    assert single["left_out"] == ["track 3 is video/H264, the file video/VP8"]
    times = [float(f.pts * f.time_base) for f in container.decode(container.streams.video[0])]
    assert len(times) == 50
    assert times == sorted(times)
    assert abs(times[25] - 1.5) < 0.05


def test_only_what_was_wanted(tmp_path: Path) -> None:
    call = Call(1000)
    for number, seat, source in (
        (1, "agent#1", "camera"),
        (2, "agent#1", "screen"),
        (3, "customer#1", "camera"),
    ):
        info = track(number, seat, "video/VP8", source)
        call.join(info)
        call.video(info, lambda n: 100)
    found = written(tmp_path, call.records(), [SingleWanted(seat="agent#1", source="screen")])
    assert list(found) == ["single-agent-1-screen.webm"]
    assert not list((tmp_path / "files").glob(".*"))


@pytest.mark.parametrize("mime", ["video/VP8", "video/VP9", "video/H264", "video/AV1"])
def test_picture_size_of_keyframes_cut_anywhere(mime: str) -> None:
    data, _ = coded(mime, [100])[0]
    assert picture_size(mime, data) == (320, 180)
    for size in range(0, min(len(data), 12)):
        assert picture_size(mime, data[:size]) in (None, (320, 180))
