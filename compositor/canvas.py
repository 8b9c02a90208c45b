"""The picture being put together: YUV 4:2:0 planes, written in place.

Why planes and not RGB: a decoded picture already is YUV 4:2:0 and the encoder wants the same. Scaling
straight into views of the canvas costs 0.3–0.6 CPU seconds a minute where the way through RGB costs 23
(docs/composing.md). Colours are BT.601 limited range, which is what browsers send and read when nothing is
signalled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import av
import cv2
import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[np.uint16]
Floats: TypeAlias = npt.NDArray[np.float32]

cv2.setNumThreads(1)  # one job is one core: the scheduler counts on it


@dataclass(frozen=True, slots=True)
class Planes:
    """Y (H, W), U and V (H/2, W/2) uint8 views of one picture."""

    y: Bytes
    u: Bytes
    v: Bytes

    @property
    def height(self) -> int:
        return int(self.y.shape[0])

    @property
    def width(self) -> int:
        return int(self.y.shape[1])

    def box(self, x: int, y: int, w: int, h: int) -> Planes:
        """Return the view of a rectangle; all four are even pixels inside the picture."""
        c, r = x // 2, y // 2
        return Planes(
            self.y[y : y + h, x : x + w],
            self.u[r : r + h // 2, c : c + w // 2],
            self.v[r : r + h // 2, c : c + w // 2],
        )

    def fill(self, colour: tuple[int, int, int]) -> None:
        """Paint everything in one (Y, U, V)."""
        self.y[...], self.u[...], self.v[...] = colour

    def same_as(self, other: Planes) -> bool:
        """Tell whether two pictures have the same size and pixels; one line tells most that differ."""
        middle = self.height // 2
        if self.y.shape != other.y.shape or not np.array_equal(self.y[middle], other.y[middle]):
            return False
        return all(
            np.array_equal(mine, theirs)
            for mine, theirs in ((self.u, other.u), (self.v, other.v), (self.y, other.y))
        )

    def copy_from(self, other: Planes) -> None:
        """Take over the pixels of a picture of the same size."""
        np.copyto(self.y, other.y)
        np.copyto(self.u, other.u)
        np.copyto(self.v, other.v)


def new_planes(width: int, height: int) -> Planes:
    """Return planes of their own memory, uninitialised."""
    half = (height // 2, width // 2)
    return Planes(np.empty((height, width), np.uint8), np.empty(half, np.uint8), np.empty(half, np.uint8))


class Canvas:
    """One reusable frame for the encoder, with writable views of its planes. libx264 copies it."""

    def __init__(self, width: int, height: int) -> None:
        self.frame = av.VideoFrame(width, height, "yuv420p")
        self.planes = frame_planes(self.frame)


def frame_planes(frame: av.VideoFrame) -> Planes:
    """Return zero-copy views of a yuv420p or yuvj420p frame; odd edges lose their last column or row."""
    width, height = frame.width & ~1, frame.height & ~1
    views = []
    for index, plane in enumerate(frame.planes[:3]):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        views.append(rows[: height >> (index > 0), : width >> (index > 0)])
    return Planes(*views)


def yuv(colour: str) -> tuple[int, int, int]:
    """Convert ``#rrggbb`` to (Y, U, V), BT.601 limited range."""
    rgb = np.array([[[int(colour[i : i + 2], 16) for i in (1, 3, 5)]]], np.float32)
    y, u, v = (round(float(plane[0, 0])) for plane in rgb_to_yuv(rgb))
    return y, u, v


