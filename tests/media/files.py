"""Files for Chromium's fake devices: y4m for the camera, wav for the microphone; Chromium plays both in a
loop.

Time in these files counts from their beginning: the bar code says when in the period of ``PERIOD_S`` seconds
a picture was captured. MJPEG would be smaller, but Chromium takes every MJPEG file for 30 fps.
"""

from __future__ import annotations

import wave
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.media.pictures import FPS, HEIGHT, WIDTH, Party, Planes, picture
from tests.media.sounds import PERIOD_S, RATE, Sound, programme


def write_y4m(path: Path, frames: Iterable[Planes], width: int, height: int, fps: int) -> Path:
    """Write I420 frames as YUV4MPEG2."""
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C420jpeg\n".encode())
        for frame in frames:
            file.write(b"FRAME\n")
            file.write(frame.data)
    return path


def write_wav(path: Path, sound: Sound) -> Path:
    """Write mono float sound at 48 kHz as 16-bit PCM."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def camera_file(
    path: Path,
    party: Party,
    *,
    fps: int = FPS,
    width: int = WIDTH,
    height: int = HEIGHT,
    seconds: int = PERIOD_S,
    grain: int = 0,
) -> Path:
    """Write one period of a party's pictures (62 MB at the defaults), ``grain``: luma noise of up to so much.

    Without grain the scene is so quiet that Chromium needs 115 kbit/s for it; with 12 it takes all it may.
    """
    chance = np.random.default_rng(1)

    def frame(time_ms: int) -> Planes:
        planes = picture(party, time_ms, width, height)
        if grain:
            noise = chance.integers(-grain, grain + 1, (height, width), dtype=np.int16)
            planes[:height] = np.clip(planes[:height] + noise, 16, 235)
        return planes

    times = [round(index * 1000 / fps) for index in range(seconds * fps)]
    return write_y4m(path, (frame(time_ms) for time_ms in times), width, height, fps)


def microphone_file(path: Path, party: Party) -> Path:
    """Write one period of a party's sound."""
    return write_wav(path, programme(party))
