"""Read a picture's size from a keyframe, for containers that must state it.

Sources: RFC 6386 9.1 (VP8), VP9 bitstream specification 6.2, ITU-T H.264 7.3.2.1.1 (through the decoder for
H.264 and AV1, whose headers are entropy-coded in long chains of flags: the decoder reads them right).
"""

from __future__ import annotations

from typing import Any

import av

_DECODERS = {"video/vp9": "vp9", "video/h264": "h264", "video/av1": "libdav1d"}


def picture_size(mime: str, keyframe: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a keyframe; None when it does not say."""
    if mime.lower() == "video/vp8":
        if len(keyframe) < 10 or keyframe[0] & 1 or keyframe[3:6] != b"\x9d\x01\x2a":
            return None
        width = int.from_bytes(keyframe[6:8], "little") & 0x3FFF
        height = int.from_bytes(keyframe[8:10], "little") & 0x3FFF
        return (width, height) if width and height else None
    name = _DECODERS.get(mime.lower())
    if name is None or not keyframe:
        return None
    context: Any = av.CodecContext.create(name, "r")
    context.thread_count = 1
    try:
        decoded = [*context.decode(av.Packet(keyframe)), *context.decode(None)]
    except av.FFmpegError:
        return None
    return (decoded[0].width, decoded[0].height) if decoded else None
