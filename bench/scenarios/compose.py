"""CPU seconds a composed minute costs, beside the ffmpeg command a user would write for the same picture.

Two talking heads (640x360 VP8, 25 fps, static background, sensor noise) and two Opus voices become
1280x720 at 25 fps with clock and a Chinese line. Ours is the whole child process: start, unsealing the
journal, decoding, composing, encoding, sealing. ffmpeg reads the same packets from WebM and writes a plain
MP4. Runs alternate; medians.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from compositor.fonts import FONT_PATH
from recorder.journal import GroupCommit
from recorder.records import (
    ClockRecord,
    EndRecord,
    Record,
    RtpRecord,
    SessionRecord,
    TrackInfo,
    TrackRecord,
)
from recorder.rtp import RtpPacket
from recorder.sealed import DataKey

CLIP_SECONDS = 10
SECONDS = 30
"""The clip runs three times: what starting Python costs then weighs as in a recording of half a minute."""
REPETITIONS = 3
FPS = 25
START_NS = 1_000_000_000_000
UTC_NS = 1_795_636_447_000_000_000
KEY = DataKey("bench", b"bench key, no se")
OVERLAYS: list[dict[str, Any]] = [
    {"kind": "clock"},
    {
        "kind": "text",
        "text": "远程视频银行 双录存证 请勿外传",
        "x": 0.98,
        "y": 0.98,
        "anchor": "bottom_right",
    },
]


def talking_head(seed: int) -> list[tuple[bytes, bool]]:
    """Encode a moving head before a static room with sensor noise, as a browser would."""
    encoder: Any = av.CodecContext.create("libvpx", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 640, 360, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.gop_size = Fraction(1, FPS), Fraction(FPS), 3000
    encoder.bit_rate, encoder.thread_count = 700_000, 1
    encoder.options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "error-resilient": "1"}
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:360, 0:640].astype(np.float32)
    room = 90 + 40 * np.sin(columns / 55 + seed) + 20 * (rows > 250) + 15 * ((columns // 80) % 2)
    noise = random.normal(0, 1.6, (8, 360, 640)).astype(np.float32)
    packets = []
    for number in range(CLIP_SECONDS * FPS):
        t = number / FPS
        x, y = 320 + 30 * np.sin(t * 1.3 + seed), 170 + 8 * np.sin(t * 2.1)
        head = ((columns - x) / 80) ** 2 + ((rows - y) / 110) ** 2 < 1
        mouth = ((columns - x) / 26) ** 2 + ((rows - y - 50) / (4 + 9 * abs(np.sin(t * 7)))) ** 2 < 1
        luma = np.where(mouth, 60, np.where(head, 175 - (rows - y) / 6, room)) + noise[number % 8]
        picture = np.full((540, 640), 128, np.uint8)
        picture[:360] = np.clip(luma, 16, 235)
        chroma = picture[360:].reshape(-1)
        small = head[::2, ::2].ravel()
        chroma[: small.size][small] = 112
        chroma[small.size :][small] = 150
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts = number
        packets += [(bytes(packet), bool(packet.is_keyframe)) for packet in encoder.encode(frame)]
    return packets


def voice(hertz: float) -> list[bytes]:
    """Encode something with the rhythm of speech as Opus packets of 20 ms."""
    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.format, encoder.layout = 48_000, "s16", "stereo"
    encoder.time_base, encoder.bit_rate = Fraction(1, 48_000), 40_000
    at = np.arange(CLIP_SECONDS * 48_000)
    wave = np.sin(2 * np.pi * hertz * at / 48_000) * (0.2 + 0.2 * np.sin(2 * np.pi * 3 * at / 48_000))
    pcm = (wave * 32767).astype(np.int16)
    packets = []
    for number in range(CLIP_SECONDS * 50):
        part = np.repeat(pcm[number * 960 : (number + 1) * 960], 2)[None, :]
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, number * 960
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return packets


def write_webm(path: Path, pictures: list[tuple[bytes, bool]], sounds: list[bytes]) -> None:
    """Put the made-up packets into a WebM for ffmpeg to read."""
    with av.open(str(path), "w", format="webm") as container:
        video: Any = container.add_stream("libvpx", rate=FPS)
        video.width, video.height, video.pix_fmt = 640, 360, "yuv420p"
        audio: Any = container.add_stream("libopus", rate=48_000)
        audio.layout = "stereo"
        for number, (data, key) in enumerate(pictures):
            packet = av.Packet(data)
            packet.stream, packet.time_base = video, Fraction(1, FPS)
            packet.pts = packet.dts = number
            packet.is_keyframe = key
            container.mux(packet)
            for index in range(number * 2, number * 2 + 2):
                sound = av.Packet(sounds[index])
                sound.stream, sound.time_base = audio, Fraction(1, 50)
                sound.pts = sound.dts = index
                container.mux(sound)


class _Clock:
    def now_ns(self) -> int:
        return START_NS

    def utc_ns(self) -> int:
        return UTC_NS

    def pair(self) -> ClockRecord:
        return ClockRecord(START_NS, UTC_NS, 0, "ntp", 2, "trusted")


class _Signer:
    def sign(self, message: bytes) -> bytes:
        return b"bench"


def write_journal(directory: Path, sides: list[tuple[list[tuple[bytes, bool]], list[bytes]]]) -> None:
    """Write the packets as a recording's journal."""
    timed: list[tuple[int, Record]] = []
    for side, (pictures, sounds) in enumerate(sides):
        seat, role = ("agent#1", "agent") if side == 0 else ("customer#1", "customer")
        for offset, (kind, mime, rate) in enumerate(
            (("video", "video/VP8", 90_000), ("audio", "audio/opus", 48_000))
        ):
            number = 1 + side * 2 + offset
            source = "camera" if kind == "video" else "microphone"
            info = TrackInfo(number, role, seat, role, role, kind, source, mime, rate, 96 + offset, number, 2)
            timed.append((START_NS, TrackRecord(START_NS, info)))
            sequence = 0
            frames = [data for data, _ in pictures] if kind == "video" else sounds
            for index, data in enumerate(frames):
                at_ns = START_NS + index * (40_000_000 if kind == "video" else 20_000_000) + 5_000_000
                stamp = index * (3600 if kind == "video" else 960)
                for at in range(0, len(data), 1100):
                    head = (b"\x10" if at == 0 else b"\x00") if kind == "video" else b""
                    last = at + 1100 >= len(data)
                    payload = head + data[at : at + 1100] if kind == "video" else data
                    packet = RtpPacket(96 + offset, sequence & 0xFFFF, stamp, number, payload, last)
                    timed.append((at_ns, RtpRecord(number, at_ns, packet.build())))
                    sequence += 1
    timed += [
        (at, ClockRecord(at, UTC_NS + at - START_NS, 0, "ntp", 2, "trusted"))
        for at in range(START_NS, START_NS + SECONDS * 10**9, 10**9)
    ]
    timed.sort(key=lambda entry: entry[0])
    commit = GroupCommit(_Signer(), _Clock(), threads=False)
    session = {"recording": "bench", "armed_ns": START_NS, "business_no": "B-1", "room": "bench"}
    journal = commit.open(directory, KEY, SessionRecord(START_NS, 1, session))
    for at in range(0, len(timed), 100):
        part = timed[at : at + 100]
        journal.write([record for _, record in part])
        commit.step(part[-1][0] + 300_000_000)
    end_ns = START_NS + SECONDS * 10**9
    ended = journal.close(EndRecord(end_ns, True, "stopped"))
    commit.step(end_ns + 300_000_000)
    ended.result(timeout=10)
    commit.close()


