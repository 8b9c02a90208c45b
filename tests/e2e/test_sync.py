"""Sound and picture over a bad line: 5 % loss, 50 ms of jitter, clocks that differ, a microphone that stalls.

Flashes and beeps of two stock aiortc senders through real WebRTC, read back from the finished file. The full
length (SHUANGLU_LONG=1) is ten minutes, over which nothing may drift.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import pytest
import pytest_asyncio

from tests.e2e import peers
from tests.e2e.api import Api
from tests.e2e.conftest import LONG
from tests.e2e.stage import Stage
from tests.media.barcode import Box
from tests.media.film import Film, read_film
from tests.media.lossy import LossyLink
from tests.media.pictures import AGENT, CUSTOMER, HEIGHT, WIDTH, Party, flash_level
from tests.media.sounds import Sound, beep_onsets
from tests.media.tracks import CameraTrack, MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200), pytest.mark.asyncio(loop_scope="module")]

CALL_S = 600.0 if LONG else 40.0
STALL_S = 10.0
LOSS, JITTER_S = 0.05, 0.05
PPM = {AGENT: 100.0, CUSTOMER: -100.0}
"""The two senders' clocks differ by 200 ppm: 120 ms over ten minutes."""
SIDE = {AGENT: Box(0, 0, 640, 720), CUSTOMER: Box(640, 0, 640, 720)}
SETTLE_S = 3.0
FOUND = 0.6
"""Of the flashes and beeps at least so many are found: where a lost packet held the onset, it is not."""
TEMPLATE = {"audio": {"layout": "stereo_by_role"}, "static_fps": None}


@dataclass
class Heard:
    """What the file holds of both parties; all times in s of the file."""

    flashes: dict[Party, list[float]]
    beeps: dict[Party, list[float]]
    stall_s: float
    """When the customer's microphone stopped."""

    def offsets(self, party: Party) -> list[tuple[float, float]]:
        """Return (flash's time in s, flash - beep in ms), where both were received."""
        found = []
        for flash in self.flashes[party]:
            beep = min(self.beeps[party], key=lambda beep: abs(beep - flash))
            if abs(beep - flash) < 0.4:
                found.append((flash, (flash - beep) * 1000))
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def heard(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Heard]:
    """Make the call once; its composite is kept as long as pytest keeps things."""
    room = "counter-sync"
    async with Api(stage.base, stage.key()) as api:
        await api.room(room)
        links = {party: LossyLink(party.number) for party in PPM}
        sounds = {party: MicrophoneTrack(party, ppm=ppm) for party, ppm in PPM.items()}
        sessions = []
        for party, ppm in PPM.items():
            token = await api.token(room, party.identity, party.role, party.identity)
            tracks = [CameraTrack(party, ppm=ppm), sounds[party]]
            session = await peers.publish(api, room, token, tracks, link=links[party])
            await peers.connected(session)
            sessions.append(session)
        for link in links.values():
            link.loss, link.jitter_s = LOSS, JITTER_S
        recording = await api.record(room, "SYNC-1", template=TEMPLATE)
        stall_s = CALL_S * 0.4
        await asyncio.sleep(stall_s)
        sounds[CUSTOMER].stall(STALL_S)
        await asyncio.sleep(CALL_S - stall_s)
        await api.stop(recording["id"])
        for session, link in zip(sessions, links.values(), strict=True):
            assert session.connection.connectionState == "connected"
            await session.close()
            link.close()
            print(f"{link.lost} of {link.lost + link.passed} datagrams lost")
            assert 0.03 < link.lost / (link.lost + link.passed) < 0.07
        _, ready_s = await api.composed(recording["id"], timeout_s=300)
        print(f"composed {ready_s:.1f} s after the connections were closed")
        answer = await api.file(recording["id"], "composite.mp4")
    (tmp_path_factory.mktemp("sync") / "composite.mp4").write_bytes(answer.body)
    film = read_film(answer.body)
    assert abs(film.duration_s - CALL_S) < 1.0
    ears: dict[Party, Sound] = {AGENT: film.left, CUSTOMER: film.right}
    beeps = {party: beep_onsets(sound, party.tone_hz) for party, sound in ears.items()}
    yield Heard(_flashes(film), beeps, stall_s)


