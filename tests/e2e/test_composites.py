"""Several composites of one recording: at once, and again later; chapters, contact sheet and thumbnail."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from compositor.sheet import COLUMNS, GAP, WIDTH
from tests.e2e import peers
from tests.e2e.api import Api
from tests.e2e.measure import look
from tests.e2e.stage import Stage
from tests.e2e.test_content import SIDE, when
from tests.e2e.test_files import run
from tests.media.barcode import Box
from tests.media.film import read_film
from tests.media.pictures import AGENT, CUSTOMER
from tests.media.tracks import CameraTrack, MicrophoneTrack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

CLOCK = {"kind": "clock"}
ALONE = {
    "layout": {"name": "single", "slots": [{"role": "customer"}]},
    "static_fps": None,
    "overlays": [CLOCK],
}
STACKED = {"layout": "top_bottom", "static_fps": None, "overlays": [CLOCK]}
TILES = {
    "composite.mp4": SIDE["right"],
    "customer.mp4": Box(0, 0, 1280, 720),
    "again.mp4": Box(0, 360, 1280, 360),
}
"""File → where the customer is in it."""


@dataclass
class Made:
    """A recording and all files that were made of it."""

    recording: dict[str, Any]
    files: dict[str, bytes]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(stage: Stage) -> AsyncIterator[Made]:
    """Record 8 s with two composites, then ask for a third."""
    room = "counter-composites"
    async with Api(stage.base, stage.key()) as api:
        await api.room(room)
        sessions = []
        for party in (AGENT, CUSTOMER):
            token = await api.token(room, party.identity, party.role, party.identity)
            tracks = [CameraTrack(party), MicrophoneTrack(party)]
            sessions.append(await peers.publish(api, room, token, tracks))
            await peers.connected(sessions[-1])
        wanted = [{"name": "customer.mp4", "template": ALONE}]
        template = {"static_fps": None, "overlays": [CLOCK]}
        recording = await api.record(room, "SEVERAL-1", template=template, composites=wanted)
        markers = f"/v1/recordings/{recording['id']}/markers"
        await asyncio.sleep(2)
        await api.call("POST", markers, {"step": {"code": "risk", "name": "风险提示"}, "action": "start"})
        await asyncio.sleep(2)
        await api.call("POST", markers, {"step": {"code": "risk"}, "action": "end", "result": "ok"})
        await api.call("POST", markers, {"step": {"code": "sign", "name": "签署 sign"}, "action": "start"})
        await asyncio.sleep(4)
        await api.stop(recording["id"])
        for session in sessions:
            await session.close()
        await api.composed(recording["id"])
        again = {"name": "again.mp4", "template": STACKED}
        await api.call("POST", f"/v1/recordings/{recording['id']}/composites", again)
        shown, _ = await api.composed(recording["id"])
        files = {}
        for file in shown["files"]:
            answer = await api.file(recording["id"], file["name"])
            assert answer.status == 200, file["name"]
            files[file["name"]] = answer.body
    yield Made(shown, files)


async def test_only_one_is_the_archive(made: Made) -> None:
    kinds = {file["name"]: file["kind"] for file in made.recording["files"]}
    assert kinds["composite.mp4"] == "archive"
    assert kinds["customer.mp4"] == kinds["again.mp4"] == "derived"
    assert {"contact-sheet.jpg", "thumbnail.jpg"} <= set(kinds)


async def test_all_show_the_same_pictures_at_the_same_times(made: Made) -> None:
    about = when(made.recording["armed_at"])
    looked = {
        name: look(read_film(made.files[name]), about, {"customer": tile}) for name, tile in TILES.items()
    }
    archive = looked["composite.mp4"]
    assert len(archive) >= 8 * 25 - 5
    for name, frames in looked.items():
        assert [frame.at_s for frame in frames] == [frame.at_s for frame in archive], name
        assert [frame.clock_ms for frame in frames] == [frame.clock_ms for frame in archive], name
        different = sum(
            one.codes["customer"] != other.codes["customer"]
            for one, other in zip(frames, archive, strict=True)
        )
        assert different == 0, name
    codes = {frame.codes["customer"] for frame in archive}
    assert len(codes - {None}) >= 7 * 15


async def test_steps_are_chapters(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "composite.mp4"
    path.write_bytes(made.files["composite.mp4"])
    probed = json.loads(await run("ffprobe", "-v", "error", "-show_chapters", "-of", "json", str(path)))
    chapters = [(one["tags"]["title"], float(one["start_time"])) for one in probed["chapters"]]
    print(chapters)
    assert [title for title, _ in chapters] == ["开始 start", "风险提示", "签署 sign"]
    assert chapters[0][1] == 0
    assert abs(chapters[1][1] - 2.0) < 0.7
    assert abs(chapters[2][1] - 4.0) < 0.9


async def test_the_contact_sheet_shows_the_films_moments(made: Made) -> None:
    """Each moment of the sheet is the frame of its second."""
    sheet = np.asarray(Image.open(io.BytesIO(made.files["contact-sheet.jpg"])).convert("L"), np.float32)
    pictures: dict[float, np.ndarray[Any, Any]] = {}
    with av.open(io.BytesIO(made.files["composite.mp4"]), "r") as film:
        for frame in film.decode(film.streams.video[0]):
            at_s = float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base else 0.0
            if at_s == int(at_s):
                image = Image.fromarray(frame.to_ndarray(format="gray")).resize((WIDTH, WIDTH * 9 // 16))
                pictures[at_s] = np.asarray(image, np.float32)
    assert len(pictures) >= 8
    high = WIDTH * 9 // 16
    for number, at_s in enumerate(sorted(pictures)):
        row, column = divmod(number, COLUMNS)
        top, left = GAP + row * (high + GAP), GAP + column * (WIDTH + GAP)
        moment = sheet[top : top + high, left : left + WIDTH]
        likeness = {  # below the time
            one_s: float(np.corrcoef(moment[40:].ravel(), picture[40:].ravel())[0, 1])
            for one_s, picture in pictures.items()
        }
        assert max(likeness, key=lambda one_s: likeness[one_s]) == at_s
        assert likeness[at_s] > 0.9
    thumbnail = Image.open(io.BytesIO(made.files["thumbnail.jpg"]))
    assert thumbnail.size == (WIDTH, high)
