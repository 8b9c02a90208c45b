"""CPU seconds a composed minute costs, beside the ffmpeg command a user would write for the same picture.

Two talking heads (25 fps, static background, sensor noise) and two Opus voices become 1280x720 at 25 fps
with clock and a Chinese line. Ours is the whole child process: start, unsealing the journal, decoding,
composing, encoding, sealing. ffmpeg reads the same packets from plain files and writes a plain MP4. The floor
is decoding, encoding and sound of the same frames alone (``compose_floor``). Runs alternate; medians.
"""

from __future__ import annotations

import base64
import io
import itertools
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from bench.scenarios import compose_floor
from bench.scenarios.calls import Progress
from bench.scenarios.material import H264_720P, KEY, VP8_360P, Kind, Side, write_journal, write_plain
from compositor.fonts import FONT_PATH
from compositor.overlays import tile_stamp
from recorder.sealed import SealedReader
from recorder.template import TileOverlay

REPETITIONS = 3
CLOCK = {"kind": "clock"}
LINE = {
    "kind": "text",
    "text": "远程视频银行 双录存证 请勿外传",
    "x": 0.98,
    "y": 0.98,
    "anchor": "bottom_right",
}
TILE = {"kind": "tile", "text": "B-1 agent · customer"}
EVERYTHING = [
    TILE,
    {"kind": "label"},
    CLOCK,
    LINE,
    {"kind": "sign"},
    {"kind": "text", "text": "{business_no}", "x": 0.98, "y": 0.02, "anchor": "top_right"},
]


@dataclass(frozen=True)
class Case:
    """One composite; ``ffmpeg``: the command that draws the same is run as well."""

    title: str
    template: dict[str, Any]
    kind: Kind = VP8_360P
    one_off: bool = False
    """One camera is off for the second half."""
    ffmpeg: bool = False
    tile: bool = False
    floor: bool = False
    """Decode, encode and sound of the same frames are measured alone as well."""


CASES = {
    "call": Case("2 x 360p VP8", {"overlays": [CLOCK, LINE]}, ffmpeg=True, floor=True),
    "call_same_preset": Case(
        "x264 veryfast as it is", {"overlays": [CLOCK, LINE], "effort": "normal"}, floor=True
    ),
    "call_h264_720p": Case("2 x 720p H.264", {"overlays": [CLOCK, LINE]}, H264_720P, ffmpeg=True),
    "call_tiled": Case("with tiled watermark", {"overlays": [CLOCK, LINE, TILE]}, ffmpeg=True, tile=True),
    "call_evidence": Case("evidence profile", {"overlays": [CLOCK, LINE], "profile": "evidence"}),
    "call_one_off": Case("one camera off half the time", {"overlays": [CLOCK, LINE]}, one_off=True),
    "call_bare": Case("without overlays", {"overlays": []}),
    "call_overlays": Case("with every overlay", {"overlays": EVERYTHING}),
}
QUICK = ("call", "call_tiled", "call_evidence")


@dataclass
class _Runs:
    ours: list[tuple[float, float]] = field(default_factory=list)
    theirs: list[tuple[float, float]] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)
    ffmpeg_bytes: int = 0


def child_seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Return CPU seconds (user and system) of the child processes ``run`` starts, and its wall seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu, time.monotonic() - began


