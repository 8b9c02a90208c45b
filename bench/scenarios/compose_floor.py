"""The least a composite can cost: decode, encode and sound of the same frames, and nothing else.

Runs as a child process. The canvases are painted before the clock starts and lie in memory, ten seconds of
them over and over, as long as the made-up parties' own clips. Encoders, decoders and their threads are the
compositor's.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags

from bench.scenarios.material import CLIP_SECONDS, KEY
from compositor.canvas import Canvas, Floats
from compositor.compose import Composition
from compositor.encode import AAC_FRAME, BEHIND, SAMPLE_RATE, open_audio, open_video
from compositor.timeline import Frame, Timeline
from recorder.journal import JournalReader
from recorder.template import Template, parse_template

DECODERS = {"video/vp8": "vp8", "video/h264": "h264", "audio/opus": "opus"}


class Kept:
    """An output that keeps the first ten seconds of canvases and all sound."""

    def __init__(self, template: Template) -> None:
        self._most = CLIP_SECONDS * template.frame_rate
        self.canvases: list[Canvas] = []
        self.samples: list[Floats] = []

    def picture(self, canvas: Canvas, number: int) -> None:
        """Copy a frame."""
        if len(self.canvases) < self._most:
            self.canvases.append(Canvas(canvas.planes.width, canvas.planes.height))
            self.canvases[-1].planes.copy_from(canvas.planes)

    def sound(self, samples: Floats) -> None:
        """Keep samples."""
        self.samples.append(samples)


def in_a_child(recording: Path, template: dict[str, Any]) -> float:
    """Return the CPU seconds of the whole recording's floor."""
    job = json.dumps({"recording": str(recording), "template": template})
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=True)
    return float(done.stdout)


def cpu_s(recording: Path, template: Template) -> float:
    """Prepare everything, then decode and encode it; returns the CPU seconds of the latter."""
    records = JournalReader(recording, KEY).poll()
    kept = Kept(template)
    composition = Composition(template, lambda channels: kept)
    timeline = Timeline()
    for record in records:
        timeline.feed(record)
        composition.feed(record)
        composition.advance()
    duration_s = composition.finish()["duration_ms"] / 1000
    timeline.end()
    frames = timeline.ready(1 << 62)
    contexts = {track: _decoder(info.mime) for track, info in timeline.tracks.items()}
    video, audio = open_video(template), open_audio(template, kept.samples[0].shape[0])
    samples = np.concatenate(kept.samples, axis=1)
    began_ns, began_s = frames[0].at_ns, time.process_time()
    with ThreadPoolExecutor(1) as thread:
        encoding: deque[Future[Any]] = deque()
        waiting = deque(frames)
        for number, canvas in zip(
            range(round(duration_s * template.frame_rate)), itertools.cycle(kept.canvases)
        ):
            until_ns = began_ns + number * 1_000_000_000 // template.frame_rate
            while waiting and waiting[0].at_ns <= until_ns:
                _decode(contexts, waiting.popleft())
            canvas.frame.pts, canvas.frame.time_base = number, Fraction(1, template.frame_rate)
            encoding.append(thread.submit(video.encode, canvas.frame))
            if len(encoding) > BEHIND:
                encoding.popleft().result()
        for start in range(0, samples.shape[1] // AAC_FRAME * AAC_FRAME, AAC_FRAME):
            part = np.ascontiguousarray(samples[:, start : start + AAC_FRAME])
            sound = av.AudioFrame.from_ndarray(part, format="fltp", layout=audio.layout.name)
            sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            audio.encode(sound)
        while encoding:
            encoding.popleft().result()
    video.encode(None)
    audio.encode(None)
    return time.process_time() - began_s


def _decoder(mime: str) -> Any:
    context: Any = av.CodecContext.create(DECODERS[mime.lower()], "r")
    context.thread_count = 1
    if mime.startswith("video/"):
        context.flags |= Flags.low_delay
    else:
        context.sample_rate, context.layout = SAMPLE_RATE, "stereo"
    return context


def _decode(contexts: dict[int, Any], frame: Frame) -> None:
    contexts[frame.track].decode(av.Packet(frame.data))


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    print(cpu_s(Path(wanted["recording"]), parse_template(wanted["template"])))