def child_seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Return CPU seconds (user and system) of the child processes ``run`` starts, and its wall seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu, time.monotonic() - began


def compose_ours(recording: Path, overlays: list[dict[str, Any]]) -> dict[str, Any]:
    """Run one composing job; returns what it said at its end."""
    job = {
        "recording_dir": str(recording),
        "data_key_id": KEY.key_id,
        "data_key": base64.b64encode(KEY.secret).decode(),
        "template": {"overlays": overlays},
        "nice": 0,
    }
    done = subprocess.run(
        [sys.executable, "-m", "compositor.job"],
        input=json.dumps(job) + "\n",
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def compose_ffmpeg(ffmpeg: str, directory: Path, *, tile: bool) -> None:
    """Run the command of docs/composing.md, section "The reference"."""
    clock = (
        f"drawtext=fontfile={FONT_PATH}:fontsize=28:fontcolor=white:box=1:boxcolor=black@0.5:"
        "boxborderw=6:x=20:y=20:"
        r"text='%{pts\:localtime\:1763762400\:%Y-%m-%d %H\\\:%M\\\:%S}."
        r"%{eif\:mod(round(t*1000)\,1000)\:d\:3}'"
    )
    line = (
        f"drawtext=fontfile={FONT_PATH}:fontsize=26:fontcolor=white@0.8:x=w-tw-20:y=h-th-20:"
        "text='远程视频银行 双录存证 请勿外传'"
    )
    inputs = ["-i", str(directory / "a.webm"), "-i", str(directory / "b.webm")]
    graph = (
        "[0:v]fps=25,scale=640:360[a];[1:v]fps=25,scale=640:360[b];"
        f"[a][b]xstack=inputs=2:layout=0_0|w0_0,pad=1280:720:0:180,{clock},{line}"
    )
    if tile:
        inputs += ["-i", str(directory / "tile.png")]
        graph += "[c];[c][2:v]overlay=0:0"
    graph += "[v];[0:a][1:a]amix=inputs=2:normalize=0[ao]"
    options = "-pix_fmt yuv420p -c:v libx264 -preset veryfast -crf 26 -g 250 -c:a aac -b:a 96k -ac 2"
    command = [ffmpeg, "-y", "-v", "error", *inputs, "-filter_complex", graph, "-map", "[v]", "-map", "[ao]"]
    command += [*options.split(), "-movflags", "+faststart", str(directory / "ffmpeg.mp4")]
    subprocess.run(command, check=True)


def _tile_png(path: Path) -> None:
    """Write the watermark of our own tile overlay as a PNG for ffmpeg."""
    from PIL import Image

    from compositor.overlays import tile_stamp
    from recorder.template import TileOverlay

    stamp = tile_stamp(TileOverlay(text="B-1 agent · customer"), "B-1 agent · customer", 1280, 720, print)
    rgba = np.full((720, 1280, 4), 255, np.uint8)
    rgba[..., 3] = 255 - stamp.keep
    Image.fromarray(rgba).save(path)


def run(repetitions: int = REPETITIONS) -> dict[str, Any]:
    """Measure both sides, plain and with a tiled watermark; CPU and wall seconds per recorded minute."""
    per_minute = 60 / SECONDS
    ffmpeg = shutil.which("ffmpeg")
    report: dict[str, Any] = {"seconds": SECONDS, "repetitions": repetitions}
    with tempfile.TemporaryDirectory(prefix="bench-compose-") as scratch:
        directory = Path(scratch)
        loops = SECONDS // CLIP_SECONDS
        sides = [(talking_head(seed) * loops, voice(120.0 * seed) * loops) for seed in (1, 2)]
        for name, (pictures, sounds) in zip("ab", sides, strict=True):
            write_webm(directory / f"{name}.webm", pictures, sounds)
        write_journal(directory / "recording", sides)
        _tile_png(directory / "tile.png")
        for name, tile in (("call", False), ("call_tiled", True)):
            overlays = [*OVERLAYS, *([{"kind": "tile", "text": "B-1 agent · customer"}] if tile else [])]
            ours: list[tuple[float, float]] = []
            theirs: list[tuple[float, float]] = []
            done: dict[str, Any] = {}
            for _ in range(repetitions):

                def compose(overlays: list[dict[str, Any]] = overlays, done: dict[str, Any] = done) -> None:
                    done.update(compose_ours(directory / "recording", overlays))

                ours.append(child_seconds(compose))
                if ffmpeg is not None:
                    program = ffmpeg
                    theirs.append(
                        child_seconds(lambda p=program, t=tile: compose_ffmpeg(p, directory, tile=t))  # type: ignore[misc]
                    )
            report[name] = {
                "ours_cpu_s_per_min": round(statistics.median(cpu for cpu, _ in ours) * per_minute, 2),
                "ours_wall_s_per_min": round(statistics.median(wall for _, wall in ours) * per_minute, 2),
                "ours_bytes": done["done"]["file"]["plain_bytes"],
                "frames": done["done"]["frames"],
            }
            if theirs:
                cpu = statistics.median(cpu for cpu, _ in theirs) * per_minute
                report[name] |= {
                    "ffmpeg_cpu_s_per_min": round(cpu, 2),
                    "ffmpeg_wall_s_per_min": round(statistics.median(w for _, w in theirs) * per_minute, 2),
                    "ffmpeg_bytes": (directory / "ffmpeg.mp4").stat().st_size,
                    "ratio": round(report[name]["ours_cpu_s_per_min"] / cpu, 3),
                }
    report["ratio"] = {"ffmpeg": report["call"]["ratio"]} if ffmpeg else {}
    return report