def _flashes(film: Film) -> dict[Party, list[float]]:
    """Return when each party's flash field turned bright."""
    boxes = {party: box.placed(WIDTH, HEIGHT, "contain") for party, box in SIDE.items()}
    levels: dict[Party, list[tuple[float, float]]] = {party: [] for party in SIDE}
    for at_s, luma in film.pictures():
        for party, box in boxes.items():
            levels[party].append((at_s, flash_level(luma, (box.x, box.y, box.width, box.height))))
    return {
        party: [
            late_s
            for (_, before), (late_s, after) in itertools.pairwise(seen)
            if late_s > SETTLE_S and before < 0.5 <= after
        ]
        for party, seen in levels.items()
    }


def slope_ms_per_min(points: list[tuple[float, float]]) -> float:
    """Return the slope of (s, ms) points, robust against single ones: the median over pairs far apart."""
    half = len(points) // 2
    slopes = [
        (late - early) / (late_s - early_s) * 60
        for (early_s, early), (late_s, late) in zip(points, points[half:], strict=False)
    ]
    return statistics.median(slopes)


@pytest.mark.parametrize("party", list(SIDE), ids=lambda party: str(party.identity))
async def test_sound_and_picture_stay_together(heard: Heard, party: Party) -> None:
    offsets = heard.offsets(party)
    values = [offset for _, offset in offsets]
    middle, worst = statistics.median(values), max(map(abs, values))
    slope = slope_ms_per_min(offsets)
    print(
        f"{party.identity}: {len(values)} pairs, flash - beep {middle:+.0f} ms median,"
        f" {min(values):+.0f} … {max(values):+.0f}, slope {slope:+.2f} ms/min"
    )
    expected = CALL_S - SETTLE_S - (STALL_S if party is CUSTOMER else 0)
    assert len(values) >= FOUND * expected
    assert abs(middle) <= 40
    assert worst <= 80
    if LONG:
        assert abs(slope) <= 1


async def test_speech_after_a_stall_is_where_it_was_said(heard: Heard) -> None:
    """Beeps are made at whole seconds of one clock: their place within the second says how late they lie."""
    late = [(at_s, at_s % 1 * 1000) for at_s in heard.beeps[CUSTOMER] if at_s > SETTLE_S]
    reference = late[0][1]
    late = [(at_s, (value - reference + 500) % 1000 - 500) for at_s, value in late]
    before = [value for at_s, value in late if at_s < heard.stall_s]
    after = [value for at_s, value in late if at_s > heard.stall_s + STALL_S]
    inside = [at_s for at_s, _ in late if heard.stall_s + 1 < at_s < heard.stall_s + STALL_S - 1]
    shift = statistics.median(after) - statistics.median(before)
    print(f"{len(before)} beeps before the stall, {len(after)} after it, shifted by {shift:+.1f} ms")
    assert inside == []
    assert len(after) >= FOUND * (CALL_S - heard.stall_s - STALL_S)
    assert abs(shift) <= 20
    assert max(after) - min(after) <= 40


async def test_two_clocks_stay_aligned(heard: Heard) -> None:
    distances = []
    for at_s in heard.beeps[AGENT]:
        other = min(heard.beeps[CUSTOMER], key=lambda beep: abs(beep - at_s))
        if at_s > SETTLE_S and abs(other - at_s) < 0.4:
            distances.append((at_s, (at_s - other) * 1000))
    values = [value for _, value in distances]
    slope = slope_ms_per_min(distances)
    print(f"agent - customer {np.min(values):+.1f} … {np.max(values):+.1f} ms, slope {slope:+.2f} ms/min")
    assert max(map(abs, values)) <= 40
    if LONG:
        assert abs(slope) <= 1