def compose_ours(recording: Path, template: dict[str, Any], sample: Path | None = None) -> dict[str, Any]:
    """Run one composing job; returns what it said at its end.

    ``sample``: a PNG to draw the middle frame into.
    """
    job = {
        "recording_dir": str(recording),
        "data_key_id": KEY.key_id,
        "data_key": base64.b64encode(KEY.secret).decode(),
        "template": template,
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
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["done"]
    if sample is not None:
        with SealedReader(recording / "files" / last["file"]["name"], KEY) as reader:
            _middle_frame(io.BytesIO(reader.read(0, reader.size)), sample)
    shutil.rmtree(recording / "files")
    return last


def compose_ffmpeg(ffmpeg: str, directory: Path, kind: Kind = VP8_360P, *, tile: bool = False) -> int:
    """Run the command of docs/composing.md, section "The reference"; returns the size of what it wrote."""
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
    names = [f"{side}-{kind.height}.{kind.suffix}" for side in "ab"]
    inputs = ["-i", str(directory / names[0]), "-i", str(directory / names[1])]
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
    return (directory / "ffmpeg.mp4").stat().st_size


def _middle_frame(film: Path | io.BytesIO, png: Path) -> None:
    """Draw the frame in the middle of an MP4."""
    png.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(film) if isinstance(film, Path) else film, "r") as container:
        stream = container.streams.video[0]
        middle = next(itertools.islice(container.decode(stream), stream.frames // 2, None))
        Image.fromarray(middle.to_ndarray(format="rgb24")).save(png)


def _tile_png(path: Path) -> None:
    """Write the watermark of our own tile overlay as a PNG for ffmpeg."""
    stamp = tile_stamp(TileOverlay(text="B-1 agent · customer"), "B-1 agent · customer", 1280, 720, print)
    rgba = np.full((720, 1280, 4), 255, np.uint8)
    rgba[..., 3] = 255 - stamp.keep
    Image.fromarray(rgba).save(path)


def run(
    repetitions: int = REPETITIONS,
    *,
    seconds: int = 60,
    cases: tuple[str, ...] = tuple(CASES),
    samples: Path | None = None,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """Measure the cases; CPU and wall seconds per recorded minute.

    ``ratio.ffmpeg`` is the first case's, ours over theirs. ``samples``: a directory for the middle frame of
    what each side made.
    """
    ffmpeg = shutil.which("ffmpeg")
    found = {name: _Runs() for name in cases}
    with tempfile.TemporaryDirectory(prefix="bench-compose-") as scratch:
        directory = Path(scratch)
        progress("making the calls")
        for kind in {CASES[name].kind for name in cases}:
            sides = [Side.make(seed, kind, seconds) for seed in (1, 2)]
            for letter, side in zip("ab", sides, strict=True):
                write_plain(directory / f"{letter}-{kind.height}.{kind.suffix}", side)
            write_journal(directory / f"recording-{kind.height}", sides, seconds)
            if any(CASES[name].one_off for name in cases):
                off = directory / f"recording-{kind.height}-off"
                write_journal(off, sides, seconds, camera_off_s=seconds // 2)
        _tile_png(directory / "tile.png")
        for number in range(repetitions):
            for name, runs in found.items():
                progress(f"{name}, run {number + 1} of {repetitions}")
                keep = samples / name if samples is not None and number == 0 else None
                _once(CASES[name], runs, directory, ffmpeg, keep)
    report: dict[str, Any] = {"seconds": seconds, "repetitions": repetitions}
    for name, runs in found.items():
        report[name] = _figures(runs, seconds)
    report["ratio"] = {}
    if ffmpeg is not None and "ratio" in report.get("call", {}):
        report["ratio"]["ffmpeg"] = report["call"]["ratio"]
    for name, of in (("call_one_off", "call"), ("call_evidence", "call"), ("call_overlays", "call_bare")):
        if name in report and of in report:
            mine, other = (report[one]["ours_cpu_s_per_min"] for one in (name, of))
            report["ratio"][f"{name}_to_{of}"] = round(mine / other, 3)
    return report


def _once(case: Case, runs: _Runs, directory: Path, ffmpeg: str | None, keep: Path | None) -> None:
    """Run all sides; ``keep``: where their middle frames go, ``-ours.png`` and ``-ffmpeg.png`` added."""
    recording = directory / f"recording-{case.kind.height}{'-off' if case.one_off else ''}"

    def ours() -> None:
        sample = keep.with_name(f"{keep.name}-ours.png") if keep is not None else None
        runs.done = compose_ours(recording, case.template, sample)

    runs.ours.append(child_seconds(ours))
    if case.ffmpeg and ffmpeg is not None:

        def theirs() -> None:
            runs.ffmpeg_bytes = compose_ffmpeg(ffmpeg, directory, case.kind, tile=case.tile)

        runs.theirs.append(child_seconds(theirs))
        if keep is not None:
            _middle_frame(directory / "ffmpeg.mp4", keep.with_name(f"{keep.name}-ffmpeg.png"))
    if case.floor:
        runs.floor.append(compose_floor.in_a_child(recording, case.template))


def _figures(runs: _Runs, seconds: int) -> dict[str, Any]:
    per_minute = 60 / seconds

    def median(values: list[float]) -> float:
        return round(statistics.median(values) * per_minute, 2)

    figures: dict[str, Any] = {
        "ours_cpu_s_per_min": median([cpu for cpu, _ in runs.ours]),
        "ours_wall_s_per_min": median([wall for _, wall in runs.ours]),
        "ours_bytes": runs.done["file"]["plain_bytes"],
        "ours_peak_mib": runs.done["peak_mib"],
        "frames": runs.done["frames"],
    }
    if runs.theirs:
        cpu = median([cpu for cpu, _ in runs.theirs])
        figures |= {
            "ffmpeg_cpu_s_per_min": cpu,
            "ffmpeg_wall_s_per_min": median([wall for _, wall in runs.theirs]),
            "ffmpeg_bytes": runs.ffmpeg_bytes,
            "ratio": round(figures["ours_cpu_s_per_min"] / cpu, 3),
        }
    if runs.floor:
        floor = median(runs.floor)
        ratio = round(figures["ours_cpu_s_per_min"] / floor, 3)
        figures |= {"floor_cpu_s_per_min": floor, "floor_ratio": ratio}
    return figures
