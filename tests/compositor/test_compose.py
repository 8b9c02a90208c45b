"""Whole composites of made-up calls: what each place shows at each frame, and the sound at its time."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compositor.canvas import Planes, new_planes, yuv
from compositor.compose import Composition, NothingRecorded
from compositor.mp4 import Chapter
from compositor.overlays import OverlaySet
from compositor.painter import ground
from recorder.depacketise.audio import opus_repeated
from recorder.records import RED, EndRecord, TrackInfo
from recorder.template import parse_template
from tests.compositor.calls import START_NS, UTC_NS, Call, Watch, compose, opus_voice, track

SMALL: dict[str, Any] = {"width": 640, "height": 360, "overlays": [], "static_fps": None}
CODECS = ["video/VP8", "video/H264", "video/VP9", "video/AV1"]
AGENT = track(1, "agent#1", "video/VP8")
AGENT_SOUND = track(2, "agent#1", "audio/opus")
CUSTOMER = track(3, "customer#1", "video/VP8")
CUSTOMER_SOUND = track(4, "customer#1", "audio/opus")


def middles(planes: Planes) -> tuple[int, int]:
    """Luma in the middle of the left and of the right half."""
    return int(planes.y[180, 160]), int(planes.y[180, 480])


def shown(report: dict[str, Any], place: int) -> list[tuple[int, str | None, str]]:
    return [(c["at_ms"], c["seat"], c["shown"]) for c in report["shown"] if c["place"] == place]


@pytest.mark.parametrize("mime", CODECS)
def test_every_picture_is_shown_at_its_time(mime: str) -> None:
    call = Call(1600)
    agent = track(1, "agent#1", mime)
    customer = track(3, "customer#1", mime)
    for info in (agent, customer):
        call.join(info)
    call.video(agent, lambda n: 40 + 3 * n)
    call.video(customer, lambda n: 200 - 3 * n)
    watch, report = compose(call, SMALL, middles)
    assert len(watch.frames) == 40 == report["frames"]
    assert report["duration_ms"] == 1600
    lefts = [left for left, _ in watch.frames]
    rights = [right for _, right in watch.frames]
    first = next(n for n, left in enumerate(lefts) if abs(left - 40) <= 4)
    assert first <= 2
    for n in range(first, 40):
        assert abs(lefts[n] - (40 + 3 * (n - first))) <= 4, n
        assert abs(rights[n] - (200 - 3 * (n - first))) <= 4, n


def test_late_join_leave_and_return() -> None:
    call = Call(5200)
    call.join(AGENT)
    call.video(AGENT, lambda n: 90)
    call.join(CUSTOMER, 1000)
    call.video(CUSTOMER, lambda n: 180, from_ms=1000, to_ms=2000)
    call.event(2000, "participant.left", identity="customer-id", seat="customer#1", role="customer")
    again = track(5, "customer#1", "video/VP8")
    call.join(again, 3000)
    call.video(again, lambda n: 210, from_ms=3000, to_ms=4000)
    watch, report = compose(call, SMALL, middles)
    states = shown(report, 1)
    assert [(seat, what) for _, seat, what in states] == [
        (None, "waiting"),
        ("customer#1", "picture"),
        (None, "left"),
        ("customer#1", "picture"),
    ] or [what for _, _, what in states] == ["waiting", "starting", "picture", "left", "starting", "picture"]
    pictures = [at for at, _, what in states if what == "picture"]
    assert abs(pictures[0] - 1000) <= 80
    assert abs(pictures[1] - 3000) <= 80
    assert abs(next(at for at, _, what in states if what == "left") - 2000) <= 40
    assert abs(watch.frames[40][1] - 180) <= 3
    assert abs(watch.frames[90][1] - 210) <= 3
    assert {what for _, _, what in shown(report, 0)} <= {"starting", "picture"}


def test_last_picture_stands_two_seconds_then_the_signal_is_lost() -> None:
    call = Call(5000)
    call.join(AGENT)
    call.join(CUSTOMER)
    call.video(AGENT, lambda n: 90)
    call.video(CUSTOMER, lambda n: 200, to_ms=1000)
    watch, report = compose(call, SMALL, middles)
    lost = [at for at, _, what in shown(report, 1) if what == "lost"]
    assert len(lost) == 1
    assert 2940 <= lost[0] <= 3040
    assert abs(watch.frames[70][1] - 200) <= 3
    assert watch.frames[80][1] < 120


def test_mute_shows_a_card_at_once_and_takes_the_sound() -> None:
    call = Call(3000)
    for info in (AGENT, AGENT_SOUND, CUSTOMER, CUSTOMER_SOUND):
        call.join(info)
    call.video(AGENT, lambda n: 90)
    call.video(CUSTOMER, lambda n: 200)
    call.audio(CUSTOMER_SOUND, 440)
    call.event(1000, "track.muted", track=3)
    call.event(1000, "track.muted", track=4)
    call.event(2000, "track.unmuted", track=3)
    call.event(2000, "track.unmuted", track=4)
    watch, report = compose(call, SMALL, middles)
    states = [(at, what) for at, _, what in shown(report, 1) if what in ("picture", "muted")]
    assert states[-2:] == [(1000, "muted"), (2000, "picture")]
    loud = np.abs(watch.samples[0]).reshape(-1, 480).max(axis=1) > 0.1
    assert not loud[105:198].any()
    assert loud[20:95].all()
    assert loud[210:295].all()


def test_damage_is_never_shown() -> None:
    """A lost frame: the last good picture stands until the next keyframe, and the stretch is listed."""
    call = Call(2400)
    call.join(AGENT)
    call.join(CUSTOMER)
    call.video(CUSTOMER, lambda n: 200)
    call.video(AGENT, lambda n: 60 + 2 * n, drop=(30,))
    watch, report = compose(call, SMALL, middles)
    lefts = [left for left, _ in watch.frames]
    assert all(abs(left - (60 + 2 * 29)) <= 5 for left in lefts[32:49])
    assert abs(lefts[55] - (60 + 2 * 54)) <= 6
    (damage,) = report["damage"]
    ((begins, ends),) = damage["stretches_ms"]
    assert 1200 <= begins <= 1320
    assert 1980 <= ends <= 2100


def test_sound_of_both_lies_at_its_time() -> None:
    call = Call(3000)
    for info in (AGENT_SOUND, CUSTOMER_SOUND):
        call.join(info)
    call.audio(AGENT_SOUND, 400, from_ms=500, to_ms=1000)
    call.audio(CUSTOMER_SOUND, 1000, from_ms=1500, to_ms=2000)
    watch, _ = compose(call, SMALL, lambda planes: None)
    assert abs(watch.samples.shape[1] - 144_000) <= 480
    loud = np.flatnonzero(np.abs(watch.samples[0]) > 0.1) / 48
    early, late = loud[loud < 1250], loud[loud > 1250]
    assert abs(early[0] - 500) < 30
    assert abs(early[-1] - 1000) < 30
    assert abs(late[0] - 1500) < 30
    assert abs(late[-1] - 2000) < 30
    part = watch.samples[0][int(1.6 * 48_000) : int(1.9 * 48_000)]
    assert abs(np.argmax(np.abs(np.fft.rfft(part))) * 48_000 / part.size - 1000) < 10


def test_clock_of_every_frame_is_its_time_even_when_the_system_clock_steps() -> None:
    call = Call(3000, clock_step_ms=(1000, -7_200_000))
    call.join(AGENT)
    call.video(AGENT, lambda n: 90)
    template = {"width": 640, "height": 360, "overlays": [{"kind": "clock", "size": 0.06}]}
    watch, report = compose(call, template, lambda planes: planes.y[0:48, 0:640].copy())
    alone = OverlaySet(640, 360, lambda character: None)
    alone.arrange(parse_template(template).overlays, {}, [])
    for number, got in zip(watch.numbers, watch.frames, strict=True):
        planes = new_planes(640, 360)
        planes.fill(yuv("#101820"))
        alone.draw(planes, UTC_NS + number * 40_000_000)
        assert np.array_equal(got[:, :320], planes.y[0:48, :320]), number
    assert report["clock"]["steps"] == [{"at_ms": 1000, "by_ms": -7_200_000}]


def test_layout_change_pause_and_steps() -> None:
    call = Call(4000)
    for info in (AGENT, CUSTOMER, CUSTOMER_SOUND):
        call.join(info)
    call.video(AGENT, lambda n: 90)
    call.video(CUSTOMER, lambda n: 200)
    call.audio(CUSTOMER_SOUND, 440)
    call.event(1000, "recording.layout_changed", layout={"name": "single"})
    call.event(1500, "recording.layout_changed", layout={"name": "moon"})
    call.event(2000, "recording.paused")
    call.event(3000, "recording.resumed")
    call.event(500, "step.started", code="risk", name="风险揭示")
    call.event(3500, "step.ended", code="risk", result="yes")
    watch, report = compose(call, SMALL, middles)
    assert abs(watch.frames[20][0] - 90) <= 3
    assert abs(watch.frames[30][0] - 200) <= 3
    assert [change["at_ms"] for change in report["layout_changes"]] == [1000]
    assert [change["at_ms"] for change in report["refused_changes"]] == [1500]
    assert report["pauses"] == [[2000, 3000]]
    assert (2000, None, "paused") in shown(report, 0)
    assert watch.frames[60][0] < 120
    assert not np.abs(watch.samples[0][96_000:143_900]).any()
    assert report["steps"] == [
        {"code": "risk", "name": "风险揭示", "from_ms": 500, "to_ms": 3500, "result": "yes"}
    ]


def test_missing_glyph_is_reported_once() -> None:
    call = Call(1000)
    info = track(1, "agent#1", "video/VP8", name="王\U0002fffe")
    call.join(info)
    call.video(info, lambda n: 90)
    found: list[str] = []
    watch = Watch(lambda planes: None)
    template = parse_template({"width": 640, "height": 360})
    composition = Composition(template, watch.open, found.append)
    for record in call.records():
        composition.feed(record)
    assert composition.finish()["missing_glyphs"] == ["U+2FFFE"]
    assert found == ["\U0002fffe"]


def test_resolution_change_and_portrait_keep_the_file_going() -> None:
    call = Call(2000)
    call.join(AGENT)
    call.join(CUSTOMER)
    call.video(AGENT, lambda n: 90)
    call.video(CUSTOMER, lambda n: 200, to_ms=1000, size=(320, 180))
    frames_before = len(call._records)
    tall = TrackInfo(**{f: getattr(CUSTOMER, f) for f in CUSTOMER.__slots__})
    call.video(tall, lambda n: 150, from_ms=1000, size=(180, 320))
    assert len(call._records) > frames_before
    watch, report = compose(
        call, SMALL, lambda p: (int(p.y[180, 480]), int(p.y[20, 480]), int(p.y[180, 340]))
    )
    assert len(watch.frames) == 50
    assert abs(watch.frames[20][0] - 200) <= 3
    assert watch.frames[20][1] < 40, "a wide picture leaves a margin above"
    assert abs(watch.frames[45][1] - 150) <= 3, "a tall one fills the height"
    assert watch.frames[45][2] < 40, "and leaves margins beside it"
    assert report["duration_ms"] == 2000


def test_nobody_at_all_and_no_session() -> None:
    watch, report = compose(Call(1000), SMALL, middles)
    assert len(watch.frames) == 25
    assert [what for _, _, what in shown(report, 0)] == ["waiting"]
    with pytest.raises(NothingRecorded):
        Composition(parse_template(SMALL), watch.open).finish()


def test_end_without_a_final_record() -> None:
    watch = Watch(lambda planes: None)
    composition = Composition(parse_template(SMALL), watch.open)
    for record in Call(2000).records():
        if not isinstance(record, EndRecord):
            composition.feed(record)
    assert composition.finish(START_NS + 1_800_000_000)["duration_ms"] == 1800
    assert len(watch.frames) == 45


def test_while_only_the_clock_moves_few_frames_are_made() -> None:
    """A second of moving, three of cameras off, then moving again: on the grid, none late."""
    call = Call(6000)
    call.join(AGENT)
    call.video(AGENT, lambda n: 40 + 3 * n, to_ms=1000)
    call.event(1000, "track.muted", track=1)
    call.event(4600, "track.unmuted", track=1)
    call.video(AGENT, lambda n: 100 + 3 * n, from_ms=4600)
    template = {"width": 640, "height": 360, "layout": "single", "static_fps": 5}
    watch, report = compose(call, template, lambda planes: int(planes.y[180, 320]))
    gaps = np.diff(watch.numbers)
    assert report["frames"] == len(watch.numbers) < 125
    assert gaps.max() == 5, "one fifth of a second"
    by_number = dict(zip(watch.numbers, watch.frames, strict=True))
    moving = [n for n in range(3, 24)] + [n for n in range(118, 149)]
    assert set(moving) <= set(by_number), "every frame while something moves"
    still = [number for number in watch.numbers if 40 <= number < 115]
    assert len(still) == 15
    full, _ = compose(call, {**template, "static_fps": None}, lambda planes: int(planes.y[180, 320]))
    assert full.numbers == list(range(150))
    assert all(full.frames[number] == shown for number, shown in by_number.items())


def test_a_picture_that_does_not_change_is_no_movement_but_no_lost_signal() -> None:
    call = Call(5000)
    call.join(AGENT)
    call.video(AGENT, lambda n: 90)
    template = {"width": 640, "height": 360, "layout": "single", "overlays": [{"kind": "clock"}]}
    watch, report = compose(call, template, lambda planes: int(planes.y[180, 320]))
    assert report["frames"] < 60
    assert [what for _, _, what in shown(report, 0)][-1] == "picture"
    assert all(abs(luma - 90) <= 3 for luma in watch.frames[15:])


def test_a_picture_behind_the_places() -> None:
    image = Image.new("RGB", (64, 36), (255, 0, 0))
    held = io.BytesIO()
    image.save(held, "PNG")
    png = base64.b64encode(held.getvalue()).decode()
    call = Call(400)
    call.join(AGENT)
    call.video(AGENT, lambda n: 90)
    slot = {"role": "agent", "x": 0.25, "y": 0.25, "w": 0.5, "h": 0.5}
    layout = {"name": "custom", "slots": [slot]}
    watch, _ = compose(call, {**SMALL, "layout": layout, "background_png": png}, middles_and_corner)
    assert watch.frames[-1] == (yuv("#ff0000"), pytest.approx((90, 128, 128), abs=4))


def test_a_strip_behind_the_places_is_cut_not_blown_up() -> None:
    held = io.BytesIO()
    Image.new("RGB", (200_000, 1), (0, 0, 255)).save(held, "PNG")
    template = parse_template({**SMALL, "background_png": base64.b64encode(held.getvalue()).decode()})
    planes = ground(template)
    assert (planes.width, planes.height) == (640, 360)
    assert tuple(int(p[-1, -1]) for p in (planes.y, planes.u, planes.v)) == yuv("#0000ff")


def middles_and_corner(planes: Planes) -> tuple[Any, Any]:
    return tuple(int(p[2, 2]) for p in (planes.y, planes.u, planes.v)), tuple(
        int(p[p.shape[0] // 2, p.shape[1] // 2]) for p in (planes.y, planes.u, planes.v)
    )


def test_steps_are_chapters() -> None:
    call = Call(3000)
    call.join(AGENT)
    call.event(500, "step.started", code="identity", name="身份核验")
    call.event(1500, "step.ended", code="identity", result="ok")
    call.event(1600, "step.started", code="risk", name="风险揭示")
    watch = Watch(lambda planes: None)
    composition = Composition(parse_template(SMALL), watch.open)
    for record in call.records():
        composition.feed(record)
    composition.finish()
    assert composition.chapters == [
        Chapter(0, "开始 start"),
        Chapter(500, "身份核验"),
        Chapter(1600, "风险揭示"),
    ]


def test_lost_sound_is_mended_from_the_copies_in_later_packets() -> None:
    info = replace(CUSTOMER_SOUND, fmtp={RED: "63"})
    pairs = tuple(index for index in range(10, 100) if index % 10 in (4, 5))
    made = {}
    for copies, drop in ((0, ()), (1, pairs), (2, pairs)):
        call = Call(2000)
        call.join(info)
        call.audio(info, 440, copies=copies, drop=drop)
        made[copies] = compose(call, {**SMALL, "video": False}, lambda planes: None)
    whole, report = made[0]
    assert (report["gaps"], report["recovered"]) == ([], [])
    _, report = made[1]  # the later one of each pair
    assert [gap["packets"] for gap in report["gaps"]] == [1] * 9
    assert report["recovered"] == [{"track": 4, "seat": "customer#1", "packets": 9, "in_band": 0}]
    mended, report = made[2]
    assert report["gaps"] == []
    assert report["recovered"] == [{"track": 4, "seat": "customer#1", "packets": 18, "in_band": 0}]
    assert np.array_equal(mended.samples, whole.samples)


def test_lost_sound_is_mended_from_within_the_next_packet() -> None:
    voice = opus_voice(3000)
    drop = tuple(range(10, 140, 6))
    mended, unmended = (
        [at for at in drop if (opus_repeated(voice[at + 1]) > 0) is repeated] for repeated in (True, False)
    )
    assert len(mended) > 10
    assert len(unmended) > 3
    made = {}
    for lost in ((), drop):
        call = Call(3000)
        call.join(CUSTOMER_SOUND)
        call.audio(CUSTOMER_SOUND, 0, drop=lost, encoded=voice)
        made[lost] = compose(call, {**SMALL, "video": False}, lambda planes: None)
    (whole, _), (heard, report) = made.values()
    assert report["recovered"] == [
        {"track": 4, "seat": "customer#1", "packets": len(mended), "in_band": len(mended)}
    ]
    assert [(gap["from_ms"], gap["packets"]) for gap in report["gaps"]] == [(20 * at, 1) for at in unmended]
    for at in drop:
        sent, found = (one.samples[0, 960 * at : 960 * (at + 1)] for one in (whole, heard))
        if at in mended:
            assert np.corrcoef(sent, found)[0, 1] > 0.95
        else:
            assert not found.any()


def test_sound_alone_starts_no_picture() -> None:
    call = Call(2000)
    for info in (CUSTOMER, CUSTOMER_SOUND):
        call.join(info)
    call.video(CUSTOMER, lambda n: 90)
    call.audio(CUSTOMER_SOUND, 440)
    watch, report = compose(call, {**SMALL, "video": False}, lambda planes: None)
    assert (watch.frames, report["frames"], report["duration_ms"]) == ([], 0, 2000)
    assert watch.samples.shape == (1, 96_000)
    assert np.abs(watch.samples).max() > 0.1
