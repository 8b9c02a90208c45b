"""Choose by codec."""

from __future__ import annotations

from collections.abc import Callable

from recorder.depacketise import av1, h264
from recorder.depacketise.audio import AudioDepacketiser, opus_duration, opus_repeated
from recorder.depacketise.frame import Depacketiser
from recorder.depacketise.video import FrameBuilder, VideoDepacketiser
from recorder.depacketise.vpx import Vp8Builder, Vp9Builder, parse_vp8, parse_vp9
from recorder.rtp import RtpError

VIDEO: dict[str, Callable[[], FrameBuilder]] = {
    "video/vp8": Vp8Builder,
    "video/vp9": Vp9Builder,
    "video/h264": h264.H264Builder,
    "video/av1": av1.Av1Builder,
}
AUDIO: dict[str, Callable[[bytes], int]] = {"audio/opus": opus_duration, "audio/pcmu": len, "audio/pcma": len}


def depacketiser(mime: str) -> Depacketiser:
    """Return a new depacketiser. Raises ValueError for a codec that is not known here."""
    name = mime.lower()
    if name in VIDEO:
        return VideoDepacketiser(VIDEO[name]())
    if name in AUDIO:
        return AudioDepacketiser(AUDIO[name])
    raise ValueError(f"no depacketiser for {mime}")


def duration_of(mime: str, payload: bytes) -> int:
    """Return the media time that one audio payload fills.

    Raises RtpError for a malformed payload, ValueError for a codec that is not known here.
    """
    duration = AUDIO.get(mime.lower())
    if duration is None:
        raise ValueError(f"no duration of {mime}")
    return duration(payload)


def repeated_by(mime: str, payload: bytes) -> int:
    """Return the media time that one audio payload repeats of the one before (in-band FEC); 0: nothing."""
    return opus_repeated(payload) if mime.lower() == "audio/opus" else 0


def is_keyframe(mime: str, payload: bytes) -> bool:
    """Tell whether a keyframe begins with this RTP payload; False for empty, malformed and unknown ones.

    Every audio payload is one.
    """
    if not payload:
        return False
    try:
        match mime.lower():
            case "video/vp8":
                return parse_vp8(payload)[1].keyframe
            case "video/vp9":
                return parse_vp9(payload)[1].keyframe
            case "video/h264":
                return h264.starts_keyframe(payload)
            case "video/av1":
                return av1.starts_keyframe(payload)
            case name:
                return name.startswith("audio/")
    except RtpError:
        return False
