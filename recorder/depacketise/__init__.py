"""From RTP payloads to frames, codec by codec, and keyframes recognised without decoding."""

from recorder.depacketise.codecs import depacketiser, duration_of, is_keyframe, repeated_by
from recorder.depacketise.frame import Depacketiser, MediaFrame
from recorder.depacketise.red import RedBlock, parse_red

__all__ = [
    "Depacketiser",
    "MediaFrame",
    "RedBlock",
    "depacketiser",
    "duration_of",
    "is_keyframe",
    "parse_red",
    "repeated_by",
]