def rgb_to_yuv(rgb: Floats) -> tuple[Floats, Floats, Floats]:
    """Convert (H, W, 3) RGB 0–255 to full-resolution Y, U, V floats (Rec. ITU-R BT.601-7, limited range)."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    y = 16.0 + (65.481 * r + 128.553 * g + 24.966 * b) / 255.0
    u = 128.0 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255.0
    v = 128.0 + (112.0 * r - 93.786 * g - 18.214 * b) / 255.0
    return y, u, v


def scale_into(target: Planes, source: Planes) -> None:
    """Scale ``source`` over the whole of ``target``.

    INTER_AREA only where the ratio is exactly 2 or 4: there it is as cheap as INTER_LINEAR and smoother; at
    odd ratios it costs fifteen times as much.
    """
    if source.height == target.height and source.width == target.width:
        target.copy_from(source)
        return
    ratio = source.width / target.width
    exact = ratio in (2.0, 4.0) and source.height / target.height == ratio
    method = cv2.INTER_AREA if exact else cv2.INTER_LINEAR
    for into, of in ((target.y, source.y), (target.u, source.u), (target.v, source.v)):
        scaled = cv2.resize(of, (into.shape[1], into.shape[0]), dst=into, interpolation=method)
        if scaled is not into and not np.shares_memory(scaled, into):
            np.copyto(into, scaled)


def rotate(source: Planes, degrees: int) -> Planes:
    """Turn a picture clockwise by 0, 90, 180 or 270 degrees."""
    if degrees % 360 == 0:
        return source
    code = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}[
        degrees % 360
    ]
    return Planes(*(np.asarray(cv2.rotate(p, code), np.uint8) for p in (source.y, source.u, source.v)))


@dataclass(frozen=True, slots=True)
class Stamp:
    """A picture with alpha, ready to blend: ``colour * alpha`` (0–65025) and ``255 - alpha`` per plane.

    Y at (H, W), chroma at (H/2, W/2) with alpha and colour averaged over each 2x2; H and W are even.
    """

    y: Words
    u: Words
    v: Words
    keep: Words
    keep_half: Words

    @property
    def height(self) -> int:
        return int(self.y.shape[0])

    @property
    def width(self) -> int:
        return int(self.y.shape[1])

    def crop(self, x: int, y: int, w: int, h: int) -> Stamp:
        """Return the part of a rectangle of even pixels."""
        full = np.s_[y : y + h, x : x + w]
        half = np.s_[y // 2 : (y + h) // 2, x // 2 : (x + w) // 2]
        return Stamp(self.y[full], self.u[half], self.v[half], self.keep[full], self.keep_half[half])


def make_stamp(alpha: Floats, y: Floats, u: Floats, v: Floats) -> Stamp:
    """Build a stamp from alpha 0–1 and colours already multiplied by it, all (H, W), padded to even sizes."""
    pad = ((0, alpha.shape[0] % 2), (0, alpha.shape[1] % 2))
    alpha, y, u, v = (np.pad(plane, pad) for plane in (alpha, y, u, v))

    def half(plane: Floats) -> Floats:
        rows, columns = plane.shape
        mean: Floats = plane.reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
        return mean

    def words(plane: Floats) -> Words:
        return np.clip(np.rint(plane), 0, 65025).astype(np.uint16)

    return Stamp(
        words(y * 255.0),
        words(half(u) * 255.0),
        words(half(v) * 255.0),
        words(255.0 - alpha * 255.0),
        words(255.0 - half(alpha) * 255.0),
    )


def join_stamps(stamps: list[Stamp]) -> Stamp:
    """Put stamps of the same height side by side."""
    return Stamp(
        np.concatenate([s.y for s in stamps], axis=1),
        np.concatenate([s.u for s in stamps], axis=1),
        np.concatenate([s.v for s in stamps], axis=1),
        np.concatenate([s.keep for s in stamps], axis=1),
        np.concatenate([s.keep_half for s in stamps], axis=1),
    )


def over(bottom: tuple[Floats, ...], alpha: Floats, colour: tuple[int, int, int]) -> tuple[Floats, ...]:
    """Lay a flat colour with alpha 0–1 over premultiplied (alpha, y, u, v) layers."""
    rest = 1.0 - alpha
    return (
        bottom[0] * rest + alpha,
        *(p * rest + alpha * c for p, c in zip(bottom[1:], colour, strict=True)),
    )


def clear_layers(height: int, width: int) -> tuple[Floats, ...]:
    """Return fully transparent premultiplied layers (alpha, y, u, v)."""
    return tuple(np.zeros((height, width), np.float32) for _ in range(4))


def _mix(plane: Bytes, product: Words, keep: Words) -> None:
    # round(n / 255), n = plane * keep + product: with v = n + 128, (v + (v >> 8)) >> 8 is exact for n ≤ 65025
    work = np.multiply(plane, keep, dtype=np.uint16)
    np.add(work, product, out=work)
    np.add(work, 128, out=work)
    np.add(work, work >> 8, out=work)
    np.right_shift(work, 8, out=work)
    np.copyto(plane, work, casting="unsafe")


def blend(target: Planes, stamp: Stamp, x: int, y: int) -> None:
    """Blend a stamp with its corner at (x, y), rounded down to even; what lies outside is left away."""
    x, y = x & ~1, y & ~1
    left, top = max(0, -x), max(0, -y)
    w = min(stamp.width - left, target.width - x - left) & ~1
    h = min(stamp.height - top, target.height - y - top) & ~1
    if w <= 0 or h <= 0:
        return
    if (left, top, w, h) != (0, 0, stamp.width, stamp.height):
        stamp = stamp.crop(left, top, w, h)
    view = target.box(x + left, y + top, w, h)
    _mix(view.y, stamp.y, stamp.keep)
    _mix(view.u, stamp.u, stamp.keep_half)
    _mix(view.v, stamp.v, stamp.keep_half)


class SparseStamp:
    """A stamp that touches few pixels of a whole picture, a tiled watermark: only those are blended."""

    def __init__(self, stamp: Stamp) -> None:
        self._planes = []
        for product, keep in (
            (stamp.y, stamp.keep),
            (stamp.u, stamp.keep_half),
            (stamp.v, stamp.keep_half),
        ):
            touched = np.flatnonzero(keep != 255)
            self._planes.append((touched, product.ravel()[touched], keep.ravel()[touched]))

    def blend(self, target: Planes) -> None:
        """Blend over planes of the stamp's size."""
        for plane, (touched, product, keep) in zip((target.y, target.u, target.v), self._planes, strict=True):
            if plane.flags.c_contiguous:
                flat = plane.reshape(-1)
                values = flat[touched]
                _mix(values, product, keep)
                flat[touched] = values
            else:
                rows, columns = np.divmod(touched, plane.shape[1])
                values = plane[rows, columns]
                _mix(values, product, keep)
                plane[rows, columns] = values
