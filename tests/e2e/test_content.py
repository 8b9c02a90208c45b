"""What is in the composite: right pictures, right places, right times, both voices, nothing missing.

One call of three is recorded while people join late, are muted, share the canvas in another layout and
leave; then every frame and every beep of the finished file is read. The agent is Chromium with a fake
camera, the others are stock aiortc whose pictures carry the machine's own clock.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e import peers
from tests.e2e.api import Api
from tests.e2e.browser import participant
from tests.e2e.measure import Shown, delay, look, parties_shown
from tests.e2e.stage import Stage
from tests.media.barcode import Box
from tests.media.film import Film, read_film, stretch
from tests.media.pictures import AGENT, CUSTOMER, EXPERT, FPS, HEIGHT, WIDTH, Party, flash_level
from tests.media.sounds import PERIOD_S, RATE, beep_onsets, locate_stretched, loudness, speak, word_times
from tests.media.tracks import CameraTrack, MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

SOURCE_FRAME_MS = 1000 / FPS
SETTLE_S = 1.2
"""After every change this long is not judged: the change has 1 s to take effect."""
SIDE = {"left": Box(0, 0, 640, 720), "right": Box(640, 0, 640, 720)}
GRID = {"left": Box(0, 0, 640, 360), "right": Box(640, 0, 640, 360), "below": Box(320, 360, 640, 360)}
PIP = {"whole": Box(0, 0, 1280, 720), "first": Box(934, 14, 320, 180), "second": Box(934, 208, 320, 180)}


STRICT = {"audio": {"layout": "stereo_by_role"}, "static_fps": None}
"""Every frame is looked at, those in which nothing moves included."""


@dataclass
class Call:
    """A recorded call: its file, what was done when, and what was sent."""

    film: Film
    recording: dict[str, Any]
    ready_s: float
    """From stop to a finished composite."""
    utc_minus_mono_ms: int
    moments: dict[str, float] = field(default_factory=dict)
    """What was done → s from the recording's begin."""
    sent: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Identity → (time in the bar code, UTC ms of the capture) of its pictures."""
    looked: dict[str, list[Shown]] = field(default_factory=dict)

    def frames(self, layout: str, tiles: dict[str, Box], first: str, last: str) -> list[Shown]:
        """Return the frames between two moments, the settling after the first left out."""
        if layout not in self.looked:
            self.looked[layout] = look(self.film, when(self.recording["armed_at"]), tiles)
        begin, end = self.moments[first] + SETTLE_S, self.moments[last]
        return [frame for frame in self.looked[layout] if begin <= frame.at_s < end]


def when(text: str) -> datetime:
    """Parse an RFC 3339 time."""
    return datetime.fromisoformat(text)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def call(
    stage: Stage, devices: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Call]:
    """Make the call once for all tests of this file; its composite is kept as long as pytest keeps things."""
    room = "counter-content"
    moments: dict[str, float] = {}
    utc_minus_mono_ms = (time.time_ns() - time.monotonic_ns()) // 1_000_000
    async with (
        Api(stage.base, stage.key()) as api,
        participant(stage.base, *devices[AGENT.identity]) as agent,
    ):
        await api.room(room)
        names = {AGENT: "客户经理 李明", CUSTOMER: "客户 王晓东", EXPERT: "专家 赵𬭎"}
        tokens = {
            party: await api.token(room, party.identity, party.role, name) for party, name in names.items()
        }
        await agent.publish(room, tokens[AGENT])
        await agent.watch_camera()
        tracks = {party: (CameraTrack(party), MicrophoneTrack(party)) for party in (CUSTOMER, EXPERT)}
        customer = await peers.publish(api, room, tokens[CUSTOMER], list(tracks[CUSTOMER]))
        await peers.connected(customer)
        while await agent.count("publish camera", "video", "framesSent") < FPS:
            await asyncio.sleep(0.1)
        recording = await api.record(room, "CONTENT-1", template=STRICT)
        armed_ms = when(recording["armed_at"]).timestamp() * 1000

        def mark(name: str) -> None:
            moments[name] = (time.time() * 1000 - armed_ms) / 1000

        moments["begin"] = 0.0
        await asyncio.sleep(5.5)
        mark("expert comes")
        expert = await peers.publish(api, room, tokens[EXPERT], list(tracks[EXPERT]))
        await asyncio.sleep(4)
        mark("customer's camera off")
        await mute(api, room, CUSTOMER, "video", True)
        await asyncio.sleep(3)
        mark("customer's camera on")
        await mute(api, room, CUSTOMER, "video", False)
        await asyncio.sleep(3)
        mark("customer's microphone off")
        await mute(api, room, CUSTOMER, "audio", True)
        await asyncio.sleep(3.5)
        mark("customer's microphone on")
        await mute(api, room, CUSTOMER, "audio", False)
        mark("pip")
        pip = {"layout": {"name": "pip", "corner": "top_right"}}
        await api.call("PATCH", f"/v1/recordings/{recording['id']}", pip)
        await asyncio.sleep(4)
        mark("side by side")
        await api.call("PATCH", f"/v1/recordings/{recording['id']}", {"layout": {"name": "side_by_side"}})
        await expert.close()
        await asyncio.sleep(4)
        mark("end")
        await api.stop(recording["id"])
        sent = {AGENT.identity: await agent.captured()}
        for party, (camera, _) in tracks.items():
            sent[party.identity] = [(one % 2**32, float(one + utc_minus_mono_ms)) for one in camera.sent_ms]
        await agent.leave()
        await customer.close()
        shown, ready_s = await api.composed(recording["id"])
        answer = await api.file(recording["id"], "composite.mp4")
        assert answer.status == 200
    (tmp_path_factory.mktemp("content") / "composite.mp4").write_bytes(answer.body)
    yield Call(read_film(answer.body), shown, ready_s, utc_minus_mono_ms, moments, sent)


async def mute(api: Api, room: str, party: Party, kind: str, muted: bool) -> None:
    """Mute a track of a participant for everyone."""
    await api.call("PATCH", f"/v1/rooms/{room}/participants/{party.identity}", {"kind": kind, "muted": muted})


async def test_file_is_whole(call: Call) -> None:
    film, recording = call.film, call.recording
    armed, stopped = when(recording["armed_at"]), when(recording["stopped_at"])
    wall_s = (stopped - armed).total_seconds()
    print(f"composed {call.ready_s:.1f} s after stop; {film.duration_s:.3f} s of {wall_s:.3f} s")
    assert (film.video_codec, film.audio_codec, film.width, film.height) == ("h264", "aac", 1280, 720)
    assert abs(film.duration_s - wall_s) <= 0.1
    assert abs(film.sound_end_s - wall_s) <= 0.1
    steps = [late - early for early, late in itertools.pairwise(film.frame_times_s)]
    assert film.frame_times_s[0] < 0.001
    assert max(steps) < 0.0401
    assert min(steps) > 0.0399
    assert film.sound_gaps == []


async def test_clock_runs_with_the_file(call: Call) -> None:
    frames = look(call.film, when(call.recording["armed_at"]), SIDE)
    armed_ms = when(call.recording["armed_at"]).timestamp() * 1000
    off = [frame.clock_ms - armed_ms - frame.at_s * 1000 for frame in frames]
    print(f"{len(frames)} clocks read; clock - file time {min(off):.0f} … {max(off):.0f} ms")
    assert len(frames) == len(call.film.frame_times_s)
    assert max(abs(value) for value in off) <= 40


@pytest.mark.parametrize(
    ("tile", "party", "layout", "tiles", "first", "last"),
    [
        ("left", AGENT, "side", SIDE, "begin", "expert comes"),
        ("right", CUSTOMER, "side", SIDE, "begin", "expert comes"),
        ("left", AGENT, "grid", GRID, "expert comes", "pip"),
        ("right", CUSTOMER, "grid", GRID, "expert comes", "customer's camera off"),
        ("right", CUSTOMER, "grid", GRID, "customer's camera on", "pip"),
        ("below", EXPERT, "grid", GRID, "expert comes", "pip"),
        ("whole", CUSTOMER, "pip", PIP, "pip", "side by side"),
        ("first", EXPERT, "pip", PIP, "pip", "side by side"),
        ("second", AGENT, "pip", PIP, "pip", "side by side"),
        ("left", AGENT, "side", SIDE, "side by side", "end"),
        ("right", CUSTOMER, "side", SIDE, "side by side", "end"),
    ],
)
async def test_every_tile_shows_its_party_in_time(
    call: Call, tile: str, party: Party, layout: str, tiles: dict[str, Box], first: str, last: str
) -> None:
    frames = call.frames(layout, tiles, first, last)
    period_ms = PERIOD_S * 1000 if party is AGENT else 0
    measured = delay(frames, tile, party, call.sent[party.identity], period_ms)
    print(f"{first} … {last}: {tile} {party.identity}: {measured}")
    assert frames
    assert measured.frames == len(frames), f"other pictures too: {parties_shown(frames, tile)}"
    assert 0 <= measured.median_ms < 400
    assert measured.early_ms <= SOURCE_FRAME_MS
    assert measured.stale_ms <= SOURCE_FRAME_MS


async def test_a_camera_that_is_off_shows_no_picture(call: Call) -> None:
    frames = call.frames("grid", GRID, "customer's camera off", "customer's camera on")
    assert frames
    assert all(frame.codes["right"] is None for frame in frames)
    assert all(frame.codes["left"] is not None for frame in frames)


async def test_beeps_and_words_are_at_their_times(call: Call) -> None:
    armed_mono_ms = when(call.recording["armed_at"]).timestamp() * 1000 - call.utc_minus_mono_ms
    film = call.film
    begin, end = call.moments["begin"] + 1.0, call.moments["customer's microphone off"]
    late: list[float] = []
    for onset_s in beep_onsets(film.sound, CUSTOMER.tone_hz):
        if begin <= onset_s < end:
            mono_ms = armed_mono_ms + onset_s * 1000
            late.append((mono_ms + 300) % 1000 - 300)
    print(f"{len(late)} beeps of the customer, {min(late):.0f} … {max(late):.0f} ms after they were made")
    assert len(late) >= int(end - begin) - 1
    sound_delay_ms = statistics.median(late)
    assert 0 <= sound_delay_ms < 300
    assert max(abs(value - sound_delay_ms) for value in late) < 30
    for offset_s, word in word_times(CUSTOMER):
        spoken = speak(word, CUSTOMER.voice)
        # The programme's second 0 is at every monotonic second that PERIOD_S divides.
        start_s = (offset_s * 1000 - armed_mono_ms) / 1000 % PERIOD_S + sound_delay_ms / 1000
        if not begin <= start_s < end - 1:
            continue
        heard = stretch(film.right, start_s - 0.3, 0.6 + len(spoken) / RATE)
        found_s, likeness = locate_stretched(heard, spoken)
        print(f"{word} at {start_s:.3f} s, {(found_s - 0.3) * 1000:+.0f} ms, likeness {likeness:.2f}")
        assert abs(found_s - 0.3) < 0.05
        assert likeness > 0.35


async def test_the_browsers_words_keep_their_distance_from_its_beeps(call: Call) -> None:
    film = call.film
    onsets = beep_onsets(film.sound, AGENT.tone_hz)
    # A starved fake microphone repeats or leaves out a little now and then; its words must be there all the
    # same.
    assert len(onsets) >= film.duration_s * 0.8
    heard = 0
    for offset_s, word in word_times(AGENT):
        spoken = speak(word, AGENT.voice)
        found_s, likeness = locate_stretched(film.left, spoken)
        nearest = min(onsets, key=lambda onset: abs(onset + offset_s % 1 - found_s))
        # In whole seconds from a beep's place: the word may stand before the first beep of the file.
        off_s = (found_s - nearest - offset_s + 0.5) % 1 - 0.5
        print(f"{word} at {found_s:.3f} s, {off_s * 1000:+.0f} ms by the nearest beep, {likeness:.2f}")
        assert likeness > 0.5
        assert abs(off_s) < 0.03
        heard += 1
    assert heard == len(AGENT.words)


async def test_sound_and_picture_belong_together(call: Call) -> None:
    begin, end = call.moments["begin"] + SETTLE_S, call.moments["expert comes"]
    box = SIDE["right"].placed(WIDTH, HEIGHT, "contain")
    levels = [
        (at_s, flash_level(luma, (box.x, box.y, box.width, box.height)))
        for at_s, luma in call.film.pictures()
        if begin <= at_s < end
    ]
    flashes = [late_s for (_, before), (late_s, after) in itertools.pairwise(levels) if before < 0.5 <= after]
    beeps = beep_onsets(call.film.sound, CUSTOMER.tone_hz)
    offsets = [(flash - min(beeps, key=lambda beep: abs(beep - flash))) * 1000 for flash in flashes]
    print(f"flash - beep: {', '.join(f'{offset:+.0f}' for offset in offsets)} ms")
    assert len(offsets) >= 3
    assert abs(statistics.median(offsets)) <= 80
    assert max(abs(offset) for offset in offsets) <= 80 + SOURCE_FRAME_MS


async def test_a_muted_microphone_is_silence_and_the_others_are_heard(call: Call) -> None:
    begin, end = (
        call.moments["customer's microphone off"] + SETTLE_S,
        call.moments["customer's microphone on"],
    )
    inside = [onset for onset in beep_onsets(call.film.sound, CUSTOMER.tone_hz) if begin <= onset < end]
    assert inside == []
    others = [onset for onset in beep_onsets(call.film.sound, AGENT.tone_hz) if begin <= onset < end]
    assert len(others) >= int(end - begin)
    assert loudness(stretch(call.film.sound, begin, end - begin)) > 0.001
