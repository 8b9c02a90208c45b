"""The composite over HTTP: ranges, ETag, and players that play and seek in it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from playwright.async_api import Route

from tests.e2e.api import Api
from tests.e2e.browser import chromium
from tests.e2e.conftest import Kept
from tests.e2e.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def path_of(kept: Kept, name: str = "composite.mp4") -> str:
    return f"/v1/recordings/{kept.recording['id']}/files/{name}?purpose=test"


async def test_whole_file_is_what_the_record_says(api: Api, kept: Kept) -> None:
    answer = await api.ask("GET", path_of(kept))
    listed = {file["name"]: file for file in kept.recording["files"]}
    assert set(listed) >= {"composite.mp4", "single-customer-1-camera.webm"}
    file = listed["composite.mp4"]
    assert (answer.status, len(answer.body)) == (200, file["plain_bytes"])
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert "sm3:" + hashlib.new("sm3", answer.body).hexdigest() == file["plain_sm3"]
    assert file["kind"] == "archive"
    assert answer.body[4:8] == b"ftyp"
    print(f"composed {kept.ready_s:.1f} s after stop")
    assert kept.ready_s <= 5.0


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-1023", 0, 1023),
        ("bytes=5000-", 5000, -1),
        ("bytes=-1", -1, -1),
        ("bytes=-4096", -4096, -1),
        ("bytes=65535-65537", 65535, 65537),
        ("bytes=0-999999999", 0, -1),
    ],
)
async def test_ranges_are_exact(api: Api, kept: Kept, asked: str, first: int, last: int) -> None:
    whole, size = kept.composite, len(kept.composite)
    if first >= size:
        pytest.fail(f"the file of {size} bytes is too short for {asked}")
    begin, end = first % size, last % size
    answer = await api.ask("GET", path_of(kept), headers={"Range": asked})
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {begin}-{end}/{size}"
    assert answer.body == whole[begin : end + 1]


async def test_ranges_outside_and_validators(api: Api, kept: Kept) -> None:
    size = len(kept.composite)
    outside = await api.ask("GET", path_of(kept), headers={"Range": f"bytes={size}-"})
    assert outside.status == 416
    assert outside.headers["Content-Range"] == f"bytes */{size}"
    assert outside.json()["code"] == "range_not_satisfiable"
    etag = (await api.ask("HEAD", path_of(kept))).headers["ETag"]
    same = await api.ask("GET", path_of(kept), headers={"If-None-Match": etag})
    assert (same.status, same.body) == (304, b"")
    mixed = await api.ask("GET", path_of(kept), headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (mixed.status, len(mixed.body)) == (200, size)
    stale = await api.ask("GET", path_of(kept), headers={"If-Match": '"other"'})
    assert (stale.status, stale.json()["code"]) == (412, "etag_mismatch")


async def test_ffmpeg_plays_and_seeks_over_http(stage: Stage, kept: Kept) -> None:
    url = stage.base + path_of(kept)
    header = f"Authorization: {stage.bearer()}\r\n"
    probed = await run("ffprobe", "-v", "error", "-headers", header, "-show_streams", "-of", "json", url)
    streams = {stream["codec_type"]: stream for stream in json.loads(probed)["streams"]}
    assert (streams["video"]["codec_name"], streams["audio"]["codec_name"]) == ("h264", "aac")
    assert (streams["video"]["width"], streams["video"]["height"]) == (1280, 720)
    seek = ["-ss", "3", "-t", "1"]
    played = await run(
        "ffmpeg", "-v", "error", "-xerror", *seek, "-headers", header, "-i", url, "-f", "framecrc", "-"
    )
    pictures = [line for line in played.decode().splitlines() if line.startswith("0,")]
    assert 24 <= len(pictures) <= 26


async def run(*command: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    assert errors == b"", errors.decode()
    return out


async def test_chromium_plays_and_seeks(stage: Stage, api: Api, kept: Kept) -> None:
    """Chromium fetches ranges itself; the token goes in where a signed-in browser has its cookie."""
    async with chromium() as browser:
        page = await browser.new_page()

        async def shell(route: Route) -> None:
            await route.fulfill(body="<video id=v muted></video>", content_type="text/html")

        await page.set_extra_http_headers({"Authorization": stage.bearer()})
        await page.route(f"{stage.base}/stage-player", shell)
        await page.goto(f"{stage.base}/stage-player")
        shown = await page.evaluate(PLAY, path_of(kept))
    print(shown)
    assert (shown["width"], shown["height"]) == (1280, 720)
    assert abs(shown["duration"] * 1000 - kept.recording["duration_ms"]) <= 100
    assert abs(shown["sought"] - 4.0) <= 0.05
    assert shown["played"] > 0.3


PLAY = """async (url) => {
  const video = document.getElementById("v");
  const once = (name) => new Promise((done, failed) => {
    video.addEventListener(name, done, { once: true });
    video.addEventListener("error", () => failed(new Error(video.error.message)), { once: true });
  });
  video.src = url;
  await once("loadedmetadata");
  const { videoWidth: width, videoHeight: height, duration } = video;
  await video.play();
  await new Promise((done) => setTimeout(done, 800));
  const played = video.currentTime;
  video.pause();
  video.currentTime = 4.0;
  await once("seeked");
  return { width, height, duration, played, sought: video.currentTime };
}"""


async def test_single_file_has_the_sent_pictures(api: Api, kept: Kept, tmp_path: Path) -> None:
    answer = await api.ask("GET", path_of(kept, "single-customer-1-camera.webm"))
    assert answer.status == 200
    path = tmp_path / "single.webm"
    path.write_bytes(answer.body)
    probed = await run("ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path))
    codecs = {stream["codec_type"]: stream["codec_name"] for stream in json.loads(probed)["streams"]}
    assert codecs == {"video": "vp8", "audio": "opus"}
