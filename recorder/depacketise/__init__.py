"""From RTP payloads to frames, codec by codec, and keyframes recognised without decoding."""

from recorder.depacketise.codecs import depacketiser, is_keyframe
from recorder.depacketise.frame import Depacketiser, MediaFrame

__all__ = ["Depacketiser", "MediaFrame", "depacketiser", "is_keyframe"]
