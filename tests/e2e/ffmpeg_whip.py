"""A process that publishes a party's pictures and sound with FFmpeg's own WHIP muxer, as PyAV carries it.

Its arguments are one line of JSON on standard input: ``url``, ``token`` and the muxer's
``options``. It prints ``connected`` and publishes until standard input closes.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from fractions import Fraction

import av
import numpy as np

from tests.media.pictures import CUSTOMER, FPS, HEIGHT, WIDTH, picture
from tests.media.sounds import RATE, programme

STEP = 960
"""20 ms: one Opus frame."""


def publish(url: str, token: str, options: dict[str, str]) -> None:
    """Send H.264 and Opus in real time. Raises av.FFmpegError when the muxer does not connect."""
    with av.open(url, "w", format="whip", options={"authorization": token, **options}) as out:
        video = out.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.options = {"profile": "baseline", "preset": "ultrafast", "tune": "zerolatency", "g": str(FPS)}
        audio = out.add_stream("libopus", rate=RATE)
        audio.layout, audio.bit_rate = "stereo", 64_000
        sound = (np.clip(programme(CUSTOMER), -1, 1) * 32767).astype(np.int16)
        begin_s, heard = time.monotonic(), 0
        closed = threading.Event()

        def until_closed() -> None:
            sys.stdin.read()
            closed.set()

        threading.Thread(target=until_closed, daemon=True).start()
        for index in itertools.count():
            if closed.is_set():
                return
            at_s = index / FPS
            shown = av.VideoFrame.from_ndarray(picture(CUSTOMER, round(at_s * 1000)), format="yuv420p")
            shown.pts, shown.time_base = index, Fraction(1, FPS)
            out.mux(video.encode(shown))
            while heard < at_s * RATE:
                samples = np.repeat(sound[(heard + np.arange(STEP)) % sound.size], 2)[None, :]
                said = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
                said.sample_rate, said.pts, said.time_base = RATE, heard, Fraction(1, RATE)
                out.mux(audio.encode(said))
                heard += STEP
            if index == 0:
                print("connected", flush=True)
                begin_s = time.monotonic()
            time.sleep(max(0.0, begin_s + at_s + 1 / FPS - time.monotonic()))


if __name__ == "__main__":
    publish(**json.loads(sys.stdin.readline()))
