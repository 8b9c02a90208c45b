"""Check that bytes are a whole PNG of a bounded size, before anything stores or decodes it.

Source: PNG specification, third edition (W3C, 2025), sections 5 (chunks) and 9.2 (filtered scanlines).
"""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# Adam7: first column, first row, column step, row step of each pass.
_PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


class PngError(ValueError):
    """The bytes are not a PNG, are damaged, or hold too large a picture."""


def check_png(data: bytes, *, pixels_limit: int) -> tuple[int, int]:
    """Return width and height in pixels. Raises PngError; inflates at most what the header announces."""
    if not data.startswith(_SIGNATURE):
        raise PngError("not a PNG: wrong signature")
    width = height = expected = 0
    packed = bytearray()
    offset = len(_SIGNATURE)
    ended = False
    while offset < len(data) and not ended:
        if offset + 12 > len(data):
            raise PngError(f"the PNG is cut off at byte {offset}")
        length, kind = struct.unpack_from(">I4s", data, offset)
        if offset + 12 + length > len(data):
            raise PngError(f"the PNG is cut off in chunk {kind!r} at byte {offset}")
        body = data[offset + 8 : offset + 8 + length]
        if zlib.crc32(kind + body) != struct.unpack_from(">I", data, offset + 8 + length)[0]:
            raise PngError(f"chunk {kind!r} at byte {offset} is damaged")
        if width == 0:
            width, height, expected = _header(kind, body, pixels_limit)
        elif kind == b"IDAT":
            packed += body
        ended = kind == b"IEND"
        offset += 12 + length
    if not ended:
        raise PngError("the PNG has no end")
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(bytes(packed), expected + 1)
    except zlib.error as error:
        raise PngError(f"the PNG's picture is damaged: {error}") from error
    if len(raw) != expected:
        raise PngError(f"the PNG's picture has {len(raw)} bytes instead of {expected}")
    return width, height


def _header(kind: bytes, body: bytes, pixels_limit: int) -> tuple[int, int, int]:
    """Return width, height and the number of filtered bytes that the header announces."""
    if kind != b"IHDR" or len(body) != 13:
        raise PngError("not a PNG: no header")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise PngError("the PNG's header is not valid")
    if width == 0 or height == 0 or width * height > pixels_limit:
        raise PngError(f"the picture is {width}x{height}; 1 … {pixels_limit} pixels are allowed")
    bits = depth * _CHANNELS[colour]
    passes = _PASSES if interlace else [(0, 0, 1, 1)]
    expected = 0
    for column, row, across, down in passes:
        columns = (width - column + across - 1) // across
        rows = (height - row + down - 1) // down
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)
    return width, height, expected
