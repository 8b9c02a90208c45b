"""Blending is exact, scaling lands where it should, rotation turns clockwise."""

from __future__ import annotations

import av
import numpy as np
import pytest

from compositor.canvas import (
    Canvas,
    Planes,
    SparseStamp,
    blend,
    frame_planes,
    make_stamp,
    new_planes,
    rgb_to_yuv,
    rotate,
    scale_into,
    yuv,
)


def noise(width: int, height: int, seed: int = 3) -> Planes:
    random = np.random.default_rng(seed)
    planes = new_planes(width, height)
    for plane in (planes.y, planes.u, planes.v):
        plane[...] = random.integers(0, 256, plane.shape, np.uint8)
    return planes


def half(
    plane: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    rows, columns = plane.shape
    mean: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = plane.reshape(
        rows // 2, 2, columns // 2, 2
    ).mean(axis=(1, 3))
    return mean


def test_blend_equals_the_float_reference() -> None:
    random = np.random.default_rng(5)
    alpha = random.random((40, 60)).astype(np.float32)
    colours = [random.random((40, 60)).astype(np.float32) * 255 for _ in range(3)]
    stamp = make_stamp(alpha, *(alpha * c for c in colours))
    target = noise(60, 40)
    before = [p.astype(np.float64) for p in (target.y, target.u, target.v)]
    a = alpha.astype(np.float64)
    wanted = [before[0] * (1 - a) + a * colours[0]]
    wanted += [before[i] * (1 - half(a)) + half(a * colours[i].astype(np.float64)) for i in (1, 2)]
    blend(target, stamp, 0, 0)
    for got, want in zip((target.y, target.u, target.v), wanted, strict=True):
        # half a step for the result, half of 1/255 of the pixel for alpha in 8 bits
        assert np.abs(got - want).max() <= 1.01


def test_rounding_is_exact_for_every_alpha_and_value() -> None:
    values = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    alphas = np.repeat(np.arange(256, dtype=np.float32)[:, None] / np.float32(255), 256, axis=1)
    target = new_planes(256, 256)
    target.y[...] = values
    blend(target, make_stamp(alphas, alphas * np.float32(200), 0 * alphas, 0 * alphas), 0, 0)
    a = np.rint(alphas * 255).astype(np.int64)
    wanted = (
        2 * (values * (255 - a) + 200 * a) + 255
    ) // 510  # round half up of n / 255, which never is a half
    assert np.array_equal(target.y, wanted)


def test_alpha_zero_keeps_and_one_replaces() -> None:
    target = noise(32, 32)
    before = target.y.copy()
    zero, one = np.zeros((8, 8), np.float32), np.ones((8, 8), np.float32)
    blend(target, make_stamp(zero, zero, zero, zero), 4, 4)
    assert np.array_equal(target.y, before)
    blend(target, make_stamp(one, one * 77, one * 88, one * 99), 4, 4)
    assert (target.y[4:12, 4:12] == 77).all()
    assert (target.u[2:6, 2:6] == 88).all()
    assert (target.v[2:6, 2:6] == 99).all()


@pytest.mark.parametrize(("x", "y"), [(-7, -5), (28, 30), (-100, 0), (0, 500), (13, 13)])
def test_blend_clips_at_every_edge(x: int, y: int) -> None:
    target = noise(40, 40)
    large = new_planes(240, 840)
    large.box(100, 200, 40, 40).copy_from(target)
    one = np.full((16, 16), 0.5, np.float32)
    stamp = make_stamp(one, one * 50, one * 60, one * 70)
    blend(large, stamp, 100 + (x & ~1), 200 + (y & ~1))
    blend(target, stamp, x, y)
    assert np.array_equal(target.y, large.box(100, 200, 40, 40).y)
    assert np.array_equal(target.u, large.box(100, 200, 40, 40).u)


@pytest.mark.parametrize("width", [64, 66])
def test_sparse_stamp_equals_dense(width: int) -> None:
    alpha = np.zeros((48, width), np.float32)
    alpha[10:20, 5:40] = 0.3
    stamp = make_stamp(alpha, alpha * 235, alpha * 128, alpha * 128)
    dense, sparse = Canvas(width, 48), Canvas(width, 48)  # 66: rows of the frame are longer than the picture
    dense.planes.copy_from(noise(width, 48))
    sparse.planes.copy_from(noise(width, 48))
    blend(dense.planes, stamp, 0, 0)
    SparseStamp(stamp).blend(sparse.planes)
    for one, other in zip((dense.planes.y, dense.planes.u), (sparse.planes.y, sparse.planes.u), strict=True):
        assert np.array_equal(one, other)


def test_canvas_writes_into_the_frame() -> None:
    canvas = Canvas(66, 34)
    canvas.planes.fill((100, 110, 120))
    canvas.planes.box(10, 4, 20, 10).fill((200, 50, 60))
    array = canvas.frame.to_ndarray(format="yuv420p")
    assert (array[4:14, 10:30] == 200).all()
    assert array[0, 0] == 100


@pytest.mark.parametrize("size", [(320, 180), (640, 360), (426, 240), (160, 90), (500, 282)])
def test_scaling_keeps_the_picture_in_place(size: tuple[int, int]) -> None:
    source = new_planes(640, 360)
    source.fill((40, 128, 128))
    source.box(320, 180, 320, 180).fill((200, 90, 160))
    target = new_planes(800, 400)
    target.fill((1, 2, 3))
    scale_into(target.box(10, 20, *size), source)
    w, h = size
    inner = target.box(10, 20, w, h)
    assert abs(int(inner.y[h // 4, w // 4]) - 40) <= 1
    assert abs(int(inner.y[h * 3 // 4, w * 3 // 4]) - 200) <= 1
    assert abs(int(inner.u[h * 3 // 8, w * 3 // 8]) - 90) <= 1
    assert (target.y[19, :] == 1).all()
    assert (target.y[20 + h, :] == 1).all()
    assert (target.y[20 : 20 + h, 9] == 1).all()


def test_rotation_is_clockwise() -> None:
    source = new_planes(8, 4)
    source.fill((0, 128, 128))
    source.y[0, 0] = 255  # top left
    assert rotate(source, 90).y.shape == (8, 4)
    assert rotate(source, 90).y[0, 3] == 255  # goes to the top right
    assert rotate(source, 180).y[3, 7] == 255
    assert rotate(source, 270).y[7, 0] == 255


def test_colours_agree_with_swscale() -> None:
    for colour in ("#ffffff", "#000000", "#ff0000", "#00ff00", "#0000ff", "#ffe082"):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
        frame = av.VideoFrame.from_ndarray(np.tile(rgb, (16, 16, 1)), format="rgb24")
        planes = frame_planes(frame.reformat(format="yuv420p"))
        for got, want in zip(yuv(colour), (planes.y[8, 8], planes.u[4, 4], planes.v[4, 4]), strict=True):
            assert abs(got - int(want)) <= 1, colour
    assert rgb_to_yuv(np.zeros((1, 1, 3), np.float32))[0][0, 0] == 16
